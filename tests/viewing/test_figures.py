import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from sklearn.decomposition import PCA

from regiontok import ImageGeometry, Regionizer, Regions, encoders
from regiontok.adapters.huggingface import with_regions
from regiontok.cli import main
from regiontok.encoders import EncodedImage
from regiontok.errors import OutputError, ShapeError, ValueRangeError
from regiontok.viewing import (
    Attention,
    check_figure,
    draw_attention,
    draw_counts,
    draw_encoders,
    draw_features,
    draw_norms,
    draw_sources,
    save_figure,
)
from regiontok.viewing.attention import patch_attention
from regiontok.viewing.figures import pca_colours
from tests.conftest import smooth_features
from tests.models import tiny_llava, tiny_processor

FLOWER = Image.fromarray(load_sample_image("flower.jpg"))
SQUARE = ImageGeometry.squash(64)


def seen_of(features, image, geometry=SQUARE):
    rows, cols, _ = features.shape
    valid = geometry.place((image.height, image.width)).valid((rows, cols))
    return EncodedImage(image, features, valid, geometry)


def pictures(figure):
    """What is shown in each panel, in reading order."""
    return [axes.images[0].get_array() for axes in figure.axes if axes.images]


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_norms_are_divided_by_their_median_and_one_after_rms(china):
    features = smooth_features(4, 4, 8)[0]
    features[1, 2] *= 50
    figure = draw_norms({"a": seen_of(features, china), "b": seen_of(smooth_features(8, 8, 5, seed=1)[0], china)})
    image, before, after, *_ = pictures(figure)
    norms = features.norm(dim=-1).numpy()
    height, width = image.shape[:2]
    for row, col in ((0, 0), (1, 2), (3, 3)):
        pixel = int((row + 0.5) * height / 4), int((col + 0.5) * width / 4)
        assert before[pixel] == pytest.approx(norms[row, col] / np.median(norms))
        assert after[pixel] == pytest.approx(1, rel=1e-3)
    scales = {axes.images[0].get_clim() for axes in figure.axes if axes.images and axes.images[0].get_array().ndim == 2}
    assert len(scales) == 1, "all maps are on one scale"
    assert next(iter(scales)) == pytest.approx((0, before.max()))


def test_padding_does_not_affect_norms(china):
    features = smooth_features(6, 6, 8)[0]
    features[0] = 1e6  # letterbox padding
    figure = draw_norms({"a": seen_of(features, china, ImageGeometry.letterbox(60))})
    assert np.nanmax(pictures(figure)[1]) < 10


def test_features_are_principal_components_with_shared_colours(china):
    both = [seen_of(smooth_features(5, 5, 16, seed=seed)[0], china) for seed in (0, 1)]
    colours = pca_colours(both)
    assert all(one.shape == (5, 5, 3) and (one >= 0).all() and (one <= 1).all() for one in colours)
    every = np.concatenate([one.features.reshape(-1, 16).numpy() for one in both])
    placed = PCA(3).fit_transform(every)[:, 0]
    shown = np.concatenate([one.reshape(-1, 3) for one in colours])[:, 0]
    inside = (shown > 0) & (shown < 1)
    assert inside.sum() > 40
    assert abs(np.corrcoef(placed[inside], shown[inside])[0, 1]) > 0.999
    first, again, other = pca_colours([both[0], both[0], both[1]])
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    figure = draw_features({"a": both, "b": both})
    assert titles(figure) == ["a", "b"]
    assert len(pictures(figure)) == 6


def test_constant_features_of_few_dimensions_have_colours(china):
    flat = seen_of(torch.ones(3, 3, 2), china)
    assert np.isfinite(pca_colours([flat])[0]).all()


def test_encoders_side_by_side(china):
    encoder = encoders.load("pixels", img_size=128)
    views = [encoder.encode_image(image) for image in (china, FLOWER)]
    figure = draw_encoders({"one": views, "two": views}, threshold=0.9)
    assert titles(figure) == ["one", "two"]
    counts = [axes.get_xlabel() for axes in figure.axes if "regions" in axes.get_xlabel()]
    regionizer = Regionizer(pool="mean", threshold=0.9)
    expected = [len(regionizer(one.features[None], valid=one.valid[None])) for one in views]
    assert counts == [f"{count} regions" for count in expected for _ in range(2)]
    assert {"features, by PCA", "regions, threshold 0.9", "norms"} <= {axes.get_ylabel() for axes in figure.axes}


