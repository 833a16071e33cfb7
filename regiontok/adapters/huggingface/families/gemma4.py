"""Gemma 4: images at their own shape, padded to as many patches, whose positions give their grids."""

from typing import Any

import torch
from torch import Tensor

from regiontok.adapters.huggingface.encoding import Patches
from regiontok.adapters.huggingface.inner import RegionModelMixin
from regiontok.errors import ValueRangeError
from regiontok.views import View, uncut_images


class Gemma4Mixin(RegionModelMixin):
    """Gemma 4.

    Regions are made of the pooled and projected features of its tower. The tokens of an image attend to
    each other in both directions where its patches do.
    """

    token_types = "mm_token_type_ids"
    encoder_inputs = ("image_position_ids", "num_soft_tokens_per_image", "mm_token_type_ids")

    def views(self, images: int, image_sizes: Any = None, **inputs: Any) -> list[View]:
        """The pooled grid of each image, from ``image_position_ids (images, patches, 2)``: x and y, -1 at padding."""
        positions = inputs.get("image_position_ids")
        if positions is None:
            raise ValueRangeError(
                "pixel_values need image_position_ids, which the processor gives with them: they give each image's "
                "grid. Pass them."
            )
        side = self.config.vision_config.pooling_kernel_size
        cols, rows = (positions.amax(1) + 1).unbind(1)
        return uncut_images(list(zip((rows // side).tolist(), (cols // side).tolist(), strict=True)))

    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Features ``(rows, cols, dim)`` of each image, of its patches' pixels ``(images, patches, numbers)``."""
        views = self.views(0, **inputs)
        output = self._inner.get_image_features(self, pixel_values, inputs["image_position_ids"], return_dict=True)
        features = [image.unflatten(0, view.grid) for image, view in zip(output.pooler_output, views, strict=True)]
        return Patches(features, [view.patches for view in views], views)

    def blank_image(self) -> dict[str, Any]:
        """One pooled patch of black."""
        vision, weight = self.config.vision_config, self.vision_tower.patch_embedder.input_proj.weight
        side = vision.pooling_kernel_size
        positions = torch.cartesian_prod(torch.arange(side), torch.arange(side)).to(weight.device)[None]
        pixels = torch.zeros(1, side**2, 3 * vision.patch_size**2, device=weight.device, dtype=weight.dtype)
        return {"pixel_values": pixels, "image_position_ids": positions}
