"""Videos on the command line and in stores."""

import io
import json
import pickle
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from regiontok import Regionizer, encoders, read_video
from regiontok.cli import main
from regiontok.errors import DataError, ImageError, ValueRangeError
from regiontok.pipeline import Listing, TokenizeJob, run_job
from regiontok.sampling import FrameSampling
from regiontok.store import Manifest, StoreWriter, TokenStore
from tests.test_videos import numbered, write

CLUSTERING = ["--num-regions", "12", "--linkage", "ward"]


@pytest.fixture
def films(tmp_path):
    """Two videos in subfolders, an animation, an image and a damaged video."""
    folder = tmp_path / "films"
    (folder / "old").mkdir(parents=True)
    write(folder / "a.mp4", numbered(20))
    write(folder / "old" / "b.mkv", numbered(10, (48, 64)))
    first, *others = numbered(6)
    first.save(folder / "c.gif", save_all=True, append_images=others, duration=100)
    first.save(folder / "frame.png")
    return folder


def parquet_of_bytes(values):
    file = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array(values, pa.binary())}), file)
    return file.getvalue()


def expected_tokens(path, **sampling):
    features, valid = encoders.load("pixels")(read_video(path, **sampling).frames)
    return Regionizer(pool="mean", num_regions=12, linkage="ward")(features[None], valid=valid[None])


def test_tokenize_writes_tokens_and_a_strip_for_each_video(films, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["tokenize", str(films), "--num-frames", "4", *CLUSTERING, "--out", str(out)]) == 0
    files = sorted(str(file.relative_to(out)) for file in out.rglob("*.*"))
    assert files == [f"{name}.regions.{kind}" for name in ("a", "c", "old/b") for kind in ("png", "safetensors")]
    expected = expected_tokens(films / "a.mp4", num_frames=4)
    with safe_open(out / "a.regions.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("tokens"), expected.values)
        assert torch.equal(file.get_tensor("labels"), expected.regions.labels()[0])
        config = json.loads(file.metadata()["config"])
    assert config["frames"] == {"indices": [0, 5, 10, 15], "times": [0.0, 0.5, 1.0, 1.5]}
    with Image.open(out / "a.regions.png") as strip:
        assert strip.width > 4 * 64
    assert "3 images, 12 regions each" in capsys.readouterr().out


def test_a_store_of_videos_is_resumed_and_names_damaged_videos(films, tmp_path, capsys):
    (films / "bad.mp4").write_bytes(b"no video")
    command = ["tokenize", str(films), "--fps", "2", *CLUSTERING, "--store", str(tmp_path / "tokens"), "--pictures"]
    assert main(command) == 1
    assert "bad.mp4: it cannot be read as a video" in capsys.readouterr().err
    store = TokenStore(tmp_path / "tokens")
    assert sorted(store) == ["a.mp4", "c.gif", "old/b.mkv"]
    for key in store:
        expected = expected_tokens(films / key, fps=2)
        tokens = store[key]
        assert torch.equal(tokens.values, expected.values.half().float().to(tokens.values))
        assert torch.equal(tokens.regions.labels(), expected.regions.labels())
    assert store.manifest.provenance["frames"] == {"fps": 2.0}
    assert (tmp_path / "tokens" / "_pictures" / "old" / "b.mkv.regions.png").is_file()
    assert main(command) == 1
    assert "Nothing to do: all 3 images are in" in capsys.readouterr().out
    assert main([*command[:2], "--num-frames", "3", *command[4:]]) == 2  # other frames
    assert "frames" in capsys.readouterr().err


def test_the_regions_of_a_video_are_drawn_as_a_strip_and_as_an_animation(films, tmp_path, capsys):
    command = ["figures", "regions", str(films / "a.mp4"), "--num-frames", "5", *CLUSTERING]
    for name in ("strip.png", "clip.gif", "clip.webp"):
        assert main([*command, "--out", str(tmp_path / name)]) == 0
        with Image.open(tmp_path / name) as figure:
            assert getattr(figure, "n_frames", 1) == (1 if name == "strip.png" else 5)
    assert "5 frames" in capsys.readouterr().out
    assert main([*command, "--masks", "felzenszwalb", "--out", str(tmp_path / "x.png")]) == 2
    assert "the regions of a video are from clustering" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "there is no image in it. Videos need a sampling of frames"),
        (["--num-frames", "3", "--fps", "2"], "--num-frames and --fps exclude each other"),
        (["--num-frames", "3", "--source", "segmentation"], "videos need --tracks DIR"),
        (["--fps", "-1"], "fps must be a positive number"),
    ],
)
def test_options_that_videos_cannot_have_are_rejected(films, options, message, capsys):
    for file in (films / "frame.png", films / "c.gif"):
        file.unlink()
    assert main(["tokenize", str(films), *options]) == 2
    assert message in capsys.readouterr().err


