import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN

from regiontok import Regions, split_regions
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from tests.conftest import for_each, smooth_features


def random_masks(rows, cols, count, generator):
    """Overlapping rectangles of any size."""
    masks = np.zeros((count, rows, cols), bool)
    for mask in masks:
        top, left = generator.integers(rows), generator.integers(cols)
        mask[top : top + generator.integers(1, rows + 1), left : left + generator.integers(1, cols + 1)] = True
    return torch.from_numpy(masks)


def split_by_sklearn(features, mask, eps, min_samples, split_min_patches):
    """One mask's parts and its noise, as lists of patches."""
    patches = mask.flatten().nonzero().squeeze(1)
    if len(patches) < split_min_patches:
        return [patches.tolist()], []
    unit = torch.nn.functional.normalize(features.flatten(0, 1)[patches], dim=1)
    labels = DBSCAN(eps=eps, min_samples=min_samples).fit_predict(unit.numpy())
    return [patches[labels == part].tolist() for part in range(labels.max() + 1)], patches[labels < 0].tolist()


def members(regions):
    return [mask.flatten().nonzero().squeeze(1).tolist() for masks in regions.masks() for mask in masks]


@given(
    st.integers(0, 2**32),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([0.05, 0.2, 0.4, 0.8]),
    st.sampled_from([0.3, 0.7, 1.2]),
    st.sampled_from([1, 3, 6]),
    st.sampled_from([1, 10]),
)
def test_parts_equal_scikit_learns_mask_by_mask(seed, rows, cols, noise, eps, min_samples, split_min_patches):
    generator = np.random.default_rng(seed)
    features = smooth_features(rows, cols, 16, seed=seed % 2**31, batch=2, noise=noise)
    masks = [random_masks(rows, cols, generator.integers(1, 6), generator) for _ in range(2)]
    options = {"eps": eps, "min_samples": min_samples, "split_min_patches": split_min_patches}
    scores = [torch.rand(len(one)) for one in masks]
    given_regions = Regions.from_masks(masks, scores=scores)
    per_noise = {
        noise: split_regions(features, given_regions, noise=noise, **options)
        for noise in ("own_region", "single_patches", "drop")
    }
    own, single, drop, index, dropped, lost = [], [], [], [], [], []
    for image, of_image in enumerate(masks):
        left = 0
        for number, mask in enumerate(of_image):
            parts, rest = split_by_sklearn(features[image], mask, eps, min_samples, split_min_patches)
            own += parts + [rest] * bool(rest)
            single += parts + [[patch] for patch in rest]
            drop += parts
            index += [(image, number)] * len(parts + [rest] * bool(rest))
            left += len(parts)
            dropped += [] if parts else [(image, number, "all its patches are noise")]
        if not left:
            drop.append(list(range(rows * cols)))
            lost.append(image)
    assert members(per_noise["own_region"]) == own
    assert members(per_noise["single_patches"]) == single
    assert members(per_noise["drop"]) == drop
    assert [tuple(one) for one in per_noise["drop"].dropped] == dropped
    assert per_noise["drop"].fallback.nonzero().squeeze(1).tolist() == lost
    result = per_noise["own_region"]
    assert list(zip(result.image.tolist(), result.mask_index.tolist(), strict=True)) == index
    assert result.score.tolist() == [scores[image][number].item() for image, number in index]


def test_distances_at_eps_are_told_as_float64_tells_them():
    """Grids of equal angles make many pairs whose distance is eps but for rounding."""
    angle = torch.arange(24).double() * (2 * np.pi / 24)
    features = torch.stack([angle.cos(), angle.sin()], 1).float().reshape(1, 4, 6, 2)
    mask = torch.ones(1, 4, 6, dtype=torch.bool)
    unit = torch.nn.functional.normalize(features[0].flatten(0, 1), dim=1)
    for step in (1, 2, 3, 6):
        eps = float((unit[0].double() - unit[step].double()).norm())
        ours = split_regions(features, Regions.from_masks([mask]), eps=eps, min_samples=2 * step)
        parts, rest = split_by_sklearn(features[0], mask[0], eps, 2 * step, 10)
        assert members(ours) == parts + [rest] * bool(rest)


@pytest.mark.parametrize("patches", [2, 3])
def test_a_single_pair_at_eps(patches):
    features = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])[:patches].reshape(1, 1, patches, 2)
    regions = Regions.from_masks([torch.ones(1, 1, patches, dtype=torch.bool)])
    for eps, parts in ((2**0.5, 1), (2**0.5 - 1e-7, patches)):
        assert len(split_regions(features, regions, eps=eps, min_samples=1, split_min_patches=1)) == parts


@for_each(scale=[1e-30, 1e-3, 1e18, 3e37])
def test_the_length_of_features_does_not_matter(scale):
    features = smooth_features(6, 6, 8, noise=0.8)
    regions = Regions.from_masks([torch.ones(1, 6, 6, dtype=torch.bool)])
    assert members(split_regions(features / features.abs().max() * scale, regions)) == members(
        split_regions(features, regions)
    )


@for_each(seed=range(8))
def test_autocast_changes_no_label(seed):
    features = smooth_features(12, 12, 64, seed=seed, noise=0.6)
    regions = Regions.from_masks([torch.ones(1, 12, 12, dtype=torch.bool)])
    expected = members(split_regions(features, regions))
    with torch.autocast("cpu", torch.bfloat16):
        assert members(split_regions(features, regions)) == expected


