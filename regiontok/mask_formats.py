"""Masks of other programs as runs: SAM's results, label maps and dense masks.

`regiontok.MaskSet` is made from these. COCO's forms are in `regiontok.coco_format`.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from regiontok._checks import check_size
from regiontok._kernels import rle
from regiontok.coco_format import from_coco
from regiontok.errors import AmbiguousShapeWarning, DTypeError, ShapeError, ValueRangeError
from regiontok.geometry import Size
from regiontok.runs import MAX_LABEL, Runs, describe, to_int64, to_numbers, to_numpy, whole_number

_MOST_LAST, _LEAST_SIDE = 8, 64
"""Masks that are at most 8 pixels wide and are 64 or more are probably (height, width, masks)."""


def from_sam(masks: Any, size: Size | None) -> Runs:
    """Parse masks of SAM's generators; see `MaskSet.from_sam`."""
    if isinstance(masks, Mapping) and "masks" in masks:
        segmentations, scores = masks["masks"], masks.get("scores")
        if not isinstance(segmentations, Sequence | np.ndarray | Tensor) or isinstance(segmentations, str | bytes):
            raise DTypeError(
                f"masks of the pipeline must be a list, an array or a tensor; got {describe(segmentations)}."
            )
        is_empty = len(segmentations) == 0
        dense = np.empty((0, *_size_without_masks(size)), np.uint8) if is_empty else as_bytes(segmentations)
        values = {} if scores is None else {"scores": to_numbers("scores", scores)}
        return _check_image_size(_encode(dense)._replace(values=values), size)
    if not isinstance(masks, Sequence) or isinstance(masks, str | bytes):
        raise DTypeError(
            "masks must be the list of dicts of SAM2AutomaticMaskGenerator, or the dict with masks and scores of "
            f"transformers' pipeline; got {describe(masks)}."
        )
    for index, mask in enumerate(masks):
        if not isinstance(mask, Mapping) or "segmentation" not in mask:
            raise DTypeError(f"mask {index} must be a dict with segmentation, as SAM2AutomaticMaskGenerator makes it.")
    segmentations = [mask["segmentation"] for mask in masks]
    if all(isinstance(segmentation, Mapping) for segmentation in segmentations):
        encoded = from_coco(segmentations, size, "keep")
    else:
        encoded = _encode(as_bytes(segmentations))
    values = {}
    ids = [whole_number(mask.get("id")) for mask in masks]
    if ids and all(value is not None for value in ids):
        values["ids"] = to_int64("id", ids)
    for name, key in (("scores", "predicted_iou"), ("stability", "stability_score")):
        if any(key in mask for mask in masks):
            values[name] = to_numbers(key, [mask.get(key, np.nan) for mask in masks])
    return _check_image_size(encoded._replace(values=values), size)


def _check_image_size(encoded: Runs, size: Size | None) -> Runs:
    """Return the same masks; reject those of another size than the image."""
    if size is not None and encoded.size != check_size("size", size):
        raise ShapeError(f"masks must be of the image's size, {tuple(size)}; got {encoded.size}.")
    return encoded


