"""`Regionizer` with the sources of masks."""

import numpy as np
import pytest
import torch

from regiontok import (
    ImageGeometry,
    MaskDownsampler,
    MaskSet,
    MeanPool,
    Regionizer,
    UnionFindClusterer,
    encoders,
    order_regions,
    rms_normalize,
    split_regions,
)
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.masks import FelzenszwalbMasks
from tests.conftest import for_each, smooth_features

GEOMETRY = ImageGeometry.letterbox(96)
features = smooth_features(6, 6, 32, batch=2, noise=0.7)
features[:, 0] = torch.nan  # padding, that nothing may look at
features[:, 5] = torch.nan
generator = np.random.default_rng(0)


def image_masks(count, height=40, width=60):
    """Overlapping rectangles, with scores."""
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        top, left = generator.integers(height - 5), generator.integers(width - 5)
        mask[top : top + generator.integers(5, height), left : left + generator.integers(5, width)] = True
    return MaskSet.from_masks(masks, scores=generator.random(count))


MASKS = [image_masks(5), image_masks(3, 80, 120)]
valid = torch.stack([GEOMETRY.place(one.size).valid((6, 6)) for one in MASKS])


@for_each(
    unassigned=["drop", "background", "single_patches", "cluster"],
    overlap=["keep", "assign_smallest"],
    downsampling=["exact", "two_step"],
    source=["segmentation", "combined"],
)
def test_it_is_the_composition_of_its_steps(source, unassigned, overlap, downsampling):
    options = {"unassigned": unassigned, "overlap": overlap}
    regionizer = Regionizer(
        source=source, pool="mean", geometry=GEOMETRY, threshold=0.5, min_coverage=0.2, downsampling=downsampling, eps=0.9,
        min_samples=2, split_min_patches=4, noise="single_patches", order="area", **options,
    )  # fmt: skip
    normalized = rms_normalize(features)
    downsampler = MaskDownsampler(
        (6, 6),
        geometry=GEOMETRY,
        min_coverage=0.2,
        downsampling=downsampling,
        clusterer=UnionFindClusterer(threshold=0.5),
        **options,
    )
    regions = downsampler(MASKS, features=normalized)
    if source == "combined":
        regions = split_regions(
            normalized, regions, eps=0.9, min_samples=2, split_min_patches=4, noise="single_patches"
        )
    expected = MeanPool()(normalized, order_regions(order_regions(regions), "area"))
    tokens = regionizer(features, masks=MASKS, valid=valid)
    assert torch.equal(tokens.values, expected.values)
    assert torch.equal(tokens.regions.mask_index, expected.regions.mask_index)
    assert torch.equal(regionizer(features, masks=MASKS).values, tokens.values)  # the geometry tells what is valid


def test_defaults_are_the_papers():
    config = Regionizer(source="combined", dim=64).config.to_dict()
    wanted = {
        "min_coverage": 0.07,
        "eps": 0.7,
        "min_samples": 3,
        "split_min_patches": 10,
        "unassigned": "drop",
        "overlap": "keep",
        "noise": "own_region",
    }
    assert {name: config[name] for name in wanted} == wanted


def test_regions_come_in_raster_order_and_by_score_when_asked():
    raster = Regionizer(source="segmentation", pool="mean", geometry=GEOMETRY)(features, masks=MASKS).regions
    first = raster.patch[raster.starts]
    for image in range(2):
        assert (first[raster.image == image].diff() >= 0).all()
    best = Regionizer(source="segmentation", pool="mean", geometry=GEOMETRY, order="score")(
        features, masks=MASKS
    ).regions
    for image, masks in enumerate(MASKS):
        assert best.score[best.image == image].tolist() == sorted(masks.scores.tolist(), reverse=True)


def test_noise_that_is_dropped_leaves_one_region_of_the_image_without_its_padding():
    far_apart = torch.eye(36).reshape(1, 6, 6, 36)
    for given in (None, valid[:1]):
        regionizer = Regionizer(source="combined", pool="mean", geometry=GEOMETRY, noise="drop", split_min_patches=1)
        regions = regionizer(far_apart, masks=MASKS[:1], valid=given).regions
        assert regions.fallback.tolist() == [True]
        assert torch.equal(regions.masks()[0][0], valid[0])
        assert len(regions.dropped) == 5


def test_gradients_reach_features_and_pool():
    regionizer = Regionizer(source="combined", dim=32, num_heads=4, geometry=GEOMETRY)
    trained = features.nan_to_num().requires_grad_()
    regionizer(trained, masks=MASKS).values.square().sum().backward()
    assert trained.grad[:, 1:5].abs().sum() > 0
    assert regionizer.pool.out.weight.grad.abs().sum() > 0


