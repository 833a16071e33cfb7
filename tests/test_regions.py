import base64
import io
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from regiontok import Regions, RegionTokens
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from regiontok.regions import Dropped
from tests.conftest import for_each, random_labels

shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6)


@st.composite
def label_batches(draw):
    maps = []
    for shape in draw(st.lists(shapes, min_size=1, max_size=4)):
        labels = draw(hnp.arrays("int64", shape, elements=st.integers(-1, 5)))
        labels[0, 0] = draw(st.integers(0, 5))
        maps.append(torch.from_numpy(labels))
    return maps


@st.composite
def mask_batches(draw):
    batch = []
    for rows, cols in draw(st.lists(shapes, min_size=1, max_size=4)):
        count = draw(st.integers(0, 5))
        batch.append(torch.from_numpy(draw(hnp.arrays("bool", (count, rows, cols)))))
    return batch


def assert_sound(regions):
    """What every Regions promises."""
    assert (regions.region.diff() >= 0).all()
    assert (regions.image.diff() >= 0).all()
    same = regions.region.diff() == 0
    assert (regions.patch.diff()[same] > 0).all()
    assert torch.equal(regions.region.unique(), torch.arange(len(regions)))
    assert (regions.counts > 0).all()
    assert regions.counts.sum() == len(regions)
    sizes = regions.grids.prod(1)[regions.image[regions.region]]
    assert ((regions.patch >= 0) & (regions.patch < sizes)).all()


@given(label_batches())
def test_labels_make_a_round_trip_and_number_regions_by_ascending_label(maps):
    regions = Regions.from_labels(maps)
    assert_sound(regions)
    back = list(regions.labels())
    for labels, again in zip(maps, back, strict=True):
        present = labels[labels >= 0].unique()
        assert torch.equal(again >= 0, labels >= 0)
        assert torch.equal(present[again[again >= 0]], labels[labels >= 0])


@given(mask_batches())
def test_masks_make_a_round_trip_and_nothing_is_lost_unnamed(batch):
    regions = Regions.from_masks(batch)
    assert_sound(regions)
    named = {(drop.image, drop.mask_index) for drop in regions.dropped}
    for image, (masks, again) in enumerate(zip(batch, regions.masks(), strict=True)):
        kept = [index for index in range(len(masks)) if (image, index) not in named]
        assert all(masks[index].any() for index in kept)
        assert not any(masks[index].any() for at, index in named if at == image)
        if kept:
            assert torch.equal(again, masks[kept])
            assert regions.mask_index[regions.image == image].tolist() == kept
            assert not regions.fallback[image]
        else:
            assert again.all()
            assert len(again) == 1
            assert regions.fallback[image]
            assert regions.mask_index[regions.image == image].tolist() == [-1]


@given(mask_batches())
def test_areas_and_centroids_are_those_of_the_masks(batch):
    regions = Regions.from_masks(batch)
    masks = [mask for image in regions.masks() for mask in image]
    assert regions.areas().tolist() == [int(mask.sum()) for mask in masks]
    expected = torch.stack([mask.nonzero().float().mean(0) for mask in masks])
    torch.testing.assert_close(regions.centroids(), expected)


@given(mask_batches(), st.randoms())
def test_selecting_regions_selects_their_masks(batch, random):
    regions = Regions.from_masks(batch)
    chosen = []
    for image in range(len(batch)):
        own = (regions.image == image).nonzero().squeeze(1).tolist()
        chosen += random.sample(own, random.randint(1, len(own)))
    selected = regions.select(torch.tensor(chosen))
    assert_sound(selected)
    every = [mask for image in regions.masks() for mask in image]
    again = [mask for image in selected.masks() for mask in image]
    assert all(torch.equal(every[index], mask) for index, mask in zip(chosen, again, strict=True))
    assert torch.equal(selected.mask_index, regions.mask_index[chosen])
    keep = torch.zeros(len(regions), dtype=torch.bool)
    keep[chosen] = True
    assert torch.equal(regions.select(keep).image, regions.image[keep])


