"""The page in a real browser: Debian's Chromium, without a screen and without a network."""

import re

import numpy as np
import pytest
import torch

from regiontok import ImageGeometry, MaskDownsampler, Regionizer, UnionFindClusterer, encoders, masks
from regiontok.cli import main
from regiontok.encoders import Encoder
from regiontok.errors import OutputError, ShapeError, ValueRangeError
from regiontok.evaluation.partition import measure_partition
from regiontok.viewing import make_page, write_page
from regiontok.viewing.page import _compact
from tests.conftest import smooth_features
from tests.viewing.tab import Tab


@pytest.fixture(scope="module")
def made(tmp_path_factory, china):
    """A page of all four sources, and what it is made of."""
    encoder, found = encoders.load("pixels"), masks.load("felzenszwalb")(china)[0]
    file = tmp_path_factory.mktemp("page") / "china.html"
    write_page(file, china, encoder, title="china.jpg", masks=found)
    features, valid = encoder(china)
    features = Regionizer(pool="mean").normalize(features)
    return file, features, valid, found, encoder


@pytest.fixture
def tab(chromium, made):
    opened = Tab(chromium, made[0])
    yield opened
    opened.close()


def test_the_page_opens_at_the_threshold(tab, made):
    _, features, valid, _, _ = made
    expected = UnionFindClusterer(threshold=0.7)(features, valid)
    assert tab.text("h1") == "china.jpg"
    assert tab.text("#tokens-value") == str(len(expected))
    assert tab.text("#threshold-value") == "0.70"
    assert tab.sizes() == expected.areas().tolist()
    tab.page.wait_for_function("() => document.getElementById('status').textContent !== ''")
    assert (
        tab.text("#status")
        == f"{len(expected)} tokens from clustering (centroid), instead of {int(valid.sum())} patches"
    )


def test_each_slider_cuts_its_tree_as_the_library_does(tab, made):
    _, features, valid, _, _ = made
    tree, ward = (UnionFindClusterer(linkage=one).tree(features, valid)[0] for one in ("centroid", "ward"))
    counts, kept = (one.tolist() for one in ward.curve())
    before = tab.canvas()
    for tokens in (1, 2, 17, 128, 383, int(valid.sum())):
        tab.slide("tokens", tokens)
        assert tab.text("#tokens-value") == str(tokens)
        assert tab.sizes() == ward.cut(num_regions=tokens).areas().tolist()
        share = 100 * kept[counts.index(tokens)]
        assert float(tab.text("#explained-variance").split()[2]) == pytest.approx(share, abs=0.06)
        assert tab.text("#threshold-value") == "none"
    assert tab.canvas() != before
    for threshold in (0.3, 0.555, 0.8, 0.95):
        tab.slide("threshold", threshold)
        expected = tree.cut(threshold=threshold)
        assert tab.sizes() == expected.areas().tolist()
        assert tab.text("#tokens-value") == str(len(expected))
        assert (
            tab.page.locator("#threshold").get_attribute("aria-valuetext")
            == f"{threshold + 1e-9:.2f}, {len(expected)} tokens"
        )


def test_linkages_can_be_compared_at_equal_token_counts(tab, made):
    _, features, valid, _, _ = made
    tree, ward = (UnionFindClusterer(linkage=one).tree(features, valid)[0] for one in ("centroid", "ward"))
    tab.slide("tokens", 50)
    assert tab.page.get_by_role("radio", name="ward", exact=True).is_checked()
    by_ward = tab.canvas()
    tab.page.get_by_role("radio", name="centroid").check()
    tab.settle()
    assert tab.sizes() == tree.cut(num_regions=50).areas().tolist()
    assert tab.canvas() != by_ward
    assert tab.text("#explained-variance") == ""
    told = float(tab.text("#threshold-value"))
    lowest = float(tree.score[: int(valid.sum()) - 50].min())
    assert told == pytest.approx(lowest, abs=0.006)
    tab.page.get_by_role("radio", name="ward", exact=True).check()
    assert tab.sizes() == ward.cut(num_regions=50).areas().tolist()


