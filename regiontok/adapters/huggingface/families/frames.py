"""Videos as ``(videos, frames, 3, height, width)``, whose frames are encoded like images."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regiontok._require import require
from regiontok.adapters.huggingface.inner import RegionModelMixin
from regiontok.adapters.huggingface.videos import Clips
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.geometry import Size

transformers = require("transformers", extra="hf")


class FramesMixin(RegionModelMixin):
    """Families that take videos as ``(videos, frames, 3, height, width)``, with one grid per frame.

    A family provides the grid of a frame (`frame_grid`) and the features of videos (`encode_clips`), most by
    ``encode_frames``.
    """

    @property
    @abstractmethod
    def frame_grid(self) -> Size:
        """Rows and columns of the features of a frame."""

    def video_grids(self, pixel_values_videos: Tensor | None = None, **inputs: Any) -> list[tuple[int, int, int]]:
        """Return the grid of each video from the shape of ``pixel_values_videos``."""
        if pixel_values_videos is None:
            raise ValueRangeError(
                "the grid of a video depends on its number of frames. Pass pixel_values_videos, as the processor "
                "returns them."
            )
        if pixel_values_videos.ndim != 5:
            raise ShapeError(
                "pixel_values_videos must be (videos, frames, 3, height, width); got "
                f"{tuple(pixel_values_videos.shape)}."
            )
        rows, cols = self.frame_grid
        return [(pixel_values_videos.shape[1], rows, cols)] * len(pixel_values_videos)

    def pack_videos(self, output: Any) -> Any:
        """Return all tokens as one tensor ``(1, tokens, dim)``."""
        values = output.pooler_output
        values = values if isinstance(values, Tensor) else torch.cat(list(values))[None]
        return transformers.modeling_outputs.BaseModelOutputWithPooling(pooler_output=values)


def encode_frames(pixel_values_videos: Tensor, encode: Callable[[Tensor], Tensor]) -> Clips:
    """Return the features of videos ``(videos, frames, 3, height, width)``, whose frames are encoded like images.

    Args:
        pixel_values_videos: The pixels.
        encode: Function from pixels ``(images, 3, height, width)`` to features ``(images, rows, cols, dim)``.
    """
    features = encode(pixel_values_videos.flatten(0, 1))
    return Clips(list(features.unflatten(0, pixel_values_videos.shape[:2])))
