import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from regiontok import ImageGeometry
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from tests.conftest import for_each

MODES = ("letterbox", "squash", "center_crop")
sides = st.integers(1, 300)
placements = st.builds(
    lambda mode, size, image: ImageGeometry(mode, size).place(image),
    st.sampled_from(MODES), st.tuples(st.integers(16, 64), st.integers(16, 64)), st.tuples(sides, sides),
)  # fmt: skip


@given(placements)
def test_points_make_a_round_trip(placement):
    points = torch.rand(20, 2, dtype=torch.float64) * 300
    torch.testing.assert_close(placement.points_to_image(placement.points(points)), points)


@given(placements)
def test_pixels_and_masks_go_to_the_same_place(placement):
    """An image that is white where its mask is true stays white there, but for the blur along edges."""
    height, width = placement.image_size
    mask = np.zeros((height, width), bool)
    mask[: (height + 1) // 2, : (width + 1) // 2] = True
    placed = np.asarray(placement.image(Image.fromarray(mask).convert("RGB")))[..., 0] / 255
    masked = placement.mask(mask).numpy()
    reach = 2 + np.ceil(2 * max(placement.scale))  # of the bicubic filter, in input pixels
    off = (masked != (placed > 0.5)).nonzero()
    edge = np.array([(height + 1) // 2, (width + 1) // 2]) * placement.scale + placement.offset
    outer = np.array(placement.offset), np.array(placement.offset) + np.array([height, width]) * placement.scale
    for row, col in zip(*off, strict=True):
        near = [
            abs(value - line) <= reach
            for value, axis in ((row, 0), (col, 1))
            for line in (edge[axis], outer[0][axis], outer[1][axis])
        ]
        assert any(near)


@given(placements)
def test_a_mask_of_the_whole_image_covers_the_patches_that_show_it(placement):
    whole = placement.mask(torch.ones(placement.image_size, dtype=torch.bool))
    grid = tuple(side // 4 for side in placement.input)
    valid = placement.valid(grid)
    assert valid.any()
    if placement.input[0] % 4 == 0 and placement.input[1] % 4 == 0:
        share = torch.nn.functional.avg_pool2d(whole[None].float(), 4)[0]
        assert valid[share > 0.3].all()
        assert (share[valid] > 0).all() or share.sum() == 0 or min(placement.image_size) * min(placement.scale) < 1.5


@for_each(shape=[(480, 640), (640, 480), (333, 500), (100, 1000), (1000, 7), (336, 336), (20, 30)])
def test_letterbox_is_llavas_expand_to_square(shape):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
    side = max(shape)
    square = Image.new("RGB", (side, side), (1, 2, 3))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    expected = square.resize((336, 336), Image.Resampling.BICUBIC)
    placed = ImageGeometry.letterbox(336).place(shape).image(image, fill=(1, 2, 3))
    np.testing.assert_array_equal(placed, expected)


@for_each(shape=[(480, 640), (640, 480), (333, 500), (336, 336), (20, 30)])
def test_center_crop_is_clips_short_side_resize_and_crop(shape):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
    short, long = min(shape), max(shape)
    longer = int(336 * long / short)
    size = (336, longer) if shape[0] <= shape[1] else (longer, 336)
    resized = image.resize(size[::-1], Image.Resampling.BICUBIC)
    top, left = (size[0] - 336) // 2, (size[1] - 336) // 2
    placed = ImageGeometry.center_crop(336).place(shape).image(image)
    np.testing.assert_array_equal(placed, resized.crop((left, top, left + 336, top + 336)))
    assert ImageGeometry.center_crop(336).place(shape).valid((24, 24)).all()


def test_squash_resizes_both_sides():
    placement = ImageGeometry.squash((200, 100)).place((50, 400))
    assert placement.scale == (4.0, 0.25)
    assert placement.offset == (0.0, 0.0)
    assert placement.valid((10, 10)).all()
    assert placement.points(torch.tensor([[400.0, 50.0]])).tolist() == [[100.0, 200.0]]


def test_patches_that_show_a_sliver_of_the_image_are_not_valid():
    # 427 x 640 in 384: the image begins 0.4 pixels above the fifth row of 16-pixel patches
    placement = ImageGeometry.letterbox(384).place((427, 640))
    assert placement.valid((24, 24)).any(1).tolist() == [False] * 4 + [True] * 16 + [False] * 4


@for_each(image=[(1, 1000), (1000, 1), (1, 1), (2, 3)], mode=MODES)
def test_the_smallest_and_thinnest_images_have_valid_patches(image, mode):
    assert ImageGeometry(mode, 336).place(image).valid((24, 24)).any()


@for_each(mode=MODES, shape=[(30, 400), (400, 30), (99, 500), (64, 64)], fill=[(9, 9, 9), None])
def test_images_too_long_for_a_canvas_are_placed_alike_without_one(mode, shape, fill, monkeypatch):
    ramp = np.linspace(0, 255, shape[0])[:, None] / 2 + np.linspace(0, 255, shape[1]) / 2
    image = Image.fromarray(ramp.astype(np.uint8)).convert("RGB")
    placement = ImageGeometry(mode, 96).place(shape)
    expected = np.asarray(placement.image(image, fill=fill)).astype(int)
    monkeypatch.setattr("regiontok.geometry._MAX_PIXELS", 0)
    placed = np.asarray(placement.image(image, fill=fill)).astype(int)
    assert placed.shape == expected.shape
    shown = placement.mask(np.ones(shape, bool)).numpy()
    inner, outer = ndimage.binary_erosion(shown, border_value=1), ~ndimage.binary_dilation(shown, iterations=2)
    assert np.abs(placed - expected)[inner].mean() < 4  # the image's own edge falls on whole pixels
    assert fill is None or (placed[outer] == fill).all()


@for_each(mode=MODES, size=[63, 64], shape=[(1, 9000), (9000, 1), (2, 9001), (3, 20000)])
def test_the_thinnest_long_images_can_be_placed(mode, size, shape):
    image = Image.new("RGB", shape[::-1], (10, 200, 30))
    placed = np.asarray(ImageGeometry(mode, size).place(shape).image(image, fill=(10, 200, 30)))
    assert placed.shape == (size, size, 3)
    assert (placed == (10, 200, 30)).all()


def test_a_very_long_image_needs_little_memory():
    image = Image.new("RGB", (60000, 20), (10, 200, 30))
    placed = ImageGeometry.letterbox(64).place((20, 60000)).image(image, fill=(10, 200, 30))
    assert (np.asarray(placed) == (10, 200, 30)).all()
    assert ImageGeometry.center_crop(64).place((20, 60000)).image(image).size == (64, 64)


def test_geometry_makes_a_round_trip_through_its_config():
    for mode in MODES:
        geometry = ImageGeometry(mode, (336, 448))
        assert ImageGeometry(**geometry.to_config()) == geometry
    assert ImageGeometry.letterbox(336).size == (336, 336)


@for_each(
    ("call", "error", "message"),
    [
        (
            lambda: ImageGeometry("stretch", 336),
            ValueRangeError,
            "mode must be one of 'letterbox', 'squash', 'center_crop'",
        ),
        (lambda: ImageGeometry.letterbox(0), ValueRangeError, "size must be at least 1; got 0"),
        (lambda: ImageGeometry.letterbox((1, 2, 3)), ShapeError, r"size must be \(height, width\)"),
        (lambda: ImageGeometry.letterbox((1.5, 2)), DTypeError, "size must be a whole number; got 1.5"),
        (lambda: ImageGeometry.letterbox(336.5), DTypeError, "size must be a whole number; got 336.5"),
        (
            lambda: ImageGeometry.squash(8).place((3, 4, 3)),
            ShapeError,
            r"image.s size must be \(height, width\); got \(3, 4, 3\)",
        ),
        (lambda: ImageGeometry.squash(8).place(3), ShapeError, "image.s size must be .*; got 3"),
        (lambda: ImageGeometry.squash(8).place((0, 5)), ValueRangeError, "an image's size must be at least 1; got 0"),
        (lambda: square.image(Image.new("RGB", (5, 4))), ShapeError, r"for images of \(4, 4\); got \(4, 5\)"),
        (lambda: square.mask(torch.ones(2, 5, 4).bool()), ShapeError, r"must be \(..., 4, 4\) like their image"),
        (lambda: square.mask(np.ones((4, 4))), DTypeError, "masks must be bool; got torch.float64"),
        (lambda: square.points(torch.ones(3)), ShapeError, r"points must be \(..., 2\), x and y; got \(3,\)"),
        (lambda: square.points(torch.ones(3, 2).long()), DTypeError, "points must be floating point"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


square = ImageGeometry.squash(8).place((4, 4))


@for_each(kind=[np.uint8, np.int16, np.uint16, np.int32])
def test_small_integers_do_not_wrap(kind):
    assert ImageGeometry.letterbox(336).place((kind(200), kind(250))) == ImageGeometry.letterbox(336).place((200, 250))
    assert ImageGeometry.squash(kind(16)).size == (16, 16)
