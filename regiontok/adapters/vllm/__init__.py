r"""Region tokens inside vLLM: a plug-in that makes region models and stock checkpoints servable by ``vllm serve``.

    vllm serve llava-hf/llava-1.5-7b-hf --mm-processor-kwargs '{"num_regions": 128}' \
        --hf-overrides '{"architectures": ["RegionLlavaForConditionalGeneration"]}'
    vllm serve my-region-llava                             # a folder of save_pretrained

vLLM calls `register` in each of its processes, for every model that it serves. So this module imports nothing but
names: a model's module is imported when it is served.
"""

import importlib
from typing import Any

from regiontok._require import require

NATIVE = {
    "RegionLlavaForConditionalGeneration": ("llava:RegionLlava", "LlavaConfig"),
    "RegionLlavaNextForConditionalGeneration": ("llava:RegionLlavaNext", "LlavaNextConfig"),
    "RegionInternVLForConditionalGeneration": ("internvl:RegionInternVL", "InternVLConfig"),
    "RegionQwen2VLForConditionalGeneration": ("dynamic_resolution:RegionQwen2VL", "Qwen2VLConfig"),
    "RegionQwen2_5_VLForConditionalGeneration": ("dynamic_resolution:RegionQwen25VL", "Qwen2_5_VLConfig"),
    "RegionQwen3VLForConditionalGeneration": ("dynamic_resolution:RegionQwen3VL", "Qwen3VLConfig"),
}
"""The architectures of region models, their modules and classes here, and the config classes of their stock models."""
VIDEOS = ("Qwen2VL", "Qwen2_5_VL", "Qwen3VL")
"""Families whose videos are served: their class names without Region and ForConditionalGeneration, as below."""
BACKEND = ("LlavaOnevision", "LlavaNextVideo", "Glm4v", "Glm4vMoe", "Glm46V", "Gemma3", "VideoLlama3")
"""Families that are served through vLLM's Transformers backend."""
_BLOCKS = "its Transformers backend does not support blocks of placeholders per tile"
_FAMILY = "its Transformers backend does not support the family"
REJECTED = {
    "Qwen3VLMoe": "answers differ from those of the model in transformers",
    "Qwen3_5": "its Transformers backend does not support linear attention",
    "Qwen3_5Moe": "its Transformers backend does not support linear attention",
    "AyaVision": _BLOCKS,
    "Cohere2Vision": _BLOCKS,
    "Idefics3": _BLOCKS,
    "SmolVLM": _BLOCKS,
    "Gemma4": _FAMILY,
    "PaliGemma": _FAMILY,
    "VipLlava": _FAMILY,
    "FastVlm": _FAMILY,
    "VideoLlava": _FAMILY,
    "PerceptionLM": "it was not tested",
}
"""Families that vLLM cannot serve with regions, and why."""
TESTED = ("0.32", "0.33")
"""The first vLLM that was tested, and the first that was not."""


def register() -> None:
    """Register the architectures of region models in vLLM, and the configs of their folders in transformers."""
    transformers = require("transformers", extra="hf")
    registry = require("vllm", extra="").ModelRegistry
    architectures = registry.get_supported_archs()
    for architecture, (place, stock_config) in NATIVE.items():
        if architecture not in architectures:
            registry.register_model(architecture, f"{__name__}.{place}")
        stock: Any = getattr(transformers, stock_config)
        name = f"region_{stock.model_type}"
        config = type(f"Region{stock_config}", (stock,), {"model_type": name})
        transformers.AutoConfig.register(name, config, exist_ok=True)
    names = require("transformers.models.auto.configuration_auto", extra="hf").CONFIG_MAPPING_NAMES
    model_types = {config_name: model_type for model_type, config_name in names.items()}
    for family in (*BACKEND, *REJECTED):
        if f"Region{family}ForConditionalGeneration" in architectures:
            continue
        place = "RegionMoEBackend" if family.endswith("Moe") else "RegionBackend"
        registry.register_model(f"Region{family}ForConditionalGeneration", f"{__name__}.backend:{place}")
        name = f"region_{model_types[f'{family}Config']}"
        if name not in transformers.CONFIG_MAPPING:
            bases = (_LateConfig, transformers.PreTrainedConfig)
            transformers.AutoConfig.register(name, type(f"Region{family}Config", bases, {"model_type": name}))


class _LateConfig:
    """Config that imports the region models of transformers when it is created, and becomes one of theirs."""

    model_type: str

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        importlib.import_module("regiontok.adapters.huggingface")  # replaces this class
        config_class: Any = require("transformers", extra="hf").CONFIG_MAPPING[cls.model_type]
        return config_class(*args, **kwargs)
