"""The projected features of all images in one tensor: PaliGemma, Gemma 3, FastVLM, VipLlava, and all with tiles."""

from math import isqrt
from typing import Any

import torch
from torch import Tensor

from regiontok._require import require
from regiontok.adapters.huggingface.encoding import Patches
from regiontok.adapters.huggingface.inner import RegionModelMixin
from regiontok.errors import ShapeError
from regiontok.geometry import Size
from regiontok.views import View, uncut_images

transformers = require("transformers", extra="hf")


class OneTensorMixin(RegionModelMixin):
    """Families whose ``get_image_features`` gives a square grid per image, projected, all in one tensor.

    Regions are made of the projected features, as the language model gets them.
    """

    _one_size = True
    """Whether its tower takes images of one size alone."""

    @property
    def tile_pixels(self) -> Size:
        """Height and width of one image, or of one tile."""
        size = self.config.vision_config.image_size
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    @property
    def tile_grid(self) -> Size:
        """Rows and columns of the features of one."""
        height, width = self.tile_pixels
        return height // self.config.vision_config.patch_size, width // self.config.vision_config.patch_size

    def views(self, images: int, image_sizes: Any = None, **inputs: Any) -> list[View]:
        """The one grid of each image."""
        return uncut_images([self.tile_grid] * images)

    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Features ``(images, rows, cols, dim)`` of pixels ``(images, 3, height, width)``."""
        features = self.encode_tiles(pixel_values)
        rows, cols = features.shape[1:3]
        return Patches(features, [rows * cols] * len(features), uncut_images([(rows, cols)] * len(features)))

    def encode_tiles(self, pixel_values: Tensor) -> Tensor:
        """Features ``(tiles, rows, cols, dim)`` of pixels ``(tiles, 3, height, width)``."""
        if pixel_values.ndim < 4 or (self._one_size and tuple(pixel_values.shape[-2:]) != self.tile_pixels):
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
                f"images must give square grids of features; got {features.shape[1]} features of each, for pixels "
                f"{tuple(pixel_values.shape)}. Give images of {self.tile_pixels[0]} x {self.tile_pixels[1]} pixels."
            )
        return features.unflatten(1, (side, side))

    def pack_features(self, output: Any) -> Any:
        """Return all tokens as ``(1, tokens, dim)``."""
        joined = output.pooler_output
        joined = joined if isinstance(joined, Tensor) else torch.cat(list(joined))[None]
        return transformers.modeling_outputs.BaseModelOutputWithPooling(pooler_output=joined)

    def blank_image(self) -> dict[str, Any]:
        """One black image."""
        height, width = self.tile_pixels
        weight = next(self.vision_tower.parameters())
        return {"pixel_values": torch.zeros(1, 3, height, width, device=weight.device, dtype=weight.dtype)}


class PaliGemmaMixin(OneTensorMixin):
    """PaliGemma, 1 and 2. Its ``token_type_ids`` are 0 for what is attended to in both directions, 1 for the answer."""

    answer_type = 1


class Gemma3Mixin(OneTensorMixin):
    """Gemma 3: tokens of an image attend to each other in both directions. With pan-and-scan, each crop is an image."""

    encoder_inputs = ("token_type_ids",)
    token_types = "token_type_ids"

    @property
    def tile_grid(self) -> Size:
        """The grid that patches are averaged to."""
        return (isqrt(self.config.mm_tokens_per_image),) * 2


class FastVlmMixin(OneTensorMixin):
    """FastVLM: a convolutional tower that takes images of any size."""

    _one_size = False

    @property
    def tile_grid(self) -> Size:
        """As the config counts its features."""
        return (isqrt(self.config.image_seq_length),) * 2

    @property
    def tile_pixels(self) -> Size:
        """As many as make at least a patch each: 64 pixels are one of its convolutional tower, or more."""
        rows, cols = self.tile_grid
        return 64 * rows, 64 * cols
