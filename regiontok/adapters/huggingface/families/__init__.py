"""Model families with region tokens, by mechanism, and the reasons why other models are not supported.

    vision_tower         one grid per image, regions before the projector: LLaVA-1.5, VideoLLaVA
    anyres               tiles packed without padding, regions before the projector: LLaVA-NeXT, LLaVA-NeXT-Video,
                         LLaVA-OneVision
    flat                 one grid per image, regions after the projector: PaliGemma, Gemma 3, FastVLM, VipLlava
    tiles                tiles of equal size, regions after the projector: InternVL, PerceptionLM
    tile_blocks          the same with a block of placeholders per tile: Aya and Cohere2 Vision, Idefics3, SmolVLM
    dynamic_resolution   grids that follow the image size, rows and columns as positions: Qwen-VL, GLM-V
    gemma4               grids that follow the image size, padded to equal length: Gemma 4
    video_llama3         grids that follow the image size, positions in one dimension: VideoLlama3
    frames               videos of frames that are encoded like images, for several of these

`FAMILIES` is the table of all families. The classes (`regiontok.adapters.huggingface.classes`) and the documentation
are generated from it. A new family needs a short mixin in the file of its mechanism, a row in the table and a small
model in ``tests/families.py``; see "Add a family" in the documentation. `register_family` adds a family from another
package.
"""

from typing import Any, NamedTuple

from regiontok.adapters.huggingface.families.anyres import AnyresMixin, LlavaNextVideoMixin, OnevisionMixin
from regiontok.adapters.huggingface.families.dynamic_resolution import (
    DynamicResolutionMixin,
    FrameBlocksMixin,
    GlmMixin,
)
from regiontok.adapters.huggingface.families.flat import (
    FastVlmMixin,
    FlatFeaturesMixin,
    Gemma3Mixin,
    PaliGemmaMixin,
)
from regiontok.adapters.huggingface.families.frames import FramesMixin
from regiontok.adapters.huggingface.families.gemma4 import Gemma4Mixin
from regiontok.adapters.huggingface.families.tile_blocks import (
    AyaVisionMixin,
    Cohere2VisionMixin,
    IdeficsMixin,
    SmolVLMMixin,
)
from regiontok.adapters.huggingface.families.tiles import InternVLMixin, PerceptionLMMixin, TilesMixin
from regiontok.adapters.huggingface.families.video_llama3 import VideoLlama3Mixin
from regiontok.adapters.huggingface.families.vision_tower import VideoLlavaMixin, VisionTowerMixin
from regiontok.adapters.huggingface.inner import RegionModelMixin

__all__ = [
    "FAMILIES",
    "UNSUPPORTED",
    "AnyresMixin",
    "DynamicResolutionMixin",
    "Family",
    "FlatFeaturesMixin",
    "FramesMixin",
    "TilesMixin",
    "VisionTowerMixin",
]


