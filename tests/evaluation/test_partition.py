import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from regiontok import ImageGeometry, MaskSet, Regionizer, Regions, UnionFindClusterer, encoders, masks
from regiontok.choices import BUDGETS
from regiontok.cli import main
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.evaluation.partition import (
    compare_clip_partitions,
    compare_partitions,
    grid_regions,
    mean_partitions,
    measure_partition,
)
from regiontok.viewing import draw_partitions
from tests.conftest import for_each, smooth_features
from tests.references import squared_error


def whole(rows, cols):
    return torch.ones(rows, cols, dtype=torch.bool)


# The grid


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 200))
def test_grid_is_the_finest_within_the_budget(rows, cols, tokens):
    labels = grid_regions(whole(rows, cols), tokens).labels()[0]
    most = max(down * min(cols, tokens // down) for down in range(1, min(rows, tokens) + 1))
    assert int(labels.max()) + 1 == most
    down, across = len(labels[:, 0].unique()), len(labels[0].unique())
    assert down * across == most
    assert torch.equal(labels, labels[:, :1] + labels[:1])  # bands of rows times bands of columns
    areas = torch.bincount(labels.flatten())
    assert areas.max() <= -(-rows // down) * -(-cols // across)


def test_grid_covers_the_valid_patches():
    valid = torch.zeros(24, 24, dtype=torch.bool)
    valid[6:18] = True
    labels = grid_regions(valid, 32).labels()[0]
    assert torch.equal(labels >= 0, valid)
    assert (labels.max() + 1, torch.bincount(labels[valid]).tolist()) == (32, [9] * 32)  # 4 x 8 cells of 3 x 3


def test_invalid_grids_are_errors():
    with pytest.raises(ShapeError, match=r"valid must be \(rows, cols\); got \(1, 4, 4\)"):
        grid_regions(whole(4, 4)[None], 3)
    with pytest.raises(ValueRangeError, match="num_regions must be at least 1; got 0"):
        grid_regions(whole(4, 4), 0)
    with pytest.raises(ValueRangeError, match="valid must have a valid patch; got none"):
        grid_regions(~whole(4, 4), 3)


# Explained variance


@for_each(seed=range(3))
def test_scores_follow_their_definition(seed):
    features = 3 * smooth_features(9, 8, 20, seed=seed)
    regions = UnionFindClusterer(num_regions=11)(features)
    total = squared_error(features[0].numpy(), np.zeros((9, 8), int))
    error = squared_error(features[0].numpy(), regions.labels()[0])
    scores = measure_partition(features, regions)[0]
    assert scores.explained_variance == pytest.approx(1 - error / total, abs=1e-6)
    areas = regions.areas()
    assert (scores.num_regions, scores.singleton_fraction) == (11, float((areas == 1).double().mean()))
    assert scores.largest_fraction == int(areas.max()) / 72
    assert scores.boundary_recall is scores.miou is None


def test_explained_variance_equals_the_curve_of_the_tree():
    features = smooth_features(12, 12, 24)
    tree = UnionFindClusterer(linkage="ward").tree(features)[0]
    counts, kept = tree.curve()
    for count, share in list(zip(counts.tolist(), kept.tolist(), strict=True))[::20]:
        scores = measure_partition(features, tree.cut(num_regions=count))[0]
        assert scores.explained_variance == pytest.approx(share, abs=1e-5)


def test_patches_in_several_regions_and_in_none():
    features = torch.tensor([[[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]]])  # their mean is zero, deviation 4
    both = Regions.from_masks([torch.tensor([[[True, True, False, False]], [[False, True, True, False]]])])
    # patch 0 at (.5, .5), 1 at the mean of (.5, .5) and (-.5, .5), 2 at (-.5, .5), and 3 in none at zero
    error = 0.5 + 0.25 + 0.5 + 1.0
    assert measure_partition(features, both)[0].explained_variance == pytest.approx(1 - error / 4)


@pytest.mark.parametrize("features", [torch.ones(1, 3, 4, 5), torch.zeros(1, 3, 4, 5)])
def test_explained_variance_of_equal_patches_is_1(features):
    assert measure_partition(features, grid_regions(whole(3, 4), 2))[0].explained_variance == 1


def test_padding_is_ignored():
    features, valid = smooth_features(8, 8, 12), whole(8, 8)[None].clone()
    valid[0, 5:] = False
    regions = UnionFindClusterer(num_regions=6)(features, valid)
    alone = measure_partition(features[:, :5], UnionFindClusterer(num_regions=6)(features[:, :5]))[0]
    features[0, 5:] = torch.nan
    scores = measure_partition(features, regions, valid=valid)[0]
    assert scores.explained_variance == pytest.approx(alone.explained_variance)
    assert scores.largest_fraction == alone.largest_fraction


def test_images_of_a_batch_are_independent():
    batch = [smooth_features(5, 8, 16)[0], smooth_features(9, 3, 16, seed=1)[0]]
    regions = UnionFindClusterer(num_regions=4)(batch)
    alone = [measure_partition(one[None], UnionFindClusterer(num_regions=4)(one[None]))[0] for one in batch]
    for one, expected in zip(measure_partition(batch, regions), alone, strict=True):
        assert one[:4] == pytest.approx(expected[:4])


# Objects


def pixel_iou(labels, masks, placement, grid):
    """Mean IoU pixel by pixel, where image and patches share their borders."""
    region = np.append(labels.ravel(), -1)[placement.patches(grid)]
    ground = ~masks.any(0)
    taken = {}
    for one in set(region.ravel()) - {-1}:
        inside = [(region == one) & mask for mask in (ground, *masks)]
        taken[one] = int(np.argmax([some.sum() for some in inside])) - 1
    ious = []
    for number, mask in enumerate(masks):
        mine = np.isin(region, [one for one, owner in taken.items() if owner == number])
        ious.append((mine & mask).sum() / (mine | mask).sum())
    return np.mean(ious)


@for_each(seed=range(3))
def test_mean_iou_equals_counting_pixels(seed):
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 3, (5, 5)).repeat(16, 0).repeat(16, 1)
    objects = np.stack([coarse == 1, coarse == 2])
    features = smooth_features(10, 10, 8, seed=seed)
    geometry = ImageGeometry.squash(80)
    regions = UnionFindClusterer(num_regions=20)(features)
    scores = measure_partition(features, regions, objects=[MaskSet.from_masks(objects)], geometry=geometry)[0]
    expected = pixel_iou(regions.labels()[0].numpy(), objects, geometry.place((80, 80)), (10, 10))
    assert scores.miou == pytest.approx(expected, abs=1e-5)


def test_regions_equal_to_the_objects_have_full_scores():
    objects = np.zeros((1, 80, 80), bool)
    objects[0, 16:48, 24:56] = True
    labels = torch.zeros(1, 10, 10, dtype=torch.int64)
    labels[0, 2:6, 3:7] = 1
    features = smooth_features(10, 10, 8)
    given = {"objects": [MaskSet.from_masks(objects)], "geometry": ImageGeometry.squash(80)}
    scores = measure_partition(features, Regions.from_labels(labels), **given)[0]
    assert (scores.miou, scores.boundary_recall) == (1, 1)
    one = Regions.from_labels(torch.zeros_like(labels))
    scores = measure_partition(features, one, **given)[0]
    assert (scores.miou, scores.boundary_recall) == (0, 0)


def test_boundaries_match_within_half_a_patch():
    objects = np.zeros((1, 80, 80), bool)
    features, geometry = smooth_features(10, 10, 8), ImageGeometry.squash(80)
    halves = grid_regions(whole(10, 10), 2)  # their border is after 40 pixels
    recalls = []
    for edge in (36, 39, 40, 44, 46, 60):
        objects[:] = False
        objects[0, :edge] = True
        across = Regions.from_labels(halves.labels().transpose(1, 2)) if halves.labels()[0, 0, -1] else halves
        scored = measure_partition(features, across, objects=[MaskSet.from_masks(objects)], geometry=geometry)
        recalls.append(scored[0].boundary_recall)
    assert recalls == [1, 1, 1, 1, 0, 0]


def test_pixels_outside_the_crop_are_ignored():
    objects = np.zeros((3, 80, 160), bool)
    objects[0, :, :20] = True  # left of the crop, which reaches from 40 to 120
    objects[1, :, 60:80] = True
    features, geometry = smooth_features(8, 8, 8), ImageGeometry.center_crop(80)
    one = Regions.from_labels(torch.zeros(1, 8, 8, dtype=torch.int64))
    single = UnionFindClusterer(num_regions=64)(features)
    given = {"objects": [MaskSet.from_masks(objects)], "geometry": geometry}
    assert measure_partition(features, one, **given)[0][-2:] == (0, 0)
    assert measure_partition(features, single, **given)[0][-2:] == (1, 1)
    for some in (objects[:1], objects[2:], objects[:0]):
        given["objects"] = [MaskSet.from_masks(some)]
        assert measure_partition(features, single, **given)[0][-2:] == (None, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"regions": Regions.from_labels(torch.zeros(1, 4, 4, dtype=torch.int64))},
            "regions must have the grids of features",
        ),
        ({"objects": [MaskSet.from_masks(np.ones((1, 4, 4), bool))]}, "objects need the geometry of the encoder"),
        ({"objects": [], "geometry": ImageGeometry.squash(32)}, "objects must be one MaskSet per image, 1; got .."),
        (
            {"objects": [np.ones((1, 4, 4), bool)], "geometry": ImageGeometry.squash(32)},
            "must be one MaskSet per image",
        ),
        ({"valid": torch.eye(4, 5, dtype=torch.bool)[None]}, "image 0 has regions on invalid patches"),
    ],
)
def test_mismatched_arguments_are_errors(arguments, message):
    features = smooth_features(4, 5, 8)
    given = {"regions": UnionFindClusterer(num_regions=3)(features)} | arguments
    with pytest.raises(ValueError, match=message):
        measure_partition(features, **given)
    features[0, 1, 2] = torch.nan
    with pytest.raises(ValueRangeError, match="NaN or infinity in 1 of its patches, the first at row 1, column 2"):
        measure_partition(features, Regions.from_labels(torch.zeros(1, 4, 5, dtype=torch.int64)))


