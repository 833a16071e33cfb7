"""`MaskSet`: the masks of one image as a generator gives them, run-length encoded or already on the patch grid."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regiontok import coco_format, mask_formats
from regiontok._checks import check_choice, flatten_valid
from regiontok._kernels import rle
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from regiontok.geometry import Size
from regiontok.runs import Runs, take, to_numbers

Scores = Sequence[float] | np.ndarray | Tensor

_MOST_AT_ONCE = 2**26
"""Pixels of masks that are decoded together to be turned."""


@dataclass(frozen=True, eq=False)
class MaskSet:
    """The masks of one image and their scores; they may overlap, and there may be none.

    Masks of an image are kept as COCO's RLE, undecoded. Masks that are already on an encoder's grid are kept as the
    share of each patch that they cover. Make one with `from_coco`, `from_sam`, `from_masks`, `from_labels` or
    `on_grid`; the constructor trusts its arguments.

    Masks are of the upright image, as `regiontok.read_image` reads it; `upright` turns those of stored pixels.

    Attributes:
        size: Height and width of the masks in pixels, or the rows and columns of the grid they are on.
        runs: ``(N,)`` uint32: lengths of all masks' runs, column by column, background first.
        offsets: ``(M + 1,)`` int64: where each mask's runs begin, and the end.
        scores: ``(M,)`` float32: predicted quality, NaN where there is none.
        stability: ``(M,)`` float32: stability scores, NaN where there are none.
        ids: ``(M,)`` int64: COCO's ids of annotations, or labels of a map; None where there are none.
            ``Regions.mask_index`` leads back to them.
        categories: ``(M,)`` int64: COCO's ids of categories; None where there are none.
        coverage: ``(M, rows, cols)`` float32 in ``[0, 1]`` of masks on the grid; None for masks of an image.
        valid: ``(rows, cols)`` bool of masks on the grid: which patches show the image; None where that is not known.

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
    ids: np.ndarray | None = None
    categories: np.ndarray | None = None
    coverage: Tensor | None = None
    valid: Tensor | None = None

    @classmethod
    def of(cls, masks: Any, *, size: Size | None = None) -> "MaskSet":
        """Masks of one image in any form that is known: what the other constructors take, or a set already.

        A list is COCO's or SAM's by its first entry; two dimensions of integers, or a Pillow image, are a label map. A
        dict with ``image`` and ``annotations`` is SA-1B's.

        Args:
            masks: The image's masks.
            size: Its height and width, where there is no mask or only polygons.

        Raises:
            ShapeError, DTypeError, ValueRangeError: None of these, or as the constructor says that is meant.
        """
        if isinstance(masks, MaskSet):
            return masks
        if isinstance(masks, Tensor | np.ndarray):
            labels = masks.ndim == 2 and masks.dtype not in (torch.bool, np.bool_)
            return cls.from_labels(masks) if labels else cls.from_masks(masks)
        if isinstance(masks, Image.Image):
            return cls.from_labels(masks)
        if isinstance(masks, Mapping) and isinstance(masks.get("image"), Mapping) and "annotations" in masks:
            image = masks["image"]  # of SA-1B
            size = (image["height"], image["width"]) if size is None and {"height", "width"} <= image.keys() else size
            return cls.of(masks["annotations"], size=size)
        if isinstance(masks, Mapping) and "masks" in masks:
            return cls.from_sam(masks, size=size)
        if isinstance(masks, Mapping | str | bytes) or not isinstance(masks, Sequence) or not masks:
            if isinstance(masks, Sequence) and not masks and size is None:
                raise ShapeError(
                    "an empty list does not tell the image's size. Pass sizes, or "
                    "MaskSet.from_coco([], size=(height, width))."
                )
            return cls.from_coco(masks, size=size)  # type: ignore[arg-type]  # it says what is wrong
        first = masks[0]
        if isinstance(first, Tensor | np.ndarray):
            return cls.from_masks(masks)
        if isinstance(first, Mapping) and (
            "predicted_iou" in first or isinstance(first.get("segmentation"), np.ndarray)
        ):
            return cls.from_sam(masks, size=size)
        sized = any(isinstance(one, Mapping) and isinstance(one.get("segmentation", one), Mapping) for one in masks)
        return cls.from_coco(masks, size=None if sized else size)

    @classmethod
    def from_coco(
        cls,
        masks: Sequence[Mapping[str, Any] | Sequence[Any]],
        *,
        size: Size | None = None,
        scores: Scores | None = None,
        stability: Scores | None = None,
        iscrowd: str = "keep",
    ) -> "MaskSet":
        """Masks as COCO has them, in any mix.

        Polygons are filled to the pixel as pycocotools fills them; several of one mask are joined, so that none of them
        cuts a hole. Ids and categories of annotations are kept where all have one that is a whole number, and a
        ``score`` where any has.

        Args:
            masks: Per mask an RLE ``{"size": [height, width], "counts": ...}``, compressed (bytes or str) or not (a
                list of run lengths); polygons ``[[x, y, x, y, ...], ...]``; or an annotation, a dict with one of these
                under ``segmentation``.
            size: The image's height and width: needed where no RLE tells it, and compared where one does.
            scores: One per mask, in place of what annotations say.
            stability: One per mask.
            iscrowd: ``keep``, or ``drop`` to leave annotations of crowds out.

        Raises:
            DTypeError: No such masks; forms of CVAT and Label Studio are named.
            ShapeError: Masks of several sizes or another than ``size``; neither RLE nor size; polygons of less than
                three points; too few or many scores.
            ValueRangeError: Counts that are cut short, negative, or do not add up to the size; a size or corners beyond
                any image.

        Example:
            >>> triangle = {"id": 7, "category_id": 3, "segmentation": [[0, 0, 4, 0, 0, 4]]}
            >>> masks = MaskSet.from_coco([triangle], size=(4, 4))
            >>> masks.ids, masks.areas()
            (array([7]), array([6]))

        Source:
            COCO's annotation format, and ``pycocotools`` for what it means.
        """
        return cls._of(coco_format.from_coco(masks, size, iscrowd), scores, stability)

    @classmethod
    def from_sam(cls, masks: Any, *, size: Size | None = None) -> "MaskSet":
        """Masks as SAM's generators return them, with their scores.

        Args:
            masks: The list of dicts of ``SAM2AutomaticMaskGenerator``, whose segmentations are bool or RLE; or the dict
                with ``masks`` and ``scores`` of transformers' mask-generation pipeline.
            size: The image's height and width, needed where there is no mask.

        Raises:
            ShapeError, DTypeError, ValueRangeError: Not such masks, or no mask and no size.

        Example:
            >>> made = [{"segmentation": np.ones((2, 3), bool), "predicted_iou": 0.9, "stability_score": 0.95}]
            >>> MaskSet.from_sam(made).scores
            array([0.9], dtype=float32)
        """
        return cls._of(mask_formats.from_sam(masks, size), None, None)

    @classmethod
    def from_masks(
        cls,
        masks: np.ndarray | Tensor | Sequence[np.ndarray | Tensor],
        *,
        scores: Scores | None = None,
        stability: Scores | None = None,
    ) -> "MaskSet":
        """Encode dense masks.

        Args:
            masks: ``(M, height, width)`` or a list of ``(height, width)``: bool, or uint8 of 0 and 1 or of 0 and 255;
                any strides and device.
            scores: One per mask.
            stability: One per mask.

        Raises:
            ShapeError, DTypeError, ValueRangeError: Not such masks, or another number of scores.
        """
        return cls._of(mask_formats.from_masks(masks), scores, stability)

    @classmethod
    def from_labels(
        cls,
        labels: np.ndarray | Tensor | Image.Image,
        *,
        ignore: int | Sequence[int] = (),
        scores: Scores | None = None,
        stability: Scores | None = None,
    ) -> "MaskSet":
        """Masks from a label map: pixels of one label are one mask, in ascending order of labels; -1 is none.

        ``ids`` tells each mask's label.

        Args:
            labels: ``(height, width)`` of integers from -1, which need not be consecutive; or a Pillow image of
                integers, a palette's by index.
            ignore: Labels that are no mask either, such as ``(0, 255)``: background and void in VOC, where no label
                can be -1. Empty by default, since 0 is a mask in some maps.
            scores: One per mask.
            stability: One per mask.

        Raises:
            ShapeError, DTypeError: Not such a map; one of colours is told how to become one.
            ValueRangeError: A label below -1.

        Example:
            >>> MaskSet.from_labels(np.array([[0, 3, 255]], np.uint8), ignore=(0, 255)).ids
            array([3])
        """
        return cls._of(mask_formats.from_labels(labels, ignore), scores, stability)

    @classmethod
    def on_grid(
        cls,
        coverage: np.ndarray | Tensor,
        *,
        valid: np.ndarray | Tensor | None = None,
        scores: Scores | None = None,
        stability: Scores | None = None,
    ) -> "MaskSet":
        """Masks that are already on an encoder's grid, so that no geometry is applied to them.

        Args:
            coverage: ``(M, rows, cols)``: the share of each patch inside each mask, in ``[0, 1]``; or bool.
            valid: ``(rows, cols)`` bool: which patches show the image, and not padding; None for all.
            scores: One per mask.
            stability: One per mask.

        Raises:
            ShapeError, DTypeError, ValueRangeError: Not such an array, or another number of scores.
        """
        coverage = _as_tensor("coverage", coverage)
        valid = None if valid is None else _as_tensor("valid", valid)
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
        size = (int(coverage.shape[1]), int(coverage.shape[2]))
        return cls(size, *nothing, *told, coverage=coverage, valid=valid)

    @classmethod
    def _of(cls, made: Runs, scores: Scores | None, stability: Scores | None) -> "MaskSet":
        values = made.values
        scores = values.get("scores") if scores is None else scores
        stability = values.get("stability") if stability is None else stability
        told = _check_scores(len(made.offsets) - 1, scores, stability)
        return cls(
            made.size, made.runs, made.offsets, *told, ids=values.get("ids"), categories=values.get("categories")
        )

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
            given = index.detach().cpu().numpy() if isinstance(index, Tensor) else np.asarray(index)
            if given.dtype == np.bool_ and given.shape != (len(self),):
                raise IndexError(f"bool must have one entry per mask; got {given.shape}")
            chosen = np.arange(len(self))[given if given.size else np.empty(0, np.int64)]
            if chosen.ndim != 1:
                raise IndexError("it must be a list of integers, or of bool")
        except IndexError as error:
            raise ValueRangeError(f"index must choose from {len(self)} masks: {error}.") from error
        runs, offsets = take(self.runs, self.offsets, chosen)
        return replace(
            self,
            runs=runs,
            offsets=offsets,
            scores=self.scores[chosen],
            stability=self.stability[chosen],
            ids=None if self.ids is None else self.ids[chosen],
            categories=None if self.categories is None else self.categories[chosen],
            coverage=None if self.coverage is None else self.coverage[torch.from_numpy(chosen)],
        )

    def upright(self, orientation: int) -> "MaskSet":
        """Masks made on an image's stored pixels, turned as its EXIF orientation turns the image.

        Args:
            orientation: EXIF's number from 1, upright already, to 8; ``image.getexif().get(0x0112, 1)``.

        Raises:
            ValueRangeError: Another number, or masks on the grid, whose pixels are not known.

        Example:
            >>> lying = MaskSet.from_masks(np.array([[[True, False, False]]]))
            >>> lying.upright(6).masks()[0].int()  # a camera held upright, its right side down
            tensor([[1],
                    [0],
                    [0]], dtype=torch.int32)
        """
        check_choice("orientation", orientation, range(1, 9))
        if orientation == 1:
            return self
        axes = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation, ())
        step = max(1, _MOST_AT_ONCE // (self.size[0] * self.size[1]))
        turned = []
        for start in range(0, len(self), step):  # some at a time, for memory's sake
            dense = self.select(range(start, min(start + step, len(self)))).masks()
            dense = dense.transpose(1, 2) if orientation >= 5 else dense
            turned.append(type(self).from_masks(dense.flip(axes)))
        size = self.size if orientation < 5 else self.size[::-1]
        made = join(turned, size)
        return replace(self, size=size, runs=made.runs, offsets=made.offsets)

    def _need_pixels(self) -> None:
        if self.coverage is not None:
            raise ValueRangeError("these masks are on the patch grid, and their pixels are not known.")


def join(
    parts: Sequence[MaskSet], size: Size, *, scores: Scores | None = None, stability: Scores | None = None
) -> MaskSet:
    """Masks of one image of ``size`` from several sets of them; there may be none."""
    begins = np.cumsum([0] + [len(part.runs) for part in parts])
    runs = np.concatenate([np.empty(0, np.uint32), *(part.runs for part in parts)])
    ends = [part.offsets[1:] + begin for part, begin in zip(parts, begins[:-1], strict=True)]
    offsets = np.concatenate([np.zeros(1, np.int64), *ends])
    return MaskSet(size, runs, offsets, *_check_scores(len(offsets) - 1, scores, stability))


def _as_tensor(name: str, value: Any) -> Tensor:
    """An array as a tensor of its own, whatever its strides and order of bytes; a tensor as it is."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        kinds = {"b": np.bool_, "f": np.float32}
        if value.dtype.kind not in "biuf":
            raise DTypeError(f"{name} must be numbers; got an array of {value.dtype}.")
        return torch.from_numpy(value.astype(kinds.get(value.dtype.kind, np.int64)))
    raise DTypeError(f"{name} must be an array or a tensor; got {type(value).__name__}.")


def _check_scores(count: int, scores: Scores | None, stability: Scores | None) -> tuple[np.ndarray, np.ndarray]:
    checked = []
    for name, given in (("scores", scores), ("stability", stability)):
        array = np.full(count, np.nan, np.float32) if given is None else to_numbers(name, given)
        if array.shape != (count,):
            raise ShapeError(f"{name} must be ({count},), one per mask; got {array.shape}.")
        checked.append(array)
    return checked[0], checked[1]
