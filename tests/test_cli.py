import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from regiontok import Regionizer, __version__, encoders, load_tokens, masks, read_image
from regiontok.cli import env, main
from tests.conftest import for_each


@pytest.fixture
def images(tmp_path, china):
    folder = tmp_path / "images"
    (folder / "other").mkdir(parents=True)
    china.save(folder / "a.png")
    china.rotate(90, expand=True).save(folder / "b.jpg")
    china.resize((200, 200)).save(folder / "other" / "a.jpg")
    return folder


def read(path):
    with safe_open(path, "pt") as file:
        return file.get_tensor("tokens"), file.get_tensor("labels"), json.loads(file.metadata()["config"])


def test_tokenize_writes_the_tokens_of_the_library(images, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["tokenize", str(images / "a.png"), "--threshold", "0.6", "--order", "area", "--out", str(out)]) == 0
    tokens, labels, config = read(out / "a.regions.safetensors")
    with Image.open(images / "a.png") as image:
        features, valid = encoders.load("pixels")(image)
    expected = Regionizer(pool="mean", threshold=0.6, order="area")(features, valid=valid)
    assert torch.equal(tokens, expected.values)
    assert torch.equal(labels, expected.regions.labels()[0].int())
    again = Regionizer(**config["regionizer"])(features, valid=valid)
    assert torch.equal(again.values, tokens)
    assert (config["encoder"], config["image_size"], config["regiontok"]) == ("pixels", [427, 640], __version__)
    with Image.open(out / "a.regions.png") as picture:
        assert picture.size == (2 * 640 + 16, 427)
    header, row = capsys.readouterr().out.splitlines()[:2]
    assert header.split() == [
        "image",
        "patches",
        "regions",
        "read",
        "encode",
        "normalize",
        "group",
        "pool",
        "write",
        "ms",
    ]
    assert row.split()[1:3] == ["384", str(len(expected))]


