import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from regiontok import MaskSet
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from regiontok.maskset import join
from tests.conftest import for_each


@st.composite
def stacks(draw):
    """Masks ``(M, H, W)`` of any density, full and empty ones among them."""
    count, height, width = draw(st.integers(0, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    density = draw(st.sampled_from([0, 0.1, 0.5, 0.9, 1]))
    return generator.random((count, height, width)) < density


def by_pycocotools(masks):
    return [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]


@given(stacks())
def test_encoding_is_cocos_byte_for_byte(masks):
    ours = MaskSet.from_masks(masks)
    theirs = by_pycocotools(masks)
    assert ours.to_coco() == theirs
    assert ours.areas().tolist() == [int(coco.area(mask)) for mask in theirs]


@given(stacks(), st.sampled_from(["bytes", "str", "list", "array", "mix"]))
def test_every_form_of_rle_decodes_to_the_same_masks(masks, form):
    encoded = by_pycocotools(masks)
    forms = {
        "bytes": lambda mask, _: mask,
        "str": lambda mask, _: mask | {"counts": mask["counts"].decode()},
        "list": lambda mask, dense: mask | {"counts": runs_of(dense)},
        "array": lambda mask, dense: mask | {"counts": np.array(runs_of(dense), np.uint32)},
    }
    names = list(forms)
    given_forms = [forms[names[i % 4] if form == "mix" else form](mask, masks[i]) for i, mask in enumerate(encoded)]
    decoded = MaskSet.from_coco(given_forms, size=masks.shape[1:])
    assert np.array_equal(decoded.masks().numpy(), masks)
    assert decoded.to_coco() == encoded


def runs_of(mask):
    """Uncompressed counts, from the pixels."""
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff([0, *changes, len(flat)]).tolist()


def test_long_runs_survive_compression():
    runs = [[0, 2**20, 7, 2**19, 2**21 - 2**20 - 7 - 2**19], [2**21 - 1, 1], [2**21]]
    masks = MaskSet.from_coco([{"size": [2**10, 2**11], "counts": one} for one in runs])
    again = MaskSet.from_coco(masks.to_coco())
    assert again.runs.tolist() == masks.runs.tolist() == [run for one in runs for run in one]


@given(stacks().filter(len))
def test_a_label_map_is_one_mask_per_label(masks):
    labels = (masks * np.array([1, 5, 9, 70])[: len(masks), None, None]).sum(0) - 1
    expected = [labels == value for value in np.unique(labels) if value >= 0]
    ours = MaskSet.from_labels(labels)
    assert len(ours) == len(expected)
    assert all(np.array_equal(ours.masks()[i].numpy(), mask) for i, mask in enumerate(expected))
    assert ours.to_coco() == by_pycocotools(expected)


@for_each(dtype=[np.uint8, np.int32, np.int64, np.uint16])
def test_label_maps_of_any_integers(dtype):
    labels = np.array([[0, 0, 7], [3, 3, 7]], dtype)
    assert MaskSet.from_labels(labels).areas().tolist() == [2, 2, 2]
    assert MaskSet.from_labels(torch.from_numpy(labels.astype(np.int64))).areas().tolist() == [2, 2, 2]


def test_masks_in_any_layout_and_of_0_and_255():
    masks = np.random.default_rng(0).random((3, 12, 10)) < 0.5
    expected = MaskSet.from_masks(masks).to_coco()
    assert MaskSet.from_masks(np.asfortranarray(masks)).to_coco() == expected
    assert MaskSet.from_masks(np.repeat(masks, 2, axis=2)[..., ::2]).to_coco() == expected
    assert (
        MaskSet.from_masks(torch.from_numpy(masks).permute(0, 2, 1).contiguous().permute(0, 2, 1)).to_coco() == expected
    )
    assert MaskSet.from_masks(masks.astype(np.uint8)).to_coco() == expected
    assert MaskSet.from_masks(masks.astype(np.uint8) * 255).to_coco() == expected


@given(stacks(), st.randoms())
def test_selected_masks_are_those_masks(masks, random):
    masks_set = MaskSet.from_masks(masks, scores=np.arange(len(masks)) / 8, stability=np.arange(len(masks)) / 4)
    index = random.sample(range(len(masks)), random.randint(0, len(masks)))
    some = masks_set.select(index)
    assert np.array_equal(some.masks().numpy(), masks[index])
    assert some.scores.tolist() == [one / 8 for one in index]
    assert some.stability.tolist() == [one / 4 for one in index]
    flags = np.isin(np.arange(len(masks)), index)
    assert np.array_equal(masks_set.select(flags).masks().numpy(), masks[flags])
    parts = [masks_set.select([one]) for one in range(len(masks))]
    assert join(parts, masks_set.size).to_coco() == masks_set.to_coco()


def test_masks_on_the_grid_keep_their_coverage_and_know_no_pixels():
    coverage = torch.tensor([[[0.0, 0.5]], [[1.0, 0.2]]])
    masks = MaskSet.on_grid(coverage, scores=[0.5, 0.25])
    assert repr(masks) == "MaskSet(2 masks of 1 x 2 patches)"
    assert torch.equal(masks.select([1]).coverage, coverage[1:])
    assert MaskSet.on_grid(coverage > 0.3).coverage.tolist() == [[[0.0, 1.0]], [[1.0, 0.0]]]
    for ask in (masks.areas, masks.masks, masks.to_coco):
        with pytest.raises(ValueRangeError, match="have no pixels"):
            ask()


def test_a_set_can_be_pickled():
    masks = MaskSet.from_masks(np.ones((1, 2, 3), bool), scores=[0.5])
    again = pickle.loads(pickle.dumps(masks))
    assert again.to_coco() == masks.to_coco()
    assert repr(again) == "MaskSet(1 mask of 2 x 3 pixels)"


RLE = {"size": [2, 3], "counts": [2, 3, 1]}


@for_each(
    ("masks", "options", "error", "message"),
    [
        ([RLE, {"size": [2, 3], "counts": [2, 3]}], {}, ValueRangeError, r"mask 1: the counts of an RLE must add up to its size, 2 x 3 = 6; they add up to 5"),
        ([{"size": [2, 3], "counts": [2, -3, 7]}], {}, ValueRangeError, "mask 0: run lengths must be from 0"),
        ([{"size": [2, 3], "counts": b"22P"}], {}, ValueRangeError, "mask 0: its compressed RLE is cut short within a number"),
        ([{"size": [2, 3], "counts": b"23O"}], {}, ValueRangeError, "mask 0: its RLE has a run of -"),
        ([RLE, {"size": [2, 3], "counts": b"2 1"}], {}, ValueRangeError, "mask 1: ' ' is not a character of compressed RLE"),
        ([{"size": [2, 3], "counts": "2é1"}], {}, ValueRangeError, "mask 0: .* is not a character of compressed RLE"),
        ([{"size": [2, 3], "counts": b"o" * 9 + b"0"}], {}, ValueRangeError, "mask 0: its RLE has a run beyond 32 bits"),
        ([{"size": [2, 3], "counts": b""}], {}, ValueRangeError, "they add up to 0"),
        ([{"size": [2, 3], "counts": [1.5]}], {}, DTypeError, "mask 0: counts must be bytes, str, or a list of run lengths"),
        ([{"size": [2, 3], "counts": None}], {}, DTypeError, "mask 0: counts must be"),
        ([{"size": [2], "counts": [6]}], {}, ShapeError, r"mask 0: size must be \(height, width\)"),
        ([{"size": [2, 0], "counts": []}], {}, ValueRangeError, "mask 0: size must be at least 1"),
        ([RLE, {"size": [3, 2], "counts": [6]}], {}, ShapeError, r"mask 1: size must be that of mask 0, \(2, 3\); got \(3, 2\)"),
        ([RLE], {"size": (3, 2)}, ShapeError, r"mask 0: size must be the image's, \(3, 2\); got \(2, 3\)"),
        ([], {}, ShapeError, r"pass size=\(height, width\)"),
        ([{"counts": [6]}], {}, DTypeError, "mask 0 must be a COCO RLE"),
        (RLE, {}, DTypeError, "must be a list with one COCO RLE, polygons or annotation per mask"),
        ([RLE], {"scores": [1, 2]}, ShapeError, r"scores must be \(1,\), one value per mask; got \(2,\)"),
        ([RLE], {"stability": []}, ShapeError, "stability must be"),
        ([RLE], {"scores": ["a"]}, DTypeError, "scores must be numbers"),
        ([RLE], {"size": 5}, ShapeError, r"size must be \(height, width\); got 5"),
        ([RLE], {"size": (9,)}, ShapeError, r"size must be \(height, width\); got \(9,\)"),
        ([{"size": 5, "counts": [5]}], {}, ShapeError, r"mask 0: size must be \(height, width\); got 5"),
    ],
)  # fmt: skip
def test_bad_rle_is_refused_and_named(masks, options, error, message):
    with pytest.raises(error, match=message):
        MaskSet.from_coco(masks, **options)


@for_each(
    ("make", "value", "error", "message"),
    [
        ("from_masks", np.ones((3, 4), bool), ShapeError, r"masks must be \(masks, height, width\).*A single mask is masks\[None\]"),
        ("from_masks", np.ones((1, 0, 4), bool), ShapeError, "not empty"),
        ("from_masks", np.ones((1, 3, 4)), DTypeError, "masks must be bool or uint8; got float64"),
        ("from_masks", np.full((1, 3, 4), 7, np.uint8), ValueRangeError, "of 0 and 1, or of 0 and 255; got 7"),
        ("from_masks", [[True]], DTypeError, "must be an array or a tensor; got list"),
        ("from_labels", np.full((3, 4), -2), ValueRangeError, r"labels must be -1 \(no mask\) or from 0; got -2"),
        ("from_labels", np.zeros((1, 3, 4), int), ShapeError, r"a label map must be \(height, width\)"),
        ("from_labels", np.zeros((3, 4)), DTypeError, "must be of integers; got float64"),
        ("on_grid", [[[0.5]]], DTypeError, "must be an array or a tensor; got list"),
        ("on_grid", torch.zeros(3, 4), ShapeError, r"must be \(masks, rows, cols\)"),
        ("on_grid", torch.zeros(1, 3, 4, dtype=torch.int64), DTypeError, "must be floating point or bool"),
        ("on_grid", torch.full((1, 3, 4), 1.5), ValueRangeError, r"must be in \[0, 1\]"),
        ("on_grid", torch.full((1, 3, 4), torch.nan), ValueRangeError, r"must be in \[0, 1\]"),
    ],
)  # fmt: skip
def test_bad_masks_are_refused(make, value, error, message):
    with pytest.raises(error, match=message):
        getattr(MaskSet, make)(value)


def test_a_selection_out_of_range_is_refused():
    with pytest.raises(ValueRangeError, match="index must choose from 1 masks"):
        MaskSet.from_coco([RLE]).select([4])


def test_what_is_valid_must_fit_the_grid():
    with pytest.raises(ShapeError, match=r"valid\[0\] must be \(3, 4\)"):
        MaskSet.on_grid(torch.ones(1, 3, 4), valid=torch.ones(4, 3, dtype=torch.bool))


def test_no_masks_at_all():
    for masks in (
        MaskSet.from_coco([], size=(4, 5)),
        MaskSet.from_masks(np.zeros((0, 4, 5), bool)),
        MaskSet.from_labels(np.full((4, 5), -1)),
    ):
        assert len(masks) == 0
        assert masks.to_coco() == []
        assert masks.masks().shape == (0, 4, 5)
        assert len(masks.select([])) == 0
