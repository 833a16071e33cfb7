"""How frames of videos are sampled. This module imports no torch."""

import math
from dataclasses import asdict, dataclass

from regiontok._values import check_integer
from regiontok.errors import ValueRangeError

_SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".webp", ".wmv")
"""Suffixes of files that are videos if a folder is listed."""


@dataclass(frozen=True)
class FrameSampling:
    """The frames of a video that are read, as the video processors of transformers choose them.

    At most one argument can be passed; without any, all frames are read.

    Args:
        fps: Frames per second.
        num_frames: Number of frames, at equal distances from the first one; a shorter video gives all its frames.
        every: Distance of the frames.

    Raises:
        ValueRangeError: An invalid value, or several arguments.

    Example:
        >>> FrameSampling(num_frames=4).choose(10, None), FrameSampling(fps=2).choose(48, 24.0)
        ([0, 2, 5, 7], [0, 12, 24, 36])
    """

    fps: float | None = None
    num_frames: int | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        chosen = list(self.describe())
        if len(chosen) > 1:
            raise ValueRangeError(f"{' and '.join(chosen)} are several ways to sample frames. Pass one of them.")
        if self.fps is not None and not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueRangeError(f"fps must be a positive number; got {self.fps}.")
        for name in ("num_frames", "every"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name))

    def describe(self) -> dict[str, float]:
        """Return the arguments that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def choose(self, total: int, rate: float | None) -> list[int]:
        """Return the numbers of the sampled frames.

        Args:
            total: Number of frames of the video.
            rate: Its frames per second, if known.

        Raises:
            ValueRangeError: ``fps`` for frames without times.
        """
        if self.every is not None:
            return list(range(0, total, self.every))
        count = total if self.num_frames is None else min(self.num_frames, total)
        if self.fps is not None:
            if rate is None:
                raise ValueRangeError("fps requires a video with times; frames have none. Pass num_frames or every.")
            count = min(max(1, int(total / rate * self.fps)), total)
        return [index * total // count for index in range(count)]


def is_video_name(name: str) -> bool:
    """Return whether a file name has a suffix of videos or of animated images.

    Example:
        >>> is_video_name("film.MP4"), is_video_name("frame.jpg")
        (True, False)
    """
    return name.lower().endswith(_SUFFIXES)
