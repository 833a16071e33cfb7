"""The processor of a region model in vLLM: an image has one placeholder per region, whose number is known before.

The budget is ``num_regions`` or ``keep`` of ``--mm-processor-kwargs``, or that of the config's ``regiontok``. A request
can lower it by its own ``mm_processor_kwargs``. What vLLM does not support is rejected here or when the server
starts, since an exception in the engine makes it unusable.
"""

import dataclasses
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
from vllm.multimodal.parse import DictEmbeddingItems, EmbeddingItems, ImageProcessorItems
from vllm.multimodal.processing import InputProcessingContext, PromptUpdateDetails

from regiontok.adapters.vllm import TESTED
from regiontok.adapters.vllm.options import OPTIONS, check_options, find_budget, region_options
from regiontok.budgets import resolve_budget
from regiontok.errors import RegiontokError
from regiontok.tiles import Tile, count_tokens, share_budget

REGIONIZER_NAMES = WeightsMapper(orig_to_new_regex={re.compile(r"^model\.regionizer\."): "regionizer."})
"""Names of the weights of the Regionizer in a folder of ``save_pretrained``, and here."""
BUDGET = "regiontok_budget"
"""Input of the model with the budget of each image, ``(images, 2)``: ``num_regions`` and ``keep``, one of them NaN."""


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
        return {name: value for name, value in merged.items() if name not in OPTIONS}


class RegionInfo:
    """Mixin before the ``ProcessingInfo`` of a family.

    Raises:
        ValueError: This vLLM was not tested, or the Regionizer or its budget cannot be served.
    """

    def __init__(self, ctx: InputProcessingContext) -> None:
        check_version()
        super().__init__(RegionContext(ctx.model_config, ctx.tokenizer))
        check_options(region_options(ctx.model_config.hf_config))
        self.most = server_budget(ctx.model_config)

    def budget(self, kwargs: Mapping[str, object]) -> dict[str, Any]:
        """Return the budget of a request: its own, or that of the server.

        Args:
            kwargs: ``mm_processor_kwargs`` of the request.

        Raises:
            VLLMValidationError: The budget is invalid.
        """
        budget = {name: kwargs[name] for name in OPTIONS if kwargs.get(name) is not None}
        if not budget:
            return self.most
        try:
            resolve_budget([1], **budget)  # type: ignore[arg-type]
        except RegiontokError as error:
            raise VLLMValidationError(str(error), parameter=next(iter(budget))) from error
        return budget

    def count(self, num_patches: int, kwargs: Mapping[str, object], num_grids: int = 1) -> int:
        """Return the number of tokens of an image.

        Args:
            num_patches: Number of its patches.
            kwargs: ``mm_processor_kwargs`` of the request.
            num_grids: Number of its grids.

        Raises:
            VLLMValidationError: The budget of the request is invalid or larger than that of the server.
        """
        budget = self.budget(kwargs)
        try:
            most, count = (count_tokens(num_patches, num_grids, **each) for each in (self.most, budget))
        except RegiontokError as error:
            raise VLLMValidationError(str(error), parameter=next(iter(budget))) from error
        exceeds = any(budget[name] > self.most[name] for name in budget.keys() & self.most.keys())
        if count > most or exceeds:
            raise VLLMValidationError(
                f"a request can only lower the budget of the server, {self.most}; got {budget}. Ask for fewer "
                "tokens, or start the server with a larger budget.",
                parameter=next(iter(budget)),
            )
        return count

    def count_placeholders(self, stock: int, size: Any, kwargs: Mapping[str, object]) -> int:
        """Return the number of placeholders of an image.

        Args:
            stock: Its number of placeholders in the stock model.
            size: Its width and height.
            kwargs: ``mm_processor_kwargs`` of the request.
        """
        return self.count(stock, kwargs)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Return the limits of the stock model for images, and 0 for other media."""
        limits = super().get_supported_mm_limits()
        return {name: limit if name == "image" else 0 for name, limit in limits.items()}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int] | None:
        """Return the largest number of tokens of an image."""
        counts = super().get_mm_max_tokens_per_item(seq_len, mm_counts)
        return None if counts is None else {"image": self.count(counts["image"], {})}


class RegionProcessor:
    """Mixin before the ``MultiModalProcessor`` of a family: shorter blocks of placeholders, and the budgets."""

    info: RegionInfo

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        return {**fields, BUDGET: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        processed = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        images = mm_items.get("image")
        if isinstance(images, ImageProcessorItems):
            budget = self.info.budget(hf_kwargs)
            row = [float(budget.get(name, "nan")) for name in OPTIONS]
            processed[BUDGET] = torch.tensor([row] * len(images), dtype=torch.float64)
        return processed

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Sequence[Any]:
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        images = mm_items.get("image")
        if isinstance(images, EmbeddingItems | DictEmbeddingItems):
            raise VLLMValidationError(
                "a region model computes its tokens from images. Send images, or embeddings to the stock model.",
                parameter="image",
            )
        return [
            self._shorten(update, images, hf_processor_mm_kwargs) if update.modality == "image" else update
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
            count = self.info.count_placeholders(int(is_placeholder.sum()), images.get_image_size(item), kwargs)
            is_kept = (~is_placeholder | (is_placeholder.cumsum(0) <= count)).tolist()
            return dataclasses.replace(details, full=list(compress(details.full, is_kept)))

        name = "replacement" if hasattr(update, "replacement") else "insertion"
        return dataclasses.replace(update, **{name: shorter})


def share_budgets(budgets: Tensor, tiles: Sequence[Tile]) -> list[int]:
    """Return the number of tokens of each tile.

    Args:
        budgets: ``(images, 2)``: ``num_regions`` and ``keep`` of each image, one of them NaN.
        tiles: The tiles of all images.
    """
    counts = []
    for image, (num_regions, keep) in enumerate(budgets.tolist()):
        budget: dict[str, Any] = {"keep": keep} if num_regions != num_regions else {"num_regions": int(num_regions)}
        counts += share_budget([dataclasses.replace(tile, image=0) for tile in tiles if tile.image == image], **budget)
    return counts
