"""Masks from a COCO annotation file, matched to images by file name."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from regiontok._checks import check_size
from regiontok._files import read_json
from regiontok._values import check_choice
from regiontok.choices import CROWDS, DUPLICATES, MATCHES
from regiontok.coco_format import reject_foreign_formats
from regiontok.errors import DataError, MissingKeyError, RegiontokError
from regiontok.geometry import Size
from regiontok.maskset import MaskSet

_MAX_COMPARED = 10_000
"""Maximum number of names that are compared to suggest a similar one."""


class CocoMasks:
    """A mapping from image file names to masks, read from a COCO file such as ``instances_val2017.json``.

    Annotations are matched to images by file name: one path must be a suffix of the other, and the match must be
    unique. Windows paths are accepted: backslashes become slashes; drives and leading ``..`` are removed.

    Args:
        path: A JSON file with ``images``, ``annotations`` and optionally ``categories``.
        iscrowd: ``keep``, or ``drop`` to omit crowd annotations.
        duplicates: How to handle an image that has several image ids, for example one per annotator: ``merge`` the
            annotations, or use those of the ``first`` id. None raises an error.
        match: ``path`` compares whole paths, ``name`` only file names.

    Attributes:
        categories: Category names by id, if the file has any.
        without_image: Indices of the annotations whose ``image_id`` is not listed in ``images``.
        without_segmentation: Indices of the annotations without a segmentation, such as box-only annotations.

    Raises:
        DataError: The file does not exist or is not a COCO annotation file. Two images have the same id, or one image
            has two sizes. An image has several ids and ``duplicates`` is None.

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
        self.without_image: list[int] = []
        self.without_segmentation: list[int] = []
        self._images: dict[str, _Image] = {}
        by_id = self._index_images(images, duplicates)
        for index, annotation in enumerate(annotations):
            if is_empty_segmentation(annotation.get("segmentation")):
                self.without_segmentation.append(index)
            elif annotation["image_id"] not in by_id:
                self.without_image.append(index)
            elif (image := by_id[annotation["image_id"]]) is not None:
                image.annotations[index] = annotation
        self._paths: dict[str, list[str]] = {}
        """Image names by the last part of their paths."""
        for name in self._images:
            self._paths.setdefault(_parts(name)[-1], []).append(name)

    def _index_images(self, images: list["_Image"], duplicates: str | None) -> dict[Any, "_Image | None"]:
        """Store the images by name, and return a dict id -> image.

        The value is None for ids that ``duplicates="first"`` skips.
        """
        by_id: dict[Any, _Image | None] = {}
        ids: dict[str, list[Any]] = {}
        names: dict[Any, str] = {}
        by_parts: dict[tuple[str, ...], str] = {}
        for entry in images:
            # spellings that differ only in slashes or drive share one name
            image = entry._replace(name=by_parts.setdefault(_parts(entry.name), entry.name))
            first = self._images.setdefault(image.name, image)
            if first.size != image.size:
                raise DataError(f"{self.path} lists {image.name} with two sizes, {first.size} and {image.size}.")
            if names.setdefault(image.id, image.name) != image.name:
                raise DataError(
                    f"{self.path} has two images with id {image.id}, {names[image.id]} and {image.name}. Ids of images "
                    "must be unique."
                )
            if image.id not in by_id:
                ids.setdefault(image.name, []).append(image.id)
                by_id[image.id] = None if first is not image and duplicates == "first" else first
        repeated = {name: image_ids for name, image_ids in ids.items() if len(image_ids) > 1}
        if repeated and duplicates is None:
            name, image_ids = next(iter(repeated.items()))
            raise DataError(
                f"{self.path} lists {len(repeated)} images under several ids, such as {name} under "
                f"{', '.join(map(str, image_ids))}. Pass duplicates='merge' or 'first' (--duplicates)."
            )
        return by_id

    def __repr__(self) -> str:
        return f"CocoMasks({str(self.path)!r}, {len(self)} image{'s' * (len(self) != 1)})"

    def __len__(self) -> int:
        """Return the number of images, including those without annotations."""
        return len(self._images)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the images in the file."""
        return iter(self._images)

    def __contains__(self, key: object) -> bool:
        """Return whether `find` returns an image for ``key``."""
        try:
            self.find(str(key))
        except DataError:
            return False
        return True

    def find(self, key: str | Path) -> str:
        """Return the name of an image in the file, from the path of the image.

        Prefer the longest name that ``key`` ends with. Otherwise return the one name that ends with ``key``. With
        ``match="name"`` return the one name whose last part is the last part of ``key``.

        Raises:
            MissingKeyError: No name matches; the message suggests a similar name.
            DataError: Several names match.
        """
        key_parts = _parts(str(key))
        candidates = {name: _parts(name) for name in self._paths.get(key_parts[-1] if key_parts else "", ())}
        if self.match == "name":
            matches = list(candidates)
        else:
            suffixes = [name for name, parts in candidates.items() if key_parts[-len(parts) :] == parts]
            matches = [max(suffixes, key=lambda name: len(candidates[name]))] if suffixes else []
            matches = matches or [name for name, parts in candidates.items() if parts[-len(key_parts) :] == key_parts]
        if len(matches) > 1:
            remedy = "Pass a longer path." if self.match == "path" else "Pass match='path' (--match path)."
            raise DataError(
                f"{self.path} has {len(matches)} images that match {key}: {', '.join(matches[:3])}. {remedy}"
            )
        if not matches:
            raise MissingKeyError(f"{self.path} has no image {key}.{self._suggest(key, list(candidates))}")
        return matches[0]

    def _suggest(self, key: str | Path, same_name: list[str]) -> str:
        """Return a hint with a name in the file that is similar to ``key``."""
        if same_name:
            return (
                f" The file lists {same_name[0]}, in a different folder. Pass match='name' (--match name) to ignore "
                "folders."
            )
        similar = difflib.get_close_matches(Path(str(key)).name, list(self._paths)[:_MAX_COMPARED], 1)
        return f" Did you mean {self._paths[similar[0]][0]}?" if similar else ""

    def __getitem__(self, key: str | Path) -> MaskSet:
        """Return the masks of the image that ``find(key)`` returns; empty if it has no annotations.

        Raises:
            DataError: No image or several images match, an annotation is invalid, or the size of the image is missing.
        """
        return self.read(key)

    def read(self, key: str | Path, size: Size | None = None) -> MaskSet:
        """Return ``masks[key]``; ``size`` is used if the file has no height and width for the image."""
        image = self._images[self.find(key)]
        try:
            return MaskSet.from_coco([*image.annotations.values()], size=image.size or size, iscrowd=self.iscrowd)
        except RegiontokError as error:
            raise DataError(f"{self.path}, {image.name}: {error}") from error

    def annotations(self, key: str | Path) -> dict[int, Mapping[str, Any]]:
        """Return the unchanged annotations of the image that ``find(key)`` returns, by index in the file."""
        return dict(self._images[self.find(key)].annotations)

    def size(self, key: str | Path) -> Size | None:
        """Return the height and width of the image that ``find(key)`` returns; None if they are not in the file."""
        return self._images[self.find(key)].size


class _Image(NamedTuple):
    """An image of an annotation file, and its annotations."""

    id: Any
    name: str
    size: Size | None
    annotations: dict[int, Mapping[str, Any]]


def _read(path: Path) -> tuple[list[_Image], list[dict[str, Any]], dict[Any, str]]:
    """Read the images, annotations and categories of a file, and check their ids and names."""
    if path.is_file():
        with path.open("rb") as file:
            try:
                reject_foreign_formats(file.read(100).decode(errors="replace"))
            except RegiontokError as error:
                raise DataError(f"{path}: {error}") from error
    data = read_json(path)
    try:
        if not isinstance(data, dict) or not {"images", "annotations"} <= data.keys():
            reject_foreign_formats(data[0] if isinstance(data, list) and data else data)
            raise DataError("expected an object with images and annotations.")
        images = _parse("images", data["images"], _parse_image)
        annotations = [dict(entry) for entry in data["annotations"]]
        for index, annotation in enumerate(annotations):
            if "image_id" not in annotation:
                raise DataError(f"annotation {index} has no image_id.")
        for image_id in [*(image.id for image in images), *(annotation["image_id"] for annotation in annotations)]:
            hash(image_id)  # raises TypeError for lists and objects
        named = [entry for entry in data.get("categories") or () if "name" in entry]
        categories = dict(_parse("categories", named, lambda entry: (entry["id"], str(entry["name"]))))
    except RegiontokError as error:
        raise DataError(f"{path} is not a COCO annotation file: {error}") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{path} is not a COCO annotation file: {error}.") from error
    return images, annotations, categories


def _parse(list_name: str, entries: Iterable[Any], parse: Callable[[Any], Any]) -> list[Any]:
    """Parse the entries of a list in the file, and name the entry and the field if a field is missing."""
    parsed = []
    for index, entry in enumerate(entries):
        try:
            parsed.append(parse(entry))
        except KeyError as error:
            raise DataError(f"entry {index} of {list_name} has no field {error}.") from error
    return parsed


def is_empty_segmentation(segmentation: Any) -> bool:
    """Return whether a segmentation is None, an empty object, an empty list, or a list of empty polygons."""
    return segmentation in (None, {}) or (isinstance(segmentation, list) and not any(segmentation))


def _parts(name: str) -> tuple[str, ...]:
    """Split a POSIX or Windows path into parts. Drop the drive, the root and leading ``.`` or ``..``."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    start = 0
    while start < len(parts) and (parts[start] in ("/", "//", ".", "..") or _is_drive(parts[start])):
        start += 1
    return parts[start:]


def _is_drive(part: str) -> bool:
    return len(part) == 2 and part[1] == ":" and part[0].isalpha()


def _parse_image(image: Mapping[str, Any]) -> _Image:
    return _Image(image["id"], _name_of(image), _size_of(image), {})


def _name_of(image: Mapping[str, Any]) -> str:
    """Return the name of an image. LVIS has only coco_url; its last two parts are the COCO folder and file name."""
    is_lvis = "file_name" not in image and "coco_url" in image
    name = "/".join(str(image["coco_url"]).split("/")[-2:]) if is_lvis else str(image["file_name"])
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
