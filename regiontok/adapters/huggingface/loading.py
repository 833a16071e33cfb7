"""Convert stock models to region models and back."""

import copy
import inspect
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from regiontok._require import check_importable, require
from regiontok.adapters.huggingface._transformers import ENCODER_OUTPUTS
from regiontok.adapters.huggingface.checkpoints import (
    ADAPTER_OPTIONS,
    HUB_OPTIONS,
    set_options,
    to_region_config,
    video_options,
    with_class,
)
from regiontok.adapters.huggingface.classes import BY_STOCK, CONFIGS, FamilyClasses, family_classes, processor_class
from regiontok.adapters.huggingface.families import UNSUPPORTED
from regiontok.adapters.huggingface.outer import RegionMixin
from regiontok.adapters.huggingface.region_processor import RegionProcessorMixin
from regiontok.choices import Prompt
from regiontok.config import RegionizerConfig
from regiontok.errors import (
    CheckpointError,
    DTypeError,
    MissingDependencyError,
    RegiontokError,
    UntrainedWarning,
    ValueRangeError,
)
from regiontok.pooling import CrossAttnPool
from regiontok.regionizer import Regionizer

transformers = require("transformers", extra="hf")


def with_regions(
    model: Any,
    regionizer: Regionizer | None = None,
    *,
    num_regions: int | Prompt | None = None,
    keep: float | None = None,
    newline: str | None = None,
    positions: str | None = None,
    video_num_regions: int | None = None,
    video_keep: float | None = None,
    empty_frames: str | None = None,
) -> Any:
    """Return the region version of a loaded model.

    The given model keeps its class, config and methods and can still be used; no class is patched. Both models share
    all modules except the Regionizer: training one trains the other, and ``train``, ``eval`` and ``to`` of either
    change the shared modules, so call them on the model that you use. Convert a model before it is compiled or prepared
    by accelerate, and after ``resize_token_embeddings``, which resizes the shared embeddings but the head of one model
    only. Options of an earlier conversion, such as ``newline``, are not kept.

    Args:
        model: Model of one of ``FAMILIES``, or a region model.
        regionizer: Module that turns patch features into region tokens. It is moved to the model's device and dtype and
            becomes part of the region model.
        num_regions: Number of tokens per image, instead of ``regionizer``: a Regionizer that needs no training merges
            patches by Ward's rule and averages them. ``"prompt"``: the number of placeholders in the prompt.
        keep: The same budget as a fraction of an image's patches.
        newline: ``drop``, ``image`` or ``row``, for LLaVA-NeXT and LLaVA-OneVision; see `AnyresMixin`.
        positions: ``centroid``, ``first`` or ``even``, for Qwen-VL and GLM-V; see `DynamicResolutionMixin`.
        video_num_regions: Number of tokens per video, for families that accept videos; by default that of an image.
        video_keep: The same budget as a fraction of the patches of a video.
        empty_frames: ``drop`` (default) or ``keep`` the text of frames without a token, such as timestamps, for
            families whose prompts have a block of placeholders per frame; see `VideoEncoderMixin`.

    Returns:
        The region model, such as a ``RegionLlavaForConditionalGeneration``.

    Raises:
        ValueRangeError: The family of the model is not supported; the message gives the reason.
        ShapeError: ``regionizer`` has another dimension than the model's patch features.

    Example:
        A training-free budget of 128 tokens per image::

            model = LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf")
            small = with_regions(model, num_regions=128)
    """
    has_budget = num_regions is not None or keep is not None
    if (regionizer is None) != has_budget:
        raise ValueRangeError(
            "with_regions needs a Regionizer or one of num_regions and keep, as in with_regions(model, num_regions=128)"
        )
    if regionizer is None:
        regionizer = Regionizer(num_regions=num_regions, keep=keep, pool="mean", norm="none")
    elif not isinstance(regionizer, Regionizer):
        raise DTypeError(f"regionizer must be a Regionizer; got {type(regionizer).__name__}.")
    classes = _classes_of(model)
    check_supported(classes.stock)
    if not isinstance(model, RegionMixin):
        _warn_untrained(regionizer)
        classes = classes.of_subclass(type(model))
    region_model = _copy_as(model, classes.outer)
    region_model.config = to_region_config(copy.copy(model.config), classes.config)
    if getattr(model, "generation_config", None) is not None:
        region_model.generation_config = copy.deepcopy(model.generation_config)
    region_model.config.regiontok = regionizer.config.to_dict()
    for name in ADAPTER_OPTIONS:
        vars(region_model.config).pop(name, None)  # of an earlier conversion
    videos = video_options(video_num_regions, video_keep, empty_frames)
    set_options(region_model.config, classes.outer, newline=newline, positions=positions, videos=videos)
    region_model._modules["model"] = inner = _copy_as(region_model.model, classes.inner, config=region_model.config)
    inner._modules.pop("regionizer", None)
    inner.attach(regionizer.to(device=model.device, dtype=model.dtype).train(model.training))
    return region_model


