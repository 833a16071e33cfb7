"""Masks on the patch grid: they are resized, padded and cropped as the image is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regiontok._checks import (
    Features,
    Valid,
    check_choice,
    check_features,
    check_grid,
    check_number,
    check_size,
    check_sizes,
    flatten_valid,
)
from regiontok._kernels import rle
from regiontok.choices import METHODS, OVERLAPS, UNCOVERED
from regiontok.clustering import UnionFindClusterer
from regiontok.errors import DTypeError, RegiontokError, ShapeError, ValueRangeError
from regiontok.geometry import ImageGeometry, Placement, Size
from regiontok.mask_formats import as_bytes
from regiontok.maskset import MaskSet
from regiontok.regions import Dropped, Regions

Masks = MaskSet | np.ndarray | Tensor | Image.Image | Mapping[str, Any] | Sequence[Any]
"""One image's masks: a `MaskSet`; ``(M, height, width)`` bool or uint8, or a list of ``(height, width)``; a label map,
array or Pillow image; or what `MaskSet.from_coco` and `MaskSet.from_sam` take."""


class MaskDownsampler:
    """Downsample masks to the patch grid: a patch is in a mask that covers more than ``threshold`` of it.

    The geometry maps each pixel of a mask to a small rectangle on the encoder's input. The covered fraction of a patch
    is the exact area of these rectangles within the patch, also for pixels that cross its edge. Run-length encoded
    masks are not decoded; contiguous bool arrays are read once and not copied.

    A mask without a patch becomes no region and is listed in ``Regions.dropped``. An image without a region gets one of
    all its valid patches and is marked in ``Regions.fallback``.

    Args:
        grid: Rows and columns of patches; by default those of each image's features.
        geometry: How images are placed on the encoder's input: ``encoder.geometry``. Masks that are on the grid
            already (`MaskSet.on_grid`) need none.
        threshold: The covered fraction in ``[0, 1]`` above which a patch is in a mask.
        method: ``exact``, or ``two_step``: masks resized to the input by nearest pixel, then averaged per patch.
        uncovered: Patches of the image in no mask: ``drop`` leaves them out, ``background`` makes one region of them,
            ``single_patches`` one of each, ``cluster`` merges similar neighbours. Padding is never among them.
        overlap: ``keep``, or ``smallest``: a patch in several masks stays in the one with the fewest patches, the first
            of these where they tie.
        clusterer: For ``cluster``; by default a `UnionFindClusterer` at threshold 0.7.
        rescale: Resize masks of another size than their image to it, instead of rejecting them.

    Raises:
        DTypeError, ShapeError, ValueRangeError: An option that cannot be.

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
        Supplement A.1: masks preprocessed like the image, average-pooled per patch, threshold 0.07; ``two_step`` is
        this to the letter. Exact areas, ``uncovered``, ``overlap`` and the fallback region are our choice.
    """

    def __init__(
        self,
        grid: Size | None = None,
        *,
        geometry: ImageGeometry | None = None,
        threshold: float = 0.07,
        method: str = "exact",
        uncovered: str = "drop",
        overlap: str = "keep",
        clusterer: UnionFindClusterer | None = None,
        rescale: bool = False,
    ) -> None:
        if grid is not None:
            grid = check_grid(grid)
        if geometry is not None and not isinstance(geometry, ImageGeometry):
            raise DTypeError(f"geometry must be an ImageGeometry, such as encoder.geometry; got {geometry!r}.")
        check_number("threshold", threshold, low=0, high=1)
        check_choice("method", method, METHODS)
        check_choice("uncovered", uncovered, UNCOVERED)
        check_choice("overlap", overlap, OVERLAPS)
        self.grid = grid
        self.geometry = geometry
        self.threshold = threshold
        self.method = method
        self.uncovered = uncovered
        self.overlap = overlap
        self.clusterer = clusterer or UnionFindClusterer()
        self.rescale = rescale

    def __repr__(self) -> str:
        return (
            f"MaskDownsampler(grid={self.grid}, geometry={self.geometry}, threshold={self.threshold}, "
            f"method={self.method!r}, uncovered={self.uncovered!r}, overlap={self.overlap!r}, "
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
        """Return the regions of a batch: those of each image's masks in their order, then those of uncovered patches.

        Args:
            masks: One entry per image: a `MaskSet`; ``(M, height, width)`` bool or uint8, or a list of ``(height,
                width)``; a label map, ``(height, width)`` of integers or a Pillow image; or what `MaskSet.from_coco`
                and `MaskSet.from_sam` take. An entry of no masks is an empty one of these.
            features: ``(B, rows, cols, D)`` or a list of ``(rows, cols, D)``; for ``uncovered='cluster'``, and where
                ``grid`` is None.
            valid: Which patches may be in a region; by default those that show the image. Without ``sizes`` they tell
                whether masks are of their image's shape.
            sizes: Each image's height and width, to compare with its masks'. By default masks are their image's size.

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
        """Return the regions of a call, and which patches show each image, from one reading of the masks."""
        prepared, coverages, inferred, grids, mask_sizes = [], [], [], [], []
        for image_masks, grid, placement, shown in self._read(masks, features, sizes):
            prepared.append(image_masks)
            coverages.append(self._cover(image_masks, grid, placement))
            inferred.append(shown)
            grids.append(grid)
            mask_sizes.append(None if placement is None else _size_of(image_masks))
        device = coverages[0].device if features is None else features[0].device
        coverages = [covered.to(device) for covered in coverages]
        if valid is None:
            valid = inferred
        flatten_valid(valid, torch.tensor(grids, device="cpu"))  # checks it
        if sizes is None and valid is not inferred:
            for image, (by_masks, by_caller, size) in enumerate(zip(inferred, valid, mask_sizes, strict=True)):
                if size is not None:
                    _check_position(image, by_masks, by_caller.cpu(), size, slack=int(self.rescale))
        on_grid = [self._assign(covered, ok.to(device)) for covered, ok in zip(coverages, valid, strict=True)]
        scores = [
            torch.from_numpy(image_masks.scores) if isinstance(image_masks, MaskSet) else _no_scores(len(assigned))
            for image_masks, assigned in zip(prepared, on_grid, strict=True)
        ]
        index = [torch.arange(len(assigned), device=device) for assigned in on_grid]
        if self.uncovered != "drop":
            for image, others in enumerate(self._regions_of_uncovered(on_grid, features, valid)):
                on_grid[image] = torch.cat([on_grid[image], others.to(device)])
                scores[image] = torch.cat([scores[image], _no_scores(len(others))])
                index[image] = torch.cat([index[image], torch.full((len(others),), -1, device=device)])
        regions = Regions.from_masks(on_grid, scores=scores, valid=valid, mask_index=index)
        most = [covered.amax((1, 2)).tolist() if len(covered) else [] for covered in coverages]
        dropped = (self._explain(mask, most[mask.image][mask.mask_index]) for mask in regions.dropped)
        return replace(regions, dropped=tuple(dropped)), list(valid)

    def coverage(self, masks: Masks, *, grid: Size | None = None, size: Size | None = None) -> Tensor:
        """Return the fraction of each patch that each mask of an image covers, ``(M, rows, cols)`` float32.

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
        return self._cover(prepared, grid, self._place(prepared, grid, size))

    def valid(
        self, masks: Sequence[Masks], *, features: Features | None = None, sizes: Sequence[Size] | None = None
    ) -> list[Tensor]:
        """Return which patches show each image, ``(rows, cols)`` bool; arguments and errors are those of a call.

        For masks on the grid it is ``MaskSet.valid``, or follows from the size of the image; otherwise all patches.
        """
        return [shown for _, _, _, shown in self._read(masks, features, sizes)]

    def _read(
        self, masks: Sequence[Masks], features: Features | None, sizes: Sequence[Size] | None
    ) -> Iterator[tuple[MaskSet | np.ndarray | Tensor, Size, Placement | None, Tensor]]:
        """Yield for each image its checked masks, its grid, its placement, and which patches show it."""
        if isinstance(masks, MaskSet | Tensor | np.ndarray) or not isinstance(masks, Sequence):
            raise DTypeError(
                f"masks must be a list with one entry per image; got {type(masks).__name__}. Wrap it: [masks]."
            )
        if not masks:
            raise ShapeError("masks must hold an entry for at least one image; got an empty list.")
        grids = self._grids(len(masks), features)
        sizes = None if sizes is None else check_sizes("sizes", sizes, len(masks))
        for image, (image_masks, grid) in enumerate(zip(masks, grids, strict=True)):
            try:
                size = None if sizes is None else sizes[image]
                prepared = _prepare(image_masks, size)
                placement = self._place(prepared, grid, size)
                yield prepared, grid, placement, self._shown(prepared, grid, placement, size)
            except RegiontokError as error:
                raise type(error)(f"masks[{image}]: {error}") from error

    def _grids(self, count: int, features: Features | None) -> list[Size]:
        if features is None:
            if self.grid is None or self.uncovered == "cluster":
                why = "uncovered='cluster'" if self.grid else "a downsampler without a grid"
                raise ValueRangeError(f"{why} needs the features; pass features=... too.")
            return [self.grid] * count
        grids = [(rows, cols) for rows, cols in check_features(features).tolist()]
        if len(grids) != count:
            raise ShapeError(f"masks must have one entry per image, {len(grids)} in features; got {count}.")
        for image, grid in enumerate(grids):
            if self.grid not in (None, grid):
                raise ShapeError(f"features[{image}] must have this downsampler's grid {self.grid}; got {grid}.")
        return grids

    def _place(self, masks: MaskSet | np.ndarray | Tensor, grid: Size, size: Size | None) -> Placement | None:
        """Return the placement of an image on the input; None for masks that are on the grid."""
        if isinstance(masks, MaskSet) and masks.coverage is not None:
            if masks.size != grid:
                raise ShapeError(f"masks on the grid must be on {grid}; these are on {masks.size}.")
            return None
        if self.geometry is None:
            raise ValueRangeError(
                "masks of an image need the geometry by which the image was placed; pass geometry=encoder.geometry, or "
                "masks made by MaskSet.on_grid."
            )
        mask_size = _size_of(masks)
        size = mask_size if size is None else size
        if mask_size != size and not self.rescale:
            hint = " Masks come first: masks.transpose(2, 0, 1)." if _has_masks_last(masks, size) else ""
            raise ShapeError(
                f"masks must be of their image's size {size}; got {mask_size}.{hint} Resize them to the image, or use "
                "a MaskDownsampler with rescale=True, which stretches them."
            )
        return self.geometry.place(size)

    def _shown(
        self, masks: MaskSet | np.ndarray | Tensor, grid: Size, placement: Placement | None, size: Size | None
    ) -> Tensor:
        """Return which patches show an image, ``(rows, cols)`` bool."""
        if isinstance(masks, MaskSet) and masks.valid is not None:
            return masks.valid
        if placement is None and size is not None and self.geometry is not None:
            placement = self.geometry.place(size)
        return torch.ones(grid, dtype=torch.bool, device="cpu") if placement is None else placement.valid(grid)

    def _cover(self, masks: MaskSet | np.ndarray | Tensor, grid: Size, placement: Placement | None) -> Tensor:
        """Return the covered fractions of an image's patches, ``(M, rows, cols)``."""
        if placement is None:
            return masks.coverage  # type: ignore[union-attr, return-value]
        if self.method == "two_step":
            return _two_step(masks, placement, grid)
        size = _size_of(masks)
        edges = [
            (
                np.arange(size[axis] + 1) * (placement.image_size[axis] / size[axis]) * placement.scale[axis]
                + placement.offset[axis]
            )
            * (grid[axis] / placement.input[axis])
            for axis in (0, 1)
        ]
        if isinstance(masks, Tensor):  # not on the CPU
            return _cover_on_device(masks, edges, grid)
        covered = np.empty((len(masks), *grid), np.float32)
        if isinstance(masks, MaskSet):
            cut = [edge.clip(0, side) for edge, side in zip(edges, grid, strict=True)]
            rle.coverage_of_runs(masks.runs, masks.offsets, *cut, covered)
        else:
            rle.coverage_of_pixels(masks, *edges, covered)
        return torch.from_numpy(covered)

    def _assign(self, coverage: Tensor, valid: Tensor) -> Tensor:
        """Return the (valid) patches of each mask, ``(M, rows, cols)`` bool."""
        assigned = (coverage > self.threshold) & valid
        if self.overlap == "smallest" and len(assigned):
            rank = assigned.sum((1, 2)).argsort(stable=True).argsort()[:, None, None]
            assigned &= rank == torch.where(assigned, rank, len(assigned)).amin(0)
        return assigned

    def _regions_of_uncovered(self, on_grid: list[Tensor], features: Features | None, valid: Valid) -> list[Tensor]:
        """Return for each image the regions of patches in no mask, ``(R, rows, cols)`` bool."""
        uncovered = [~masks.any(0) & ok.to(masks.device) for masks, ok in zip(on_grid, valid, strict=True)]
        if self.uncovered == "background":
            return [patches[None][: int(patches.any())] for patches in uncovered]
        if self.uncovered == "single_patches":
            single = []
            for patches in uncovered:
                patch = patches.flatten().nonzero().squeeze(1)
                rows = torch.zeros(len(patch), patches.numel(), dtype=torch.bool, device=patches.device)
                single.append(rows.scatter_(1, patch[:, None], True).unflatten(1, patches.shape))
            return single
        regions_of = [patches.new_zeros(0, *patches.shape) for patches in uncovered]
        images = [image for image, patches in enumerate(uncovered) if patches.any()]
        if images and features is not None:
            regions = self.clusterer([features[image] for image in images], [uncovered[image] for image in images])
            for image, masks in zip(images, regions.masks(), strict=True):
                regions_of[image] = masks
        return regions_of

    def _explain(self, dropped: Dropped, most: float) -> Dropped:
        """Add the reason why a mask that covers at most a fraction ``most`` of a patch became no region."""
        if most == 0:
            reason = "covers nothing of what the encoder sees"
        elif not most > np.float32(self.threshold):  # the comparison of `_assign`
            reason = f"covers no patch by more than {self.threshold:g}"
        elif self.overlap == "smallest":
            reason = "each of its patches lies in a smaller mask, or is not valid"
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
    whole = bool(valid[top : bottom + 1, left : right + 1].all())
    down, across = abs(top - (rows - 1 - bottom)), abs(left - (cols - 1 - right))
    fills = bottom - top + 1 == rows or right - left + 1 == cols
    if not (whole and fills and max(down, across) <= 1):
        return
    bounds = (*_span(by_masks.any(1)), *_span(by_masks.any(0)))
    if max(abs(a - b) for a, b in zip(bounds, (top, bottom, left, right), strict=True)) <= slack:
        return
    raise ShapeError(
        f"masks[{image}] are of {size[0]} x {size[1]} pixels, which lie in rows {bounds[0]} to {bounds[1]} and columns "
        f"{bounds[2]} to {bounds[3]} of the grid; valid shows the image in rows {top} to {bottom} and columns {left} "
        f"to {right}. Masks must be (masks, height, width) of their image. Pass sizes too where valid is right."
    )


