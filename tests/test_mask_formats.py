import re

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageOps
from pycocotools import mask as coco

from regiontok import ImageGeometry, MaskDownsampler, MaskSet, Regionizer
from regiontok.errors import AmbiguousShapeWarning, DTypeError, RegiontokError, ShapeError, ValueRangeError
from tests.conftest import for_each

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools

SQUARE = [[1.0, 1, 5, 1, 5, 5, 1, 5]]
RLE = {"size": [6, 8], "counts": [3, 5, 40]}


def filled(polygons, size):
    """pycocotools' own answer, ``(height, width)``."""
    return coco.decode(coco.merge(coco.frPyObjects(polygons, *size))).astype(bool)


numbers = st.one_of(
    st.integers(-12, 40), st.integers(-60, 200).map(lambda n: n / 5), st.integers(-24, 80).map(lambda n: n / 2),
    st.floats(-30, 70, allow_nan=False, width=32), st.floats(-5000, 5000, allow_nan=False),
)  # fmt: skip
polygon = st.integers(3, 9).flatmap(lambda points: st.lists(numbers, min_size=2 * points, max_size=2 * points))
size = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(deadline=None, max_examples=400)
@hypothesis.given(masks=st.lists(st.lists(polygon, min_size=1, max_size=3), min_size=1, max_size=4), size=size)
def test_polygons_equal_pycocotools_to_the_pixel(masks, size):
    found = MaskSet.from_coco(masks, size=size)
    for mask, polygons in zip(found.masks().numpy(), masks, strict=True):
        np.testing.assert_array_equal(mask, filled(polygons, size))
    assert MaskSet.from_coco(found.to_coco()).to_coco() == found.to_coco()


def test_polygons_of_numpy_and_whole_numbers_are_taken():
    size = (6, 8)
    given = [np.array(SQUARE[0])], [np.array(SQUARE[0], np.float32)], [[int(one) for one in SQUARE[0]]]
    for one in given:
        np.testing.assert_array_equal(MaskSet.from_coco([one], size=size).masks()[0], filled(SQUARE, size))


def test_forms_may_be_mixed_and_keep_their_order():
    annotations = [
        {"id": 7, "category_id": 3, "segmentation": SQUARE, "iscrowd": 0, "bbox": [1, 1, 4, 4], "area": 16},
        {"id": 2**40, "category_id": 1, "segmentation": RLE, "iscrowd": 1},
        {"id": 5, "category_id": 3, "segmentation": [*SQUARE, [0, 0, 2, 0, 2, 2]]},
    ]
    masks = MaskSet.from_coco(annotations)
    assert masks.ids.tolist() == [7, 2**40, 5]
    assert masks.categories.tolist() == [3, 1, 3]
    assert np.isnan(masks.scores).all()
    plain = MaskSet.from_coco([one["segmentation"] for one in annotations])
    assert torch.equal(masks.masks(), plain.masks())
    assert plain.ids is plain.categories is None
    np.testing.assert_array_equal(masks.masks()[2], filled([*SQUARE, [0, 0, 2, 0, 2, 2]], (6, 8)))
    with pytest.raises(ShapeError, match="polygons have no image size"):  # the crowd's RLE told it
        MaskSet.from_coco(annotations, iscrowd="drop")
    assert MaskSet.from_coco(annotations, size=(6, 8), iscrowd="drop").ids.tolist() == [7, 5]


def test_ids_follow_masks_wherever_they_go():
    half = {"size": [6, 8], "counts": [0, 24, 24]}
    annotations = [{"id": 10 * n, "category_id": n, "segmentation": half, "score": n / 8} for n in (1, 2, 3)]
    masks = MaskSet.from_coco(annotations)
    assert masks.scores.tolist() == [0.125, 0.25, 0.375]
    chosen = masks.select([2, 0])
    assert (chosen.ids.tolist(), chosen.categories.tolist()) == ([30, 10], [3, 1])
    tiny = {"id": 99, "category_id": 9, "segmentation": {"size": [6, 8], "counts": [47, 1]}}
    masks = MaskSet.from_coco([tiny, *annotations])
    geometry = ImageGeometry.squash((6, 8))
    regions = MaskDownsampler((3, 4), geometry=geometry, min_coverage=0.5)([masks])
    assert masks.ids[regions.mask_index].tolist() == [10, 20, 30]
    assert masks.ids[[one.mask_index for one in regions.dropped]].tolist() == [99]
    some = MaskSet.from_coco([annotations[0], {"segmentation": RLE}])
    assert (some.ids, some.categories) == (None, None)
    assert np.isnan(some.scores).tolist() == [False, True]


