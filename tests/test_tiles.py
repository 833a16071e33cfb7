"""Images in several grids: budgets shared, masks cut and brought together."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regiontok import ImageGeometry, MaskDownsampler, MaskSet, Regions
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.tiles import (
    Tile,
    TileLayout,
    by_layout,
    count_images,
    cut_masks,
    join_tiles,
    make_tiles,
    share_budget,
    uncut_images,
)

SIDE, PIXELS = (4, 3), (40, 30)
tilings = st.lists(
    st.one_of(st.tuples(st.integers(1, 3), st.integers(1, 3)), st.integers(1, 7)), min_size=1, max_size=4
)


@given(tilings, st.booleans(), st.booleans(), st.booleans())
def test_views_cover_every_tile_once(cut, stitched, block_per_tile, first):
    tiles = make_tiles(
        cut,
        SIDE,
        PIXELS,
        is_joined=stitched and not block_per_tile,
        block_per_tile=block_per_tile,
        thumbnail_first=first,
    )
    assert count_images(tiles) == len(cut)
    for image, one in enumerate(cut):
        own = [tile for tile in tiles if tile.image == image]
        images = one if isinstance(one, int) else one[0] * one[1] + (one != (1, 1))
        assert sum(tile.patches for tile in own) == images * 12
        assert len({tile.block for tile in own}) == (images if block_per_tile else 1)
        if not isinstance(one, int) and one != (1, 1):
            whole = torch.zeros(one[0] * 4, one[1] * 3, dtype=torch.int64)
            for tile in own[1:] if first else own[:-1]:
                (rows, cols), top, left = tile.grid, tile.layout.top, tile.layout.left
                whole[top : top + rows, left : left + cols] += 1
            assert (whole == 1).all()
    assert [tile.block for tile in tiles] == sorted(tile.block for tile in tiles)


@given(tilings, st.lists(st.integers(1, 200), min_size=4, max_size=4))
def test_a_budget_is_shared_in_proportion_and_kept(cut, budgets):
    tiles = make_tiles(cut, SIDE, PIXELS, is_joined=True)
    budgets = budgets[: len(cut)]
    counts = [sum(tile.image == image for tile in tiles) for image in range(len(cut))]
    if any(budget < count for budget, count in zip(budgets, counts, strict=True)):
        with pytest.raises(ValueRangeError, match=r"num_regions must be at least \d+ for image \d+, whose tiles need"):
            share_budget(tiles, budgets)
        return
    shared = share_budget(tiles, budgets)
    for image, budget in enumerate(budgets):
        own = [(tile.patches, share) for tile, share in zip(tiles, shared, strict=True) if tile.image == image]
        patches = sum(size for size, _ in own)
        assert sum(share for _, share in own) == min(budget, patches)
        for size, share in own:
            assert 1 <= share <= size
            assert abs(share - min(budget, patches) * size / patches) <= len(own) + 1


def test_tiles_are_stitched_row_by_row():
    rows, cols = torch.meshgrid(torch.arange(8), torch.arange(9), indexing="ij")
    whole = torch.stack([rows, cols], -1)
    parts = torch.stack([whole[4 * row : 4 * row + 4, 3 * col : 3 * col + 3] for row in range(2) for col in range(3)])
    assert torch.equal(join_tiles(parts, 2, 3), whole)


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


def test_padding_of_a_whole_canvas_is_known():
    layout = TileLayout(ImageGeometry.letterbox(40), (4, 4))
    tile = Tile(0, 0, (4, 4), layout)
    assert tile.valid([(20, 40)]).sum() == 8
    assert tile.valid(None) is None
    assert Tile(0, 0, (2, 4), TileLayout(ImageGeometry.letterbox(40), (4, 4), 1)).valid([(20, 40)]) is None


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
