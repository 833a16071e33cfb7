"""What others call masks, read into runs: COCO's RLE, polygons and annotations, SAM's output, label maps, dense masks.

`regiontok.MaskSet` makes sets of them. Files of annotations, and which image they are of, are `regiontok.masks`'s.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regiontok._checks import check_choice, check_readable, check_size
from regiontok._kernels import polygons, rle
from regiontok.choices import CROWDS
from regiontok.errors import AmbiguousShapeWarning, DTypeError, RegiontokError, ShapeError, ValueRangeError
from regiontok.geometry import Size

_MOST_SIDE, _MOST_PIXELS = 2**20, 2**30
"""No image is larger; an RLE that says so would have memory asked for that nothing needs."""
_MOST_LAST, _LEAST_SIDE = 8, 64
"""No image is so narrow where there are so many masks: these are masks that come last."""
_MOST_LABELS = 2**63 - 1


class Runs(NamedTuple):
    """Masks of one image as runs, and what else is known of each.

    Attributes:
        size: Height and width in pixels.
        runs: ``(N,)`` uint32: lengths of all masks' runs, column by column, background first.
        offsets: ``(M + 1,)`` int64: where each mask's runs begin, and the end.
        known: Arrays ``(M,)`` by name: ``scores``, ``stability``, ``ids``, ``categories``; those that came.
    """

    size: Size
    runs: np.ndarray
    offsets: np.ndarray
    known: dict[str, np.ndarray]


def from_coco(masks: Sequence[Mapping[str, Any] | Sequence[Any]], size: Size | None, iscrowd: str) -> Runs:
    """See `MaskSet.from_coco`."""
    check_choice("iscrowd", iscrowd, CROWDS)
    if isinstance(masks, Mapping | str | bytes) or not isinstance(masks, Sequence):
        name_format(masks)
        raise DTypeError(
            f"masks must be a list with one COCO RLE, polygons or annotation per mask; got {_told(masks)}."
        )
    whole = [_annotation(place, one) for place, one in enumerate(masks)]
    if iscrowd == "drop":
        whole = [one for one in whole if not one.crowd]
    size = _one_size(whole, size)
    encoded, drawn = ([one for one in whole if one.is_rle == wanted] for wanted in (True, False))
    parts = [read(some, size) for read, some in ((_read_runs, encoded), (_fill, drawn)) if some]
    runs, offsets = parts[0] if parts else (np.empty(0, np.uint32), np.zeros(1, np.int64))
    if len(parts) == 2:
        order = np.argsort([one.place for one in encoded + drawn])
        runs = np.concatenate([part[0] for part in parts])
        runs, offsets = take(runs, np.concatenate([parts[0][1], parts[0][1][-1] + parts[1][1][1:]]), order)
    known = {}
    for name, key in (("ids", "id"), ("categories", "category_id")):
        given = [_whole(one.annotation.get(key)) for one in whole]
        if given and all(value is not None for value in given):
            known[name] = _integers(key, given)
    if any("score" in one.annotation for one in whole):
        known["scores"] = numbers("score", [one.annotation.get("score", np.nan) for one in whole])
    return Runs(size, runs, offsets, known)


def from_sam(masks: Any, size: Size | None) -> Runs:
    """See `MaskSet.from_sam`."""
    if isinstance(masks, Mapping) and "masks" in masks:
        found, scores = masks["masks"], masks.get("scores")
        if not isinstance(found, Sequence | np.ndarray | Tensor) or isinstance(found, str | bytes):
            raise DTypeError(f"masks of the pipeline must be a list, an array or a tensor; got {_told(found)}.")
        some = len(found) > 0
        dense = as_bytes(found) if some else np.empty((0, *_size_of_none(size)), np.uint8)
        known = {} if scores is None else {"scores": numbers("scores", scores)}
        return _of_size(_dense(dense)._replace(known=known), size)
    if not isinstance(masks, Sequence) or isinstance(masks, str | bytes):
        raise DTypeError(
            "masks must be the list of dicts of SAM2AutomaticMaskGenerator, or the dict with masks and scores of "
            f"transformers' pipeline; got {_told(masks)}."
        )
    for index, one in enumerate(masks):
        if not isinstance(one, Mapping) or "segmentation" not in one:
            raise DTypeError(f"mask {index} must be a dict with segmentation, as SAM2AutomaticMaskGenerator makes it.")
    segmentations = [one["segmentation"] for one in masks]
    if all(isinstance(one, Mapping) for one in segmentations):
        made = from_coco(segmentations, size, "keep")
    else:
        made = _dense(as_bytes(segmentations))
    known = {}
    ids = [_whole(one.get("id")) for one in masks]
    if ids and all(value is not None for value in ids):
        known["ids"] = _integers("id", ids)
    for name, key in (("scores", "predicted_iou"), ("stability", "stability_score")):
        if any(key in one for one in masks):
            known[name] = numbers(key, [one.get(key, np.nan) for one in masks])
    return _of_size(made._replace(known=known), size)


def _of_size(made: Runs, size: Size | None) -> Runs:
    """The same masks; refuses those of another size than the image's."""
    if size is not None and made.size != check_size("size", size):
        raise ShapeError(f"masks must be of the image's size, {tuple(size)}; got {made.size}.")
    return made


