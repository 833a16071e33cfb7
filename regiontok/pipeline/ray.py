"""The same on a Ray cluster: each actor of Ray Data makes the shards of one task after another, as one process would.

Ray shares the tasks, starts and ends actors, holds back what nobody takes, and gives the task of an actor that died to
another. A task is a writer of its own: what it had written before it died is there and is not made again.
"""

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from typing import Any

from regiontok._require import require
from regiontok.errors import OutputError
from regiontok.pipeline.listing import ListedImage, Reader
from regiontok.pipeline.run import Made, Stop
from regiontok.pipeline.run import fill as fill_here
from regiontok.pipeline.work import Work
from regiontok.store.failures import Failure
from regiontok.store.keys import printable
from regiontok.store.manifest import Manifest
from regiontok.store.masks import MaskStore
from regiontok.store.places import Place
from regiontok.store.shards import shards_of
from regiontok.store.stamps import Stamp
from regiontok.store.tokens import TokenStore
from regiontok.store.writer import StoreWriter, keys_in


def fill(
    writer: StoreWriter,
    images: Iterable[ListedImage],
    reader: Reader,
    make_work: Callable[[], Work],
    *,
    batch: int,
    workers: int,
    gpus: float = 0,
    cpus: float = 1,
    address: str | None = None,
    stop: Stop,
    tick: Callable[[list[int], list[Failure]], None] | None = None,
) -> None:
    """Make rows of images by the actors of a cluster, which write them.

    The store must be where all machines of the cluster reach it: on a disk that they share, or on a remote filesystem.

    Args:
        writer: Of the store; it holds the lock, and the actors write.
        images: Which.
        reader: What they are read by.
        make_work: Makes what makes the rows, in each actor.
        batch: Images that are made together.
        workers: Threads per actor that read.
        gpus: Per actor.
        cpus: Per actor.
        address: Of the cluster, or ``auto``; by default one is started on this machine.
        stop: Where it says so, actors write the rows in hand and end.
        tick: Called with the numbers of items of a task's images, and its failures.

    Raises:
        OutputError: A place that this process and the actors do not share.
        MissingDependencyError: Ray is not installed.
    """
    ray = require("ray", extra="ray")
    data = require("ray.data", extra="ray")
    first = 1 + max((shard.writer for kind in ("part", "failed") for shard in shards_of(writer.place, kind)), default=0)
    tasks = list(_tasks(images, writer.shard_size, first))
    if not tasks:
        return
    started = not ray.is_initialized()
    if started:
        ray.init(address=address or "local", include_dashboard=False, log_to_driver=False, logging_level="warning")
    stop.listen()  # Ray has taken the signals
    try:
        data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)  # our bar tells the same
        if gpus and address is None and not ray.cluster_resources().get("GPU"):
            raise OutputError("this machine has no GPU that Ray can see. Name a cluster by --address, or take the CPU.")
        flag = ray.remote(num_cpus=0)(_Flag).remote()
        _tell(stop, flag)
        have = ray.cluster_resources()
        now = have.get("GPU", 0) // gpus if gpus else have.get("CPU", 1) // cpus
        made = data.from_items(tasks, override_num_blocks=len(tasks)).map(
            _Actor,
            fn_constructor_kwargs={
                "make_work": make_work,
                "reader": reader,
                "path": writer.place.address,
                "manifest": writer.manifest,
                "settings": {
                    "shard_size": writer.shard_size,
                    "shard_minutes": writer.shard_minutes,
                    "generation": writer.generation,
                },
                "batch": batch,
                "workers": workers,
                "lanes": 1 if gpus else max(1, int(cpus)),
                "flag": flag,
            },
            num_gpus=gpus,
            num_cpus=cpus,
            compute=data.ActorPoolStrategy(  # as many as there is room for now, and more where the cluster grows
                min_size=1, max_size=len(tasks), initial_size=max(1, min(int(now), len(tasks)))
            ),
        )
        for task in made.iter_rows():
            missing = set(task["shards"]) - writer.place.names().keys()
            if missing:
                raise OutputError(
                    f"{writer.place.address} has no {min(missing)}, which an actor wrote: it is on a disk that the "
                    "machines of the cluster do not share. Name a place that they do, such as s3://bucket/name."
                )
            if tick is not None:
                failures = [Failure(*fields) for fields in json.loads(task["failures"])]
                tick([int(length) for length in task["lengths"]], failures)
    finally:
        if started:
            ray.shutdown()


class _Flag:
    """Whether actors are to end, for all of a cluster."""

    def __init__(self) -> None:
        self.up = False

    def set(self) -> None:
        self.up = True

    def get(self) -> bool:
        return self.up


def _tell(stop: Stop, flag: Any) -> None:
    """Raise the flag when this process is told to stop."""

    def wait() -> None:
        stop.event.wait()
        with contextlib.suppress(Exception):  # the cluster may be gone
            flag.set.remote()

    threading.Thread(target=wait, daemon=True).start()


def _tasks(images: Iterable[ListedImage], size: int, first: int) -> Iterator[dict[str, Any]]:
    """Images by shards, each with a number of its own to write by."""
    rest = iter(images)
    number = first
    while some := list(islice(rest, size)):
        yield {"writer": number, "images": json.dumps(some)}
        number += 1


class _Actor:
    """Makes shards; its models are loaded once."""

    def __init__(
        self,
        make_work: Callable[[], Work],
        reader: Reader,
        path: str,
        manifest: Manifest,
        settings: dict[str, Any],
        batch: int,
        workers: int,
        lanes: int,
        flag: Any,
    ) -> None:
        self.work = make_work()
        self.work.lanes = min(lanes, self.work.lanes)
        self.reader, self.path, self.manifest, self.settings = reader, path, manifest, settings
        self.batch, self.workers, self.flag = batch, workers, flag

    def _counts(self, writer: int, keys: Collection[str]) -> list[int]:
        """How many items images have that were made before this task was given to another actor."""
        if not keys:
            return []
        kind: Any = MaskStore if self.manifest.kind == "masks" else TokenStore
        mine = [shard.name for shard in shards_of(Place.of(self.path), "part") if shard.writer == writer]
        store = kind(self.path, shards=mine)
        return [store.count(key) for key in keys]

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        """Make the images of one task."""
        import ray  # noqa: PLC0415  there, since this runs

        writer, known = int(task["writer"]), keys_in(self.path, writer=int(task["writer"]))
        listed = (
            ListedImage(key, address, Stamp(*stamp), inside)
            for key, address, stamp, inside in json.loads(task["images"])
        )
        images = (
            image for image in listed if image.key not in known.keys and printable(image.key) not in known.failures
        )
        lengths = self._counts(writer, known.keys)
        failures = list(known.failures.values())

        def tick(made: Made) -> None:
            lengths.extend(made.lengths)
            failures.extend(made.failures)

        with StoreWriter(self.path, self.manifest, writer=writer, locked=False, mixed=True, **self.settings) as store:
            fill_here(
                store,
                images,
                self.reader,
                self.work,
                batch=self.batch,
                workers=self.workers,
                stop=lambda: bool(ray.get(self.flag.get.remote())),
                tick=tick,
            )
        mine = [shard.name for kind in ("part", "failed") for shard in shards_of(Place.of(self.path), kind)]
        return {
            "shards": [name for name in mine if name.split("-")[1] == f"{writer:05d}"],
            "lengths": lengths,
            "failures": json.dumps(failures),
        }