def test_sources_are_outlined_and_counted(china):
    labels = torch.tensor([[[0, 0, 1, 1]] * 4])
    halves = Regions.from_labels(labels)
    whole = Regions.from_labels(torch.zeros(1, 4, 4, dtype=torch.int64))
    figure = draw_sources(china, {"two": halves, "one": whole}, SQUARE.place((china.height, china.width)))
    assert titles(figure) == ["two: 2", "one: 1"]
    two, one = pictures(figure)
    middle = two.shape[1] // 2
    assert (two[:, middle - 1 : middle + 2] != one[:, middle - 1 : middle + 2]).any(-1).mean() > 0.9
    assert (two[:, : middle - 3] == one[:, : middle - 3]).all()


def test_attention_is_bright_at_large_weights(china):
    placement = SQUARE.place((china.height, china.width))
    regions = Regions.from_labels(torch.tensor([[[0, 0, 1, 1]] * 4]))
    patches = Regions.from_labels(torch.arange(16).reshape(1, 4, 4))
    weights = torch.tensor([0.1, 0.5])
    figure = draw_attention(
        china,
        {"regions": Attention(regions, weights, placement), "patches": Attention(patches, torch.ones(16) / 20, placement)},
        question="Where?",
    )  # fmt: skip
    assert titles(figure) == ["regions: 2 tokens", "patches: 16 tokens"]
    assert figure.get_suptitle() == "Where?"
    told = [axes.get_xlabel() for axes in figure.axes[1:3]]
    assert told == ["60 % of attention to the image", "80 % of attention to the image"]
    bars = figure.axes[3:]  # each panel's own scale
    assert [axes.get_ylabel() for axes in bars] == ["% of attention per token"] * 2
    assert all(axes.get_ylim()[1] > 0 for axes in bars)
    _, shown, _ = pictures(figure)
    quarter = shown.shape[1] // 4
    assert shown[:, 3 * quarter].mean() > shown[:, quarter].mean() + 0.1


def test_patches_show_the_attention_of_their_smallest_region():
    masks = torch.tensor([[[1, 1, 1, 0]], [[0, 1, 1, 0]]]).bool()
    regions = Regions.from_masks([masks])
    weights = torch.tensor([0.6, 0.2])
    np.testing.assert_allclose(patch_attention(regions, weights), [[0.6, 0.2, 0.2, 0]], rtol=1e-6)
    np.testing.assert_allclose(patch_attention(regions, weights, spread=True), [[0.2, 0.1, 0.1, 0]], rtol=1e-6)


def test_invalid_arguments_are_errors(china):
    placement = SQUARE.place((china.height, china.width))
    one = seen_of(smooth_features(4, 4, 8)[0], china)
    two = Regions.from_labels(torch.zeros(2, 4, 4, dtype=torch.int64))
    for draw, given in ((draw_norms, {}), (draw_features, {}), (draw_encoders, {})):
        with pytest.raises(ShapeError, match="expected at least one entry to draw; got an empty mapping"):
            draw(given)
    with pytest.raises(
        ShapeError, match=r"every encoder must have the same images, at least one; got {'a': 1, 'b': 2}"
    ):
        draw_features({"a": [one], "b": [one, one]})
    with pytest.raises(ValueRangeError, match="norm must be"):
        draw_encoders({"a": [one]}, norm="layer")
    with pytest.raises(ShapeError, match="regions must be of one image; got 2"):
        draw_sources(china, {"a": two}, placement)
    with pytest.raises(
        ShapeError, match=r"x: attention must be \(2,\) over the regions of one image; got \(2,\) over 2"
    ):
        draw_attention(china, {"x": Attention(two, torch.ones(2), placement)})


