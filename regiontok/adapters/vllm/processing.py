"""The processor of a region model in vLLM: an image has one placeholder per region, whose number is known before.

The budget is ``num_regions`` or ``keep`` of ``--mm-processor-kwargs``, or that of the config's ``regiontok``. A request
can lower it by its own ``mm_processor_kwargs``. A video has the budget ``video_num_regions`` or ``video_keep``, or that
of an image, which is shared over its chunks of frames as in transformers. What vLLM does not support is rejected
here or when the server starts, since an exception in the engine makes it unusable.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import torch
import vllm
from packaging.version import Version
from torch import Tensor
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import DictEmbeddingItems, EmbeddingItems, ImageProcessorItems, VideoProcessorItems
from vllm.multimodal.processing import InputProcessingContext, PromptUpdateDetails

from regiontok.adapters.vllm import TESTED
from regiontok.adapters.vllm.options import (
    OPTIONS,
    VIDEO_OPTIONS,
    check_options,
    check_request,
    find_budget,
    find_video_budget,
    read_budget,
    region_options,
    reject_video_options,
)
from regiontok.budgets import resolve_budget
from regiontok.errors import RegiontokError
from regiontok.tiles import MAX_FRAMES, Tile, share_budget, split_patches

REGIONIZER_NAMES = WeightsMapper(orig_to_new_regex={re.compile(r"^model\.regionizer\."): "regionizer."})
"""Names of the weights of the Regionizer in a folder of ``save_pretrained``, and here."""
BUDGETS = {"image": "regiontok_budget", "video": "regiontok_video_budget"}
"""Inputs of the model with the budget of each image or video, ``(N, 2)``: ``num_regions`` and ``keep``, one is NaN."""

_LARGEST = 2**53
"""The largest integer up to which float64 has all integers."""


def check_version() -> None:
    """Raise ValueError for a vLLM that was not tested."""
    lowest, next_version = map(Version, TESTED)
    if not lowest <= Version(vllm.__version__.partition("+")[0]) < next_version:
        raise ValueError(
            f"regiontok was tested with vLLM from {lowest} to before {next_version}; got {vllm.__version__}. "
            "Install a vLLM of this range."
        )


def check_server(vllm_config: Any) -> None:
    """Raise ValueError for options of the server that region models do not support."""
    if vllm_config.speculative_config is not None:
        raise ValueError("region models do not support speculative decoding. Leave --speculative-config out.")
    lora = vllm_config.lora_config
    if lora is not None and getattr(lora, "enable_tower_connector_lora", False):
        raise ValueError("region models do not support LoRA on the vision tower. Leave that option out.")
    if vllm_config.model_config.get_multimodal_config().get_video_pruning_spec() is not None:
        raise ValueError("region models do not support the pruning of videos. Leave --video-pruning-rate out.")


def server_budget(model_config: Any) -> dict[str, Any]:
    """Return the budget of a server, ``num_regions`` or ``keep``.

    Raises:
        ValueError: There is none, or it is invalid.
    """
    kwargs = model_config.get_multimodal_config().mm_processor_kwargs
    return find_budget(kwargs or {}, region_options(model_config.hf_config))


@dataclasses.dataclass(frozen=True)
class RegionContext(InputProcessingContext):
    """A context that does not pass our options to processors of transformers."""

    def get_merged_mm_kwargs(self, kwargs: Mapping[str, object], **options: Any) -> dict[str, Any]:
        """Return the arguments for a processor of transformers."""
        merged: dict[str, Any] = super().get_merged_mm_kwargs(kwargs, **options)
        return {name: value for name, value in merged.items() if name not in (*OPTIONS, *VIDEO_OPTIONS)}


class RegionInfo:
    """Mixin before the ``ProcessingInfo`` of a family.

    Raises:
        ValueError: This vLLM was not tested, or the Regionizer or its budget cannot be served.
    """

    serves_videos = False

    def __init__(self, ctx: InputProcessingContext) -> None:
        check_version()
        super().__init__(RegionContext(ctx.model_config, ctx.tokenizer))
        check_options(region_options(ctx.model_config.hf_config))
        config = ctx.model_config.hf_config
        kwargs = ctx.model_config.get_multimodal_config().mm_processor_kwargs or {}
        videos = getattr(config, "regiontok_videos", None)
        if not self.serves_videos:
            reject_video_options(kwargs)
        self.most = {
            "image": server_budget(ctx.model_config),
            "video": find_video_budget(kwargs, region_options(config), videos),
        }
        self.has_video_budget = bool(read_budget(kwargs, VIDEO_OPTIONS) or read_budget(videos or {}))
        self.keeps_empty_frames = (videos or {}).get("empty_frames") == "keep"
        self.max_frames = region_options(config).get("max_frames") or MAX_FRAMES

    def budget(self, kwargs: Mapping[str, object], medium: str = "image") -> dict[str, Any]:
        """Return the budget of a request: its own, or that of the server.

        Args:
            kwargs: ``mm_processor_kwargs`` of the request.
            medium: ``image`` or ``video``.

        Raises:
            VLLMValidationError: The budget is invalid.
        """
        budget = read_budget(kwargs)
        if medium == "video":
            budget = read_budget(kwargs, VIDEO_OPTIONS) or ({} if self.has_video_budget else budget)
        try:
            for names in (OPTIONS, VIDEO_OPTIONS):
                resolve_budget([1], **read_budget(kwargs, names))
        except RegiontokError as error:
            raise VLLMValidationError(str(error), parameter=medium) from error
        return budget or self.most[medium]

    def share(self, sizes: Sequence[int], kwargs: Mapping[str, object], medium: str = "image") -> list[int]:
        """Return the number of tokens of each grid of an image, or of each chunk of a video.

        Args:
            sizes: Their numbers of patches.
            kwargs: ``mm_processor_kwargs`` of the request.
            medium: ``image`` or ``video``.

        Raises:
            VLLMValidationError: The budget of the request is invalid or larger than that of the server.
        """
        budget, most = self.budget(kwargs, medium), self.most[medium]
        tiles = [Tile(0, 0, (1, size), frames=1 if medium == "video" else None) for size in sizes]
        try:
            limits, counts = (share_budget(tiles, **each) for each in (most, budget))
        except RegiontokError as error:
            raise VLLMValidationError(str(error), parameter=next(iter(budget))) from error
        exceeds = any(budget[name] > most[name] for name in budget.keys() & most.keys())
        if sum(counts) > sum(limits) or exceeds:
            raise VLLMValidationError(
                f"a request can only lower the budget of the server, {most}; got {budget}. Ask for fewer "
                "tokens, or start the server with a larger budget.",
                parameter=next(iter(budget)),
            )
        return counts

    def count(self, num_patches: int, kwargs: Mapping[str, object], num_grids: int = 1) -> int:
        """Return the number of tokens of an image with ``num_grids`` grids; see `share`."""
        return sum(self.share(split_patches(num_patches, num_grids), kwargs))

    def count_frames(self, lengths: Sequence[int], kwargs: Mapping[str, object]) -> list[int]:
        """Return the number of placeholders of each block of a video.

        Args:
            lengths: Those of the stock model: of each frame, or of the whole video.
            kwargs: ``mm_processor_kwargs`` of the request.
        """
        chunks = [lengths[start : start + self.max_frames] for start in range(0, len(lengths), self.max_frames)]
        counts = self.share([sum(chunk) for chunk in chunks], kwargs, "video")
        if sum(counts) == sum(lengths):
            return list(lengths)
        return [
            count * (frame == 0) for chunk, count in zip(chunks, counts, strict=True) for frame in range(len(chunk))
        ]

    def count_placeholders(self, stock: int, size: Any, kwargs: Mapping[str, object]) -> int:
        """Return the number of placeholders of an image.

        Args:
            stock: Its number of placeholders in the stock model.
            size: Its width and height.
            kwargs: ``mm_processor_kwargs`` of the request.
        """
        return self.count(stock, kwargs)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Return the limits of the stock model for images, and for videos if the family serves them; 0 for others."""
        limits = super().get_supported_mm_limits()
        served = ("image", "video") if self.serves_videos else ("image",)
        return {name: limit if name in served else 0 for name, limit in limits.items()}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int] | None:
        """Return the largest number of tokens of an image, and that of the stock model for videos."""
        counts = super().get_mm_max_tokens_per_item(seq_len, mm_counts)
        if counts is None:
            return None
        return {
            name: self.count(count, {}) if name == "image" else count
            for name, count in counts.items()
            if name == "image" or self.serves_videos
        }


