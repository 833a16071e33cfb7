import numpy as np
import pytest
import torch
from PIL import Image

from regiontok import ImageGeometry, Regions
from regiontok.errors import ShapeError
from regiontok.viewing import draw_regions

halves = Image.new("RGB", (80, 40), (200, 0, 0))
halves.paste((0, 0, 200), (40, 0, 80, 40))
left_right = Regions.from_labels(torch.tensor([[[0, 1], [0, 1]]]))


def test_regions_are_filled_with_their_mean_colour_and_outlined():
    picture = np.asarray(draw_regions(halves, left_right, ImageGeometry.squash(32).place((40, 80))))
    assert picture.shape == (40, 176, 4)
    outlined, gap, filled = picture[:, :80], picture[:, 80:96], picture[:, 96:]
    assert (gap == 0).all()
    assert (filled[:, :40] == (200, 0, 0, 255)).all()
    assert (filled[:, 40:] == (0, 0, 200, 255)).all()
    changed = (outlined[..., :3] != np.asarray(halves)).any(-1)
    assert changed.any(0).nonzero()[0].tolist() == [39, 40, 41]
    assert (outlined[:, 40] == 255).all()


def test_letterboxed_regions_are_drawn_at_their_patches():
    labels = torch.tensor([[[-1, -1, -1, -1], [0, 0, 1, 1], [0, 0, 1, 1], [-1, -1, -1, -1]]])
    picture = np.asarray(draw_regions(halves, Regions.from_labels(labels), ImageGeometry.letterbox(64).place((40, 80))))
    assert (picture[:, 96:136] == (200, 0, 0, 255)).all()
    assert (picture[:, 136:] == (0, 0, 200, 255)).all()


def test_pixels_outside_of_regions_are_dimmed():
    labels = torch.tensor([[[0, -1], [0, -1]]])
    picture = np.asarray(draw_regions(halves, Regions.from_labels(labels), ImageGeometry.squash(32).place((40, 80))))
    assert (picture[:, 96 + 45 :, :3] == (0, 0, 66)).all()


def test_cropped_ends_are_dimmed():
    picture = np.asarray(draw_regions(halves, left_right, ImageGeometry.center_crop(32).place((40, 80))))
    assert (picture[:, 96 : 96 + 18, :3] == (66, 0, 0)).all()
    assert (picture[:, 96 + 21 : 96 + 40, :3] == (200, 0, 0)).all()


def test_huge_images_are_drawn_smaller():
    image = halves.resize((4000, 2000))
    assert draw_regions(image, left_right, ImageGeometry.squash(32).place((2000, 4000))).size == (2 * 1280 + 16, 640)


def test_invalid_arguments_are_errors():
    placement = ImageGeometry.squash(32).place((40, 80))
    with pytest.raises(ShapeError, match="must be of one image; got 2"):
        draw_regions(halves, Regions.from_labels(torch.zeros(2, 2, 2, dtype=torch.int64)), placement)
    with pytest.raises(ShapeError, match=r"for images of \(40, 80\); got \(8, 9\)"):
        draw_regions(Image.new("RGB", (9, 8)), left_right, placement)


def test_the_smallest_region_is_filled_and_all_outlines_are_drawn():
    masks = torch.tensor([[[1, 1, 1, 1]], [[0, 1, 1, 0]], [[0, 0, 1, 0]]]).bool().repeat_interleave(2, 1)
    image = Image.fromarray(np.repeat(np.arange(80, dtype=np.uint8)[None, :, None], 40, 0).repeat(3, 2))
    picture = np.asarray(draw_regions(image, Regions.from_masks([masks]), ImageGeometry.squash(32).place((40, 80))))
    filled = picture[20, 96:, 0]
    outer = np.concatenate([np.arange(20), np.arange(60, 80)]).mean().round()
    assert (
        filled.tolist()
        == [outer] * 20
        + [np.arange(20, 40).mean().round()] * 20
        + [np.arange(40, 60).mean().round()] * 20
        + [outer] * 20
    )
    lines = np.flatnonzero((picture[20, :80, :3] == 255).all(1))
    assert lines.tolist() == [20, 40, 60]


def test_outlines_of_larger_regions_are_drawn():
    masks = torch.tensor([[[1, 1, 1, 0]], [[1, 1, 0, 0]]]).bool()
    picture = np.asarray(draw_regions(halves, Regions.from_masks([masks]), ImageGeometry.squash(32).place((40, 80))))
    assert np.flatnonzero((picture[20, :80, :3] == 255).all(1)).tolist() == [40, 60]