def test_figures_are_saved_or_errors(tmp_path, china):
    figure = draw_norms({"a": seen_of(smooth_features(4, 4, 8)[0], china)})
    save_figure(figure, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as saved:
        assert np.asarray(saved)[0, 0, 3] == 0, "the ground is transparent"
    with pytest.raises(OutputError, match="a.png cannot be written"):
        save_figure(figure, tmp_path / "none" / "a.png")
    with pytest.raises(OutputError, match=r"a figure must be one of .*png.*; got xyz"):
        check_figure(tmp_path / "a.xyz")
    with pytest.raises(OutputError, match="there is no folder"):
        check_figure(tmp_path / "none" / "a.png")


def test_histograms_of_counts(tmp_path):
    figure = draw_counts({"patch": [576, 576], "clustering": [90, 120]}, paper={"patch": 576, "clustering": None})
    save_figure(figure, tmp_path / "h.svg")
    assert "#e8710a" in (tmp_path / "h.svg").read_text()  # the paper's number
    with pytest.raises(ShapeError, match="counts must have one source or more with a number per image"):
        draw_counts({"patch": []})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, china):
    root = tmp_path_factory.mktemp("figures")
    china.save(root / "china.png")
    FLOWER.save(root / "flower.png")
    tiny_llava().save_pretrained(root / "stock")
    with_regions(tiny_llava(), Regionizer(dim=32, num_heads=4, num_regions=5)).save_pretrained(root / "trained")
    for name in ("stock", "trained"):
        tiny_processor().save_pretrained(root / name)
    return root


@pytest.mark.parametrize(
    "given",
    [
        ["norms", "china.png", "--encoders", "pixels", "timm:vit_tiny_patch16_224", "--random"],
        ["features", "china.png", "flower.png"],
        ["encoders", "china.png", "--threshold", "0.8"],
        ["regions", "china.png"],
        ["regions", "china.png", "--masks", "felzenszwalb", "--sources", "segmentation", "combined"],
        ["attention", "china.png", "w1 w2", "--model", "trained", "--answer", "w5"],
        ["attention", "china.png", "w1 w2", "--model", "trained", "stock", "--spread", "--layers", "1"],
        [
            "attention",
            "china.png",
            "w1",
            "--model",
            "stock",
            "--sources",
            "patch",
            "combined",
            "--masks",
            "felzenszwalb",
        ],
        ["attention", "china.png", "w1", "--model", "stock", "--num-regions", "6"],
    ],
    ids=lambda given: " ".join(given[:4]),
)
def test_commands_draw(folder, capsys, monkeypatch, given):
    monkeypatch.chdir(folder)
    assert main(["figures", *given, "--out", "figure.png"]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.splitlines()[-1] == "Figure: figure.png"
    with Image.open("figure.png") as drawn:
        assert len(np.unique(np.asarray(drawn.convert("RGB")).reshape(-1, 3), axis=0)) > 100
    (folder / "figure.png").unlink()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["norms", "china.png", "--encoders", "pixels", "pixels"], "--encoders must differ; got pixels pixels."),
        (["regions", "china.png", "--sources", "combined"], "--sources combined needs --masks"),
        (["regions", "china.png", "--ladder"], "--ladder requires masks of sam2, sam3, sam2-package; got no masks"),
        (["norms", "none.png"], "none.png: there is no such file"),
        (
            ["attention", "china.png", "w1", "--model", "stock", "trained", "--sources", "patch"],
            "--sources requires a single stock",
        ),
        (["attention", "china.png", "w1", "--model", "trained", "--sources", "patch"], "holds a region model"),
        (
            ["attention", "china.png", "w1", "--model", "stock", "--sources", "combined"],
            "--sources combined needs --masks",
        ),
        (
            ["attention", "china.png", "w1", "--model", "stock", "--sources", "patch", "--num-regions", "3"],
            "--num-regions requires",
        ),
        (["attention", "china.png", "w1", "--model", "trained", "--answer", ""], "answer 0 has none"),
    ],
    ids=lambda given: " ".join(given[:1]) if isinstance(given, list) else "",
)
def test_commands_reject_invalid_options(folder, capsys, monkeypatch, given, expected):
    monkeypatch.chdir(folder)
    assert main(["figures", *given, "--out", "figure.png"]) == 2
    assert expected in capsys.readouterr().err


def test_a_figure_of_an_unknown_format_is_rejected(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    for given in (
        ["norms", "china.png"],
        ["regions", "china.png"],
        ["attention", "china.png", "w1", "--model", "trained"],
    ):
        assert main(["figures", *given, "--out", "figure.xyz"]) == 2
        assert "a figure must be one of" in capsys.readouterr().err
