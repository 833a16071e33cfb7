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
from regiontok.cli import main


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


def test_tokenize_writes_what_the_library_gives(images, tmp_path, capsys):
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


def test_a_budget_is_exact_and_images_of_one_name_are_not_written_over(images, tmp_path, capsys):
    paths = [str(images / name) for name in ("a.png", "b.jpg", "other/a.jpg")]
    assert main(["tokenize", *paths, "--tokens", "64", "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"{name}.regions.{kind}" for name in ("a", "a-2", "b") for kind in ("png", "safetensors")
    )
    assert all(len(read(tmp_path / "out" / f"{name}.regions.safetensors")[0]) == 64 for name in ("a", "a-2", "b"))
    assert capsys.readouterr().err.count("image/s") > 0  # the progress bar


def test_no_image_is_written_over(images):
    shutil.copy(images / "a.png", images / "a.regions.png")
    before = {path: path.read_bytes() for path in images.glob("*.*")}
    assert main(["tokenize", *map(str, before), "--out", str(images)]) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert {path.name for path in images.glob("*.safetensors")} == {
        "a-2.regions.safetensors", "a.regions.regions.safetensors", "b.regions.safetensors",
    }  # fmt: skip


def test_a_image_that_breaks_the_decoder_does_not_stop_the_rest(images, tmp_path, monkeypatch, capsys):
    def draw(*_):
        raise MemoryError

    monkeypatch.setattr("regiontok.cli.tokenize.draw_regions", draw)
    assert main(["tokenize", str(images / "b.jpg"), "--out", str(tmp_path / "out")]) == 1
    assert "b.jpg: not enough memory" in capsys.readouterr().err


def test_all_images_of_a_folder_are_taken_but_not_our_own_pictures(images, tmp_path):
    for _ in range(2):
        assert main(["tokenize", str(images), "--out", str(images)]) == 0
    written = {path.relative_to(images).as_posix() for path in images.rglob("*") if ".regions." in path.name}
    assert written == {f"{name}.regions.{kind}" for name in ("a", "b", "other/a") for kind in ("png", "safetensors")}


def test_patch_source_keeps_padding_when_asked(images, tmp_path):
    arguments = ["tokenize", str(images / "a.png"), "--source", "patch", "--padding", "keep", "--norm", "none"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert len(read(tmp_path / "a.regions.safetensors")[0]) == 576


def test_one_bad_image_does_not_stop_the_rest_is_named_and_told_by_the_exit_code(images, tmp_path, capsys):
    (images / "broken.jpg").write_bytes((images / "b.jpg").read_bytes()[:2000])
    arguments = [str(images / name) for name in ("broken.jpg", "a.png", "nowhere.png", "b.jpg")]
    assert main(["tokenize", *arguments, "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert "broken.jpg: damaged or cut short" in captured.err
    assert "nowhere.png: there is no such file" in captured.err
    assert "2 of 4 images failed" in captured.err
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"a.regions", "b.regions"}


def test_a_narrow_image_keeps_all_its_patches_under_a_larger_budget(images, tmp_path):
    Image.new("RGB", (400, 100)).save(images / "wide.png")
    arguments = [str(images / "wide.png"), str(images / "other" / "a.jpg"), "--tokens", "300"]
    assert main(["tokenize", *arguments, "--out", str(tmp_path / "out")]) == 0
    assert [len(read(tmp_path / "out" / f"{name}.regions.safetensors")[0]) for name in ("wide", "a")] == [144, 300]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--tokens", "50"], {"num_regions": 50}),
        (["--tokens", "50", "--linkage", "centroid"], {"num_regions": 50, "linkage": "centroid"}),
        (["--keep", "0.25"], {"keep": 0.25}),
        (["--explained-variance", "0.5"], {"explained_variance": 0.5}),
        (["--linkage", "average"], {"linkage": "average"}),
    ],
)
def test_how_many_and_by_which_rule(images, tmp_path, arguments, options):
    assert main(["tokenize", str(images / "a.png"), *arguments, "--out", str(tmp_path)]) == 0
    features, valid = encoders.load("pixels")(read_image(images / "a.png"))
    expected = Regionizer(pool="mean", **options)(features, valid=valid).regions.labels()[0]
    assert torch.equal(read(tmp_path / "a.regions.safetensors")[1].long(), expected)


@pytest.mark.parametrize(
    ("source", "options"),
    [("combined", {"num_regions": 9, "mask_weight": float("inf")}), ("segmentation", {"keep": 0.02})],
)
def test_masks_at_a_budget(images, tmp_path, source, options):
    names = {"num_regions": "--tokens", "keep": "--keep", "mask_weight": "--mask-weight"}
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--encoder", "clip"], "there is no encoder 'clip'"),
        (["--threshold", "7"], r"threshold must be in [-1, 1]; got 7.0"),
        (["--tokens", "0"], "--tokens must be at least 1; got 0"),
        (
            ["--linkage", "ward"],
            "--linkage ward has no threshold. Say how many by --tokens, --keep or --explained-variance.",
        ),
        (["--linkage", "ward", "--threshold", "0.5"], "--linkage ward has no threshold."),
        (
            ["--linkage", "average", "--explained-variance", "0.5"],
            "--explained-variance is for --linkage ward; got average",
        ),
        (["--keep", "0"], "--keep must be above 0; got 0"),
        (["--mask-weight", "1"], "--mask-weight is for masks with --tokens or --keep. Leave it out."),
        (["--source", "combined", "--mask-weight", "1"], "--mask-weight is for masks with --tokens or --keep."),
        (
            ["--source", "combined", "--tokens", "9", "--mask-weight", "-1"],
            "--mask-weight must be at least 0; got -1.0",
        ),
        (["--source", "combined", "--tokens", "9", "--eps", "0.5"], "--eps is for splitting masks without --tokens."),
        (["--keep", "1.5"], "--keep must be in [0, 1]; got 1.5"),
        (["--explained-variance", "1.5"], "--explained-variance must be in [0, 1]; got 1.5"),
        (["--source", "patch", "--linkage", "average"], "--linkage is for --source clustering"),
        (
            ["--source", "patch", "--threshold", "0.5"],
            "--threshold is for --source clustering, or for --uncovered cluster",
        ),
        (["--source", "patch", "--tokens", "9"], "--tokens is for --source clustering"),
        (["--device", "abacus"], "device abacus cannot be used here"),
        (["--weights", "w.safetensors"], "encoder 'pixels' takes no weights"),
        (["--out", "images/a.png"], "images/a.png must be a folder that can be made (File exists)"),
    ],
)
def test_commands_that_cannot_run_say_why(images, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(images.parent)
    assert main(["tokenize", "images/a.png", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_threshold_and_tokens_exclude_each_other(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["tokenize", "a.png", "--tokens", "9", "--threshold", "0.5"])
    assert stop.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


def test_demo_draws_a_real_image_and_says_what_clustering_took(tmp_path):
    command = [sys.executable, "-m", "regiontok", "demo", "--out", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "384 patches -> 95 regions" in done.stdout
    assert "Clustering took" in done.stdout
    assert not done.stderr
    with Image.open(tmp_path / "demo" / "china.regions.png") as picture:
        assert np.asarray(picture).std() > 20


def test_env_prints_versions_and_what_runs_where(capsys, monkeypatch):
    assert main(["env"]) == 0
    printed = capsys.readouterr().out
    assert f"regiontok      {__version__}" in printed
    assert re.search(rf"^torch +{re.escape(torch.__version__.partition('+')[0])}$", printed, re.MULTILINE)
    assert "compiled by numba" in printed


def test_the_console_script_is_installed():
    script = Path(sys.executable).parent / "regiontok"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"regiontok {__version__}\n"
