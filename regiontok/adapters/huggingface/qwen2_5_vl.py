"""Qwen2.5-VL: photos at their own resolution, regions on the merged grid, positions in two dimensions."""

from typing import Any

import torch
from torch import Tensor, nn

from regiontok._require import require
from regiontok.adapters.huggingface.base import Patches, RegionMixin, register
from regiontok.errors import ValueRangeError
from regiontok.geometry import Size
from regiontok.regions import Regions

transformers = require("transformers", extra="hf")


class RegionQwen2_5_VLForConditionalGeneration(  # noqa: N801  as transformers names its class
    RegionMixin, transformers.Qwen2_5_VLForConditionalGeneration
):
    """``Qwen2_5_VLForConditionalGeneration`` that sees an image as region tokens.

    Regions are made of the vision tower's merged features, one per 2 x 2 patches, so grids differ between images. A
    region stands at its centroid: its rotary position is the row and column of that on the merged grid, in the units
    of the stock class, and the text after an image goes on where it goes on there.

    Args:
        config: A ``Qwen2_5_VLConfig`` whose ``regiontok`` holds the options of a `Regionizer`.

    Raises:
        CheckpointError, ShapeError: As `RegionLlavaForConditionalGeneration`.

    Source:
        Not in the paper. That a centroid between patches keeps its fraction is our choice.
    """

    _stock = transformers.Qwen2_5_VLForConditionalGeneration
    _encoder_inputs = ("image_grid_thw", "mm_token_type_ids")

    @property
    def patch_dim(self) -> int:
        """The dimension of merged features, which is the language model's."""
        return int(self.config.vision_config.out_hidden_size)

    @property
    def projector(self) -> nn.Module:
        """None: merged features are in the language model's dimension already."""
        return nn.Identity()

    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Features ``(rows, cols, dim)`` of each image; ``image_grid_thw (images, 3)`` tells their grids."""
        grids = self.image_grids(0, **inputs)
        given = inputs["image_grid_thw"]
        merged = self.model.get_image_features(pixel_values, image_grid_thw=given, return_dict=True).pooler_output
        features = [one.unflatten(0, grid) for one, grid in zip(merged, grids, strict=True)]
        return Patches(features, [len(one) for one in merged])

    def image_grids(self, images: int, **inputs: Any) -> list[Size]:
        """The merged grid of each image, from ``image_grid_thw (images, 3)``."""
        given = inputs.get("image_grid_thw")
        if given is None:
            raise ValueRangeError(
                "pixel_values need image_grid_thw, which the processor gives with them: it tells each photo's grid. "
                "Pass it."
            )
        side = self.config.vision_config.spatial_merge_size
        return [(rows // side, cols // side) for _, rows, cols in given.tolist()]

    def blank_image(self) -> dict[str, Any]:
        """One merged patch of black."""
        vision, visual = self.config.vision_config, self.model.visual
        side = vision.spatial_merge_size
        numbers = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        return {
            "pixel_values": torch.zeros(side**2, numbers, device=visual.device, dtype=visual.dtype),
            "image_grid_thw": torch.tensor([[1, side, side]], device=visual.device),
        }

    def place(self, inputs: dict[str, Any], regions: Regions) -> dict[str, Any]:
        """Positions ``(4, B, length)``: of text, for masks, then time, row and column, for the rotary embedding."""
        inside = inputs["attention_mask"].bool()
        of_image = (inputs["input_ids"] == self.config.image_token_id) & inside
        first = torch.ones_like(regions.image, dtype=torch.bool)
        first[1:] = regions.image[1:] != regions.image[:-1]
        span = regions.grids.amax(1).to(regions.device)[regions.image]  # an image takes as much as its longer side
        step = inside.long()
        step[of_image] = torch.where(first, span, 0)
        start = step.cumsum(1) - step
        rotary = start.expand(3, -1, -1).float().clone()
        rotary[:, of_image] -= torch.where(first, 0, span)
        rotary[1:, of_image] += regions.centroids().T
        rotary = rotary.masked_fill(~inside, 0)
        self.model.rope_deltas = (start + step).amax(1, keepdim=True) - inside.sum(1, keepdim=True)
        text = (inside.cumsum(1) - 1).clamp(min=0).masked_fill(~inside, 0)
        return {"position_ids": torch.cat([text[None].float(), rotary])}


register(RegionQwen2_5_VLForConditionalGeneration)
