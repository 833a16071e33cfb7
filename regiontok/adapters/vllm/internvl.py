"""InternVL in vLLM: regions of projected features, of the joined tiles and of the thumbnail."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import interns1
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageProcessorItems

from regiontok.adapters.vllm.model import Features, PixelRows, RegionModel
from regiontok.adapters.vllm.processing import REGIONIZER_NAMES, RegionInfo, RegionProcessor
from regiontok.tiles import Tile, join_tiles, make_tiles

TILING = "regiontok_tiling"
"""Input of the model with rows and columns of the tiles of each image, ``(images, 2)``."""


class InternVLInfo(RegionInfo, interns1.InternS1ProcessingInfo):
    """Processing info of InternVL with regions."""

    def count_placeholders(self, stock: int, size: Any, kwargs: Mapping[str, object]) -> int:
        """Return the number of tokens of an image, whose tiles are one grid and whose thumbnail is another."""
        is_cut = stock > self.get_hf_processor().image_seq_length
        return self.count(stock, kwargs, 1 + is_cut)


class InternVLProcessor(RegionProcessor, interns1.InternS1MultiModalProcessor):
    """Processor of InternVL with regions."""

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        processed = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        images = mm_items.get("image")
        if isinstance(images, ImageProcessorItems):
            counts = processed["image_num_patches"].tolist()
            sizes = [images.get_image_size(image) for image in range(len(images))]
            tilings = [self._tiling_of(size, count) for size, count in zip(sizes, counts, strict=True)]
            processed[TILING] = torch.tensor(tilings)
        return processed

    def _tiling_of(self, size: Any, num_tiles: int) -> tuple[int, int]:
        """Return rows and columns of the tiles of an image, ``num_tiles`` with its thumbnail."""
        processor = self.info.get_hf_processor().image_processor
        if num_tiles == 1:
            return 1, 1
        choose_tiles = sys.modules[type(processor).__module__].get_optimal_tiled_canvas
        tile = processor.size["height"], processor.size["width"]
        cols, rows = choose_tiles((size.height, size.width), tile, num_tiles - 1, num_tiles - 1)
        return rows, cols

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        return {**fields, TILING: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}


@MULTIMODAL_REGISTRY.register_processor(
    InternVLProcessor, info=InternVLInfo, dummy_inputs=interns1.InternS1DummyInputsBuilder
)
class RegionInternVL(RegionModel, interns1.InternS1ForConditionalGeneration):
    """An InternVL whose images are region tokens."""

    hf_to_vllm_mapper = interns1.InternS1ForConditionalGeneration.hf_to_vllm_mapper | REGIONIZER_NAMES

    def pixel_rows(self, medium: str, **kwargs: Any) -> PixelRows:
        """Return the number of tiles of each image."""
        return PixelRows(kwargs["image_num_patches"].tolist(), self.num_image_token, "pixel_values")

    def patch_features(self, **kwargs: Any) -> Features:
        """Return the projected features of the joined tiles and of the thumbnail of each image."""
        tilings = kwargs.pop(TILING).tolist()
        features = self.extract_feature(self._parse_and_validate_image_input(**kwargs)["pixel_values"])
        side = round(features.shape[1] ** 0.5)
        height, width = self.config.vision_config.image_size
        tiles = make_tiles([(rows, cols) for rows, cols in tilings], (side, side), (height, width), is_joined=True)
        grids = []
        start = 0
        for tile in tiles:
            rows, cols = tile.grid[0] // side, tile.grid[1] // side
            parts = features[start : start + rows * cols].unflatten(1, (side, side))
            grids.append(join_tiles(parts, rows, cols))
            start += rows * cols
        return Features(grids, tiles=tiles)

    def pack(self, tiles: Sequence[Tile], parts: Sequence[Tensor]) -> Tensor:
        """Return the tokens of an image, tile by tile as in the stock model if no patch is merged."""
        if len(tiles) == 1 or not self.is_unmerged(tiles, parts):
            return torch.cat(list(parts))
        side, (rows, cols) = tiles[1].grid[0], tiles[0].grid
        joined = parts[0].unflatten(0, (rows // side, side, cols // side, side)).transpose(1, 2).flatten(0, 3)
        return torch.cat([joined, parts[1]])
