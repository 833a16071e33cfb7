"""Qwen-VL in vLLM: regions of merged features, at the rotary positions of their centroids.

vLLM computes positions when a request arrives, before its images are encoded. The position of each region is then the
start of its image, and the text after the image continues as in the stock model, because the grid is known. When an
image is encoded, its embeddings have the centroids as further columns. `embed_input_ids` copies them to a
buffer, and `forward` adds them to the positions. vLLM's Qwen3-VL passes its deepstack layers in the same way.

A video of Qwen2-VL and Qwen2.5-VL is one block of placeholders, and its regions have a position in time. In Qwen3-VL,
each chunk of frames follows the timestamp of its first frame, as in `regiontok.adapters.huggingface.videos`.

A saved model with ``positions`` other than ``centroid`` is rejected.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.model_executor.layers.rotary_embedding import mrope
from vllm.model_executor.models import qwen2_5_vl, qwen2_vl, qwen3_vl
from vllm.multimodal import MULTIMODAL_REGISTRY

from regiontok._positions import mean_positions, positions
from regiontok.adapters.vllm.model import Features, PixelRows, RegionModel
from regiontok.adapters.vllm.processing import REGIONIZER_NAMES, RegionInfo, RegionProcessor, find_blocks_of
from regiontok.regions import Regions
from regiontok.tiles import MAX_FRAMES, cut_videos

_AXES = 3
_PARTS = 3
"""Time, row and column of a centroid have three parts each, because bfloat16 has integers up to 256."""


class DynamicResolution(RegionModel):
    """Families with grids that follow the image size, and rotary positions of rows and columns."""

    offsets: Tensor
    has_frame_blocks = False

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.side = self.config.vision_config.spatial_merge_size
        self.dim = self.config.get_text_config().hidden_size
        layers = getattr(self.config.vision_config, "deepstack_visual_indexes", None) or ()
        self.width = self.dim * (1 + len(layers))
        tokens = vllm_config.scheduler_config.max_num_batched_tokens
        self.register_buffer("offsets", torch.zeros(_AXES, tokens, dtype=torch.float32), persistent=False)
        self.has_offsets = False
        for module in self.language_model.modules():
            if isinstance(module, mrope.MRotaryEmbedding):
                _use_fractions(module)

    def check_server(self, vllm_config: Any) -> None:
        """Raise ValueError for options of the server that region models do not support."""
        super().check_server(vllm_config)
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise ValueError("the positions of regions reach the first rank only. Leave --pipeline-parallel-size out.")
        positions = getattr(vllm_config.model_config.hf_config, "regiontok_positions", None) or "centroid"
        if positions != "centroid":
            raise ValueError(f"this model serves positions='centroid'; got {positions!r}. Convert it again.")

    def get_encoder_cudagraph_config(self) -> Any:
        """Return a configuration without CUDA graphs of the encoder, which would go round `embed_multimodal`."""
        return dataclasses.replace(super().get_encoder_cudagraph_config(), modalities=[])

    def pixel_rows(self, medium: str, **kwargs: Any) -> PixelRows:
        """Return the number of patches before merging of each image or video."""
        counts = kwargs[f"{medium}_grid_thw"].prod(-1).tolist()
        return PixelRows(counts, 1 / self.side**2, "pixel_values" if medium == "image" else "pixel_values_videos")

    def patch_features(self, **kwargs: Any) -> Features:
        """Return the merged features of each image, and those of deepstack layers."""
        image_input = self._parse_and_validate_image_input(**kwargs)
        shapes = [(rows // self.side, cols // self.side) for _, rows, cols in image_input["image_grid_thw"].tolist()]
        images = self._process_image_input(image_input)
        grids = [values.unflatten(0, shape) for values, shape in zip(images, shapes, strict=True)]
        layers = [grid[..., self.dim :] for grid in grids] if self.width > self.dim else []
        return Features([grid[..., : self.dim] for grid in grids], layers)

    def clip_features(self, **kwargs: Any) -> Features:
        """Return the merged features of each chunk of frames, those of deepstack layers, and the times of frames."""
        video_input = self._parse_and_validate_video_input(**kwargs)
        grids = video_input["video_grid_thw"].tolist()
        shapes = [(frames, rows // self.side, cols // self.side) for frames, rows, cols in grids]
        tiles = cut_videos(shapes, self.max_frames)
        videos = self._process_video_input(video_input)
        seconds = video_input.get("second_per_grid_ts")
        parts, times = [], []
        for video, (values, shape) in enumerate(zip(videos, shapes, strict=True)):
            lengths = [tile.frames or 0 for tile in tiles if tile.image == video]
            parts += values.unflatten(0, shape).split(lengths)
            step = 1.0 if seconds is None else float(seconds[video])
            times += self.frame_times(shape[0], step).to(values.device).split(lengths)
        layers = [part[..., self.dim :] for part in parts] if self.width > self.dim else []
        return Features([part[..., : self.dim] for part in parts], layers, tiles, times)

    @property
    def max_frames(self) -> int | None:
        """Number of frames of a chunk; None if a video is one chunk."""
        return (self.regionizer.config.max_frames or MAX_FRAMES) if self.has_frame_blocks else None

    def frame_times(self, frames: int, seconds: float) -> Tensor:
        """Return the rotary position in time of each frame of a video, ``(frames,)``, from the start of its block."""
        if self.has_frame_blocks:
            return torch.zeros(frames, dtype=torch.long)
        per_second = getattr(self.config.vision_config, "tokens_per_second", None)
        return (torch.arange(frames) * (1.0 if per_second is None else per_second * seconds)).long()

    def finish(self, values: Tensor, regions: Regions, times: Sequence[Tensor]) -> Tensor:
        """Return values with the centroids as further columns."""
        position = positions(regions)
        if times:
            lengths = torch.tensor([len(part) for part in times], device=position.device)
            first = (lengths.cumsum(0) - lengths)[regions.image[regions.region]]
            time = torch.cat(list(times)).to(position.device)[first + position[:, 0]]
            position = torch.cat([time[:, None], position[:, 1:]], 1)
        else:
            position = nn.functional.pad(position, (1, 0))
        centroids = mean_positions(regions, position, None).to(values.device)
        whole = centroids.floor()
        parts = [whole // 256, whole % 256, centroids - whole]
        return torch.cat([values, *(part.to(values.dtype) for part in parts)], 1)

    def embed_input_ids(self, input_ids: Tensor, multimodal_embeddings: Any = None, **kwargs: Any) -> Tensor:
        """Return the embeddings of a step, and store the centroids of its regions."""
        images = list(multimodal_embeddings or ())
        if self.has_offsets:  # of the step before; a CUDA graph of `forward` could not clear them
            self.offsets.zero_()
            self.has_offsets = False
        if images:
            columns = torch.cat([image[:, self.width :] for image in images]).float()
            high, low, fraction = columns.T.reshape(_PARTS, _AXES, -1)
            is_region = kwargs["is_multimodal"].to(self.offsets.device)
            self.offsets[:, : len(input_ids)][:, is_region] = high * 256 + low + fraction
            self.has_offsets = True
        stock = [image[:, : self.width] for image in images] or None
        return super().embed_input_ids(input_ids, stock, **kwargs)

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the language model with the positions of regions at their centroids."""
        offsets = self.offsets[:, : positions.shape[-1]]
        return super().forward(input_ids, positions + offsets, *args, **kwargs)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Return positions ``(3, tokens)`` with each region at the start of its block, and the offset of the answer."""
        step = np.ones(len(input_tokens), dtype=np.int64)  # from the position of a token to that of the next one
        within = np.zeros_like(step)
        for feature in mm_features:
            place = feature.mm_position
            is_token = torch.ones(place.length).bool() if place.is_embed is None else place.is_embed
            _, rows, cols = feature.data[f"{feature.modality}_grid_thw"].data.tolist()
            advance = max(rows, cols) // self.side  # as in transformers, also for the frames of a video
            for first, end in find_blocks_of(is_token):
                start, length = place.offset + first, end - first
                step[start : start + length] = 0
                step[start] = advance
                within[start + 1 : start + length] = advance
        index = torch.from_numpy(step.cumsum() - step - within)
        return index.expand(_AXES, -1).contiguous(), int(step.sum()) - len(step)


def _use_fractions(rotary: Any) -> None:
    """Change a rotary embedding to accept fractional positions; vLLM's looks whole ones up in a table."""
    frequencies = rotary._compute_inv_freq(rotary.base).to(rotary.cos_sin_cache.device)
    rotary.register_buffer("frequencies", frequencies, persistent=False)

    def forward(positions: Tensor, query: Tensor, key: Tensor, offsets: Any = None) -> tuple[Tensor, Tensor]:
        angles = positions[..., None].float() * rotary.frequencies
        if rotary.mrope_interleaved:
            angles = mrope.apply_interleaved_rope(angles, rotary.mrope_section)
        else:
            parts = angles.split(rotary.mrope_section, -1)
            angles = torch.cat([part[row] for row, part in enumerate(parts)], -1)
        cos, sin = ((values * rotary.mscale).to(query.dtype) for values in (angles.cos(), angles.sin()))
        rotated = []
        for states in (query, key):
            heads = states.view(len(states), -1, rotary.head_size)
            turned = rotary.apply_rotary_emb.forward_native(heads[..., : rotary.rotary_dim], cos, sin)
            rotated.append(torch.cat([turned, heads[..., rotary.rotary_dim :]], -1).reshape(states.shape))
        return rotated[0], rotated[1]

    rotary._forward_method = forward