BAD = [
    ([[[1, 2, 3, 4]]], ShapeError, "mask 0: 4 numbers are a box or two points; a polygon has three points"),
    ([{"id": 31, "segmentation": [[10, 10, 5, 5]]}], ShapeError, r"mask 0 \(annotation 31\): 4 numbers are a box"),
    ([SQUARE, {"id": 8, "segmentation": []}], ShapeError, r"mask 1 \(annotation 8\) has no polygon: its segmentation is empty"),
    ([SQUARE, [1, 2, 3, 4, 5, 6]], DTypeError, r"mask 1: its polygons must be a list of lists, \[\[x, y, x, y, ...\]\]; got list \[1, 2, 3"),
    ([[[1, 2, 3, 4, 5, 6, 7]]], ShapeError, "mask 0: a polygon has three points or more, .*; got 7 numbers"),
    ([SQUARE, [["a"] * 6]], ValueRangeError, "mask 1: a polygon must be a list of numbers"),
    ([SQUARE, [[1, 2, 3, 4, 5, None]]], ValueRangeError, "mask 1: a polygon must be a list of numbers"),
    ([[[1, 2, 3, 4, 5, float("nan")]]], ValueRangeError, "mask 0: a polygon's corners must lie within 1048576 pixels"),
    ([SQUARE, [[1, 2, 3, 4, 5, 1e9]]], ValueRangeError, "mask 1: a polygon's corners must lie within"),
    ([{"id": 4, "segmentation": "abc"}], DTypeError, r"mask 0 \(annotation 4\) must be a COCO RLE, .* a list of polygons"),
    ([{"id": 4, "segmentation": None}], DTypeError, r"mask 0 \(annotation 4\) must be a COCO RLE"),
    ([{"bbox": [1, 2, 3, 4]}], DTypeError, "mask 0 must be a COCO RLE, .*; got a dict of bbox"),
    ([[np.array([1.0, 2, 3, 4])]], ShapeError, "mask 0: 4 numbers are a box"),
    ([SQUARE, [np.arange(7.0)], SQUARE], ShapeError, "mask 1: a polygon has three points or more, .*; got 7 numbers"),
    ([[np.empty(0)]], ShapeError, "mask 0: a polygon has three points or more"),
    ([[[1, 1], [5, 1], [5, 5]]], ShapeError, "got 2 numbers. Pass the points of a polygon as one flat list, not as pairs"),
    ([{"id": 2**70, "segmentation": SQUARE}], DTypeError, "id must be whole numbers of 64 bits"),
    ([{"score": "x", "segmentation": SQUARE}], DTypeError, "score must be numbers, one per mask"),
    ([{"id": 3, "segmentation": {"size": [6, 8], "counts": "11"}}], ValueRangeError, r"mask 0 \(annotation 3\): the counts of an RLE must add up"),
]  # fmt: skip


@for_each(("masks", "error", "message"), BAD)
def test_what_is_no_mask_is_refused_by_the_annotations_id(masks, error, message):
    with pytest.raises(error, match=message):
        MaskSet.from_coco(masks, size=(6, 8))


def test_polygons_need_a_size():
    with pytest.raises(ShapeError, match=r"polygons have no image size; pass size=\(height, width\)"):
        MaskSet.from_coco([SQUARE])
    with pytest.raises(ValueRangeError, match="iscrowd must be one of 'keep', 'drop'"):
        MaskSet.from_coco([SQUARE], size=(6, 8), iscrowd="both")


@for_each(size=[[2**31, 1], [1, 2**31], [2**20 + 1, 1], [2**16, 2**16]])
def test_a_size_of_no_image_is_refused_before_memory_is_asked_for(size):
    for masks, given in (
        ([{"size": size, "counts": [size[0] * size[1]]}], None),
        ([SQUARE], tuple(size)),
        ([], tuple(size)),
    ):
        with pytest.raises(ValueRangeError, match=f"there is no image of {size[0]} x {size[1]} pixels"):
            MaskSet.from_coco(masks, size=given)