def test_listings_of_videos(films, tmp_path):
    sampling = FrameSampling(num_frames=3)
    listing = Listing([films], frames=sampling)
    assert [video.key for video in listing] == ["a.mp4", "c.gif", "old/b.mkv"]
    video = listing.reader().read_video(next(iter(listing)))
    assert video.indices == [0, 6, 13]
    remote = Listing([f"file://{films}/old"], frames=sampling)
    assert [video.key for video in remote] == ["b.mkv"]
    with pytest.raises(ValueRangeError, match="this listing is of images"):
        Listing([films]).read_video(next(iter(listing)))
    (films / "none").mkdir()
    with pytest.raises(ImageError, match="there is no video in it"):
        Listing([films / "none"], frames=sampling)
    Path(tmp_path / "all.parquet").write_bytes(parquet_of_bytes([(films / "frame.png").read_bytes()]))
    with pytest.raises(ValueRangeError, match="videos are read from files and tars only"):
        Listing([tmp_path / "all.parquet"], frames=sampling)


def test_videos_in_tars(films, tmp_path):
    (films / "bad.mp4").write_bytes(b"no video")
    shutil.make_archive(str(tmp_path / "all"), "tar", films)
    listing = Listing([tmp_path / "all.tar"], frames=FrameSampling(num_frames=3))
    found = {video.key: video for video in listing}
    assert sorted(found) == ["all.tar/a.mp4", "all.tar/bad.mp4", "all.tar/c.gif", "all.tar/old/b.mkv"]
    reader = pickle.loads(pickle.dumps(listing.reader()))
    expected = read_video(films / "old" / "b.mkv", num_frames=3)
    video = reader.read_video(found["all.tar/old/b.mkv"])
    assert (video.times, video.frames[2].tobytes()) == (expected.times, expected.frames[2].tobytes())
    with pytest.raises(DataError, match=r"all.tar/bad.mp4: it cannot be read as a video"):
        reader.read_video(found["all.tar/bad.mp4"])


def test_folders_of_frames_are_videos(films, tmp_path, capsys):
    """As in DAVIS: a folder per video."""
    for name in ("bear", "old/cat"):
        (films / name).mkdir()
        for number, frame in enumerate(numbered(6)):
            frame.save(films / name / f"{number:05d}.png")
    sampling = FrameSampling(num_frames=3)
    listing = Listing([films], frames=sampling)
    assert [video.key for video in listing] == ["a.mp4", "bear", "c.gif", "old/b.mkv", "old/cat"]
    read = {video.key: listing.reader().read_video(video) for video in listing}
    assert (read["bear"].indices, len(read["old/cat"].frames)) == ([0, 2, 4], 3)
    for paths in ([films / "bear"], [f"{films}/b*"], [f"{films / 'bear'}/"]):
        assert [video.key for video in Listing(paths, frames=sampling)] == ["bear"]
    assert [image.key for image in Listing([films / "bear"])][:2] == ["00000.png", "00001.png"], "without sampling"
    (films / "bear" / "more").mkdir()
    assert [video.key for video in Listing([films], frames=sampling)] == ["a.mp4", "c.gif", "old/b.mkv", "old/cat"]
    command = ["tokenize", str(films / "old"), "--num-frames", "3", "--num-regions", "12", "--linkage", "ward"]
    assert main([*command, "--store", str(tmp_path / "tokens")]) == 0
    assert main([*command, "--store", str(tmp_path / "tokens")]) == 0
    assert "Nothing to do: all 2" in capsys.readouterr().out
    stored = TokenStore(tmp_path / "tokens")["cat"]
    assert torch.equal(stored.regions.labels(), expected_tokens(films / "old" / "cat", num_frames=3).regions.labels())


def test_remote_videos_are_copied_to_be_read(films):
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    for name in ("a.mp4", "bad.mp4"):
        files.pipe(f"/films/{name}", (films / "a.mp4").read_bytes() if name == "a.mp4" else b"no video")
    good, bad = Listing(["memory://films"], frames=FrameSampling(num_frames=2))
    reader = Listing(["memory://films"], frames=FrameSampling(num_frames=2)).reader()
    assert reader.read_video(good).indices == [0, 10]
    with pytest.raises(DataError, match=r"^memory://films/bad.mp4: it cannot be read as a video"):
        reader.read_video(bad)
    files.rm("/films", recursive=True)


def test_masks_of_videos_are_rejected(films, tmp_path):
    listing = Listing([films / "a.mp4"], frames=FrameSampling(num_frames=2))
    job = TokenizeJob(encoders.load("pixels"), Regionizer(pool="mean"), masks=lambda image, pixels: None)
    with StoreWriter(tmp_path / "tokens", Manifest(kind="tokens", provenance={})) as writer:
        failures = []
        run_job(writer, listing, listing, job, batch_size=1, num_readers=1, on_batch=lambda batch: failures.extend(batch.failures))  # fmt: skip
    assert "masks are for images" in failures[0].reason


def test_compare_measures_frames_and_whole_clips(films, tmp_path, capsys):
    command = ["compare", str(films), "--num-frames", "4", "--num-regions", "8", "16", "--out", str(tmp_path / "c.png")]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "3 videos, pixels" in output
    assert [output.count(source) for source in ("ward per frame", "motion 0", "motion 2")] == [2, 2, 2]
    details = json.loads((tmp_path / "c.png.json").read_text())
    assert sorted(details["videos"]) == [str(films / name) for name in ("a.mp4", "c.gif", "old/b.mkv")]
    assert main([*command[:5], "3", *command[7:]]) == 1  # fewer than frames
    assert "budgets must be at least one region per frame, 4; got 3" in capsys.readouterr().err
    assert main([*command, "--masks", "felzenszwalb"]) == 2
    assert "videos are compared with an encoder and without masks" in capsys.readouterr().err