@for_each(dtype=[torch.uint8, torch.int16, torch.int32])
def test_an_index_of_any_integers_is_an_index(dtype):
    regions = Regions.from_labels(torch.tensor([[[0, 1, 2]]]))
    assert regions.select(torch.tensor([2, 0], dtype=dtype)).patch.tolist() == [2, 0]


def test_patches_that_are_not_valid_are_in_no_region():
    masks = torch.tensor([[[1, 1, 0]], [[0, 0, 1]]]).bool()
    valid = torch.tensor([[[True, True, False]]])
    regions = Regions.from_masks([masks], valid=valid)
    assert regions.labels().tolist() == [[[0, 0, -1]]]
    assert regions.dropped == (Dropped(0, 1, "covers no valid patch"),)
    whole = Regions.from_masks([masks[1:]], valid=valid)
    assert whole.labels().tolist() == [[[0, 0, -1]]]
    assert whole.fallback.tolist() == [True]


def test_scores_and_indices_follow_their_masks():
    masks = [torch.tensor([[[1, 0]], [[0, 0]], [[0, 1]]]).bool(), torch.zeros(0, 1, 2, dtype=torch.bool)]
    regions = Regions.from_masks(masks, scores=[torch.tensor([0.9, 0.8, 0.7]), torch.zeros(0)])
    assert regions.mask_index.tolist() == [0, 2, -1]
    torch.testing.assert_close(regions.score, torch.tensor([0.9, 0.7, torch.nan]), equal_nan=True)
    assert regions.dropped == (Dropped(0, 1, "covers no patch"),)
    assert repr(regions) == "Regions(3 regions in 2 images)"


def test_overlapping_regions_have_masks_but_no_labels():
    regions = Regions.from_masks([torch.ones(2, 2, 2, dtype=torch.bool)])
    assert regions.masks()[0].all()
    with pytest.raises(ValueRangeError, match=r"regions overlap.*Use masks\(\)"):
        regions.labels()


def test_flat_patches_index_features_laid_flat():
    maps = [torch.tensor([[0, 1]]), torch.tensor([[0], [0], [1]])]
    regions = Regions.from_labels(maps)
    assert regions.flat_patch.tolist() == [0, 1, 2, 3, 4]
    assert regions.starts.tolist() == [0, 1, 2, 4]


def test_regions_and_tokens_pickle_and_move():
    regions = Regions.from_labels(random_labels(4, 5, 6, batch=3))
    tokens = RegionTokens(torch.randn(len(regions), 2), regions)
    again = pickle.loads(pickle.dumps(tokens)).to("cpu")
    assert torch.equal(again.values, tokens.values)
    assert torch.equal(again.regions.labels(), regions.labels())
    assert regions.to("meta").device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_everything_works_on_cuda():
    labels = random_labels(6, 7, 9, batch=3)
    regions = Regions.from_labels(labels.cuda())
    assert regions.device.type == "cuda"
    assert torch.equal(regions.labels().cpu(), Regions.from_labels(labels).labels())
    assert torch.equal(regions.centroids().cpu(), Regions.from_labels(labels).centroids())


@given(label_batches())
def test_split_and_padded_tokens_are_the_values(maps):
    regions = Regions.from_labels(maps)
    tokens = RegionTokens(torch.randn(len(regions), 3), regions)
    assert torch.equal(torch.cat(tokens.split()), tokens.values)
    values, mask = tokens.padded()
    assert torch.equal(values[mask], tokens.values)
    assert not values[~mask].any()
    assert torch.equal(mask.sum(1), tokens.counts)
    assert mask.shape[1] == tokens.counts.max()
    doubled = tokens.map(lambda one: torch.cat([one, one], 1))
    assert doubled.values.shape == (len(regions), 6)
    assert doubled.regions is regions


