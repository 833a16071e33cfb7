"""Images in several grids, and how budgets are shared."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regiontok import ImageGeometry
from regiontok.errors import ValueRangeError
from regiontok.tiles import (
    Tile,
    TileLayout,
    count_images,
    count_tokens,
    join_tiles,
    make_tiles,
    share_budget,
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


def test_padding_of_a_whole_canvas_is_known():
    layout = TileLayout(ImageGeometry.letterbox(40), (4, 4))
    tile = Tile(0, 0, (4, 4), layout)
    assert tile.valid([(20, 40)]).sum() == 8
    assert tile.valid(None) is None
    assert Tile(0, 0, (2, 4), TileLayout(ImageGeometry.letterbox(40), (4, 4), 1)).valid([(20, 40)]) is None


def test_tokens_of_an_image_with_several_grids():
    for patches, grids, budget, expected in (
        (576, 1, {"num_regions": 128}, 128), (576, 1, {"num_regions": 999}, 576), (60, 2, {"keep": 0.25}, 15),
        (60, 2, {"keep": 0.001}, 2), (60, 2, {"num_regions": 2}, 2),
    ):  # fmt: skip
        assert count_tokens(patches, grids, **budget) == expected
    with pytest.raises(ValueRangeError, match="num_regions must be at least 2 for image 0"):
        count_tokens(60, 2, num_regions=1)
