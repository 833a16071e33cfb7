"""Masks that the options name: made by a generator, kept in a store, or annotated by people."""

import argparse
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from regiontok import masks
from regiontok._files import digest, is_same
from regiontok.choices import GENERATORS
from regiontok.cli.checks import annotated, uses_masks
from regiontok.cli.common import open_store
from regiontok.cli.console import warn
from regiontok.encoders import Encoder
from regiontok.errors import DataError, MissingKeyError, RegiontokError
from regiontok.geometry import Size
from regiontok.images import read_size
from regiontok.maskset import MaskSet
from regiontok.pipeline import Listing
from regiontok.pipeline.roots import KeyFinder, Roots
from regiontok.store import MaskStore
from regiontok.store.places import is_remote
from regiontok.store.stamps import stamp_of_file

MaskSource = Callable[[Path | str, Image.Image], MaskSet]
"""Masks of an image that was read from a path."""


def load_generator(options: argparse.Namespace, name: str, **more: Any) -> Any:
    """Load a mask generator with the settings of the options, as `checks.check_generator` has checked them."""
    if name == "felzenszwalb":
        return masks.load(name)
    settings: Any = masks.CHEAP
    settings = [_set(step, options) for step in masks.LADDER] if options.ladder else _set(settings, options)
    return masks.load(name, model=options.sam_model, device=options.device, settings=settings, **more)


def _set(settings: masks.MaskSettings, options: argparse.Namespace) -> masks.MaskSettings:
    names = ("points_per_side", "stability_score_thresh", "pred_iou_thresh", "box_nms_thresh")
    return replace(settings, **{name: getattr(options, name) for name in names if getattr(options, name) is not None})


def load_masks(
    options: argparse.Namespace,
    encoder: Encoder | None = None,
    *,
    roots: Roots | Callable[[], Roots] | None = None,
) -> MaskSource:
    """Return what gives the masks of images that are read one by one; on an encoder's grid where that is faster.

    Args:
        options: Of the command.
        encoder: The encoder whose grid it is.
        roots: The folders that keys of a store are below, or a function that returns them, called if there is a store;
            without them the names of images are keys.
    """
    if annotated(options):
        annotations = annotations_of(options)
        make = None if options.missing is None else _locked(_by_generator(options, options.missing, encoder))

        def find(path: Path | str, image: Image.Image) -> MaskSet:
            size = (image.height, image.width)
            found = annotations.read(path, size, read_size(path)[1] if options.stored_pixels else 1)
            if found is None and make is not None:
                return make(path, image)
            return MaskSet.from_coco([], size=size) if found is None else found

        return find
    if options.masks in GENERATORS:
        if options.missing is not None:
            raise RegiontokError("--missing is for --masks STORE and annotated masks, which may lack some.")
        return _by_generator(options, options.masks, encoder)
    return _stored(options, encoder, roots() if callable(roots) else roots)


def _by_generator(options: argparse.Namespace, name: str, encoder: Encoder | None) -> MaskSource:
    generator = load_generator(options, name)
    if encoder is not None and hasattr(generator, "on_grid"):
        return lambda _, image: generator.on_grid(image, geometry=encoder.geometry, grid=encoder.grid)[0]
    return lambda _, image: generator(image)[0]


def _locked(make: MaskSource) -> MaskSource:
    """Return the same source for one thread at a time: readers may be many, and the device is one."""
    alone = threading.Lock()

    def locked(path: Path | str, image: Image.Image) -> MaskSet:
        with alone:
            return make(path, image)

    return locked


def _stored(options: argparse.Namespace, encoder: Encoder | None, roots: Roots | None) -> MaskSource:
    """Return the masks of a store; those that it does not have may be made by a generator."""
    if not is_remote(options.masks) and not os.path.exists(options.masks.removeprefix("file://")):  # noqa: PTH110
        raise DataError(
            f"--masks must be one of {', '.join(GENERATORS)}, or a store that regiontok masks wrote; there is no "
            f"{options.masks}."
        )
    if uses_masks(options) and options.missing is None:
        raise RegiontokError(f"{uses_masks(options)[0]} is for making masks, not for a store of them. Leave it out.")
    make = None if options.missing is None else _locked(_by_generator(options, options.missing, encoder))
    store = open_store(MaskStore, options.masks)
    if roots is None and options.root is not None:
        roots = Roots([options.root])
    key_of = None if roots is None else KeyFinder(store.manifest.images, roots, given=options.root is not None)
    elsewhere, changed = threading.Event(), threading.Event()  # set once a warning is printed

    def find(path: Path | str, image: Image.Image) -> MaskSet:
        key = os.fspath(path) if key_of is None else key_of(path)
        if key_of is not None and key_of.elsewhere and not elsewhere.is_set():
            elsewhere.set()
            warn(
                f"{options.masks} was made of images in another folder; {path} is taken for its {key!r}. Give --root "
                "to say that it is, or that keys begin elsewhere."
            )
        if make is not None and key not in store:
            return make(path, image)
        copied = key_of is None or key_of.elsewhere or options.root is not None  # copies have times of their own
        if not copied and not changed.is_set() and store.stamp(key).differs(stamp_of_file(path)):
            changed.set()
            warn(
                f"{path} has changed since its masks were made, and others may have. regiontok store {options.masks} "
                "--verify --images FOLDER names them; regiontok masks --remake-changed makes their masks again."
            )
        return _of_size(store[key], (image.height, image.width), options)

    return find