def from_labels(labels: Any, ignore: int | Sequence[int]) -> Runs:
    """See `MaskSet.from_labels`; labels are the ``ids``."""
    array = _label_map(labels)
    none = _ignored(ignore)
    values, numbered = np.unique(array, return_inverse=True)
    if array.dtype == np.uint8 and values.tolist() == [0, 255] and not none:
        raise ValueRangeError(
            "a uint8 map of 0 and 255 is one mask and no label map; pass it as mask[None], or say that 0 is none by "
            "ignore=(0,), --ignore 0 on the command line."
        )
    left_out = {-1, *_integers("ignore", none).tolist()}
    if values[0] < -1 and int(values[0]) not in left_out:
        raise ValueRangeError(f"labels must be -1 (no mask) or from 0; got {values[0]}. Leave it out by ignore.")
    if values[-1] > _MOST_LABELS:
        raise ValueRangeError(f"labels must be below 2**63; got {values[-1]}.")
    kept = ~np.isin(values.astype(np.int64), list(left_out))
    numbered = numbered.reshape(array.shape)
    if not kept[1:].all():
        numbered = np.where(kept, kept.cumsum() - 1, -1)[numbered]
    elif not kept[0]:
        numbered = numbered - 1
    count = int(kept.sum())
    offsets = np.empty(count + 1, np.int64)
    rle.count_label_changes(numbered, count, offsets)
    runs = np.empty(offsets[-1], np.uint32)
    rle.encode_labels(numbered, offsets, runs)
    return Runs(_size(array.shape), runs, offsets, {"ids": values[kept].astype(np.int64)})


def from_masks(masks: Any) -> Runs:
    """See `MaskSet.from_masks`."""
    return _dense(as_bytes(masks))


