import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regiontok import ImageGeometry, MaskDownsampler, MaskSet, UnionFindClusterer
from regiontok._coverage import _cover_on_device
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from tests import references
from tests.conftest import assert_close, for_each, smooth_features

SQUARE = ImageGeometry.squash(64)


@st.composite
def cases(draw):
    """A geometry, a grid, and masks of an image, from smaller than a patch to many pixels per patch."""
    mode = draw(st.sampled_from([ImageGeometry.letterbox, ImageGeometry.squash, ImageGeometry.center_crop]))
    geometry = mode((draw(st.sampled_from([8, 12, 30])), draw(st.sampled_from([8, 12, 30]))))
    grid = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    size = draw(st.integers(1, 25)), draw(st.integers(1, 25))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    density = draw(st.sampled_from([0, 0.2, 0.8, 1]))
    return geometry, grid, generator.random((2, *size)) < density


@given(cases())
def test_coverage_is_the_exact_area(case):
    geometry, grid, masks = case
    downsampler = MaskDownsampler(grid, geometry=geometry)
    placement = geometry.place(masks.shape[1:])
    expected = torch.from_numpy(np.stack([references.coverage(mask, placement, grid) for mask in masks]))
    encoded = MaskSet.from_masks(masks)
    for form in (masks, torch.from_numpy(masks), masks.astype(np.uint8) * 255, encoded, encoded.to_coco()):
        covered = downsampler.coverage(form)
        assert covered.dtype == torch.float32
        assert covered.min() >= 0
        assert covered.max() <= 1
        assert_close(covered, expected)


@given(cases())
def test_every_form_keeps_the_same_patches(case):
    geometry, grid, masks = case
    downsampler = MaskDownsampler(grid, geometry=geometry)
    encoded = MaskSet.from_masks(masks)
    dense, runs, coco = (downsampler([form]) for form in (masks, encoded, encoded.to_coco()))
    for other in (runs, coco):
        assert torch.equal(dense.masks()[0], other.masks()[0])
        assert dense.dropped == other.dropped


@given(cases(), st.integers(1, 20), st.integers(1, 20))
def test_masks_of_another_size_are_stretched_when_told(case, height, width):
    geometry, grid, masks = case
    size = (height, width)
    downsampler = MaskDownsampler(grid, geometry=geometry, rescale=True)
    placement = geometry.place(size)
    expected = torch.from_numpy(np.stack([references.coverage(mask, placement, grid, size=size) for mask in masks]))
    assert_close(downsampler.coverage(masks, size=size), expected)
    assert_close(downsampler.coverage(MaskSet.from_masks(masks), size=size), expected)
    if size != masks.shape[1:]:
        with pytest.raises(ShapeError, match="must be of their image's size"):
            MaskDownsampler(grid, geometry=geometry).coverage(masks, size=size)


