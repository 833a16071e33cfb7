"""LLaVA-OneVision, for photos of one tile."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from regiontok._require import require
from regiontok.adapters.huggingface.base import Patches, register
from regiontok.adapters.huggingface.llava import VisionTowerMixin
from regiontok.errors import ShapeError

transformers = require("transformers", extra="hf")


class RegionLlavaOnevisionForConditionalGeneration(
    VisionTowerMixin, transformers.LlavaOnevisionForConditionalGeneration
):
    """``LlavaOnevisionForConditionalGeneration`` that sees an image as region tokens.

    An image must be one tile, as the processor makes it where a sample has several images: ``(images, 3, height,
    width)``, or ``(images, 1, 3, height, width)``. The tile's regions stand in place of its patches and of the newline
    after them.

    Args:
        config: A ``LlavaOnevisionConfig`` whose ``regiontok`` holds the options of a `Regionizer`.

    Raises:
        CheckpointError, ShapeError: As `RegionLlavaForConditionalGeneration`.
    """

    _stock = transformers.LlavaOnevisionForConditionalGeneration
    _encoder_inputs = ("batch_num_images", "vision_aspect_ratio")

    @property
    def projector(self) -> Callable[[Tensor], Tensor]:
        """LLaVA's own; the newline, which is not used, is kept in the graph for ranks that train together."""
        project, newline = self.model.multi_modal_projector, self.model.image_newline
        return lambda values: project(values) + 0.0 * newline if self.training else project(values)

    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Features ``(images, rows, cols, dim)`` of one tile per image."""
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
