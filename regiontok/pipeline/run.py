"""Images to a store: read by threads, made in batches, written shard by shard, in the order of the listing."""

import contextlib
import itertools
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import torch

from regiontok.errors import OutputError, RegiontokError, failure_kind
from regiontok.pipeline.listing import ListedImage, Reader
from regiontok.pipeline.memory import GatedReader, PixelGate
from regiontok.pipeline.work import Work
from regiontok.store.failures import Failure
from regiontok.store.keys import check_key
from regiontok.store.shards import pyarrow
from regiontok.store.stamps import Stamp, with_stamps
from regiontok.store.writer import StoreWriter

FAILURES = (RegiontokError, OSError, MemoryError, RuntimeError)  # a GPU out of memory is the last of these
"""What one image can fail with, so that the others go on."""


class Made(NamedTuple):
    """What became of a batch."""

    table: Any
    """Rows, or None where every image failed."""
    failures: list[Failure]
    ends_shard: bool

    @property
    def lengths(self) -> list[int]:
        """How many masks or tokens each row has."""
        if self.table is None:
            return []
        column = self.table.column("counts" if "counts" in self.table.column_names else "patches")
        return [length for chunk in column.chunks for length in chunk.value_lengths().to_pylist()]


class Stop:
    """Whether to end soon: set by a signal while it is a context, or by hand.

    Attributes:
        signal: The number of the signal that came.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether to end."""
        return self.event.is_set()

    def __enter__(self) -> "Stop":
        self.listen()
        return self

    def listen(self) -> None:
        """Hear signals, again where another has taken them."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if number not in self._before and signal.getsignal(number) is signal.SIG_IGN:
                    continue  # as ``nohup`` and background jobs of scripts have it
                before = signal.signal(number, self._came)
                self._before.setdefault(number, before)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _came(self, number: int, _: object) -> None:
        if self.event.is_set():  # the second time, at once
            raise KeyboardInterrupt
        self.signal = number
        self.event.set()


def make_rows(
    images: Iterable[ListedImage],
    reader: Reader,
    work: Work,
    *,
    batch: int,
    workers: int,
    shard_size: int,
    stop: Callable[[], bool] | None = None,
) -> Generator[Made]:
    """Make rows of images, some at a time and in their order; an image that fails costs no other.

    Batches begin anew with every ``shard_size`` images, so that a run that goes on after a shard makes the same ones.

    Args:
        images: Which.
        reader: What they are read by.
        work: What is made of them.
        batch: Images that are made together.
        workers: Threads that read.
        shard_size: Images per shard.
        stop: Asked again and again; where it says so, what is not finished is given up.
    """
    stop = stop or (lambda: False)
    groups = _batches(images, batch, shard_size)
    readers, makers = ThreadPoolExecutor(workers, "reader"), ThreadPoolExecutor(work.lanes, "maker")
    making: deque[Future[Made]] = deque()
    gate, started = PixelGate(), itertools.count()
    with _one_thread_each(work.lanes):
        try:
            while not stop():
                while len(making) < work.lanes + 2 and (group := next(groups, None)) is not None:
                    some, ends = group
                    number = next(started)
                    gated = GatedReader(reader, gate, number)
                    reading = [(image, readers.submit(_read, work, gated, image)) for image in some]
                    future = makers.submit(_make, work, reading, ends)
                    future.add_done_callback(lambda _, number=number: gate.leave(number))  # type: ignore[misc]
                    making.append(future)
                if not making:
                    return
                first = making.popleft()
                while not first.done() and not stop():
                    _wait(first)
                if first.done():
                    yield first.result()
                else:
                    making.appendleft(first)
            while making and making[0].done():  # what is made already is not given up
                yield making.popleft().result()
        finally:
            gate.close()
            readers.shutdown(wait=False, cancel_futures=True)
            makers.shutdown(wait=False, cancel_futures=True)


def fill(
    writer: StoreWriter,
    images: Iterable[ListedImage],
    reader: Reader,
    work: Work,
    *,
    batch: int,
    workers: int,
    stop: Callable[[], bool] | None = None,
    tick: Callable[[Made], None] | None = None,
) -> None:
    """Make rows of images and write them; where it is stopped, the rows in hand become a shard.

    See `make_rows` for the arguments; ``tick`` is called after each batch.
    """
    made = make_rows(images, reader, work, batch=batch, workers=workers, shard_size=writer.shard_size, stop=stop)
    try:
        for one in made:
            if one.table is not None:
                writer.write(one.table)
            for failure in one.failures:
                writer.fail(*failure)
            if one.ends_shard:
                writer.cut()
            if tick is not None:
                tick(one)
    except BaseException:
        with contextlib.suppress(OutputError):  # which may be what ended it
            writer.cut()
        raise
    finally:
        made.close()
    writer.cut()


def _batches(images: Iterable[ListedImage], batch: int, shard_size: int) -> Iterator[tuple[list[ListedImage], bool]]:
    """Images some at a time, and whether a shard ends with them."""
    rest = iter(images)
    left = shard_size
    while some := list(islice(rest, min(batch, left))):
        left = left - len(some) or shard_size
        yield some, left == shard_size


def _read(work: Work, reader: Reader, image: ListedImage) -> tuple[Any, Stamp]:
    """Return what a work needs of an image, and the stamp that its file had before it was read."""
    check_key(image.key)
    stamp = reader.stamp(image)
    return work.read(reader, image), stamp


def _make(work: Work, reading: list[tuple[ListedImage, Future[tuple[Any, Stamp]]]], ends_shard: bool) -> Made:
    """Make the rows of a batch; if that fails, make them one by one to find the images that fail."""
    failures: list[Failure] = []
    keys, items, stamps = [], [], []
    for image, future in reading:
        try:
            item, stamp = future.result()
        except FAILURES as error:
            failures.append(_failure(image.key, error, image.address))
        else:
            keys.append(image.key)
            items.append(item)
            stamps.append(stamp)
    if not keys:
        return Made(None, failures, ends_shard)
    try:
        return Made(with_stamps(work.make(keys, items), stamps), failures, ends_shard)
    except FAILURES as error:
        if len(keys) == 1:
            return Made(None, [*failures, _failure(keys[0], error)], ends_shard)
    except Exception:  # a fault of the work, perhaps of one image alone
        if len(keys) == 1:
            raise
    tables, faults = [], []
    for key, item, stamp in zip(keys, items, stamps, strict=True):
        try:
            tables.append(with_stamps(work.make([key], [item]), [stamp]))
        except FAILURES as error:
            failures.append(_failure(key, error))
        except Exception as error:
            faults.append(error)
            failures.append(Failure(key, f"{type(error).__name__}: {error}", failure_kind(error)))
    if len(faults) == len(keys):  # of every image: to go on would make failures of a million
        raise faults[0]
    return Made(_concatenated(tables), failures, ends_shard)


def _concatenated(tables: list[Any]) -> Any:
    return pyarrow()[0].concat_tables(tables) if tables else None


def _failure(key: str, error: BaseException, address: str = "") -> Failure:
    """Return the failure of an image; its address is not repeated in the reason, because the key gives it."""
    reason = str(error) or "not enough memory"
    return Failure(key, reason.removeprefix(f"{address}: "), failure_kind(error))


def _wait(future: "Future[Made]") -> None:
    """A moment at most, in which signals are heard."""
    with contextlib.suppress(TimeoutError):
        future.exception(timeout=0.2)


@contextlib.contextmanager
def _one_thread_each(lanes: int) -> Iterator[None]:
    """Where several batches are made at a time, each by one thread: two of one thread are quicker than one of two."""
    before = torch.get_num_threads()
    if lanes > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Counter:
    """How many images there will be, counted by a thread that lists them once more and runs ahead.

    Attributes:
        count: So far.
        whole: Whether that is all.
    """

    def __init__(self, images: Iterable[ListedImage]) -> None:
        self.count = 0
        self.whole = False
        self._images = images
        self._ended = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(RegiontokError):  # the run itself tells it
            for _ in self._images:
                self.count += 1
                if self._ended.is_set():
                    return
                if self.count % 1000 == 0:
                    time.sleep(0)  # leave the interpreter to those who work
            self.whole = True

    def end(self) -> None:
        """Stop counting."""
        self._ended.set()
