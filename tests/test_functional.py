import pytest
import torch

from regiontok import MeanPool, UnionFindClusterer, cluster_regions
from regiontok.errors import ValueRangeError
from tests.conftest import for_each, smooth_features

FEATURES = smooth_features(8, 9, 16, batch=2)


@for_each(
    options=[
        {"num_regions": 7},
        {"num_regions": [3, 9]},
        {"keep": 0.25},
        {"threshold": 0.5},
        {"explained_variance": 0.8},
        {},
    ]
)
def test_it_is_the_clusterer_and_the_mean(options):
    call = {name: value for name, value in options.items() if name in ("num_regions", "keep")}
    made = {name: value for name, value in options.items() if name not in call}
    regions = UnionFindClusterer(**made, connectivity=8)(FEATURES, **call)
    tokens = cluster_regions(FEATURES, **options, connectivity=8)
    assert torch.equal(tokens.regions.labels(), regions.labels())
    assert torch.equal(tokens.values, MeanPool()(FEATURES, regions).values)


def test_several_ways_to_stop_are_rejected():
    with pytest.raises(ValueRangeError, match="num_regions and threshold both say when to stop"):
        cluster_regions(FEATURES, 4, threshold=0.5)