@given(cases())
def test_matrix_products_give_the_same_coverage_on_other_devices(case):
    geometry, grid, masks = case
    placement = geometry.place(masks.shape[1:])
    edges = [
        (np.arange(masks.shape[1 + axis] + 1) * placement.scale[axis] + placement.offset[axis])
        * (grid[axis] / placement.input[axis])
        for axis in (0, 1)
    ]
    expected = MaskDownsampler(grid, geometry=geometry).coverage(masks)
    assert_close(_cover_on_device(torch.from_numpy(masks), edges, grid), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_masks_on_a_gpu_give_the_same_regions():
    masks = torch.rand(5, 480, 640) < 0.1
    downsampler = MaskDownsampler((24, 24), geometry=ImageGeometry.letterbox(336))
    assert_close(downsampler.coverage(masks.cuda()).cpu(), downsampler.coverage(masks))


@for_each(height=[300, 1200, 7000])
def test_tall_images_have_more_pixels_per_patch_than_a_byte_counts(height):
    masks = np.ones((2, height, 3), bool)
    masks[1, : height // 3] = False
    covered = MaskDownsampler((4, 1), geometry=ImageGeometry.squash((64, 16))).coverage(masks)
    assert_close(covered[0], torch.ones(4, 1))
    assert_close(covered[1].mean(), torch.tensor(1 - (height // 3) / height))


@given(cases())
def test_the_sum_of_coverage_is_the_area_of_the_mask(case):
    geometry, grid, masks = case
    if geometry.mode == "center_crop":
        return  # what is cut off is not covered
    placement = geometry.place(masks.shape[1:])
    share = placement.scale[0] * placement.scale[1] / (placement.input[0] * placement.input[1]) * grid[0] * grid[1]
    covered = MaskDownsampler(grid, geometry=geometry).coverage(masks).sum((1, 2))
    assert_close(covered, torch.from_numpy(masks.sum((1, 2)) * share))


@given(cases())
def test_the_papers_two_steps(case):
    geometry, _, masks = case
    placement = geometry.place(masks.shape[1:])
    grid = (placement.input[0] // 2, placement.input[1] // 2)
    placed = placement.mask(masks).float()
    expected = torch.nn.functional.avg_pool2d(placed, 2)
    downsampler = MaskDownsampler(grid, geometry=geometry, downsampling="two_step")
    assert_close(downsampler.coverage(masks), expected)
    assert_close(downsampler.coverage(MaskSet.from_masks(masks)), expected)


def test_both_methods_agree_where_the_image_has_the_inputs_size():
    masks = np.random.default_rng(0).random((3, 64, 64)) < 0.3
    exact, steps = (
        MaskDownsampler((8, 8), geometry=SQUARE, downsampling=method).coverage(masks)
        for method in ("exact", "two_step")
    )
    assert_close(exact, steps)


def test_two_steps_stretch_masks_too():
    masks = np.zeros((1, 2, 2), bool)
    masks[0, 0, 0] = True
    downsampler = MaskDownsampler((2, 2), geometry=SQUARE, downsampling="two_step", rescale=True)
    assert downsampler.coverage(masks, size=(30, 50)).tolist() == [[[1, 0], [0, 0]]]


def test_a_patch_is_kept_if_more_than_the_threshold_of_it_is_inside():
    masks = np.zeros((2, 10, 10), bool)
    masks[0].flat[:7] = True  # exactly 0.07 of one patch
    masks[1].flat[:8] = True
    for form in (masks, MaskSet.from_masks(masks)):
        regions = MaskDownsampler((1, 1), geometry=ImageGeometry.squash(10))([form])
        assert regions.mask_index.tolist() == [1]
        assert regions.dropped[0][:2] == (0, 0)
        assert regions.dropped[0].reason == "covers no patch by more than 0.07"


def mask_of(*rows):
    return torch.tensor([[cell == "#" for cell in row] for row in rows])


def test_masks_that_keep_no_patch_are_named_with_the_reason():
    masks = torch.zeros(4, 40, 80, dtype=torch.bool)
    masks[0, :20, 30:50] = True
    masks[2, 0, 40] = True
    masks[3, :, :10] = True
    regions = MaskDownsampler((4, 4), geometry=ImageGeometry.center_crop(16))([masks])
    assert regions.mask_index.tolist() == [0]
    assert [(one.mask_index, one.reason) for one in regions.dropped] == [
        (1, "is outside the part of the image that the encoder sees"),
        (2, "covers no patch by more than 0.07"),
        (3, "is outside the part of the image that the encoder sees"),
    ]
    assert not regions.fallback.any()


def test_a_image_without_masks_gets_one_region_of_what_shows_it_and_is_counted():
    downsampler = MaskDownsampler((4, 4), geometry=ImageGeometry.letterbox(16))
    some = np.ones((1, 30, 60), bool)
    regions = downsampler([some, some[:0], MaskSet.from_coco([], size=(60, 30)), some & False])
    assert regions.fallback.tolist() == [False, True, True, True]
    assert regions.counts.tolist() == [1, 1, 1, 1]
    assert regions.areas().tolist() == [8, 8, 8, 8]
    assert [(one.image, one.mask_index) for one in regions.dropped] == [(3, 0)]
    assert torch.equal(regions.masks()[2][0], regions.masks()[1][0].T)


def test_images_of_any_size_and_masks_of_any_form_in_one_batch():
    labels = np.repeat(np.array([[-1, 0], [3, 3]]), 50, 0).repeat(30, 1)
    dense = torch.zeros(2, 7, 9, dtype=torch.uint8)
    dense[0, :3] = 255
    dense[1, 3:] = 255
    on_grid = MaskSet.on_grid(torch.eye(4)[None], scores=[0.25])
    coco = MaskSet.from_masks(np.ones((1, 3, 3), bool)).to_coco()
    regions = MaskDownsampler((4, 4), geometry=SQUARE)(
        [labels, dense, on_grid, coco, MaskSet.from_coco(coco, scores=[0.5])]
    )
    assert regions.counts.tolist() == [2, 2, 1, 1, 1]
    assert regions.mask_index.tolist() == [0, 1, 0, 1, 0, 0, 0]
    assert regions.areas().tolist() == [4, 8, 8, 12, 4, 16, 16]
    assert regions.score.nan_to_num(-1).tolist() == [-1, -1, -1, -1, 0.25, -1, 0.5]


@pytest.mark.parametrize(
    ("unassigned", "expected"),
    [
        ("drop", [["#...", "#..."]]),
        ("background", [["#...", "#..."], [".##.", ".##."]]),
        ("single_patches", [["#...", "#..."], [".#..", "...."], ["..#.", "...."], ["....", ".#.."], ["....", "..#."]]),
        ("cluster", [["#...", "#..."], [".#..", ".#.."], ["..#.", "..#."]]),
    ],
)
def test_uncovered_patches(unassigned, expected):
    """The last column is padding, and stays in no region."""
    masks = mask_of("#...", "#...")[None]
    valid = mask_of("###.", "###.")[None]
    features = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]).expand(1, 2, 4, 2)
    downsampler = MaskDownsampler((2, 4), unassigned=unassigned)
    regions = downsampler([MaskSet.on_grid(masks, scores=[0.5])], features=features, valid=valid)
    assert regions.masks()[0].tolist() == [mask_of(*rows).tolist() for rows in expected]
    assert regions.mask_index.tolist() == [0] + [-1] * (len(expected) - 1)
    assert regions.score.isnan().tolist() == [False] + [True] * (len(expected) - 1)
    assert not regions.fallback.any()
    assert not regions.dropped


@pytest.mark.parametrize(("unassigned", "count"), [("background", 1), ("single_patches", 6), ("cluster", 1)])
def test_a_image_without_masks_is_all_uncovered(unassigned, count):
    features = torch.ones(2, 3, 3, 4)
    valid = mask_of("###", "###", "...").expand(2, 3, 3)
    nothing, everything = MaskSet.on_grid(torch.zeros(0, 3, 3)), MaskSet.on_grid(torch.ones(1, 3, 3))
    downsampler = MaskDownsampler((3, 3), unassigned=unassigned)
    regions = downsampler([nothing, everything], features=features, valid=valid)
    assert regions.counts.tolist() == [count, 1]
    assert regions.mask_index.tolist() == [-1] * count + [0]
    assert not regions.fallback.any()
    assert regions.areas().sum() == 12


def test_letterbox_padding_is_never_a_region_of_uncovered_patches():
    image = np.zeros((1, 40, 80), bool)
    image[0, :, :40] = True
    for unassigned in ("background", "single_patches", "cluster"):
        downsampler = MaskDownsampler((4, 4), geometry=ImageGeometry.letterbox(64), unassigned=unassigned)
        regions = downsampler([image], features=torch.ones(1, 4, 4, 3))
        covered = regions.masks()[0].any(0)
        assert torch.equal(covered, mask_of("....", "####", "####", "...."))


@given(cases(), st.sampled_from(["background", "single_patches", "cluster"]), st.booleans())
def test_every_shown_patch_is_in_a_region_when_uncovered_ones_are_kept(case, unassigned, smallest):
    geometry, grid, masks = case
    overlap = "assign_smallest" if smallest else "keep"
    downsampler = MaskDownsampler(grid, geometry=geometry, unassigned=unassigned, overlap=overlap)
    regions = downsampler([masks], features=smooth_features(*grid, 3))
    shown = geometry.place(masks.shape[1:]).valid(grid)
    covered = regions.masks()[0].int().sum(0)
    assert torch.equal(covered > 0, shown)
    if smallest:
        assert covered.max() == 1


def test_in_an_overlap_the_smallest_mask_keeps_the_patch_and_the_first_of_equals():
    masks = torch.stack(
        [mask_of("####", "####"), mask_of("##..", "...."), mask_of(".##.", "...."), mask_of("##..", "....")]
    )
    regions = MaskDownsampler((2, 4), overlap="assign_smallest")([MaskSet.on_grid(masks)])
    assert regions.labels().tolist() == [[[1, 1, 2, 0], [0, 0, 0, 0]]]
    assert regions.mask_index.tolist() == [0, 1, 2]
    assert [(one.mask_index, one.reason) for one in regions.dropped] == [
        (3, "each of its patches is in a smaller mask or not valid")
    ]


def test_the_size_of_the_image_tells_the_padding_of_masks_on_the_grid():
    masks = MaskSet.on_grid(torch.zeros(1, 4, 4).index_fill_(1, torch.tensor([1]), 1.0))
    for unassigned, areas in (("drop", [4]), ("background", [4, 4])):
        downsampler = MaskDownsampler((4, 4), geometry=ImageGeometry.letterbox(64), unassigned=unassigned)
        assert downsampler([masks], sizes=[(20, 40)]).areas().tolist() == areas
    nothing = MaskSet.on_grid(torch.zeros(0, 4, 4))
    assert MaskDownsampler((4, 4), geometry=ImageGeometry.letterbox(64))([nothing], sizes=[(20, 40)]).areas() == 8


def test_only_valid_patches_count_for_the_smallest():
    three, four = mask_of("#..#", "#..."), mask_of("####", "....")  # of the four only two are valid
    valid = mask_of("#..#", "####")[None]
    regions = MaskDownsampler((2, 4), overlap="assign_smallest")(
        [MaskSet.on_grid(torch.stack([three, four]))], valid=valid
    )
    assert regions.labels().tolist() == [[[1, -1, -1, 1], [0, -1, -1, -1]]]


@for_each(
    unassigned=["drop", "background", "cluster"],
    valid=[
        torch.ones(2, 4, 4, dtype=torch.bool),
        torch.ones(1, 4, 5, dtype=torch.bool),
        torch.ones(1, 4, 4),
        [np.ones((4, 4), bool)],
    ],
)
def test_a_bad_valid_is_refused_by_name(unassigned, valid):
    downsampler = MaskDownsampler((4, 4), geometry=SQUARE, unassigned=unassigned)
    with pytest.raises((ShapeError, DTypeError), match="valid"):
        downsampler([ONE], features=torch.ones(1, 4, 4, 2), valid=valid)


def test_bool_made_of_bytes_of_255_counts_as_bool():
    masks = np.zeros((1, 12, 12), np.uint8)
    masks[:, :3] = 255
    downsampler = MaskDownsampler((2, 1), geometry=ImageGeometry.squash(12))
    for method in ("exact", "two_step"):
        downsampler = MaskDownsampler((2, 1), geometry=ImageGeometry.squash(12), downsampling=method)
        assert downsampler.coverage(masks.view(bool)).tolist() == [[[0.5], [0.0]]]
    assert MaskSet.from_masks(masks.view(bool)).areas().tolist() == [36]


def test_a_mask_on_padding_alone_is_dropped():
    valid = mask_of("#.")[None]
    regions = MaskDownsampler((1, 2))([MaskSet.on_grid(mask_of("##", ".#")[:, None])], valid=valid)
    assert regions.areas().tolist() == [1]
    assert [one.reason for one in regions.dropped] == ["covers no valid patch"]


def test_the_grid_of_each_image_can_come_from_its_features():
    features = [torch.ones(2, 3, 4), torch.ones(5, 1, 4)]
    regions = MaskDownsampler(geometry=SQUARE)([np.ones((1, 9, 9), bool)] * 2, features=features)
    assert regions.grids.tolist() == [[2, 3], [5, 1]]
    assert regions.areas().tolist() == [6, 5]


def test_valid_tells_which_patches_show_each_image():
    downsampler = MaskDownsampler((4, 4), geometry=ImageGeometry.letterbox(64))
    valid = downsampler.valid([np.ones((1, 10, 20), bool), MaskSet.on_grid(torch.ones(1, 4, 4))])
    assert [one.sum().item() for one in valid] == [8, 16]


def test_masks_are_not_changed():
    masks = np.random.default_rng(0).random((2, 9, 9)) < 0.5
    before = masks.copy()
    MaskDownsampler((3, 3), geometry=SQUARE, overlap="assign_smallest", unassigned="background")([masks])
    assert np.array_equal(masks, before)
    on_grid = MaskSet.on_grid(torch.ones(2, 3, 3))
    MaskDownsampler((3, 3), overlap="assign_smallest")([on_grid])
    assert (on_grid.coverage == 1).all()


ONE = np.ones((1, 9, 9), bool)


@for_each(
    ("masks", "options", "error", "message"),
    [
        ([ONE, {"size": [9, 9], "counts": [81]}], {}, DTypeError, r"masks\[1\]: masks must be a list"),
        ([ONE, [{"size": [9, 9], "counts": [80]}]], {}, ValueRangeError, r"masks\[1\]: mask 0: the counts of an RLE must add up"),
        ([ONE, np.full((9, 9), -3)], {}, ValueRangeError, r"masks\[1\]: labels must be -1 \(no mask\) or from 0; got -3"),
        ([ONE[0]], {}, ShapeError, r"masks\[0\]: masks must be .* A single mask is masks\[None\]"),
        ([ONE, ONE.astype(float)], {}, DTypeError, r"masks\[1\]: masks must be bool or uint8; got float64"),
        ([[]], {}, ShapeError, r"masks\[0\]: an empty list has no image size"),
        ([], {}, ShapeError, "at least one image"),
        (ONE, {}, DTypeError, r"must be a list with one entry per image; got ndarray. Pass \[masks\] for one image"),
        ([ONE], {"sizes": []}, ShapeError, "sizes must have one entry per image, 1; got 0"),
        ([ONE], {"sizes": [9]}, ShapeError, r"sizes\[0\] must be \(height, width\); got 9"),
        ([ONE], {"sizes": [(9.7, 9.2)]}, DTypeError, r"sizes\[0\] must be a whole number; got 9.7"),
        ([np.full((9, 9), 255, np.uint8) * (np.arange(9) > 4).astype(np.uint8)], {}, ValueRangeError, r"masks\[0\]: a uint8 map of 0 and 255 is one mask"),
        ([ONE], {"sizes": [(9, 8)]}, ShapeError, r"masks\[0\]: masks must be of their image's size \(9, 8\); got \(9, 9\). Resize them"),
        ([ONE], {"features": torch.ones(2, 4, 4, 3)}, ShapeError, "one entry per image, 2 in features; got 1"),
        ([ONE], {"features": torch.ones(1, 4, 5, 3)}, ShapeError, r"features\[0\] must have this downsampler's grid \(4, 4\); got \(4, 5\)"),
        ([MaskSet.on_grid(torch.ones(1, 3, 3))], {}, ShapeError, r"masks\[0\]: masks on the grid must have \(4, 4\) patches; got \(3, 3\)"),
        ([ONE], {"valid": torch.zeros(1, 4, 4, dtype=torch.bool)}, ValueRangeError, "image 0 has no valid patch"),
    ],
)  # fmt: skip
def test_bad_masks_are_refused_and_the_image_named(masks, options, error, message):
    with pytest.raises(error, match=message):
        MaskDownsampler((4, 4), geometry=SQUARE)(masks, **options)


def test_an_empty_list_of_rle_is_no_masks_where_the_size_is_told():
    regions = MaskDownsampler((4, 4), geometry=SQUARE)([[]], sizes=[(9, 9)])
    assert regions.fallback.tolist() == [True]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"grid": 4}, ShapeError, r"grid must be \(rows, cols\); got 4"),
        ({"grid": (4, 0)}, ValueRangeError, "grid must be at least 1"),
        ({"geometry": 336}, DTypeError, "geometry must be an ImageGeometry"),
        ({"min_coverage": 1.5}, ValueRangeError, r"min_coverage must be in \[0, 1\]"),
        ({"downsampling": "nearest"}, ValueRangeError, "downsampling must be one of 'exact', 'two_step'"),
        ({"unassigned": "keep"}, ValueRangeError, "unassigned must be one of"),
        ({"overlap": "drop"}, ValueRangeError, "overlap must be one of 'keep', 'assign_smallest'"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        MaskDownsampler(**({"grid": (4, 4), "geometry": SQUARE} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": (4, 4)}, "masks of an image need the geometry"),
        ({"geometry": SQUARE}, "a downsampler without a grid needs the features"),
        ({"grid": (4, 4), "geometry": SQUARE, "unassigned": "cluster"}, "unassigned='cluster' needs the features"),
    ],
)
def test_what_is_missing_is_named(options, message):
    with pytest.raises(ValueRangeError, match=message):
        MaskDownsampler(**options)([ONE])


def test_two_steps_need_a_grid_that_divides_the_input():
    with pytest.raises(ShapeError, match="needs a grid that divides the input"):
        MaskDownsampler((3, 3), geometry=SQUARE, downsampling="two_step")([ONE])


def test_coverage_alone_needs_a_grid():
    downsampler = MaskDownsampler(geometry=SQUARE)
    assert downsampler.coverage(ONE, grid=(2, 2)).shape == (1, 2, 2)
    with pytest.raises(ShapeError, match=r"Pass grid=\(rows, cols\)"):
        downsampler.coverage(ONE)
    with pytest.raises(ShapeError, match=r"this downsampler's grid is \(3, 3\); got \(2, 2\)"):
        MaskDownsampler((3, 3), geometry=SQUARE).coverage(ONE, grid=(2, 2))


def test_its_clusterer_can_be_chosen():
    features = torch.tensor([[[[1.0, 0.0], [1.0, 0.5]]]])
    nothing = [MaskSet.on_grid(torch.zeros(0, 1, 2))]
    for threshold, count in ((0.5, 1), (0.99, 2)):
        clusterer = UnionFindClusterer(threshold=threshold)
        assert len(MaskDownsampler(unassigned="cluster", clusterer=clusterer)(nothing, features=features)) == count


@pytest.mark.parametrize("turned", [False, True])
def test_masks_that_lie_elsewhere_than_valid_are_refused(turned):
    """As masks of 256 x 256 pixels, or ``(height, width, masks)``, of an image that is not square."""
    geometry = ImageGeometry.letterbox(64)
    valid = geometry.place((30, 60)).valid((4, 4))[None]
    right = torch.zeros(3, 30, 60, dtype=torch.bool)
    right[:, :10] = True
    wrong = right.permute(1, 2, 0) if turned else torch.nn.functional.interpolate(right[None].float(), (50, 50))[0] > 0
    downsampler = MaskDownsampler((4, 4), geometry=geometry)
    with pytest.raises(
        ShapeError,
        match=r"masks\[0\] have .* pixels, which occupy rows 0 to 3 .* valid shows the image in rows 1 to 2",
    ):
        downsampler([wrong], valid=valid)
    with pytest.raises(
        ShapeError, match="must be of their image's size" + (r".*masks.transpose\(2, 0, 1\)" if turned else "")
    ):
        downsampler([wrong], valid=valid, sizes=[(30, 60)])
    assert torch.equal(downsampler([right], valid=valid).patch, downsampler([right]).patch)
    some = valid.clone()
    some[0, 1, 1:3] = False  # such as patches that are not finite
    assert len(downsampler([right], valid=some)) == 3
    top = valid.clone()
    top[0, 2] = False
    assert len(downsampler([right], valid=top, sizes=[(30, 60)])) == 3


@for_each(seed=range(20))
def test_patches_that_are_left_out_do_not_look_like_another_size(seed):
    """``valid`` may be cut or thinned at will: only where an image could lie so does it tell of another size."""
    geometry = ImageGeometry.letterbox(96)
    placed = geometry.place((30, 60)).valid((12, 12))
    masks = [torch.ones(1, 30, 60, dtype=torch.bool)]
    downsampler = MaskDownsampler((12, 12), geometry=geometry)
    cut, top, thinned = (
        placed.clone(),
        placed.clone(),
        placed & (torch.rand(12, 12, generator=torch.Generator().manual_seed(seed)) > 0.25),
    )
    cut[:, :3] = False
    top[6:] = False
    for valid in (cut, top, thinned):
        assert downsampler(masks, valid=valid[None]).areas().tolist() == [int(valid.sum())]


def test_masks_that_are_stretched_may_lie_a_patch_off():
    geometry = ImageGeometry.letterbox(384)
    valid = geometry.place((427, 640)).valid((24, 24))[None]
    low = torch.ones(1, 53, 80, dtype=torch.bool)
    assert len(MaskDownsampler((24, 24), geometry=geometry, rescale=True)([low], valid=valid)) == 1
    with pytest.raises(ShapeError, match="valid shows the image in rows 4 to 19"):
        MaskDownsampler((24, 24), geometry=geometry, rescale=True)([low[:, :40]], valid=valid)
