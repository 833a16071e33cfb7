r"""Region tokens inside vLLM: a plug-in that makes region models and stock checkpoints servable by ``vllm serve``.

    vllm serve llava-hf/llava-1.5-7b-hf --mm-processor-kwargs '{"num_regions": 128}' \
        --hf-overrides '{"architectures": ["RegionLlavaForConditionalGeneration"]}'
    vllm serve my-region-llava                             # a folder of save_pretrained

vLLM calls `register` in each of its processes, for every model that it serves. So this module imports nothing but
names: a model's module is imported when it is served.
"""

from typing import Any

from regiontok._require import require

MODELS = {
    "RegionLlavaForConditionalGeneration": ("llava:RegionLlava", "LlavaConfig"),
    "RegionLlavaNextForConditionalGeneration": ("llava:RegionLlavaNext", "LlavaNextConfig"),
    "RegionInternVLForConditionalGeneration": ("internvl:RegionInternVL", "InternVLConfig"),
    "RegionQwen2VLForConditionalGeneration": ("dynamic_resolution:RegionQwen2VL", "Qwen2VLConfig"),
    "RegionQwen2_5_VLForConditionalGeneration": ("dynamic_resolution:RegionQwen25VL", "Qwen2_5_VLConfig"),
    "RegionQwen3VLForConditionalGeneration": ("dynamic_resolution:RegionQwen3VL", "Qwen3VLConfig"),
}
"""The architectures of region models, their modules and classes here, and the config classes of their stock models."""
TESTED = ("0.32", "0.33")
"""The first vLLM that was tested, and the first that was not."""


def register() -> None:
    """Register the architectures of region models in vLLM, and the configs of their folders in transformers."""
    transformers = require("transformers", extra="hf")
    registry = require("vllm", extra="hf").ModelRegistry
    architectures = registry.get_supported_archs()
    for architecture, (place, stock_config) in MODELS.items():
        if architecture not in architectures:
            registry.register_model(architecture, f"{__name__}.{place}")
        stock: Any = getattr(transformers, stock_config)
        name = f"region_{stock.model_type}"
        config = type(f"Region{stock_config}", (stock,), {"model_type": name})
        transformers.AutoConfig.register(name, config, exist_ok=True)