def _span(line: Tensor) -> tuple[int, int]:
    """Return the first and the last index at which a vector is true."""
    places = line.nonzero()
    return int(places[0]), int(places[-1])


def _has_masks_last(masks: MaskSet | np.ndarray | Tensor, size: Size) -> bool:
    """Return whether dense masks are ``(height, width, masks)``."""
    return not isinstance(masks, MaskSet) and tuple(masks.shape[:2]) == size


def _prepare(masks: Masks, size: Size | None) -> MaskSet | np.ndarray | Tensor:
    """Return an image's masks in one of three forms: runs, dense uint8, or a dense tensor on another device."""
    if not isinstance(masks, Tensor | np.ndarray) or (masks.ndim == 2 and masks.dtype not in (torch.bool, np.bool_)):
        return MaskSet.of(masks, size=size)
    if isinstance(masks, Tensor) and masks.device.type != "cpu" and masks.dtype == torch.bool and masks.ndim == 3:
        return masks
    return as_bytes(masks)


def _size_of(masks: MaskSet | np.ndarray | Tensor) -> Size:
    return masks.size if isinstance(masks, MaskSet) else (int(masks.shape[1]), int(masks.shape[2]))


def _two_step(masks: MaskSet | np.ndarray | Tensor, placement: Placement, grid: Size) -> Tensor:
    """Return coverage as in the paper: masks resized to the input by nearest pixel, then averaged per patch."""
    if any(side % patches for side, patches in zip(placement.input, grid, strict=True)):
        raise ShapeError(
            f"method='two_step' needs a grid that divides the input {placement.input}; got {grid}. Use method='exact'."
        )
    dense = masks.masks() if isinstance(masks, MaskSet) else torch.as_tensor(masks != 0)
    if tuple(dense.shape[1:]) != placement.image_size:
        row, col = (
            ((torch.arange(side, device="cpu") + 0.5) * mask_side / side).long()
            for side, mask_side in zip(placement.image_size, dense.shape[1:], strict=True)
        )
        dense = dense[:, row[:, None], col]
    placed = placement.mask(dense)
    height, width = (side // patches for side, patches in zip(placement.input, grid, strict=True))
    covered = torch.empty(len(placed), *grid, device=placed.device)
    for part, into in zip(placed.split(64), covered.split(64), strict=True):  # limits the memory of floats
        into.copy_(part.float().unflatten(2, (grid[1], width)).unflatten(1, (grid[0], height)).mean((2, 4)))
    return covered


def _cover_on_device(masks: Tensor, edges: list[np.ndarray], grid: Size) -> Tensor:
    """Return exact coverage by two matrix products in float64, on the device of the masks, in parts."""
    weights = []
    for edge, side in zip(edges, grid, strict=True):
        patch = np.arange(side)[:, None]
        overlap = np.minimum(edge[1:], patch + 1) - np.maximum(edge[:-1], patch)
        weights.append(torch.from_numpy(overlap.clip(min=0)).to(masks.device))
    step = max(1, 2**24 // masks[0].numel()) if len(masks) else 1
    with torch.autocast(masks.device.type, enabled=False):
        parts = [weights[0] @ part.double() @ weights[1].T for part in masks.split(step)]
    return torch.cat(parts).clamp_(0, 1).float() if parts else torch.empty(0, *grid, device=masks.device)