FORMATS = [
    ("<annotations><image></image></annotations>", "CVAT's XML"),
    ([{"rle": "1, 2", "left": 1, "top": 2, "width": 3, "height": 1}], "a mask of CVAT"),
    ([{"original_width": 8, "original_height": 6, "value": {"format": "rle", "rle": [0, 1]}}], "a brush mask of Label Studio"),
    ({"value": {"format": "rle", "rle": [0, 1]}}, "a brush mask of Label Studio"),
    ({"id": 1, "annotations": [{"result": []}]}, "a task of Label Studio"),
    ({"images": [], "annotations": []}, "whole file of COCO annotations.*regiontok.masks.CocoMasks"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "name"), FORMATS, ids=[name for _, name in FORMATS])
def test_forms_of_other_tools_are_named(given, name):
    with pytest.raises(DTypeError, match=name):
        MaskSet.from_coco(given, size=(6, 8))


# SAM


def sam_records(form, dense):
    made = []
    for number, mask in enumerate(dense):
        if form == "coco_rle":
            segmentation = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        elif form == "uncompressed_rle":
            runs = MaskSet.from_masks(mask[None])
            segmentation = {"size": list(mask.shape), "counts": runs.runs.tolist()}
        else:
            segmentation = mask
        made.append({"segmentation": segmentation, "area": int(mask.sum()), "predicted_iou": number / 8, "stability_score": 1 - number / 8, "bbox": [0, 0, 1, 1], "point_coords": [[1.0, 2.0]], "crop_box": [0, 0, 8, 6]})  # fmt: skip
    return made


@for_each(form=["binary_mask", "coco_rle", "uncompressed_rle"])
def test_sams_own_output_is_taken(form):
    dense = np.random.default_rng(0).random((3, 6, 8)) < 0.5
    records = sam_records(form, dense)
    masks = MaskSet.from_sam(records)
    np.testing.assert_array_equal(masks.masks(), dense)
    assert masks.scores.tolist() == [0, 0.125, 0.25]
    assert masks.stability.tolist() == [1, 0.875, 0.75]
    assert len(MaskSet.from_sam([], size=(6, 8))) == 0
    with pytest.raises(ShapeError, match="pass size="):
        MaskSet.from_sam([])
    with pytest.raises(DTypeError, match="mask 1 must be a dict with segmentation"):
        MaskSet.from_sam([records[0], {"area": 3}])


@for_each(
    kind=[
        np.stack,
        list,
        lambda some: [torch.from_numpy(one) for one in some],
        lambda some: torch.from_numpy(np.stack(some)),
    ]
)
def test_the_pipelines_output_is_taken(kind):
    dense = np.random.default_rng(1).random((3, 6, 8)) < 0.5
    given = {"masks": kind(list(dense)), "scores": torch.tensor([0.5, 0.25, 0.75])}
    masks = MaskSet.from_sam(given)
    np.testing.assert_array_equal(masks.masks(), dense)
    assert masks.scores.tolist() == [0.5, 0.25, 0.75]
    assert np.isnan(masks.stability).all()
    assert MaskSet.from_sam({"masks": [], "scores": torch.empty(0)}, size=(6, 8)).size == (6, 8)
    with pytest.raises(ShapeError, match=r"scores must be \(3,\)"):
        MaskSet.from_sam(given | {"scores": [0.5]})
    with pytest.raises(DTypeError, match="must be the list of dicts of SAM2AutomaticMaskGenerator, or the dict"):
        MaskSet.from_sam({"scores": [0.5]})


# Label maps


@for_each(dtype=[np.uint8, np.uint16, np.uint32, np.uint64, np.int16, np.int64], ignore=[(), (0, 255), [0], (-1, 3)])
def test_ignored_labels_are_no_masks(dtype, ignore):
    labels = np.random.default_rng(2).choice(np.array([0, 3, 7, 255 if dtype != np.int16 else 300], dtype), (9, 11))
    masks = MaskSet.from_labels(labels, ignore=ignore)
    expected = [value for value in np.unique(labels) if value not in ignore]
    assert masks.ids.tolist() == expected
    np.testing.assert_array_equal(masks.masks(), np.stack([labels == value for value in expected]))
    tensor = torch.from_numpy(labels.astype(np.int64))
    assert MaskSet.from_labels(tensor, ignore=ignore).to_coco() == masks.to_coco()