def region_processor(
    processor: Any,
    model: Any = None,
    *,
    num_regions: int | None = None,
    keep: float | None = None,
    video_num_regions: int | None = None,
    video_keep: float | None = None,
    max_frames: int | None = None,
    empty_frames: str | None = None,
) -> Any:
    """Return a processor that writes one placeholder per region token; ``processor`` is not changed.

    Args:
        processor: Processor of one of ``FAMILIES``, as ``AutoProcessor`` loads it.
        model: Region model whose options and budget are used.
        num_regions: Number of tokens per image, instead of ``model``.
        keep: The same budget as a fraction of an image's patches.
        video_num_regions: Number of tokens per video, instead of ``model``; see `with_regions` for this and the last.
        video_keep: The same budget as a fraction of a video's patches.
        max_frames: Option of the Regionizer, which gives the number of frames of a chunk.
        empty_frames: ``drop`` or ``keep``.

    Raises:
        DTypeError: ``processor`` has no tokenizer or image processor, or ``model`` has no regions.
        ValueRangeError: There is neither a model nor a budget, or both.

    Example:
        Create a processor for a model, or for a budget::

            processor = region_processor(AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf"), model)
            processor = region_processor(AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf"), num_regions=128)
    """
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise DTypeError(f"processor must be loaded with AutoProcessor; got {type(processor).__name__}.")
    if (model is None) == (num_regions is None and keep is None):
        raise ValueRangeError("region_processor needs a model, or one of num_regions and keep. Pass one of them.")
    videos = video_options(video_num_regions, video_keep, empty_frames)
    if model is None:
        options = RegionizerConfig(num_regions=num_regions, keep=keep, pool="mean", norm="none", max_frames=max_frames)
        newline = None
    elif videos or max_frames:
        raise ValueRangeError("options of videos are those of the model. Pass them to with_regions.")
    elif not hasattr(model, "regionizer"):
        raise DTypeError(f"model must have region tokens; got {type(model).__name__}. Convert it with with_regions.")
    else:
        options = model.regionizer.config
        newline = getattr(model.config, "regiontok_newline", None)
        videos = getattr(model.config, "regiontok_videos", None)
    converted = copy.copy(processor)
    if not isinstance(processor, RegionProcessorMixin):
        converted.__class__ = processor_class(type(processor))
    converted.regiontok, converted.regiontok_newline = options.to_dict(), newline
    converted.regiontok_videos = videos
    return converted


def load_model(folder: str | Path, *, regionizer: Regionizer | None = None, **options: Any) -> Any:
    """Load a region model of any family.

    Args:
        folder: Folder or name on the hub, of a region model or a stock model.
        regionizer: Regionizer for a stock model. By default every patch is a token, which equals the stock model.
        options: Further arguments of ``from_pretrained``, such as ``dtype``.

    Raises:
        CheckpointError: The folder has no model, or ``regionizer`` is given for a region model, which has its own.
        ValueRangeError: The family of the model is not supported; the message gives the reason.
    """
    hub = {name: options[name] for name in HUB_OPTIONS if name in options}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **hub)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} holds no model of transformers: {error} Pass a folder that save_pretrained wrote, or a name on "
            "the hub."
        ) from error
    region_type = f"region_{config.model_type.removeprefix('region_')}"
    stock = next((stock for stock, kind in CONFIGS.items() if kind.model_type == region_type), None)
    if stock is None:
        raise ValueRangeError(_explain_unsupported((config.architectures or [config.model_type])[0]))
    classes = family_classes(BY_STOCK[stock])
    if getattr(config, "regiontok", ...) is None:
        raise CheckpointError(
            f"{folder}: regiontok is null in its config. It must hold the options of a Regionizer; remove it for a "
            "stock model."
        )
    if not hasattr(config, "regiontok"):
        regionizer = regionizer or Regionizer(source="patch", norm="none", padding="keep")
    elif regionizer is not None:
        raise CheckpointError(f"{folder} holds a region model with its own Regionizer. Do not pass another one.")
    check_importable("torchvision")
    if getattr(config, "quantization_config", None) or options.get("quantization_config"):
        check_importable("bitsandbytes")
    try:
        return classes.outer.from_pretrained(folder, regionizer=regionizer, **options).eval()
    except RegiontokError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: its weights cannot be loaded: {error}") from error


