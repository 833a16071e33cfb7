"""Masks that people have: a file of COCO annotations, or a folder of label maps, by photo.

Which photo annotations are of is told by names: of a photo's path and the name that the file gives it one ends in the
other, and of no other name; or the path ends in that of its label map but for the suffix.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image

from regiontok._checks import check_choice, check_size
from regiontok._files import read_json
from regiontok.annotations import name_format
from regiontok.choices import CROWDS
from regiontok.errors import CheckpointError, RegiontokError
from regiontok.geometry import Size
from regiontok.maskset import MaskSet
from regiontok.photos import explain_photo, one_frame

_MAPS = (".png", ".tif", ".tiff", ".bmp")


class CocoMasks:
    """Masks of photos in a file of COCO annotations, such as ``instances_val2017.json``, by file name.

    Args:
        path: A JSON file with ``images``, ``annotations`` and perhaps ``categories``.
        iscrowd: ``keep``, or ``drop`` to leave crowds out.

    Attributes:
        categories: Names by id, where the file has them.
        unplaced: Annotations of images that the file does not have, which are no photo's: their numbers in the file.
        bare: Annotations without a segmentation, such as boxes, which are no masks: their numbers in the file.

    Raises:
        CheckpointError: No such file, no COCO annotations, an image twice, of two sizes, or two images of one id.

    Example:
        >>> masks = CocoMasks("instances_val2017.json")  # doctest: +SKIP
        >>> masks["val2017/000000000139.jpg"]  # doctest: +SKIP
        MaskSet(20 masks of 426 x 640 pixels)
    """

    def __init__(self, path: str | Path, *, iscrowd: str = "keep") -> None:
        check_choice("iscrowd", iscrowd, CROWDS)
        self.path = Path(path)
        self.iscrowd = iscrowd
        images, annotations, self.categories = _read(self.path)
        self.unplaced: list[int] = []
        self.bare: list[int] = []
        self._images: dict[str, _Image] = {}
        by_id: dict[Any, _Image] = {}
        for image in images:
            known = self._images.setdefault(image.name, image)
            if known.size != image.size:
                raise CheckpointError(f"{self.path} has two images {image.name}, of {known.size} and {image.size}.")
            if by_id.setdefault(image.id, known) is not known:
                raise CheckpointError(
                    f"{self.path} has two images of id {image.id}, {by_id[image.id].name} and {image.name}: whose its "
                    "annotations are cannot be told."
                )
        for number, annotation in enumerate(annotations):
            if annotation.get("segmentation") in (None, []):
                self.bare.append(number)
            elif annotation["image_id"] in by_id:
                by_id[annotation["image_id"]].annotations[number] = annotation
            else:
                self.unplaced.append(number)
        self._by_end: dict[str, list[str]] = {}
        for name in self._images:
            self._by_end.setdefault(_parts(name)[-1], []).append(name)

    def __repr__(self) -> str:
        return f"CocoMasks({str(self.path)!r}, {len(self)} photo{'s' * (len(self) != 1)})"

    def __len__(self) -> int:
        """The number of photos, with annotations or without."""
        return len(self._images)

    def __iter__(self) -> Iterator[str]:
        """The file's names of photos."""
        return iter(self._images)

    def __contains__(self, key: object) -> bool:
        """Whether the file has a photo, found as ``masks[key]`` finds it."""
        try:
            self.find(str(key))
        except CheckpointError:
            return False
        return True

    def find(self, key: str | Path) -> str:
        """The file's name of a photo: the longest one that ends its path, or else the only one that its path ends.

        Raises:
            CheckpointError: No such photo, or several.
        """
        parts = _parts(str(key))
        ends = {name: _parts(name) for name in self._by_end.get(parts[-1] if parts else "", ())}
        exact = [name for name, own in ends.items() if parts[-len(own) :] == own]
        fitting = [max(exact, key=lambda name: len(ends[name]))] if exact else []
        fitting = fitting or [name for name, own in ends.items() if own[-len(parts) :] == parts]
        if len(fitting) != 1:
            several = f"{len(fitting)} images of that name: {', '.join(fitting[:3])}" if fitting else f"no image {key}"
            raise CheckpointError(f"{self.path} has {several}.")
        return fitting[0]

    def __getitem__(self, key: str | Path) -> MaskSet:
        """The masks of a photo, by its name in the file, or a path that ends in it; there may be none.

        Raises:
            CheckpointError: No such photo, or a damaged annotation, which is named.
        """
        image = self._images[self.find(key)]
        try:
            return MaskSet.from_coco([*image.annotations.values()], size=image.size, iscrowd=self.iscrowd)
        except RegiontokError as error:
            raise CheckpointError(f"{self.path}, {image.name}: {error}") from error

    def annotations(self, key: str | Path) -> dict[int, Mapping[str, Any]]:
        """The annotations of a photo as they are, by their numbers in the file; found as ``masks[key]`` finds them."""
        return dict(self._images[self.find(key)].annotations)

    def size(self, key: str | Path) -> Size | None:
        """A photo's height and width as the file tells them, if it does; found as ``masks[key]`` finds it."""
        return self._images[self.find(key)].size