def from_labels(labels: Any, ignore: int | Sequence[int]) -> Runs:
    """Encode a label map, with labels as ``ids``; see `MaskSet.from_labels`."""
    array = _label_map(labels)
    ignored = _list_ignored(ignore)
    values, numbered = np.unique(array, return_inverse=True)
    if array.dtype == np.uint8 and values.tolist() == [0, 255] and not ignored:
        raise ValueRangeError(
            "a uint8 map of 0 and 255 is one mask and no label map; pass it as mask[None], or say that 0 is none by "
            "ignore=(0,), --ignore 0 on the command line."
        )
    left_out = {-1, *to_int64("ignore", ignored).tolist()}
    if values[0] < -1 and int(values[0]) not in left_out:
        raise ValueRangeError(f"labels must be -1 (no mask) or from 0; got {values[0]}. Leave it out by ignore.")
    if values[-1] > MAX_LABEL:
        raise ValueRangeError(f"labels must be below 2**63; got {values[-1]}.")
    is_mask = ~np.isin(values.astype(np.int64), list(left_out))
    numbered = numbered.reshape(array.shape)
    if not is_mask[1:].all():
        numbered = np.where(is_mask, is_mask.cumsum() - 1, -1)[numbered]
    elif not is_mask[0]:
        numbered = numbered - 1
    count = int(is_mask.sum())
    offsets = np.empty(count + 1, np.int64)
    rle.count_label_changes(numbered, count, offsets)
    runs = np.empty(offsets[-1], np.uint32)
    rle.encode_labels(numbered, offsets, runs)
    return Runs(_size(array.shape), runs, offsets, {"ids": values[is_mask].astype(np.int64)})


def from_masks(masks: Any) -> Runs:
    """Encode dense masks; see `MaskSet.from_masks`."""
    return _encode(as_bytes(masks))


def as_bytes(masks: Any) -> np.ndarray:
    """Return dense masks as contiguous ``(M, height, width)`` uint8, 0 outside; contiguous bool is not copied."""
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


def _stack(masks: Any) -> np.ndarray:
    """Return dense masks as one array, from an array or a list of ``(height, width)``."""
    if isinstance(masks, str | bytes | Mapping) or not isinstance(masks, Sequence):
        return to_numpy("masks", masks, fill=0)
    if not masks:
        raise ShapeError("an empty list of masks has no image size. Pass an array of shape (0, height, width).")
    arrays = [to_numpy(f"masks[{index}]", mask, fill=0) for index, mask in enumerate(masks)]
    for index, array in enumerate(arrays):
        if array.ndim != 2 or array.shape != arrays[0].shape:
            raise ShapeError(
                f"masks of a list must all be (height, width) of one image; masks[0] is {arrays[0].shape}, "
                f"masks[{index}] is {array.shape}."
            )
    return np.stack(arrays)


def _encode(dense: np.ndarray) -> Runs:
    """Return dense masks as runs."""
    if dense.size and dense.max() > 1:  # a bool array that is a view of bytes of 255
        dense = (dense != 0).view(np.uint8)
    offsets = np.empty(len(dense) + 1, np.int64)
    rle.count_changes(dense, offsets)
    runs = np.empty(offsets[-1], np.uint32)
    rle.encode(dense, offsets, runs)
    return Runs(_size(dense.shape[1:]), runs, offsets, {})


def _label_map(labels: Any) -> np.ndarray:
    """Return a label map as a checked array ``(height, width)`` of integers."""
    if isinstance(labels, Image.Image):
        if labels.mode not in ("1", "L", "P") and not labels.mode.startswith("I"):
            hint = _COLOURS if labels.mode in ("RGB", "RGBA") else ""
            raise DTypeError(f"{_LABELS}; got a Pillow image of mode {labels.mode}.{hint}")
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
    " If colours are ids, as in panoptic PNGs of COCO: "
    "rgb = np.asarray(image).astype(int); labels = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]."
)


def _size_without_masks(size: Size | None) -> Size:
    if size is None:
        raise ShapeError("without a mask the image's size is not known; pass size=(height, width).")
    return check_size("size", size)


def _list_ignored(ignore: Any) -> list[Any]:
    """Return the labels that are not masks, as a list."""
    if isinstance(ignore, Tensor | np.ndarray):
        ignore = ignore.tolist()
    if isinstance(ignore, int | np.integer):
        return [ignore]
    if isinstance(ignore, str | bytes) or not isinstance(ignore, Iterable):
        raise DTypeError(f"ignore must be a label or a list of labels; got {ignore!r}.")
    return list(ignore)


def _size(shape: Sequence[int]) -> Size:
    return int(shape[0]), int(shape[1])
