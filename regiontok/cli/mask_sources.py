"""Masks of images: made by a generator, read from a store, or annotated."""

import os
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import Image

from regiontok import masks
from regiontok._files import digest, is_same
from regiontok.choices import GENERATORS
from regiontok.cli.console import warn
from regiontok.cli.loading import open_store
from regiontok.cli.values import (
    STEP_SETTINGS,
    AnnotationChoice,
    GeneratorChoice,
    MaskChoice,
    StoreChoice,
    given_options,
)
from regiontok.encoders import Encoder, ImageEncoder
from regiontok.errors import DataError, MissingKeyError, RegiontokError
from regiontok.geometry import Size
from regiontok.images import read_size
from regiontok.maskset import MaskSet
from regiontok.pipeline import Listing
from regiontok.pipeline.roots import KeyFinder, Roots
from regiontok.store import MaskStore
from regiontok.store.stamps import stamp_of_file
from regiontok.store.storage import is_remote


def load_masks(
    choice: "MaskChoice | Annotations",
    *,
    device: Any = None,
    encoder: ImageEncoder | None = None,
    roots: Roots | None = None,
) -> "MaskSource":
    """Load masks. Generators that can work at the resolution of an encoder's patch grid do so.

    Args:
        choice: The masks.
        device: The device of a generator; by default that of the encoder.
        encoder: The encoder; masks of a multimodal model have the resolution of the image.
        roots: The folders that keys of a store are relative to; by default the names of images are keys.
    """
    if encoder is not None:
        device = encoder.device
    if isinstance(choice, GeneratorChoice):
        return GeneratedMasks(choice, device, encoder)
    annotations = Annotations(choice) if isinstance(choice, AnnotationChoice) else choice
    missing = annotations.missing if isinstance(annotations, StoreChoice) else annotations.choice.missing
    generator = None if missing is None else GeneratedMasks(missing, device, encoder)
    if isinstance(annotations, StoreChoice):
        return StoredMasks(annotations, roots, generator)
    return AnnotatedMasks(annotations, generator)


def masks_of_file(choice: MaskChoice | None, path: Path, image: Image.Image, **settings: Any) -> MaskSet | None:
    """Return the masks of an image file, or None if no masks are chosen; see `load_masks` for the settings."""
    return None if choice is None else load_masks(choice, roots=Roots([path.parent]), **settings)(path, image)


def load_generator(choice: GeneratorChoice, device: Any) -> Any:
    """Load a mask generator with its settings."""
    if choice.name == "felzenszwalb":
        return masks.load(choice.name)
    steps = masks.GRANULARITY_SCHEDULE if choice.ladder else (masks.DEFAULT_SETTINGS,)
    chosen = given_options(choice, (*STEP_SETTINGS, "box_nms_thresh"))
    settings: dict[str, Any] = {"settings": [replace(step, **chosen) for step in steps]}
    if choice.mosaic is not None:
        settings["mosaic"] = choice.mosaic
    return masks.load(choice.name, model=choice.sam_model, device=device, **settings)


class GeneratedMasks:
    """Masks of a generator; see `load_masks` for the arguments."""

    def __init__(self, choice: GeneratorChoice, device: Any, encoder: ImageEncoder | None) -> None:
        self.name = choice.name
        self._generator = load_generator(choice, device)
        self._encoder = encoder if isinstance(encoder, Encoder) and hasattr(self._generator, "on_grid") else None
        self._lock = threading.Lock()

    def __call__(self, path: Path | str, image: Image.Image) -> MaskSet:
        """Return the masks of an image. One thread at a time, since the threads that read images share the device."""
        with self._lock:
            return self.generate([image])[0]

    def generate(self, images: list[Image.Image]) -> list[MaskSet]:
        """Return the masks of each image."""
        if self._encoder is None:
            return [self._generator(image)[0] for image in images]
        geometry, grid = self._encoder.geometry, self._encoder.grid
        return [self._generator.on_grid(image, geometry=geometry, grid=grid)[0] for image in images]

    def describe(self) -> dict[str, Any]:
        """Return the generator and its settings."""
        return dict(self._generator.describe())


