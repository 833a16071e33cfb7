r"""Region tokens inside vLLM: a plug-in that makes region models and stock checkpoints servable by ``vllm serve``.

    vllm serve llava-hf/llava-1.5-7b-hf --mm-processor-kwargs '{"num_regions": 128}' \
        --hf-overrides '{"architectures": ["RegionLlavaForConditionalGeneration"]}'
    vllm serve my-region-llava                             # a folder of save_pretrained

vLLM calls `register` in each of its processes, for every model that it serves. So this module imports nothing but
names: a model's module is imported when it is served.
"""

import importlib
import logging
from typing import Any

from regiontok._require import require

NATIVE = {
    "RegionLlavaForConditionalGeneration": "llava:RegionLlava",
    "RegionLlavaNextForConditionalGeneration": "llava:RegionLlavaNext",
    "RegionInternVLForConditionalGeneration": "internvl:RegionInternVL",
    "RegionQwen2VLForConditionalGeneration": "dynamic_resolution:RegionQwen2VL",
    "RegionQwen2_5_VLForConditionalGeneration": "dynamic_resolution:RegionQwen25VL",
    "RegionQwen3VLForConditionalGeneration": "dynamic_resolution:RegionQwen3VL",
}
"""The architectures of region models that have classes here, and their modules and classes."""
VIDEOS = ("Qwen2VL", "Qwen2_5_VL", "Qwen3VL")
"""Families whose videos are served: their class names without Region and ForConditionalGeneration, as below."""
BACKEND = ("LlavaOnevision", "LlavaNextVideo", "Glm4v", "Glm4vMoe", "Glm46V", "Gemma3", "VideoLlama3", "FastVlm")
"""Families that are served through vLLM's Transformers backend."""
_BLOCKS = "its Transformers backend does not support blocks of placeholders per tile"
_COUNTS = "the family's processor cannot count tokens, as the Transformers backend needs"
_LINEAR = "its Transformers backend does not support linear attention"
REJECTED = {
    "Qwen3VLMoe": "answers differ from those of the model in transformers",
    "Qwen3_5": _LINEAR,
    "Qwen3_5Moe": _LINEAR,
    "AyaVision": _BLOCKS,
    "Cohere2Vision": _BLOCKS,
    "Idefics3": _BLOCKS,
    "SmolVLM": _COUNTS,
    "VideoLlava": _COUNTS,
    "Gemma4": "the family embeds token ids a second time, and the Transformers backend does not pass them",
    "PaliGemma": "its Transformers backend writes other prompts than the family's processor",
    "VipLlava": "its Transformers backend creates a projector of another size",
    "PerceptionLM": "it was not tested",
}
"""Families that vLLM cannot serve with regions, and why."""
TESTED = ("0.32", "0.33")
"""The first vLLM that was tested, and the first that was not."""


def register() -> None:
    """Register the architectures of region models in vLLM, and the configs of their folders in transformers.

    In another version of vLLM than those tested, a warning is logged instead: stock models can still be served.
    """
    vllm = require("vllm", extra="")
    version = require("packaging.version", extra="hf").Version
    lowest, next_version = map(version, TESTED)
    if not lowest <= version(vllm.__version__.partition("+")[0]) < next_version:
        logging.getLogger(__name__).warning(
            "Region models cannot be served: regiontok was tested with vLLM from %s to before %s; got %s.",
            *TESTED,
            vllm.__version__,
        )
        return
    names = require("transformers.models.auto.configuration_auto", extra="hf").CONFIG_MAPPING_NAMES
    model_types = {config_name: model_type for model_type, config_name in names.items()}
    architectures = vllm.ModelRegistry.get_supported_archs()
    families = [name.removeprefix("Region").removesuffix("ForConditionalGeneration") for name in NATIVE]
    for family in (*families, *BACKEND, *REJECTED):
        architecture, model_type = f"Region{family}ForConditionalGeneration", model_types.get(f"{family}Config")
        if architecture in architectures or model_type is None:  # unknown to this version of transformers
            continue
        backend = f"backend:{'RegionMoEBackend' if family.endswith('Moe') else 'RegionBackend'}"
        vllm.ModelRegistry.register_model(architecture, f"{__name__}.{NATIVE.get(architecture, backend)}")
        _register_config(family, model_type, is_native=architecture in NATIVE)


def _register_config(family: str, model_type: str, *, is_native: bool) -> None:
    """Register a config for the folders of a family, unless the adapters of transformers have done so."""
    transformers = require("transformers", extra="hf")
    name = f"region_{model_type}"
    if name in transformers.CONFIG_MAPPING:
        return
    stock = getattr(transformers, f"{family}Config") if is_native else transformers.PreTrainedConfig
    bases = (stock,) if is_native else (_LateConfig, stock)
    transformers.AutoConfig.register(name, type(f"Region{family}Config", bases, {"model_type": name}))


class _LateConfig:
    """Config that imports the region models of transformers when it is created, and becomes one of theirs."""

    model_type: str

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        importlib.import_module("regiontok.adapters.huggingface")  # replaces this class
        config_class: Any = require("transformers", extra="hf").CONFIG_MAPPING[cls.model_type]
        return config_class(*args, **kwargs)
