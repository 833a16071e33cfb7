"""COCO's masks as runs: RLE, polygons and annotations.

`regiontok.MaskSet.from_coco` uses it. Files of annotations are read by `regiontok.masks.CocoMasks`.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from regiontok._checks import check_size
from regiontok._kernels import polygons, rle
from regiontok._values import check_choice
from regiontok.choices import CROWDS
from regiontok.errors import DTypeError, RegiontokError, ShapeError, ValueRangeError
from regiontok.geometry import Size
from regiontok.runs import Runs, describe, select_masks, to_int64, to_numbers, whole_number

_MOST_SIDE, _MOST_PIXELS = 2**20, 2**30
"""Limits of an image's size; a damaged RLE with a larger one would allocate too much memory."""


def from_coco(masks: Sequence[Mapping[str, Any] | Sequence[Any]], size: Size | None, iscrowd: str) -> Runs:
    """Parse masks in COCO's forms; see `MaskSet.from_coco`."""
    check_choice("iscrowd", iscrowd, CROWDS)
    if isinstance(masks, Mapping | str | bytes) or not isinstance(masks, Sequence):
        reject_foreign_formats(masks)
        raise DTypeError(
            f"masks must be a list with one COCO RLE, polygons or annotation per mask; got {describe(masks)}."
        )
    annotations = [_parse(place, mask) for place, mask in enumerate(masks)]
    if iscrowd == "drop":
        annotations = [annotation for annotation in annotations if not annotation.crowd]
    size = _common_size(annotations, size)
    encoded = [annotation for annotation in annotations if annotation.is_rle]
    drawn = [annotation for annotation in annotations if not annotation.is_rle]
    parts = [read(group, size) for read, group in ((_read_runs, encoded), (_fill, drawn)) if group]
    runs, offsets = parts[0] if parts else (np.empty(0, np.uint32), np.zeros(1, np.int64))
    if len(parts) == 2:
        order = np.argsort([annotation.place for annotation in encoded + drawn])
        runs = np.concatenate([part[0] for part in parts])
        runs, offsets = select_masks(runs, np.concatenate([parts[0][1], parts[0][1][-1] + parts[1][1][1:]]), order)
    values = {}
    for name, key in (("ids", "id"), ("categories", "category_id")):
        integers = [whole_number(annotation.fields.get(key)) for annotation in annotations]
        if integers and all(value is not None for value in integers):
            values[name] = to_int64(key, integers)
    if any("score" in annotation.fields for annotation in annotations):
        scores = [annotation.fields.get("score", np.nan) for annotation in annotations]
        values["scores"] = to_numbers("score", scores)
    return Runs(size, runs, offsets, values)


class _Annotation(NamedTuple):
    """A mask in COCO's form.

    Attributes:
        place: Index in the list.
        fields: The annotation; empty for a bare RLE or polygons.
        segmentation: The RLE, or the polygons.
        is_rle: Whether the segmentation is an RLE.
    """

    place: int
    fields: Mapping[str, Any]
    segmentation: Any
    is_rle: bool

    @property
    def crowd(self) -> bool:
        """Whether the annotation marks a crowd; 0 and 1 may also be strings."""
        value = self.fields.get("iscrowd")
        if value is None:
            return False
        numbers = {"0": 0, "1": 1} if isinstance(value, str) else {0: 0, 1: 1}
        if not isinstance(value, str | Real | np.bool_) or value not in numbers:
            raise DTypeError(f"{self.name}: iscrowd must be 0 or 1; got {describe(value)}.")
        return bool(numbers[value])  # type: ignore[index]  # a key, as checked

    @property
    def name(self) -> str:
        """Name of the mask in errors."""
        number = self.fields.get("id")
        return f"mask {self.place}" + (f" (annotation {number})" if number is not None else "")


_NO_FIELDS: Mapping[str, Any] = {}


def _parse(place: int, mask: Any) -> _Annotation:
    """Return a mask by its form."""
    if type(mask) is dict or isinstance(mask, Mapping):
        if "counts" in mask and "size" in mask:
            return _Annotation(place, _NO_FIELDS, mask, True)
        segmentation = mask.get("segmentation")
        if isinstance(segmentation, Mapping):
            if "counts" in segmentation and "size" in segmentation:
                return _Annotation(place, mask, segmentation, True)
        elif isinstance(segmentation, Sequence) and not isinstance(segmentation, str | bytes):
            return _Annotation(place, mask, segmentation, False)
    elif isinstance(mask, Sequence) and not isinstance(mask, str | bytes):
        return _Annotation(place, _NO_FIELDS, mask, False)
    reject_foreign_formats(mask)
    name = _Annotation(place, mask if isinstance(mask, Mapping) else _NO_FIELDS, None, False).name
    raise DTypeError(
        f'{name} must be a COCO RLE, {{"size": [height, width], "counts": ...}}, a list of polygons, or an '
        f"annotation with segmentation; got {describe(mask)}."
    )