def test_nothing_but_ignored_labels_is_no_mask():
    masks = MaskSet.from_labels(np.full((4, 5), 255, np.uint8), ignore=(255,))
    assert (len(masks), masks.size) == (0, (4, 5))
    two = np.array([[0, 255]], np.uint8)
    with pytest.raises(ValueRangeError, match=r"is one mask and no label map; .* by ignore=\(0,\), --ignore 0"):
        MaskSet.from_labels(two)
    assert MaskSet.from_labels(two, ignore=[0]).ids.tolist() == [255]
    with pytest.raises(ValueRangeError, match=r"labels must be below 2\*\*63"):
        MaskSet.from_labels(np.array([[2**63]], np.uint64))
    with pytest.raises(DTypeError, match="ignore must be whole numbers"):
        MaskSet.from_labels(two, ignore=["void"])


@for_each(mode=["L", "P", "1", "I", "I;16"])
def test_pictures_of_any_integer_mode_are_label_maps(mode, tmp_path):
    labels = np.random.default_rng(3).integers(0, 2 if mode == "1" else 6, (7, 9))
    if mode == "P":
        picture = Image.fromarray(labels.astype(np.uint8))
        picture = picture.convert("P")
        picture.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
        picture.putdata(labels.astype(np.uint8).ravel().tolist())
    elif mode == "1":
        picture = Image.fromarray(labels.astype(bool))
    else:
        picture = Image.fromarray(labels.astype({"L": np.uint8, "I": np.int32, "I;16": np.uint16}[mode]))
    assert picture.mode == mode
    picture.save(tmp_path / "labels.tif")
    with Image.open(tmp_path / "labels.tif") as again:
        masks = MaskSet.from_labels(again)
    assert masks.ids.tolist() == np.unique(labels).tolist()
    np.testing.assert_array_equal(masks.masks(), np.stack([labels == value for value in masks.ids]))


def test_colours_that_are_ids_are_told_how_to_become_a_map():
    colours = np.random.default_rng(4).integers(0, 3, (5, 6, 3)).astype(np.uint8)
    for given in (Image.fromarray(colours), colours, torch.from_numpy(colours)):
        with pytest.raises(RegiontokError, match=r"If colours are ids, as in panoptic PNGs of COCO: (.*)\.") as caught:
            MaskSet.from_labels(given)
    recipe = re.search("COCO: (.*)\\.$", str(caught.value))[1]
    known = {"np": np, "image": Image.fromarray(colours)}
    exec(recipe, known)
    assert len(MaskSet.from_labels(known["labels"])) == len(np.unique(colours.reshape(-1, 3), axis=0))
    for mode in ("F", "RGBA", "CMYK"):
        with pytest.raises(DTypeError, match=f"got a Pillow image of mode {mode}"):
            MaskSet.from_labels(Image.new(mode, (3, 3)))


# Anything


@settings(deadline=None, max_examples=50)
@hypothesis.given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))))
def test_every_form_of_the_same_masks_is_the_same_set(dense):
    expected = MaskSet.from_masks(dense)
    forms = [
        expected, dense, torch.from_numpy(dense), list(dense), [torch.from_numpy(one) for one in dense],
        [one.astype(np.uint8) * 255 for one in dense], expected.to_coco(), sam_records("binary_mask", dense),
        sam_records("coco_rle", dense), {"masks": list(dense), "scores": np.ones(len(dense))},
        [{"segmentation": one, "id": number} for number, one in enumerate(expected.to_coco())],
    ]  # fmt: skip
    for form in forms:
        assert MaskSet.of(form).to_coco() == expected.to_coco()
        grid, geometry = (2, 2), ImageGeometry.squash(4)
        assert torch.equal(
            MaskDownsampler(grid, geometry=geometry).coverage(form),
            MaskDownsampler(grid, geometry=geometry).coverage(expected),
        )


def test_a_batch_may_mix_forms_and_polygons_take_their_images_size():
    features = torch.rand(3, 4, 4, 8)
    regionizer = Regionizer(source="segmentation", pool="mean", geometry=ImageGeometry.squash(16))
    map_ = Image.fromarray(np.kron(np.array([[1, 2], [2, 1]], np.uint8), np.ones((4, 4), np.uint8)))
    masks = [[{"segmentation": [[0, 0, 8, 0, 8, 4, 0, 4]]}], map_, [np.ones((8, 8), bool)]]
    tokens = regionizer(features, masks=masks, sizes=[(8, 8)] * 3)
    assert tokens.counts.tolist() == [1, 2, 1]
    with pytest.raises(ShapeError, match=r"masks\[0\]: polygons have no image size"):
        regionizer(features, masks=masks)