class Family(NamedTuple):
    """A family of multimodal models, as a row of `FAMILIES`.

    Attributes:
        title: Name of the family in the documentation.
        name: Prefix of its classes in transformers, such as ``Llava`` for ``LlavaForConditionalGeneration``.
        mixin: Mixin that adds regions to the inner model.
        features: Features that are pooled into regions, for the documentation.
        needs: Inputs of the model other than pixels, returned by its processor, for the documentation.
        notes: Special behaviour and limits, for the documentation.
        stock_class: The ``*ForConditionalGeneration`` class, if it is not part of transformers.
        processor_class: The processor class, if it is not part of transformers.
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
        """Name of the ``*ForConditionalGeneration`` class."""
        return f"{self.name}ForConditionalGeneration"

    @property
    def videos(self) -> str:
        """How prompts contain videos, for the documentation; ``-`` if the stock class does not accept them."""
        if self.mixin.video_grids is RegionModelMixin.video_grids:
            return "-"
        return "a block per frame" if self.mixin.has_frame_blocks else "one block"

    @property
    def mechanism(self) -> str:
        """Name of the module that defines the mixin."""
        return str(self.mixin.__module__.rpartition(".")[2])


_TOWER, _PROJECTED, _MERGED = "patches of the vision tower", "projected patches", "merged patches"
_GRID, _CENTROID = "`image_grid_thw`", "the rotary position of a region is its centroid, or positions are evenly spaced"
_JOINED_TILES = "regions cross tiles if `tilings` or the region processor gives their rows and columns"
_BLOCK_PER_TILE = "each tile has its own block of placeholders, and regions stay within tiles"

FAMILIES: list[Family] = [
    Family(
        "LLaVA-1.5",
        "Llava",
        VisionTowerMixin,
        _TOWER,
        "",
        "any vision tower with one grid per image, from transformers (CLIP, SigLIP, DINOv2, RADIO) or timm, and any "
        "regiontok encoder through `EncoderTower.load(name)`",
    ),
    Family(
        "LLaVA-NeXT",
        "LlavaNext",
        AnyresMixin,
        _TOWER,
        "`image_sizes`",
        "an image has two grids, the thumbnail and the joined tiles, so regions cross tiles; newlines are optional",
    ),
    Family(
        "LLaVA-OneVision",
        "LlavaOnevision",
        OnevisionMixin,
        _TOWER,
        "`image_sizes`, `batch_num_images`",
        "like LLaVA-NeXT; features of more than nine tiles are downscaled before the projector, not after it",
    ),
    Family(
        "LLaVA-NeXT-Video",
        "LlavaNextVideo",
        LlavaNextVideoMixin,
        _TOWER,
        "`image_sizes`",
        "images like LLaVA-NeXT; patches of frames are pooled 2 x 2 before regions are made",
    ),
    Family(
        "VideoLLaVA",
        "VideoLlava",
        VideoLlavaMixin,
        _TOWER,
        "",
        "the class token of a frame is dropped if patches are merged",
    ),
    Family("Qwen2-VL", "Qwen2VL", DynamicResolutionMixin, _MERGED, _GRID, _CENTROID),
    Family("Qwen2.5-VL", "Qwen2_5_VL", DynamicResolutionMixin, _MERGED, _GRID, _CENTROID),
    Family(
        "Qwen3-VL",
        "Qwen3VL",
        FrameBlocksMixin,
        _MERGED,
        _GRID,
        f"{_CENTROID}; deepstack features are averaged over the same regions",
    ),
    Family("Qwen3-VL MoE", "Qwen3VLMoe", FrameBlocksMixin, _MERGED, _GRID, "like Qwen3-VL"),
    Family("Qwen3.5", "Qwen3_5", FrameBlocksMixin, _MERGED, _GRID, _CENTROID),
    Family("Qwen3.5 MoE", "Qwen3_5Moe", FrameBlocksMixin, _MERGED, _GRID, _CENTROID),
    Family("GLM-4.1V", "Glm4v", GlmMixin, _MERGED, _GRID, _CENTROID),
    Family("GLM-4.5V", "Glm4vMoe", GlmMixin, _MERGED, _GRID, _CENTROID),
    Family("GLM-4.6V", "Glm46V", GlmMixin, _MERGED, _GRID, _CENTROID),
    Family("InternVL", "InternVL", InternVLMixin, _PROJECTED, "", _JOINED_TILES),
    Family("PerceptionLM", "PerceptionLM", PerceptionLMMixin, _PROJECTED, "", _JOINED_TILES),
    Family("Aya Vision", "AyaVision", AyaVisionMixin, _PROJECTED, "", _BLOCK_PER_TILE),
    Family("Cohere2 Vision", "Cohere2Vision", Cohere2VisionMixin, _PROJECTED, "", _BLOCK_PER_TILE),
    Family("Idefics3", "Idefics3", IdeficsMixin, _PROJECTED, "", _BLOCK_PER_TILE),
    Family("SmolVLM", "SmolVLM", SmolVLMMixin, _PROJECTED, "", _BLOCK_PER_TILE),
    Family(
        "Gemma 3",
        "Gemma3",
        Gemma3Mixin,
        _PROJECTED,
        "",
        "bidirectional attention within an image; with pan-and-scan each crop counts as an image",
    ),
    Family(
        "Gemma 4",
        "Gemma4",
        Gemma4Mixin,
        _PROJECTED,
        "`image_position_ids`",
        "grids follow the image size; bidirectional attention within an image if the config enables it",
    ),
    Family(
        "VideoLlama3",
        "VideoLlama3",
        VideoLlama3Mixin,
        _PROJECTED,
        "`image_grid_thw`, `image_merge_sizes`",
        "patches of videos that its processor drops are in no region",
    ),
    Family(
        "PaliGemma",
        "PaliGemma",
        PaliGemmaMixin,
        _PROJECTED,
        "",
        "versions 1 and 2; the `token_type_ids` for training are rewritten with the prompt",
    ),
    Family("FastVLM", "FastVlm", FastVlmMixin, _PROJECTED, "", ""),
    Family("VipLlava", "VipLlava", FlatFeaturesMixin, _PROJECTED, "", ""),
]
"""All supported families, in the order of the documentation."""

_ROWS = "its prompts end every row of patches with a token, and regions have no rows"
_NOT_YET = "not supported yet (similar to a supported family; contributions welcome)"
_AUDIO = "its audio shares the positions of its images"
UNSUPPORTED: dict[str, str] = {
    "DeepseekVLForConditionalGeneration": _NOT_YET,
    "Gemma3nForConditionalGeneration": "its vision tower returns a fixed number of features without a grid",
    "GotOcr2ForConditionalGeneration": _NOT_YET,
    "Granite4VisionForConditionalGeneration": "its deepstack output has layer numbers, which generation cannot expand",
    "JanusForConditionalGeneration": "it also generates images, through another interface",
    "Kimi_K25ForConditionalGeneration": _NOT_YET,
    "Lfm2VlForConditionalGeneration": _NOT_YET,
    "MiniCPMV4_6ForConditionalGeneration": _NOT_YET,
    "Mistral3ForConditionalGeneration": _ROWS,
    "Molmo2ForConditionalGeneration": _ROWS,
    "Ovis2ForConditionalGeneration": "it inserts features of visual indicators between patch features",
    "PaddleOCRVLForConditionalGeneration": _NOT_YET,
    "Qwen2_5OmniThinkerForConditionalGeneration": _AUDIO,
    "Qwen3OmniMoeThinkerForConditionalGeneration": _AUDIO,
}
"""Other classes of transformers, and the reason why each is not supported."""
