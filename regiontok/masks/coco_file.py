"""Masks of images in a file of COCO annotations, matched by file name."""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from regiontok._checks import check_choice, check_size
from regiontok._files import read_json
from regiontok.choices import CROWDS, DUPLICATES, MATCHES
from regiontok.coco_format import name_format
from regiontok.errors import DataError, MissingKeyError, RegiontokError
from regiontok.geometry import Size
from regiontok.maskset import MaskSet

_MOST_COMPARED = 10_000
"""Names that are compared with an image's to find the nearest one."""


class CocoMasks:
    """Masks of images in a file of COCO annotations, such as ``instances_val2017.json``, by file name.

    Annotations are matched to images by file name: one path must be a suffix of the other, and the match be unique.
    Backslashes, drive letters and leading ``..`` in the file's names are understood.

    Args:
        path: A JSON file with ``images``, ``annotations`` and perhaps ``categories``.
        iscrowd: ``keep``, or ``drop`` to leave crowds out.
        duplicates: What to do with an image that the file has under several ids, as of several annotators: ``merge``
            their annotations, or take those of the ``first`` id. By default that is an error.
        match: ``path``, or ``name`` to match the last part of paths alone.

    Attributes:
        categories: Names by id, where the file has them.
        unplaced: Annotations of images that the file does not have, which are no image's: their numbers in the file.
        bare: Annotations without a segmentation, such as boxes, which are no masks: their numbers in the file.

    Raises:
        DataError: No such file, no COCO annotations, an image under several ids or of two sizes, or two images
            of one id.

    Example:
        >>> masks = CocoMasks("instances_val2017.json")  # doctest: +SKIP
        >>> masks["val2017/000000000139.jpg"]  # doctest: +SKIP
        MaskSet(20 masks of 426 x 640 pixels)
    """

    def __init__(
        self, path: str | Path, *, iscrowd: str = "keep", duplicates: str | None = None, match: str = "path"
    ) -> None:
        check_choice("iscrowd", iscrowd, CROWDS)
        check_choice("match", match, MATCHES)
        if duplicates is not None:
            check_choice("duplicates", duplicates, DUPLICATES)
        self.path = Path(path)
        self.iscrowd = iscrowd
        self.match = match
        images, annotations, self.categories = _read(self.path)
        self.unplaced: list[int] = []
        self.bare: list[int] = []
        self._images: dict[str, _Image] = {}
        by_id = self._number(images, duplicates)
        for number, annotation in enumerate(annotations):
            if is_bare(annotation.get("segmentation")):
                self.bare.append(number)
            elif annotation["image_id"] not in by_id:
                self.unplaced.append(number)
            elif (image := by_id[annotation["image_id"]]) is not None:
                image.annotations[number] = annotation
        self._by_end: dict[str, list[str]] = {}
        for name in self._images:
            self._by_end.setdefault(_parts(name)[-1], []).append(name)

    def _number(self, images: list["_Image"], duplicates: str | None) -> dict[Any, "_Image | None"]:
        """Return the image of each id, None for one whose annotations are left out; keep the images by name."""
        by_id: dict[Any, _Image | None] = {}
        ids: dict[str, list[Any]] = {}
        names: dict[Any, str] = {}
        by_parts: dict[tuple[str, ...], str] = {}
        for entry in images:
            image = entry._replace(name=by_parts.setdefault(_parts(entry.name), entry.name))  # whatever its spelling
            known = self._images.setdefault(image.name, image)
            if known.size != image.size:
                raise DataError(f"{self.path} has two images {image.name}, of {known.size} and {image.size}.")
            if names.setdefault(image.id, image.name) != image.name:
                raise DataError(
                    f"{self.path} has two images of id {image.id}, {names[image.id]} and {image.name}, so that their "
                    "annotations cannot be told apart."
                )
            if image.id not in by_id:
                ids.setdefault(image.name, []).append(image.id)
                by_id[image.id] = None if known is not image and duplicates == "first" else known
        several = {name: some for name, some in ids.items() if len(some) > 1}
        if several and duplicates is None:
            name, some = next(iter(several.items()))
            raise DataError(
                f"{self.path} has {len(several)} images under several ids, such as {name} under "
                f"{', '.join(map(str, some))}. Choose by duplicates='merge' or 'first' (--duplicates)."
            )
        return by_id

    def __repr__(self) -> str:
        return f"CocoMasks({str(self.path)!r}, {len(self)} image{'s' * (len(self) != 1)})"

    def __len__(self) -> int:
        """The number of images, with annotations or without."""
        return len(self._images)

    def __iter__(self) -> Iterator[str]:
        """The file's names of images."""
        return iter(self._images)

    def __contains__(self, key: object) -> bool:
        """Whether the file has an image, found as ``masks[key]`` finds it."""
        try:
            self.find(str(key))
        except DataError:
            return False
        return True

    def find(self, key: str | Path) -> str:
        """Return the file's name of an image: the longest one that ends its path, or the only one that its path ends.

        Raises:
            MissingKeyError: No such image; the nearest name is named.
            DataError: Several such images.
        """
        parts = _parts(str(key))
        ends = {name: _parts(name) for name in self._by_end.get(parts[-1] if parts else "", ())}
        if self.match == "name":
            fitting = list(ends)
        else:
            exact = [name for name, own in ends.items() if parts[-len(own) :] == own]
            fitting = [max(exact, key=lambda name: len(ends[name]))] if exact else []
            fitting = fitting or [name for name, own in ends.items() if own[-len(parts) :] == parts]
        if len(fitting) > 1:
            raise DataError(f"{self.path} has {len(fitting)} images of that name: {', '.join(fitting[:3])}.")
        if not fitting:
            raise MissingKeyError(f"{self.path} has no image {key}.{self._nearest(key, list(ends))}")
        return fitting[0]

    def _nearest(self, key: str | Path, same_end: list[str]) -> str:
        """Return a hint with the name of the file that is nearest to an image's."""
        if same_end:
            return f" It has {same_end[0]}, in another folder: match='name' (--match name) matches names alone."
        near = difflib.get_close_matches(Path(str(key)).name, list(self._by_end)[:_MOST_COMPARED], 1)
        return f" Its nearest name is {self._by_end[near[0]][0]}." if near else ""

    def __getitem__(self, key: str | Path) -> MaskSet:
        """The masks of an image, by its name in the file, or a path that ends in it; there may be none.

        Raises:
            DataError: No such image, or a damaged annotation, which is named.
        """
        image = self._images[self.find(key)]
        try:
            return MaskSet.from_coco([*image.annotations.values()], size=image.size, iscrowd=self.iscrowd)
        except RegiontokError as error:
            raise DataError(f"{self.path}, {image.name}: {error}") from error

    def read(self, key: str | Path, size: Size | None = None) -> MaskSet:
        """Return the masks of an image, as ``masks[key]`` does; the file gives its size."""
        return self[key]

    def annotations(self, key: str | Path) -> dict[int, Mapping[str, Any]]:
        """The annotations of an image as they are, by their numbers in the file; found as ``masks[key]`` finds them."""
        return dict(self._images[self.find(key)].annotations)

    def size(self, key: str | Path) -> Size | None:
        """An image's height and width as the file tells them, if it does; found as ``masks[key]`` finds it."""
        return self._images[self.find(key)].size


