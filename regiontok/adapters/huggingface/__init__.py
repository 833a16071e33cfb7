"""Region tokens in transformers' multimodal models.

    from regiontok.adapters.huggingface import region_processor, with_regions

    model = with_regions(LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf"), num_regions=128)
    processor = region_processor(AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf"), model)
    model.generate(**processor(images=image, text=prompt, return_tensors="pt"))    # 128 tokens instead of 576

`with_regions` converts a loaded model; the classes of each family, such as ``RegionLlavaForConditionalGeneration``,
load a stock checkpoint or one that they saved, as transformers' Auto classes do; and `load_model` finds the family of a
folder. `RegionModelMixin` describes what ``forward`` and ``generate`` take besides.

    loading            with_regions, region_processor, load_model, without_regions
    region_processor   what region processors share: prompts with one placeholder per region
    families           a mixin per mechanism, and the table of families
    classes            the classes made from the table, registered with transformers
    encoding           images as region tokens, without prompts
    inner              the inner model: region tokens for the placeholders of a prompt
    outer              the outer model: prompts that were not written for regions
    checkpoints        saving and loading
    placeholders       blocks of placeholders in prompts
    processors         geometry and tiles of image processors, and a processor for our encoders
    serving            image embeddings for a server
    tower              any of regiontok's encoders as a vision tower
"""

from typing import Any

from regiontok.adapters.huggingface.classes import class_names, find_class, register_family
from regiontok.adapters.huggingface.encoding import Patches, RegionEncoderMixin
from regiontok.adapters.huggingface.families import (
    FAMILIES,
    AnyresMixin,
    Family,
    NativeResolutionMixin,
    OneTensorMixin,
    TilesMixin,
    VisionTowerMixin,
)
from regiontok.adapters.huggingface.inner import RegionModelMixin
from regiontok.adapters.huggingface.loading import load_model, region_processor, with_regions, without_regions
from regiontok.adapters.huggingface.outer import RegionInputs, RegionMixin
from regiontok.adapters.huggingface.processors import EncoderImageProcessor, geometry_of, process, tiles_of
from regiontok.adapters.huggingface.region_processor import RegionProcessorMixin
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
    "RegionEncoderMixin",
    "RegionInputs",
    "RegionMixin",
    "RegionModelMixin",
    "RegionProcessorMixin",
    "TilesMixin",
    "VisionTowerMixin",
    "geometry_of",
    "image_embeddings",
    "load_model",
    "process",
    "region_processor",
    "register_family",
    "sglang_request",
    "tiles_of",
    "vllm_request",
    "with_regions",
    "without_regions",
]
__all__ += class_names()


def __getattr__(name: str) -> Any:
    if not name.startswith("_") and (found := find_class(name)) is not None:
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *class_names()})
