"""Run a job on a Ray cluster: each actor of Ray Data computes and writes whole shards.

Ray schedules the tasks, scales the actor pool, applies backpressure and retries the tasks of failed actors. Every task
has its own writer number, so that a retried task skips the rows that it has already written.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import Any

from regiontok._require import require
from regiontok.errors import OutputError
from regiontok.pipeline.files import absolute
from regiontok.pipeline.jobs import Job
from regiontok.pipeline.listing import ListedImage, Reader
from regiontok.pipeline.run import BatchResult
from regiontok.pipeline.run import run_job as run_in_process
from regiontok.store.failures import Failure
from regiontok.store.keys import printable
from regiontok.store.masks import MaskStore
from regiontok.store.shards import list_shards
from regiontok.store.tokens import TokenStore
from regiontok.store.writer import StoreWriter, read_contents


def run_job(
    writer: StoreWriter,
    images: Iterable[ListedImage],
    reader: Reader,
    make_job: Callable[[], Job],
    *,
    batch_size: int,
    num_readers: int,
    gpus: float = 0,
    cpus: float = 1,
    address: str | None = None,
    stop: Callable[[], bool] | None = None,
    on_batch: Callable[[list[int], list[Failure]], None] | None = None,
) -> None:
    """Compute rows of images in the actors of a cluster, which write them.

    All machines of the cluster must be able to access the store: on a shared disk or a remote filesystem.

    Args:
        writer: The writer of the store. It holds the lock, and the actors write.
        images: The images to process.
        reader: Reads the images. It is pickled.
        make_job: Returns the job. It is pickled and called in each actor.
        batch_size: Images per batch.
        num_readers: Threads per actor that read.
        gpus: GPUs per actor.
        cpus: CPU cores per actor.
        address: Address of the cluster, or ``auto``; by default, a cluster is started on this machine.
        stop: Called several times per second. When it returns True, the actors write the finished rows and end.
        on_batch: Called with the numbers of masks or tokens of a task's images, and its failures.

    Raises:
        OutputError: This process and the actors do not share the store.
        MissingDependencyError: Ray is not installed.
    """
    ray = require("ray", extra="ray")
    data = require("ray.data", extra="ray")
    first_writer = 1 + max((shard.writer for shard in list_shards(writer.storage)), default=0)
    tasks = list(_tasks(images, writer.shard_size, first_writer))
    if not tasks:
        return
    starts_ray = not ray.is_initialized()
    if starts_ray:
        with _preserved_signal_handlers():
            ray.init(address=address or "local", include_dashboard=False, log_to_driver=False, logging_level="warning")
    ended = threading.Event()
    try:
        data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)  # the caller shows the progress
        if gpus and address is None and not ray.cluster_resources().get("GPU"):
            raise OutputError("Ray finds no GPU on this machine. Name a cluster by --address, or use the CPU.")
        flag = ray.remote(num_cpus=0)(_Flag).remote()
        if stop is not None:
            threading.Thread(target=_forward, args=(stop, flag, ended), daemon=True).start()
        resources = ray.cluster_resources()
        num_actors = resources.get("GPU", 0) // gpus if gpus else resources.get("CPU", 1) // cpus
        rows = data.from_items(tasks, override_num_blocks=len(tasks)).map(
            _Actor,
            fn_constructor_kwargs={
                "make_job": make_job,
                "reader": reader,
                "open_writer": partial(
                    StoreWriter,
                    absolute(writer.storage.address),
                    writer.manifest,
                    shard_size=writer.shard_size,
                    shard_minutes=writer.shard_minutes,
                    mixed=True,
                    locked=False,
                    generation=writer.generation,
                ),
                "batch_size": batch_size,
                "num_readers": num_readers,
                "num_workers": 1 if gpus else max(1, int(cpus)),
                "flag": flag,
            },
            num_gpus=gpus,
            num_cpus=cpus,
            compute=data.ActorPoolStrategy(  # starts with as many as fit now, and grows with the cluster
                min_size=1, max_size=len(tasks), initial_size=max(1, min(int(num_actors), len(tasks)))
            ),
        )
        for row in rows.iter_rows():
            result: _Result = row["result"]
            missing = set(result.shards) - writer.storage.names().keys()
            if missing:
                raise OutputError(
                    f"{writer.storage.address} has no {min(missing)}, which an actor wrote: the machines of the cluster"
                    " do not share this disk. Name a shared folder or a remote address such as s3://bucket/name."
                )
            if on_batch is not None:
                on_batch(result.lengths, result.failures)
    finally:
        ended.set()
        if starts_ray:
            ray.shutdown()


@dataclass(frozen=True)
class _Task:
    """The images of a shard, and the writer number of the actor that processes them."""

    writer: int
    images: list[ListedImage]


@dataclass(frozen=True)
class _Result:
    """The shards that a task has written, the number of masks or tokens of each image, and the failures."""

    shards: list[str]
    lengths: list[int]
    failures: list[Failure]


class _Flag:
    """A flag that all actors of the cluster can read."""

    def __init__(self) -> None:
        self.is_set = False

    def set(self) -> None:
        self.is_set = True

    def get(self) -> bool:
        return self.is_set


def _forward(stop: Callable[[], bool], flag: Any, ended: threading.Event) -> None:
    """Set the flag of the actors when ``stop`` returns True."""
    while not ended.wait(0.2):
        if stop():
            with contextlib.suppress(Exception):  # the cluster may have ended
                flag.set.remote()
            return


@contextlib.contextmanager
def _preserved_signal_handlers() -> Iterator[None]:
    """Restore the signal handlers that Ray replaces when it starts."""
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # a handler that was not set by Python cannot be restored
                signal.signal(number, handler)


def _tasks(images: Iterable[ListedImage], shard_size: int, first_writer: int) -> Iterator[dict[str, _Task]]:
    """Yield the images of each shard as a row of Ray Data. Addresses are absolute: actors have other folders."""
    remaining = (
        image if os.path.isabs(image.address) else image._replace(address=absolute(image.address))  # noqa: PTH117
        for image in images
    )
    for writer in count(first_writer):
        shard = list(islice(remaining, shard_size))
        if not shard:
            return
        yield {"task": _Task(writer, shard)}


@dataclass
class _Actor:
    """Process tasks. The models are loaded once per actor."""

    make_job: Callable[[], Job]
    reader: Reader
    open_writer: Callable[..., StoreWriter]
    batch_size: int
    num_readers: int
    num_workers: int
    flag: Any

    def __post_init__(self) -> None:
        self.job = self.make_job()
        self.job.num_workers = min(self.num_workers, self.job.num_workers)

    def __call__(self, row: dict[str, _Task]) -> dict[str, _Result]:
        """Process the images of a task that are not finished."""
        import ray  # noqa: PLC0415  optional

        task = row["task"]
        with self.open_writer(writer=task.writer) as writer:
            contents = read_contents(writer.storage.address, writer=task.writer)
            lengths, failures = _lengths(writer, contents.keys), list(contents.failures.values())

            def on_batch(result: BatchResult) -> None:
                lengths.extend(result.lengths)
                failures.extend(result.failures)

            images = (image for image in task.images if image.key not in contents.keys)
            run_in_process(
                writer,
                (image for image in images if printable(image.key) not in contents.failures),
                self.reader,
                self.job,
                batch_size=self.batch_size,
                num_readers=self.num_readers,
                stop=lambda: bool(ray.get(self.flag.get.remote())),
                on_batch=on_batch,
            )
        shards = [shard.name for shard in list_shards(writer.storage, writer=task.writer)]
        return {"result": _Result(shards, lengths, failures)}


def _lengths(writer: StoreWriter, keys: Collection[str]) -> list[int]:
    """Return the number of masks or tokens of images that a failed attempt at a task has written."""
    if not keys:
        return []
    kind: Any = MaskStore if writer.manifest.kind == "masks" else TokenStore
    shards = [shard.name for shard in list_shards(writer.storage, "part", writer=writer.writer)]
    store = kind(writer.storage.address, shards=shards)
    return [store.count(key) for key in keys]