class LabelMaps:
    """Masks of photos in a folder of label maps: PNG, TIFF or BMP of the photos' names, of palettes or integers.

    Args:
        folder: With ``a/b.png`` for a photo whose path ends in ``a/b`` and any suffix; the longest such name counts.
        ignore: Labels that are no masks, such as ``(0, 255)`` in VOC.
        replace: A part of photos' names and what label maps have in its place, such as ``("_leftImg8bit",
            "_gtFine_labelIds")`` for Cityscapes.

    Raises:
        CheckpointError: No such folder.
    """

    def __init__(
        self, folder: str | Path, *, ignore: int | Sequence[int] = (), replace: Sequence[str] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.ignore = (ignore,) if isinstance(ignore, int) else tuple(ignore)
        self.replace = None if replace is None else (replace[0], replace[1])
        if not self.folder.is_dir():
            raise CheckpointError(f"there is no folder {folder} of label maps.")

    def __repr__(self) -> str:
        return f"LabelMaps({str(self.folder)!r}, ignore={self.ignore}, replace={self.replace})"

    def find(self, key: str | Path) -> Path:
        """A photo's label map.

        Raises:
            CheckpointError: There is none.
        """
        parts = [part for part in Path(key).parts if part not in (Path(key).anchor, "..")]
        for start in range(len(parts)):
            stem = self.folder.joinpath(*parts[start:]).with_suffix("")
            if self.replace is not None:
                stem = stem.with_name(stem.name.replace(*self.replace) or stem.name)
            for suffix in _MAPS:
                file = stem.with_name(stem.name + suffix)
                if file.is_file():
                    return file
        raise CheckpointError(f"{self.folder} has no label map of {key}, such as {Path(key).stem}.png.")

    def __getitem__(self, key: str | Path) -> MaskSet:
        """The masks of a photo.

        Raises:
            CheckpointError: It has no label map, or one that is damaged or of colours.
        """
        file = self.find(key)
        try:
            with Image.open(file) as picture:
                one_frame(picture)
                return MaskSet.from_labels(picture, ignore=self.ignore)
        except RegiontokError as error:
            raise CheckpointError(f"{file}: {error}") from error
        except Exception as error:  # Pillow's decoders raise all kinds of errors on damaged files
            raise CheckpointError(str(explain_photo(str(file), error))) from error


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
                raise CheckpointError(f"{path}: {error}") from error
    data = read_json(path)
    try:
        if not isinstance(data, dict) or not {"images", "annotations"} <= data.keys():
            name_format(data[0] if isinstance(data, list) and data else data)
            raise CheckpointError("it must be an object with images and annotations.")
        images = [_Image(one["id"], _name_of(one), _size_of(one), {}) for one in data["images"]]
        annotations = [dict(one) for one in data["annotations"]]
        for number, one in enumerate(annotations):
            if "image_id" not in one:
                raise CheckpointError(f"annotation {number} has no image_id.")
        for value in [*(one.id for one in images), *(one["image_id"] for one in annotations)]:
            hash(value)
        categories = {one["id"]: str(one["name"]) for one in data.get("categories") or () if "name" in one}
    except RegiontokError as error:
        raise CheckpointError(f"{path} is no file of COCO annotations: {error}") from error
    except KeyError as error:
        raise CheckpointError(f"{path} is no file of COCO annotations: an entry lacks {error}.") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path} is no file of COCO annotations: {error}.") from error
    return images, annotations, categories


def _parts(name: str) -> tuple[str, ...]:
    """The parts of a path, also of one that was written on Windows."""
    return PurePosixPath(name.replace("\\", "/")).parts


def _name_of(image: Mapping[str, Any]) -> str:
    """The name of an image; LVIS has its address alone, whose end is COCO's folder and name."""
    name = str(image["file_name"]) if "file_name" in image else "/".join(str(image["coco_url"]).split("/")[-2:])
    if not _parts(name):
        raise CheckpointError(f"image {image['id']} has an empty file_name.")
    return name


def _size_of(image: Mapping[str, Any]) -> Size | None:
    if image.get("height") is None or image.get("width") is None:
        return None
    sides = [
        int(side) if isinstance(side, float) and side.is_integer() else side
        for side in (image["height"], image["width"])
    ]
    return check_size(f"image {image.get('file_name')}: size", sides)
