"""Masks at an exact budget, against a slow reference in float64."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regiontok import MaskDownsampler, MaskSet, Regionizer, Regions, UnionFindClusterer
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from tests.conftest import for_each, smooth_features

WEIGHTS = [0.0, 0.3, 1.0, float("inf")]


def members_of(regions, image, patches):
    """``(patches, groups)`` float64: which masks each patch is in."""
    own = (regions.image == image).nonzero().squeeze(1).tolist()
    member = np.zeros((patches, len(own)))
    for group, region in enumerate(own):
        member[regions.patch[regions.region == region], group] = 1
    return member


def neighbours(patches, cols, diagonal):
    near = np.zeros((patches, patches), bool)
    for one in range(patches):
        row, col = divmod(one, cols)
        steps = [(0, 1), (1, 0), *([(1, 1), (1, -1)] if diagonal else [])]
        for down, right in steps:
            if 0 <= col + right < cols and (row + down) * cols < patches:
                near[one, (row + down) * cols + col + right] = near[(row + down) * cols + col + right, one] = True
    return near


def greedy(sums, sizes, near, cross, target):
    """Merge the pair of the least growth again and again: those that touch first, and within masks first."""
    groups = {number: [number] for number in range(len(sizes))}
    sums, sizes, near = [np.array(one) for one in sums], list(sizes), near.copy()
    kind = list(range(len(sizes))) if cross is None else list(cross)
    while len(groups) > target:
        best = None
        for a, b in itertools.combinations(sorted(groups), 2):
            difference = sums[a] / sizes[a] - sums[b] / sizes[b]
            growth = difference @ difference * sizes[a] * sizes[b] / (sizes[a] + sizes[b])
            apart = cross is not None and kind[a] != kind[b]
            key = (not near[a, b], apart, growth)
            if best is None or key < best[0]:
                best = key, a, b
        _, a, b = best
        sums[a], sizes[a] = sums[a] + sums[b], sizes[a] + sizes[b]
        near[a] |= near[b]
        near[:, a] |= near[:, b]
        kind[a] = kind[a] if kind[a] == kind[b] else ("mixed", a, b, len(groups))
        groups[a] += groups.pop(b)
    return list(groups.values())


def reference(features, regions, image, target, weight, diagonal=False):
    rows, cols, dim = features.shape
    values = features.reshape(-1, dim).double().numpy()
    values = values / np.linalg.norm(values, axis=1, keepdims=True)
    member = members_of(regions, image, rows * cols)
    inside = np.flatnonzero(member.any(1))
    cross = None
    if np.isinf(weight):
        cross = [tuple(member[one]) for one in inside]
    else:
        values = np.concatenate([values, weight * member], 1)
    near = neighbours(rows * cols, cols, diagonal)[np.ix_(inside, inside)]
    found = greedy(values[inside], [1] * len(inside), near, cross, min(target, len(inside)))
    return {frozenset(inside[group].tolist()) for group in found}


def parts_of(regions, image):
    own = (regions.image == image).nonzero().squeeze(1).tolist()
    return {frozenset(regions.patch[regions.region == region].tolist()) for region in own}


@st.composite
def cases(draw):
    """Features of a small grid and masks on it, of which some may be empty, overlap, or leave patches out."""
    rows, cols = draw(st.integers(2, 5)), draw(st.integers(2, 5))
    features = smooth_features(rows, cols, 8, seed=draw(st.integers(0, 10**6)))
    count = draw(st.integers(0, 4))
    bits = draw(st.lists(st.booleans(), min_size=count * rows * cols, max_size=count * rows * cols))
    masks = torch.tensor(bits, dtype=torch.bool).reshape(count, rows, cols)
    return features, masks, draw(st.integers(1, rows * cols)), draw(st.sampled_from(WEIGHTS))


@settings(max_examples=60)
@given(cases(), st.sampled_from(["drop", "background", "single_patches"]), st.sampled_from([4, 8]))
def test_combined_equals_the_reference(case, unassigned, connectivity):
    features, masks, budget, weight = case
    regions = MaskDownsampler(unassigned=unassigned)([MaskSet.on_grid(masks)], features=features)
    clusterer = UnionFindClusterer(num_regions=budget, mask_weight=weight, connectivity=connectivity)
    found = clusterer(features, masks=regions)
    expected = reference(features[0], regions, 0, budget, weight, connectivity == 8)
    assert parts_of(found, 0) == expected
    tree = UnionFindClusterer(mask_weight=weight, connectivity=connectivity).tree(features, masks=regions)[0]
    assert parts_of(tree.cut(num_regions=budget), 0) == expected
    options = {
        "pool": "mean",
        "norm": "none",
        "connectivity": connectivity,
        "mask_weight": weight,
        "unassigned": unassigned,
    }
    whole = Regionizer(source="combined", num_regions=budget, **options)(features, masks=[MaskSet.on_grid(masks)])
    assert torch.equal(whole.regions.labels(), found.labels())


@settings(max_examples=60)
@given(cases())
def test_segmentation_merges_whole_masks_as_the_reference_does(case):
    features, masks, budget, weight = case
    regions = MaskDownsampler()([MaskSet.on_grid(masks)], features=features)
    found = Regionizer(source="segmentation", pool="mean", norm="none", num_regions=budget, mask_weight=weight)(
        features, masks=[MaskSet.on_grid(masks)]
    ).regions
    _, rows, cols, dim = features.shape
    values = features.reshape(-1, dim).double().numpy()
    values = values / np.linalg.norm(values, axis=1, keepdims=True)
    member = members_of(regions, 0, rows * cols)
    extended = np.concatenate([values, (0 if np.isinf(weight) else weight) * member], 1)
    near = neighbours(rows * cols, cols, False) | np.eye(rows * cols, dtype=bool)
    touching = (member.T @ near @ member) > 0
    sums, sizes = member.T @ extended, member.sum(0)
    groups = greedy(list(sums), sizes.tolist(), touching, None, min(budget, len(sizes)))
    expected = {frozenset(np.flatnonzero(member[:, group].any(1)).tolist()) for group in groups}
    assert parts_of(found, 0) == expected
    assert len(found) <= budget
    for mask in parts_of(regions, 0):
        assert any(mask <= one for one in parts_of(found, 0))


def halves(rows=6, cols=8):
    masks = torch.zeros(2, rows, cols, dtype=torch.bool)
    masks[0, :, : cols // 2] = True
    masks[1, :, cols // 2 :] = True
    return masks


def test_a_weight_of_zero_ignores_the_masks_and_an_infinite_one_keeps_to_them():
    features, masks = smooth_features(6, 8, 16), [MaskSet.on_grid(halves())]
    options = {"source": "combined", "pool": "mean", "norm": "none"}
    for budget in (2, 5, 20, 48, 100):
        plain = UnionFindClusterer(num_regions=budget)(features).labels()
        ignored = Regionizer(**options, num_regions=budget, mask_weight=0)(features, masks=masks).regions
        assert torch.equal(ignored.labels(), plain)
        kept = Regionizer(**options, num_regions=budget, mask_weight=float("inf"))(features, masks=masks).regions
        assert len(kept) == min(budget, 48)
        for one in kept.masks()[0]:
            assert not (one & halves()[0]).any() or not (one & halves()[1]).any()
    assert len(Regionizer(**options, num_regions=1, mask_weight=float("inf"))(features, masks=masks)) == 1


def test_budgets_of_calls_fractions_and_batches():
    features = smooth_features(6, 8, 16, batch=2)
    masks = [MaskSet.on_grid(halves()), MaskSet.on_grid(halves()[:1])]
    regionizer = Regionizer(source="combined", pool="mean", norm="none", num_regions=9)
    assert regionizer(features, masks=masks).counts.tolist() == [9, 9]
    assert regionizer(features, masks=masks, num_regions=[3, 40]).counts.tolist() == [3, 24]  # the rest is dropped
    assert regionizer(features, masks=masks, keep=0.25).counts.tolist() == [12, 12]
    alone = [regionizer(features[one : one + 1], masks=[masks[one]]).regions.labels() for one in (0, 1)]
    assert torch.equal(regionizer(features, masks=masks).regions.labels(), torch.cat(alone))
    segments = Regionizer(source="segmentation", pool="mean", norm="none", keep=0.02)
    assert segments(features, masks=masks).counts.tolist() == [1, 1]
    assert Regionizer.from_config(segments.config).config == segments.config
    infinite = Regionizer(source="combined", pool="mean", num_regions=4, mask_weight=float("inf"))
    assert Regionizer.from_config(infinite.config).config == infinite.config
    prompt = Regionizer(source="combined", pool="mean", norm="none", num_regions="prompt")
    assert prompt(features, masks=masks, num_regions=7).counts.tolist() == [7, 7]
    with pytest.raises(ValueRangeError, match="num_regions='prompt' needs a budget in every call"):
        prompt(features, masks=masks)


def test_regions_are_those_of_the_paper_without_a_budget():
    features, masks = smooth_features(6, 8, 16), [MaskSet.on_grid(halves())]
    plain = Regionizer(source="combined", pool="mean", norm="none")(features, masks=masks)
    weighted = Regionizer(source="combined", pool="mean", norm="none", mask_weight=3.0)(features, masks=masks)
    assert torch.equal(plain.regions.labels(), weighted.regions.labels())


def test_patches_that_are_nearly_alike_keep_their_order():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, 4, 8, generator=generator, dtype=torch.float64)
    features = (1 + 1e-5 * noise).float()
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, :2] = True
    regions = MaskDownsampler(unassigned="background")([MaskSet.on_grid(masks)], features=features)
    found = UnionFindClusterer(num_regions=5, mask_weight=1e-5)(features, masks=regions)
    exact = features.reshape(-1, 8).double().numpy()
    exact = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    assert parts_of(found, 0) == reference(features[0], regions, 0, 5, 1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mask_weight": -1}, ValueRangeError, "mask_weight must be at least 0; got -1"),
        ({"mask_weight": float("nan")}, ValueRangeError, "mask_weight must be at least 0; got nan"),
        ({"mask_weight": "much"}, DTypeError, "mask_weight must be a number; got 'much'"),
        ({"num_regions": 4, "order": "score"}, ValueRangeError, "order='score' is not for a budget"),
        ({"explained_variance": 0.5}, ValueRangeError, "explained_variance requires source='clustering'"),
    ],
)
def test_options_that_cannot_be_are_rejected(options, error, message):
    with pytest.raises(error, match=message):
        Regionizer(source="combined", pool="mean", **options)


def test_masks_that_do_not_fit_are_rejected():
    features = smooth_features(6, 8, 16)
    regions = MaskDownsampler()([MaskSet.on_grid(halves(6, 6))], features=smooth_features(6, 6, 16))
    with pytest.raises(ShapeError, match="masks must have the grids of features"):
        UnionFindClusterer(num_regions=3)(features, masks=regions)
    fitting = MaskDownsampler()([MaskSet.on_grid(halves())], features=features)
    for clusterer in (UnionFindClusterer(), UnionFindClusterer(num_regions=3, linkage="average")):
        with pytest.raises(ValueRangeError, match="masks require linkage='ward' and a budget"):
            clusterer(features, masks=fitting)


def test_a_fraction_of_a_tree_is_that_of_a_call():
    """Of the valid patches, also where some are in no mask."""
    features = torch.randn(1, 14, 14, 8)
    half = Regions.from_masks([(torch.arange(14) < 7).expand(1, 14, 14)])
    clusterer = UnionFindClusterer(keep=0.25)
    tree = clusterer.tree(features, masks=half)[0]
    assert len(tree.cut(keep=0.25)) == len(clusterer(features, masks=half)) == 49
    assert len(tree.cut(keep=1)) == 98
    with pytest.raises(ValueRangeError, match="explained_variance is not for a tree with masks"):
        tree.cut(explained_variance=0.5)
    with pytest.raises(ValueRangeError, match="curve needs linkage='ward' without masks.*got a tree with masks"):
        tree.curve()
    with pytest.raises(
        DTypeError, match="masks must be Regions on the grid, as MaskDownsampler returns them; got list"
    ):
        clusterer(features, masks=[torch.ones(1, 14, 14, dtype=torch.bool)])


def test_linkages_of_masks_with_a_budget():
    assert Regionizer(source="combined", linkage="ward", num_regions=5, pool="mean").config.linkage == "ward"
    with pytest.raises(ValueRangeError, match="merged by linkage='ward' to a budget; got 'average'"):
        Regionizer(source="combined", linkage="average", num_regions=5, pool="mean")


@for_each(weight=[3e2, 3e4, 3e6, 1e200])
def test_a_large_weight_leaves_the_features_their_digits(weight):
    """Within masks it groups as an infinite weight does."""
    features = smooth_features(16, 16, 32)
    quarters = torch.arange(16).ge(8)[:, None] * 2 + torch.arange(16).ge(8)
    masks = Regions.from_labels(quarters[None].long())
    found, expected = (
        UnionFindClusterer(num_regions=24, mask_weight=one)(features, masks=masks).labels()
        for one in (weight, float("inf"))
    )
    assert torch.equal(found, expected)


def test_growths_of_groups_that_do_not_touch_are_exact():
    """They merge after all that touch, and the score of a merge is its growth of the squared error."""
    features = torch.zeros(1, 1, 9, 2)
    features[..., 0] = torch.tensor([1.0, 0, 1, 0, 1, 0, 1, 0, 1])
    features[..., 1] = torch.linspace(0.9, 1.0, 9)
    apart = Regions.from_masks([torch.eye(9, dtype=torch.bool)[::2].reshape(5, 1, 9)])  # five patches with gaps
    tree = UnionFindClusterer(mask_weight=0).tree(features, masks=apart)[0]
    unit = torch.nn.functional.normalize(features[0, 0, ::2].double(), dim=1)
    deviation = (unit - unit.mean(0)).square().sum()
    assert float(tree.score.sum()) == pytest.approx(float(deviation), rel=1e-6)
