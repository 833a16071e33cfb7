"""The command line where stores are filled, continued and told of."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from regiontok import encoders, load_tokens, read_image
from regiontok.cli import main
from regiontok.cli.values import RunChoice
from regiontok.cli.write_store import _Progress
from regiontok.pipeline import ListedImage
from regiontok.regionizer import Regionizer
from regiontok.store import MaskStore, TokenStore
from regiontok.store.writer import read_contents
from tests.conftest import assert_close
from tests.pipeline.test_listing import draw

MASKS = ["--masks", "felzenszwalb"]
COMMAND = [sys.executable, "-m", "regiontok"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a.png", "b.png", "sub/a.png", "sub/c.jpg")):
        draw(tmp_path / "images" / name, number, size=(40 + number, 30))
    return tmp_path


def test_a_store_has_the_same_tokens_as_files(here, capsys):
    options = ["--num-regions", "9", "--order", "area"]
    assert main(["tokenize", "images", "--store", "t", "--dtype", "float32", *options]) == 0
    assert capsys.readouterr().out == "4 images, 9 tokens each (9) -> t\n"
    assert main(["tokenize", "images", "--out", "files", "--no-pictures", *options]) == 0
    assert not list((here / "files").rglob("*.png"))
    store = TokenStore("t")
    assert list(store) == ["a.png", "b.png", "sub/a.png", "sub/c.jpg"]
    for key in store:
        expected = load_tokens((here / "files" / key).with_suffix(".regions.safetensors"))
        assert_close(store[key].values, expected.values)
        assert torch.equal(store[key].regions.labels(), expected.regions.labels())
    assert store.provenance["regionizer"]["num_regions"] == 9
    assert store.provenance["dtype"] == "float32"
    assert not (here / "t" / "_pictures").exists()


def test_pictures_of_a_store(here):
    assert main(["tokenize", "images", "--store", "t", "--pictures"]) == 0
    found = sorted(one.relative_to(here / "t" / "_pictures").as_posix() for one in (here / "t").rglob("*.png"))
    assert found == ["a.png.regions.png", "b.png.regions.png", "sub/a.png.regions.png", "sub/c.jpg.regions.png"]
    assert main(["tokenize", "images", "--out", "files"]) == 0
    drawn, alone = Image.open(here / "t/_pictures/sub/c.jpg.regions.png"), Image.open(here / "files/sub/c.regions.png")
    assert np.array_equal(np.asarray(drawn), np.asarray(alone))


def test_masks_of_a_store_reach_its_tokens(here):
    assert main(["masks", "images", *MASKS, "--out", "m"]) == 0
    base = ["tokenize", "images", "--source", "segmentation", "--dtype", "float32"]
    assert main([*base, "--masks", "m", "--store", "stored"]) == 0
    assert main([*base, *MASKS, "--store", "made"]) == 0
    stored, made = TokenStore("stored"), TokenStore("made")
    for key in made:
        assert_close(stored[key].values, made[key].values)
    assert stored.provenance == made.provenance
    assert made.provenance["masks"]["generator"] == "felzenszwalb"
    image = read_image("images/sub/a.png")
    encoder = encoders.load("pixels")
    features, valid = encoder(image)
    regionizer = Regionizer(source="segmentation", pool="mean", geometry=encoder.geometry)
    expected = regionizer(features, masks=[MaskStore("m")["sub/a.png"]], valid=valid)
    assert_close(stored["sub/a.png"].values, expected.values)


def test_the_same_command_resumes_and_reports_finished_images(here, capsys):
    arguments = ["masks", "images", *MASKS, "--out", "m"]
    assert main([*arguments, "--limit", "1"]) == 0
    assert main(arguments) == 0
    assert re.search(r"3 images, .* -> m; 1 were finished before\n", capsys.readouterr().out)
    before = {one.name: one.read_bytes() for one in (here / "m").glob("*.parquet")}
    assert main(arguments) == 0
    assert capsys.readouterr().out == "Nothing to do: all 4 images are in m.\n"
    assert {one.name: one.read_bytes() for one in (here / "m").glob("*.parquet")} == before
    draw(here / "images" / "d.png")
    assert main(arguments) == 0
    assert "d.png" in MaskStore("m")
    assert main([*arguments, "--overwrite"]) == 0
    assert len(MaskStore("m").shards) == 1


def test_failures_are_listed_stored_and_retried_on_request(here, capsys):
    (here / "images" / "a.png").write_bytes(b"no image")
    arguments = ["tokenize", "images", "--store", "t"]
    assert main(arguments) == 1
    told = capsys.readouterr().err
    assert "a.png: not an image that Pillow" in told
    assert "1 of 4 images failed and are named above." in told
    assert main(arguments) == 1
    assert "1 images failed before and were skipped. Retry them with --retry-failed." in capsys.readouterr().err
    draw(here / "images" / "a.png")
    assert main([*arguments, "--retry-failed"]) == 0
    assert TokenStore("t").failures == {}
    assert main(arguments) == 0


def test_an_image_with_stored_masks_of_another_size_fails(here, capsys):
    assert main(["masks", "images", *MASKS, "--out", "m"]) == 0
    draw(here / "images" / "b.png", size=(20, 20))
    assert main(["tokenize", "images", "--source", "segmentation", "--masks", "m", "--store", "t"]) == 1
    assert "b.png: masks in m are for an image of 30 x 41; this one has 20 x 20. Make the masks again." in capsys.readouterr().err  # fmt: skip
    assert list(TokenStore("t")) == ["a.png", "sub/a.png", "sub/c.jpg"]


def test_a_store_of_another_folder_is_rejected_for_writing_and_warned_of_for_reading(here, capsys):
    shutil.copytree("images", "other")
    assert main(["masks", "images", *MASKS, "--out", "m"]) == 0
    assert main(["masks", "other", *MASKS, "--out", "m"]) == 2
    assert "m: it was made from images in images, and these are in other. Their keys would be mixed up" in capsys.readouterr().err  # fmt: skip
    base = ["tokenize", "--source", "segmentation", "--masks", "m", "--no-pictures", "--out"]
    assert main([*base, "o1", "other/a.png"]) == 0
    assert "m was made from images in another folder; other/a.png is assumed to be 'a.png'" in capsys.readouterr().err
    assert main([*base, "o2", "other/a.png", "--root", "other"]) == 0
    assert main([*base, "o3", "images/sub/a.png"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["masks", "other", *MASKS, "--out", "m", "--root", "other"]) == 0
    assert "all 4 images are in m" in capsys.readouterr().out


def test_masks_missing_in_a_store_are_generated_on_request(here, capsys):
    assert main(["masks", "images/sub", *MASKS, "--out", "m", "--root", "images"]) == 0
    base = ["tokenize", "images", "--source", "segmentation", "--masks", "m", "--no-pictures"]
    assert main(base) == 1
    assert "images/a.png: m has no masks of 'a.png'. Its keys look like 'sub/a.png'." in capsys.readouterr().err
    assert main([*base, "--missing", "felzenszwalb"]) == 0
    assert main([*base, "--missing", "felzenszwalb", "--store", "t"]) == 0
    assert len(TokenStore("t")) == 4
    assert main(["tokenize", "images", "--source", "segmentation", *MASKS, "--missing", "sam2"]) == 2
    assert "--missing requires masks of a store" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["count", "compare"])
def test_other_commands_read_masks_from_stores(here, command):
    assert main(["masks", "images", *MASKS, "--out", "m"]) == 0
    assert main([command, "images", "--masks", "m", "--out", "figure.png", *(["--num-regions", "4"] * (command == "compare"))]) == 0  # fmt: skip


def test_slices_write_to_one_store(here, capsys, monkeypatch):
    for rank in range(3):
        assert main(["masks", "images", *MASKS, "--out", "m", "--slice", f"{rank}/3"]) == 0
    store = MaskStore("m")
    assert sorted(store) == ["a.png", "b.png", "sub/a.png", "sub/c.jpg"]
    assert {name.split("-")[1] for name in store.shards} <= {"00000", "00001", "00002"}
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "4")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    assert main(["masks", "images", *MASKS, "--out", "s", "--slice", "slurm"]) == 0
    monkeypatch.setenv("SLURM_ARRAY_TASK_MAX", "9")
    assert main(["masks", "images", *MASKS, "--out", "s", "--slice", "slurm"]) == 2
    assert "this Slurm array has gaps" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert main(["masks", "images", *MASKS, "--out", "t", "--slice", "torchrun"]) == 0
    assert list(MaskStore("s")) == list(MaskStore("t"))
    assert MaskStore("s").shards == MaskStore("t").shards


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--shard-minutes", "0"], "--shard-minutes must be positive; got 0.0"),
        (["--address", "auto"], "--address requires --engine ray"),
        (["--cpus", "2"], "--cpus requires --engine ray"),
        (["--slice", "3/3"], "--slice must be R/N with R from 0 to N - 1; got 3/3"),
        (["--slice", "x"], "--slice must be R/N such as 0/4, or torchrun or slurm"),
        (["--slice", "slurm"], "--slice must be R/N such as 0/4, or torchrun or slurm"),
        (["--slice", "0/2", "--overwrite"], "--overwrite would remove the rows that --slice and --mixed keep"),
        (["--slice", "0/2", "--engine", "ray"], "--slice divides images"),
        (["--root", "elsewhere"], "is not in .*elsewhere, which keys are relative to"),
        (["--csv", "x.csv"], "--csv requires --out. For a store use regiontok store t --stats"),
        (["--pictures", "--store", "memory://t"], "--pictures needs a store in a local folder"),
    ],
)
def test_invalid_options_are_rejected_before_any_work(here, capsys, monkeypatch, more, message):
    for name in ("SLURM_ARRAY_TASK_ID", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    store = [] if "--store" in more else ["--store", "t"]
    assert main(["tokenize", "images", *store, *more]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (here / "t").exists()


@pytest.mark.parametrize(
    "given", [["--shard-size", "3"], ["--retry-failed"], ["--dtype", "float32"], ["--slice", "0/2"]]
)
def test_options_of_a_store_are_rejected_without_one(here, capsys, given):
    assert main(["tokenize", "images", *given]) == 2
    assert f"{given[0]} requires --store" in capsys.readouterr().err


def test_a_store_with_other_options_is_rejected_mixed_or_overwritten(here, capsys):
    base = ["tokenize", "images", "--store", "t"]
    assert main(base) == 0
    assert main([*base, "--num-regions", "5"]) == 2
    assert "regionizer.num_regions: not set in the store, 5 now" in capsys.readouterr().err
    draw(here / "images" / "e.png")
    assert main([*base, "--num-regions", "5", "--mixed"]) == 0
    assert TokenStore("t").count("e.png") == 5
    assert main([*base, "--num-regions", "5", "--overwrite"]) == 0
    assert {TokenStore("t").count(key) for key in TokenStore("t")} == {5}


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_writes_finished_rows_and_explains_how_to_resume(here, number, code):
    for image in range(116):
        shutil.copy("images/sub/c.jpg", f"images/{image}.jpg")
    arguments = ["tokenize", "images", "--store", "t", "--batch-size", "1", "--shard-size", "20"]
    with subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        while not list((here / "t").glob("part-*.parquet")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.05)  # for rows of the next shard
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    assert "stopped; finished rows are in t. Run the same command again to continue." in told
    assert "Traceback" not in told
    there = len(TokenStore("t"))
    assert 20 <= there < 120
    assert main(arguments) == 0
    assert len(TokenStore("t")) == 120
    assert TokenStore("t").repeated == 0


def test_a_store_that_is_being_written_is_rejected(here, capsys):
    code = (
        "import sys; from regiontok.store import Manifest, StoreWriter; "
        "w = StoreWriter('m', Manifest(kind='masks', provenance={'generator': 'felzenszwalb'}), mixed=True); "
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as one:
        one.stdout.readline()
        assert main(["masks", "images", *MASKS, "--out", "m", "--mixed"]) == 2
        assert f"m is being written by process {one.pid} on" in capsys.readouterr().err


def test_a_store_is_described_verified_exported_and_repaired(here, capsys):
    assert main(["masks", "images", *MASKS, "--out", "m", "--shard-size", "2"]) == 0
    capsys.readouterr()
    assert main(["store", "m"]) == 0
    told = capsys.readouterr().out
    assert "MaskStore('m', 4 images, 2 shards)" in told
    assert 'made by: {"generator": "felzenszwalb"' in told
    assert main(["store", "m", "--stats"]) == 0
    stats = json.loads(capsys.readouterr().out)
    assert stats["images"] == 4
    assert stats["masks"] == sum(len(masks) for masks in MaskStore("m").values())
    assert main(["store", "m", "--verify"]) == 0
    assert "is complete; 0 images failed" in capsys.readouterr().out
    shard = here / "m" / "part-00000-000001.parquet"
    whole = bytearray(shard.read_bytes())
    counts = pq.ParquetFile(shard).metadata.row_group(0).column(3)
    whole[counts.data_page_offset + counts.total_compressed_size - 9] ^= 255
    shard.write_bytes(whole)
    assert main(["store", "m", "--verify"]) == 1
    assert "2 rows and 0 shards are damaged. Rename their files with --repair" in capsys.readouterr().err
    assert main(["store", "m", "--export", "npz", "--out", "x"]) == 1
    told = capsys.readouterr()
    assert "2 images -> x" in told.out
    assert "sub/a.png: m/part-00000-000001.parquet is damaged" in told.err
    assert main(["store", "m", "--export", "jsonl", "--out", "x"]) == 1
    assert "2 images -> x/annotations.jsonl" in capsys.readouterr().out
    (here / "m" / "_failed-00000-000009.parquet").write_bytes(b"PAR1")
    assert main(["store", "m", "--repair"]) == 0
    assert "2 files of m are damaged. Process their images again." in capsys.readouterr().out
    assert main(["masks", "images", *MASKS, "--out", "m"]) == 0
    assert main(["store", "m", "--verify"]) == 0
    assert len(MaskStore("m")) == 4


@pytest.mark.filterwarnings("ignore:a shard is damaged")
def test_images_of_a_damaged_shard_are_processed_again(here, capsys):
    arguments = ["masks", "images", *MASKS, "--out", "m", "--shard-size", "2"]
    assert main(arguments) == 0
    (here / "m" / "part-00000-000000.parquet").write_bytes(b"PAR1")
    assert main(["store", "m", "--verify"]) == 1
    assert main(arguments) == 0
    assert "It is renamed to _part-00000-000000.parquet.damaged" in capsys.readouterr().err
    assert len(MaskStore("m")) == 4
    assert main(arguments) == 0
    assert capsys.readouterr().err == ""
    (here / "m" / "_failed-00000-000003.parquet").write_bytes(b"PAR1")
    assert main(arguments) == 0
    assert "m/_failed-00000-000003.parquet is damaged. It is renamed to" in capsys.readouterr().err


def test_an_export_writes_only_below_its_folder(here, capsys):
    assert main(["masks", "images", *MASKS, "--out", "m", "--limit", "2"]) == 0
    (shard,) = (here / "m").glob("part-*")
    table = pq.read_table(shard)
    pq.write_table(table.set_column(0, "key", pa.array(["../../escaped", str(here / "absolute")])), shard)
    for kind in ("npz", "safetensors"):
        assert main(["store", "m", "--export", kind, "--out", "x/y"]) == 1
        assert "a key must be a path below" in capsys.readouterr().err
    assert not [one for one in here.rglob("*") if "escaped" in one.name or "absolute" in one.name]


def test_a_store_without_its_manifest_is_rejected(here, capsys):
    arguments = ["tokenize", "images", "--store", "t"]
    assert main(arguments) == 0
    (here / "t" / "_store.json").unlink()
    assert main([*arguments, "--num-regions", "5"]) == 2
    assert "t has shards but no _store.json, which describes how they were made." in capsys.readouterr().err
    assert main([*arguments, "--num-regions", "5", "--overwrite"]) == 0
    assert {TokenStore("t").count(key) for key in TokenStore("t")} == {5}
    (here / "t" / "_store.json").write_text("{")
    assert main(arguments) == 2
    assert "or replace the store with --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    assert len(TokenStore("t")) == 4


def test_images_that_share_annotations_fail_in_every_slice(here, capsys):
    images = [{"id": 0, "file_name": "a.png", "height": 30, "width": 40}]
    polygon = {"id": 1, "image_id": 0, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}
    (here / "i.json").write_text(json.dumps({"images": images, "annotations": [polygon]}))
    arguments = ["masks", "images", "--coco", "i.json", "--out", "m"]
    for rank in range(4):
        assert main([*arguments, "--slice", f"{rank}/4"]) in (0, 1)
    assert main([*arguments, "--retry-failed"]) == 1
    assert "a.png already belongs to images/a.png" in capsys.readouterr().err
    store = MaskStore("m")
    assert {key: len(masks) for key, masks in store.items()} == {"a.png": 1, "b.png": 0, "sub/c.jpg": 0}


def test_folders_with_the_same_name_are_rejected_by_stores_only(here, capsys):
    for folder in ("one", "two"):
        shutil.copytree("images", f"{folder}/x")
    assert main(["tokenize", "one/x", "two/x", "--source", "segmentation", *MASKS, "--no-pictures"]) == 0
    assert main(["masks", "one/x", "two/x", *MASKS, "--out", "m"]) == 2
    assert "two image folders have the name x" in capsys.readouterr().err


def test_a_missing_image_creates_no_store(here, capsys):
    assert main(["masks", "phtos", *MASKS, "--out", "m"]) == 2
    assert "phtos: there is no such file or folder" in capsys.readouterr().err
    assert not (here / "m").exists()


def test_rows_are_exported_to_other_formats(here, capsys):
    assert main(["masks", "images", *MASKS, "--out", "m"]) == 0
    assert main(["tokenize", "images", "--store", "t"]) == 0
    masks, tokens = MaskStore("m"), TokenStore("t")
    for kind in ("npz", "safetensors", "jsonl"):
        assert main(["store", "m", "--export", kind, "--out", kind]) == 0
    loaded = np.load(here / "npz" / "sub" / "a.png.npz")
    assert np.array_equal(loaded["masks"], masks["sub/a.png"].masks().numpy())
    lines = [json.loads(line) for line in (here / "jsonl" / "annotations.jsonl").read_text().splitlines()]
    assert len(lines) == sum(map(len, masks.values()))
    assert lines[0]["segmentation"]["counts"].encode() == masks["a.png"].to_coco()[0]["counts"]
    assert main(["store", "t", "--export", "safetensors", "--out", "st"]) == 0
    back = load_tokens(here / "st" / "sub" / "a.png.safetensors")
    assert torch.equal(back.values, tokens["sub/a.png"].values)
    assert main(["store", "t", "--export", "npz", "--out", "tn"]) == 0
    assert np.array_equal(np.load(here / "tn" / "a.png.npz")["tokens"], tokens["a.png"].values.numpy())
    for arguments, message in (
        (["store", "t", "--export", "jsonl", "--out", "x"], "--export jsonl requires masks"),
        (["store", "t", "--export", "npz"], "--export KIND and --out DIR belong together"),
        (["store", "t", "--out", "x"], "--export KIND and --out DIR belong together"),
        (["store", "none"], "there is no store of masks in none"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_remote_images_and_stores(here, s3):
    files = fsspec.filesystem("s3")
    files.put("images", f"{s3}/images", recursive=True)
    assert main(["masks", f"{s3}/images", *MASKS, "--out", f"{s3}/masks"]) == 0
    assert main(["masks", "images", *MASKS, "--out", "m"]) == 0
    there, local = MaskStore(f"{s3}/masks"), MaskStore("m")
    assert list(there) == list(local)
    assert all(there[key].to_coco() == local[key].to_coco() for key in local)
    arguments = ["tokenize", f"{s3}/images", "--source", "segmentation", "--masks", f"{s3}/masks", "--store", f"{s3}/t"]
    assert main(arguments) == 0
    assert list(TokenStore(f"{s3}/t")) == list(local)
    assert main([*arguments, "--limit", "1"]) == 0
    assert main(["store", f"{s3}/t", "--verify"]) == 0


def test_ray_resumes_a_local_run_and_a_local_run_resumes_ray(here, monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    base = ["tokenize", "images", "--store", "t"]
    assert main([*base, "--limit", "1"]) == 0
    done = subprocess.run([*COMMAND, *base, "--engine", "ray"], capture_output=True, text=True, check=False, env=os.environ)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 images, " in done.stdout
    assert "1 were finished before" in done.stdout
    assert main(base) == 0
    assert (len(TokenStore("t")), TokenStore("t").repeated) == (4, 0)


def test_the_images_are_counted_ahead_of_the_run(tmp_path):
    """The total of the progress bar is known before the images are processed."""
    images = [ListedImage(f"{number:04d}", f"/p/{number:04d}") for number in range(5000)]
    progress = _Progress(RunChoice(limit=4000), read_contents(tmp_path / "s"), images)
    with progress:
        for _ in range(100):
            if progress._is_listed:
                break
            time.sleep(0.1)
        assert (progress._bar.total, progress._is_listed) == (4000, True)