def take(runs: np.ndarray, offsets: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs and offsets of the masks of ``index``, in its order."""
    lengths = np.diff(offsets)[index]
    ends = np.concatenate([[0], lengths.cumsum()])
    within = np.arange(ends[-1]) - np.repeat(ends[:-1], lengths)
    return runs[np.repeat(offsets[index], lengths) + within], ends


def as_bytes(masks: Any) -> np.ndarray:
    """Dense masks as contiguous ``(M, height, width)`` bytes, 0 outside; contiguous bool is not copied or converted."""
    array = _stack(masks)
    if array.ndim != 3 or 0 in array.shape[1:]:
        hint = " A single mask is masks[None]." if array.ndim == 2 else ""
        raise ShapeError(
            f"masks must be (masks, height, width) of an image that is not empty; got {array.shape}.{hint}"
        )
    if array.shape[2] <= _MOST_LAST and min(array.shape[:2]) >= _LEAST_SIDE:
        warnings.warn(
            f"masks of {array.shape} are read as {array.shape[0]} masks of {array.shape[1]} x {array.shape[2]} pixels. "
            "If the masks come last, pass masks.transpose(2, 0, 1).",
            AmbiguousShapeWarning,
            stacklevel=4,
        )
    if array.dtype == np.bool_:
        return np.ascontiguousarray(array).view(np.uint8)
    if array.dtype != np.uint8:
        raise DTypeError(
            f"masks must be bool or uint8; got {array.dtype}. Compare them first, as in masks > 0; a label map is "
            "(height, width)."
        )
    if array.size and array.max() > 1:
        wrong = array[(array != 0) & (array != 255)]
        if len(wrong):
            raise ValueRangeError(
                f"masks of uint8 must be of 0 and 1, or of 0 and 255; got {wrong[0]}. Compare probabilities with a "
                "threshold first; a label map is (height, width)."
            )
        return (array != 0).view(np.uint8)
    return np.ascontiguousarray(array)


def to_numpy(name: str, value: Any, *, fill: int | None = None) -> np.ndarray:
    """An array or tensor as an array; masked entries of a masked array become ``fill``, or are rejected if it is None.

    Raises:
        DTypeError: Something else, or a tensor or array whose entries have no values.
    """
    if isinstance(value, Tensor):
        check_readable(name, value)
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.is_masked(value):
            if fill is None:
                raise DTypeError(f"{name} has masked entries, which have no value. Fill them first: array.filled(...).")
            value = value if fill == 0 else value.astype(np.int64)
            return value.filled(fill)
        return value.data
    if isinstance(value, np.ndarray):
        return value
    raise DTypeError(f"{name} must be an array or a tensor; got {type(value).__name__}.")


def numbers(name: str, values: Any) -> np.ndarray:
    """``(M,)`` float32."""
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
            array = np.asarray(to_numpy(name, values) if isinstance(values, Tensor) else values, np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise DTypeError(f"{name} must be numbers, one per mask; got {_told(values)}.") from error
    return array


def _stack(masks: Any) -> np.ndarray:
    """Dense masks in one array: one already, or a list of ``(height, width)``."""
    if isinstance(masks, str | bytes | Mapping) or not isinstance(masks, Sequence):
        return to_numpy("masks", masks, fill=0)
    if not masks:
        raise ShapeError("an empty list of masks does not tell the image's size. Pass an array (0, height, width).")
    arrays = [to_numpy(f"masks[{index}]", one, fill=0) for index, one in enumerate(masks)]
    for index, one in enumerate(arrays):
        if one.ndim != 2 or one.shape != arrays[0].shape:
            raise ShapeError(
                f"masks of a list must all be (height, width) of one image; masks[0] is {arrays[0].shape}, "
                f"masks[{index}] is {one.shape}."
            )
    return np.stack(arrays)


def _dense(dense: np.ndarray) -> Runs:
    if dense.size and dense.max() > 1:  # bool made by viewing bytes of 255
        dense = (dense != 0).view(np.uint8)
    offsets = np.empty(len(dense) + 1, np.int64)
    rle.count_changes(dense, offsets)
    runs = np.empty(offsets[-1], np.uint32)
    rle.encode(dense, offsets, runs)
    return Runs(_size(dense.shape[1:]), runs, offsets, {})


def _label_map(labels: Any) -> np.ndarray:
    if isinstance(labels, Image.Image):
        if labels.mode not in ("1", "L", "P") and not labels.mode.startswith("I"):
            hint = _COLOURS if labels.mode in ("RGB", "RGBA") else ""
            raise DTypeError(f"{_LABELS}; got a picture of mode {labels.mode}.{hint}")
        labels = np.asarray(labels)
        labels = labels.astype(np.uint8) if labels.dtype == np.bool_ else labels
    array = to_numpy("labels", labels, fill=-1)
    if array.ndim != 2 or 0 in array.shape:
        colours = array.ndim == 3 and array.shape[2] in (3, 4) and array.shape[0] > 1
        hint = _COLOURS if colours else " A single map of a batch is labels[0]." if array.shape[:1] == (1,) else ""
        raise ShapeError(f"{_LABELS} and not empty; got {array.shape}.{hint}")
    if not np.issubdtype(array.dtype, np.integer):
        raise DTypeError(f"a label map must be of integers; got {array.dtype}. A single mask is masks[None].")
    return array


_LABELS = "a label map must be (height, width) of integers"
_COLOURS = (
    " Where colours are ids, as in COCO's panoptic PNG: "
    "rgb = np.asarray(image).astype(int); labels = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]."
)


class _Annotation(NamedTuple):
    """One mask as COCO has it: its place in the list, what came, and its RLE or polygons."""

    place: int
    annotation: Mapping[str, Any]
    segmentation: Any
    is_rle: bool

    @property
    def crowd(self) -> bool:
        """Whether the annotation is of a crowd; tables write 0 and 1 also as text."""
        value = self.annotation.get("iscrowd")
        if value is None:
            return False
        numbers = {"0": 0, "1": 1} if isinstance(value, str) else {0: 0, 1: 1}
        if not isinstance(value, str | Real | np.bool_) or value not in numbers:
            raise DTypeError(f"{self.name}: iscrowd must be 0 or 1; got {_told(value)}.")
        return bool(numbers[value])  # type: ignore[index]  # a key, as checked

    @property
    def name(self) -> str:
        own = self.annotation.get("id")
        return f"mask {self.place}" + (f" (annotation {own})" if own is not None else "")


_NOTHING: Mapping[str, Any] = {}


def _annotation(place: int, one: Any) -> _Annotation:
    """One mask, by its form."""
    if type(one) is dict or isinstance(one, Mapping):
        if "counts" in one and "size" in one:
            return _Annotation(place, _NOTHING, one, True)
        segmentation = one.get("segmentation")
        if isinstance(segmentation, Mapping):
            if "counts" in segmentation and "size" in segmentation:
                return _Annotation(place, one, segmentation, True)
        elif isinstance(segmentation, Sequence) and not isinstance(segmentation, str | bytes):
            return _Annotation(place, one, segmentation, False)
    elif isinstance(one, Sequence) and not isinstance(one, str | bytes):
        return _Annotation(place, _NOTHING, one, False)
    name_format(one)
    named = _Annotation(place, one if isinstance(one, Mapping) else _NOTHING, None, False).name
    raise DTypeError(
        f'{named} must be a COCO RLE, {{"size": [height, width], "counts": ...}}, a list of polygons, or an '
        f"annotation with segmentation; got {_told(one)}."
    )


def _one_size(masks: Sequence[_Annotation], size: Size | None) -> Size:
    """The size that all masks share."""
    given = size
    if size is not None:
        size = check_size("size", size)
        if _is_no_image(size):
            raise ValueRangeError(f"there is no image of {size[0]} x {size[1]} pixels. The size is damaged.")
    last: list[int] | None = None
    for one in masks:
        if not one.is_rle:
            continue
        told = one.segmentation["size"]
        if type(told) is list and told == last:  # most often all are alike
            continue
        own = check_size(f"{one.name}: size", told)
        if _is_no_image(own):
            raise ValueRangeError(f"{one.name}: there is no image of {own[0]} x {own[1]} pixels. Its size is damaged.")
        if size is None:
            size = own
        if own != size:
            of = "the image's" if given is not None else "that of mask 0"
            raise ShapeError(f"{one.name}: size must be {of}, {size}; got {own}.")
        last = [*own]
    if size is None:
        what = "polygons do not tell" if masks else "there is no mask to tell"
        raise ShapeError(f"{what} the image's size; pass size=(height, width), or sizes with several images.")
    return size


def _is_no_image(size: Size) -> bool:
    return max(size) > _MOST_SIDE or size[0] * size[1] > _MOST_PIXELS


def _size_of_none(size: Size | None) -> Size:
    if size is None:
        raise ShapeError("there is no mask to tell the image's size; pass size=(height, width).")
    return check_size("size", size)


def _read_runs(masks: Sequence[_Annotation], size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Runs and offsets of RLE that is compressed, or not, or a mix."""
    texts = [one.segmentation["counts"] for one in masks]
    texts = [text if type(text) is bytes else _text(one.name, text) for one, text in zip(masks, texts, strict=True)]
    text = np.frombuffer(b"".join(texts), np.uint8)
    bounds = np.concatenate([[0], np.cumsum([len(one) for one in texts], dtype=np.int64)]).astype(np.int64)
    wrong = np.flatnonzero((text < 48) | (text > 111))
    if len(wrong):
        mask = int(np.searchsorted(bounds, wrong[0], side="right")) - 1
        raise ValueRangeError(f"{masks[mask].name}: {chr(text[wrong[0]])!r} is in no compressed RLE. It is damaged.")
    offsets = np.empty(len(masks) + 1, np.int64)
    cut = rle.count_runs(text, bounds, offsets)
    if cut >= 0:
        raise ValueRangeError(f"{masks[cut].name}: its compressed RLE is cut short within a number.")
    runs = np.empty(offsets[-1], np.uint32)
    problem, mask, value = rle.decompress(text, bounds, offsets, runs)
    if problem:
        what = f"has a run of {value}" if problem == rle.NEGATIVE else "has a run beyond 32 bits"
        raise ValueRangeError(f"{masks[mask].name}: its RLE {what}. It is damaged.")
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
    """The compressed form of one mask's counts."""
    if isinstance(counts, bytes):
        return counts
    if isinstance(counts, str):
        return counts.encode(errors="replace")  # what is not ASCII is refused by its caller
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
    """Runs and offsets of polygons; those of one mask are joined."""
    lines = [_polygons(one) for one in masks]
    first = np.cumsum([0, *(len(some) for some in lines)])
    flat = list(chain.from_iterable(lines))
    bounds = np.cumsum([0, *(len(one) // 2 for one in flat)])
    try:
        corners = np.array(list(chain.from_iterable(flat)))
        if corners.ndim != 1 or corners.dtype.kind not in "iuf":
            raise ValueError
    except (ValueError, TypeError):
        raise _which(masks, size, "a polygon must be a list of numbers, [x, y, x, y, ...]") from None
    if not (np.abs(corners.astype(float)) <= _MOST_SIDE).all():  # NaN is no less
        raise _which(masks, size, f"a polygon's corners must lie within {_MOST_SIDE} pixels of the image")
    fine = (5 * corners.astype(float) + 0.5).astype(np.int64)  # to the fifth of a pixel, and to zero, as COCO does
    x, y = np.ascontiguousarray(fine[::2]), np.ascontiguousarray(fine[1::2])
    counts = np.empty(len(flat), np.int64)
    polygons.count_crossings(x, y, bounds, size[1], counts)
    places = np.concatenate([[0], counts.cumsum()])
    positions = np.empty(places[-1], np.int64)
    polygons.crossings(x, y, bounds, size[1], size[0], places, positions)
    offsets = np.empty(len(masks) + 1, np.int64)
    runs = np.empty(len(positions) + 2 * len(masks), np.uint32)
    polygons.union(positions, places, first, size[0] * size[1], offsets, runs)
    return runs[: offsets[-1]], offsets


def _polygons(mask: _Annotation) -> Sequence[Sequence[float]]:
    """The polygons of one mask, checked but for their numbers."""
    given = mask.segmentation
    if not given:
        raise ShapeError(f"{mask.name} has no polygon: its segmentation is empty. Leave it out.")
    for one in given:
        flat = isinstance(one, np.ndarray) and one.ndim == 1
        if not flat and (not isinstance(one, Sequence) or isinstance(one, str | bytes)):
            raise DTypeError(
                f"{mask.name}: its polygons must be a list of lists, [[x, y, x, y, ...]]; got {_told(given)}. One "
                "polygon is a list of one."
            )
        if len(one) == 4:
            raise ShapeError(
                f"{mask.name}: 4 numbers are a box or two points, and no polygon, which has three points or more."
            )
        if len(one) < 6 or len(one) % 2:
            pairs = " Points of a polygon come in one flat list, not in pairs." if len(one) == 2 else ""
            raise ShapeError(
                f"{mask.name}: a polygon needs three points or more, [x, y, x, y, x, y, ...]; got {len(one)} numbers."
                + pairs
            )
    return given


def _which(masks: Sequence[_Annotation], size: Size, problem: str) -> RegiontokError:
    """The error of many masks as that of the first one that has it."""
    for one in masks if len(masks) > 1 else ():
        try:
            _fill([one], size)
        except RegiontokError as error:
            return error
    return ValueRangeError(f"{masks[0].name}: {problem}.")


def name_format(given: Any) -> None:
    """Refuse the forms of tools that are not COCO's, by their names."""
    if isinstance(given, str | bytes) and given.lstrip()[:1] in ("<", b"<"):
        raise DTypeError(_EXPORT.format(tool="CVAT's XML"))
    if not isinstance(given, Mapping):
        return
    value = given.get("value")
    if {"rle", "left", "top"} <= given.keys():
        raise DTypeError(_EXPORT.format(tool="a mask of CVAT, whose RLE runs row by row within a box"))
    if "original_width" in given or (isinstance(value, Mapping) and value.get("format") == "rle"):
        raise DTypeError(_EXPORT.format(tool="a brush mask of Label Studio"))
    if {"images", "annotations"} <= given.keys():
        raise DTypeError(
            "this is a whole file of COCO annotations. Take those of one image, or read it with "
            "regiontok.masks.CocoMasks (--coco on the command line)."
        )
    if {"image", "annotations"} <= given.keys():
        raise DTypeError(
            "this is a whole file of SA-1B. Take its annotations, or read it with regiontok.MaskSet.of or "
            "regiontok.masks.MaskFiles (--mask-files on the command line)."
        )
    if {"result", "annotations"} & given.keys():
        raise DTypeError(_EXPORT.format(tool="a task of Label Studio"))


_EXPORT = "this is {tool}, and no COCO annotation. Export it as COCO, or see the recipe in docs/annotations.md."


def _told(value: Any) -> str:
    """A short look at what came."""
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, list(value)[:6]))}" if value else "an empty dict"
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}{'...' * (len(text) > 60)}"


def _whole(value: Any) -> Any:
    """An id as a whole number, also one that a table wrote as a float; None for text and the like."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int | np.integer) and not isinstance(value, bool) else None


def _ignored(ignore: Any) -> list[Any]:
    """Labels that are no masks, as a list."""
    if isinstance(ignore, Tensor | np.ndarray):
        ignore = ignore.tolist()
    if isinstance(ignore, int | np.integer):
        return [ignore]
    if isinstance(ignore, str | bytes) or not isinstance(ignore, Iterable):
        raise DTypeError(f"ignore must be a label or a list of labels; got {ignore!r}.")
    return list(ignore)


def _integers(name: str, values: Sequence[Any]) -> np.ndarray:
    """``(M,)`` int64."""
    array = np.array(values) if len(values) else np.empty(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu" or (len(array) and int(array.max()) > _MOST_LABELS):
        raise DTypeError(f"{name} must be whole numbers of 64 bits; got {_told(list(values))}.")
    return array.astype(np.int64)


def _size(shape: Sequence[int]) -> Size:
    return int(shape[0]), int(shape[1])