def test_the_mask_weight_slider_cuts_trees_with_masks(tab, made):
    _, features, valid, found, encoder = made
    on_grid = MaskDownsampler(geometry=encoder.geometry)([found], features=features, valid=valid)
    assert not tab.page.locator("#weight").is_visible()
    tab.slide("tokens", 50)
    by_ward = tab.canvas()
    tab.page.get_by_role("radio", name="ward with masks").check()
    tab.settle()
    assert tab.text("#weight-value") == "0.5"
    assert tab.canvas() != by_ward
    for step, weight in ((0, 0.0), (4, 0.5), (8, float("inf"))):
        clusterer = UnionFindClusterer(mask_weight=weight)
        tab.slide("weight", step)
        assert tab.text("#weight-value") == ("∞" if weight == float("inf") else f"{weight:g}")
        for tokens in (3, 50, 200):
            tab.slide("tokens", tokens)
            expected = clusterer(features, num_regions=tokens, masks=on_grid)
            assert tab.sizes() == expected.areas().tolist()
            unit = torch.nn.functional.normalize(features, dim=-1)
            inside = on_grid.masks()[0].any(0)
            share = measure_partition(unit, expected, valid=inside[None])[0].explained_variance
            assert float(tab.text("#explained-variance").split()[2]) == pytest.approx(100 * share, abs=0.06)
    tab.page.get_by_role("radio", name="ward", exact=True).check()
    assert not tab.page.locator("#weight").is_visible()
    assert tab.text("#tokens-value") == "200"


def test_the_page_may_open_at_a_number_of_tokens(chromium, tmp_path, china):
    write_page(tmp_path / "page.html", china, encoders.load("pixels"), num_regions=64)
    opened = Tab(chromium, tmp_path / "page.html")
    assert opened.text("#tokens-value") == "64"
    assert opened.page.get_by_role("radio", name="ward", exact=True).is_checked()
    opened.close()
    write_page(tmp_path / "page.html", china, encoders.load("pixels"), num_regions=10**6)
    opened = Tab(chromium, tmp_path / "page.html")
    assert opened.text("#tokens-value") == "384"
    opened.close()
    write_page(tmp_path / "page.html", china, encoders.load("pixels"), keep=0.25)
    opened = Tab(chromium, tmp_path / "page.html")
    assert opened.text("#tokens-value") == "96"
    opened.close()


def test_the_region_under_the_pointer_is_described(tab, made):
    _, features, valid, _, _ = made
    regions = UnionFindClusterer(threshold=0.7)(features, valid)
    labels = regions.labels()[0]
    flat = features[0].flatten(0, 1)
    means = torch.nn.functional.normalize(
        torch.stack([flat[(labels == one).flatten()].mean(0) for one in range(len(regions))]), dim=1
    )
    plain = tab.canvas()
    for row, col in ((6, 20), (12, 7), (18, 2)):
        tab.point(row, col)
        region = int(labels[row, col])
        assert tab.text("#region-name") == f"Region {region + 1} of {len(regions)}"
        told = tab.text("#region-details")
        area = int((labels == region).sum())
        assert f"{area} patch" in told
        assert f"{100 * area / int(valid.sum()):.1f} % of the image" in told
        similar = means @ means[region]
        assert float(tab.text("#lowest")) == pytest.approx(float(similar.min()), abs=0.016)
        nearest = float(similar[torch.arange(len(regions)) != region].max())
        named, value = re.search(r"most similar: region (\d+), (-?[\d.]+)", told).groups()
        assert float(value) == pytest.approx(nearest, abs=0.016)
        assert float(similar[int(named) - 1]) == pytest.approx(nearest, abs=0.02)
        assert tab.canvas() != plain
    tab.page.mouse.move(5, 5)
    tab.settle()
    assert tab.text("#region-name") == "No region"
    assert tab.canvas() == plain