def _common_size(masks: Sequence[_Annotation], image_size: Size | None) -> Size:
    """Return the size of all masks; reject masks that differ."""
    size = image_size
    if size is not None:
        size = check_size("size", size)
        if _is_too_large(size):
            raise ValueRangeError(f"there is no image of {size[0]} x {size[1]} pixels. The size is damaged.")
    last: list[int] | None = None
    for mask in masks:
        if not mask.is_rle:
            continue
        value = mask.segmentation["size"]
        if type(value) is list and value == last:  # usually all sizes are equal
            continue
        its_size = check_size(f"{mask.name}: size", value)
        if _is_too_large(its_size):
            raise ValueRangeError(
                f"{mask.name}: there is no image of {its_size[0]} x {its_size[1]} pixels. Its size is damaged."
            )
        if size is None:
            size = its_size
        if its_size != size:
            expected = "the image's" if image_size is not None else "that of mask 0"
            raise ShapeError(f"{mask.name}: size must be {expected}, {size}; got {its_size}.")
        last = [*its_size]
    if size is None:
        reason = "polygons have no image size" if masks else "without a mask the image's size is not known"
        raise ShapeError(f"{reason}; pass size=(height, width), or sizes with several images.")
    return size


def _is_too_large(size: Size) -> bool:
    return max(size) > _MOST_SIDE or size[0] * size[1] > _MOST_PIXELS