# Comparing


def test_linkages_are_compared_at_equal_budgets(china):
    encoder = encoders.load("pixels")
    features, valid = encoder(china)
    regionizer = Regionizer(source="segmentation", pool="mean", geometry=encoder.geometry)
    others = {"segmentation": regionizer.group(features, masks=masks.load("felzenszwalb")(china), valid=valid)}
    rows = compare_partitions(features[0], valid=valid[0], others=others)
    assert [(row.source, row.num_regions) for row in rows] == [
        *((source, count) for source in ("grid", "centroid", "average", "ward") for count in BUDGETS),
        ("segmentation", None),
    ]
    kept = {(row.source, row.num_regions): row.scores.explained_variance for row in rows}
    for count in BUDGETS:
        direct = UnionFindClusterer(num_regions=count)(features, valid)
        assert kept["ward", count] == measure_partition(features, direct, valid=valid)[0].explained_variance
        assert kept["ward", count] > max(kept["centroid", count], kept["grid", count])
    fractions = compare_partitions(features[0], valid=valid[0], num_regions=(), keep=(0.1, 0.5))
    assert [(row.num_regions, row.keep) for row in fractions[:2]] == [(None, 0.1), (None, 0.5)]
    exact = compare_partitions(
        features[0], valid=valid[0], num_regions=[row.scores.num_regions for row in fractions[2:4]]
    )
    assert [row.scores for row in fractions[2:]] == [row.scores for row in exact[2:]]
    assert len(others["segmentation"]) == rows[-1].scores.num_regions
    means = mean_partitions([rows, rows])
    assert [row.scores for row in means] == [pytest.approx(row.scores, abs=1e-12) for row in rows]
    seen = [row._replace(scores=row.scores._replace(miou=0.5)) for row in rows]
    assert {row.scores.miou for row in mean_partitions([rows, seen])} == {0.5}
    with pytest.raises(ShapeError, match="images must have one entry or more, with the same sources and budgets"):
        mean_partitions([rows, rows[1:]])
    with pytest.raises(ShapeError, match="images must have one entry or more, with the same sources and budgets"):
        mean_partitions([])