def test_similar_regions_are_brighter(tab, made):
    """The heat map itself, read off the canvas at the middles of patches."""
    _, features, valid, _, _ = made
    labels = UnionFindClusterer(threshold=0.7)(features, valid).labels()[0]
    flat = torch.stack([features[0][labels == one].mean(0) for one in range(int(labels.max()) + 1)])
    tab.point(18, 2)
    similar = torch.cosine_similarity(flat, flat[int(labels[18, 2])][None])
    places = [(row, col) for row in range(5, 19, 2) for col in range(0, 24, 3)]
    places = [one for one in places if labels[one] >= 0 and labels[one] != labels[18, 2]]
    pixels = tab.page.evaluate(
        "places => { const c = document.getElementById('canvas'), side = c.width / 24, above = (24 * side - c.height) / 2;"
        "const all = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "return places.map(([row, col]) => { const at = 4 * (Math.floor((row + .5) * side - above) * c.width"
        " + Math.floor((col + .5) * side)); return [...all.slice(at, at + 4)]; }); }",
        places,
    )
    assert all(alpha > 0 for *_, alpha in pixels)
    shown = [float(similar[labels[one]]) for one in places]
    green = [float(pixel[1]) for pixel in pixels]  # rises all along the ramp
    assert torch.corrcoef(torch.tensor([shown, green]))[0, 1] > 0.97


def test_sources_can_be_switched(tab, made):
    _, features, valid, found, encoder = made
    pictures = {tab.canvas()}
    for source in ("patch", "segmentation", "combined"):
        regionizer = Regionizer(source=source, pool="mean", geometry=encoder.geometry)
        expected = regionizer.group(features, masks=[found] if source != "patch" else None, valid=valid)
        tab.page.get_by_role("radio", name=source).check()
        tab.settle()
        assert tab.sizes() == expected.areas().tolist()
        assert not tab.page.locator("#threshold").is_visible()
        pictures.add(tab.canvas())
    assert len(pictures) == 4
    tab.page.get_by_role("radio", name="clustering").check()
    assert tab.page.locator("#threshold").is_visible()


def test_views_can_be_switched(tab):
    pictures = {tab.canvas()}
    for view in ("mean colours", "image"):
        tab.page.get_by_role("radio", name=view, exact=True).check()
        tab.settle()
        pictures.add(tab.canvas())
    assert len(pictures) == 3


def test_keyboard_and_screen_reader_are_supported(tab):
    stage = tab.page.get_by_role("application", name="Region map of china.jpg")
    assert stage.get_attribute("aria-describedby") == "help"
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("() => document.activeElement.id") == "stage"
    status = tab.page.get_by_role("status")
    tab.page.keyboard.press("ArrowRight")
    first = tab.text("#region-name")
    assert first.startswith("Region ")
    tab.page.wait_for_function("told => document.getElementById('status').textContent.startsWith(told)", arg=first)
    for _ in range(8):
        tab.page.keyboard.press("ArrowUp")
    tab.settle()
    assert tab.text("#region-name") != first
    tab.page.keyboard.press("Enter")
    pinned = tab.text("#region-name")
    assert pinned.endswith(", pinned")
    tab.point(18, 2)
    assert tab.text("#region-name") == pinned, "the pointer does not change a pinned region"
    tab.page.keyboard.press("Escape")
    assert tab.text("#region-name") == "No region"
    tab.page.wait_for_function("() => document.getElementById('status').textContent === 'No region'")
    assert status.count() == 1
    slider = tab.page.get_by_role("slider", name="Tokens")
    before = int(tab.text("#tokens-value"))
    slider.focus()
    tab.page.keyboard.press("ArrowRight")
    tab.settle()
    assert tab.text("#tokens-value") == str(before + 1)
    told = f"{before + 1} tokens, {100 * (before + 1) / 384:.1f} % of the patches"
    assert slider.get_attribute("aria-valuetext") == told
    assert told.endswith(tab.text("#tokens-fraction"))
    tab.page.get_by_role("slider", name="Threshold").focus()
    tab.page.keyboard.press("Home")
    tab.settle()
    assert int(tab.text("#tokens-value")) < before
    tab.page.get_by_role("radio", name="clustering").focus()
    tab.page.keyboard.press("ArrowDown")
    assert tab.page.get_by_role("radio", name="patch").is_checked()


def test_clicks_pin_regions_and_the_table_selects_them(tab):
    tab.point(18, 2)
    name = tab.text("#region-name")
    tab.page.mouse.down()
    tab.page.mouse.up()
    assert tab.text("#region-name") == f"{name}, pinned"
    tab.page.locator("summary").click()
    tab.page.get_by_role("button", name="Show region 5", exact=True).click()
    assert tab.text("#region-name").startswith("Region 5 of")


@pytest.mark.parametrize("width", [360, 740, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_phones_and_both_colour_schemes(chromium, made, width, scheme):
    opened = Tab(chromium, made[0], viewport={"width": width, "height": 700}, color_scheme=scheme)
    page = opened.page
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    ground, ink = page.evaluate(
        "() => ['background-color', 'color'].map(name => getComputedStyle(document.body).getPropertyValue(name))"
    )
    bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in (ground, ink)]
    assert abs(bright[0] - bright[1]) > 180
    assert (bright[0] > bright[1]) == (scheme == "light")
    box = page.locator("#image").bounding_box()
    canvas = page.locator("#canvas").bounding_box()
    assert box == pytest.approx(canvas)
    opened.close()


HOSTILE = "<img src=x onerror=alert(1)>\"'&{{data}}</script><script>alert(2)</script>.jpg"


def test_titles_are_escaped(chromium, tmp_path, china):
    write_page(tmp_path / "page.html", china, encoders.load("pixels", img_size=128), title=HOSTILE)
    opened = Tab(chromium, tmp_path / "page.html")
    assert opened.text("h1") == HOSTILE
    assert opened.page.title() == f"{HOSTILE}: regions"
    assert opened.page.locator("img").count() == 1
    assert opened.page.locator("script").count() == 2
    opened.close()


@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_compact_features_preserve_cosines(noise):
    features = smooth_features(20, 20, 700, noise=noise)[0].flatten(0, 1)
    features[3] = 0
    valid = torch.ones(400, dtype=torch.bool)
    valid[:2] = False
    small, scale = _compact(features, valid)
    assert small.dtype == np.int8
    kept = torch.from_numpy(small) * torch.from_numpy(scale)
    exact, found = (torch.nn.functional.normalize(one[valid], dim=1) for one in (features, kept))
    assert (found @ found.T - exact @ exact.T).abs().max() <= 0.01
    assert small.shape[1] < 400, "fewer components than there could be"


def test_large_grids_give_small_files(chromium, tmp_path, china):
    """36 x 36 patches of 1024 numbers: below 3 MB, and every cut is there."""
    features = smooth_features(36, 36, 1024)
    encoder = Encoder(lambda _: features, geometry=ImageGeometry.squash(576), patch_size=16, name="synthetic")
    image = china.resize((3000, 2000))
    found = masks.load("felzenszwalb")(china)[0]
    write_page(tmp_path / "page.html", image, encoder, masks=type(found).from_masks(torch.ones(1, 2000, 3000).bool()))
    assert (tmp_path / "page.html").stat().st_size < 3e6
    opened = Tab(chromium, tmp_path / "page.html")
    for tokens in (40, 900):
        opened.slide("tokens", tokens)
        assert opened.text("#tokens-value") == str(tokens)
    opened.close()


def test_the_command_writes_a_page(tmp_path, capsys, china, monkeypatch):
    monkeypatch.chdir(tmp_path)
    china.save("a&b.png")
    assert main(["view", "a&b.png", "--threshold", "0.8", "--masks", "felzenszwalb"]) == 0
    assert re.fullmatch(r"Open a&b.html in a browser \(0.\d MB\).\n", capsys.readouterr().out)
    text = (tmp_path / "a&b.html").read_text()
    assert "<h1>a&amp;b.png</h1>" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text), "nothing is fetched"
    assert main(["view", "a&b.png", "--out", "none/x.html"]) == 2
    assert "cannot be written: there is no folder none" in capsys.readouterr().err
    assert main(["view", "none.png"]) == 2
    assert main(["view", "a&b.png", "--ladder"]) == 2
    assert "--ladder requires masks of sam2, sam3, sam2-package; got no masks. Leave it out." in capsys.readouterr().err


def test_invalid_arguments_are_errors(tmp_path, china):
    encoder = encoders.load("pixels", img_size=64)
    with pytest.raises(ValueRangeError, match="threshold must be"):
        make_page(china, encoder, threshold=2)
    with pytest.raises(ValueRangeError, match="num_regions must be at least 1; got 0"):
        make_page(china, encoder, num_regions=0)
    one_patch_per_pixel = Encoder(
        lambda pixels: pixels.permute(0, 2, 3, 1), geometry=ImageGeometry.squash(256), patch_size=1
    )
    with pytest.raises(ShapeError, match="a page can have at most 65535 patches; got 256 x 256. Reduce img_size"):
        make_page(china, one_patch_per_pixel)
    with pytest.raises(OutputError, match="x.html cannot be written"):
        write_page(tmp_path / "none" / "x.html", china, encoder)
