"""LLaVA-OneVision, for photos of one tile."""

from typing import Any

from torch import Tensor

from regiontok._require import require
from regiontok.adapters.huggingface.base import Patches, register
from regiontok.adapters.huggingface.llava import VisionTowerMixin
from regiontok.errors import ShapeError, ValueRangeError

transformers = require("transformers", extra="hf")


class RegionLlavaOnevisionForConditionalGeneration(
    VisionTowerMixin, transformers.LlavaOnevisionForConditionalGeneration
):
    """`LlavaOnevisionForConditionalGeneration` that sees an image as region tokens.

    An image must be one tile, as the processor makes it where a sample has several images: ``(images, 3, height,
    width)``, or ``(images, 1, 3, height, width)``. The tile's regions stand in place of its patches and of the newline
    after them.

    Args:
        config: A ``LlavaOnevisionConfig`` whose ``regiontok`` holds the options of a `Regionizer`.

    Raises:
        CheckpointError, ShapeError: As `RegionLlavaForConditionalGeneration`.
    """

    _stock = transformers.LlavaOnevisionForConditionalGeneration
    _encoder_inputs = ("pixel_values_videos", "batch_num_images", "vision_aspect_ratio")

    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Features ``(images, rows, cols, dim)`` of one tile per image."""
        if inputs.get("pixel_values_videos") is not None:
            raise ValueRangeError("videos are not cut into regions. Leave pixel_values_videos out.")
        if pixel_values.ndim == 5:
            if pixel_values.shape[1] != 1:
                raise ShapeError(
                    f"each image must be one tile; got {pixel_values.shape[1]} tiles (anyres), which have a grid each. "
                    "Give the processor a sample's images with vision_aspect_ratio for one tile, or only its first "
                    "tile: pixel_values[:, :1]."
                )
            pixel_values = pixel_values[:, 0]
        patches = super().encode_patches(pixel_values)
        return Patches(patches.features, [stock + 1 for stock in patches.written])  # the newline


register(RegionLlavaOnevisionForConditionalGeneration)