def _of_size(found: MaskSet, size: Size, options: argparse.Namespace) -> MaskSet:
    """Return masks of a store; reject those of an image of another size."""
    if found.size == size:
        return found
    (height, width), (rows, cols) = found.size, size
    raise DataError(
        f"masks in {options.masks} are of an image of {height} x {width}; this one is of {rows} x {cols}. Make them "
        "again."
    )


class Annotations:
    """Annotated masks that the options name, in a file of COCO or in one file per image.

    The file is opened once per process: one of COCO's may have half a gigabyte.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        if options.coco:
            source: Any = masks.CocoMasks(
                options.coco,
                iscrowd="drop" if options.no_crowds else "keep",
                duplicates=options.duplicates,
                match=options.match or "path",
            )
            for some, what in ((source.unplaced, "name no image of the file"), (source.bare, "have no segmentation")):
                if some:
                    warn(f"{options.coco}: {len(some)} annotations {what} and are left out.")
        else:
            kind = masks.LabelMaps if options.label_maps else masks.MaskFiles
            folder = options.label_maps or options.mask_files
            source = kind(folder, ignore=options.ignore or (), replace=options.replace)
        self._source = source
        self._claimed: dict[Any, Path | str] = {}
        self._clashes: dict[str, str] = getattr(options, "clashes", {})

    @property
    def path(self) -> Path:
        """The file or folder of the annotations."""
        path: Path = self.options.coco or self.options.label_maps or self.options.mask_files
        return path

    def describe(self) -> dict[str, Any]:
        """Return everything that the masks depend on, as plain values; a file of COCO by its digest."""
        options = self.options
        common = {"stored_pixels": bool(options.stored_pixels)}
        if options.coco:
            return {
                "annotations": "coco",
                "file": options.coco.name,
                "digest": digest(options.coco),
                "iscrowd": "drop" if options.no_crowds else "keep",
                "duplicates": options.duplicates,
                "match": options.match or "path",
                **common,
            }
        return {
            "annotations": "label maps" if options.label_maps else "mask files",
            "folder": self.path.name,
            "ignore": options.ignore or [],
            "replace": options.replace,
            **common,
        }

    def check(self, listing: Listing) -> None:
        """Compare the names of all images with those of the annotations, before the first image is read.

        Images that would share annotations fail when they are read, whichever of them a process makes.

        Raises:
            MissingKeyError: No image at all has annotations; the reason for the first one is given.
        """
        self.options.clashes = self._clashes
        first: MissingKeyError | None = None
        matched = False
        for image in listing:
            try:
                name = self._source.find(image.path)
            except MissingKeyError as error:
                first = first or error
                continue
            except (RegiontokError, OSError, ValueError):  # reported when the image is read
                matched = True
                continue
            matched = True
            if self._claimed.setdefault(name, image.path) != image.path:
                self._clashes[image.path] = _clash(name, self._claimed[name])
        if first is not None and not matched and self.options.missing is None:
            raise MissingKeyError(f"none of the images has annotations in {self.path}. {first}")

    def read(self, path: Path | str, size: Size, orientation: int) -> MaskSet | None:
        """Return the masks of an image, upright; None if it has no annotations.

        Args:
            path: Of the image.
            size: Its height and width, upright.
            orientation: How EXIF turns it.

        Raises:
            DataError: Annotations that are damaged, of another image too, or of an image of another size.
        """
        if str(path) in self._clashes:
            raise DataError(self._clashes[str(path)])
        try:
            name = self._source.find(path)
        except MissingKeyError:
            return None
        if isinstance(name, Path) and is_same(path, name):
            raise DataError(f"{name} is the image itself. Name the folder of its label map.")
        if self._claimed.setdefault(name, path) != path:
            raise DataError(_clash(name, self._claimed[name]))
        turned = self.options.stored_pixels and orientation >= 5
        found: MaskSet = self._source.read(path, size[::-1] if turned else size)
        found = found.upright(orientation) if self.options.stored_pixels else found
        if found.size != size:
            self._reject_size(found, path, size)
        return found if len(found) else None

    def _reject_size(self, found: MaskSet, path: Path | str, size: Size) -> None:
        (height, width), (rows, cols) = found.size, size
        is_file = not is_remote(path) and Path(path).is_file()  # and not within a tar
        turned = not self.options.stored_pixels and is_file and read_size(path)[1] != 1
        hint = " It is turned by its EXIF orientation: try --stored-pixels." if turned else ""
        raise DataError(
            f"masks in {self.path} are of an image of {height} x {width}; this one is of {rows} x {cols}.{hint}"
        )


def annotations_of(options: argparse.Namespace) -> Annotations:
    """Return the annotated masks that the options name, opened once."""
    if getattr(options, "annotations", None) is None:
        options.annotations = Annotations(options)
    annotations: Annotations = options.annotations
    return annotations


def check_annotations(options: argparse.Namespace, listing: Listing) -> None:
    """Check the names of all images against those of annotated masks, if the options name any."""
    if annotated(options):
        annotations_of(options).check(listing)


def _clash(name: Any, other: Path | str) -> str:
    return f"{name} is of {other} already. Images need names that tell them apart."
