"""The command line where masks are made or used."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from regiontok import MaskSet, Regionizer, encoders, masks, read_image
from regiontok.cli import main
from regiontok.masks import FelzenszwalbMasks, Sam2Masks
from regiontok.store import MaskStore, write_masks
from tests.models import tiny_sam2

FAST = ["--points-per-side", "3", "--stability-score-thresh", "0", "--pred-iou-thresh", "0", "--box-nms-thresh", "1"]


@pytest.fixture
def images(tmp_path, china, monkeypatch):
    folder = tmp_path / "images"
    (folder / "inner").mkdir(parents=True)
    small = china.resize((160, 107))
    small.save(folder / "a.png")
    small.rotate(90, expand=True).save(folder / "b.jpg")
    small.resize((60, 60)).save(folder / "inner" / "c.png")
    (folder / "notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def sam(tmp_path):
    tiny_sam2(2).save_pretrained(tmp_path / "sam")
    return ["--sam-model", str(tmp_path / "sam"), *FAST]


def read(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["config"])  # noqa: SIM118


@pytest.mark.parametrize("source", ["segmentation", "combined"])
def test_tokenize_with_masks_writes_what_the_library_gives(images, source):
    assert main(["tokenize", "images/a.png", "--source", source, "--masks", "felzenszwalb", "--norm", "none"]) == 0
    tensors, config = read("regiontok-out/images/a.regions.safetensors")
    with Image.open(images / "a.png") as image:
        encoder = encoders.load("pixels")
        features, valid = encoder(image)
        found = FelzenszwalbMasks()(image)
    regionizer = Regionizer(source=source, pool="mean", norm="none", geometry=encoder.geometry)
    expected = regionizer(features, masks=found, valid=valid)
    assert (tensors["tokens"] == expected.values).all()
    assert (tensors["masks"] == expected.regions.masks()[0]).all()
    assert (tensors["mask_index"] == expected.regions.mask_index).all()
    assert set(tensors) == {"tokens", "masks", "mask_index", "scores"}
    again = Regionizer(**config["regionizer"])(features, masks=found, valid=valid)
    assert (again.values == expected.values).all()
    assert config["dropped"] == [
        {"mask_index": one.mask_index, "reason": one.reason} for one in expected.regions.dropped
    ]
    with Image.open("regiontok-out/images/a.regions.png") as picture:
        assert picture.size == (2 * 160 + 16, 107)


def test_masks_of_a_real_model_are_kept_and_read_back(images, sam, capsys):
    assert main(["masks", "images", "--out", "m", "--batch", "2", *sam]) == 0
    assert "3 images, " in capsys.readouterr().out
    store = MaskStore("m")
    assert list(store) == ["a.png", "b.jpg", "inner/c.png"]
    assert store.made_by["generator"] == "sam2"
    assert store.made_by["settings"][0]["points_per_side"] == 3
    generate = Sam2Masks(tiny_sam2(2), settings=masks.MaskSettings(3, 0, 0, 1))
    _, expected = generate([read_image(images / name) for name in ("a.png", "b.jpg")])  # the batch it was in
    assert store["b.jpg"].size == (160, 107)
    kept, made = (one.masks().flatten(1).float() for one in (store["b.jpg"], expected))
    different = torch.cdist(kept, made, p=1).amin(1)  # in pixels; random weights blow some roundings up
    assert different.median() < 0.02 * 160 * 107

    for out, chosen in (("file", ["m"]), ("direct", ["sam2", *sam])):
        assert main(["tokenize", "images/b.jpg", "--source", "segmentation", "--out", out, "--masks", *chosen]) == 0
    header = capsys.readouterr().out.splitlines()[0].split()
    assert header[3:] == ["read", "encode", "masks", "normalize", "group", "pool", "write", "ms"]
    (file, _), (direct, _) = (read(f"{out}/images/b.regions.safetensors") for out in ("file", "direct"))
    assert abs(len(file["tokens"]) - len(direct["tokens"])) <= 3
    covered = [tensors["masks"].float().mean(0) for tensors in (file, direct)]
    assert (covered[0] - covered[1]).abs().mean() < 0.1


def test_every_option_of_masks_reaches_the_regions(images):
    options = ["--coverage", "0.5", "--uncovered", "background", "--overlap", "smallest", "--order", "area"]
    options += ["--downsampling", "two_step"]
    combined = ["--eps", "0.3", "--min-samples", "2", "--split-min-patches", "4", "--noise", "drop"]
    base = ["tokenize", "images/a.png", "--masks", "felzenszwalb", "--source"]
    assert main([*base, "combined", *options, *combined]) == 0
    config = read("regiontok-out/images/a.regions.safetensors")[1]["regionizer"]
    given = {
        "coverage": 0.5, "downsampling": "two_step", "uncovered": "background", "overlap": "smallest", "order": "area",
        "eps": 0.3, "min_samples": 2, "split_min_patches": 4, "noise": "drop",
    }  # fmt: skip
    assert {name: config[name] for name in given} == given
    assert main([*base, "segmentation", "--uncovered", "cluster", "--threshold", "0.4", "--out", "o"]) == 0
    assert read("o/images/a.regions.safetensors")[1]["regionizer"]["threshold"] == 0.4


def test_what_became_of_masks_is_told(images, capsys):
    masks_of_a = np.zeros((2, 107, 160), bool)
    masks_of_a[0, 0, 0] = True
    write_masks("m", [("a.png", MaskSet.from_masks(masks_of_a))])
    assert main(["tokenize", "images/a.png", "--source", "segmentation", "--masks", "m"]) == 0
    printed = capsys.readouterr().out
    assert "images/a.png: 1 mask became no region: covers no patch by more than 0.07" in printed
    assert "images/a.png: 1 mask became no region: covers nothing of what the encoder sees" in printed
    assert "images/a.png: no mask is left; one region of the whole image" in printed
    assert read("regiontok-out/images/a.regions.safetensors")[1]["fallback"] is True


def test_images_whose_masks_are_missing_or_of_another_size_fail_alone(images, capsys):
    assert main(["masks", "images/a.png", "images/b.jpg", "--masks", "felzenszwalb", "--out", "m"]) == 0
    shutil.copy(images / "inner" / "c.png", images / "a.png")
    arguments = [f"images/{name}" for name in ("a.png", "b.jpg", "inner/c.png")]
    assert main(["tokenize", *arguments, "--root", "images", "--source", "segmentation", "--masks", "m"]) == 1
    told = capsys.readouterr().err
    assert "images/a.png: masks in m are of an image of 107 x 160; this one is of 60 x 60. Make them again." in told
    assert "images/inner/c.png: m has no masks of 'inner/c.png'. Its keys are such as 'a.png'." in told
    assert "2 of 3 images failed" in told
    assert read("regiontok-out/images/b.regions.safetensors")


def test_one_image_of_a_batch_that_fails_leaves_the_others(images, monkeypatch, capsys):
    (images / "broken.jpg").write_bytes((images / "b.jpg").read_bytes()[:300])
    generate = FelzenszwalbMasks.__call__

    def fail(self, given):
        if any(image.size == (107, 160) for image in given):
            raise torch.OutOfMemoryError("this image cannot be segmented")
        return generate(self, given)

    monkeypatch.setattr(FelzenszwalbMasks, "__call__", fail)
    assert main(["masks", "images", "--masks", "felzenszwalb", "--out", "m"]) == 1
    told = capsys.readouterr().err
    assert "b.jpg: this image cannot be segmented" in told
    assert "broken.jpg: damaged or cut short" in told
    assert "2 of 4 images failed" in told
    assert list(MaskStore("m")) == ["a.png", "inner/c.png"]


def test_a_store_and_images_are_not_lost(images, capsys):
    base = ["--masks", "felzenszwalb", "--out"]
    assert main(["masks", "images/a.png", "images", *base, "m"]) == 0
    assert len(MaskStore("m")) == 3
    (images / "broken.png").write_bytes(b"no image")
    assert main(["masks", "images/broken.png", *base, "m"]) == 1
    assert "broken.png: not an image" in capsys.readouterr().err
    assert len(MaskStore("m")) == 3
    before = (images / "a.png").read_bytes()
    for out, told in (("images/a.png", "images/a.png is a file, and a store is a folder"), ("images", "images is a folder of other things")):  # fmt: skip
        assert main(["masks", "images/a.png", *base, out]) == 2
        assert told in capsys.readouterr().err
    assert (images / "a.png").read_bytes() == before


def test_a_mosaic_of_images(images, sam):
    assert main(["masks", "images", "--out", "m", "--mosaic", "2", *sam]) == 0
    store = MaskStore("m")
    assert store.made_by["mosaic"] == 2
    assert [store[key].size for key in store] == [(107, 160), (160, 107), (60, 60)]


def test_count_prints_the_distribution_beside_the_papers_and_draws_it(images, capsys, monkeypatch):
    assert main(["count", "images", "--masks", "felzenszwalb", "--out", "counts.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Tokens per image: 3 images, pixels, norm rms"
    assert [line.split()[0] for line in lines[2:6]] == ["patch", "segmentation", "clustering", "combined"]
    patch = lines[2].split()
    assert patch[1:] == ["408", "408", "408", "492", "576", "464.0", "-"]
    with Image.open("counts.png") as picture:
        assert picture.mode == "RGBA"
        assert np.asarray(picture)[..., 3].std() > 5
    monkeypatch.setattr("regiontok.cli.count.paper_tokens", lambda encoder, source, norm: {"patch": 576.0}.get(source))
    assert main(["count", "images/a.png", "images/inner", "--sources", "patch", "--norm", "none"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[-1] == "576"


def test_budgets_reach_sources_of_masks(images, capsys):
    command = ["count", "images/a.png", "--masks", "felzenszwalb", "--tokens", "12", "--mask-weight", "inf"]
    assert main([*command, "--out", "counts.png"]) == 0
    counts = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()[2:6]}
    assert (counts["clustering"], counts["combined"], counts["patch"]) == ("12", "12", "408")
    assert int(counts["segmentation"]) <= 12
    for weight in ("0", "inf"):
        figure = ["figures", "regions", "images/a.png", "--masks", "felzenszwalb", "--keep", "0.05"]
        assert main([*figure, "--mask-weight", weight, "--out", f"{weight}.png"]) == 0
    pixels = [np.asarray(Image.open(f"{weight}.png")) for weight in ("0", "inf")]
    assert (pixels[0] != pixels[1]).any()


def test_compare_measures_masks_with_and_without_a_budget(images, capsys):
    command = ["compare", "images/a.png", "--masks", "felzenszwalb", "--tokens", "8", "20"]
    assert main([*command, "--mask-weight", "0", "--out", "c.png"]) == 0
    table = [line.split("  ")[0].strip() for line in capsys.readouterr().out.splitlines()]
    assert table.count("combined") == table.count("segmentation") == 2
    assert table.count("combined (no budget)") == table.count("segmentation (no budget)") == 1
    told = json.loads(Path("c.png.json").read_text(encoding="utf-8"))
    assert told["mask_weight"] == 0
    scores = {(row["source"], row["tokens"]): row["regions"] for row in told["mean"]}
    assert scores["combined", 8] == scores["ward", 8] == 8


def test_count_tells_lost_masks_and_does_not_count_its_own_pictures(images, capsys, monkeypatch):
    nothing = [
        (name, MaskSet.from_masks(np.zeros((2, *size), bool)))
        for name, size in (("a.png", (107, 160)), ("b.jpg", (160, 107)), ("inner/c.png", (60, 60)))
    ]
    write_masks("m", nothing)
    Image.new("RGB", (9, 9)).save(images / "a.regions.png")
    for _ in range(2):
        assert main(["count", "images", "--masks", "m", "--out", "images/counts.png"]) == 0
        printed = capsys.readouterr().out
        assert "Tokens per image: 3 images" in printed
        assert "segmentation: 6 masks became no region; 3 images were left without any" in printed


def test_count_leaves_out_images_that_fail_and_sources_without_masks(images, capsys):
    (images / "broken.png").write_bytes(b"no image")
    assert main(["count", "images"]) == 1
    captured = capsys.readouterr()
    assert "Tokens per image: 3 images" in captured.out
    assert [line.split()[0] for line in captured.out.splitlines()[2:4]] == ["patch", "clustering"]
    assert "images/broken.png: not an image" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tokenize", "a.png", "--source", "segmentation"], "SAM weights 'facebook/sam2.1-hiera-large' cannot be reached"),
        (["tokenize", "a.png", "--masks", "m"], "--masks is for --source segmentation and combined"),
        (["tokenize", "a.png", "--uncovered", "background"], "--uncovered is for --source segmentation and combined"),
        (["tokenize", "a.png", "--points-per-side", "9"], "--points-per-side is for --source segmentation and combined"),
        (["tokenize", "a.png", "--source", "segmentation", "--masks", "felzenszwalb", "--eps", "0.5"], "--eps is for --source combined"),
        (["tokenize", "a.png", "--source", "segmentation", "--masks", "felzenszwalb", "--ladder"], "--ladder is for SAM's masks"),
        (["tokenize", "a.png", "--source", "segmentation", "--masks", "felzenszwalb", "--threshold", "0.5"], "--threshold is for --source clustering, or for --uncovered cluster"),
        (["tokenize", "a.png", "--source", "segmentation", "--masks", "sam9"], "--masks must be one of sam2, .*there is no sam9"),
        (["tokenize", "a.png", "--source", "segmentation", "--masks", "a.png"], "a.png is not a whole Parquet file"),
        (["tokenize", "a.png", "--source", "combined", "--masks", "a.png", "--ladder"], "--ladder is for making masks, not for a store of them"),
        (["tokenize", "a.png", "--source", "combined", "--ladder", "--points-per-side", "9"], "--points-per-side is set by every step of the ladder"),
        (["tokenize", "a.png", "--source", "combined", "--masks", "felzenszwalb", "--padding", "keep"], "padding='keep' is not for source='combined'"),
        (["masks", "a.png", "--out", "m", "--masks", "felzenszwalb", "--mosaic", "2"], "--mosaic is for SAM's masks"),
        (["tokenize", "a.png", "--masks", "sam2"], "--masks is for --source segmentation and combined"),
        (["masks", "a.png", "--out", "m", "--batch", "0"], "--batch must be at least 1; got 0"),
        (["masks", "a.png", "--out", "m", "--masks", "sam9"], "name must be one of 'sam2'"),
        (["masks", "empty", "--out", "m", "--masks", "felzenszwalb"], "empty: there is no image in it"),
        (["masks", "a.png", "--out", "a.png/m", "--masks", "felzenszwalb"], "a.png/m must be a folder that can be made"),
        (["count", "a.png", "--sources", "patch", "--threshold", "0.2"], "--threshold is for the source clustering"),
        (["count", "a.png", "--sources", "patch", "--tokens", "9"], "--tokens is for the source clustering"),
        (["count", "a.png", "--tokens", "9", "--mask-weight", "1"], "--mask-weight is for masks with --tokens or --keep"),
        (["count", "a.png", "--masks", "felzenszwalb", "--tokens", "9", "--mask-weight", "-1"], "--mask-weight must be at least 0; got -1.0"),
        (["compare", "a.png", "--mask-weight", "1"], "--mask-weight is for masks"),
        (["count", "a.png", "--out", "c.xyz"], "c.xyz: a figure must be one of .*png"),
        (["masks", "a.png", "--out", "m", "--masks", "sam2-pipeline", "--mosaic", "2"], "--mosaic is for sam2 and sam3"),
        (["masks", "a.png", "--out", "m", "--masks", "sam2-pipeline", "--ladder"], "--ladder is for sam2, sam3 and sam2-package"),
        (["count", "a.png", "--sources", "combined"], "--sources combined needs --masks"),
        (["count", "a.png", "--sources", "patch", "--masks", "felzenszwalb"], "--masks and its options are for the sources segmentation and combined"),
        (["count", "a.png", "--out", "no/c.png"], "no/c.png cannot be written: there is no folder no"),
    ],
)  # fmt: skip
def test_commands_that_cannot_run_say_why(images, capsys, arguments, message):
    shutil.copy(images / "a.png", "a.png")
    (images.parent / "empty").mkdir()
    assert main(arguments) == 2
    assert re.search(message, capsys.readouterr().err)
