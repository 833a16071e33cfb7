"""The segmentation source: masks are mapped to the patch grid in the way in which the encoder places the image."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regiontok._checks import check_grid, check_size, check_sizes
from regiontok._coverage import CheckedMasks, cover_exactly, cover_in_two_steps, size_of
from regiontok.batch import Features, PatchBatch, Valid, flatten_valid
from regiontok.clustering import UnionFindClusterer
from regiontok.errors import DTypeError, RegiontokError, ShapeError, ValueRangeError
from regiontok.geometry import ImageGeometry, Placement, Size
from regiontok.mask_formats import as_bytes
from regiontok.maskset import MaskSet
from regiontok.options import check_option
from regiontok.regions import Dropped, Regions
from regiontok.tracks import TrackSet, check_frames, grid_of

Masks = CheckedMasks | TrackSet | Image.Image | Mapping[str, Any] | Sequence[Any]
"""One image's masks: a `MaskSet`; ``(M, height, width)`` bool or uint8, or a list of ``(height, width)``; a label map,
array or Pillow image; or what `MaskSet.from_coco` and `MaskSet.from_sam` take. One clip's masks: a `TrackSet`."""


class MaskDownsampler:
    """Downsample masks to the patch grid: a patch is in a mask that covers more than ``min_coverage`` of it.

    The geometry maps each pixel of a mask to a small rectangle on the encoder's input. The covered fraction of a patch
    is the exact area of these rectangles within the patch, also for pixels that cross its edge. Run-length encoded
    masks are not decoded; contiguous bool arrays are read once and not copied.

    The masks of a clip are a `TrackSet`, of the frames that the features are of. A region of a track contains the
    patches of all its masks; frames without annotation have unassigned patches only.

    A mask without a patch becomes no region and is listed in ``Regions.dropped``. An image without a region gets one of
    all its valid patches and is marked in ``Regions.fallback``.

    Args:
        grid: Rows and columns of patches; by default those of the features of each image.
        geometry: How the encoder places images on its input, ``encoder.geometry``; not needed for masks on the grid
            (`MaskSet.on_grid`).
        min_coverage: The covered fraction in ``[0, 1]`` above which a patch is in a mask.
        downsampling: ``exact``, or ``two_step``: masks resized to the input by nearest pixel, then averaged per patch.
        unassigned: Patches of the image in no mask: ``drop`` leaves them out, ``background`` makes one region of them,
            ``single_patches`` makes each a region, ``cluster`` merges similar neighbours. Padding is always left out.
        overlap: ``keep`` leaves a patch in several masks in all of them; ``assign_smallest`` assigns it to the mask
            with the fewest patches, the first of these in case of a tie.
        clusterer: Clusterer for ``unassigned="cluster"``; by default a `UnionFindClusterer` with threshold 0.7.
        rescale: Resize masks whose size differs from that of their image, instead of rejecting them.

    Raises:
        DTypeError, ShapeError, ValueRangeError: An invalid option.

    Example:
        >>> half = torch.zeros(1, 100, 200, dtype=torch.bool)
        >>> half[:, :, :100] = True  # the left half of an image of 100 x 200
        >>> downsampler = MaskDownsampler(grid=(4, 4), geometry=ImageGeometry.letterbox(64))
        >>> downsampler([half]).masks()[0].int()
        tensor([[[0, 0, 0, 0],
                 [1, 1, 0, 0],
                 [1, 1, 0, 0],
                 [0, 0, 0, 0]]], dtype=torch.int32)

    Source:
        Supplement A.1: masks are preprocessed like the image and average-pooled per patch, with threshold 0.07;
        ``two_step`` follows this literally. Exact areas, ``unassigned``, ``overlap`` and the fallback region are ours.
    """

    def __init__(
        self,
        grid: Size | None = None,
        *,
        geometry: ImageGeometry | None = None,
        min_coverage: float = 0.07,
        downsampling: str = "exact",
        unassigned: str = "drop",
        overlap: str = "keep",
        clusterer: UnionFindClusterer | None = None,
        rescale: bool = False,
    ) -> None:
        if grid is not None:
            grid = check_grid(grid)
        if geometry is not None and not isinstance(geometry, ImageGeometry):
            raise DTypeError(f"geometry must be an ImageGeometry, such as encoder.geometry; got {geometry!r}.")
        self.grid = grid
        self.geometry = geometry
        self.min_coverage = check_option("min_coverage", min_coverage)
        self.downsampling = check_option("downsampling", downsampling)
        self.unassigned = check_option("unassigned", unassigned)
        self.overlap = check_option("overlap", overlap)
        self.clusterer = clusterer or UnionFindClusterer()
        self.rescale = rescale

    def __repr__(self) -> str:
        return (
            f"MaskDownsampler(grid={self.grid}, geometry={self.geometry}, min_coverage={self.min_coverage}, "
            f"downsampling={self.downsampling!r}, unassigned={self.unassigned!r}, overlap={self.overlap!r}, "
            f"clusterer={self.clusterer}, rescale={self.rescale})"
        )

    def __call__(
        self,
        masks: Sequence[Masks],
        *,
        features: Features | None = None,
        valid: Valid | None = None,
        sizes: Sequence[Size] | None = None,
    ) -> Regions:
        """Return the regions of a batch: those of each image's masks in their order, then those of unassigned patches.

        Args:
            masks: One entry per image: a `MaskSet`; ``(M, height, width)`` bool or uint8, or a list of ``(height,
                width)``; a label map, ``(height, width)`` of integers or a Pillow image; or what `MaskSet.from_coco`
                and `MaskSet.from_sam` take. The entry of an image without masks is an empty one of these. The entry of
                a clip is a `TrackSet`.
            features: ``(B, rows, cols, D)`` or a list of ``(rows, cols, D)``; required for ``unassigned='cluster'`` and
                if ``grid`` is None.
            valid: Patches that may be in a region; by default those that show the image. Without ``sizes``, masks whose
                shape contradicts ``valid`` are rejected.
            sizes: Height and width of each image, to check the sizes of its masks. By default the masks are assumed to
                have the size of their image.

        Raises:
            DTypeError, ShapeError, ValueRangeError: Invalid masks or sizes, or masks that do not fit ``valid``; the
                message names the image.
        """
        return self.with_valid(masks, features=features, valid=valid, sizes=sizes)[0]

    def with_valid(
        self,
        masks: Sequence[Masks],
        *,
        features: Features | None = None,
        valid: Valid | None = None,
        sizes: Sequence[Size] | None = None,
    ) -> tuple[Regions, list[Tensor]]:
        """Return the regions of a call and the valid patches of each image, reading the masks once."""
        prepared, coverages, inferred, shapes, mask_sizes = [], [], [], [], []
        for image_masks, shape, placement, shown in self._read(masks, features, sizes):
            prepared.append(image_masks)
            coverages.append(self._cover(image_masks, shape, placement))
            inferred.append(shown)
            shapes.append(shape)
            mask_sizes.append(None if placement is None else size_of(image_masks))
        device = coverages[0].device if features is None else PatchBatch.of(features).device
        coverages = [covered.to(device) for covered in coverages]
        if valid is None:
            valid = inferred
        flatten_valid(valid, shapes)
        if sizes is None and valid is not inferred:
            for image, (by_masks, by_caller, size) in enumerate(zip(inferred, valid, mask_sizes, strict=True)):
                if size is not None:
                    shown_by = by_masks.reshape(-1, *by_masks.shape[-2:])[0]
                    shown = by_caller.cpu().reshape(-1, *by_masks.shape[-2:])[0]
                    _check_position(image, shown_by, shown, size, slack=int(self.rescale))
        on_grid = [self._assign(covered, shown.to(device)) for covered, shown in zip(coverages, valid, strict=True)]
        scores = [
            torch.from_numpy(image_masks.scores)
            if isinstance(image_masks, MaskSet | TrackSet)
            else _no_scores(len(assigned))
            for image_masks, assigned in zip(prepared, on_grid, strict=True)
        ]
        index = [torch.arange(len(assigned), device=device) for assigned in on_grid]
        if self.unassigned != "drop":
            for image, others in enumerate(self._regions_of_unassigned(on_grid, features, valid)):
                on_grid[image] = torch.cat([on_grid[image], others.to(device)])
                scores[image] = torch.cat([scores[image], _no_scores(len(others))])
                index[image] = torch.cat([index[image], torch.full((len(others),), -1, device=device)])
        regions = Regions.from_masks(on_grid, scores=scores, valid=valid, mask_index=index)
        largest = [covered.flatten(1).amax(1).tolist() if len(covered) else [] for covered in coverages]
        dropped = (
            self._explain(mask, prepared[mask.image], largest[mask.image][mask.mask_index]) for mask in regions.dropped
        )
        return replace(regions, dropped=tuple(dropped)), list(valid)

    def coverage(self, masks: Masks, *, grid: Size | None = None, size: Size | None = None) -> Tensor:
        """Return the fraction of each patch that each mask covers: ``(M, rows, cols)`` float32; of clips with frames.

        Args:
            masks: The masks of one image, as in a call.
            grid: Rows and columns, if the downsampler has no grid.
            size: Height and width of the image, if it may differ from that of the masks.

        Raises:
            DTypeError, ShapeError, ValueRangeError: Invalid masks or size.
        """
        if self.grid is not None and grid not in (None, self.grid):
            raise ShapeError(f"this downsampler's grid is {self.grid}; got {grid}. Leave it out.")
        grid = self.grid or grid
        if grid is None:
            raise ShapeError("coverage needs a grid; this downsampler has none. Pass grid=(rows, cols).")
        size = None if size is None else check_size("size", size)
        prepared = _prepare(masks, size)
        placement = self._place(prepared, grid, size)
        return self._cover(prepared, grid_of(prepared, grid) if isinstance(prepared, TrackSet) else grid, placement)

    def valid(
        self, masks: Sequence[Masks], *, features: Features | None = None, sizes: Sequence[Size] | None = None
    ) -> list[Tensor]:
        """Return the patches that show each image, ``(rows, cols)`` bool; arguments and errors are those of a call.

        For masks on the grid these are ``MaskSet.valid``, or follow from the size of the image; otherwise all patches.
        """
        return [shown for _, _, _, shown in self._read(masks, features, sizes)]

    def _read(
        self, masks: Sequence[Masks], features: Features | None, sizes: Sequence[Size] | None
    ) -> Iterator[tuple[CheckedMasks | TrackSet, tuple[int, ...], Placement | None, Tensor]]:
        """Yield for each image its checked masks, its grid, its placement, and the patches that show it."""
        if isinstance(masks, MaskSet | Tensor | np.ndarray) or not isinstance(masks, Sequence):
            raise DTypeError(
                f"masks must be a list with one entry per image; got {type(masks).__name__}. Pass [masks] for one "
                "image, or list(masks) for a batch."
            )
        if not masks:
            raise ShapeError("masks must hold an entry for at least one image; got an empty list.")
        grids = self._grids(masks, features)
        sizes = None if sizes is None else check_sizes("sizes", sizes, len(masks))
        for image, (image_masks, grid) in enumerate(zip(masks, grids, strict=True)):
            try:
                size = None if sizes is None else sizes[image]
                prepared = _prepare(image_masks, size)
                check_frames(prepared, grid)
                placement = self._place(prepared, grid, size)
                yield prepared, grid, placement, self._shown(prepared, grid, placement, size)
            except RegiontokError as error:
                raise type(error)(f"masks[{image}]: {error}") from error

    def _grids(self, masks: Sequence[Masks], features: Features | None) -> list[tuple[int, ...]]:
        """Return rows and columns of each image; in a batch with clips after the number of frames."""
        if features is None:
            if self.grid is None or self.unassigned == "cluster":
                why = "unassigned='cluster'" if self.grid else "a downsampler without a grid"
                raise ValueRangeError(f"{why} needs the features; pass features=... too.")
            has_clips = any(isinstance(entry, TrackSet) for entry in masks)
            return [grid_of(entry, self.grid) if has_clips else self.grid for entry in masks]
        shapes = PatchBatch.of(features).shapes
        if len(shapes) != len(masks):
            raise ShapeError(f"masks must have one entry per image, {len(shapes)} in features; got {len(masks)}.")
        for image, shape in enumerate(shapes):
            if self.grid not in (None, shape[-2:]):
                raise ShapeError(f"features[{image}] must have this downsampler's grid {self.grid}; got {shape[-2:]}.")
        return [tuple(shape) for shape in shapes]

    def _place(self, masks: CheckedMasks | TrackSet, grid: tuple[int, ...], size: Size | None) -> Placement | None:
        """Return the placement of an image on the input; None for masks on the grid."""
        if isinstance(masks, MaskSet) and masks.coverage is not None:
            if masks.size != grid[-2:]:
                raise ShapeError(f"masks on the grid must have {grid[-2:]} patches; got {masks.size}.")
            return None
        if self.geometry is None:
            raise ValueRangeError(
                "masks of an image need the geometry by which the image was placed; pass geometry=encoder.geometry, or "
                "masks made by MaskSet.on_grid."
            )
        mask_size = size_of(masks)
        size = mask_size if size is None else size
        if mask_size != size and not self.rescale:
            hint = " Masks come first: masks.transpose(2, 0, 1)." if _has_masks_last(masks, size) else ""
            raise ShapeError(
                f"masks must be of their image's size {size}; got {mask_size}.{hint} Resize them to the image, or use "
                "a MaskDownsampler with rescale=True, which stretches them."
            )
        return self.geometry.place(size)

    def _shown(
        self, masks: CheckedMasks | TrackSet, grid: tuple[int, ...], placement: Placement | None, size: Size | None
    ) -> Tensor:
        """Return the patches that show an image, ``(rows, cols)`` bool, or a clip, ``(frames, rows, cols)``."""
        if isinstance(masks, MaskSet) and masks.valid is not None:
            return masks.valid.expand(grid)
        if placement is None and size is not None and self.geometry is not None:
            placement = self.geometry.place(size)
        shown = torch.ones(grid, dtype=torch.bool, device="cpu")
        return shown if placement is None else placement.valid((grid[-2], grid[-1])) & shown

    def _cover(self, masks: CheckedMasks | TrackSet, grid: tuple[int, ...], placement: Placement | None) -> Tensor:
        """Return the covered fraction of each patch, ``(M, rows, cols)``, or of a clip ``(M, frames, rows, cols)``."""
        if isinstance(masks, TrackSet):
            covered = torch.zeros(len(masks), *grid)
            for number, frame in masks.frames.items():
                covered[masks.rows(frame), number] = self._cover_image(frame, (grid[-2], grid[-1]), placement)
            return covered
        covered = self._cover_image(masks, (grid[-2], grid[-1]), placement)
        return covered[:, None] if len(grid) == 3 else covered

    def _cover_image(self, masks: CheckedMasks, grid: Size, placement: Placement | None) -> Tensor:
        if placement is None:
            return masks.coverage  # type: ignore[union-attr, return-value]
        cover = cover_in_two_steps if self.downsampling == "two_step" else cover_exactly
        return cover(masks, placement, grid)

    def _assign(self, coverage: Tensor, valid: Tensor) -> Tensor:
        """Return the (valid) patches of each mask, bool in the shape of ``coverage``."""
        assigned = (coverage > self.min_coverage) & valid
        if self.overlap == "assign_smallest" and len(assigned):
            rank = assigned.flatten(1).sum(1).argsort(stable=True).argsort().reshape(-1, *[1] * valid.ndim)
            assigned &= rank == torch.where(assigned, rank, len(assigned)).amin(0)
        return assigned

    def _regions_of_unassigned(self, on_grid: list[Tensor], features: Features | None, valid: Valid) -> list[Tensor]:
        """Return for each image the regions of patches in no mask, ``(R, rows, cols)`` bool."""
        unassigned = [~masks.any(0) & shown.to(masks.device) for masks, shown in zip(on_grid, valid, strict=True)]
        if self.unassigned == "background":
            return [patches[None][: int(patches.any())] for patches in unassigned]
        if self.unassigned == "single_patches":
            single = []
            for patches in unassigned:
                patch = patches.flatten().nonzero().squeeze(1)
                rows = torch.zeros(len(patch), patches.numel(), dtype=torch.bool, device=patches.device)
                single.append(rows.scatter_(1, patch[:, None], True).unflatten(1, patches.shape))
            return single
        regions_of = [patches.new_zeros(0, *patches.shape) for patches in unassigned]
        images = [image for image, patches in enumerate(unassigned) if patches.any()]
        if images and features is not None:
            batch = PatchBatch.of(features).select(images)
            regions = self.clusterer(batch, [unassigned[image] for image in images])
            for image, masks in zip(images, regions.masks(), strict=True):
                regions_of[image] = masks
        return regions_of

    def _explain(self, dropped: Dropped, masks: CheckedMasks | TrackSet, most: float) -> Dropped:
        """Add the reason why a mask that covers at most a fraction ``most`` of a patch became no region."""
        if isinstance(masks, TrackSet) and not masks.has_mask(dropped.mask_index):
            reason = "has no mask in these frames"
        elif most == 0:
            reason = "is outside the part of the image that the encoder sees"
        elif not most > np.float32(self.min_coverage):  # the comparison of `_assign`
            reason = f"covers no patch by more than {self.min_coverage:g}"
        elif self.overlap == "assign_smallest":
            reason = "each of its patches is in a smaller mask or not valid"
        else:
            reason = "covers no valid patch"
        return dropped._replace(reason=reason)


