"""Reading videos: sampling, times, rotation, and files that are damaged or of other kinds."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

from regiontok import videos
from regiontok.errors import DataError, DTypeError, ShapeError, ValueRangeError
from regiontok.videos import read_video
from tests.conftest import for_each


@pytest.fixture(params=["pyav", "torchcodec"])
def decoder(request, monkeypatch):
    """Read video files with each decoder."""
    if request.param == "pyav":
        monkeypatch.setattr(videos, "_load_torchcodec", lambda: None)
    elif videos._load_torchcodec() is None:
        pytest.skip("torchcodec is not installed, or there is no FFmpeg; .ci/extras.py runs this with both")
    return request.param


def numbered(count, size=(64, 48)):
    """Frames whose grey value is ten times their number."""
    return [Image.new("RGB", size, (10 * number,) * 3) for number in range(count)]


def number_of(frame):
    return round(float(np.asarray(frame).mean()) / 10)


def write(path, frames, *, rate=10, times=None, codec="mpeg4"):
    """Write a video; ``times`` in tenths of a second make its rate variable."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, 10)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_image(frame)
            picture.pts, picture.time_base = (number if times is None else times[number]), Fraction(1, 10)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


@for_each(
    options=[{}, {"num_frames": 4}, {"num_frames": 99}, {"fps": 2}, {"fps": 0.1}, {"every": 3}],
    suffix=["mp4", "avi", "mkv"],
)
def test_sampling_is_that_of_transformers(tmp_path, decoder, options, suffix):
    video = read_video(write(tmp_path / f"a.{suffix}", numbered(20)), **options)
    if "every" in options:
        expected = list(range(0, 20, 3))
    else:
        limited = {name: min(value, 20) if name == "num_frames" else value for name, value in options.items()}
        expected = default_sample_indices_fn(VideoMetadata(20, fps=10), **limited).tolist()
    assert video.indices == expected
    assert [number_of(frame) for frame in video.frames] == expected
    assert video.times == pytest.approx([index / 10 for index in expected], abs=0.002)
    assert (video.fps, video.num_frames) == (10, 20)
    assert video.frames[0].size == (64, 48)


def test_times_of_a_variable_rate_are_those_of_the_frames(tmp_path, decoder):
    times = [0, 1, 2, 10, 11, 30]
    video = read_video(write(tmp_path / "a.mkv", numbered(6), times=times))
    assert video.times == pytest.approx([time / 10 for time in times], abs=0.002)
    assert video.fps == 10


def test_folders_animations_arrays_and_lists(tmp_path):
    frames = numbered(6)
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(frames):
        frame.save(tmp_path / "frames" / f"{number:05d}.png")
    (tmp_path / "frames" / "notes.txt").write_text("no frame")
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(
            tmp_path / name,
            save_all=True,
            append_images=frames[1:],
            duration=200,
            **({"lossless": True} if name == "a.webp" else {}),
        )
    array = np.stack([np.asarray(frame) for frame in frames])
    for source in (tmp_path / "frames", str(tmp_path / "frames"), array, torch.from_numpy(array), list(array), frames):
        video = read_video(source, num_frames=3)
        assert [number_of(frame) for frame in video.frames] == video.indices == [0, 2, 4]
        assert (video.fps, video.num_frames, video.times) == (None, 6, [0, 2, 4])
        with pytest.raises(ValueRangeError, match="fps requires a video with times"):
            read_video(source, fps=1)
    for name in ("a.gif", "a.webp", "a.png"):
        video = read_video(tmp_path / name, fps=2.5)
        assert [number_of(frame) for frame in video.frames] == video.indices == [0, 2, 4]
        assert video.times == pytest.approx([0, 0.4, 0.8])
        assert video.fps == pytest.approx(5)
    single = read_video(tmp_path / "frames" / "00003.png")
    assert (len(single.frames), single.times) == (1, [0])


def test_a_rotated_video_is_upright(tmp_path, decoder):
    image = Image.new("RGB", (64, 48))
    image.paste((250, 250, 250), (0, 0, 64, 8))  # the upper edge is bright
    plain, rotated = write(tmp_path / "a.mp4", [image] * 3), tmp_path / "b.mp4"
    with av.open(str(plain)) as source, av.open(str(rotated), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.metadata["rotate"] = "90"
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    with av.open(str(rotated)) as container:
        rotation = next(container.decode(video=0)).rotation
    frame = read_video(rotated).frames[0]
    assert frame.size == ((48, 64) if rotation else (64, 48))
    if rotation:
        expected = np.rot90(np.asarray(read_video(plain).frames[0]), round(rotation / 90))
        assert np.abs(np.asarray(frame).astype(int) - expected).mean() < 3


def test_files_that_are_no_complete_video_are_rejected(tmp_path, decoder):
    with pytest.raises(DataError, match=r"none.mp4: there is no such file"):
        read_video(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"text.mp4: it cannot be read as a video"):
        read_video(tmp_path / "text.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: it has no frames"):
        read_video(tmp_path / "empty")
    noise = [Image.effect_noise((64, 48), 90).convert("RGB") for _ in range(30)]
    data = write(tmp_path / "a.avi", noise).read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"cut.avi: it (is truncated or damaged: frame \d+ of 30|cannot be read)"):
        read_video(tmp_path / "cut.avi")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match=r"sound.wav: it has no video stream"):
        read_video(tmp_path / "sound.wav")


@for_each(
    ("source", "options", "error", "message"),
    [
        (numbered(2), {"fps": 1, "num_frames": 2}, ValueRangeError, "fps and num_frames are several ways"),
        (numbered(2), {"every": 0}, ValueRangeError, "every must be at least 1; got 0"),
        (numbered(2), {"fps": -1}, ValueRangeError, "fps must be a positive number; got -1"),
        (np.zeros((2, 3, 8, 8), np.uint8), {}, ShapeError, r"\(frames, height, width, 3\); got .*Channels come last"),
        (np.zeros((2, 8, 8, 3)), {}, DTypeError, "frames must be uint8; got float64"),
        ([], {}, DTypeError, "a video must be a path, an array or a list of frames; got list"),
        (3, {}, DTypeError, "got int"),
    ],
)
def test_invalid_arguments_are_errors(source, options, error, message):
    with pytest.raises(error, match=message):
        read_video(source, **options)
