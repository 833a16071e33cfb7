"""`MaskSet`: the masks of one image, run-length encoded or on the patch grid."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regiontok import coco_format, mask_formats
from regiontok._kernels import rle
from regiontok._values import check_choice
from regiontok.batch import flatten_valid
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from regiontok.geometry import Size
from regiontok.runs import Runs, Scores, check_scores, select_masks, to_tensor

_MAX_DECODED = 2**26
"""Number of pixels that are decoded at a time when masks are rotated."""


@dataclass(frozen=True, eq=False)
class MaskSet:
    """The masks of one image and their scores. Masks may overlap, and there may be none.

    Masks in image pixels are stored as COCO's run-length encoding. Masks on the patch grid are stored as the covered
    fraction of each patch. Create a set with `from_coco`, `from_sam`, `from_masks`, `from_labels` or `on_grid`; the
    constructor does not check its arguments.

    Masks refer to the upright image that `regiontok.read_image` returns; `upright` converts masks of stored pixels.

    Attributes:
        size: Height and width in pixels, or rows and columns of the grid.
        runs: ``(N,)`` uint32: run lengths of all masks, column by column, background first.
        offsets: ``(M + 1,)`` int64: index of the first run of each mask, and the number of runs.
        scores: ``(M,)`` float32: predicted quality; NaN without a score.
        stability: ``(M,)`` float32: stability scores; NaN without a score.
        ids: ``(M,)`` int64: ids of COCO annotations or labels of a label map, indexed by ``Regions.mask_index``; or
            None.
        categories: ``(M,)`` int64: ids of COCO categories, or None.
        coverage: ``(M, rows, cols)`` float32 in ``[0, 1]`` for masks on the grid; None for masks in image pixels.
        valid: ``(rows, cols)`` bool for masks on the grid: patches that show the image; None if not known.

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
        """Return the masks of one image from any supported form.

        A list is read as COCO or SAM masks according to its first entry. A two-dimensional array of integers and a
        Pillow image are label maps. A dict with ``image`` and ``annotations`` is an SA-1B file.

        Args:
            masks: A form that another constructor accepts, or a `MaskSet`.
            size: Height and width of the image, required if there is no mask or only polygons.

        Raises:
            ShapeError, DTypeError, ValueRangeError: No supported form, or an error of the constructor for that form.
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
                    "an empty list has no image size. Pass sizes, or MaskSet.from_coco([], size=(height, width))."
                )
            return cls.from_coco(masks, size=size)  # type: ignore[arg-type]  # raises the error
        first = masks[0]
        if isinstance(first, Tensor | np.ndarray):
            return cls.from_masks(masks)
        if isinstance(first, Mapping) and (
            "predicted_iou" in first or isinstance(first.get("segmentation"), np.ndarray)
        ):
            return cls.from_sam(masks, size=size)
        has_rle = any(
            isinstance(mask, Mapping) and isinstance(mask.get("segmentation", mask), Mapping) for mask in masks
        )
        return cls.from_coco(masks, size=None if has_rle else size)

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
        """Return masks in COCO's forms, which may be mixed.

        Polygons are rasterised exactly like in pycocotools. Several polygons of one mask are united, so they cannot cut
        holes. Ids and categories are kept if all annotations have integer ones, scores if any annotation has one.

        Args:
            masks: For each mask an RLE ``{"size": [height, width], "counts": ...}``, compressed (bytes or str) or not
                (a list of run lengths); polygons ``[[x, y, x, y, ...], ...]``; or an annotation, a dict with one of
                these as ``segmentation``.
            size: Height and width of the image. Required without an RLE; otherwise compared with it.
            scores: One score per mask, instead of those of the annotations.
            stability: One stability score per mask.
            iscrowd: ``keep`` or ``drop``, for annotations of crowds.

        Raises:
            DTypeError: Not COCO masks; the formats of CVAT and Label Studio are recognised.
            ShapeError: Masks of different sizes or not of ``size``; no RLE and no size; polygons with fewer than three
                points; a wrong number of scores.
            ValueRangeError: Truncated or negative counts, or counts that do not add up to the size; a size or
                coordinates that are too large.

        Example:
            >>> triangle = {"id": 7, "category_id": 3, "segmentation": [[0, 0, 4, 0, 0, 4]]}
            >>> masks = MaskSet.from_coco([triangle], size=(4, 4))
            >>> masks.ids, masks.areas()
            (array([7]), array([6]))

        Source:
            COCO's annotation format, as implemented by ``pycocotools``.
        """
        return cls._of(coco_format.from_coco(masks, size, iscrowd), scores, stability)

    @classmethod
    def from_sam(cls, masks: Any, *, size: Size | None = None) -> "MaskSet":
        """Return masks from SAM's generators, with their scores.

        Args:
            masks: The list of dicts of ``SAM2AutomaticMaskGenerator``, whose segmentations are bool or RLE; or the dict
                with ``masks`` and ``scores`` of transformers' mask-generation pipeline.
            size: Height and width of the image, required without masks.

        Raises:
            ShapeError, DTypeError, ValueRangeError: Invalid masks, or neither masks nor a size.

        Example:
            >>> masks = [{"segmentation": np.ones((2, 3), bool), "predicted_iou": 0.9, "stability_score": 0.95}]
            >>> MaskSet.from_sam(masks).scores
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
        """Return dense masks, run-length encoded.

        Args:
            masks: ``(M, height, width)`` or a list of ``(height, width)``: bool, or uint8 of 0 and 1 or of 0 and 255;
                any strides and device.
            scores: One score per mask.
            stability: One stability score per mask.

        Raises:
            ShapeError, DTypeError, ValueRangeError: Invalid masks, or a wrong number of scores.
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
        """Return one mask for each label of a label map, in ascending order. The labels become ``ids``; -1 is no mask.

        Args:
            labels: ``(height, width)`` of integers from -1, which need not be consecutive; or a Pillow image of
                integers or palette indices.
            ignore: Further labels without a mask, such as ``(0, 255)`` for background and void in VOC. Empty by
                default, because 0 is a mask in some label maps.
            scores: One score per mask.
            stability: One stability score per mask.

        Raises:
            ShapeError, DTypeError: Not a label map; for colours, the message explains how to convert them.
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
        """Return masks on the patch grid, to which no geometry is applied.

        Args:
            coverage: ``(M, rows, cols)``: the fraction of each patch that each mask covers, in ``[0, 1]``; or bool.
            valid: ``(rows, cols)`` bool: patches that show the image and not padding; None for all.
            scores: One score per mask.
            stability: One stability score per mask.

        Raises:
            ShapeError, DTypeError, ValueRangeError: Invalid arrays, or a wrong number of scores.
        """
        coverage = to_tensor("coverage", coverage)
        valid = None if valid is None else to_tensor("valid", valid)
        if coverage.ndim != 3 or 0 in coverage.shape[1:]:
            raise ShapeError(f"coverage must be (masks, rows, cols) with a grid; got {tuple(coverage.shape)}.")
        if coverage.dtype != torch.bool and not coverage.is_floating_point():
            raise DTypeError(f"coverage must be floating point or bool; got {coverage.dtype}.")
        coverage = coverage.float()
        if len(coverage) and not ((coverage >= 0) & (coverage <= 1)).all():
            raise ValueRangeError("coverage must be in [0, 1]; it is a fraction of each patch.")
        if valid is not None:
            flatten_valid([valid], [(coverage.shape[1], coverage.shape[2])])
        no_runs = np.empty(0, np.uint32), np.zeros(len(coverage) + 1, np.int64)
        checked = check_scores(len(coverage), scores, stability)
        size = (int(coverage.shape[1]), int(coverage.shape[2]))
        return cls(size, *no_runs, *checked, coverage=coverage, valid=valid)

    @classmethod
    def _of(cls, encoded: Runs, scores: Scores | None, stability: Scores | None) -> "MaskSet":
        values = encoded.values
        scores = values.get("scores") if scores is None else scores
        stability = values.get("stability") if stability is None else stability
        return cls(
            encoded.size,
            encoded.runs,
            encoded.offsets,
            *check_scores(len(encoded.offsets) - 1, scores, stability),
            ids=values.get("ids"),
            categories=values.get("categories"),
        )

    def __len__(self) -> int:
        """Return the number of masks."""
        return len(self.scores)

    def __repr__(self) -> str:
        unit = "pixels" if self.coverage is None else "patches"
        return f"MaskSet({len(self)} mask{'s' * (len(self) != 1)} of {self.size[0]} x {self.size[1]} {unit})"

    def areas(self) -> np.ndarray:
        """Return the number of pixels of each mask, ``(M,)`` int64.

        Raises:
            ValueRangeError: Masks on the grid, which have no pixels.
        """
        self._need_pixels()
        total, area = np.empty((2, len(self)), np.int64)
        rle.sum_runs(self.runs, self.offsets, total, area)
        return area

    def masks(self) -> Tensor:
        """Return the masks as ``(M, height, width)`` bool.

        Raises:
            ValueRangeError: Masks on the grid, which have no pixels.
        """
        self._need_pixels()
        dense = np.zeros((len(self), *self.size), np.bool_)
        rle.decode(self.runs, self.offsets, self.size[0], dense)
        return torch.from_numpy(dense)

    def to_coco(self) -> list[dict[str, Any]]:
        """Return COCO's compressed RLE, as in pycocotools: ``size`` is a list and ``counts`` are bytes.

        Raises:
            ValueRangeError: Masks on the grid, which have no pixels.
        """
        self._need_pixels()
        text, bounds = np.empty(7 * len(self.runs), np.uint8), np.empty(len(self) + 1, np.int64)
        rle.compress(self.runs, self.offsets, text, bounds)
        counts, ends = text[: bounds[-1]].tobytes(), bounds.tolist()
        return [{"size": list(self.size), "counts": counts[start:end]} for start, end in itertools.pairwise(ends)]

    def select(self, index: Sequence[int] | np.ndarray | Tensor) -> "MaskSet":
        """Return the masks ``index``: integers in any order, or ``(M,)`` bool.

        Raises:
            ValueRangeError: An index out of range, or bool of a wrong length.
        """
        try:
            array = index.detach().cpu().numpy() if isinstance(index, Tensor) else np.asarray(index)
            if array.dtype == np.bool_ and array.shape != (len(self),):
                raise IndexError(f"bool must have one entry per mask; got {array.shape}")
            chosen = np.arange(len(self))[array if array.size else np.empty(0, np.int64)]
            if chosen.ndim != 1:
                raise IndexError("it must be a list of integers, or of bool")
        except IndexError as error:
            raise ValueRangeError(f"index must choose from {len(self)} masks: {error}.") from error
        runs, offsets = select_masks(self.runs, self.offsets, chosen)
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
        """Return masks of the upright image, for masks that were made on the stored pixels of an image with EXIF data.

        Args:
            orientation: EXIF orientation, from 1 (upright) to 8: ``image.getexif().get(0x0112, 1)``.

        Raises:
            ValueRangeError: Another number, or masks on the grid, which have no pixels.

        Example:
            >>> stored = MaskSet.from_masks(np.array([[[True, False, False]]]))
            >>> stored.upright(6).masks()[0].int()  # rotated by 90 degrees
            tensor([[1],
                    [0],
                    [0]], dtype=torch.int32)
        """
        check_choice("orientation", orientation, range(1, 9))
        if orientation == 1:
            return self
        axes = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation, ())
        step = max(1, _MAX_DECODED // (self.size[0] * self.size[1]))
        parts = []
        for start in range(0, len(self), step):
            dense = self.select(range(start, min(start + step, len(self)))).masks()
            dense = dense.transpose(1, 2) if orientation >= 5 else dense
            parts.append(type(self).from_masks(dense.flip(axes)))
        size = self.size if orientation < 5 else self.size[::-1]
        rotated = join(parts, size)
        return replace(self, size=size, runs=rotated.runs, offsets=rotated.offsets)

    def _need_pixels(self) -> None:
        if self.coverage is not None:
            raise ValueRangeError("these masks are on the patch grid and have no pixels. Use masks in image pixels.")


def join(
    parts: Sequence[MaskSet], size: Size, *, scores: Scores | None = None, stability: Scores | None = None
) -> MaskSet:
    """Return the masks of several sets of one image as one set; there may be no set."""
    begins = np.cumsum([0] + [len(part.runs) for part in parts])
    runs = np.concatenate([np.empty(0, np.uint32), *(part.runs for part in parts)])
    ends = [part.offsets[1:] + begin for part, begin in zip(parts, begins[:-1], strict=True)]
    offsets = np.concatenate([np.zeros(1, np.int64), *ends])
    return MaskSet(size, runs, offsets, *check_scores(len(offsets) - 1, scores, stability))
