"""Projected features of all images in one tensor (flat features): PaliGemma, Gemma 3, FastVLM, VipLlava."""

from math import isqrt
from typing import Any

import torch
from torch import Tensor

from regiontok._require import require
from regiontok.adapters.huggingface.families.vision_tower import pair
from regiontok.adapters.huggingface.inner import RegionModelMixin
from regiontok.adapters.huggingface.patches import Patches
from regiontok.errors import ShapeError
from regiontok.geometry import Size
from regiontok.tiles import Tile, uncut_images

transformers = require("transformers", extra="hf")


class FlatFeaturesMixin(RegionModelMixin):
    """Families whose ``get_image_features`` returns one tensor with a square grid of projected features per image.

    Regions are made of the projected features, which the language model gets in the stock model.
    """

    _fixed_size = True
    """Whether the vision tower accepts only one image size."""

    @property
    def tile_pixels(self) -> Size:
        """Height and width of a tile in pixels. Here an image is one tile."""
        return pair(self.config.vision_config.image_size)

    @property
    def tile_grid(self) -> Size:
        """Rows and columns of the features of a tile."""
        height, width = self.tile_pixels
        return height // self.config.vision_config.patch_size, width // self.config.vision_config.patch_size

    def tiles(self, num_images: int, image_sizes: Any = None, **inputs: Any) -> list[Tile]:
        """Return one tile per image."""
        return uncut_images([self.tile_grid] * num_images)

    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Return features ``(images, rows, cols, dim)`` of pixels ``(images, 3, height, width)``."""
        features = self.encode_tiles(pixel_values)
        rows, cols = features.shape[1:3]
        return Patches(features, [rows * cols] * len(features), uncut_images([(rows, cols)] * len(features)))

    def encode_tiles(self, pixel_values: Tensor) -> Tensor:
        """Return features ``(tiles, rows, cols, dim)`` of pixels ``(tiles, 3, height, width)``."""
        if pixel_values.ndim < 4 or (self._fixed_size and tuple(pixel_values.shape[-2:]) != self.tile_pixels):
            raise ShapeError(
                f"pixel_values must be (images, 3, {', '.join(map(str, self.tile_pixels))}); got "
                f"{tuple(pixel_values.shape)}."
            )
        features = self._inner.get_image_features(self, pixel_values=pixel_values, return_dict=True).pooler_output
        if features.shape[1] == self.tile_grid[0] * self.tile_grid[1]:
            return features.unflatten(1, self.tile_grid)
        side = isqrt(features.shape[1])
        if side**2 != features.shape[1]:
            raise ShapeError(
                f"the features of an image must form a square grid; got {features.shape[1]} features for pixels "
                f"{tuple(pixel_values.shape)}. Pass images of {self.tile_pixels[0]} x {self.tile_pixels[1]} pixels."
            )
        return features.unflatten(1, (side, side))

    def pack_features(self, output: Any) -> Any:
        """Return all tokens as one tensor ``(1, tokens, dim)``."""
        joined = output.pooler_output
        joined = joined if isinstance(joined, Tensor) else torch.cat(list(joined))[None]
        return transformers.modeling_outputs.BaseModelOutputWithPooling(pooler_output=joined)

    def blank_image(self) -> dict[str, Any]:
        """Return one black image of `tile_pixels`."""
        height, width = self.tile_pixels
        weight = next(self.vision_tower.parameters())
        return {"pixel_values": torch.zeros(1, 3, height, width, device=weight.device, dtype=weight.dtype)}


class PaliGemmaMixin(FlatFeaturesMixin):
    """PaliGemma 1 and 2, whose ``token_type_ids`` are 0 for the prompt (bidirectional attention), 1 for the answer."""

    answer_type = 1


class Gemma3Mixin(FlatFeaturesMixin):
    """Gemma 3, with bidirectional attention within an image. With pan-and-scan, each crop is an image."""

    encoder_inputs = ("token_type_ids",)
    token_types = "token_type_ids"

    @property
    def tile_grid(self) -> Size:
        """Rows and columns after average pooling to ``mm_tokens_per_image``."""
        return (isqrt(self.config.mm_tokens_per_image),) * 2


class FastVlmMixin(FlatFeaturesMixin):
    """FastVLM, whose convolutional vision tower accepts images of any size."""

    _fixed_size = False

    @property
    def tile_grid(self) -> Size:
        """Rows and columns of the ``image_seq_length`` features of the config."""
        return (isqrt(self.config.image_seq_length),) * 2

    @property
    def tile_pixels(self) -> Size:
        """An image size with at least one feature per grid cell. The stride of the tower is at most 64 pixels."""
        rows, cols = self.tile_grid
        return 64 * rows, 64 * cols