def test_mask_sources_are_compared_at_equal_budgets(china):
    encoder = encoders.load("pixels")
    features, valid = encoder(china)
    found = masks.load("felzenszwalb")(china)
    on_grid = Regionizer(source="segmentation", geometry=encoder.geometry, dim=48).group(
        features, masks=found, valid=valid
    )
    rows = compare_partitions(features[0], valid=valid[0], masks=on_grid, mask_weight=2.0, num_regions=(16, 64))
    assert [(row.source, row.num_regions) for row in rows[-4:]] == [
        ("segmentation", 16), ("segmentation", 64), ("combined", 16), ("combined", 64),
    ]  # fmt: skip
    for source in ("segmentation", "combined"):
        regionizer = Regionizer(source=source, geometry=encoder.geometry, dim=48, mask_weight=2.0)
        for row in rows:
            if row.source == source:
                direct = regionizer.group(features, masks=found, valid=valid, num_regions=row.num_regions)
                assert row.scores == measure_partition(features, direct, valid=valid)[0]


def test_figure_has_a_panel_per_available_score(china):
    encoder = encoders.load("pixels", img_size=96)
    features, valid = encoder(china)
    rows = compare_partitions(features[0], valid=valid[0], num_regions=(4, 8))
    by_source = {}
    for row in rows:
        by_source.setdefault(row.source, []).append(row.scores)
    figure = draw_partitions(by_source)
    assert len(figure.axes) == 3
    assert [line.get_label() for line in figure.axes[0].lines] == ["grid", "centroid", "average", "ward"]
    with pytest.raises(ShapeError, match="scores must have one source or more with scores"):
        draw_partitions({"grid": []})


