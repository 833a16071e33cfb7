"""The families of multimodal models that can have region tokens, by mechanism, and why others cannot.

    vision_tower        one grid, regions before the projector: LLaVA-1.5
    anyres              tiles packed without their padding, likewise: LLaVA-NeXT, LLaVA-OneVision
    one_tensor          one grid, regions after the projector: PaliGemma, Gemma 3, FastVLM, VipLlava
    tiles               tiles of one size, likewise: InternVL, PerceptionLM, Aya and Cohere2 Vision, Idefics3, SmolVLM
    native_resolution   grids that differ between photos, positions in two dimensions: Qwen-VL, GLM-V
    gemma4              grids that differ between photos, padded: Gemma 4

`FAMILIES` is the table of them all, of which the documentation is made. A new family is a class of some lines in the
file of its mechanism, an entry here and a small model in ``tests/families.py``; the documentation's "Add a family" goes
through it.
"""

from typing import Any, NamedTuple

from regiontok.adapters.huggingface.base import register
from regiontok.adapters.huggingface.families.anyres import (
    AnyresMixin,
    RegionLlavaNextForConditionalGeneration,
    RegionLlavaOnevisionForConditionalGeneration,
)
from regiontok.adapters.huggingface.families.gemma4 import RegionGemma4ForConditionalGeneration
from regiontok.adapters.huggingface.families.native_resolution import (
    NativeResolutionMixin,
    RegionGlm4vForConditionalGeneration,
    RegionGlm4vMoeForConditionalGeneration,
    RegionGlm46VForConditionalGeneration,
    RegionQwen2_5_VLForConditionalGeneration,
    RegionQwen2VLForConditionalGeneration,
    RegionQwen3_5ForConditionalGeneration,
    RegionQwen3_5MoeForConditionalGeneration,
    RegionQwen3VLForConditionalGeneration,
    RegionQwen3VLMoeForConditionalGeneration,
)
from regiontok.adapters.huggingface.families.one_tensor import (
    OneTensorMixin,
    RegionFastVlmForConditionalGeneration,
    RegionGemma3ForConditionalGeneration,
    RegionPaliGemmaForConditionalGeneration,
    RegionVipLlavaForConditionalGeneration,
)
from regiontok.adapters.huggingface.families.tiles import (
    RegionAyaVisionForConditionalGeneration,
    RegionCohere2VisionForConditionalGeneration,
    RegionIdefics3ForConditionalGeneration,
    RegionInternVLForConditionalGeneration,
    RegionPerceptionLMForConditionalGeneration,
    RegionSmolVLMForConditionalGeneration,
    TilesMixin,
)
from regiontok.adapters.huggingface.families.vision_tower import RegionLlavaForConditionalGeneration, VisionTowerMixin

__all__ = [
    "FAMILIES",
    "REFUSED",
    "AnyresMixin",
    "Family",
    "NativeResolutionMixin",
    "OneTensorMixin",
    "RegionAyaVisionForConditionalGeneration",
    "RegionCohere2VisionForConditionalGeneration",
    "RegionFastVlmForConditionalGeneration",
    "RegionGemma3ForConditionalGeneration",
    "RegionGemma4ForConditionalGeneration",
    "RegionGlm4vForConditionalGeneration",
    "RegionGlm4vMoeForConditionalGeneration",
    "RegionGlm46VForConditionalGeneration",
    "RegionIdefics3ForConditionalGeneration",
    "RegionInternVLForConditionalGeneration",
    "RegionLlavaForConditionalGeneration",
    "RegionLlavaNextForConditionalGeneration",
    "RegionLlavaOnevisionForConditionalGeneration",
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
]


class Family(NamedTuple):
    """One line of the table.

    Attributes:
        title: What people call it.
        model: Its class with regions.
        features: What regions are made of.
        needs: What must come with pixels besides, as the processor gives it.
        notes: What is peculiar to it, and what it cannot do.
    """

    title: str
    model: Any
    features: str
    needs: str
    notes: str

    @property
    def stock(self) -> str:
        """The name of the class of transformers."""
        return str(self.model._stock.__name__)

    @property
    def mechanism(self) -> str:
        """The file of its mechanism."""
        return str(self.model.__module__.rpartition(".")[2])


_TOWER, _PROJECTED, _MERGED = "patches of the vision tower", "projected patches", "merged patches"
_GRID, _CENTROID = "`image_grid_thw`", "a region's rotary position is its centroid"
_STITCHED = "regions cross tiles where `tiles` tells their rows and columns, and else stay in them"
_TAGGED = "each tile has a run of its own, in which its regions stay"

