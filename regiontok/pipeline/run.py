"""Run a job in one process: threads read images and compute batches; rows are written in the order of the images."""

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from threadpoolctl import threadpool_limits

from regiontok.errors import OutputError, RegiontokError, failure_kind
from regiontok.pipeline.jobs import Job
from regiontok.pipeline.listing import ListedImage, Reader
from regiontok.pipeline.memory import PixelGate
from regiontok.store.failures import Failure
from regiontok.store.keys import check_key
from regiontok.store.shards import pyarrow
from regiontok.store.stamps import Stamp

IMAGE_ERRORS = (RegiontokError, OSError, MemoryError, RuntimeError)  # torch reports a full GPU as a RuntimeError
"""Errors that make one image fail and do not end the run."""


class BatchResult(NamedTuple):
    """The result of a batch of images.

    Attributes:
        table: The rows as a pyarrow table; None if all images failed.
        failures: The failed images.
        ends_shard: Whether the shard ends after this batch.
    """

    table: Any
    failures: list[Failure]
    ends_shard: bool

    @property
    def lengths(self) -> list[int]:
        """Number of masks or tokens of each row."""
        if self.table is None:
            return []
        column = self.table.column("counts" if "counts" in self.table.column_names else "patches")
        return [length for chunk in column.chunks for length in chunk.value_lengths().to_pylist()]


class RowWriter(Protocol):
    """Something that rows can be written to, such as a `StoreWriter`."""

    shard_size: int

    def write(self, table: Any, /) -> None:
        """Add the rows of a batch."""

    def add_failure(self, key: str, reason: str, kind: str) -> None:
        """Add a failed image with the reason."""

    def flush(self) -> None:
        """Write the rows that were added."""


def make_rows(
    images: Iterable[ListedImage],
    reader: Reader,
    job: Job,
    *,
    batch_size: int,
    num_readers: int,
    shard_size: int,
    stop: Callable[[], bool] | None = None,
) -> Generator[BatchResult]:
    """Compute rows batch by batch, in the order of the images; a failed image does not affect the others.

    A new batch starts after every ``shard_size`` images, so that a resumed run makes the same batches.

    Args:
        images: The images to process.
        reader: Reads the images.
        job: Computes the rows.
        batch_size: Images per batch.
        num_readers: Threads that read.
        shard_size: Images per shard.
        stop: Called several times per second. When it returns True, unfinished batches are discarded.
    """
    stop = stop or (lambda: False)
    batches = enumerate(_batches(images, batch_size, shard_size))
    pending: deque[Future[BatchResult]] = deque()
    gate = PixelGate()
    set_up = _use_one_core if job.num_workers > 1 else None
    readers = ThreadPoolExecutor(num_readers, "reader", set_up)
    workers = ThreadPoolExecutor(job.num_workers, "worker", set_up)
    try:
        while not stop():
            for number, (batch_images, ends_shard) in islice(batches, job.num_workers + 2 - len(pending)):
                gated = reader.gated(partial(gate.enter, number))
                reads = [(image, readers.submit(_read, job, gated, image)) for image in batch_images]
                future = workers.submit(_make, job, reads, ends_shard)
                future.add_done_callback(lambda _, number=number: gate.leave(number))  # type: ignore[misc]
                pending.append(future)
            if not pending:
                return
            while not pending[0].done() and not stop():
                with contextlib.suppress(TimeoutError):  # signals are handled between the short waits
                    pending[0].exception(timeout=0.2)
            if pending[0].done():
                yield pending.popleft().result()
        while pending and pending[0].done():
            yield pending.popleft().result()
    finally:
        gate.close()
        readers.shutdown(wait=False, cancel_futures=True)
        workers.shutdown(wait=False, cancel_futures=True)


