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
def test_tokenize_with_masks_writes_the_tokens_of_the_library(images, source):
    assert main(["tokenize", "images/a.png", "--source", source, "--masks", "felzenszwalb", "--norm", "none"]) == 0
    tensors, config = read("regiontok-out/a.regions.safetensors")
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
    with Image.open("regiontok-out/a.regions.png") as picture:
        assert picture.size == (2 * 160 + 16, 107)


def test_masks_of_a_model_are_stored_and_read(images, sam, capsys):
    assert main(["masks", "images", "--out", "m", "--batch-size", "2", *sam]) == 0
    assert "3 images, " in capsys.readouterr().out
    store = MaskStore("m")
    assert list(store) == ["a.png", "b.jpg", "inner/c.png"]
    assert store.provenance["generator"] == "sam2"
    assert store.provenance["settings"][0]["points_per_side"] == 3
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
    (file, _), (direct, _) = (read(f"{out}/b.regions.safetensors") for out in ("file", "direct"))
    assert abs(len(file["tokens"]) - len(direct["tokens"])) <= 3
    covered = [tensors["masks"].float().mean(0) for tensors in (file, direct)]
    assert (covered[0] - covered[1]).abs().mean() < 0.1


def test_all_options_of_masks_reach_the_regionizer(images):
    options = ["--min-coverage", "0.5", "--unassigned", "background", "--overlap", "assign_smallest", "--order", "area"]
    options += ["--downsampling", "two_step"]
    combined = ["--eps", "0.3", "--min-samples", "2", "--split-min-patches", "4", "--noise", "drop"]
    base = ["tokenize", "images/a.png", "--masks", "felzenszwalb", "--source"]
    assert main([*base, "combined", *options, *combined]) == 0
    config = read("regiontok-out/a.regions.safetensors")[1]["regionizer"]
    given = {
        "min_coverage": 0.5, "downsampling": "two_step", "unassigned": "background", "overlap": "assign_smallest", "order": "area",
        "eps": 0.3, "min_samples": 2, "split_min_patches": 4, "noise": "drop",
    }  # fmt: skip
    assert {name: config[name] for name in given} == given
    assert main([*base, "segmentation", "--unassigned", "cluster", "--threshold", "0.4", "--out", "o"]) == 0
    assert read("o/a.regions.safetensors")[1]["regionizer"]["threshold"] == 0.4


def test_masks_without_a_region_are_reported(images, capsys):
    masks_of_a = np.zeros((2, 107, 160), bool)
    masks_of_a[0, 0, 0] = True
    write_masks("m", [("a.png", MaskSet.from_masks(masks_of_a))])
    assert main(["tokenize", "images/a.png", "--source", "segmentation", "--masks", "m"]) == 0
    printed = capsys.readouterr().out
    assert "images/a.png: 1 mask became no region: covers no patch by more than 0.07" in printed
    assert "images/a.png: 1 mask became no region: is outside the part of the image that the encoder sees" in printed
    assert "images/a.png: no mask is left; one region of the whole image" in printed
    assert read("regiontok-out/a.regions.safetensors")[1]["fallback"] is True


def test_images_without_masks_or_with_masks_of_another_size_fail(images, capsys):
    assert main(["masks", "images/a.png", "images/b.jpg", "--masks", "felzenszwalb", "--out", "m"]) == 0
    shutil.copy(images / "inner" / "c.png", images / "a.png")
    arguments = [f"images/{name}" for name in ("a.png", "b.jpg", "inner/c.png")]
    assert main(["tokenize", *arguments, "--root", "images", "--source", "segmentation", "--masks", "m"]) == 1
    told = capsys.readouterr().err
    assert "images/a.png: masks in m are for an image of 107 x 160; this one has 60 x 60. Make the masks again." in told
    assert "images/inner/c.png: m has no masks of 'inner/c.png'. Its keys look like 'a.png'." in told
    assert "2 of 3 images failed" in told
    assert read("regiontok-out/b.regions.safetensors")


def test_a_failed_image_does_not_affect_the_others_of_its_batch(images, monkeypatch, capsys):
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
    assert "broken.jpg: damaged or truncated" in told
    assert "2 of 4 images failed" in told
    assert list(MaskStore("m")) == ["a.png", "inner/c.png"]


def test_existing_rows_and_images_are_not_overwritten(images, capsys):
    base = ["--masks", "felzenszwalb", "--out"]
    assert main(["masks", "images/a.png", "images", *base, "m"]) == 0
    assert len(MaskStore("m")) == 3
    (images / "broken.png").write_bytes(b"no image")
    assert main(["masks", "images/broken.png", *base, "m"]) == 1
    assert "broken.png: not an image" in capsys.readouterr().err
    assert len(MaskStore("m")) == 3
    before = (images / "a.png").read_bytes()
    for out, told in (("images/a.png", "images/a.png is a file, but a store is a folder"), ("images", "images is not a store")):  # fmt: skip
        assert main(["masks", "images/a.png", *base, out]) == 2
        assert told in capsys.readouterr().err
    assert (images / "a.png").read_bytes() == before


def test_masks_of_a_mosaic_of_images(images, sam):
    assert main(["masks", "images", "--out", "m", "--mosaic", "2", *sam]) == 0
    store = MaskStore("m")
    assert store.provenance["mosaic"] == 2
    assert [store[key].size for key in store] == [(107, 160), (160, 107), (60, 60)]


def test_count_prints_and_draws_the_distribution_next_to_the_papers_mean(images, capsys, monkeypatch):
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