FAMILIES: tuple[Family, ...] = (
    Family(
        "LLaVA-1.5",
        RegionLlavaForConditionalGeneration,
        _TOWER,
        "",
        "any vision tower of one grid: transformers' (CLIP, SigLIP, DINOv2, RADIO), timm's, or any of our encoders by "
        "`EncoderTower.load(name)`",
    ),
    Family(
        "LLaVA-NeXT",
        RegionLlavaNextForConditionalGeneration,
        _TOWER,
        "`image_sizes`",
        "the thumbnail and all tiles together are two grids, so regions cross tiles; newlines are an option",
    ),
    Family(
        "LLaVA-OneVision",
        RegionLlavaOnevisionForConditionalGeneration,
        _TOWER,
        "`image_sizes`, `batch_num_images`",
        "as LLaVA-NeXT; photos of more than nine tiles are scaled down before the projector, not after it",
    ),
    Family("Qwen2-VL", RegionQwen2VLForConditionalGeneration, _MERGED, _GRID, _CENTROID),
    Family("Qwen2.5-VL", RegionQwen2_5_VLForConditionalGeneration, _MERGED, _GRID, _CENTROID),
    Family(
        "Qwen3-VL",
        RegionQwen3VLForConditionalGeneration,
        _MERGED,
        _GRID,
        f"{_CENTROID}; deepstack features are means over the same regions",
    ),
    Family("Qwen3-VL MoE", RegionQwen3VLMoeForConditionalGeneration, _MERGED, _GRID, "as Qwen3-VL"),
    Family("Qwen3.5", RegionQwen3_5ForConditionalGeneration, _MERGED, _GRID, _CENTROID),
    Family("Qwen3.5 MoE", RegionQwen3_5MoeForConditionalGeneration, _MERGED, _GRID, _CENTROID),
    Family("GLM-4.1V", RegionGlm4vForConditionalGeneration, _MERGED, _GRID, _CENTROID),
    Family("GLM-4.5V", RegionGlm4vMoeForConditionalGeneration, _MERGED, _GRID, _CENTROID),
    Family("GLM-4.6V", RegionGlm46VForConditionalGeneration, _MERGED, _GRID, _CENTROID),
    Family("InternVL", RegionInternVLForConditionalGeneration, _PROJECTED, "", _STITCHED),
    Family("PerceptionLM", RegionPerceptionLMForConditionalGeneration, _PROJECTED, "", _STITCHED),
    Family("Aya Vision", RegionAyaVisionForConditionalGeneration, _PROJECTED, "", _TAGGED),
    Family("Cohere2 Vision", RegionCohere2VisionForConditionalGeneration, _PROJECTED, "", _TAGGED),
    Family("Idefics3", RegionIdefics3ForConditionalGeneration, _PROJECTED, "", _TAGGED),
    Family("SmolVLM", RegionSmolVLMForConditionalGeneration, _PROJECTED, "", _TAGGED),
    Family(
        "Gemma 3",
        RegionGemma3ForConditionalGeneration,
        _PROJECTED,
        "",
        "tokens of an image see each other both ways; with pan-and-scan each crop counts as an image",
    ),
    Family(
        "Gemma 4",
        RegionGemma4ForConditionalGeneration,
        _PROJECTED,
        "`image_position_ids`",
        "grids differ between photos; tokens of an image see each other both ways where the config says so",
    ),
    Family(
        "PaliGemma",
        RegionPaliGemmaForConditionalGeneration,
        _PROJECTED,
        "",
        "1 and 2; the `token_type_ids` of training are laid out with the prompt",
    ),
    Family("FastVLM", RegionFastVlmForConditionalGeneration, _PROJECTED, "", ""),
    Family("VipLlava", RegionVipLlavaForConditionalGeneration, _PROJECTED, "", ""),
)
"""All of them, in the order of the documentation."""

_ROWS = "its prompts end every row of patches with a token, and regions have no rows"
_VIDEOS = "it is made for videos, which have a grid per frame"
_NOT_YET = "its way with photos is near one of ours, and nobody has made and tried the adapter yet"
_SOUNDS = "its sounds share the positions of its images"
REFUSED: dict[str, str] = {
    "DeepseekVLForConditionalGeneration": _NOT_YET,
    "Gemma3nForConditionalGeneration": "its tower gives a fixed set of features without a grid",
    "GotOcr2ForConditionalGeneration": _NOT_YET,
    "Granite4VisionForConditionalGeneration": "its features of layers carry numbers, which generation cannot expand",
    "JanusForConditionalGeneration": "it makes images as well as it reads them, by another interface",
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

for _family in FAMILIES:
    register(_family.model)
