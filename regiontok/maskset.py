"""`MaskSet`: the masks of one photo as a generator gives them, run-length encoded or already on the patch grid."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regiontok._checks import check_size, flatten_valid
from regiontok._kernels import rle
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from regiontok.geometry import Size

Scores = Sequence[float] | np.ndarray | Tensor

_MOST_SIDE, _MOST_PIXELS = 2**20, 2**30
"""No photo is larger; an RLE that says so would have memory asked for that nothing needs."""


@dataclass(frozen=True, eq=False)
class MaskSet:
    """The masks of one photo and their scores; they may overlap, and there may be none.

    Masks of a photo are kept as COCO's RLE, undecoded. Masks that are already on an encoder's grid are kept as the
    share of each patch that they cover. Make one with `from_coco`, `from_masks`, `from_labels` or `on_grid`; the
    constructor trusts its arguments.

    Attributes:
        size: Height and width of the masks in pixels, or the rows and columns of the grid they are on.
        runs: ``(N,)`` uint32: lengths of all masks' runs, column by column, background first.
        offsets: ``(M + 1,)`` int64: where each mask's runs begin, and the end.
        scores: ``(M,)`` float32: predicted quality, NaN where there is none.
        stability: ``(M,)`` float32: stability scores, NaN where there are none.
        coverage: ``(M, rows, cols)`` float32 in ``[0, 1]`` of masks on the grid; None for masks of a photo.
        valid: ``(rows, cols)`` bool of masks on the grid: which patches show the photo; None where that is not known.

    Example:
        >>> masks = MaskSet.from_coco([{"size": [2, 3], "counts": [2, 3, 1]}], scores=[0.9])
        >>> masks
        MaskSet(1 mask of 2 x 3 pixels)
        >>> masks.masks()[0].int()
        tensor([[0, 1, 1],
                [0, 1, 0]], dtype=torch.int32)
        >>> masks.to_coco()
        [{'size': [2, 3], 'counts': b'231'}]
    """

    size: Size
    runs: np.ndarray
    offsets: np.ndarray
    scores: np.ndarray
    stability: np.ndarray
    coverage: Tensor | None = None
    valid: Tensor | None = None

    @classmethod
    def from_coco(
        cls,
        masks: Sequence[Mapping[str, Any]],
        *,
        size: Size | None = None,
        scores: Scores | None = None,
        stability: Scores | None = None,
    ) -> "MaskSet":
        """Masks from COCO's RLE, compressed (``counts`` of bytes or str) or not (a list of run lengths).

        Args:
            masks: ``{"size": [height, width], "counts": ...}`` per mask.
            size: The photo's height and width: needed where there is no mask, and compared where there are.
            scores: One per mask.
            stability: One per mask.

        Raises:
            DTypeError: Not such mappings.
            ShapeError: Masks of several sizes or another than ``size``; neither masks nor size; too few or many scores.
            ValueRangeError: Counts that are cut short, negative, or do not add up to the size.
        """
        size = _one_size(masks, size)
        runs, offsets = _parse(masks)
        total, area = np.empty((2, len(masks)), np.int64)
        rle.sum_runs(runs, offsets, total, area)
        wrong = np.flatnonzero(total != size[0] * size[1])
        if len(wrong):
            raise ValueRangeError(
                f"mask {wrong[0]}: the counts of an RLE must add up to its size, {size[0]} x {size[1]} = "
                f"{size[0] * size[1]}; they add up to {total[wrong[0]]}. It is damaged, or its size is [width, height]."
            )
        return cls(size, runs, offsets, *_check_scores(len(masks), scores, stability))

    @classmethod
    def from_masks(
        cls, masks: np.ndarray | Tensor, *, scores: Scores | None = None, stability: Scores | None = None
    ) -> "MaskSet":
        """Encode dense masks.

        Args:
            masks: ``(M, height, width)`` bool, or uint8 of 0 and 1 or of 0 and 255; any strides and device.
            scores: One per mask.
            stability: One per mask.

        Raises:
            ShapeError, DTypeError, ValueRangeError: Not such masks, or another number of scores.
        """
        dense = as_bytes(masks)
        if dense.size and dense.max() > 1:  # bool made by viewing bytes of 255
            dense = (dense != 0).view(np.uint8)
        offsets = np.empty(len(dense) + 1, np.int64)
        rle.count_changes(dense, offsets)
        runs = np.empty(offsets[-1], np.uint32)
        rle.encode(dense, offsets, runs)
        return cls(_size(dense.shape[1:]), runs, offsets, *_check_scores(len(dense), scores, stability))

    @classmethod
    def from_labels(
        cls, labels: np.ndarray | Tensor, *, scores: Scores | None = None, stability: Scores | None = None
    ) -> "MaskSet":
        """Masks from a label map: pixels of one label are one mask, in ascending order of labels; -1 is none.

        Args:
            labels: ``(height, width)`` of integers from -1; they need not be consecutive.
            scores: One per label.
            stability: One per label.

        Raises:
            ShapeError, DTypeError: Not such a map.
            ValueRangeError: A label below -1.
        """
        array = _to_numpy("labels", labels)
        if array.ndim != 2 or 0 in array.shape:
            raise ShapeError(f"a label map must be (height, width) and not empty; got {array.shape}.")
        if not np.issubdtype(array.dtype, np.integer):
            raise DTypeError(f"a label map must be of integers; got {array.dtype}. A single mask is masks[None].")
        values, numbered = np.unique(array, return_inverse=True)
        if array.dtype == np.uint8 and values.tolist() == [0, 255]:
            raise ValueRangeError("a uint8 map of 0 and 255 is one mask and no label map; pass it as mask[None].")
        if values[0] < -1:
            raise ValueRangeError(
                f"labels must be -1 (no mask) or from 0; got {values[0]}. Set what is in no mask to -1."
            )
        numbered = numbered.reshape(array.shape) - int(values[0] == -1)
        count = len(values) - int(values[0] == -1)
        offsets = np.empty(count + 1, np.int64)
        rle.count_label_changes(numbered, count, offsets)
        runs = np.empty(offsets[-1], np.uint32)
        rle.encode_labels(numbered, offsets, runs)
        return cls(_size(array.shape), runs, offsets, *_check_scores(count, scores, stability))

    @classmethod
    def on_grid(
        cls,
        coverage: Tensor,
        *,
        valid: Tensor | None = None,
        scores: Scores | None = None,
        stability: Scores | None = None,
    ) -> "MaskSet":
        """Masks that are already on an encoder's grid, so that no geometry is applied to them.

        Args:
            coverage: ``(M, rows, cols)``: the share of each patch inside each mask, in ``[0, 1]``; or bool.
            valid: ``(rows, cols)`` bool: which patches show the photo, and not padding; None for all.
            scores: One per mask.
            stability: One per mask.

        Raises:
            ShapeError, DTypeError, ValueRangeError: Not such a tensor, or another number of scores.
        """
        if not isinstance(coverage, Tensor):
            raise DTypeError(f"coverage must be a torch tensor; got {type(coverage).__name__}.")
        if coverage.ndim != 3 or 0 in coverage.shape[1:]:
            raise ShapeError(f"coverage must be (masks, rows, cols) with a grid; got {tuple(coverage.shape)}.")
        if coverage.dtype != torch.bool and not coverage.is_floating_point():
            raise DTypeError(f"coverage must be floating point or bool; got {coverage.dtype}.")
        coverage = coverage.float()
        if len(coverage) and not ((coverage >= 0) & (coverage <= 1)).all():  # NaN is in no range
            raise ValueRangeError("coverage must lie in [0, 1]; it is the share of a patch.")
        if valid is not None:
            flatten_valid([valid], torch.tensor([coverage.shape[1:]], device="cpu"))
        nothing = np.empty(0, np.uint32), np.zeros(len(coverage) + 1, np.int64)
        told = _check_scores(len(coverage), scores, stability)
        return cls(_size(coverage.shape[1:]), *nothing, *told, coverage, valid)

    def __len__(self) -> int:
        """The number of masks."""
        return len(self.scores)

    def __repr__(self) -> str:
        unit = "pixels" if self.coverage is None else "patches"
        return f"MaskSet({len(self)} mask{'s' * (len(self) != 1)} of {self.size[0]} x {self.size[1]} {unit})"

    def areas(self) -> np.ndarray:
        """``(M,)`` int64: pixels in each mask.

        Raises:
            ValueRangeError: Masks on the grid, whose pixels are not known.
        """
        self._need_pixels()
        total, area = np.empty((2, len(self)), np.int64)
        rle.sum_runs(self.runs, self.offsets, total, area)
        return area

    def masks(self) -> Tensor:
        """Decode to ``(M, height, width)`` bool.

        Raises:
            ValueRangeError: Masks on the grid, whose pixels are not known.
        """
        self._need_pixels()
        dense = np.zeros((len(self), *self.size), np.bool_)
        rle.decode(self.runs, self.offsets, self.size[0], dense)
        return torch.from_numpy(dense)

    def to_coco(self) -> list[dict[str, Any]]:
        """COCO's compressed RLE, as pycocotools reads and writes it: ``size`` a list, ``counts`` bytes.

        Raises:
            ValueRangeError: Masks on the grid, whose pixels are not known.
        """
        self._need_pixels()
        text, bounds = np.empty(7 * len(self.runs), np.uint8), np.empty(len(self) + 1, np.int64)
        rle.compress(self.runs, self.offsets, text, bounds)
        whole, ends = text[: bounds[-1]].tobytes(), bounds.tolist()
        return [{"size": list(self.size), "counts": whole[start:end]} for start, end in itertools.pairwise(ends)]

    def select(self, index: Sequence[int] | np.ndarray | Tensor) -> "MaskSet":
        """The masks of ``index``, integers in any order or ``(M,)`` bool.

        Raises:
            ValueRangeError: An index out of range, or bool of another length.
        """
        try:
            chosen = np.arange(len(self))[_to_numpy("index", index) if len(index) else np.empty(0, np.int64)]
        except IndexError as error:
            raise ValueRangeError(f"index must choose from {len(self)} masks: {error}.") from error
        lengths = np.diff(self.offsets)[chosen]
        offsets = np.concatenate([[0], lengths.cumsum()])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return replace(
            self,
            runs=self.runs[np.repeat(self.offsets[chosen], lengths) + within],
            offsets=offsets,
            scores=self.scores[chosen],
            stability=self.stability[chosen],
            coverage=None if self.coverage is None else self.coverage[torch.from_numpy(chosen)],
        )

    def _need_pixels(self) -> None:
        if self.coverage is not None:
            raise ValueRangeError("these masks are on the patch grid, and their pixels are not known.")


def join(
    parts: Sequence[MaskSet], size: Size, *, scores: Scores | None = None, stability: Scores | None = None
) -> MaskSet:
    """Masks of one photo of ``size`` from several sets of them; there may be none."""
    begins = np.cumsum([0] + [len(part.runs) for part in parts])
    runs = np.concatenate([np.empty(0, np.uint32), *(part.runs for part in parts)])
    ends = [part.offsets[1:] + begin for part, begin in zip(parts, begins[:-1], strict=True)]
    offsets = np.concatenate([np.zeros(1, np.int64), *ends])
    return MaskSet(size, runs, offsets, *_check_scores(len(offsets) - 1, scores, stability))


def as_bytes(masks: np.ndarray | Tensor) -> np.ndarray:
    """Dense masks as contiguous ``(M, height, width)`` bytes, 0 outside; contiguous bool is not copied or converted."""
    array = _to_numpy("masks", masks)
    if array.ndim != 3 or 0 in array.shape[1:]:
        hint = " A single mask is masks[None]." if array.ndim == 2 else ""
        raise ShapeError(f"masks must be (masks, height, width) of a photo that is not empty; got {array.shape}.{hint}")
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


def _to_numpy(name: str, value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) or name == "index":
        return np.asarray(value)
    raise DTypeError(f"{name} must be an array or a tensor; got {type(value).__name__}.")


def _size(shape: Sequence[int]) -> Size:
    return int(shape[0]), int(shape[1])


def _one_size(masks: Sequence[Mapping[str, Any]], size: Size | None) -> Size:
    """The size that all masks share."""
    if isinstance(masks, Mapping | str | bytes) or not isinstance(masks, Sequence):
        raise DTypeError(f"masks must be a list with one COCO RLE per mask; got {type(masks).__name__}.")
    given = size
    if size is not None:
        size = check_size("size", size)
    for index, mask in enumerate(masks):
        if not isinstance(mask, Mapping) or not {"size", "counts"} <= set(mask):
            raise DTypeError(f'mask {index} must be a COCO RLE, {{"size": [height, width], "counts": ...}}.')
        own = check_size(f"mask {index}: size", mask["size"])
        if own[0] > _MOST_SIDE or own[1] > _MOST_SIDE or own[0] * own[1] > _MOST_PIXELS:
            raise ValueRangeError(
                f"mask {index}: there is no photo of {own[0]} x {own[1]} pixels. Its size is damaged."
            )
        if size is None:
            size = own
        if own != size:
            of = "the photo's" if given is not None else "that of mask 0"
            raise ShapeError(f"mask {index}: size must be {of}, {size}; got {own}.")
    if size is None:
        raise ShapeError("there is no mask to tell the photo's size; pass size=(height, width).")
    return size


def _parse(masks: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Runs and offsets of masks that are all compressed, or a mix."""
    texts = [_text(index, mask["counts"]) for index, mask in enumerate(masks)]
    text = np.frombuffer(b"".join(texts), np.uint8)
    bounds = np.concatenate([[0], np.cumsum([len(one) for one in texts], dtype=np.int64)]).astype(np.int64)
    wrong = np.flatnonzero((text < 48) | (text > 111))
    if len(wrong):
        mask = int(np.searchsorted(bounds, wrong[0], side="right")) - 1
        raise ValueRangeError(f"mask {mask}: {chr(text[wrong[0]])!r} is in no compressed RLE. It is damaged.")
    offsets = np.empty(len(masks) + 1, np.int64)
    cut = rle.count_runs(text, bounds, offsets)
    if cut >= 0:
        raise ValueRangeError(f"mask {cut}: its compressed RLE is cut short within a number.")
    runs = np.empty(offsets[-1], np.uint32)
    problem, mask, value = rle.decompress(text, bounds, offsets, runs)
    if problem:
        what = f"has a run of {value}" if problem == rle.NEGATIVE else "has a run beyond 32 bits"
        raise ValueRangeError(f"mask {mask}: its RLE {what}. It is damaged.")
    return runs, offsets