class RegionProcessor:
    """Mixin before the ``MultiModalProcessor`` of a family: shorter blocks of placeholders, and the budgets."""

    info: RegionInfo

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        ours = {name: MultiModalFieldConfig.batched(medium, keep_on_cpu=True) for medium, name in BUDGETS.items()}
        return {**fields, **ours}

    def apply(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Process a prompt.

        Raises:
            VLLMValidationError: The request has embeddings, or options that are not supported.
        """
        check_inputs(inputs, serves_videos=self.info.serves_videos)
        return super().apply(inputs, *args, **kwargs)

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        processed = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        for medium, name in BUDGETS.items():
            items = mm_items.get(medium)
            if isinstance(items, ImageProcessorItems | VideoProcessorItems):
                budget = self.info.budget(hf_kwargs, medium)
                row = [float(min(budget.get(option, math.nan), _LARGEST)) for option in OPTIONS]
                processed[name] = torch.tensor([row] * len(items), dtype=torch.float64)
        return processed

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Sequence[Any]:
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        images = mm_items.get("image")
        return [
            self._shorten(update, images, hf_processor_mm_kwargs) if update.modality in BUDGETS else update
            for update in updates
        ]

    def _shorten(self, update: Any, images: Any, kwargs: Mapping[str, object]) -> Any:
        """Return an update with one placeholder per region and the stock text around them."""
        content = update.content

        def shorter(item: int) -> PromptUpdateDetails:
            details = content(item) if callable(content) else content
            if not isinstance(details, PromptUpdateDetails):
                details = PromptUpdateDetails.from_seq(details)
            is_embed = details.is_embed
            is_placeholder = torch.ones(len(details.full)).bool() if is_embed is None else is_embed(details.full)
            if update.modality == "image":
                count = self.info.count_placeholders(int(is_placeholder.sum()), images.get_image_size(item), kwargs)
                is_kept = ~is_placeholder | (is_placeholder.cumsum(0) <= count)
            else:
                blocks = find_blocks_of(is_placeholder)
                counts = self.info.count_frames([end - start for start, end in blocks], kwargs)
                is_kept = kept_of_frames(is_placeholder, blocks, counts, drop_empty=not self.info.keeps_empty_frames)
            return dataclasses.replace(details, full=list(compress(details.full, is_kept.tolist())))

        name = "replacement" if hasattr(update, "replacement") else "insertion"
        return dataclasses.replace(update, **{name: shorter})


def check_inputs(inputs: Any, *, serves_videos: bool) -> None:
    """Reject embeddings, and options of a request that are not supported.

    Raises:
        VLLMValidationError: There are such inputs.
    """
    for medium, items in inputs.mm_data_items.items():
        if isinstance(items, EmbeddingItems | DictEmbeddingItems):
            raise VLLMValidationError(
                f"a region model computes its tokens from {medium}s. Send {medium}s, or embeddings to the stock model.",
                parameter=medium,
            )
    try:
        check_request(inputs.hf_processor_mm_kwargs)
        if not serves_videos:
            reject_video_options(inputs.hf_processor_mm_kwargs)
    except RegiontokError as error:
        raise VLLMValidationError(str(error), parameter="mm_processor_kwargs") from error


def find_blocks_of(is_placeholder: Tensor) -> list[tuple[int, int]]:
    """Return first and last (exclusive) of each block of placeholders of a text ``(length,)`` bool."""
    change = torch.diff(is_placeholder.int(), prepend=torch.zeros(1).int(), append=torch.zeros(1).int())
    starts, ends = (change == 1).nonzero()[:, 0].tolist(), (change == -1).nonzero()[:, 0].tolist()
    return list(zip(starts, ends, strict=True))


def kept_of_frames(
    is_placeholder: Tensor, blocks: Sequence[tuple[int, int]], counts: Sequence[int], *, drop_empty: bool
) -> Tensor:
    """Return which tokens of the text of a video remain, ``(length,)`` bool.

    Args:
        is_placeholder: ``(length,)`` bool.
        blocks: Blocks of placeholders, one per frame. The token after a block is its closing tag.
        counts: Number of placeholders of each block that remain.
        drop_empty: Whether the whole text of a frame without placeholders is dropped, its timestamp included.
    """
    is_kept = ~is_placeholder
    frame_start = 0
    for (start, end), count in zip(blocks, counts, strict=True):
        is_kept[start : start + count] = True
        if not count and drop_empty:
            is_kept[frame_start : end + 1] = False
        frame_start = end + 1
    return is_kept


def share_budgets(budgets: Tensor, tiles: Sequence[Tile]) -> list[int]:
    """Return the number of tokens of each tile.

    Args:
        budgets: ``(N, 2)``: ``num_regions`` and ``keep`` of each image or video, one of them NaN.
        tiles: The tiles of all images, or the chunks of all videos.
    """
    counts = []
    for image, (num_regions, keep) in enumerate(budgets.tolist()):
        budget: dict[str, Any] = {"keep": keep} if num_regions != num_regions else {"num_regions": int(num_regions)}
        counts += share_budget([dataclasses.replace(tile, image=0) for tile in tiles if tile.image == image], **budget)
    return counts