def test_lists_of_masks_must_be_of_one_image():
    with pytest.raises(ShapeError, match=r"masks\[0\] is \(2, 3\), masks\[1\] is \(3, 2\)"):
        MaskSet.from_masks([np.ones((2, 3), bool), np.ones((3, 2), bool)])
    with pytest.raises(DTypeError, match=r"masks\[1\] must be an array or a tensor; got list"):
        MaskSet.from_masks([np.ones((2, 3), bool), [[True]]])


def test_masks_on_the_grid_may_be_arrays():
    coverage = np.random.default_rng(5).random((2, 3, 4))
    valid = np.ones((3, 4), bool)
    valid[0] = False
    masks = MaskSet.on_grid(coverage, valid=valid)
    assert torch.equal(masks.coverage, torch.from_numpy(coverage).float())
    coverage[:] = 0
    assert masks.coverage.sum() > 0  # a copy
    assert torch.equal(masks.valid, torch.from_numpy(valid))


@for_each(orientation=range(1, 9))
def test_masks_of_stored_pixels_turn_as_the_image_does(orientation):
    stored = np.random.default_rng(6).random((2, 4, 7)) < 0.5
    masks = MaskSet.from_masks(stored, scores=[0.5, 0.25]).upright(orientation)
    for mask, one in zip(masks.masks().numpy(), stored, strict=True):
        picture = Image.fromarray(one.view(np.uint8) * 255)
        picture.getexif()[0x0112] = orientation
        np.testing.assert_array_equal(mask, np.asarray(ImageOps.exif_transpose(picture)) > 0)
    assert masks.scores.tolist() == [0.5, 0.25]
    with pytest.raises(ValueRangeError, match="orientation must be one of 1, 2"):
        masks.upright(9)


def test_sizes_may_be_arrays():
    given = [{"size": np.array([6, 8]), "counts": [48]}, {"size": (6, 8), "counts": [48]}, RLE]
    assert MaskSet.from_coco(given).size == (6, 8)
    with pytest.raises(ShapeError, match=r"mask 2: size must be that of mask 0, \(6, 8\); got \(8, 6\)"):
        MaskSet.from_coco([*given[:2], {"size": [8, 6], "counts": [48]}])


def test_ids_may_be_whole_floats_and_are_left_out_where_they_are_text():
    def masks(**known):
        return MaskSet.from_coco([{"segmentation": SQUARE, **known}], size=(6, 8))

    assert masks(id=7.0, category_id=np.int16(3)).ids.tolist() == [7]
    assert masks(id=7.0, category_id=np.int16(3)).categories.tolist() == [3]
    assert masks(id="a7", category_id=3).ids is None
    assert masks(id=True).ids is None


def test_ignore_may_be_one_label():
    assert MaskSet.from_labels(np.array([[0, 3, 255]], np.uint8), ignore=255).ids.tolist() == [0, 3]


def test_masks_that_come_last_are_told():
    """A legal shape is read as it is."""
    for masks in (np.ones((64, 80, 3), bool), torch.ones(100, 64, 8, dtype=torch.uint8)):
        with pytest.warns(AmbiguousShapeWarning, match=r"If the masks come last, pass masks.transpose\(2, 0, 1\)"):
            assert len(MaskSet.from_masks(masks)) == len(masks)
        with pytest.warns(AmbiguousShapeWarning, match=r"are read as \d+ masks of"):
            MaskDownsampler((4, 4), geometry=ImageGeometry.squash(16))([masks])
    assert len(MaskSet.from_masks(np.ones((63, 80, 3), bool))) == 63


def test_sams_masks_are_compared_with_the_images_size():
    records = sam_records("binary_mask", np.ones((2, 5, 5), bool))
    for given in (records, {"masks": np.ones((2, 5, 5), bool), "scores": [1, 1]}):
        with pytest.raises(ShapeError, match=r"masks must be of the image's size, \(50, 50\); got \(5, 5\)"):
            MaskSet.from_sam(given, size=(50, 50))