def _read_runs(masks: Sequence[_Annotation], size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Return runs and offsets of compressed and uncompressed RLE."""
    texts = [mask.segmentation["counts"] for mask in masks]
    texts = [text if type(text) is bytes else _text(mask.name, text) for mask, text in zip(masks, texts, strict=True)]
    lengths = np.cumsum([len(text) for text in texts], dtype=np.int64)
    text = np.frombuffer(b"".join(texts), np.uint8)
    bounds = np.concatenate([[0], lengths]).astype(np.int64)
    wrong = np.flatnonzero((text < 48) | (text > 111))
    if len(wrong):
        mask = int(np.searchsorted(bounds, wrong[0], side="right")) - 1
        raise ValueRangeError(
            f"{masks[mask].name}: {chr(text[wrong[0]])!r} is not a character of compressed RLE. It is damaged."
        )
    offsets = np.empty(len(masks) + 1, np.int64)
    cut = rle.count_runs(text, bounds, offsets)
    if cut >= 0:
        raise ValueRangeError(f"{masks[cut].name}: its compressed RLE is cut short within a number.")
    runs = np.empty(offsets[-1], np.uint32)
    problem, mask, value = rle.decompress(text, bounds, offsets, runs)
    if problem:
        fault = f"has a run of {value}" if problem == rle.NEGATIVE else "has a run beyond 32 bits"
        raise ValueRangeError(f"{masks[mask].name}: its RLE {fault}. It is damaged.")
    total, area = np.empty((2, len(masks)), np.int64)
    rle.sum_runs(runs, offsets, total, area)
    unequal = np.flatnonzero(total != size[0] * size[1])
    if len(unequal):
        raise ValueRangeError(
            f"{masks[unequal[0]].name}: the counts of an RLE must add up to its size, {size[0]} x {size[1]} = "
            f"{size[0] * size[1]}; they add up to {total[unequal[0]]}. It is damaged, or its size is [width, height]."
        )
    return runs, offsets


def _text(name: str, counts: Any) -> bytes:
    """Return the counts of a mask in compressed form."""
    if isinstance(counts, bytes):
        return counts
    if isinstance(counts, str):
        return counts.encode(errors="replace")  # the caller rejects characters that are not ASCII
    try:
        runs = np.asarray(counts)
        if runs.ndim != 1 or (len(runs) and not np.issubdtype(runs.dtype, np.integer)):
            raise ValueError
    except ValueError:
        raise DTypeError(f"{name}: counts must be bytes, str, or a list of run lengths.") from None
    if len(runs) and (runs.min() < 0 or runs.max() >= 2**32):
        raise ValueRangeError(f"{name}: run lengths must be from 0 to 2**32 - 1; got {runs.min()}, {runs.max()}.")
    text, bounds = np.empty(7 * len(runs), np.uint8), np.empty(2, np.int64)
    rle.compress(runs.astype(np.uint32), np.array([0, len(runs)]), text, bounds)
    return text[: bounds[1]].tobytes()


def _fill(masks: Sequence[_Annotation], size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Return runs and offsets of masks of polygons."""
    lines = [_polygons(mask) for mask in masks]
    first = np.cumsum([0, *(len(group) for group in lines)])
    flat = list(chain.from_iterable(lines))
    bounds = np.cumsum([0, *(len(line) // 2 for line in flat)])
    try:
        corners = np.array(list(chain.from_iterable(flat)))
        if corners.ndim != 1 or corners.dtype.kind not in "iuf":
            raise ValueError
    except (ValueError, TypeError):
        raise _first_error(masks, size, "a polygon must be a list of numbers, [x, y, x, y, ...]") from None
    if not (np.abs(corners.astype(float)) <= _MOST_SIDE).all():  # also false for NaN
        raise _first_error(masks, size, f"a polygon's corners must lie within {_MOST_SIDE} pixels of the image")
    fine = (5 * corners.astype(float) + 0.5).astype(np.int64)  # rounded to a fifth of a pixel, as COCO does
    x, y = np.ascontiguousarray(fine[::2]), np.ascontiguousarray(fine[1::2])
    counts = np.empty(len(flat), np.int64)
    polygons.count_crossings(x, y, bounds, size[1], counts)
    starts = np.concatenate([[0], counts.cumsum()])
    positions = np.empty(starts[-1], np.int64)
    polygons.crossings(x, y, bounds, size[1], size[0], starts, positions)
    offsets = np.empty(len(masks) + 1, np.int64)
    runs = np.empty(len(positions) + 2 * len(masks), np.uint32)
    polygons.union(positions, starts, first, size[0] * size[1], offsets, runs)
    return runs[: offsets[-1]], offsets


def _polygons(mask: _Annotation) -> Sequence[Sequence[float]]:
    """Return the polygons of a mask; their numbers are checked later."""
    lines = mask.segmentation
    if not lines:
        raise ShapeError(f"{mask.name} has no polygon: its segmentation is empty. Leave it out.")
    for line in lines:
        is_flat_array = isinstance(line, np.ndarray) and line.ndim == 1
        if not is_flat_array and (not isinstance(line, Sequence) or isinstance(line, str | bytes)):
            raise DTypeError(
                f"{mask.name}: its polygons must be a list of lists, [[x, y, x, y, ...]]; got {describe(lines)}. Pass "
                "a single polygon as a list with one entry."
            )
        if len(line) == 4:
            raise ShapeError(f"{mask.name}: 4 numbers are a box or two points; a polygon has three points or more.")
        if len(line) < 6 or len(line) % 2:
            hint = " Pass the points of a polygon as one flat list, not as pairs." if len(line) == 2 else ""
            raise ShapeError(
                f"{mask.name}: a polygon has three points or more, [x, y, x, y, x, y, ...]; got {len(line)} "
                f"numbers.{hint}"
            )
    return lines


def _first_error(masks: Sequence[_Annotation], size: Size, problem: str) -> RegiontokError:
    """Return the error of the first mask that has one."""
    for mask in masks if len(masks) > 1 else ():
        try:
            _fill([mask], size)
        except RegiontokError as error:
            return error
    return ValueRangeError(f"{masks[0].name}: {problem}.")


def reject_foreign_formats(data: Any) -> None:
    """Reject data of tools whose format is not COCO's, by the name of the tool."""
    if isinstance(data, str | bytes) and data.lstrip()[:1] in ("<", b"<"):
        raise DTypeError(_EXPORT.format(tool="CVAT's XML"))
    if not isinstance(data, Mapping):
        return
    value = data.get("value")
    if {"rle", "left", "top"} <= data.keys():
        raise DTypeError(_EXPORT.format(tool="a mask of CVAT, whose RLE is row by row within a box"))
    if "original_width" in data or (isinstance(value, Mapping) and value.get("format") == "rle"):
        raise DTypeError(_EXPORT.format(tool="a brush mask of Label Studio"))
    if {"images", "annotations"} <= data.keys():
        raise DTypeError(
            "this is a whole file of COCO annotations. Take those of one image, or read it with "
            "regiontok.masks.CocoMasks (--coco on the command line)."
        )
    if {"image", "annotations"} <= data.keys():
        raise DTypeError(
            "this is a whole file of SA-1B. Take its annotations, or read it with regiontok.MaskSet.of or "
            "regiontok.masks.MaskFiles (--mask-files on the command line)."
        )
    if {"result", "annotations"} & data.keys():
        raise DTypeError(_EXPORT.format(tool="a task of Label Studio"))


_EXPORT = "this is {tool}, not a COCO annotation. Export it as COCO, or see docs/annotations.md."
