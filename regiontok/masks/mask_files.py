"""Masks in a folder with one file per image, matched by name."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from regiontok._files import is_same
from regiontok.coco_format import name_format
from regiontok.errors import DataError, MissingKeyError, RegiontokError
from regiontok.geometry import Size
from regiontok.images import explain_image, one_frame
from regiontok.masks.coco_file import is_bare
from regiontok.maskset import MaskSet

_MAPS = (".png", ".tif", ".tiff", ".bmp")
_ARRAYS = ("masks", "labels")
"""Names of the array of masks, or of a label map, in a file of several arrays."""


class MaskFiles:
    """Masks of images in a folder with one file per image: ``a/b.json`` has the masks of ``a/b.jpg``.

    Files may be JSON (SA-1B's ``image`` and ``annotations``, or a list of COCO's or SAM's records), ``.npz`` or
    ``.npy`` (a boolean stack ``(M, height, width)``, or a label map ``(height, width)`` of integers), or label maps as
    PNG, TIFF or BMP. Of several arrays in a ``.npz`` those named ``masks`` or ``labels`` are taken, with ``scores``,
    ``stability``, ``ids`` and ``categories``, as ``regiontok store --export npz`` writes them.

    Args:
        folder: Where the files are. An image's file has the end of the image's path, with another suffix; of several
            such files the one with the longest path counts.
        ignore: Labels of label maps that are no masks, such as ``(0, 255)`` in VOC.
        replace: A part of image names, and what file names have instead, such as ``("_leftImg8bit",
            "_gtFine_labelIds")`` for Cityscapes.

    Raises:
        DataError: No such folder.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> np.save(folder + "/a.npy", np.eye(4, dtype=bool)[None])
        >>> MaskFiles(folder)["images/a.jpg"]
        MaskSet(1 mask of 4 x 4 pixels)
    """

    suffixes: ClassVar[tuple[str, ...]] = (".json", ".npz", ".npy", *_MAPS)
    _what: ClassVar[str] = "masks"

    def __init__(
        self, folder: str | Path, *, ignore: int | Sequence[int] = (), replace: Sequence[str] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.ignore = (ignore,) if isinstance(ignore, int) else tuple(ignore)
        self.replace = None if replace is None else (replace[0], replace[1])
        if not self.folder.is_dir():
            raise DataError(f"there is no folder {folder} of masks.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r}, ignore={self.ignore}, replace={self.replace})"

    def find(self, key: str | Path) -> Path:
        """Return the file of an image's masks.

        Raises:
            MissingKeyError: There is none.
            DataError: There are several that differ only in their suffix.
        """
        path = Path(key)
        parts = [part for part in path.parts if part not in (path.anchor, "..")]
        for start in range(len(parts)):
            stem = self.folder.joinpath(*parts[start:]).with_suffix("")
            if self.replace is not None:
                stem = stem.with_name(stem.name.replace(*self.replace) or stem.name)
            candidates = [stem.with_name(stem.name + suffix) for suffix in self.suffixes]
            files = [file for file in candidates if file.is_file() and not is_same(file, path)]
            if len(files) > 1:
                names = " and ".join(file.name for file in files)
                raise DataError(f"{self.folder} has several files of masks of {key}: {names}. Remove all but one.")
            if files:
                return files[0]
            if any(is_same(file, path) for file in candidates):
                raise MissingKeyError(f"{path} is the image itself. Name the folder of its {self._what}.")
        raise MissingKeyError(
            f"{self.folder} has no {self._what} of {key}, such as {path.stem}{self.suffixes[0]}. Files are matched by "
            "name."
        )

    def __contains__(self, key: object) -> bool:
        try:
            self.find(str(key))
        except DataError:
            return False
        return True

    def __getitem__(self, key: str | Path) -> MaskSet:
        """Return the masks of an image; see `read`."""
        return self.read(key)

    def read(self, key: str | Path, size: Size | None = None) -> MaskSet:
        """Return the masks of an image.

        Args:
            key: Its path.
            size: Its height and width, which polygons do not have.

        Raises:
            MissingKeyError: There is no file of its masks.
            DataError: The file is damaged, of another format, or of an image of another size.
        """
        file = self.find(key)
        try:
            if file.suffix == ".json":
                return _from_json(json.loads(file.read_bytes()), size)
            if file.suffix in (".npz", ".npy"):
                with file.open("rb") as stream:  # numpy leaves a damaged file open
                    return self._from_arrays(stream)
            with Image.open(file) as image:
                one_frame(image)
                return MaskSet.from_labels(image, ignore=self.ignore)
        except RegiontokError as error:
            raise DataError(f"{file}: {error}") from error
        except (ValueError, RecursionError, EOFError, BadZipFile, KeyError, TypeError) as error:
            raise DataError(f"{file} is damaged, or no {file.suffix[1:]} file: {error}.") from error
        except Exception as error:  # Pillow's decoders raise errors of all kinds on damaged files
            raise DataError(str(explain_image(str(file), error))) from error

    def _from_arrays(self, stream: BinaryIO) -> MaskSet:
        """Masks in a file of NumPy, which is never unpickled."""
        loaded = np.load(stream, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return self._from_array(loaded)
        with loaded:
            names = loaded.files
            known = [name for name in _ARRAYS if name in names] or (names if len(names) == 1 else [])
            if not known:
                raise DataError(f"its arrays are {', '.join(names)}; one must be named masks or labels.")
            scores, stability = (loaded[name] if name in names else None for name in ("scores", "stability"))
            masks = self._from_array(loaded[known[0]], scores=scores, stability=stability)
            more = {name: loaded[name].astype(np.int64) for name in ("ids", "categories") if name in names}
        if any(values.shape != (len(masks),) for values in more.values()):
            raise DataError(f"there must be one of {', '.join(more)} per mask, {len(masks)}.")
        return replace(masks, **more)

    def _from_array(self, array: np.ndarray, **scores: Any) -> MaskSet:
        if array.ndim == 2 and array.dtype != np.bool_:
            return MaskSet.from_labels(array, ignore=self.ignore, **scores)
        return MaskSet.from_masks(array[None] if array.ndim == 2 else array, **scores)


class LabelMaps(MaskFiles):
    """Masks of images in a folder of label maps alone: PNG, TIFF or BMP files, of palettes or integers.

    Args:
        folder: See `MaskFiles` for this and the others.
        ignore: Labels that are no masks, such as ``(0, 255)`` in VOC.
        replace: A part of image names, and what label maps have instead.

    Raises:
        DataError: No such folder.
    """

    suffixes: ClassVar[tuple[str, ...]] = _MAPS
    _what: ClassVar[str] = "label map"


def _from_json(value: Any, size: Size | None) -> MaskSet:
    """Masks in the JSON of one image: SA-1B's object, or a list of records."""
    if isinstance(value, Mapping) and "image" not in value:
        if not isinstance(value.get("annotations"), list):
            name_format(value)
            raise DataError("it must be a list of records, or an object with a list of annotations.")
        value = value["annotations"]
    if not isinstance(value, list | Mapping):
        raise DataError(f"it must be a list of records; got {type(value).__name__}.")
    records = value["annotations"] if isinstance(value, Mapping) else value
    if isinstance(records, list):
        images = {record.get("image_id") for record in records if isinstance(record, Mapping)}
        if len(images - {None}) > 1:
            raise DataError(f"its annotations are of {len(images)} images, and one is wanted. Read it by --coco.")
        kept = [
            record for record in records if not (isinstance(record, Mapping) and is_bare(record.get("segmentation", 0)))
        ]
        if not kept and size is not None:
            return MaskSet.from_coco([], size=size)
        value = dict(value) | {"annotations": kept} if isinstance(value, Mapping) else kept
        records = kept
    has_size = isinstance(records, list) and any(_is_rle(record) for record in records)
    return MaskSet.of(value, size=None if has_size else size)


def _is_rle(record: Any) -> bool:
    """Return whether a record has its masks as run lengths, which come with the image's size."""
    return isinstance(record, Mapping) and isinstance(record.get("segmentation", record), Mapping)


def _has_no_mask(record: Any) -> bool:
    """Return whether a record has an empty segmentation."""
    return isinstance(record, Mapping) and "segmentation" in record and is_bare(record["segmentation"])
