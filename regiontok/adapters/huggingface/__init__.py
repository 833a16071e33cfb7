"""Region tokens in multimodal models of transformers.

    from regiontok.adapters.huggingface import region_processor, with_regions

    model = with_regions(LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf"), num_regions=128)
    processor = region_processor(AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf"), model)
    model.generate(**processor(images=image, text=prompt, return_tensors="pt"))    # 128 tokens instead of 576

`with_regions` converts a loaded model. The classes of each family, such as ``RegionLlavaForConditionalGeneration``,
load region models and stock checkpoints as the classes of transformers do, and `load_model` finds the family of a
folder. `RegionModelMixin` describes the additional arguments of ``forward`` and ``generate``.

    loading            convert models and processors, and load them
    region_processor   processors that write one placeholder per region
    families           the table of families, and a mixin for each mechanism
    classes            classes of each family, created from the table and registered with transformers
    encoding           encode images as region tokens, without prompts
    videos             encode videos as region tokens, without prompts
    media              encode the images and videos of prompts
    inner              inner models: region tokens replace placeholders
    layouts            rewrite prompts that were not written for regions
    outer              outer models: forward and generate with such prompts
    patches            patch features and counts of a batch
    checkpoints        save and load models
    processors         geometry and tiles of image processors, and a processor for regiontok's encoders
    serving            requests with image embeddings for vLLM and SGLang
    model_encoder      the patch features of a model, for pages, figures and comparisons
    tower              regiontok's encoders as vision towers
    _transformers      names inside transformers that the adapters depend on
"""

from typing import Any

from regiontok.adapters.huggingface.classes import class_names, find_class, register_family
from regiontok.adapters.huggingface.encoding import RegionEncoderMixin
from regiontok.adapters.huggingface.families import (
    FAMILIES,
    AnyresMixin,
    DynamicResolutionMixin,
    Family,
    FlatFeaturesMixin,
    FramesMixin,
    TilesMixin,
    VisionTowerMixin,
)
from regiontok.adapters.huggingface.inner import RegionModelMixin
from regiontok.adapters.huggingface.layouts import Expanded, RegionInputs
from regiontok.adapters.huggingface.loading import load_model, region_processor, with_regions, without_regions
from regiontok.adapters.huggingface.model_encoder import ModelEncoder
from regiontok.adapters.huggingface.outer import RegionMixin
from regiontok.adapters.huggingface.patches import Patches
from regiontok.adapters.huggingface.processors import (
    EncoderImageProcessor,
    geometry_of,
    process,
    tilings_of,
    video_arguments,
)
from regiontok.adapters.huggingface.region_processor import RegionProcessorMixin
from regiontok.adapters.huggingface.serving import ImageEmbedding, image_embeddings, sglang_request, vllm_request
from regiontok.adapters.huggingface.tower import EncoderConfig, EncoderTower
from regiontok.adapters.huggingface.video_prompts import VideoTokens
from regiontok.adapters.huggingface.videos import Clips, VideoEncoderMixin

__all__ = [
    "FAMILIES",
    "AnyresMixin",
    "Clips",
    "DynamicResolutionMixin",
    "EncoderConfig",
    "EncoderImageProcessor",
    "EncoderTower",
    "Expanded",
    "Family",
    "FlatFeaturesMixin",
    "FramesMixin",
    "ImageEmbedding",
    "ModelEncoder",
    "Patches",
    "RegionEncoderMixin",
    "RegionInputs",
    "RegionMixin",
    "RegionModelMixin",
    "RegionProcessorMixin",
    "TilesMixin",
    "VideoEncoderMixin",
    "VideoTokens",
    "VisionTowerMixin",
    "geometry_of",
    "image_embeddings",
    "load_model",
    "process",
    "region_processor",
    "register_family",
    "sglang_request",
    "tilings_of",
    "video_arguments",
    "vllm_request",
    "with_regions",
    "without_regions",
]
__all__ += class_names()


def __getattr__(name: str) -> Any:
    if not name.startswith("_") and (region_class := find_class(name)) is not None:
        return region_class
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *class_names()})
