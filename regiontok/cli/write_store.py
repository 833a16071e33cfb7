"""Write a store of masks or tokens: check it before the first image, show the progress, and report the result."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from regiontok.cli.console import progress_bar, warn
from regiontok.cli.signals import StopOnSignal
from regiontok.cli.slices import local_rank
from regiontok.cli.values import RunChoice
from regiontok.errors import RegiontokError
from regiontok.pipeline import Job, ListedImage, Listing, in_slice, ray, run_job
from regiontok.pipeline.roots import Roots, describe_difference
from regiontok.store import Manifest, StoreWriter
from regiontok.store.failures import Failure
from regiontok.store.keys import printable
from regiontok.store.writer import StoreContents, check_location, read_contents

_MAX_LISTED = 20
"""The number of failures that are printed; the store has all of them."""
_MAX_WORKERS = 8

JobMaker = Callable[[Roots, str], Job]
"""A function that makes a job from image folders and a device. It is pickled to the actors of Ray."""


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_workers_on(device: str, *, order: str = "raster") -> int:
    """Return the number of batches to process at the same time: one on a GPU, and on a CPU one per core."""
    if device != "cpu" or order == "random":  # random orders use a single generator
        return 1
    return min(num_cores(), _MAX_WORKERS)


def write_store(path: str, listing: Listing, make_job: JobMaker, run: RunChoice) -> int:
    """Write masks or tokens of images to a store, and return the exit code. Finished images are skipped.

    Args:
        path: The folder or address of the store.
        listing: The images.
        make_job: A function that makes the job.
        run: How the store is written.
    """
    rank, world_size = run.rank_and_size
    existing = check_location(path, overwrite=run.overwrite)
    use_ray = run.engine == "ray"
    job = make_job(listing.roots, "cpu" if use_ray else _own_device(run))
    manifest = Manifest(
        kind=job.kind,
        provenance=job.describe()
        | ({} if listing.bits is None else {"bits": listing.bits})
        | ({} if listing.frames is None else {"frames": listing.frames.describe()}),
        images=listing.roots.describe(),
    )
    if existing is not None and not run.overwrite:
        existing.check_compatible(manifest, path, mixed=run.mixed)
        difference = describe_difference(existing.images, manifest.images)
        if difference is not None and run.root is None:
            raise RegiontokError(
                f"{path}: {difference}. Their keys would be mixed up. If it is the same folder in another place, name "
                "it with --root DIR; otherwise name another store."
            )
    writer = StoreWriter(
        path,
        manifest,
        writer=rank,
        shared=world_size > 1,
        shard_size=run.shard_size,
        shard_minutes=run.shard_minutes,
        mixed=run.mixed,
        overwrite=run.overwrite,
    )
    with writer:  # it locks the store
        contents = read_contents(path)
        writer.generation = contents.generation + 1 if run.remake_changed else 0
        for name, reason in contents.damaged.items():
            new_name = writer.storage.quarantine(name)
            warn(f"{reason.rstrip('.')}. It is renamed to {new_name}, and its images are processed again.")
        progress = _Progress(run, contents, listing)
        with StopOnSignal() as stop, progress:
            images = progress.pending(count=True)
            if use_ray:
                ray.run_job(
                    writer,
                    images,
                    listing.reader(),
                    partial(_in_folder, os.getcwd(), partial(make_job, listing.roots, run.device)),  # noqa: PTH109
                    batch_size=run.batch_size,
                    num_readers=run.workers or run.cpus or 1,
                    gpus=int(run.device != "cpu"),
                    cpus=run.cpus or 1,
                    address=run.address,
                    stop=stop,
                    on_batch=progress.update,
                )
            else:
                run_job(
                    writer,
                    images,
                    listing,
                    job,
                    batch_size=run.batch_size,
                    num_readers=run.workers or num_cores(),
                    stop=stop,
                    on_batch=lambda batch: progress.update(batch.lengths, batch.failures),
                )
    return progress.report(path, job.kind, stop)


def _own_device(run: RunChoice) -> str:
    """Return the GPU of this process if the processes of torchrun or Slurm share the GPUs of a machine."""
    rank = local_rank(run.slice)
    if rank is None or run.device != "cuda" or torch.cuda.device_count() < 2:
        return run.device
    return f"cuda:{rank % torch.cuda.device_count()}"


def _in_folder(folder: str, make_job: Callable[[], Job]) -> Job:
    """Make a job in a process of a cluster. Relative paths mean the same files as in the process of the command."""
    with suppress(OSError):  # machines that do not share the folder need absolute paths or addresses
        os.chdir(folder)
    return make_job()


class _Progress:
    """The images to process, a progress bar with failures, and counts for the report at the end."""

    def __init__(self, run: RunChoice, contents: StoreContents, listing: Listing) -> None:
        self._run, self._contents, self._listing = run, contents, listing
        self._bar = progress_bar()
        self._has_ended = self._is_listed = False
        self._finished = self._failed_before = self._changed = 0
        self._first_changed = ""
        self._written = self._items = self._empty = self._failed = 0
        self._least, self._most = sys.maxsize, 0
        self._failures: list[Failure] = []

    def __enter__(self) -> "_Progress":
        self._bar.total = 0
        threading.Thread(target=self._count, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended = True
        self._bar.close()

    def _count(self) -> None:
        """List the images in a thread, ahead of the run, to count them."""
        with suppress(RegiontokError):  # the run raises the same error
            for number, _ in enumerate(self.pending(count=False), start=1):
                self._bar.total = number
                if self._has_ended:
                    return
                if number % 1000 == 0:
                    time.sleep(0)  # let other threads run
            self._is_listed = True

    def pending(self, *, count: bool) -> Iterator[ListedImage]:
        """Yield the images to process, and count the other images."""
        keys, failures = self._contents.keys, self._contents.failures
        rank, world_size = self._run.rank_and_size
        remaining = self._run.limit
        for image in self._listing:
            if world_size > 1 and not in_slice(image.key, rank, world_size):
                continue
            has_changed = image.key in keys and keys[image.key].differs(self._listing.stamp(image))
            if has_changed and count:
                self._changed += 1
                self._first_changed = self._first_changed or image.key
            if image.key in keys and not (has_changed and self._run.remake_changed):
                self._finished += count
            elif not self._run.retry_failed and printable(image.key) in failures:
                self._failed_before += count
            elif remaining == 0:
                return
            else:
                remaining = None if remaining is None else remaining - 1
                yield image

    def update(self, lengths: list[int], failures: list[Failure]) -> None:
        """Add processed images: the number of masks or tokens of each one, and the failures."""
        if lengths:
            self._written += len(lengths)
            self._items += sum(lengths)
            self._empty += lengths.count(0)
            self._least, self._most = min(self._least, *lengths), max(self._most, *lengths)
        self._failed += len(failures)
        self._failures += failures[: _MAX_LISTED - len(self._failures)]
        status: dict[str, Any] = {"failed": self._failed} if self._failed else {}
        if not self._is_listed:
            status["listed"] = "so far"
        self._bar.set_postfix(status, refresh=False)
        self._bar.update(len(lengths) + len(failures))

    def report(self, path: str, kind: str, stop: StopOnSignal) -> int:
        """Print the result, and return the exit code."""
        for failure in self._failures:
            warn(f"{failure.key}: {failure.reason}")
        if self._failed:
            others = self._failed - len(self._failures)
            listed = f", {others} more of them in the store's table of failures" if others else ""
            warn(f"{self._failed} of {self._written + self._failed} images failed and are named above{listed}.")
        if self._failed_before:
            warn(f"{self._failed_before} images failed before and were skipped. Retry them with --retry-failed.")
        if self._changed and not self._run.remake_changed:
            warn(
                f"{self._changed} images, such as {self._first_changed}, have changed since their rows were written. "
                "Process them again with --remake-changed."
            )
        if self._empty:
            warn(f"{self._empty} images have no masks. Generate masks of images without annotations with --missing.")
        if self._written:
            least, most = self._least, self._most
            each = f"{self._items / self._written:.0f} {kind} each ({least if least == most else f'{least} to {most}'})"
            finished = f"; {self._finished} were finished before" if self._finished else ""
            print(f"{self._written} images, {each} -> {path}{finished}")
        elif not self._failed and stop.signal is None:
            failed = f", and {self._failed_before} failed" if self._failed_before else ""
            print(f"Nothing to do: all {self._finished} images are in {path}{failed}.")
        if stop.signal is not None:
            warn(f"stopped; finished rows are in {path}. Run the same command again to continue.")
            return 128 + stop.signal
        return 1 if self._failed or self._failed_before else 0