def test_padding_keeps_gradients():
    regions = Regions.from_labels([torch.tensor([[0, 1]]), torch.tensor([[0]])])
    values = torch.randn(3, 2, requires_grad=True)
    RegionTokens(values, regions).padded()[0].sum().backward()
    assert torch.equal(values.grad, torch.ones(3, 2))


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([], ShapeError, "at least one image; got none"),
        (None, DTypeError, "got NoneType for image 0"),
        (torch.tensor(3), ShapeError, r"image 0 has \(\)"),
        (torch.zeros(3, 4, dtype=torch.int64), ShapeError, r"image 0 has \(4,\)"),
        ([torch.zeros(0, 4, dtype=torch.int64)], ShapeError, r"image 0 has \(0, 4\)"),
        ([[0, 1]], DTypeError, "got list for image 0. Convert arrays with torch.from_numpy"),
        (torch.zeros(1, 2, 2), DTypeError, "must be integers; image 0 has torch.float32"),
        (torch.zeros(1, 2, 2, dtype=torch.bool), DTypeError, "Pass masks to Regions.from_masks"),
        (torch.full((1, 2, 2), -2), ValueRangeError, "got -2"),
        (torch.full((1, 2, 2), 2**40), ValueRangeError, "got 1099511627776"),
        (torch.stack([torch.zeros(2, 2).long(), -torch.ones(2, 2).long()]), ShapeError, "every label of image 1 is -1"),
    ],
)
def test_bad_labels_are_refused(labels, error, message):
    with pytest.raises(error, match=message):
        Regions.from_labels(labels)


some = torch.ones(2, 3, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("masks", "options", "error", "message"),
    [
        ([], {}, ShapeError, "at least one image; got an empty list"),
        (some, {}, DTypeError, r"a list with one \(masks, rows, cols\) tensor per image; got Tensor"),
        ([some[0]], {}, ShapeError, r"masks\[0\] must be .* got \(3, 3\)"),
        ([some, some[:, :0]], {}, ShapeError, r"masks\[1\] must be .* got \(2, 0, 3\)"),
        ([some.float()], {}, DTypeError, r"masks\[0\] must be bool; got torch.float32"),
        ([some], {"scores": []}, ShapeError, "one tensor per image, 1; got 0"),
        (
            [some],
            {"scores": [torch.ones(3)]},
            ShapeError,
            r"scores\[0\] must be a \(2,\) tensor, one value per mask; got \(3,\)",
        ),
        ([some], {"scores": [[0.5, 0.5]]}, ShapeError, "got list"),
        ([some], {"valid": torch.zeros(1, 3, 3).bool()}, ValueRangeError, "image 0 has no valid patch"),
    ],
)
def test_bad_masks_are_refused(masks, options, error, message):
    with pytest.raises(error, match=message):
        Regions.from_masks(masks, **options)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (torch.tensor([0, 4]), ValueRangeError, "must be in 0 to 3; got 0 to 4"),
        (torch.tensor([-1, 2]), ValueRangeError, "must be in 0 to 3; got -1 to 2"),
        (torch.tensor([0, 0, 2]), ValueRangeError, "contains a region twice"),
        (torch.tensor([2, 0]), ValueRangeError, "keep the images in order"),
        (torch.tensor([0, 1]), ValueRangeError, "leaves image 1 without a region"),
        (torch.tensor([True, False]), ShapeError, r"a bool index must be \(4,\)"),
        (torch.tensor([0.0]), ShapeError, "integers or bool"),
        ([0, 2], DTypeError, "index must be a torch tensor; got list"),
    ],
)
def test_bad_selections_are_refused(index, error, message):
    regions = Regions.from_labels(torch.tensor([[[0, 1]], [[0, 1]]]))
    with pytest.raises(error, match=message):
        regions.select(index)


def test_tokens_that_do_not_match_their_regions_are_refused():
    regions = Regions.from_labels(torch.tensor([[[0, 1]]]))
    with pytest.raises(ShapeError, match=r"values must be \(2, dim\), one row per region; got \(3, 4\)"):
        RegionTokens(torch.zeros(3, 4), regions)


