"""Images at their own resolution, regions on the merged grid, rotary positions in two dimensions: Qwen-VL and GLM-V."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regiontok._checks import Features, check_choice
from regiontok.adapters.huggingface.encoding import Patches
from regiontok.adapters.huggingface.inner import CACHES, RegionModelMixin
from regiontok.adapters.huggingface.placeholders import find_blocks, lay_out
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions
from regiontok.views import View, uncut_images

POSITIONS = ("centroid", "even")


class NativeResolutionMixin(RegionModelMixin):
    """Families with Qwen2-VL's contract: ``image_grid_thw``, merged patches, positions of time, row and column.

    Regions are made of the vision tower's merged features, one per 2 x 2 patches, so grids differ between images. A
    region stands at its centroid: its rotary position is the row and column of that on the merged grid, in the units
    of the stock class, and the text after an image goes on where it goes on there.

    Source:
        Not in the paper. That a centroid between patches keeps its fraction is our choice.
    """

    has_positions = True
    token_types = "mm_token_type_ids"
    encoder_inputs = ("image_grid_thw", "mm_token_type_ids")

    def views(self, images: int, image_sizes: Any = None, **inputs: Any) -> list[View]:
        """The merged grid of each image, from ``image_grid_thw (images, 3)``."""
        given = inputs.get("image_grid_thw")
        if given is None:
            raise ValueRangeError(
                "pixel_values need image_grid_thw, which the processor gives with them: the grid of each image. "
                "Pass it."
            )
        side = self.config.vision_config.spatial_merge_size
        given = torch.as_tensor(given)
        for number, (frames, _, _) in enumerate(given.tolist()):
            if frames != 1:
                raise ShapeError(
                    f"image_grid_thw[{number}] has {frames} frames; an image has one, and videos cannot be cut into "
                    "regions."
                )
        return uncut_images([(rows // side, cols // side) for _, rows, cols in given.tolist()])

    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Features ``(rows, cols, dim)`` of each image; ``image_grid_thw (images, 3)`` gives their grids."""
        views = self.views(0, **inputs)
        given = torch.as_tensor(inputs["image_grid_thw"])
        if len(pixel_values) != int(given.prod(1).sum()):
            raise ShapeError(
                f"pixel_values must hold the {int(given.prod(1).sum())} patches of image_grid_thw; got "
                f"{len(pixel_values)}."
            )
        output = self._inner.get_image_features(self, pixel_values, image_grid_thw=given, return_dict=True)
        layers = [_as_grids(layer, views) for layer in getattr(output, "deepstack_features", None) or ()]
        written = [view.patches for view in views]
        return Patches(_as_grids(output.pooler_output, views), written, views, layers)

    def blank_image(self) -> dict[str, Any]:
        """One merged patch of black."""
        vision, visual = self.config.vision_config, self.visual
        side = vision.spatial_merge_size
        numbers = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        return {
            "pixel_values": torch.zeros(side**2, numbers, device=visual.device, dtype=visual.dtype),
            "image_grid_thw": torch.tensor([[1, side, side]], device=visual.device),
        }

    def get_rope_index(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the stock class's positions, for blocks of placeholders of any length.

        Text is positioned as if each image had a token per patch. The ``n`` tokens of an image are spread evenly over
        its patches; `position` moves them to the centroids of their regions.
        """
        named = inspect.signature(self._inner.get_rope_index).bind_partial(self, *args, **kwargs).arguments
        named = {**named.pop("kwargs", {}), **{name: value for name, value in named.items() if name != "self"}}
        ids, mask, given = named["input_ids"], named.get("attention_mask"), named.get("image_grid_thw")
        if named.get("mm_token_type_ids") is None:
            kinds = (ids == self.config.image_token_id).int() + 2 * (ids == self.config.video_token_id).int()
            named["mm_token_type_ids"] = kinds
        blocks = find_blocks(ids, mask, self.config.image_token_id)
        patches = [] if given is None else [view.patches for view in self.views(0, image_grid_thw=given)]
        if given is None or blocks[:, 2].tolist() == patches:
            return self._inner.get_rope_index(self, **named)
        if len(patches) != len(blocks):
            raise ShapeError(
                f"image_grid_thw must have a row for each of the {len(blocks)} images of the prompts; got "
                f"{len(patches)}. New images on a cache need the grids of all: pass the conversation without the cache."
            )
        layout = lay_out(
            ids, mask, image_token_id=self.config.image_token_id, counts=patches, written=blocks[:, 2].tolist()
        )
        for name, fill in (("input_ids", 0), ("mm_token_type_ids", 0)):
            named[name] = layout.put(named[name], fill)
        named["attention_mask"] = layout.mask
        whole, deltas = self._inner.get_rope_index(self, **named)
        inside = layout.source >= 0
        column = torch.arange(layout.source.shape[1], device=ids.device).expand_as(layout.source)
        first = torch.full_like(ids, layout.source.shape[1]).scatter_reduce(
            1, layout.source.clamp(min=0), column.masked_fill(~inside, layout.source.shape[1]), "amin"
        )
        row, start, count = blocks.repeat_interleave(blocks[:, 2], 0).unbind(1)
        number = torch.arange(len(row), device=ids.device) - (blocks[:, 2].cumsum(0) - blocks[:, 2]).repeat_interleave(
            blocks[:, 2]
        )
        sizes = torch.tensor(patches, device=ids.device).repeat_interleave(blocks[:, 2])
        first[row, start + number] = first[row, start] + number * sizes // count
        is_token = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        first = first.masked_fill(~is_token, 0)
        positions = whole.gather(2, first.expand(3, -1, -1)).masked_fill(~is_token, 0)
        return positions, deltas + (inside.sum(1) - is_token.sum(1))[:, None]

    def position(
        self, position_ids: Any, input_ids: Tensor, attention_mask: Any, regions: Regions, **inputs: Any
    ) -> Tensor:
        """Return positions ``(3 or 4, B, columns)`` with the tokens of images at the centroids of their regions."""
        if position_ids is None:
            if any(inputs.get(name) is not None and inputs[name].get_seq_length() for name in CACHES):
                raise ValueRangeError(
                    "new images on a cache need the positions of the whole conversation. Pass it without the cache."
                )
            names = ("mm_token_type_ids", "image_grid_thw")
            given = {name: inputs[name] for name in names if inputs.get(name) is not None}
            position_ids, self.rope_deltas = self.get_rope_index(input_ids, attention_mask=attention_mask, **given)
        if self.positions == "even" or position_ids.ndim == 2:  # positions without rows and columns are kept
            return position_ids
        of_image = input_ids == self.config.image_token_id
        if attention_mask is not None and attention_mask.ndim == 2:
            of_image &= attention_mask.bool()
        centroids = regions.centroids().T
        placed = position_ids.float()
        placed[-2:, of_image] = placed[-3, of_image] + centroids.to(placed)
        return placed if (centroids % 1).any() else placed.to(position_ids.dtype)

    def positions_of(self, input_ids: Tensor, mask: Tensor, regions: Regions, **inputs: Any) -> dict[str, Any]:
        """Return ``position_ids (4, B, columns)``: of text, then time, row and column for the rotary embedding."""
        inputs.pop("mm_token_type_ids", None)
        rotary = self.position(None, input_ids, mask, regions, **inputs)
        text = (mask.cumsum(1) - 1).clamp(min=0).masked_fill(mask == 0, 0)
        return {"position_ids": torch.cat([text[None].to(rotary.dtype), rotary])}

    @property
    def positions(self) -> str:
        """Where the tokens of an image are: at the ``centroid`` of their region, or spread ``even``-ly."""
        return getattr(self.config, "regiontok_positions", None) or "centroid"

    def check_regionizer(self, regionizer: Regionizer) -> None:
        """Reject a Regionizer that does not fit this model, and unknown positions."""
        super().check_regionizer(regionizer)
        check_choice("positions", self.positions, POSITIONS)


def _as_grids(features: Sequence[Tensor], views: Sequence[View]) -> Features:
    return [grid.unflatten(0, view.grid) for grid, view in zip(features, views, strict=True)]
