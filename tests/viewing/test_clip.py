"""Drawings of the regions of clips."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from regiontok import ImageGeometry, Regions
from regiontok.errors import OutputError, ShapeError, ValueRangeError
from regiontok.viewing import draw_clip, draw_regions, save_clip

GEOMETRY = ImageGeometry(mode="squash", size=(32, 48))
PLACEMENT = GEOMETRY.place((32, 48))


def moving(frames=5):
    """A white square that moves over black, one patch of 8 pixels per frame, and its regions."""
    pixels = np.zeros((frames, 32, 48, 3), np.uint8)
    labels = torch.zeros(1, frames, 4, 6, dtype=torch.int64)
    for number in range(frames):
        pixels[number, 8:16, 8 * number : 8 * number + 8] = (250, 250, 240 - 10 * number)
        labels[0, number, 1, number] = 1
    return [Image.fromarray(one) for one in pixels], Regions.from_labels(labels)


def test_a_region_has_one_colour_in_all_frames():
    frames, regions = moving()
    strip = np.asarray(draw_clip(frames, regions, PLACEMENT, columns=3))
    assert strip.shape == (2 * (2 * 32 + 8) + 16, 3 * 48 + 16, 4)
    for number in range(5):
        top, left = number // 3 * (2 * 32 + 8 + 16) + 32 + 8, number % 3 * (48 + 8)
        filled = strip[top : top + 32, left : left + 48]
        assert (filled[8:16, 8 * number : 8 * number + 8, :3] == (250, 250, 220)).all()  # the mean of 200 to 240
        colours = {tuple(colour) for colour in filled[..., :3].reshape(-1, 3).tolist()}
        assert colours == {(250, 250, 220), (0, 0, 0)}
    assert (strip[-1, -1] == 0).all()  # no sixth frame


def test_outlines_follow_the_object():
    frames, regions = moving()
    strip = np.asarray(draw_clip(frames, regions, PLACEMENT))
    for number in range(5):
        outlined = strip[:32, number * 56 : number * 56 + 48, :3]
        white = (outlined == 255).all(-1)
        rows, cols = np.nonzero(white)
        assert (rows.min(), rows.max()) == (8, 16)
        assert (cols.min(), cols.max()) == (8 * number, 8 * number + 8)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".apng"])
def test_animations(suffix, tmp_path):
    frames, regions = moving()
    path = save_clip(tmp_path / f"clip{suffix}", frames, regions, PLACEMENT, fps=5)
    with Image.open(path) as image:
        drawn = [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]
        assert image.info["duration"] == 200
    assert [frame.size for frame in drawn] == [(96, 32)] * 5
    last = np.asarray(drawn[4]).astype(int)
    assert abs(last[12, 48 + 8 * 4 + 4] - (250, 250, 220)).max() < 12


def test_invalid_clips(tmp_path):
    frames, regions = moving()
    with pytest.raises(ShapeError, match="regions must be of a clip with 4 frames"):
        draw_clip(frames[:4], regions, PLACEMENT)
    with pytest.raises(ShapeError, match="for frame 4"):
        draw_clip([*frames[:4], frames[4].resize((8, 8))], regions, PLACEMENT)
    with pytest.raises(ShapeError, match="got a clip. Use draw_clip"):
        draw_regions(frames[0], regions, PLACEMENT)
    with pytest.raises(ShapeError, match="regions must be of a clip"):
        draw_clip(frames[:1], Regions.from_labels(torch.zeros(1, 4, 6, dtype=torch.int64)), PLACEMENT)
    with pytest.raises(ValueRangeError, match="columns must be at least 1"):
        draw_clip(frames, regions, PLACEMENT, columns=0)
    with pytest.raises(ValueRangeError, match="fps must be positive"):
        save_clip(tmp_path / "a.gif", frames, regions, PLACEMENT, fps=0)
    with pytest.raises(OutputError, match="an animation must be one of"):
        save_clip(tmp_path / "a.mp4", frames, regions, PLACEMENT)