class _Image(NamedTuple):
    """An image of a file of annotations, and those that are its own."""

    id: Any
    name: str
    size: Size | None
    annotations: dict[int, Mapping[str, Any]]


def _read(path: Path) -> tuple[list[_Image], list[dict[str, Any]], dict[Any, str]]:
    """Images, annotations and categories of a file, checked for what tells them apart."""
    if path.is_file():
        with path.open("rb") as file:
            try:
                name_format(file.read(100).decode(errors="replace"))
            except RegiontokError as error:
                raise DataError(f"{path}: {error}") from error
    data = read_json(path)
    try:
        if not isinstance(data, dict) or not {"images", "annotations"} <= data.keys():
            name_format(data[0] if isinstance(data, list) and data else data)
            raise DataError("it must be an object with images and annotations.")
        images = [_Image(one["id"], _name_of(one), _size_of(one), {}) for one in data["images"]]
        annotations = [dict(one) for one in data["annotations"]]
        for number, one in enumerate(annotations):
            if "image_id" not in one:
                raise DataError(f"annotation {number} has no image_id.")
        for value in [*(one.id for one in images), *(one["image_id"] for one in annotations)]:
            hash(value)
        categories = {one["id"]: str(one["name"]) for one in data.get("categories") or () if "name" in one}
    except RegiontokError as error:
        raise DataError(f"{path} is no file of COCO annotations: {error}") from error
    except KeyError as error:
        raise DataError(f"{path} is no file of COCO annotations: an entry lacks {error}.") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{path} is no file of COCO annotations: {error}.") from error
    return images, annotations, categories


def is_bare(segmentation: Any) -> bool:
    """Return whether a segmentation is empty: no polygon, only empty ones, or an empty object."""
    empty = segmentation in (None, [], {})
    return empty or (isinstance(segmentation, list) and not any(segmentation))


def _parts(name: str) -> tuple[str, ...]:
    """Return the parts of a path, also of one from Windows, without a drive, a root and leading dots."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    start = 0
    while start < len(parts) and (parts[start] in ("/", "//", ".", "..") or _is_drive(parts[start])):
        start += 1
    return parts[start:]


def _is_drive(part: str) -> bool:
    return len(part) == 2 and part[1] == ":" and part[0].isalpha()


def _name_of(image: Mapping[str, Any]) -> str:
    """The name of an image; LVIS has its address alone, whose end is COCO's folder and name."""
    name = str(image["file_name"]) if "file_name" in image else "/".join(str(image["coco_url"]).split("/")[-2:])
    if not _parts(name):
        raise DataError(f"image {image['id']} has an empty file_name.")
    return name


def _size_of(image: Mapping[str, Any]) -> Size | None:
    if image.get("height") is None or image.get("width") is None:
        return None
    sides = [
        int(side) if isinstance(side, float) and side.is_integer() else side
        for side in (image["height"], image["width"])
    ]
    return check_size(f"image {image.get('file_name')}: size", sides)