def test_arrays_on_the_grid_may_have_any_strides_and_order_of_bytes():
    coverage = np.random.default_rng(7).random((2, 3, 4))
    for given in (coverage[:, ::-1][:, ::-1], coverage.astype(">f8"), np.asfortranarray(coverage)):
        assert torch.equal(MaskSet.on_grid(given).coverage, torch.from_numpy(coverage).float())
    with pytest.raises(DTypeError, match="coverage must be floating point or bool; got torch.int64"):
        MaskSet.on_grid(np.ones((1, 2, 2), int))


def test_masks_are_chosen_by_lists_alone():
    with pytest.raises(ValueRangeError, match="index must choose from 1 masks: it must be a list of integers"):
        MaskSet.from_coco([RLE]).select(0)


def test_pictures_without_colours_are_not_told_of_colours():
    for given in (Image.new("F", (3, 3)), Image.new("LA", (3, 3)), np.ones((1, 4, 4), int), np.ones((3, 4, 9), int)):
        with pytest.raises(RegiontokError, match=r"a label map must be \(height, width\) of integers") as caught:
            MaskSet.from_labels(given)
        assert "panoptic" not in str(caught.value)
    with pytest.raises(ShapeError, match=r"A single map of a batch is labels\[0\]"):
        MaskSet.from_labels(np.ones((1, 4, 4), int))


@for_each(crowd=[0, 0.0, False, "0", None, np.int64(0), np.False_])
def test_crowds_of_tables_are_numbers_and_not_truth_values(crowd):
    annotation = {"segmentation": [[0, 0, 4, 0, 0, 4]], "iscrowd": crowd}
    assert len(MaskSet.from_coco([annotation], size=(4, 4), iscrowd="drop")) == 1


@for_each(crowd=[1, 1.0, True, "1", np.int64(1)])
def test_crowds_are_dropped(crowd):
    annotation = {"segmentation": [[0, 0, 4, 0, 0, 4]], "iscrowd": crowd}
    assert len(MaskSet.from_coco([annotation], size=(4, 4), iscrowd="drop")) == 0


@for_each(crowd=["no", "false", "", 2, np.array([0, 1]), [0]])
def test_other_values_of_iscrowd_are_named(crowd):
    annotation = {"id": 7, "segmentation": [[0, 0, 4, 0, 0, 4]], "iscrowd": crowd}
    with pytest.raises(DTypeError, match=r"mask 0 \(annotation 7\): iscrowd must be 0 or 1"):
        MaskSet.from_coco([annotation], size=(4, 4), iscrowd="drop")


def test_masked_entries_are_in_no_mask():
    labels = np.ma.array(np.array([[1, 5, 5]], np.uint8), mask=[[0, 0, 1]])
    masks = MaskSet.from_labels(labels)
    assert (masks.ids.tolist(), masks.areas().tolist()) == ([1, 5], [1, 1])
    assert type(masks.ids) is np.ndarray
    dense = np.ma.array([[[True, True]]], mask=[[[0, 1]]])
    assert MaskSet.from_masks(dense).areas().tolist() == [1]
    assert MaskSet.from_masks([dense[0]]).areas().tolist() == [1]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: MaskSet.from_labels(np.array([[1, 5]]), ignore=None), DTypeError, "ignore must be a label or a list of labels"),
        (lambda m: m.upright(np.array([6, 6])), ValueRangeError, "orientation must be one of"),
        (lambda m: MaskSet.on_grid(np.array([[["a"]]])), DTypeError, "coverage must be numbers; got an array of <U1"),
        (lambda m: MaskSet.from_labels(torch.tensor([[1, 5]]).to_sparse()), DTypeError, "must be a dense tensor"),
        (lambda m: MaskSet.from_labels(torch.zeros(2, 2, dtype=torch.int64, device="meta")), DTypeError, "must have values"),
        (lambda m: m.select(np.zeros(0, bool)), ValueRangeError, "bool must have one entry per mask"),
    ],
)  # fmt: skip
def test_small_errors_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(MaskSet.from_labels(np.array([[1, 5]])))
    assert MaskSet.from_labels(np.array([[1, 5]]), ignore=torch.tensor(1)).ids.tolist() == [5]


def test_sa_1b_is_known_and_its_whole_file_is_no_annotation():
    whole = {"image": {"height": 4, "width": 4}, "annotations": [{"segmentation": [[0, 0, 4, 0, 0, 4]]}]}
    assert MaskSet.of(whole).size == (4, 4)
    with pytest.raises(DTypeError, match="a whole file of SA-1B"):
        MaskSet.from_coco(whole)
