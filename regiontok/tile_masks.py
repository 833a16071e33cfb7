"""Masks of images on the grids of their tiles, and regions of tiles on the grid of their image."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regiontok.downsample import MaskDownsampler, Masks
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.geometry import ImageGeometry, Size
from regiontok.maskset import MaskSet
from regiontok.regions import Regions
from regiontok.tiles import Tile, TileLayout, count_images


def cut_masks(
    tiles: Sequence[Tile], masks: Sequence[Masks], sizes: Sequence[Size] | None, **options: Any
) -> list[MaskSet]:
    """Return the masks of each image on the grids of its tiles. Every tile has all masks, so their numbers are kept.

    Args:
        tiles: The tiles of a batch.
        masks: One entry per image; see `MaskDownsampler`.
        sizes: Height and width of each image; masks of another size are rejected.
        options: ``downsampling``, ``min_coverage`` and ``overlap`` of `MaskDownsampler`. Overlaps are resolved on the
            whole image.

    Raises:
        ShapeError: Not one entry per image, or masks of another size than their image.
        ValueRangeError: Masks on the grid, which cannot be cut, or an image whose tile layout is not known.
    """
    images = count_images(tiles)
    for name, values in (("masks", masks), ("image_sizes", sizes)):
        if values is not None and len(values) != images:
            raise ShapeError(f"{name} must have one entry per image, {images}; got {len(values)}.")
    mask_sets = [
        MaskSet.of(image_masks, size=None if sizes is None else sizes[image]) for image, image_masks in enumerate(masks)
    ]
    for image, mask_set in enumerate(mask_sets):
        if mask_set.coverage is not None:
            raise ValueRangeError(f"masks[{image}] are on a grid, and its image has several. Pass masks of the image.")
    covered: dict[tuple[int, ImageGeometry, Size], Tensor] = {}
    parts = []
    for tile in tiles:
        mask_set, layout = mask_sets[tile.image], tile.layout
        if layout is None:
            raise ValueRangeError(
                f"the layout of the tiles of image {tile.image} is not known, so its masks cannot be cut. Pass "
                "tilings, the rows and columns of each image, as tilings_of(processor, images) returns them."
            )
        key = tile.image, layout.geometry, layout.grid
        if key not in covered:
            downsampler = MaskDownsampler(layout.grid, geometry=layout.geometry, **options)
            size = None if sizes is None else sizes[tile.image]
            covered[key] = downsampler.coverage(mask_set, size=size)
            if downsampler.overlap != "keep":
                covered[key] = _assign(downsampler, mask_set, len(covered[key]))
        (rows, cols), top, left = tile.grid, layout.top, layout.left
        part = covered[key][:, top : top + rows, left : left + cols]
        parts.append(
            MaskSet.on_grid(part, valid=tile.valid(sizes), scores=mask_set.scores, stability=mask_set.stability)
        )
    return parts


def by_layout(regions: Regions, tiles: Sequence[Tile], image: int = 0) -> list[tuple[TileLayout, Regions, Tensor]]:
    """Return the regions of an image on its whole grids: that of the thumbnail, and that of all other tiles.

    Args:
        regions: The regions of a batch of tiles.
        tiles: The tiles.
        image: Number of the image.

    Returns:
        For each whole grid: its layout, its regions as a batch of one image, and their indices in ``regions``. Tiles
        without a known layout are left out.
    """
    starts = regions.counts.cumsum(0) - regions.counts
    members: dict[tuple[ImageGeometry, Size], list[int]] = {}
    for number, tile in enumerate(tiles):
        if tile.image == image and tile.layout is not None:
            members.setdefault((tile.layout.geometry, tile.layout.grid), []).append(number)
    layouts = []
    masks = regions.masks()
    for (geometry, grid), numbers in members.items():
        parts = []
        for number in numbers:
            layout, (rows, cols) = tiles[number].layout or TileLayout(geometry, grid), tiles[number].grid
            right, below = grid[1] - layout.left - cols, grid[0] - layout.top - rows
            parts.append(nn.functional.pad(masks[number], (layout.left, right, layout.top, below)))
        index = [torch.arange(int(regions.counts[number])) + int(starts[number]) for number in numbers]
        layouts.append((TileLayout(geometry, grid), Regions.from_masks([torch.cat(parts)]), torch.cat(index)))
    return layouts


def _assign(downsampler: MaskDownsampler, masks: MaskSet, count: int) -> Tensor:
    """Return the patches of each mask, ``(M, rows, cols)`` bool, with each patch in at most one mask."""
    regions = downsampler([masks])
    assigned = torch.zeros(count, *regions.grids[0].tolist(), dtype=torch.bool)
    has_mask = regions.mask_index >= 0
    assigned[regions.mask_index[has_mask]] = regions.masks()[0][has_mask]
    return assigned