class StoredMasks:
    """Masks of a store, or of a generator for images that it lacks."""

    def __init__(self, choice: StoreChoice, roots: Roots | None, missing: GeneratedMasks | None) -> None:
        if not is_remote(choice.path) and not os.path.exists(choice.path.removeprefix("file://")):  # noqa: PTH110
            raise DataError(
                f"--masks must be one of {', '.join(GENERATORS)}, or a store that regiontok masks wrote; there is no "
                f"{choice.path}."
            )
        self.path = choice.path
        self._missing = missing
        self._store = open_store(MaskStore, choice.path)
        self._has_root = choice.root is not None
        if choice.root is not None:
            roots = Roots([choice.root])
        recorded = self._store.manifest.images
        self._key_of = None if roots is None else KeyFinder(recorded, roots, explicit=self._has_root)
        self._warned: set[str] = set()

    def __call__(self, path: Path | str, image: Image.Image) -> MaskSet:
        """Return the masks of an image, and warn once of images in another folder and of images that changed."""
        key = os.fspath(path) if self._key_of is None else self._key_of(path)
        if self._key_of is not None and self._key_of.moved:
            self._warn_once(
                "moved",
                f"{self.path} was made from images in another folder; {path} is assumed to be {key!r} of that folder. "
                "Name the folder that keys are relative to with --root.",
            )
        if self._missing is not None and key not in self._store:
            return self._missing(path, image)
        is_original = self._key_of is not None and not self._key_of.moved and not self._has_root
        if is_original and self._store.stamp(key).differs(stamp_of_file(path)):
            self._warn_once(
                "changed",
                f"{path} has changed since its masks were made; others may have, too. List them with regiontok store "
                f"{self.path} --verify --images FOLDER, and update their masks with regiontok masks --remake-changed.",
            )
        mask_set = self._store[key]
        if mask_set.size != (image.height, image.width):
            raise _size_error(self.path, mask_set, (image.height, image.width), " Make the masks again.")
        return mask_set

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warn(message)

    def describe(self) -> dict[str, Any]:
        """Return how the masks of the store, and those that it lacks, are made."""
        return self._store.provenance | ({} if self._missing is None else {"missing": self._missing.describe()})


class AnnotatedMasks:
    """Annotated masks, or those of a generator for images without annotations, or an empty set."""

    def __init__(self, annotations: "Annotations", missing: GeneratedMasks | None) -> None:
        self._annotations = annotations
        self._missing = missing

    def __call__(self, path: Path | str, image: Image.Image) -> MaskSet:
        """Return the masks of an image."""
        size = (image.height, image.width)
        orientation = read_size(path)[1] if self._annotations.choice.stored_pixels else 1
        mask_set = self._annotations.read(path, size, orientation)
        if mask_set is not None:
            return mask_set
        return MaskSet.from_coco([], size=size) if self._missing is None else self._missing(path, image)

    def describe(self) -> dict[str, Any]:
        """Return the annotations, and how masks of other images are made."""
        missing = {} if self._missing is None else {"missing": self._missing.describe()}
        return self._annotations.describe() | missing


MaskSource = GeneratedMasks | StoredMasks | AnnotatedMasks
"""Masks of images that are read one by one; ``describe`` returns everything that they depend on, as values of JSON."""


