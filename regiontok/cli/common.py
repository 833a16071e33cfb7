"""What the commands share: photos, encoders, masks, and how long things take."""

import argparse
import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image

from regiontok import encoders, masks
from regiontok._checks import check_size
from regiontok._files import is_same
from regiontok.cli.checks import amount_of, annotated, uses_masks
from regiontok.cli.console import warn
from regiontok.clustering import default_linkage
from regiontok.encoders import Encoder
from regiontok.errors import CheckpointError, RegiontokError
from regiontok.evaluation.assistant import Assistant, stock_regions
from regiontok.geometry import Size
from regiontok.maskset import MaskSet
from regiontok.photos import read_size
from regiontok.pipeline import Listing
from regiontok.pipeline.roots import KeyFinder, Roots
from regiontok.store import MaskStore
from regiontok.store.base import Store
from regiontok.store.places import is_remote
from regiontok.viewing import is_figure

_T = TypeVar("_T")
_S = TypeVar("_S", bound=Store[Any])
FAILURES = (RegiontokError, OSError, MemoryError, RuntimeError)  # a GPU out of memory is the last of these
"""What one photo can fail with, so that the others go on."""


MaskSource = Callable[[Path | str, Image.Image], MaskSet]
"""Masks of a photo that was read from a path."""


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
    """A photo, and where it lies in what was named: as it was given, or below its folder."""

    path: Path
    name: PurePath


def find_photos(paths: Sequence[Path], *outputs: Path) -> list[Found]:
    """Photos as they are named, and all of those in folders, by name.

    Pictures of regions that we drew are passed over in folders, and so is an earlier figure where an output is to be.
    """
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    drawn = [path for path in outputs if path.is_file() and is_figure(path)]
    found: list[Found] = []
    for path in paths:
        if not os.path.isdir(path):  # noqa: PTH112  a name that is too long is none, and fails as a photo
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
            raise RegiontokError(f"{path}: there is no photo in this folder.")
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


def annotations_of(options: argparse.Namespace) -> dict[str, Any]:
    """Where annotated masks come from, as plain values."""
    if options.coco:
        return {"annotations": "coco", "file": options.coco.name, "iscrowd": "drop" if options.no_crowds else "keep"}
    return {"annotations": "label maps", "folder": options.label_maps.name, "ignore": options.ignore or []}


def load_generator(options: argparse.Namespace, **more: Any) -> Any:
    """Load the mask generator that the options choose, as `checks.check_generator` has checked them."""
    if options.masks == "felzenszwalb":
        return masks.load(options.masks)
    settings: Any = masks.CHEAP
    settings = [_set(step, options) for step in masks.LADDER] if options.ladder else _set(settings, options)
    return masks.load(options.masks, model=options.sam_model, device=options.device, settings=settings, **more)


def _set(settings: masks.MaskSettings, options: argparse.Namespace) -> masks.MaskSettings:
    names = ("points_per_side", "stability_score_thresh", "pred_iou_thresh", "box_nms_thresh")
    return replace(settings, **{name: getattr(options, name) for name in names if getattr(options, name) is not None})


def load_masks(
    options: argparse.Namespace,
    encoder: Encoder | None = None,
    *,
    roots: Roots | Callable[[], Roots] | None = None,
) -> MaskSource:
    """Masks of photos, made by a generator or read from a store; on an encoder's grid where that is quicker.

    Args:
        options: Of the command.
        encoder: Whose grid it is.
        roots: The folders that keys of a store are below, or what tells them where there is a store; without them
            photos' names are keys as they are.
    """
    if annotated(options):
        read = load_annotations(options)

        def find(path: Path | str, photo: Image.Image) -> MaskSet:
            orientation = read_size(path)[1] if options.stored_pixels else 1
            return check_photo_size(read(path, orientation), path, (photo.height, photo.width), orientation, options)

        return find
    if options.masks in masks.GENERATORS:
        if options.missing is not None:
            raise RegiontokError("--missing is for --masks STORE, which may lack some. Leave it out.")
        generator = load_generator(options)
        if encoder is not None and hasattr(generator, "on_grid"):
            return lambda _, photo: generator.on_grid(photo, geometry=encoder.geometry, grid=encoder.grid)[0]
        return lambda _, photo: generator(photo)[0]
    return _stored(options, encoder, roots() if callable(roots) else roots)


def _stored(options: argparse.Namespace, encoder: Encoder | None, roots: Roots | None) -> MaskSource:
    """Masks of a store; those that it has not may be made by a generator."""
    if not is_remote(options.masks) and not os.path.exists(options.masks.removeprefix("file://")):  # noqa: PTH110
        raise CheckpointError(
            f"--masks must be one of {', '.join(masks.GENERATORS)}, or a store that regiontok masks wrote; there is "
            f"no {options.masks}."
        )
    if uses_masks(options) and options.missing is None:
        raise RegiontokError(f"{uses_masks(options)[0]} is for making masks, not for a store of them. Leave it out.")
    make = None
    if options.missing is not None:
        make = load_masks(argparse.Namespace(**vars(options) | {"masks": options.missing, "missing": None}), encoder)
    store = open_store(MaskStore, options.masks)
    if roots is None and options.root is not None:
        roots = Roots([options.root])
    key_of = None if roots is None else KeyFinder(store.manifest.photos, roots, given=options.root is not None)
    told, alone, warned = False, threading.Lock(), threading.Event()

    def warn_if_changed(key: str, path: Path | str) -> None:
        if warned.is_set() or is_remote(path) or key not in store:
            return
        if key_of is None or key_of.elsewhere or options.root is not None:
            return  # copies have times of their own
        if store.stamp(key).differs(Listing.stamp_of_file(path)):
            warned.set()
            warn(
                f"{path} has changed since its masks were made, and others may have. regiontok store {options.masks} "
                "--verify --images FOLDER names them; regiontok masks --remake-changed makes their masks again."
            )

    def find(path: Path | str, photo: Image.Image) -> MaskSet:
        nonlocal told
        key = os.fspath(path) if key_of is None else key_of(path)
        if key_of is not None and key_of.elsewhere and not told:
            told = True
            warn(
                f"{options.masks} was made of photos in another folder; {path} is taken for its {key!r}. Give --root "
                "to say that it is, or that keys begin elsewhere."
            )
        if make is not None and key not in store:
            with alone:  # readers may be many, and the device is one
                return make(path, photo)
        warn_if_changed(key, path)
        return check_photo_size(store[key], path, (photo.height, photo.width), None, options)

    return find