def test_budgets_reach_sources_with_masks(images, capsys):
    command = ["count", "images/a.png", "--masks", "felzenszwalb", "--num-regions", "12", "--mask-weight", "inf"]
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
    command = ["compare", "images/a.png", "--masks", "felzenszwalb", "--num-regions", "8", "20"]
    assert main([*command, "--mask-weight", "0", "--out", "c.png"]) == 0
    table = [line.split("  ")[0].strip() for line in capsys.readouterr().out.splitlines()]
    assert table.count("combined") == table.count("segmentation") == 2
    assert table.count("combined (no budget)") == table.count("segmentation (no budget)") == 1
    told = json.loads(Path("c.png.json").read_text(encoding="utf-8"))
    assert told["mask_weight"] == 0
    scores = {(row["source"], row["budget"]): row["num_regions"] for row in told["mean"]}
    assert scores["combined", 8] == scores["ward", 8] == 8


def test_count_reports_lost_masks_and_ignores_its_own_figures(images, capsys, monkeypatch):
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
        assert "segmentation: 6 masks became no region; 3 images had no mask left" in printed


def test_count_skips_failed_images_and_sources_without_masks(images, capsys):
    (images / "broken.png").write_bytes(b"no image")
    assert main(["count", "images"]) == 1
    captured = capsys.readouterr()
    assert "Tokens per image: 3 images" in captured.out
    assert [line.split()[0] for line in captured.out.splitlines()[2:4]] == ["patch", "clustering"]
    assert "images/broken.png: not an image" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tokenize", "a.png", "--source", "segmentation"], "cannot load SAM weights 'facebook/sam2.1-hiera-large'"),
        (["tokenize", "a.png", "--masks", "m"], "--masks requires --source segmentation or combined; got clustering"),
        (["tokenize", "a.png", "--unassigned", "background"], "--unassigned requires the source segmentation or combined"),
        (["tokenize", "a.png", "--points-per-side", "9"], "--points-per-side requires masks of sam2, sam3, .*; got no masks"),
        (["tokenize", "a.png", "--source", "segmentation", "--masks", "felzenszwalb", "--eps", "0.5"], "--eps requires the source combined"),
        (["tokenize", "a.png", "--source", "segmentation", "--masks", "felzenszwalb", "--ladder"], "--ladder requires masks of sam2, .*; got felzenszwalb"),
        (["tokenize", "a.png", "--source", "segmentation", "--masks", "felzenszwalb", "--threshold", "0.5"], "--threshold requires the source clustering or --unassigned cluster"),
        (["tokenize", "a.png", "--source", "segmentation", "--masks", "sam9"], "--masks must be one of sam2, .*there is no sam9"),
        (["tokenize", "a.png", "--source", "segmentation", "--masks", "a.png"], "there is no store of masks in a.png"),
        (["tokenize", "a.png", "--source", "combined", "--masks", "a.png", "--ladder"], "--ladder requires masks of sam2, .*; got a store"),
        (["tokenize", "a.png", "--source", "combined", "--ladder", "--points-per-side", "9"], "--points-per-side is set by every step of --ladder"),
        (["tokenize", "a.png", "--source", "combined", "--masks", "felzenszwalb", "--padding", "keep"], "--padding keep is not for --source combined"),
        (["masks", "a.png", "--out", "m", "--masks", "felzenszwalb", "--mosaic", "2"], "--mosaic requires masks of sam2, sam3; got felzenszwalb"),
        (["tokenize", "a.png", "--masks", "sam2"], "--masks requires --source segmentation or combined"),
        (["masks", "empty", "--out", "m", "--masks", "felzenszwalb"], "empty: there is no image in it"),
        (["masks", "a.png", "--out", "a.png/m", "--masks", "felzenszwalb"], "a.png/m must be a folder"),
        (["count", "a.png", "--sources", "patch", "--threshold", "0.2"], "--threshold requires the source clustering"),
        (["count", "a.png", "--sources", "patch", "--num-regions", "9"], "--num-regions requires the source clustering"),
        (["count", "a.png", "--num-regions", "9", "--mask-weight", "1"], "--mask-weight requires masks with --num-regions or --keep"),
        (["count", "a.png", "--masks", "felzenszwalb", "--num-regions", "9", "--mask-weight", "-1"], "--mask-weight must be at least 0; got -1.0"),
        (["compare", "a.png", "--mask-weight", "1"], "--mask-weight requires masks"),
        (["count", "a.png", "--out", "c.xyz"], "c.xyz: a figure must be one of .*png"),
        (["masks", "a.png", "--out", "m", "--masks", "sam2-pipeline", "--mosaic", "2"], "--mosaic requires masks of sam2, sam3; got sam2-pipeline"),
        (["masks", "a.png", "--out", "m", "--masks", "sam2-pipeline", "--ladder"], "--ladder requires masks of sam2, sam3, sam2-package"),
        (["count", "a.png", "--sources", "combined"], "--sources combined needs --masks"),
        (["count", "a.png", "--sources", "patch", "--masks", "felzenszwalb"], "--masks requires the source segmentation or combined"),
        (["count", "a.png", "--out", "no/c.png"], "no/c.png cannot be written: there is no folder no"),
    ],
)  # fmt: skip
def test_invalid_options_are_explained(images, capsys, arguments, message):
    shutil.copy(images / "a.png", "a.png")
    (images.parent / "empty").mkdir()
    assert main(arguments) == 2
    assert re.search(message, capsys.readouterr().err)
