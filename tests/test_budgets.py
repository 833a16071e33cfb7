"""Budgets as numbers and as fractions of patches."""

from fractions import Fraction
from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regiontok import Regionizer, UnionFindClusterer
from regiontok.budgets import resolve_budget
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from tests.conftest import for_each, smooth_features


@given(st.integers(1, 100), st.integers(1, 20_000))
def test_a_fraction_is_rounded_up_as_exact_arithmetic_does(percent, patches):
    assert resolve_budget([patches], keep=percent / 100) == [max(1, ceil(Fraction(percent, 100) * patches))]


@given(st.lists(st.integers(1, 400), min_size=1, max_size=4), st.floats(1e-6, 1))
def test_a_budget_is_at_least_one_and_at_most_the_patches(patches, keep):
    for count, most in zip(resolve_budget(patches, keep=keep), patches, strict=True):
        assert 1 <= count <= most


@for_each(kind=[list, np.array, torch.tensor])
def test_a_fraction_may_be_one_per_image(kind):
    assert resolve_budget([100, 100], keep=kind([0.1, 0.25])) == [10, 25]
    assert resolve_budget([100, 7], num_regions=kind([8, 8])) == [8, 7]
    assert resolve_budget([100]) is None


@for_each(linkage=["centroid", "average", "ward"])
def test_a_fraction_is_that_number_of_regions_everywhere(linkage):
    features = smooth_features(7, 9, 8, batch=2)
    valid = torch.ones(2, 7, 9, dtype=torch.bool)
    valid[1, 3:] = False
    expected = UnionFindClusterer(linkage=linkage)(features, valid, num_regions=[16, 7])
    for regions in (
        UnionFindClusterer(linkage=linkage, keep=0.25)(features, valid),
        UnionFindClusterer(linkage=linkage)(features, valid, keep=0.25),
        UnionFindClusterer(linkage=linkage, num_regions=3)(features, valid, keep=[0.25, 0.25]),
        Regionizer(linkage=linkage, keep=0.25, pool="mean", norm="none")(features, valid=valid).regions,
        Regionizer(linkage=linkage, pool="mean", norm="none")(features, valid=valid, keep=0.25).regions,
    ):
        assert torch.equal(regions.labels(), expected.labels())
    trees = UnionFindClusterer(linkage=linkage).tree(features, valid)
    cuts = [tree.cut(keep=0.25).labels()[0] for tree in trees]
    assert torch.equal(torch.stack(cuts), expected.labels())
    assert UnionFindClusterer(keep=0.25).counts([63, 27]) == [16, 7]
    assert Regionizer(keep=0.25, pool="mean").num_tokens([63, 27]) == [16, 7]


def test_regions_by_prompt_need_a_budget_in_every_call():
    regionizer = Regionizer(num_regions="prompt", pool="mean", norm="none")
    features = smooth_features(4, 4, 8)
    assert len(regionizer(features, num_regions=5)) == 5
    assert regionizer.num_tokens([16], keep=0.5) == [8]
    assert Regionizer.from_config(regionizer.config).config == regionizer.config
    for call in (lambda: regionizer(features), lambda: regionizer.num_tokens([16])):
        with pytest.raises(ValueRangeError, match="needs num_regions, keep or explained_variance"):
            call()
    with pytest.raises(ValueRangeError, match="num_regions='prompt' and keep=0.5 are several ways"):
        Regionizer(num_regions="prompt", keep=0.5, pool="mean")


@pytest.mark.parametrize(
    ("budget", "error", "message"),
    [
        ({"keep": 0}, ValueRangeError, "keep must be above 0; got 0. For one region pass num_regions=1"),
        ({"keep": 1.5}, ValueRangeError, r"keep must be in \[0, 1\]; got 1.5"),
        ({"keep": "half"}, DTypeError, "keep must be a number; got 'half'"),
        ({"keep": [0.5]}, ShapeError, "keep must be one number or a list of length 2 .*; got length 1"),
        ({"keep": 0.5, "num_regions": 3}, ValueRangeError, "num_regions=3 and keep=0.5 are both budgets"),
    ],
)
def test_fractions_that_cannot_be_are_rejected(budget, error, message):
    with pytest.raises(error, match=message):
        UnionFindClusterer()(smooth_features(4, 4, 8, batch=2), **budget)