def run_job(
    writer: RowWriter,
    images: Iterable[ListedImage],
    reader: Reader,
    job: Job,
    *,
    batch_size: int,
    num_readers: int,
    stop: Callable[[], bool] | None = None,
    on_batch: Callable[[BatchResult], None] | None = None,
) -> None:
    """Compute rows and write them. If the run is stopped or fails, the finished rows are written as a shard.

    See `make_rows` for the arguments; ``on_batch`` is called after each batch.
    """
    results = make_rows(
        images, reader, job, batch_size=batch_size, num_readers=num_readers, shard_size=writer.shard_size, stop=stop
    )
    try:
        for result in results:
            if result.table is not None:
                writer.write(result.table)
            for failure in result.failures:
                writer.add_failure(*failure)
            if result.ends_shard:
                writer.flush()
            if on_batch is not None:
                on_batch(result)
    except BaseException:
        with contextlib.suppress(OutputError):  # raise the first error, which may be the same
            writer.flush()
        raise
    finally:
        results.close()
    writer.flush()


def _use_one_core() -> None:
    """Limit OpenMP, and so torch, to one core in this thread, since other threads use the other cores.

    ``torch.set_num_threads`` would change the whole process; OpenMP's limit applies only to the calling thread. If the
    program has called ``torch.set_num_threads``, matrix products of MKL still use that number.
    """
    torch.get_num_threads()  # in a new thread, the first operation of torch would otherwise reset the limit
    threadpool_limits(1, user_api="openmp")


def _batches(
    images: Iterable[ListedImage], batch_size: int, shard_size: int
) -> Iterator[tuple[list[ListedImage], bool]]:
    """Yield the images of each batch, and whether a shard ends after it."""
    remaining = iter(images)
    room = shard_size
    while batch_images := list(islice(remaining, min(batch_size, room))):
        room = room - len(batch_images) or shard_size
        yield batch_images, room == shard_size


def _read(job: Job, reader: Reader, image: ListedImage) -> tuple[Any, Stamp]:
    """Return the job's input from an image, and the stamp of its file before it was read."""
    check_key(image.key)
    stamp = reader.stamp(image)
    return job.read(reader, image), stamp


def _make(job: Job, reads: list[tuple[ListedImage, Future[tuple[Any, Stamp]]]], ends_shard: bool) -> BatchResult:
    """Compute the rows of a batch. If that fails, compute each image separately to find the images that fail."""
    failures: list[Failure] = []
    keys, items, stamps = [], [], []
    for image, future in reads:
        try:
            item, stamp = future.result()
        except IMAGE_ERRORS as error:
            failures.append(_failure(image.key, error, image.address))
        else:
            keys.append(image.key)
            items.append(item)
            stamps.append(stamp)
    if not keys:
        return BatchResult(None, failures, ends_shard)
    try:
        return BatchResult(job.add_stamps(job.make(keys, items), stamps), failures, ends_shard)
    except IMAGE_ERRORS as error:
        if len(keys) == 1:
            return BatchResult(None, [*failures, _failure(keys[0], error)], ends_shard)
    except Exception:  # a bug in the job, perhaps only with one of the images
        if len(keys) == 1:
            raise
    tables, bugs = [], []
    for key, item, stamp in zip(keys, items, stamps, strict=True):
        try:
            tables.append(job.add_stamps(job.make([key], [item]), [stamp]))
        except IMAGE_ERRORS as error:
            failures.append(_failure(key, error))
        except Exception as error:
            bugs.append(error)
            failures.append(Failure(key, f"{type(error).__name__}: {error}", failure_kind(error)))
    if len(bugs) == len(keys):  # the bug probably affects all images of the run
        raise bugs[0]
    return BatchResult(pyarrow()[0].concat_tables(tables) if tables else None, failures, ends_shard)


def _failure(key: str, error: BaseException, address: str = "") -> Failure:
    """Return the failure of an image; its address is removed from the reason, because the key implies it."""
    reason = str(error) or "not enough memory"
    return Failure(key, reason.removeprefix(f"{address}: "), failure_kind(error))
