"""LLaVA-1.5 and LLaVA-NeXT in vLLM: regions of the features of the tower, before the projector."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import llava, llava_next
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from regiontok.adapters.vllm.model import Features, PixelRows, RegionModel
from regiontok.adapters.vllm.options import region_options
from regiontok.adapters.vllm.processing import REGIONIZER_NAMES, RegionInfo, RegionProcessor
from regiontok.tiles import Tile, join_tiles

_NAMES = WeightsMapper(  # of CLIP and SigLIP, as transformers 5.24 saves them
    orig_to_new_regex={re.compile(r"^(model\.)?vision_tower\.(?!vision_model\.)"): "vision_tower.vision_model."}
)


class VisionTower(RegionModel):
    """Families whose projector follows the regions."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Return ``(tiles, rows, cols, dim)`` of pixels ``(tiles, 3, height, width)``, without class tokens."""
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        layers = {} if getattr(self, "select_layers", None) is None else {"select_layers": self.select_layers}
        hidden: Tensor = self.vision_tower(pixels, feature_select_strategy="full", **layers)
        return hidden[:, hidden.shape[1] - side**2 :].unflatten(1, (side, side))

    def pixel_rows(self, medium: str, **kwargs: Any) -> PixelRows:
        """Return the number of tiles of each image."""
        vision, pixels = self.config.vision_config, kwargs["pixel_values"]
        counts = [len(image) if image.ndim == 4 else 1 for image in pixels]
        return PixelRows(counts, (vision.image_size // vision.patch_size) ** 2)

    def project(self, values: Tensor) -> Tensor:
        """Return the output of the projector."""
        return self.multi_modal_projector(values)


class LlavaInfo(RegionInfo, llava.LlavaProcessingInfo):
    """Processing info of LLaVA-1.5 with regions."""

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        """Return the number of patches of an image."""
        side: int = self.get_vision_encoder_info().get_patch_grid_length()
        return side**2


class LlavaProcessor(RegionProcessor, llava.LlavaMultiModalProcessor):
    """Processor of LLaVA-1.5 with regions."""


@MULTIMODAL_REGISTRY.register_processor(LlavaProcessor, info=LlavaInfo, dummy_inputs=llava.LlavaDummyInputsBuilder)
class RegionLlava(VisionTower, llava.LlavaForConditionalGeneration):
    """A LLaVA-1.5 whose images are region tokens."""

    hf_to_vllm_mapper = llava.LlavaForConditionalGeneration.hf_to_vllm_mapper | REGIONIZER_NAMES | _NAMES

    def patch_features(self, **kwargs: Any) -> Features:
        """Return the features of each image."""
        return Features(list(self.encode(self._parse_and_validate_image_input(**kwargs)["pixel_values"])))


class LlavaNextInfo(RegionInfo, llava_next.LlavaNextProcessingInfo):
    """Processing info of LLaVA-NeXT with regions."""

    def count_placeholders(self, stock: int, size: Any, kwargs: Mapping[str, object]) -> int:
        """Return the number of tokens of an image with its newlines: those of the stock model if no patch is merged."""
        config, encoder = self.get_hf_config(), self.get_vision_encoder_info()
        down, across = llava_next.get_anyres_image_grid_shape(
            image_size=(size.height, size.width),
            grid_pinpoints=config.image_grid_pinpoints,
            patch_size=encoder.get_image_size(),
        )
        unpadded, newlines = self._get_num_unpadded_features(
            original_height=size.height,
            original_width=size.width,
            npatches=encoder.get_patch_grid_length(),
            num_patch_height=down,
            num_patch_width=across,
        )
        count = self.count(stock - newlines, kwargs, 1 + (unpadded > 0))
        newline = getattr(config, "regiontok_newline", None)
        if newline is not None:
            return count + (newline == "image")
        is_raster = region_options(config).get("order", "raster") == "raster"
        return stock if count == stock - newlines and is_raster else count


class LlavaNextProcessor(RegionProcessor, llava_next.LlavaNextMultiModalProcessor):
    """Processor of LLaVA-NeXT with regions."""


@MULTIMODAL_REGISTRY.register_processor(
    LlavaNextProcessor, info=LlavaNextInfo, dummy_inputs=llava.LlavaDummyInputsBuilder
)
class RegionLlavaNext(VisionTower, llava_next.LlavaNextForConditionalGeneration):
    """A LLaVA-NeXT whose images are region tokens, of the thumbnail and of the joined tiles without padding."""

    hf_to_vllm_mapper = llava_next.LlavaNextForConditionalGeneration.hf_to_vllm_mapper | REGIONIZER_NAMES | _NAMES

    def check_server(self, vllm_config: Any) -> None:
        """Raise ValueError for options of the server that region models do not support."""
        super().check_server(vllm_config)
        if getattr(vllm_config.model_config.hf_config, "regiontok_newline", None) == "row":
            raise ValueError("the number of newlines with newline='row' is known only after encoding. Use 'image'.")

    def patch_features(self, **kwargs: Any) -> Features:
        """Return two grids per image: the thumbnail, and the joined tiles without padding."""
        image_input = self._parse_and_validate_image_input(**kwargs)
        pixels = list(image_input["pixel_values"])
        features = self.encode(torch.cat(pixels)).split([len(image) for image in pixels])
        grids, tiles = [], []
        for image, (parts, size) in enumerate(zip(features, image_input["image_sizes"].tolist(), strict=True)):
            down, across = llava_next.get_anyres_image_grid_shape(
                size, self.config.image_grid_pinpoints, self.config.vision_config.image_size
            )
            joined = join_tiles(parts[1 : 1 + down * across], down, across)
            unpadded = llava_next.unpad_image(joined.permute(2, 0, 1), size).permute(1, 2, 0)
            rows, cols, _ = unpadded.shape
            is_empty = rows * cols == 0
            grids += [parts[0], *([] if is_empty else [unpadded])]
            tiles.append(Tile(image, image, tuple(parts.shape[1:3]), empty_rows=rows if is_empty else 0))
            tiles += [] if is_empty else [Tile(image, image, (rows, cols))]
        return Features(grids, tiles=tiles)

    def pack(self, tiles: Sequence[Tile], parts: Sequence[Tensor]) -> Tensor:
        """Return the tokens of an image, with the newlines of the stock model if no patch is merged."""
        newline, (thumbnail, *joined) = self.image_newline.to(parts[0])[None], parts
        mode = getattr(self.config, "regiontok_newline", None)
        if mode == "image":
            return torch.cat([*parts, newline])
        if mode == "drop" or not self.is_unmerged(tiles, parts):
            return torch.cat(list(parts))
        if not joined:
            return torch.cat([thumbnail, newline.expand(tiles[0].empty_rows, -1)])
        rows = joined[0].unflatten(0, tiles[1].grid)
        return torch.cat([thumbnail, torch.cat([rows, newline.expand(len(rows), 1, -1)], 1).flatten(0, 1)])