def open_store(kind: Callable[[str], _S], path: str) -> _S:
    """A store; its damaged shards are told as the command line tells things."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        store = kind(path)
    for why in store.damaged.values():
        warn(f"a shard is damaged and left out: {why}")
    return store


def roots_of(options: argparse.Namespace, named: Sequence[Path]) -> Callable[[], Roots]:
    """What tells the folders that keys of photos are below: ``--root``, or what is named, or is around it."""
    folders = [path if path.is_dir() else path.parent for path in named]
    return lambda: Roots(folders if options.root is None else [options.root])


def load_annotations(options: argparse.Namespace) -> Callable[[Path | str, int], MaskSet]:
    """The annotated masks that the options name, by photo and how EXIF turns it: upright, and of one photo each."""
    source = _annotations(options)
    clashes: dict[str, str] = getattr(options, "clashes", {})
    claimed: dict[Any, Path | str] = {}

    def read(path: Path | str, orientation: int) -> MaskSet:
        if str(path) in clashes:
            raise CheckpointError(clashes[str(path)])
        name = source.find(path)
        if isinstance(name, Path) and is_same(path, name):
            raise CheckpointError(f"{name} is the photo itself. Name the folder of its label map.")
        if claimed.setdefault(name, path) != path:
            raise CheckpointError(_clash(name, claimed[name]))
        found: MaskSet = source[path]
        return found.upright(orientation) if options.stored_pixels else found

    return read


def _annotations(options: argparse.Namespace) -> Any:
    """The annotated masks that the options name, opened once: a file of COCO's may be half a gigabyte."""
    if getattr(options, "opened", None) is None:
        if options.coco:
            source = masks.CocoMasks(options.coco, iscrowd="drop" if options.no_crowds else "keep")
            for some, what in ((source.unplaced, "name no image of the file"), (source.bare, "have no segmentation")):
                if some:
                    warn(f"{options.coco}: {len(some)} annotations {what} and are left out.")
            options.opened = source
        else:
            options.opened = masks.LabelMaps(options.label_maps, ignore=options.ignore or (), replace=options.replace)
    return options.opened


def find_clashes(options: argparse.Namespace, listing: Listing) -> None:
    """Note photos whose annotations are another's, by the listing: whatever part of it a process makes."""
    if not annotated(options):
        return
    source, claimed = _annotations(options), dict[Any, str]()
    options.clashes = {}
    for photo in listing:
        try:
            name = source.find(photo.address)
        except (RegiontokError, OSError, ValueError):  # which is told when it is read
            continue
        if claimed.setdefault(name, photo.address) != photo.address:
            options.clashes[photo.address] = _clash(name, claimed[name])


def _clash(name: Any, other: Path | str) -> str:
    return f"{name} is of {other} already. Photos need names that tell them apart."


def check_photo_size(
    found: MaskSet, path: Path | str, size: Size, orientation: int | None, options: argparse.Namespace
) -> MaskSet:
    """The same masks; refuses those of a photo of another size, which EXIF may turn."""
    if found.size == size:
        return found
    kind = annotated(options)
    source = {"--coco": "coco", "--label-maps": "label_maps"}.get(kind or "", "masks")
    own, (height, width) = f"{found.size[0]} x {found.size[1]}", size
    told = f"masks in {getattr(options, source)} are of a photo of {own}; this one is of {height} x {width}"
    if not kind:
        raise CheckpointError(f"{told}. Make them again.")
    turned = (read_size(path)[1] if orientation is None else orientation) != 1 and not options.stored_pixels
    raise CheckpointError(f"{told}." + turned * " It is turned by its EXIF orientation: try --stored-pixels.")


def told_apart(options: argparse.Namespace) -> dict[str, Any]:
    """What the scores of a model are of: its folder or name, and how a stock one's tokens are cut."""
    of = {name: getattr(options, name) for name in ("model", "tokens", "threshold", "explained_variance", "norm")}
    budget = options.tokens is not None or options.explained_variance is not None
    linkage = options.linkage or default_linkage(budget)
    return of | {"linkage": None if linkage == "centroid" else linkage}  # as scores have it that knew one rule alone


def load_assistant(model: str, options: argparse.Namespace) -> Assistant:
    """The model in a folder, to be asked; its masks come with the questions."""
    regionizer = stock_regions(norm=options.norm, **amount_of(options))
    assistant = Assistant.load(model, regionizer=regionizer, device=options.device, dtype=options.dtype)
    source = assistant.model.regionizer.config["source"]
    if assistant.by_masks and options.masks is None:
        raise RegiontokError(f"{model} makes regions of masks ({source}). Give --masks, such as --masks sam2.")
    if not assistant.by_masks and (options.masks or uses_masks(options)):
        raise RegiontokError(f"{model} makes regions by {source}, without masks. Leave --masks and its options out.")
    return assistant
