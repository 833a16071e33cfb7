"""Names inside transformers that the adapters depend on, beyond its documented interface.

Such names may change in any version, so they are collected here, each with the reason why it is needed.
``tests/contracts/test_transformers.py`` checks that all of them exist in the installed version.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from regiontok._require import require

transformers = require("transformers", extra="hf")
_conversion = require("transformers.conversion_mapping", extra="hf")
_image_utils = require("transformers.image_utils", extra="hf")

# Processor class of each model type: a region processor is registered before a processor is loaded.
PROCESSOR_NAMES = require("transformers.models.auto.processing_auto", extra="hf").PROCESSOR_MAPPING_NAMES

# Rules that rename the weights of a checkpoint, by model type and class name. Region classes need those of their stock
# classes: transformers does not rename weights of other classes, and would not find ``lm_head``.
get_renaming_rules = _conversion.get_checkpoint_conversion_mapping
register_renaming_rules = _conversion.register_checkpoint_conversion_mapping

# Arguments of ``forward`` that transformers itself adds: region models accept them and reject unknown arguments.
FORWARD_KWARGS = frozenset(transformers.utils.TransformersKwargs.__annotations__)

# Argument of ``forward`` for the cache of keys and values: its name depends on the family and the version.
CACHES = ("cache", "past_key_values")

# Argument of ``forward`` for encoded images, by which the stock classes take region tokens; missing before 5.23.
ENCODER_OUTPUTS = "mm_encoder_outputs"

# Tiles of an image in LLaVA-NeXT and LLaVA-OneVision, to count newlines as their processors do.
select_best_resolution = require("transformers.image_processing_utils", extra="hf").select_best_resolution

# Images in one list, in the order in which processors number them.
flatten_images = _image_utils.make_flat_list_of_images

# Part of the error that processors raise if a prompt was truncated inside a block; it has no class of its own.
TRUNCATED = " token count between text and `input_ids`"

# Image processors that cut images into tiles have one of these options, by an example of such a processor.
TILING_OPTIONS = {
    "LlavaNextImageProcessor": "image_grid_pinpoints",
    "GotOcr2ImageProcessor": "crop_to_patches",
    "Idefics3ImageProcessor": "do_image_splitting",
    "PerceptionLMImageProcessor": "max_num_tiles",
}

# Image processors of dynamic resolution have one of these options, by an example of such a processor.
MERGING_OPTIONS = {"Qwen2VLImageProcessor": "merge_size", "Gemma4ImageProcessor": "pooling_kernel_size"}

# Methods that our mixins override or call. If one is renamed, an override would silently have no effect.
METHODS = {
    "ProcessorMixin": (
        "_process_images",
        "_process_videos",
        "replace_image_token",
        "replace_video_token",
        "from_args_and_dict",
        "to_dict",
        "_merge_kwargs",
    ),
    "InternVLProcessor": ("_get_num_multimodal_tokens",),  # asked by servers; other processors have it too
    "LlavaNextProcessor": ("_get_unpadded_features",),  # counts newlines
    "LlavaOnevisionProcessor": ("_get_unpadded_features",),
    "SmolVLMImageProcessor": ("get_number_of_image_patches",),  # also returns rows and columns of tiles
    "GenerationMixin": ("_maybe_prepare_encoder_kwargs_for_generation",),  # runs before beams repeat the images
    "PreTrainedModel": ("_init_weights",),
}


class BlockFormat(NamedTuple):
    """Blocks of placeholders that the stock processor of a family writes for an image.

    Attributes:
        kind: ``image``: one block for one grid; ``anyres``: one block for a thumbnail and tiles without their padding,
            with a newline after each row; ``joined``: one block for a thumbnail and tiles that become one grid;
            ``concatenated``: one block for tiles that remain separate grids; ``per_tile``: a block for each tile;
            ``per_crop``: a block for each crop, which the model treats as an image.
        tile_length: Function of a processor: its number of placeholders for each tile, if tiles have equal sizes.
    """

    kind: str = "image"
    tile_length: Callable[[Any], int] = lambda _: 0


# Processors with another format than one block for one grid, and the attributes that give the length of a tile.
BLOCK_FORMATS = {
    "AyaVisionProcessor": BlockFormat("per_tile", lambda processor: (processor.img_size // processor.patch_size) ** 2),
    "Cohere2VisionProcessor": BlockFormat("per_tile", lambda processor: int(processor.patch_size**2)),
    "Gemma3Processor": BlockFormat("per_crop"),
    "Idefics3Processor": BlockFormat("per_tile", lambda processor: processor.image_seq_len),
    "InternVLProcessor": BlockFormat("joined", lambda processor: processor.image_seq_length),
    "LlavaNextProcessor": BlockFormat("anyres"),
    "LlavaNextVideoProcessor": BlockFormat("anyres"),
    "LlavaOnevisionProcessor": BlockFormat("anyres"),
    "PerceptionLMProcessor": BlockFormat(
        "concatenated",
        lambda processor: (processor.image_processor.tile_size // processor.patch_size // processor.pooling_ratio) ** 2,
    ),
    "SmolVLMProcessor": BlockFormat("per_tile", lambda processor: processor.image_seq_len),
}


class VideoFormat(NamedTuple):
    """Blocks of placeholders that the stock processor of a family writes for a video.

    Attributes:
        closing: Function of a processor: the text after a block that ends its frame, if each frame has a block.
        opening: The text before a block with which its frame starts, if its timestamp follows the block.
        newlines: Number of placeholders after the patches of a video.
        has_frame_tokens: Whether each frame has a further placeholder.
        as_images: Whether the stock processor returns frames as images.
    """

    closing: Callable[[Any], str] | None = None
    opening: str | None = None
    newlines: int = 0
    has_frame_tokens: bool = False
    as_images: bool = False

    @property
    def per_frame(self) -> bool:
        """Whether each frame has a block of placeholders."""
        return self.closing is not None or self.opening is not None

    def end_of_frame(self, processor: Any, after: str, *, is_last: bool) -> int:
        """Return how many characters after a block belong to its frame."""
        if self.opening is not None:
            return len(after) if is_last else len(after) - len(self.opening)
        return len(self.closing(processor)) if self.closing is not None else 0


# Processors with another format of videos than one block.
VIDEO_FORMATS = {
    "Gemma4Processor": VideoFormat(lambda processor: processor.eoi_token),
    "Glm46VProcessor": VideoFormat(opening="<|begin_of_image|>"),
    "Glm4vProcessor": VideoFormat(opening="<|begin_of_image|>"),
    "InternVLProcessor": VideoFormat(lambda processor: processor.end_image_token, as_images=True),
    "LlavaOnevisionProcessor": VideoFormat(newlines=1),
    "Qwen3VLProcessor": VideoFormat(lambda processor: processor.vision_end_token),
    "SmolVLMProcessor": VideoFormat(lambda processor: processor.fake_image_token, as_images=True),
    "VideoLlama3Processor": VideoFormat(lambda processor: ""),
    "VideoLlavaProcessor": VideoFormat(has_frame_tokens=True),
}


def find_video_format(processor: type[Any]) -> VideoFormat:
    """Return the video format of a stock processor or of a subclass of one."""
    names = (base.__name__ for base in processor.__mro__)
    return next((VIDEO_FORMATS[name] for name in names if name in VIDEO_FORMATS), VideoFormat())


def find_block_format(processor: type[Any]) -> BlockFormat:
    """Return the block format of a stock processor or of a subclass of one."""
    names = (base.__name__ for base in processor.__mro__)
    return next((BLOCK_FORMATS[name] for name in names if name in BLOCK_FORMATS), BlockFormat())


def find_inner_class(stock: Any, name: str) -> Any:
    """Return the inner model of a ``*ForConditionalGeneration``, which is defined in the same module."""
    return getattr(sys.modules[stock.__module__], f"{name}Model")


def find_deepstack_output(inner: Any) -> Any:
    """Return the output class for image features with deepstack layers, which each family of Qwen3-VL defines."""
    return sys.modules[inner.__module__].BaseModelOutputWithDeepstackFeatures


def find_tile_chooser(image_processor: Any) -> Callable[..., tuple[int, int]] | None:
    """Return the function that chooses columns and rows of tiles, a private function of some image processors."""
    return getattr(sys.modules[type(image_processor).__module__], "get_optimal_tiled_canvas", None)


def default_image_options(processor: Any) -> dict[str, Any]:
    """Return the image options that a processor sets by default, over those of its image processor."""
    options = getattr(type(processor), "images_kwargs", None)
    if options is None:  # transformers 5.23 has them in another class of the same module
        kwargs = vars(sys.modules[type(processor).__module__]).get(f"{type(processor).__name__}Kwargs")
        options = getattr(kwargs, "_defaults", {}).get("images_kwargs", {})
    return options


def image_size(image: Any) -> tuple[int, int]:
    """Return height and width of a PIL image, array or tensor as image processors read them."""
    if hasattr(image, "getbands"):
        return image.height, image.width
    height, width = _image_utils.get_image_size(_image_utils.to_numpy_array(image))
    return height, width


def exclude_regionizer(rule: Any) -> Any:
    """Return a renaming rule that does not match the Regionizer.

    The rules of Qwen-VL move all weights of the model but the vision tower's into the language model.
    """
    patterns = [pattern for pattern in rule.source_patterns if "model" in pattern and "(?!" in pattern]
    if not patterns or getattr(rule, "model_prefix", None) == "":
        return rule
    source, target = patterns[0].replace("visual)", "visual|regionizer)"), rule.target_patterns[0]
    if hasattr(rule, "prefix_to_add"):
        prefix, add = rule.model_prefix, rule.prefix_to_add
        source, target = rf"^{prefix}\.(?!{add}\.|regionizer\.)(.+)", rf"{prefix}.{add}.\1"
    return _conversion.WeightRenaming(source_patterns=source, target_patterns=target)
