"""The families of multimodal models that can have region tokens, by mechanism, and why others cannot.

    vision_tower        one grid, regions before the projector: LLaVA-1.5
    anyres              tiles packed without their padding, likewise: LLaVA-NeXT, LLaVA-OneVision
    one_tensor          one grid, regions after the projector: PaliGemma, Gemma 3, FastVLM, VipLlava
    tiles               tiles of one size, likewise: InternVL, PerceptionLM, Aya and Cohere2 Vision, Idefics3, SmolVLM
    native_resolution   grids that differ between images, positions in two dimensions: Qwen-VL, GLM-V
    gemma4              grids that differ between images, padded: Gemma 4

`FAMILIES` is the table of all families, from which the classes (`regiontok.adapters.huggingface.classes`) and the
documentation are made. A new family is a short mixin in the file of its mechanism, a row here and a small model in
``tests/families.py``; see "Add a family" in the documentation. `register_family` adds one from another package.
"""

from typing import Any, NamedTuple

from regiontok.adapters.huggingface.families.anyres import AnyresMixin, OnevisionMixin
from regiontok.adapters.huggingface.families.gemma4 import Gemma4Mixin
from regiontok.adapters.huggingface.families.native_resolution import NativeResolutionMixin
from regiontok.adapters.huggingface.families.one_tensor import (
    FastVlmMixin,
    Gemma3Mixin,
    OneTensorMixin,
    PaliGemmaMixin,
)
from regiontok.adapters.huggingface.families.tiles import (
    AyaVisionMixin,
    Cohere2VisionMixin,
    IdeficsMixin,
    InternVLMixin,
    PerceptionLMMixin,
    TilesMixin,
)
from regiontok.adapters.huggingface.families.vision_tower import VisionTowerMixin
from regiontok.adapters.huggingface.inner import RegionModelMixin

__all__ = [
    "FAMILIES",
    "REFUSED",
    "AnyresMixin",
    "Family",
    "NativeResolutionMixin",
    "OneTensorMixin",
    "TilesMixin",
    "VisionTowerMixin",
]


class Family(NamedTuple):
    """A row of the table.

    Attributes:
        title: Its usual name.
        name: Stem of its classes in transformers, such as ``Llava`` of ``LlavaForConditionalGeneration``.
        mixin: Mixin that makes its inner model a region model.
        features: The features that regions are made of, for the documentation.
        needs: Inputs other than pixels that its processor returns and the model needs.
        notes: Particularities and limits.
        stock_class: Its ``*ForConditionalGeneration``, if it is not part of transformers.
        processor_class: Its processor, if it is not part of transformers.
    """

    title: str
    name: str
    mixin: type[RegionModelMixin]
    features: str
    needs: str
    notes: str
    stock_class: Any = None
    processor_class: Any = None

    @property
    def stock(self) -> str:
        """Name of its ``*ForConditionalGeneration``."""
        return f"{self.name}ForConditionalGeneration"

    @property
    def mechanism(self) -> str:
        """File of its mechanism."""
        return str(self.mixin.__module__.rpartition(".")[2])


_TOWER, _PROJECTED, _MERGED = "patches of the vision tower", "projected patches", "merged patches"
_GRID, _CENTROID = "`image_grid_thw`", "a region's rotary position is its centroid, or spread evenly"
_STITCHED = "regions cross tiles if `tiles` or the region processor gives their rows and columns"
_TAGGED = "each tile has its own block of placeholders, and regions stay within tiles"