def test_a_budget_is_exact_and_images_with_the_same_name_have_different_files(images, tmp_path, capsys):
    paths = [str(images / name) for name in ("a.png", "b.jpg", "other/a.jpg")]
    assert main(["tokenize", *paths, "--num-regions", "64", "--out", str(tmp_path / "out")]) == 0
    names = ("images/a", "images/b", "other/a")  # keys of images in two folders start with the folder
    files = [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")]
    assert sorted(files) == sorted(f"{name}.regions.{kind}" for name in names for kind in ("png", "safetensors"))
    assert all(len(read(tmp_path / "out" / f"{name}.regions.safetensors")[0]) == 64 for name in names)
    assert capsys.readouterr().err.count("image/s") > 0  # the progress bar


def test_no_image_is_overwritten(images):
    shutil.copy(images / "a.png", images / "a.regions.png")
    before = {path: path.read_bytes() for path in images.glob("*.*")}
    assert main(["tokenize", *map(str, before), "--out", str(images)]) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert {path.name for path in images.glob("*.safetensors")} == {
        "a-2.regions.safetensors", "a.regions.regions.safetensors", "b.regions.safetensors",
    }  # fmt: skip


def test_a_failed_drawing_is_a_failed_image(images, tmp_path, monkeypatch, capsys):
    def draw(*_):
        raise MemoryError

    monkeypatch.setattr("regiontok.cli.write_files.draw_regions", draw)
    assert main(["tokenize", str(images / "b.jpg"), "--out", str(tmp_path / "out")]) == 1
    assert "b.jpg: not enough memory" in capsys.readouterr().err


def test_a_folder_is_tokenized_without_the_drawings_of_an_earlier_run(images, tmp_path):
    for _ in range(2):
        assert main(["tokenize", str(images), "--out", str(images)]) == 0
    written = {path.relative_to(images).as_posix() for path in images.rglob("*") if ".regions." in path.name}
    assert written == {f"{name}.regions.{kind}" for name in ("a", "b", "other/a") for kind in ("png", "safetensors")}


def test_patch_source_keeps_padding_when_asked(images, tmp_path):
    arguments = ["tokenize", str(images / "a.png"), "--source", "patch", "--padding", "keep", "--norm", "none"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert len(read(tmp_path / "a.regions.safetensors")[0]) == 576


def test_damaged_and_missing_images_are_reported_and_the_others_written(images, tmp_path, capsys):
    (images / "broken.jpg").write_bytes((images / "b.jpg").read_bytes()[:2000])
    arguments = [str(images / name) for name in ("broken.jpg", "a.png", "nowhere.png", "b.jpg")]
    assert main(["tokenize", *arguments, "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert "broken.jpg: damaged or truncated" in captured.err
    assert "nowhere.png: there is no such file" in captured.err
    assert "2 of 4 images failed" in captured.err
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"a.regions", "b.regions"}


def test_an_image_with_fewer_patches_than_the_budget_has_a_token_per_patch(images, tmp_path):
    Image.new("RGB", (400, 100)).save(images / "wide.png")
    arguments = [str(images / "wide.png"), str(images / "other" / "a.jpg"), "--num-regions", "300"]
    assert main(["tokenize", *arguments, "--out", str(tmp_path / "out")]) == 0
    assert [len(read(tmp_path / "out" / f"{name}.regions.safetensors")[0]) for name in ("images/wide", "other/a")] == [
        144,
        300,
    ]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--num-regions", "50"], {"num_regions": 50}),
        (["--num-regions", "50", "--linkage", "centroid"], {"num_regions": 50, "linkage": "centroid"}),
        (["--keep", "0.25"], {"keep": 0.25}),
        (["--explained-variance", "0.5"], {"explained_variance": 0.5}),
        (["--linkage", "average"], {"linkage": "average"}),
    ],
)
def test_budgets_and_linkages_reach_the_regionizer(images, tmp_path, arguments, options):
    assert main(["tokenize", str(images / "a.png"), *arguments, "--out", str(tmp_path)]) == 0
    features, valid = encoders.load("pixels")(read_image(images / "a.png"))
    expected = Regionizer(pool="mean", **options)(features, valid=valid).regions.labels()[0]
    assert torch.equal(read(tmp_path / "a.regions.safetensors")[1].long(), expected)


@pytest.mark.parametrize(
    ("source", "options"),
    [("combined", {"num_regions": 9, "mask_weight": float("inf")}), ("segmentation", {"keep": 0.02})],
)
def test_budgets_with_masks(images, tmp_path, source, options):
    names = {"num_regions": "--num-regions", "keep": "--keep", "mask_weight": "--mask-weight"}
    arguments = [part for name, value in options.items() for part in (names[name], str(value))]
    given = ["--source", source, "--masks", "felzenszwalb", *arguments, "--out", str(tmp_path)]
    assert main(["tokenize", str(images / "a.png"), *given]) == 0
    image, encoder = read_image(images / "a.png"), encoders.load("pixels")
    features, valid = encoder(image)
    regionizer = Regionizer(source=source, pool="mean", geometry=encoder.geometry, **options)
    made = masks.load("felzenszwalb")(image)
    expected = regionizer(features, masks=made, valid=valid)
    tokens = load_tokens(tmp_path / "a.regions.safetensors")
    assert torch.equal(tokens.regions.masks()[0], expected.regions.masks()[0])
    assert torch.allclose(tokens.values, expected.values)


@for_each(
    ("arguments", "message"),
    [
        (["--encoder", "clip"], "there is no encoder 'clip'"),
        (["--threshold", "7"], "--threshold must be in [-1, 1]; got 7.0"),
        (["--num-regions", "0"], "--num-regions must be at least 1; got 0"),
        (["--linkage", "ward"], "--linkage ward needs --num-regions, --keep or --explained-variance. Add one of them."),
        (["--linkage", "ward", "--threshold", "0.5"], "--linkage ward needs --num-regions, --keep or"),
        (
            ["--linkage", "average", "--explained-variance", "0.5"],
            "--explained-variance requires --linkage ward, whose scores add up to the variance; got --linkage average",
        ),
        (["--keep", "0"], "--keep must be above 0; got 0"),
        (["--mask-weight", "1"], "--mask-weight requires masks with --num-regions or --keep. Leave it out."),
        (["--source", "combined", "--mask-weight", "1"], "--mask-weight requires masks with --num-regions or --keep."),
        (
            ["--source", "combined", "--num-regions", "9", "--mask-weight", "-1"],
            "--mask-weight must be at least 0; got -1.0",
        ),
        (
            ["--source", "combined", "--num-regions", "9", "--eps", "0.5"],
            "--eps requires the source combined without --num-regions and --keep.",
        ),
        (["--keep", "1.5"], "--keep must be in [0, 1]; got 1.5"),
        (["--explained-variance", "1.5"], "--explained-variance must be in [0, 1]; got 1.5"),
        (["--source", "patch", "--linkage", "average"], "--linkage requires the source clustering"),
        (
            ["--source", "patch", "--threshold", "0.5"],
            "--threshold requires the source clustering or --unassigned cluster",
        ),
        (["--source", "patch", "--num-regions", "9"], "--num-regions requires the source clustering, segmentation or"),
        (["--order", "score"], "--order score needs a score for every region: --source segmentation or 'combined'"),
        (["--device", "abacus"], "device abacus cannot be used here"),
        (["--weights", "w.safetensors"], "encoder 'pixels' takes no weights"),
        (["--out", "images/a.png"], "images/a.png must be a folder, but cannot be created (File exists)"),
    ],
)
def test_invalid_options_are_explained(images, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(images.parent)
    assert main(["tokenize", "images/a.png", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-regions", "9", "--threshold", "0.5"], "not allowed with"),
        (["--batch-size", "0"], "argument --batch-size: it must be at least 1; got 0"),
        (["--img-size", "9", "0"], "argument --img-size: it must be at least 1; got 0"),
        (["--limit", "x"], "argument --limit: invalid positive value: 'x'"),
    ],
)
def test_invalid_values_are_rejected_by_the_parser(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(["tokenize", "a.png", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_demo_draws_an_image_and_prints_the_time_of_clustering(tmp_path):
    command = [sys.executable, "-m", "regiontok", "demo", "--out", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "384 patches -> 95 regions" in done.stdout
    assert "Clustering took" in done.stdout
    assert not done.stderr
    with Image.open(tmp_path / "demo" / "china.regions.png") as picture:
        assert np.asarray(picture).std() > 20


def test_env_prints_versions_and_the_compiler(capsys, monkeypatch):
    chosen = {package: extras for package, extras in env._read_extras().items() if "" in extras or "viz" in extras}
    monkeypatch.setattr(env, "_read_extras", lambda: chosen)  # importing all takes twenty seconds
    assert main(["env"]) == 0
    printed = capsys.readouterr().out
    assert f"regiontok      {__version__}" in printed
    assert re.search(rf"^torch +{re.escape(torch.__version__.partition('+')[0])}$", printed, re.MULTILINE)
    assert "compiled by numba" in printed


def test_the_console_script_is_installed():
    script = Path(sys.executable).parent / "regiontok"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"regiontok {__version__}\n"
