"""Masks cut to the tiles of an image, and regions of tiles on the grid of their image."""

import numpy as np
import pytest
import torch

from regiontok import ImageGeometry, MaskDownsampler, MaskSet, Regions
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.tile_masks import by_layout, cut_masks
from regiontok.tiles import make_tiles, uncut_images

SIDE, PIXELS = (4, 3), (40, 30)


@pytest.mark.parametrize("overlap", ["keep", "assign_smallest"])
def test_masks_are_cut_as_the_image_is(overlap):
    """Against masks of the whole layout, cut by hand; odd sizes and shapes."""
    generator = np.random.default_rng(0)
    masks = np.zeros((3, 77, 53), bool)
    for one in masks:
        top, left = generator.integers(0, 40, 2)
        one[top : top + generator.integers(5, 37), left : left + generator.integers(5, 30)] = True
    tiles = make_tiles([(3, 2)], SIDE, PIXELS, block_per_tile=True)
    cut = cut_masks(tiles, [masks], [(77, 53)], overlap=overlap, min_coverage=0.3)
    for (grid, geometry), some in (
        (((12, 6), ImageGeometry.squash((120, 60))), list(zip(tiles, cut, strict=True))[:-1]),
        ((SIDE, ImageGeometry.squash(PIXELS)), list(zip(tiles, cut, strict=True))[-1:]),
    ):
        whole = MaskDownsampler(grid, geometry=geometry, overlap=overlap, min_coverage=0.3)
        expected = torch.zeros(3, *grid, dtype=torch.bool)
        regions = whole([masks])
        expected[regions.mask_index] = regions.masks()[0]
        for tile, one in some:
            top, left = tile.layout.top, tile.layout.left
            part = expected[:, top : top + 4, left : left + 3]
            assert torch.equal(one.coverage > 0.3, part)


def test_masks_that_cannot_be_cut_are_refused():
    tiles = make_tiles([(1, 2), 3], SIDE, PIXELS)
    half = np.ones((1, 20, 20), bool)
    for masks, sizes, error, message in (
        ([half], None, ShapeError, "masks must have one entry per image, 2; got 1"),
        ([half, half], None, ValueRangeError, "the layout of the tiles of image 1 is not known"),
        ([half, half], [(20, 21), (20, 20)], ShapeError, "masks must be of their image's size"),
        (
            [MaskSet.on_grid(torch.ones(1, 4, 3)), half],
            None,
            ValueRangeError,
            r"masks\[0\] are on a grid, and its image",
        ),
    ):
        with pytest.raises(error, match=message):
            cut_masks(tiles, masks, sizes)


def test_regions_of_tiles_come_together_on_their_canvas():
    tiles = [*make_tiles([(1, 2)], (2, 2), (20, 20)), *uncut_images([(2, 2)])]
    labels = [
        torch.tensor([[0, 0], [1, 1]]),
        torch.tensor([[0, 1], [0, 1]]),
        torch.zeros(2, 2).long(),
        torch.zeros(2, 2).long(),
    ]
    regions = Regions.from_labels(labels)
    tiles_of_it, thumbnail = by_layout(regions, tiles)
    layout, together, index = tiles_of_it
    assert layout.grid == (2, 4)
    assert index.tolist() == [0, 1, 2, 3]
    assert together.labels()[0].tolist() == [[0, 0, 2, 3], [1, 1, 2, 3]]
    assert thumbnail[2].tolist() == [4]
