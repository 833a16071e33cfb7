"""Filling a store from the command line: options, checks before the first image, progress, and what is told."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from regiontok.cli.console import progress_bar, warn
from regiontok.errors import RegiontokError
from regiontok.pipeline import ListedImage, Listing, Made, Stop, Work, fill, in_slice, ray
from regiontok.pipeline.roots import Roots, describe_difference
from regiontok.pipeline.run import Counter
from regiontok.store import Manifest, StoreWriter
from regiontok.store.failures import Failure
from regiontok.store.keys import printable
from regiontok.store.places import is_remote
from regiontok.store.writer import Known, check_place, keys_in

_MOST_NAMED = 20
"""Failures that are named; the store has them all."""
_MOST_LANES = 8


def lanes_on(device: str, *, order: str = "raster") -> int:
    """Batches to make at a time: one on a GPU, and on a CPU one per core, as far as memory should go."""
    if device != "cpu" or order == "random":  # whose draws are from one generator
        return 1
    return min(cores(), _MOST_LANES)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fill_store(
    options: argparse.Namespace,
    path: str,
    make_work: Callable[[argparse.Namespace, Roots], Work],
    *,
    batch: int,
    prepare: Callable[[argparse.Namespace, Listing], None] | None = None,
) -> int:
    """Fill a store with what is made of the images that the options name; returns the exit code.

    Everything is checked before the first image; what the store has is not made again.

    Args:
        options: Of the command.
        path: Of the store.
        make_work: Returns what makes the rows, by the options and the folders that keys are below.
        batch: Images that are made together, where the options do not say.
        prepare: Called with the listing before the work is made.
    """
    engine, shard_size = options.engine or "here", options.shard_size or 1000
    minutes = 5 if options.shard_minutes is None else options.shard_minutes
    rank, world_size = _slice(options)
    _take_own_gpu(options)
    before = check_place(path, overwrite=options.overwrite)
    listing = Listing(
        options.images,
        root=options.root,
        column=options.column,
        key_column=options.key_column,
        bits=options.bits,
    )
    if prepare is not None:
        prepare(options, listing)
    remote = engine == "ray"  # whose actors have the device, and other folders
    work = make_work(argparse.Namespace(**vars(options) | {"device": "cpu"}) if remote else options, listing.roots)
    manifest = Manifest(
        kind=work.kind,
        made_by=work.describe() | ({} if options.bits is None else {"bits": options.bits}),
        images=listing.roots.describe(),
    )
    if before is not None and not options.overwrite:
        before.check_more(manifest, path, mixed=options.mixed)
        other = describe_difference(before.images, manifest.images)
        if other is not None and options.root is None:
            raise RegiontokError(
                f"{path}: {other}. Keys would not tell them apart. Give --root DIR where it is the same folder in "
                "another place, or name another store."
            )
    writer = StoreWriter(
        _absolute(path) if remote else path,
        manifest,
        writer=rank,
        shared=world_size > 1,
        shard_size=shard_size,
        shard_minutes=minutes,
        mixed=options.mixed,
        overwrite=options.overwrite,
    )
    with writer:  # from here on nobody else writes
        known = keys_in(path)
        writer.generation = known.generation + 1 if options.remake_changed else 0
        for name, why in known.damaged.items():
            writer.place.set_aside(name)
            warn(f"{why.rstrip('.')}. It is set aside as {name}.damaged; its images are made again.")
        told = _Told(options, known, rank, world_size)
        with Stop() as stop, _Progress(told, listing) as progress:
            how: dict[str, Any] = {"batch": options.batch or batch, "stop": stop}
            if engine == "here":
                images = told.pending(listing)
                workers = options.workers or cores()
                fill(writer, images, listing, work, workers=workers, tick=progress.batch, **how)
            else:
                gpu = options.device != "cpu"
                ray.fill(
                    writer,
                    (image._replace(address=_absolute(image.address)) for image in told.pending(listing)),
                    listing.reader(),
                    partial(make_work, _absolute_paths(options), listing.roots),
                    workers=options.workers or options.cpus or 1,
                    gpus=int(gpu),
                    cpus=options.cpus or 1,
                    address=options.address,
                    tick=progress.tick,
                    **how,
                )
    return told.report(path, work.kind, stop)


class _Told:
    """What is pending, what was made, and what is told of it at the end."""

    def __init__(self, options: argparse.Namespace, known: Known, rank: int, world_size: int) -> None:
        self.options = options
        self.known = known
        self.rank, self.world_size = rank, world_size
        self.there = self.failed_before = self.changed = 0
        self.first_changed = ""
        self.made = self.items = self.empty = 0
        self.least, self.most = sys.maxsize, 0
        self.failures: list[Failure] = []
        self.failed = 0

    def pending(self, listing: Listing, *, count: bool = True) -> Iterator[ListedImage]:
        """Images that are to be made now."""
        left = self.options.limit
        for image in listing:
            if self.world_size > 1 and not in_slice(image.key, self.rank, self.world_size):
                continue
            changed = image.key in self.known.keys and self.known.keys[image.key].differs(listing.stamp(image))
            if changed and count:
                self.changed += 1
                self.first_changed = self.first_changed or image.key
            if image.key in self.known.keys and not (changed and self.options.remake_changed):
                self.there += count
            elif not self.options.retry_failed and printable(image.key) in self.known.failures:
                self.failed_before += count
            elif left == 0:
                return
            else:
                left = None if left is None else left - 1
                yield image

    def add(self, lengths: Any, failures: list[Failure]) -> None:
        """Count a batch: the numbers of masks or tokens of its images, and its failures."""
        if len(lengths):
            self.made += len(lengths)
            self.items += int(sum(lengths))
            self.empty += sum(length == 0 for length in lengths)
            self.least, self.most = min(self.least, *lengths), max(self.most, *lengths)
        self.failed += len(failures)
        self.failures += failures[: _MOST_NAMED - len(self.failures)]

    def report(self, path: str, kind: str, stop: Stop) -> int:
        """Tell how it ended; returns the exit code."""
        for failure in self.failures:
            warn(f"{failure.key}: {failure.reason}")
        if self.failed:
            more = self.failed - len(self.failures)
            named = f", {more} more of them in the store's table of failures" if more else ""
            warn(f"{self.failed} of {self.made + self.failed} images failed and are named above{named}.")
        if self.failed_before:
            warn(f"{self.failed_before} images failed before and were not tried again; --retry-failed tries them.")
        if self.changed and not self.options.remake_changed:
            warn(
                f"{self.changed} images, such as {self.first_changed}, have changed since their rows were made; "
                "--remake-changed makes those again."
            )
        if self.empty:
            warn(f"{self.empty} images have no masks. --missing GENERATOR makes masks of images without annotations.")
        there = f"; {self.there} were there" if self.there else ""
        if self.made:
            each = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
            print(f"{self.made} images, {self.items / self.made:.0f} {kind} each ({each}) -> {path}{there}")
        elif not self.failed and stop.signal is None:
            failed = f", and {self.failed_before} failed" if self.failed_before else ""
            print(f"Nothing to make: all {self.there} images are in {path}{failed}.")
        if stop.signal is not None:
            warn(f"stopped; what was made is in {path}. Run the same command again to go on.")
            return 128 + stop.signal
        return 1 if self.failed or self.failed_before else 0


class _Progress:
    """A bar with rate, time left and failures, as far as images have been listed."""

    def __init__(self, told: _Told, listing: Listing) -> None:
        self.told = told
        self._counter = Counter(told.pending(listing, count=False))
        self._bar = progress_bar()

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._counter.end()
        self._bar.close()

    def batch(self, made: Made) -> None:
        """A batch is done."""
        self.tick(made.lengths, made.failures)

    def tick(self, lengths: list[int], failures: list[Failure]) -> None:
        """Images are done, or failed."""
        self.told.add(lengths, failures)
        self._bar.total = self._counter.count
        told: dict[str, Any] = {"failed": self.told.failed} if self.told.failed else {}
        if not self._counter.whole:
            told["listed"] = "so far"
        self._bar.set_postfix(told, refresh=False)
        self._bar.update(len(lengths) + len(failures))


def _absolute(path: str) -> str:
    """A path on this machine from its root: the processes of a cluster are in other folders."""
    return path if is_remote(path) else os.path.abspath(path.removeprefix("file://"))  # noqa: PTH100


def _absolute_paths(options: argparse.Namespace) -> argparse.Namespace:
    """The options with what names files that are there from their root."""
    told = {name: value for name, value in vars(options).items() if name != "annotations"}  # opened by each process
    for name in ("masks", "coco", "label_maps", "mask_files", "weights", "sam_model", "store", "out"):
        value = told.get(name)
        if value is not None and not is_remote(value) and (name in ("store", "out") or Path(value).exists()):
            told[name] = type(value)(_absolute(str(value)))
    kind, _, folder = str(told.get("encoder") or "").partition(":")
    if kind == "hf" and Path(folder).exists():
        told["encoder"] = f"hf:{_absolute(folder)}"
    return argparse.Namespace(**told)


def _take_own_gpu(options: argparse.Namespace) -> None:
    """Where processes of one machine share its GPUs, each takes the one of its number."""
    name = {"torchrun": "LOCAL_RANK", "slurm": "SLURM_LOCALID"}.get(options.slice or "")
    if name and options.device == "cuda" and name in os.environ and torch.cuda.device_count() > 1:
        options.device = f"cuda:{int(os.environ[name]) % torch.cuda.device_count()}"


def _slice(options: argparse.Namespace) -> tuple[int, int]:
    """The rank and how many there are."""
    if options.slice is None:
        return 0, 1
    names = {
        "torchrun": [("RANK", "WORLD_SIZE")],
        "slurm": [("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"), ("SLURM_PROCID", "SLURM_NTASKS")],
    }
    told = options.slice
    try:
        if told in names:
            first, last = next(pair for pair in names[told] if pair[0] in os.environ)
            rank, world_size = int(os.environ[first]), int(os.environ[last])
            if first == "SLURM_ARRAY_TASK_ID":
                least = int(os.environ.get("SLURM_ARRAY_TASK_MIN", "0"))
                step = int(os.environ.get("SLURM_ARRAY_TASK_STEP", "1"))
                most = int(os.environ.get("SLURM_ARRAY_TASK_MAX", str(least + step * (world_size - 1))))
                if (most - least) // step + 1 != world_size:
                    raise RegiontokError(
                        "this SLURM array has gaps, so that its numbers tell no slices. Give --slice R/N."
                    )
                rank = (rank - least) // step
        else:
            rank, world_size = map(int, told.split("/"))
    except (ValueError, KeyError, StopIteration):
        raise RegiontokError(
            f"--slice must be R/N such as 0/4, or torchrun or slurm under these; got {told}."
        ) from None
    if not 0 <= rank < world_size:
        raise RegiontokError(f"--slice must be R/N with R from 0 to N - 1; got {rank}/{world_size}.")
    return rank, world_size