class Qwen2VLInfo(RegionInfo, qwen2_vl.Qwen2VLProcessingInfo):
    """Processing info of Qwen2-VL with regions."""

    serves_videos = True


class Qwen2VLProcessor(RegionProcessor, qwen2_vl.Qwen2VLMultiModalProcessor):
    """Processor of Qwen2-VL with regions."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2VLProcessor, info=Qwen2VLInfo, dummy_inputs=qwen2_vl.Qwen2VLDummyInputsBuilder
)
class RegionQwen2VL(DynamicResolution, qwen2_vl.Qwen2VLForConditionalGeneration):
    """A Qwen2-VL whose images are region tokens."""

    hf_to_vllm_mapper = qwen2_vl.Qwen2VLForConditionalGeneration.hf_to_vllm_mapper | REGIONIZER_NAMES


class Qwen25VLInfo(RegionInfo, qwen2_5_vl.Qwen2_5_VLProcessingInfo):
    """Processing info of Qwen2.5-VL with regions."""

    serves_videos = True


class Qwen25VLProcessor(RegionProcessor, qwen2_5_vl.Qwen2_5_VLMultiModalProcessor):
    """Processor of Qwen2.5-VL with regions."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen25VLProcessor, info=Qwen25VLInfo, dummy_inputs=qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder
)
class RegionQwen25VL(DynamicResolution, qwen2_5_vl.Qwen2_5_VLForConditionalGeneration):
    """A Qwen2.5-VL whose images are region tokens."""

    hf_to_vllm_mapper = qwen2_5_vl.Qwen2_5_VLForConditionalGeneration.hf_to_vllm_mapper | REGIONIZER_NAMES


class Qwen3VLInfo(RegionInfo, qwen3_vl.Qwen3VLProcessingInfo):
    """Processing info of Qwen3-VL with regions."""

    serves_videos = True


class Qwen3VLProcessor(RegionProcessor, qwen3_vl.Qwen3VLMultiModalProcessor):
    """Processor of Qwen3-VL with regions."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLProcessor, info=Qwen3VLInfo, dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder
)
class RegionQwen3VL(DynamicResolution, qwen3_vl.Qwen3VLForConditionalGeneration):
    """A Qwen3-VL whose images are region tokens."""

    has_frame_blocks = True
    hf_to_vllm_mapper = qwen3_vl.Qwen3VLForConditionalGeneration.hf_to_vllm_mapper | REGIONIZER_NAMES