@for_each(dtype=[torch.float64, torch.float16, torch.bfloat16])
def test_any_floating_point(dtype):
    features = smooth_features(6, 6, 8, noise=0.8).to(dtype)
    regions = Regions.from_masks([torch.ones(1, 6, 6, dtype=torch.bool)])
    assert members(split_regions(features, regions)) == members(split_regions(features.float(), regions))


def test_zero_vectors_are_near_each_other_and_far_from_all_else():
    features = torch.zeros(1, 3, 6, 4)
    features[0, 1] = torch.tensor([0.0, 0, 0, 2])
    regions = split_regions(features, Regions.from_masks([torch.ones(1, 3, 6, dtype=torch.bool)]))
    assert regions.labels().tolist() == [[[0] * 6, [1] * 6, [0] * 6]]


def test_only_masks_are_split_and_only_those_of_enough_patches():
    features = torch.eye(20)[:, :16].reshape(1, 4, 5, 16)  # all far apart
    masks = torch.zeros(3, 4, 5, dtype=torch.bool)
    masks[0, :2], masks[1, 0, :4], masks[2, 1, :5] = True, True, True
    regions = Regions.from_masks([masks], mask_index=[torch.tensor([-1, 0, 1])])
    split = split_regions(features, regions, split_min_patches=5, noise="single_patches")
    assert split.areas().tolist() == [10, 4, 1, 1, 1, 1, 1]
    assert split.mask_index.tolist() == [-1, 0, 1, 1, 1, 1, 1]


def test_a_fallback_region_is_not_split():
    regions = Regions.from_masks([torch.zeros(0, 4, 5, dtype=torch.bool)])
    split = split_regions(torch.eye(20).reshape(1, 4, 5, 20), regions)
    assert split.areas().tolist() == [20]
    assert split.fallback.tolist() == [True]


def test_an_image_of_noise_alone_gets_one_region_of_its_valid_patches():
    features = torch.eye(12).reshape(1, 3, 4, 12).expand(2, 3, 4, 12)
    valid = torch.ones(2, 3, 4, dtype=torch.bool)
    valid[:, :, 3] = False
    masks = [torch.ones(1, 3, 4, dtype=torch.bool)] * 2
    regions = Regions.from_masks(masks, valid=valid)
    split = split_regions(features, regions, split_min_patches=2, noise="drop", valid=valid)
    assert split.areas().tolist() == [9, 9]
    assert split.mask_index.tolist() == [-1, -1]
    assert split.score.isnan().all()
    assert split.fallback.tolist() == [True, True]
    assert [tuple(one) for one in split.dropped] == [(image, 0, "all its patches are noise") for image in (0, 1)]


def test_grids_may_differ_and_padding_is_not_looked_at():
    features = [smooth_features(5, 4, 8)[0], smooth_features(3, 7, 8, seed=1)[0]]
    features[0][4] = torch.nan
    masks = [torch.ones(2, 5, 4, dtype=torch.bool), torch.ones(1, 3, 7, dtype=torch.bool)]
    masks[0][:, 4] = False
    regions = split_regions(features, Regions.from_masks(masks))
    expected = []
    for image, of_image in enumerate(masks):
        for mask in of_image:
            parts, rest = split_by_sklearn(features[image].nan_to_num(), mask, 0.7, 3, 10)
            expected += parts + [rest] * bool(rest)
    assert members(regions) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_parts():
    features = smooth_features(12, 12, 64, batch=2)
    generator = np.random.default_rng(0)
    regions = Regions.from_masks([random_masks(12, 12, 9, generator) for _ in range(2)])
    split = split_regions(features.cuda(), regions.to("cuda"))
    assert split.device.type == "cuda"
    assert members(split.to("cpu")) == members(split_regions(features, regions))


MASK = Regions.from_masks([torch.ones(1, 3, 4, dtype=torch.bool)])


@pytest.mark.parametrize(
    ("features", "options", "error", "message"),
    [
        (torch.ones(1, 4, 3, 2), {}, ShapeError, r"regions must have the grids of features, \(4, 3\) for image 0; got \(3, 4\)"),
        (torch.ones(1, 3, 4, 2, dtype=torch.int64), {}, DTypeError, "features must be floating point"),
        (torch.full((1, 3, 4, 2), torch.inf), {}, ValueRangeError, "image 0 has NaN or infinity in 12 of its patches"),
        (torch.ones(1, 3, 4, 2), {"eps": 0}, ValueRangeError, "eps must be above 0"),
        (torch.ones(1, 3, 4, 2), {"eps": "a"}, DTypeError, "eps must be a number"),
        (torch.ones(1, 3, 4, 2), {"min_samples": 0}, ValueRangeError, "min_samples must be at least 1"),
        (torch.ones(1, 3, 4, 2), {"split_min_patches": 2.5}, DTypeError, "split_min_patches must be a whole number"),
        (torch.ones(1, 3, 4, 2), {"noise": "keep"}, ValueRangeError, "noise must be one of"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(features, options, error, message):
    with pytest.raises(error, match=message):
        split_regions(features, MASK, **options)