def _no_scores(count: int) -> Tensor:
    return torch.full((count,), torch.nan, device="cpu")


def _check_position(image: int, by_masks: Tensor, valid: Tensor, size: Size, slack: int) -> None:
    """Reject masks whose position on the input contradicts ``valid``, as masks of another size do.

    The position of the image can be inferred from ``valid`` only if it is a centred rectangle that spans the grid in at
    least one direction, as a geometry places images.
    """
    (top, bottom), (left, right) = _span(valid.any(1)), _span(valid.any(0))
    rows, cols = valid.shape
    is_rectangle = bool(valid[top : bottom + 1, left : right + 1].all())
    down, across = abs(top - (rows - 1 - bottom)), abs(left - (cols - 1 - right))
    fills = bottom - top + 1 == rows or right - left + 1 == cols
    if not (is_rectangle and fills and max(down, across) <= 1):
        return
    bounds = (*_span(by_masks.any(1)), *_span(by_masks.any(0)))
    if max(abs(a - b) for a, b in zip(bounds, (top, bottom, left, right), strict=True)) <= slack:
        return
    raise ShapeError(
        f"masks[{image}] have {size[0]} x {size[1]} pixels, which occupy rows {bounds[0]} to {bounds[1]} and columns "
        f"{bounds[2]} to {bounds[3]} of the grid; valid shows the image in rows {top} to {bottom} and columns {left} "
        f"to {right}. Masks must be (masks, height, width) of their image. Pass sizes too if valid is correct."
    )


def _span(line: Tensor) -> tuple[int, int]:
    """Return the first and the last index at which a vector is true."""
    positions = line.nonzero()
    return int(positions[0]), int(positions[-1])


def _has_masks_last(masks: CheckedMasks | TrackSet, size: Size) -> bool:
    """Return whether dense masks are ``(height, width, masks)``."""
    return not isinstance(masks, MaskSet | TrackSet) and tuple(masks.shape[:2]) == size


def _prepare(masks: Masks, size: Size | None) -> CheckedMasks | TrackSet:
    """Return an image's masks in one of three forms: runs, dense uint8, or a dense tensor on another device."""
    if isinstance(masks, TrackSet):
        return masks
    if not isinstance(masks, Tensor | np.ndarray) or (masks.ndim == 2 and masks.dtype not in (torch.bool, np.bool_)):
        return MaskSet.of(masks, size=size)
    if isinstance(masks, Tensor) and masks.device.type != "cpu" and masks.dtype == torch.bool and masks.ndim == 3:
        return masks
    return as_bytes(masks)