FAMILIES: list[Family] = [
    Family(
        "LLaVA-1.5",
        "Llava",
        VisionTowerMixin,
        _TOWER,
        "",
        "any vision tower of one grid: transformers' (CLIP, SigLIP, DINOv2, RADIO), timm's, or any of our encoders by "
        "`EncoderTower.load(name)`",
    ),
    Family(
        "LLaVA-NeXT",
        "LlavaNext",
        AnyresMixin,
        _TOWER,
        "`image_sizes`",
        "the thumbnail and all tiles together are two grids, so regions cross tiles; newlines are an option",
    ),
    Family(
        "LLaVA-OneVision",
        "LlavaOnevision",
        OnevisionMixin,
        _TOWER,
        "`image_sizes`, `batch_num_images`",
        "as LLaVA-NeXT; images of more than nine tiles are scaled down before the projector, not after it",
    ),
    Family("Qwen2-VL", "Qwen2VL", NativeResolutionMixin, _MERGED, _GRID, _CENTROID),
    Family("Qwen2.5-VL", "Qwen2_5_VL", NativeResolutionMixin, _MERGED, _GRID, _CENTROID),
    Family(
        "Qwen3-VL",
        "Qwen3VL",
        NativeResolutionMixin,
        _MERGED,
        _GRID,
        f"{_CENTROID}; deepstack features are means over the same regions",
    ),
    Family("Qwen3-VL MoE", "Qwen3VLMoe", NativeResolutionMixin, _MERGED, _GRID, "as Qwen3-VL"),
    Family("Qwen3.5", "Qwen3_5", NativeResolutionMixin, _MERGED, _GRID, _CENTROID),
    Family("Qwen3.5 MoE", "Qwen3_5Moe", NativeResolutionMixin, _MERGED, _GRID, _CENTROID),
    Family("GLM-4.1V", "Glm4v", NativeResolutionMixin, _MERGED, _GRID, _CENTROID),
    Family("GLM-4.5V", "Glm4vMoe", NativeResolutionMixin, _MERGED, _GRID, _CENTROID),
    Family("GLM-4.6V", "Glm46V", NativeResolutionMixin, _MERGED, _GRID, _CENTROID),
    Family("InternVL", "InternVL", InternVLMixin, _PROJECTED, "", _STITCHED),
    Family("PerceptionLM", "PerceptionLM", PerceptionLMMixin, _PROJECTED, "", _STITCHED),
    Family("Aya Vision", "AyaVision", AyaVisionMixin, _PROJECTED, "", _TAGGED),
    Family("Cohere2 Vision", "Cohere2Vision", Cohere2VisionMixin, _PROJECTED, "", _TAGGED),
    Family("Idefics3", "Idefics3", IdeficsMixin, _PROJECTED, "", _TAGGED),
    Family("SmolVLM", "SmolVLM", IdeficsMixin, _PROJECTED, "", _TAGGED),
    Family(
        "Gemma 3",
        "Gemma3",
        Gemma3Mixin,
        _PROJECTED,
        "",
        "tokens of an image attend to each other in both directions; with pan-and-scan each crop counts as an image",
    ),
    Family(
        "Gemma 4",
        "Gemma4",
        Gemma4Mixin,
        _PROJECTED,
        "`image_position_ids`",
        "grids differ between images; tokens of an image attend to each other in both directions if the config says so",
    ),
    Family(
        "PaliGemma",
        "PaliGemma",
        PaliGemmaMixin,
        _PROJECTED,
        "",
        "1 and 2; the `token_type_ids` of training are rewritten with the prompt",
    ),
    Family("FastVLM", "FastVlm", FastVlmMixin, _PROJECTED, "", ""),
    Family("VipLlava", "VipLlava", OneTensorMixin, _PROJECTED, "", ""),
]
"""All families, in the order of the documentation."""

_ROWS = "its prompts end every row of patches with a token, and regions have no rows"
_VIDEOS = "it is made for videos, which have a grid per frame"
_NOT_YET = "not supported yet (similar to a supported family; contributions welcome)"
_SOUNDS = "its sounds share the positions of its images"
REFUSED: dict[str, str] = {
    "DeepseekVLForConditionalGeneration": _NOT_YET,
    "Gemma3nForConditionalGeneration": "its tower gives a fixed set of features without a grid",
    "GotOcr2ForConditionalGeneration": _NOT_YET,
    "Granite4VisionForConditionalGeneration": "its features of layers carry numbers, which generation cannot expand",
    "JanusForConditionalGeneration": "it generates images too, by another interface",
    "Kimi_K25ForConditionalGeneration": _NOT_YET,
    "Lfm2VlForConditionalGeneration": _NOT_YET,
    "LlavaNextVideoForConditionalGeneration": _VIDEOS,
    "MiniCPMV4_6ForConditionalGeneration": _NOT_YET,
    "Mistral3ForConditionalGeneration": _ROWS,
    "Molmo2ForConditionalGeneration": _ROWS,
    "Ovis2ForConditionalGeneration": "it puts features of visual indicators among those of the patches",
    "PaddleOCRVLForConditionalGeneration": _NOT_YET,
    "Qwen2_5OmniThinkerForConditionalGeneration": _SOUNDS,
    "Qwen3OmniMoeThinkerForConditionalGeneration": _SOUNDS,
    "VideoLlama3ForConditionalGeneration": _VIDEOS,
}
"""Why other classes of transformers are refused."""
