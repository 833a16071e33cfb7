"""What the commands share: images, encoders, masks, and how long things take."""

import argparse
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image

from regiontok import encoders
from regiontok._checks import check_size
from regiontok._files import is_same
from regiontok.cli.arguments import LIMITS
from regiontok.cli.checks import amount_of, uses_masks
from regiontok.cli.console import warn
from regiontok.clustering import default_linkage
from regiontok.encoders import Encoder
from regiontok.errors import RegiontokError
from regiontok.evaluation.assistant import Assistant, stock_regions
from regiontok.geometry import Size
from regiontok.pipeline.containers import PARQUET, TARS
from regiontok.pipeline.roots import Roots
from regiontok.store.base import Store
from regiontok.viewing import is_figure

_T = TypeVar("_T")
_S = TypeVar("_S", bound=Store[Any])
FAILURES = (RegiontokError, OSError, MemoryError, RuntimeError)  # a GPU out of memory is the last of these
"""What one image can fail with, so that the others go on."""


class Stopwatch:
    """Seconds per stage; waits for the device, whose work would else be counted in a later stage."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    def time(self, stage: str, work: Callable[[], _T]) -> _T:
        """Run ``work`` and note how long it took."""
        start = time.perf_counter()
        result = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage] = time.perf_counter() - start
        return result


class Found(NamedTuple):
    """An image, and where it lies in what was named: as it was given, or below its folder."""

    path: Path
    name: PurePath


def find_images(paths: Sequence[Path], *outputs: Path) -> list[Found]:
    """Images as they are named, and all of those in folders, by name.

    Pictures of regions that we drew are passed over in folders, and so is an earlier figure where an output is to be.
    """
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    drawn = [path for path in outputs if path.is_file() and is_figure(path)]
    found: list[Found] = []
    for path in paths:
        if path.suffix.lower() in (*TARS, *PARQUET):
            raise RegiontokError(f"{path}: images in tars and Parquet files are read by masks and tokenize --store.")
        if not os.path.isdir(path):  # noqa: PTH112  a name that is too long is none, and fails as an image
            inside = () if path.is_absolute() else [part for part in path.parts if part != ".."]
            found.append(Found(path, PurePath(*inside) if inside else PurePath(path.name)))
            continue
        inside_folder = sorted(
            one
            for one in path.rglob("*")
            if one.suffix.lower() in known
            and not one.name.endswith(".regions.png")
            and one.is_file()
            and not any(is_same(one, figure) for figure in drawn)
        )
        if not inside_folder:
            raise RegiontokError(f"{path}: there is no image in this folder.")
        found += [Found(one, one.relative_to(path)) for one in inside_folder]
    return found


def load_encoder(options: argparse.Namespace) -> Encoder:
    """The encoder that the options choose."""
    return encoders.load(
        options.encoder,
        weights=options.weights,
        layer=options.layer,
        final_norm=options.final_norm,
        img_size=_side(options.img_size),
        geometry=options.geometry,
        device=options.device,
    )


def _side(given: list[int] | None) -> int | Size | None:
    """One side, or height and width."""
    if given is None:
        return None
    return given[0] if len(given) == 1 else check_size("img_size", given)


def open_store(kind: Callable[[str], _S], path: str) -> _S:
    """A store; its damaged shards are told as the command line tells things."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        store = kind(path)
    for why in store.damaged.values():
        warn(f"a shard is damaged and left out: {why}")
    return store


def roots_of(options: argparse.Namespace, named: Sequence[Path]) -> Callable[[], Roots]:
    """What tells the folders that keys of images are below: ``--root``, or what is named, or is around it."""
    folders = [path if path.is_dir() else path.parent for path in named]
    return lambda: Roots(folders if options.root is None else [options.root])


def told_apart(options: argparse.Namespace) -> dict[str, Any]:
    """What the scores of a model are of: its folder or name, and how a stock one's tokens are cut."""
    names = ("model", "tokens", "keep", "threshold", "explained_variance", "norm")
    of = {name: getattr(options, name) for name in names}
    budget = any(getattr(options, name) is not None for name in LIMITS)
    linkage = options.linkage or default_linkage(budget)
    return of | {"linkage": None if linkage == "centroid" else linkage}  # as scores have it that knew one rule alone


def load_assistant(model: str, options: argparse.Namespace) -> Assistant:
    """The model in a folder, to be asked; its masks come with the questions."""
    regionizer = stock_regions(norm=options.norm, **amount_of(options))
    assistant = Assistant.load(model, regionizer=regionizer, device=options.device, dtype=options.dtype)
    source = assistant.model.regionizer.config.source
    if assistant.by_masks and options.masks is None:
        raise RegiontokError(f"{model} makes regions of masks ({source}). Give --masks, such as --masks sam2.")
    if not assistant.by_masks and (options.masks or uses_masks(options)):
        raise RegiontokError(f"{model} makes regions by {source}, without masks. Leave --masks and its options out.")
    return assistant
