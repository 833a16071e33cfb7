"""Region tokens in transformers' multimodal models.

    from regiontok import Regionizer
    from regiontok.adapters.huggingface import with_regions

    model = LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf")
    small = with_regions(model, Regionizer(pool="mean", norm="none", num_regions=128))
    small.generate(**processor(images=photo, text=prompt, return_tensors="pt"))    # 128 tokens instead of 576

Three doors: `with_regions` for a model that is loaded; a class per family, whose ``from_pretrained`` loads a stock
checkpoint or one that it saved; and `load_model`, which finds the family by itself. `RegionMixin` says what
``forward`` and ``generate`` take besides.

    loading        with_regions, without_regions, load_model
    families       one file per mechanism, a few lines per family; the table of them, and who is refused
    base           RegionMixin, what families share
    placeholders   from one placeholder per image to one per region
    processors     the geometry and tiles of transformers' image processors, and a processor for our encoders
    serving        image embeddings for a server
    tower          any of regiontok's encoders as a vision tower
"""

from regiontok.adapters.huggingface.base import Patches, RegionInputs, RegionMixin
from regiontok.adapters.huggingface.families import (
    FAMILIES,
    AnyresMixin,
    Family,
    NativeResolutionMixin,
    OneTensorMixin,
    RegionAyaVisionForConditionalGeneration,
    RegionCohere2VisionForConditionalGeneration,
    RegionFastVlmForConditionalGeneration,
    RegionGemma3ForConditionalGeneration,
    RegionGemma4ForConditionalGeneration,
    RegionGlm4vForConditionalGeneration,
    RegionGlm4vMoeForConditionalGeneration,
    RegionGlm46VForConditionalGeneration,
    RegionIdefics3ForConditionalGeneration,
    RegionInternVLForConditionalGeneration,
    RegionLlavaForConditionalGeneration,
    RegionLlavaNextForConditionalGeneration,
    RegionLlavaOnevisionForConditionalGeneration,
    RegionPaliGemmaForConditionalGeneration,
    RegionPerceptionLMForConditionalGeneration,
    RegionQwen2_5_VLForConditionalGeneration,
    RegionQwen2VLForConditionalGeneration,
    RegionQwen3_5ForConditionalGeneration,
    RegionQwen3_5MoeForConditionalGeneration,
    RegionQwen3VLForConditionalGeneration,
    RegionQwen3VLMoeForConditionalGeneration,
    RegionSmolVLMForConditionalGeneration,
    RegionVipLlavaForConditionalGeneration,
    TilesMixin,
    VisionTowerMixin,
)
from regiontok.adapters.huggingface.loading import load_model, with_regions, without_regions
from regiontok.adapters.huggingface.processors import EncoderImageProcessor, geometry_of, process, tiles_of
from regiontok.adapters.huggingface.serving import ImageEmbedding, image_embeddings, sglang_request, vllm_request
from regiontok.adapters.huggingface.tower import EncoderConfig, EncoderTower

__all__ = [
    "FAMILIES",
    "AnyresMixin",
    "EncoderConfig",
    "EncoderImageProcessor",
    "EncoderTower",
    "Family",
    "ImageEmbedding",
    "NativeResolutionMixin",
    "OneTensorMixin",
    "Patches",
    "RegionAyaVisionForConditionalGeneration",
    "RegionCohere2VisionForConditionalGeneration",
    "RegionFastVlmForConditionalGeneration",
    "RegionGemma3ForConditionalGeneration",
    "RegionGemma4ForConditionalGeneration",
    "RegionGlm4vForConditionalGeneration",
    "RegionGlm4vMoeForConditionalGeneration",
    "RegionGlm46VForConditionalGeneration",
    "RegionIdefics3ForConditionalGeneration",
    "RegionInputs",
    "RegionInternVLForConditionalGeneration",
    "RegionLlavaForConditionalGeneration",
    "RegionLlavaNextForConditionalGeneration",
    "RegionLlavaOnevisionForConditionalGeneration",
    "RegionMixin",
    "RegionPaliGemmaForConditionalGeneration",
    "RegionPerceptionLMForConditionalGeneration",
    "RegionQwen2VLForConditionalGeneration",
    "RegionQwen2_5_VLForConditionalGeneration",
    "RegionQwen3VLForConditionalGeneration",
    "RegionQwen3VLMoeForConditionalGeneration",
    "RegionQwen3_5ForConditionalGeneration",
    "RegionQwen3_5MoeForConditionalGeneration",
    "RegionSmolVLMForConditionalGeneration",
    "RegionVipLlavaForConditionalGeneration",
    "TilesMixin",
    "VisionTowerMixin",
    "geometry_of",
    "image_embeddings",
    "load_model",
    "process",
    "sglang_request",
    "tiles_of",
    "vllm_request",
    "with_regions",
    "without_regions",
]