class Annotations:
    """Annotated masks in a COCO file or in one file per image, matched to images by name.

    A copy in another process, as in the actors of Ray, opens the files again. A COCO file may have half a gigabyte.

    Args:
        choice: The annotations.
        listing: All images. They are matched at once, and images that share annotations then fail in every process.

    Raises:
        DataError: The annotations cannot be read.
        MissingKeyError: No image has annotations; the message gives the reason for the first image.
    """

    def __init__(self, choice: AnnotationChoice, listing: Listing | None = None) -> None:
        self.choice = choice
        if choice.kind == "coco":
            source: Any = masks.CocoMasks(
                choice.path,
                iscrowd="drop" if choice.no_crowds else "keep",
                duplicates=choice.duplicates,
                match=choice.match,
            )
            for entries, reason in (
                (source.without_image, "name no image of the file"),
                (source.without_segmentation, "have no segmentation"),
            ):
                if entries:
                    warn(f"{choice.path}: {len(entries)} annotations {reason} and are ignored.")
        else:
            kind = masks.LabelMaps if choice.kind == "label_maps" else masks.MaskFiles
            source = kind(choice.path, ignore=choice.ignore or (), replace=choice.replace)
        self._source = source
        self._image_of: dict[Any, Path | str] = {}
        self._clashes: dict[str, str] = {}
        if listing is not None:
            self._match(listing)

    def __reduce__(self) -> tuple[Any, ...]:
        return Annotations, (self.choice,), {"_clashes": self._clashes}

    def describe(self) -> dict[str, Any]:
        """Return everything that the masks depend on, as values of JSON; a COCO file by its digest."""
        settings = asdict(self.choice)
        del settings["missing"], settings["path"]
        kind, path = settings.pop("kind"), self.choice.path
        identity = {"digest": digest(path)} if kind == "coco" else {}
        return {"annotations": kind.replace("_", " "), "name": path.name} | identity | settings

    def _match(self, listing: Listing) -> None:
        first: MissingKeyError | None = None
        is_matched = False
        for image in listing:
            try:
                name = self._source.find(image.path)
            except MissingKeyError as error:
                first = first or error
                continue
            except (RegiontokError, OSError, ValueError):  # reported when the image is read
                is_matched = True
                continue
            is_matched = True
            if self._image_of.setdefault(name, image.path) != image.path:
                self._clashes[image.path] = _clash(name, self._image_of[name])
        if first is not None and not is_matched and self.choice.missing is None:
            raise MissingKeyError(f"none of the images has annotations in {self.choice.path}. {first}")

    def read(self, path: Path | str, size: Size, orientation: int) -> MaskSet | None:
        """Return the masks of an image, upright, or None if it has no annotations.

        Args:
            path: The path of the image.
            size: Its upright height and width.
            orientation: Its EXIF orientation.

        Raises:
            DataError: The annotations are damaged, belong to another image, or have another size.
        """
        if str(path) in self._clashes:
            raise DataError(self._clashes[str(path)])
        try:
            name = self._source.find(path)
        except MissingKeyError:
            return None
        if isinstance(name, Path) and is_same(path, name):
            raise DataError(f"{name} is the image itself. Name the folder of its label map.")
        if self._image_of.setdefault(name, path) != path:
            raise DataError(_clash(name, self._image_of[name]))
        stored_pixels = self.choice.stored_pixels
        mask_set: MaskSet = self._source.read(path, size[::-1] if stored_pixels and orientation >= 5 else size)
        mask_set = mask_set.upright(orientation) if stored_pixels else mask_set
        if mask_set.size != size:
            is_file = not is_remote(path) and Path(path).is_file()  # an image in a tar is none
            is_rotated = not stored_pixels and is_file and read_size(path)[1] != 1
            hint = " Its EXIF orientation rotates it: try --stored-pixels." if is_rotated else ""
            raise _size_error(self.choice.path, mask_set, size, hint)
        return mask_set if len(mask_set) else None


def _size_error(source: Path | str, mask_set: MaskSet, size: Size, hint: str) -> DataError:
    (height, width), (rows, cols) = mask_set.size, size
    return DataError(f"masks in {source} are for an image of {height} x {width}; this one has {rows} x {cols}.{hint}")


def _clash(name: Any, image: Path | str) -> str:
    return f"{name} already belongs to {image}. Names of images must differ."