def test_options_are_saved_and_loaded(tmp_path):
    options = {
        "min_coverage": 0.3,
        "downsampling": "two_step",
        "unassigned": "background",
        "overlap": "assign_smallest",
        "eps": 0.5,
        "min_samples": 2,
        "split_min_patches": 7,
        "noise": "drop",
    }
    regionizer = Regionizer(source="combined", dim=32, num_heads=4, geometry=GEOMETRY, **options)
    regionizer.save_pretrained(tmp_path)
    again = Regionizer.from_pretrained(tmp_path)
    assert again.config == regionizer.config
    assert again.config.geometry == GEOMETRY
    assert torch.equal(again(features, masks=MASKS).values, regionizer(features, masks=MASKS).values)


def test_grids_may_differ_and_masks_may_be_on_them():
    both = [smooth_features(4, 5, 8)[0], smooth_features(2, 3, 8)[0]]
    on_grid = [MaskSet.on_grid(torch.ones(1, 4, 5)), MaskSet.on_grid(torch.ones(2, 2, 3))]
    tokens = Regionizer(source="segmentation", pool="mean")(both, masks=on_grid)
    assert tokens.counts.tolist() == [1, 2]
    tokens = Regionizer(source="segmentation", pool="mean", geometry=GEOMETRY)(both, masks=MASKS)
    assert tokens.counts.tolist() == [5, 3]


def test_all_four_sources_on_a_real_image(china):
    encoder = encoders.load("pixels")
    image_features, image_valid = encoder(china)
    masks = FelzenszwalbMasks()(china)
    counts = {}
    for source in ("patch", "segmentation", "clustering", "combined"):
        given = masks if source in ("segmentation", "combined") else None
        regionizer = Regionizer(source=source, dim=48, geometry=encoder.geometry)
        counts[source] = len(regionizer(image_features, masks=given, valid=image_valid))
    assert counts["patch"] == 384
    assert counts["segmentation"] == len(masks[0])
    assert 80 < counts["segmentation"] < counts["combined"] < 250


def test_masks_of_another_size_than_the_image_are_refused_when_it_is_told():
    regionizer = Regionizer(source="segmentation", pool="mean", geometry=GEOMETRY)
    sizes = [one.size for one in MASKS]
    assert len(regionizer(features, masks=MASKS, sizes=sizes)) == 8
    with pytest.raises(
        ShapeError, match=r"masks\[1\]: masks must be of their image's size \(120, 80\); got \(80, 120\)"
    ):
        regionizer(features, masks=MASKS, sizes=[sizes[0], (120, 80)])


def test_sizes_of_images_tell_their_padding_without_masks_too():
    plain = features.nan_to_num()
    valid = [GEOMETRY.place(one.size).valid(plain.shape[1:3]) for one in MASKS]
    sizes = [one.size for one in MASKS]
    for source in ("patch", "clustering"):
        regionizer = Regionizer(source=source, pool="mean", geometry=GEOMETRY)
        assert torch.equal(regionizer(plain, sizes=sizes).values, regionizer(plain, valid=valid).values)
        everything = torch.ones(plain.shape[:3], dtype=torch.bool)
        assert len(regionizer(plain, sizes=sizes, valid=everything)) == len(regionizer(plain))
    with pytest.raises(ShapeError, match="sizes must have one entry per image, 2; got 1"):
        regionizer(plain, sizes=sizes[:1])
    with pytest.raises(ShapeError, match=r"sizes\[1\] must be \(height, width\); got 3"):
        regionizer(plain, sizes=[sizes[0], 3])
    with pytest.raises(ValueRangeError, match="sizes of images need the geometry that places them"):
        Regionizer(pool="mean")(plain, sizes=sizes)


@pytest.mark.parametrize("source", ["segmentation", "combined"])
def test_nan_within_a_region_is_named(source):
    regionizer = Regionizer(source=source, pool="mean", norm="none", geometry=GEOMETRY)
    wrong = features.clone()
    wrong[1, 2:4] = torch.nan
    with pytest.raises(ValueRangeError, match="image 1 has NaN or infinity in .* of its patches"):
        regionizer(wrong, masks=[np.ones((1, *one.size), bool) for one in MASKS])


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({"source": "segmentation", "geometry": GEOMETRY}, {}, "source='segmentation' needs masks, one entry per image"),
        ({"source": "clustering"}, {"masks": MASKS}, "source='clustering' takes no masks"),
        ({"source": "combined"}, {"masks": MASKS}, r"masks\[0\]: masks of an image need the geometry"),
    ],
)  # fmt: skip
def test_masks_are_given_where_they_are_used(options, given, message):
    with pytest.raises(ValueRangeError, match=message):
        Regionizer(pool="mean", **options)(features.nan_to_num(), **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "keep"}, "padding='keep' is not for source='segmentation'"),
        ({"explained_variance": 0.9}, "explained_variance requires source='clustering'"),
        ({"order": "score", "unassigned": "background"}, "order='score' needs a score for every region"),
        ({"min_coverage": 2}, r"min_coverage must be in \[0, 1\]"),
        ({"downsampling": "nearest"}, "downsampling must be one of"),
        ({"eps": -1}, "eps must be in"),
        ({"noise": "x"}, "noise must be one of"),
        ({"geometry": {"mode": "fit", "size": 9}}, "mode must be one of"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueRangeError, match=message):
        Regionizer(source="segmentation", pool="mean", **options)