def _text(index: int, counts: Any) -> bytes:
    """The compressed form of one mask's counts."""
    if isinstance(counts, bytes):
        return counts
    if isinstance(counts, str):
        return counts.encode()  # what is not ASCII is refused below
    try:
        runs = np.asarray(counts)
        if runs.ndim != 1 or (len(runs) and not np.issubdtype(runs.dtype, np.integer)):
            raise ValueError
    except ValueError:
        raise DTypeError(f"mask {index}: counts must be bytes, str, or a list of run lengths.") from None
    if len(runs) and (runs.min() < 0 or runs.max() >= 2**32):
        raise ValueRangeError(f"mask {index}: run lengths must be from 0 to 2**32 - 1; got {runs.min()}, {runs.max()}.")
    text, bounds = np.empty(7 * len(runs), np.uint8), np.empty(2, np.int64)
    rle.compress(runs.astype(np.uint32), np.array([0, len(runs)]), text, bounds)
    return text[: bounds[1]].tobytes()


def _check_scores(count: int, scores: Scores | None, stability: Scores | None) -> tuple[np.ndarray, np.ndarray]:
    checked = []
    for name, given in (("scores", scores), ("stability", stability)):
        array = np.full(count, np.nan, np.float32)
        if given is not None:
            try:
                array = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given, np.float32)
            except (TypeError, ValueError) as error:
                raise DTypeError(f"{name} must be numbers, one per mask; got {given!r}.") from error
            if array.shape != (count,):
                raise ShapeError(f"{name} must be ({count},), one per mask; got {array.shape}.")
        checked.append(array)
    return checked[0], checked[1]