def test_a_dtype_converts_values_and_no_index():
    tokens = RegionTokens(torch.ones(3, 4), Regions.from_labels(torch.arange(576).reshape(1, 24, 24) // 200))
    for other in (tokens.to(torch.bfloat16), tokens.to("cpu", torch.bfloat16), tokens.to(dtype=torch.bfloat16)):
        assert other.values.dtype == torch.bfloat16
        assert torch.equal(other.regions.patch, tokens.regions.patch)
        assert other.regions.patch.dtype == torch.int64
        assert other.split()[0].shape == (3, 4)
    with pytest.raises(DTypeError, match="regions are integers and cannot be converted"):
        tokens.regions.to(torch.bfloat16)


# Images of a batch


@given(label_batches(), st.data())
def test_images_of_a_batch_by_number(maps, data):
    regions = Regions.from_labels(maps)
    images = data.draw(st.lists(st.integers(-len(maps), len(maps) - 1), min_size=1, max_size=5))
    chosen = regions[images]
    assert_sound(chosen)
    expected = Regions.from_labels([maps[image] for image in images])
    assert all(torch.equal(a, b) for a, b in zip(chosen.labels(), expected.labels(), strict=True))
    assert torch.equal(regions[images[0]].labels()[0], expected[0].labels()[0])
    assert torch.equal(regions[torch.tensor(images)].patch, chosen.patch)
    assert len(regions[: len(maps)]) == len(regions)


@given(mask_batches())
def test_a_batch_is_its_images_put_together_again(batch):
    regions = Regions.from_masks(batch)
    parts = regions.split()
    for part in parts:
        assert_sound(part)
    again = Regions.cat(parts)
    for name in ("patch", "region", "image", "mask_index", "grids", "fallback"):
        assert torch.equal(getattr(again, name), getattr(regions, name))
    assert torch.equal(again.score.nan_to_num(-1), regions.score.nan_to_num(-1))
    assert again.dropped == regions.dropped
    tokens = RegionTokens(torch.rand(len(regions), 3), regions)
    assert torch.equal(RegionTokens.cat(list(tokens)).values, tokens.values)
    assert [len(one) for one in tokens] == tokens.counts.tolist()
    assert torch.equal(tokens[-1].values, tokens.split()[-1])


def test_images_that_a_batch_does_not_have():
    regions = Regions.from_labels(torch.zeros(2, 1, 2, dtype=torch.int64))
    with pytest.raises(IndexError):
        regions[2]
    with pytest.raises(ValueRangeError, match="at least one image; got none of 2"):
        regions[2:]
    with pytest.raises(ShapeError, match="at least one batch"):
        RegionTokens.cat([])


def test_tokens_have_a_device_a_dtype_and_no_history():
    regions = Regions.from_labels(torch.zeros(1, 1, 2, dtype=torch.int64))
    tokens = RegionTokens(torch.ones(1, 4, dtype=torch.bfloat16, requires_grad=True), regions)
    assert (tokens.device.type, tokens.dtype) == ("cpu", torch.bfloat16)
    assert not tokens.detach().values.requires_grad


def test_notebooks_show_a_label_map_per_image():
    inner = torch.tensor([[True, False], [False, False]])
    overlapping = Regions.from_masks([torch.stack([torch.ones(2, 2, dtype=torch.bool), inner])])
    html = overlapping._repr_html_()
    assert "2 regions on 2 × 2 patches" in html
    (encoded,) = re.findall(r"base64,([^\"]+)", html)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    assert pixels.shape == (160, 160, 4)
    assert (pixels[0, 0] != pixels[-1, -1]).any()  # the small region is on top
    many = Regions.from_labels(torch.zeros(6, 3, 2, dtype=torch.int64))
    assert "and 2 more" in RegionTokens(torch.ones(6, 1), many)._repr_html_()
    assert many._repr_html_().count("<img") == 4
