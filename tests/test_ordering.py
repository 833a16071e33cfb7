import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regiontok import Regions, order_regions
from regiontok.choices import ORDERS
from regiontok.errors import ValueRangeError
from tests.conftest import random_labels


def scored(seed=0, *, count=6):
    generator = torch.Generator().manual_seed(seed)
    masks = [torch.rand(count, 4, 5, generator=generator) < 0.3 for _ in range(3)]
    return Regions.from_masks(masks, scores=[torch.randint(0, 4, (count,), generator=generator) / 4 for _ in range(3)])


def keys(regions):
    """Per order, what each region is sorted by, in plain Python; ties fall back on the first patch."""
    first = regions.patch[regions.starts].tolist()
    centroids, areas = regions.centroids().tolist(), regions.areas().tolist()
    return {
        "raster": first,
        "centroid": [(row, col, patch) for (row, col), patch in zip(centroids, first, strict=True)],
        "area": [(-area, patch) for area, patch in zip(areas, first, strict=True)],
        "score": [(-score, patch) for score, patch in zip(regions.score.tolist(), first, strict=True)],
    }


@given(st.integers(0, 500), st.sampled_from(["raster", "centroid", "area", "score"]))
def test_each_order_sorts_by_its_key_within_images(seed, order):
    regions = scored(seed)
    shuffled = order_regions(regions, "random", generator=torch.Generator().manual_seed(seed))
    if shuffled.score.isnan().any():
        return
    ordered = order_regions(shuffled, order)
    pairs = list(zip(ordered.image.tolist(), keys(ordered)[order], strict=True))
    assert pairs == sorted(pairs)
    assert sorted(ordered.mask_index.tolist()) == sorted(regions.mask_index.tolist())


def test_random_orders_permute_within_images_and_depend_on_the_generator_alone():
    regions = Regions.from_labels(torch.arange(60).reshape(3, 4, 5) % 20)
    draws = [order_regions(regions, "random", generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0].patch, draws[1].patch)
    assert not torch.equal(draws[0].patch, draws[2].patch)
    images = draws[0].patch.reshape(3, 20)
    assert not torch.equal(images[0], images[1])
    assert torch.equal(images.sort(1).values, torch.arange(20).expand(3, 20))


def test_raster_is_how_labels_come():
    regions = Regions.from_labels(torch.tensor([[[0, 0, 1], [2, 0, 1]]]))
    assert torch.equal(order_regions(regions, "raster").patch, regions.patch)


def test_images_without_masks_do_not_stop_an_order_by_score():
    masks = [torch.eye(2).reshape(2, 1, 2).bool(), torch.zeros(0, 1, 2, dtype=torch.bool)]
    regions = Regions.from_masks(masks, scores=[torch.tensor([0.1, 0.9]), torch.zeros(0)])
    assert order_regions(regions, "score").mask_index.tolist() == [1, 0, -1]


def test_unknown_orders_and_missing_scores_are_refused():
    regions = Regions.from_labels(random_labels(3, 3, 4))
    with pytest.raises(
        ValueRangeError, match="order must be one of 'raster', 'centroid', 'area', 'score', 'random'; got 'up'"
    ):
        order_regions(regions, "up")
    with pytest.raises(ValueRangeError, match="needs a score for every region; some have none"):
        order_regions(regions, "score")
    assert set(keys(regions)) | {"random"} == set(ORDERS)
