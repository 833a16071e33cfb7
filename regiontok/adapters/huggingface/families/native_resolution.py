"""Photos at their own resolution, regions on the merged grid, rotary positions in two dimensions: Qwen-VL and GLM-V."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regiontok._checks import Features
from regiontok._require import require
from regiontok.adapters.huggingface.base import Patches, RegionMixin
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.regions import Regions
from regiontok.views import View, whole_photos

transformers = require("transformers", extra="hf")


class NativeResolutionMixin(RegionMixin):
    """Families with Qwen2-VL's contract: ``image_grid_thw``, merged patches, positions of time, row and column.

    Regions are made of the vision tower's merged features, one per 2 x 2 patches, so grids differ between photos. A
    region stands at its centroid: its rotary position is the row and column of that on the merged grid, in the units
    of the stock class, and the text after a photo goes on where it goes on there.

    Source:
        Not in the paper. That a centroid between patches keeps its fraction is our choice.
    """

    model: Any
    encoder_inputs = ("image_grid_thw", "mm_token_type_ids")

    def views(self, photos: int, image_sizes: Any = None, **inputs: Any) -> list[View]:
        """The merged grid of each photo, from ``image_grid_thw (photos, 3)``."""
        given = inputs.get("image_grid_thw")
        if given is None:
            raise ValueRangeError(
                "pixel_values need image_grid_thw, which the processor gives with them: it tells each photo's grid. "
                "Pass it."
            )
        side = self.config.vision_config.spatial_merge_size
        given = torch.as_tensor(given)
        for number, (frames, _, _) in enumerate(given.tolist()):
            if frames != 1:
                raise ShapeError(
                    f"image_grid_thw[{number}] has {frames} frames; a photo has one, and videos cannot be cut into "
                    "regions."
                )
        return whole_photos([(rows // side, cols // side) for _, rows, cols in given.tolist()])

    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Features ``(rows, cols, dim)`` of each photo; ``image_grid_thw (photos, 3)`` tells their grids."""
        views = self.views(0, **inputs)
        given = torch.as_tensor(inputs["image_grid_thw"])
        if len(pixel_values) != int(given.prod(1).sum()):
            raise ShapeError(
                f"pixel_values must hold the {int(given.prod(1).sum())} patches that image_grid_thw tells of; got "
                f"{len(pixel_values)}."
            )
        output = self.model.get_image_features(pixel_values, image_grid_thw=given, return_dict=True)
        layers = [_as_grids(one, views) for one in getattr(output, "deepstack_features", None) or ()]
        return Patches(_as_grids(output.pooler_output, views), [view.patches for view in views], layers=layers)

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


class RegionQwen2VLForConditionalGeneration(NativeResolutionMixin, transformers.Qwen2VLForConditionalGeneration):
    """``Qwen2VLForConditionalGeneration`` that sees an image as region tokens; see `NativeResolutionMixin`."""

    _stock = transformers.Qwen2VLForConditionalGeneration


class RegionQwen2_5_VLForConditionalGeneration(  # noqa: N801  as transformers names its class
    NativeResolutionMixin, transformers.Qwen2_5_VLForConditionalGeneration
):
    """``Qwen2_5_VLForConditionalGeneration`` that sees an image as region tokens; see `NativeResolutionMixin`."""

    _stock = transformers.Qwen2_5_VLForConditionalGeneration


class RegionQwen3VLForConditionalGeneration(NativeResolutionMixin, transformers.Qwen3VLForConditionalGeneration):
    """``Qwen3VLForConditionalGeneration`` that sees an image as region tokens; see `NativeResolutionMixin`.

    The features of further layers that its language model adds (deepstack) are the means over the same regions.
    """

    _stock = transformers.Qwen3VLForConditionalGeneration


class RegionQwen3VLMoeForConditionalGeneration(NativeResolutionMixin, transformers.Qwen3VLMoeForConditionalGeneration):
    """``Qwen3VLMoeForConditionalGeneration`` with region tokens, as `RegionQwen3VLForConditionalGeneration`."""

    _stock = transformers.Qwen3VLMoeForConditionalGeneration


class RegionQwen3_5ForConditionalGeneration(  # noqa: N801  as transformers names its class
    NativeResolutionMixin, transformers.Qwen3_5ForConditionalGeneration
):
    """``Qwen3_5ForConditionalGeneration`` that sees an image as region tokens; see `NativeResolutionMixin`."""

    _stock = transformers.Qwen3_5ForConditionalGeneration


class RegionQwen3_5MoeForConditionalGeneration(  # noqa: N801  as transformers names its class
    NativeResolutionMixin, transformers.Qwen3_5MoeForConditionalGeneration
):
    """``Qwen3_5MoeForConditionalGeneration`` that sees an image as region tokens; see `NativeResolutionMixin`."""

    _stock = transformers.Qwen3_5MoeForConditionalGeneration


class RegionGlm4vMoeForConditionalGeneration(NativeResolutionMixin, transformers.Glm4vMoeForConditionalGeneration):
    """``Glm4vMoeForConditionalGeneration`` that sees an image as region tokens; see `NativeResolutionMixin`."""

    _stock = transformers.Glm4vMoeForConditionalGeneration


class RegionGlm4vForConditionalGeneration(NativeResolutionMixin, transformers.Glm4vForConditionalGeneration):
    """``Glm4vForConditionalGeneration`` that sees an image as region tokens; see `NativeResolutionMixin`."""

    _stock = transformers.Glm4vForConditionalGeneration


class RegionGlm46VForConditionalGeneration(NativeResolutionMixin, transformers.Glm46VForConditionalGeneration):
    """``Glm46VForConditionalGeneration`` that sees an image as region tokens; see `NativeResolutionMixin`."""

    _stock = transformers.Glm46VForConditionalGeneration


def _as_grids(features: Sequence[Tensor], views: Sequence[View]) -> Features:
    return [one.unflatten(0, view.grid) for one, view in zip(features, views, strict=True)]