def test_compare_command_writes_table_figure_and_json(tmp_path, capsys, china, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    china.save("images/a.png")
    china.rotate(90, expand=True).save("images/b.png")
    (tmp_path / "images" / "c.png").write_bytes(b"no image")
    arguments = ["compare", "images", "--num-regions", "64", "16", "--masks", "felzenszwalb", "--out", "c.svg"]
    assert main(arguments) == 1
    out, errors = capsys.readouterr()
    assert "images/c.png" in errors
    assert "1 of 3 images failed" in errors
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["2", "images,", "pixels"]
    table = {(line[0], line[1]): line[2:] for line in lines if len(line) == 8}
    assert [name for name in table if name[1] in ("16", "64")] == [
        (source, count)
        for count in ("16", "64")
        for source in ("grid", "centroid", "average", "ward", "segmentation", "combined")
    ]
    assert {"segmentation (no budget)", "combined (no budget)"} <= {line.split("  ")[0] for line in out.splitlines()}
    told = json.loads((tmp_path / "c.svg.json").read_text())
    assert list(told["images"]) == ["images/a.png", "images/b.png"]
    rows = [
        next(one for one in rows if (one["source"], one["num_regions"]) == ("ward", 16))
        for rows in told["images"].values()
    ]
    assert float(table["ward", "16"][0]) == pytest.approx(
        100 * np.mean([row["explained_variance"] for row in rows]), abs=0.06
    )
    assert "<svg" in (tmp_path / "c.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-regions", "0"], "--num-regions must be at least 1; got 0"),
        (["--ladder"], "--ladder requires masks of sam2, sam3, sam2-package; got no masks. Leave it out."),
        (["--out", "none/x.png"], "none/x.png cannot be written: there is no folder none"),
        (["--out", "x.abc"], "a figure must be one of"),
        (["--out", "a.png"], "a.png is also an input and would be overwritten. Name another output."),
        (["--layer", "3"], "encoder 'pixels' takes no layer; got 3"),
    ],
)
def test_compare_command_rejects_invalid_options_first(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30)).save("a.png")
    assert main(["compare", "a.png", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_clips_are_measured_like_images_and_compared_by_frame():
    features = torch.randn(4, 5, 6, 8, generator=torch.Generator().manual_seed(0))
    still = features[:1].expand(4, -1, -1, -1)
    (score,) = measure_partition(
        still[None], Regions.from_labels(torch.arange(30).view(1, 5, 6).expand(4, -1, -1)[None])
    )
    assert score.explained_variance == pytest.approx(1.0)
    rows = {(row.source, row.num_regions): row.scores for row in compare_clip_partitions(still, num_regions=(12, 30))}
    assert [scores.num_regions for scores in rows.values()] == [12, 30] * 3
    assert rows["motion 0", 30].explained_variance == pytest.approx(1.0)  # each patch is one region of all frames
    assert rows["ward per frame", 30].explained_variance < 0.9
    (frame,) = compare_partitions(still[0], num_regions=(3,))[-1:]
    assert rows["ward per frame", 12].explained_variance == pytest.approx(frame.scores.explained_variance)
    valid = torch.ones(4, 5, 6, dtype=torch.bool)
    valid[:, 4] = False
    for row in compare_clip_partitions(features, valid=valid, num_regions=(10,), keep=(0.5,)):
        assert row.scores.num_regions == (10 if row.keep is None else 48)
    with pytest.raises(ValueRangeError, match="at least one region per frame, 4; got 3"):
        compare_clip_partitions(features, num_regions=(3,))
    with pytest.raises(ShapeError, match="features must be"):
        compare_clip_partitions(features[0])
    with pytest.raises(ValueRangeError, match="objects are of images"):
        measure_partition(
            features[None], Regions.from_labels(torch.zeros(1, 4, 5, 6, dtype=torch.int64)),
            objects=[MaskSet.from_masks(np.ones((1, 8, 8), bool))], geometry=ImageGeometry.squash(8),
        )  # fmt: skip