def without_regions(model: Any) -> Any:
    """Return the stock version of a region model, with the same weights; the region model is not changed.

    Raises:
        DTypeError: ``model`` is not a region model.
    """
    if not isinstance(model, RegionMixin):
        raise DTypeError(f"model must be a region model, as with_regions returns it; got {type(model).__name__}.")
    stock = type(model)._stock
    stock_model = _copy_as(model, stock)
    stock_model.config = with_class(model.config, stock.config_class)
    for name in ("regiontok", *ADAPTER_OPTIONS, "auto_map"):
        vars(stock_model.config).pop(name, None)
    stock_model._modules["model"] = _copy_as(stock_model.model, type(model.model)._inner, config=stock_model.config)
    del stock_model.model._modules["regionizer"]
    return stock_model


def check_supported(stock: type[Any]) -> None:
    """Raise an error if the installed transformers does not accept encoded images."""
    if ENCODER_OUTPUTS not in inspect.signature(stock.forward).parameters:
        raise MissingDependencyError(
            f"transformers {transformers.__version__} is too old: {stock.__name__} takes no {ENCODER_OUTPUTS}. Run: "
            "pip install 'regiontok[hf]'"
        )


def _classes_of(model: Any) -> FamilyClasses:
    """Return the region classes for a model, also if its class is a subclass of a stock class."""
    for kind in type(model).__mro__:
        if kind.__name__ in BY_STOCK:
            return family_classes(BY_STOCK[kind.__name__])
    raise ValueRangeError(_explain_unsupported(type(model).__name__))


def _warn_untrained(regionizer: Regionizer) -> None:
    """Warn of options with which a stock model needs training."""
    reasons = []
    if regionizer.config.norm != "none":
        reasons.append(f"norm={regionizer.config.norm!r} scales features, and the projector was trained without it")
    pool = regionizer.pool
    if isinstance(pool, CrossAttnPool) and not bool(pool.out.weight.any()):
        reasons.append("the cross-attention pool is not trained, and equals the mean")
    if reasons:
        warnings.warn(
            f"{'; '.join(reasons)}. Train the model, or use it without training: with_regions(model, num_regions=128) "
            "or Regionizer(pool='mean', norm='none').",
            UntrainedWarning,
            stacklevel=3,
        )


def _copy_as(model: Any, kind: Any, *, config: Any = None) -> Any:
    """Return a copy of a model as another class, with the same modules and weights, and a copy of its config.

    Args:
        model: Model to copy.
        kind: Class of the copy.
        config: Config of the copy, instead of a copy of the model's.
    """
    if "forward" in vars(model) and "_hf_hook" not in vars(model):
        raise ValueRangeError(
            f"the forward of this {type(model).__name__} was replaced, for example by torch.compile or accelerate's "
            "prepare, and would not make regions. Convert the model first."
        )
    copied = kind.__new__(kind)
    copied.__dict__ = {
        name: copy.copy(value) if isinstance(value, dict) else value for name, value in vars(model).items()
    }
    copied.__dict__.pop("_compiled_call_impl", None)  # compiled from the forward of the other class
    copied.config = copy.copy(model.config) if config is None else config
    if "_hf_hook" in vars(model):  # accelerate stores the forward of the class in the instance
        for name in ("forward", "_old_forward", "_hf_hook"):
            copied.__dict__.pop(name, None)
        require("accelerate.hooks", extra="hf").add_hook_to_module(copied, model._hf_hook)
    return copied


def _explain_unsupported(name: str) -> str:
    """Return the error message for a class of models that is not supported."""
    supported = ", ".join(BY_STOCK)
    if "Peft" in name:
        return f"{name} wraps a model. Pass that model, peft_model.get_base_model(), and wrap its region version."
    if name in UNSUPPORTED:
        return f"{name} cannot have region tokens: {UNSUPPORTED[name]}. Use one of {supported}."
    return f"there is no adapter for {name}. Use one of {supported}."
