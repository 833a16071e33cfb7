"""The page of a video in a real browser."""

import numpy as np
import pytest
from PIL import Image
from skimage import data

from regiontok import Regionizer, UnionFindClusterer, encoders, masks, read_video
from regiontok.cli import main
from regiontok.errors import ShapeError
from regiontok.viewing import make_page, write_page
from tests.viewing.tab import Tab

FRAMES, ROWS, COLS = 6, 8, 8
BUDGET = 40


@pytest.fixture(scope="module")
def video(china):
    """The head of a cat that moves to the right over a still image."""
    background, cat = china.resize((128, 128)), Image.fromarray(data.chelsea()).resize((48, 48))
    frames = []
    for step in range(FRAMES):
        frame = background.copy()
        frame.paste(cat, (8 + 12 * step, 40))
        frames.append(frame)
    return read_video(frames)


@pytest.fixture(scope="module")
def made(tmp_path_factory, video):
    """A page, and the regions that it opens with."""
    encoder = encoders.load("pixels", img_size=128)
    file = tmp_path_factory.mktemp("page") / "film.html"
    write_page(file, video, encoder, title="film", num_regions=BUDGET)
    features, valid = encoder(video.frames)
    features = Regionizer(pool="mean").normalize(features)
    assert features.shape[:3] == (FRAMES, ROWS, COLS)
    return file, features[None], valid[None]


@pytest.fixture
def tab(chromium, made):
    opened = Tab(chromium, made[0])
    yield opened
    opened.close()


def test_the_frames_of_a_region_are_described_and_marked(tab, made):
    _, features, valid = made
    labels = UnionFindClusterer(num_regions=BUDGET)(features, valid).labels()[0]
    for frame, row, col in ((0, 3, 1), (3, 4, 3), (5, 0, 7)):
        tab.slide("frame", frame)
        tab.point(row, col, ROWS, COLS)
        region = int(labels[frame, row, col])
        places = (labels == region).nonzero()
        first, last = (places[:, 0].min() + 1, places[:, 0].max() + 1)
        assert tab.text("#region-name") == f"Region {region + 1} of {BUDGET}"
        noun = f"frame {first}" if first == last else f"frames {first} to {last}"
        assert f"{noun} of {FRAMES}" in tab.text("#region-details")
        assert f"{len(places)} patch" in tab.text("#region-details")
        marks = [("present" in mark) for mark in tab.page.eval_on_selector_all("#presence span", "marks => marks.map(mark => mark.className)")]  # fmt: skip
        assert marks == (labels == region).flatten(1).any(1).tolist()


def test_every_slider_cuts_the_tree_of_the_video(tab, made):
    _, features, valid = made
    for tokens in (10, 100):
        tab.slide("tokens", tokens)
        regions = UnionFindClusterer(num_regions=tokens)(features, valid)
        for frame in (0, 4):
            tab.slide("frame", frame)
            shown = regions.labels()[0, frame].unique()
            assert tab.sizes() == regions.areas()[shown].tolist()
    assert tab.text("#all-title") == "Regions in this frame"


def test_each_frame_shows_its_image_and_its_regions(tab):
    pictures, drawings = set(), set()
    for frame in range(FRAMES):
        tab.slide("frame", frame)
        tab.page.wait_for_function("() => document.getElementById('image').complete")
        pictures.add(tab.page.evaluate("() => document.getElementById('image').src"))
        drawings.add(tab.canvas())
        assert tab.text("#frame-value") == f"{frame + 1} of {FRAMES}"
    assert len(pictures) == FRAMES
    assert len(drawings) > 1


def test_a_pinned_region_stays_while_frames_change(tab):
    tab.point(3, 1, ROWS, COLS)
    tab.page.mouse.down()
    tab.page.mouse.up()
    name = tab.text("#region-name")
    assert name.endswith(", pinned")
    tab.slide("frame", 5)
    assert tab.text("#region-name") == name
    tab.page.keyboard.press("Escape")
    assert tab.text("#region-name") == "No region"


def test_playback_and_keys(tab):
    tab.page.locator("#stage").focus()
    tab.page.keyboard.press(".")
    assert tab.text("#frame-value") == f"2 of {FRAMES}"
    tab.page.keyboard.press(",")
    tab.page.keyboard.press(",")
    assert tab.text("#frame-value") == f"{FRAMES} of {FRAMES}", "frames continue from the beginning"
    tab.page.get_by_role("button", name="Play").click()
    tab.page.wait_for_function("() => document.getElementById('frame').value === '2'")
    tab.page.get_by_role("button", name="Pause").click()
    frame = tab.text("#frame-value")
    tab.page.wait_for_timeout(600)
    assert tab.text("#frame-value") == frame
    assert tab.page.locator("#frame").get_attribute("aria-valuetext") == frame


def test_images_have_no_player(chromium, tmp_path, china):
    write_page(tmp_path / "page.html", china, encoders.load("pixels", img_size=128))
    opened = Tab(chromium, tmp_path / "page.html")
    assert not opened.page.locator("#player").is_visible()
    opened.close()


def test_the_command_shows_videos(tmp_path, monkeypatch, capsys, video):
    monkeypatch.chdir(tmp_path)
    video.frames[0].save("film.gif", save_all=True, append_images=video.frames[1:], duration=100)
    assert main(["view", "film.gif", "--num-frames", "4", "--img-size", "128", "--keep", "0.1"]) == 0
    assert "film.html" in capsys.readouterr().out
    text = (tmp_path / "film.html").read_text()
    assert "4 frames of 8 x 8 patches" in text
    assert '"times": [0.0, 0.1, 0.3, 0.4]' in text
    assert main(["view", "film.gif", "--num-frames", "4", "--masks", "felzenszwalb"]) == 2
    assert "the page of a video has no masks. Leave masks out." in capsys.readouterr().err


def test_invalid_videos_are_errors(china, video):
    encoder = encoders.load("pixels", img_size=128)
    with pytest.raises(ShapeError, match="the page of a video has no masks"):
        make_page(video, encoder, masks=masks.load("felzenszwalb")(china)[0])
    sizes = read_video([china, china.resize((128, 128))])
    with pytest.raises(ShapeError, match="the frames of a video must have one size"):
        make_page(sizes, encoder)
    many = read_video([np.zeros((16, 16, 3), np.uint8)] * 1025)
    with pytest.raises(ShapeError, match="got 1025 x 8 x 8. Reduce img_size or the number of frames"):
        make_page(many, encoder)
