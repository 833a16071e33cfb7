"""Masks from a folder with one file per image, matched by file name."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from regiontok._files import is_same
from regiontok.coco_format import reject_foreign_formats
from regiontok.errors import DataError, MissingKeyError, RegiontokError
from regiontok.geometry import Size
from regiontok.images import check_single_frame, explain_image
from regiontok.masks.coco_file import is_empty_segmentation
from regiontok.maskset import MaskSet

_LABEL_MAP_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
_ARRAY_NAMES = ("masks", "labels")
"""Names of the array of masks or of the label map in a file with several arrays."""


class MaskFiles:
    """Masks from a folder with one file per image: ``a/b.json`` contains the masks of ``a/b.jpg``.

    Supported formats:

    - JSON: an SA-1B object with ``image`` and ``annotations``, or a list of COCO or SAM records;
    - ``.npy`` and ``.npz``: boolean masks ``(M, height, width)`` or an integer label map ``(height, width)``. Of
      several arrays in an ``.npz`` file, ``masks`` or ``labels`` is read, and optionally ``scores``, ``stability``,
      ``ids`` and ``categories``. ``regiontok store --export npz`` writes such files;
    - PNG, TIFF and BMP: label maps.

    Args:
        folder: The folder. The path of a file below it must be a suffix of the path of the image, apart from the file
            extension. If several files match, the longest path is used.
        ignore: Labels of label maps that are not masks, such as ``(0, 255)`` in VOC.
        replace: A part of image names and its replacement in file names, such as ``("_leftImg8bit",
            "_gtFine_labelIds")`` for Cityscapes.

    Raises:
        DataError: The folder does not exist.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> np.save(folder + "/a.npy", np.eye(4, dtype=bool)[None])
        >>> MaskFiles(folder)["images/a.jpg"]
        MaskSet(1 mask of 4 x 4 pixels)
    """

    suffixes: ClassVar[tuple[str, ...]] = (".json", ".npz", ".npy", *_LABEL_MAP_SUFFIXES)
    _content: ClassVar[str] = "masks"

    def __init__(
        self, folder: str | Path, *, ignore: int | Sequence[int] = (), replace: Sequence[str] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.ignore = (ignore,) if isinstance(ignore, int) else tuple(ignore)
        self.replace = None if replace is None else (replace[0], replace[1])
        if not self.folder.is_dir():
            raise DataError(f"the folder of masks {folder} does not exist.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r}, ignore={self.ignore}, replace={self.replace})"

    def find(self, key: str | Path) -> Path:
        """Return the file with the masks of an image.

        Raises:
            MissingKeyError: No file matches.
            DataError: Several files match that differ only in their extension.
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
                raise DataError(f"{self.folder} has several files for {key}: {names}. Remove all but one.")
            if files:
                return files[0]
            if any(is_same(file, path) for file in candidates):
                raise MissingKeyError(f"{path} is the image itself. Pass the folder of its {self._content}.")
        raise MissingKeyError(
            f"{self.folder} has no {self._content} of {key}, such as {path.stem}{self.suffixes[0]}. Files are matched "
            "by name."
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
            key: Path of the image.
            size: Height and width of the image, needed for polygons.

        Raises:
            MissingKeyError: There is no file with masks of the image.
            DataError: The file is damaged, has an unsupported format, or contains masks of a different size.
        """
        file = self.find(key)
        try:
            if file.suffix == ".json":
                return _from_json(json.loads(file.read_bytes()), size)
            if file.suffix in (".npz", ".npy"):
                with file.open("rb") as stream:  # numpy does not close damaged files
                    return self._from_arrays(stream)
            with Image.open(file) as image:
                check_single_frame(image)
                return MaskSet.from_labels(image, ignore=self.ignore)
        except RegiontokError as error:
            raise DataError(f"{file}: {error}") from error
        except (ValueError, RecursionError, EOFError, BadZipFile, KeyError, TypeError) as error:
            raise DataError(f"{file} is damaged or not a valid {file.suffix[1:]} file: {error}.") from error
        except Exception as error:  # Pillow's decoders raise errors of any type for damaged files
            raise DataError(str(explain_image(str(file), error))) from error

    def _from_arrays(self, stream: BinaryIO) -> MaskSet:
        """Read the masks of a NumPy file without unpickling."""
        loaded = np.load(stream, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return self._from_array(loaded)
        with loaded:
            names = loaded.files
            candidates = [name for name in _ARRAY_NAMES if name in names] or (names if len(names) == 1 else [])
            if not candidates:
                raise DataError(f"one of its arrays must be named masks or labels; got {', '.join(names)}.")
            scores, stability = (loaded[name] if name in names else None for name in ("scores", "stability"))
            masks = self._from_array(loaded[candidates[0]], scores=scores, stability=stability)
            numbers = {name: loaded[name].astype(np.int64) for name in ("ids", "categories") if name in names}
        for name, values in numbers.items():
            if values.shape != (len(masks),):
                raise DataError(f"{name} must have one value for each of the {len(masks)} masks; got {values.shape}.")
        return replace(masks, **numbers)

    def _from_array(self, array: np.ndarray, **scores: Any) -> MaskSet:
        if array.ndim == 2 and array.dtype != np.bool_:
            return MaskSet.from_labels(array, ignore=self.ignore, **scores)
        return MaskSet.from_masks(array[None] if array.ndim == 2 else array, **scores)


class LabelMaps(MaskFiles):
    """Masks from a folder of label maps only: PNG, TIFF or BMP files with palettes or integers.

    Args:
        folder: The folder; see `MaskFiles` for the matching of names.
        ignore: Labels that are not masks, such as ``(0, 255)`` in VOC.
        replace: A part of image names and its replacement in the names of label maps.

    Raises:
        DataError: The folder does not exist.
    """

    suffixes: ClassVar[tuple[str, ...]] = _LABEL_MAP_SUFFIXES
    _content: ClassVar[str] = "label map"


def _from_json(value: Any, size: Size | None) -> MaskSet:
    """Parse the masks of one image from an SA-1B object or a list of records."""
    if isinstance(value, Mapping) and "image" not in value:
        if not isinstance(value.get("annotations"), list):
            reject_foreign_formats(value)
            raise DataError("expected a list of records, or an object with a list of annotations.")
        value = value["annotations"]
    if not isinstance(value, list | Mapping):
        raise DataError(f"expected a list of records; got {type(value).__name__}.")
    records = value["annotations"] if isinstance(value, Mapping) else value
    if isinstance(records, list):
        images = {record.get("image_id") for record in records if isinstance(record, Mapping)}
        if len(images - {None}) > 1:
            raise DataError(f"expected annotations of one image; got {len(images)} images. Use --coco for such a file.")
        records = [record for record in records if not _is_empty(record)]
        if not records and size is not None:
            return MaskSet.from_coco([], size=size)
        value = dict(value) | {"annotations": records} if isinstance(value, Mapping) else records
    has_size = isinstance(records, list) and any(_is_rle(record) for record in records)
    return MaskSet.of(value, size=None if has_size else size)


def _is_rle(record: Any) -> bool:
    """Return whether a record contains run-length encoding, which includes the size of the image."""
    return isinstance(record, Mapping) and isinstance(record.get("segmentation", record), Mapping)


def _is_empty(record: Any) -> bool:
    """Return whether a record has an empty segmentation."""
    return isinstance(record, Mapping) and "segmentation" in record and is_empty_segmentation(record["segmentation"])
