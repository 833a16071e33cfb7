"""Region tokens in transformers' multimodal models.

    from regiontok import Regionizer
    from regiontok.adapters.huggingface import with_regions

    model = LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf")
    small = with_regions(model, Regionizer(pool="mean", norm="none", num_regions=128))
    small.generate(**processor(images=photo, text=prompt, return_tensors="pt"))    # 128 tokens instead of 576

Three doors: `with_regions` for a model that is loaded; a class per family, whose ``from_pretrained`` loads a stock
checkpoint or one that it saved; and `load_model`, which finds the family by itself. `RegionMixin` says what
``forward`` and ``generate`` take besides.

    doors          with_regions, without_regions, load_model; who is refused, and why
    base           the mechanism that families share
    placeholders   from one placeholder per image to one per region
    llava, llava_onevision, qwen2_5_vl   the families
    tower          any of regiontok's encoders as a vision tower
    processors     the geometry of transformers' image processors, and one for these encoders
"""

from regiontok.adapters.huggingface.base import RegionInputs, RegionMixin
from regiontok.adapters.huggingface.doors import load_model, with_regions, without_regions
from regiontok.adapters.huggingface.llava import RegionLlavaForConditionalGeneration
from regiontok.adapters.huggingface.llava_onevision import RegionLlavaOnevisionForConditionalGeneration
from regiontok.adapters.huggingface.processors import EncoderImageProcessor, geometry_of
from regiontok.adapters.huggingface.qwen2_5_vl import RegionQwen2_5_VLForConditionalGeneration
from regiontok.adapters.huggingface.tower import EncoderConfig, EncoderTower

__all__ = [
    "EncoderConfig",
    "EncoderImageProcessor",
    "EncoderTower",
    "RegionInputs",
    "RegionLlavaForConditionalGeneration",
    "RegionLlavaOnevisionForConditionalGeneration",
    "RegionMixin",
    "RegionQwen2_5_VLForConditionalGeneration",
    "geometry_of",
    "load_model",
    "with_regions",
    "without_regions",
]
