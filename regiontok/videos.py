"""Read frames of videos, with their times.

    video = read_video("film.mp4", fps=2)
    features, valid = encoder(video.frames)          # (frames, rows, cols, dim)
    regions = UnionFindClusterer(num_regions=512)([features], [valid])

Video files need the extra ``video`` (PyAV), or torchcodec, which is used if it is installed and decodes only the
sampled frames. Folders of frames, animated GIF and WebP files, arrays, tensors and lists of images need no further
package.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageSequence

from regiontok._require import require
from regiontok.errors import DataError, DTypeError, RegiontokError, ShapeError
from regiontok.images import as_images, as_rgb, is_image_name, read_image
from regiontok.sampling import FrameSampling

_ANIMATIONS = (".gif", ".webp", ".png", ".apng")


class Video(NamedTuple):
    """Frames of a video.

    Attributes:
        frames: The sampled frames, upright and in RGB.
        times: Time of each frame in seconds, from the first frame of the video.
        indices: Number of each frame in the video.
        fps: Frames per second of the video; None if unknown, as for a folder of frames. Times are then frame numbers.
        num_frames: Number of frames of the video.
    """

    frames: list[Image.Image]
    times: list[float]
    indices: list[int]
    fps: float | None
    num_frames: int


def read_video(
    source: Any, *, fps: float | None = None, num_frames: int | None = None, every: int | None = None
) -> Video:
    """Return sampled frames of a video and their times.

    Frames are sampled like the video processors of transformers do: ``num_frames`` frames at equal distances from the
    first one, or as many as ``fps`` frames per second give. At most one of ``fps``, ``num_frames`` and ``every`` can be
    passed; without any, all frames are returned.

    Args:
        source: Path of a video file, of an animated GIF, WebP or PNG file, or of a folder of frames, which are sorted
            by name; or a list of images, paths or arrays, or an array ``(frames, height, width, 3)`` of uint8.
        fps: Frames per second.
        num_frames: Number of frames; a shorter video gives all its frames.
        every: Distance of the frames.

    Raises:
        DataError: The file cannot be read, is damaged, or has no video.
        ValueRangeError: An invalid value, several ways to sample, or ``fps`` for frames without times.
        MissingDependencyError: The file is a video, and neither PyAV nor torchcodec is installed.

    Example:
        >>> video = read_video(np.zeros((10, 48, 64, 3), np.uint8), num_frames=4)
        >>> video.indices, video.frames[0].size
        ([0, 2, 5, 7], (64, 48))
    """
    choose = FrameSampling(fps, num_frames, every).choose
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            return _read_folder(path, choose)
        if not path.is_file():
            raise DataError(f"{path}: there is no such file.")
        if path.suffix.lower() in _ANIMATIONS:
            return _read_animation(path, choose)
        return _read_file(path, choose)
    if isinstance(source, torch.Tensor | np.ndarray):
        frames = np.asarray(source.cpu() if isinstance(source, torch.Tensor) else source)
        if frames.ndim != 4 or frames.shape[3] != 3 or len(frames) == 0:
            hint = " Channels come last." if frames.ndim == 4 and frames.shape[1] == 3 else ""
            raise ShapeError(f"a video must be (frames, height, width, 3); got {frames.shape}.{hint}")
        if frames.dtype != np.uint8:
            raise DTypeError(f"frames must be uint8; got {frames.dtype}.")
        indices = choose(len(frames), None)
        return _video([Image.fromarray(frames[index]) for index in indices], indices, None, len(frames))
    if isinstance(source, Sequence) and len(source):
        indices = choose(len(source), None)
        return _video(as_images([source[index] for index in indices]), indices, None, len(source))
    raise DTypeError(f"a video must be a path, an array or a list of frames; got {type(source).__name__}.")


def _video(frames: list[Image.Image], indices: list[int], fps: float | None, total: int) -> Video:
    return Video(frames, [index / (fps or 1) for index in indices], indices, fps, total)


def _read_folder(folder: Path, choose: Callable[[int, float | None], list[int]]) -> Video:
    files = sorted(file for file in folder.iterdir() if is_image_name(file.name) and not file.name.startswith("."))
    if not files:
        raise DataError(f"{folder}: it has no frames. Pass a folder of images, such as 00000.jpg.")
    indices = choose(len(files), None)
    return _video([read_image(files[index]) for index in indices], indices, None, len(files))


def _read_animation(path: Path, choose: Callable[[int, float | None], list[int]]) -> Video:
    """Read an animated image with Pillow; each frame has a duration."""
    with _read_errors(path), Image.open(path) as file:
        total = int(getattr(file, "n_frames", 1))
        durations = []
        for frame in ImageSequence.Iterator(file):
            frame.load()  # WebP has the duration of a frame only afterwards
            durations.append(frame.info.get("duration", 0) / 1000)
        times = [0.0, *accumulate(durations)][:total]
        length = sum(durations)
        fps = total / length if length else None
        indices = choose(total, fps)
        frames = []
        for index in indices:
            file.seek(index)
            frames.append(as_rgb(file.copy()))
    video = _video(frames, indices, fps, total)
    return video if fps is None else video._replace(times=[times[index] for index in indices])


def _read_file(path: Path, choose: Callable[[int, float | None], list[int]]) -> Video:
    """Read a video file. Both decoders return the same frames and times; torchcodec decodes only what is sampled."""
    decoders = _load_torchcodec()
    with _read_errors(path):
        return _read_with_pyav(path, choose) if decoders is None else _read_with_torchcodec(decoders, path, choose)


@cache
def _load_torchcodec() -> Any:
    """Return ``torchcodec.decoders``, or None if it is not installed or finds no FFmpeg."""
    try:
        return importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError):
        return None


def _read_with_torchcodec(decoders: Any, path: Path, choose: Callable[[int, float | None], list[int]]) -> Video:
    try:
        decoder = decoders.VideoDecoder(str(path))
    except ValueError as error:  # a file whose streams are not video
        raise DataError(f"{path}: it has no video stream.") from error
    about = decoder.metadata
    total = about.num_frames_from_header or about.num_frames
    if not total:
        raise DataError(f"{path}: it has no frames.")
    fps = about.average_fps_from_header or about.average_fps
    indices = choose(total, fps)
    missing = next((index for index in indices if index >= about.num_frames), None)
    if missing is not None:
        raise _damaged(path, missing, total)
    batch = decoder.get_frames_at(indices)
    frames = [Image.fromarray(frame) for frame in batch.data.permute(0, 2, 3, 1).numpy()]
    times = (batch.pts_seconds - about.begin_stream_seconds).tolist()
    return Video(frames, times, indices, fps, total)


def _damaged(path: Path, index: int, total: int) -> DataError:
    return DataError(f"{path}: it is truncated or damaged: frame {index} of {total} cannot be read.")


def _read_with_pyav(path: Path, choose: Callable[[int, float | None], list[int]]) -> Video:
    av = require("av", extra="video")
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise DataError(f"{path}: it has no video stream.")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate) if rate else None
        total = stream.frames or _count_frames(av, path)
        if not total:
            raise DataError(f"{path}: it has no frames.")
        indices = choose(total, fps)
        chosen, frames, times, start = set(indices), [], [], None
        for number, frame in enumerate(container.decode(stream)):
            start = frame.time if start is None else start
            if number in chosen:
                turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
                frames.append(Image.fromarray(np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))))
                has_time = frame.time is not None and start is not None
                times.append(float(frame.time - start) if has_time else number / (fps or 1))
            if number >= indices[-1]:
                break
    if len(frames) < len(indices):
        raise _damaged(path, indices[len(frames)], total)
    return Video(frames, times, indices, fps, total)


def _count_frames(av: Any, path: Path) -> int:
    """Count the frames of a container that does not state their number, without decoding them."""
    with av.open(str(path)) as container:
        return sum(1 for packet in container.demux(container.streams.video[0]) if packet.size)


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """Raise every error of a decoder as a `DataError`: damaged files raise errors of any class."""
    try:
        yield
    except RegiontokError:
        raise
    except Exception as error:
        raise DataError(f"{path}: it cannot be read as a video: {error}") from error
