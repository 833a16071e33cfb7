"""Convert stock models to region models and back."""

import copy
import inspect
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from regiontok._require import check_importable, require
from regiontok.adapters.huggingface.checkpoints import (
    HUB_OPTIONS,
    set_options,
    to_region_config,
    with_class,
)
from regiontok.adapters.huggingface.classes import BY_STOCK, CONFIGS, FamilyClasses, family_classes, processor_class
from regiontok.adapters.huggingface.families import REFUSED
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
) -> Any:
    """Return the region version of a loaded model.

    The given model keeps its class, config and methods and can still be used; no class is patched, and there is
    nothing to undo. Both models share all parts but the Regionizer: training one trains the other, and ``train``,
    ``eval`` and ``to`` of either reach the shared parts, so call them on the model that is used. Call
    ``resize_token_embeddings`` before converting: it resizes the shared embeddings and their config, but the head of
    one model only. Convert before a model is compiled or prepared by accelerate, too. Options of an earlier
    conversion, such as ``newline``, are not kept.

    Args:
        model: A multimodal model of transformers, of one of ``FAMILIES``, or the region version of one.
        regionizer: How images become tokens. It is moved to the model's device and dtype and becomes part of it.
        num_regions: Instead of ``regionizer``: the number of tokens of an image, without training: patches are merged
            by Ward's rule as they are, and pooled to their mean. ``"prompt"`` makes as many as a prompt has
            placeholders.
        keep: The same budget as a fraction of an image's patches.
        newline: ``drop``, ``image`` or ``row``, for LLaVA-NeXT and LLaVA-OneVision; see `AnyresMixin`.
        positions: ``centroid`` or ``even``, for Qwen-VL and GLM-V; see `NativeResolutionMixin`.

    Returns:
        A ``RegionLlavaForConditionalGeneration``, or the like of the model's family.

    Raises:
        ValueRangeError: A model whose family is not supported; the message says why.
        ShapeError: A ``regionizer`` of another dimension than the model's patch features.

    Example:
        A training-free budget of 128 tokens per image::

            model = LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf")
            small = with_regions(model, num_regions=128)
    """
    budget = num_regions is not None or keep is not None
    if (regionizer is None) != budget:
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
    view = _view(model, classes.outer)
    view.config = to_region_config(copy.copy(model.config), classes.config)
    if getattr(model, "generation_config", None) is not None:
        view.generation_config = copy.deepcopy(model.generation_config)
    view.config.regiontok = regionizer.config.to_dict()
    for name in ("regiontok_newline", "regiontok_positions"):
        vars(view.config).pop(name, None)  # of the regions before
    set_options(view.config, classes.outer, newline=newline, positions=positions)
    view._modules["model"] = inner = _view(view.model, classes.inner, config=view.config)
    inner._modules.pop("regionizer", None)
    inner.attach(regionizer.to(device=model.device, dtype=model.dtype).train(model.training))
    return view


def region_processor(
    processor: Any,
    model: Any = None,
    *,
    num_regions: int | None = None,
    keep: float | None = None,
) -> Any:
    """Return a processor that writes one placeholder per region token; the given one is not changed.

    Args:
        processor: Of ``AutoProcessor``, of a family of ``FAMILIES``.
        model: The region model for which prompts are written; its budget is used.
        num_regions: Budget without a model: the number of tokens of an image.
        keep: The same budget as a fraction of an image's patches.

    Raises:
        DTypeError: A processor that writes no placeholders, or a ``model`` without regions.
        ValueRangeError: Neither a model nor a budget, or both.

    Example:
        A processor for a model, or for a budget::

            processor = region_processor(AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf"), model)
            processor = region_processor(AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf"), num_regions=128)
    """
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise DTypeError(f"processor must be one of AutoProcessor; got {type(processor).__name__}.")
    if (model is None) == (num_regions is None and keep is None):
        raise ValueRangeError("region_processor needs a model, or one of num_regions and keep. Pass one of them.")
    if model is None:
        options = RegionizerConfig(num_regions=num_regions, keep=keep, pool="mean", norm="none")
        newline = None
    elif not hasattr(model, "regionizer"):
        raise DTypeError(f"model must have region tokens; got {type(model).__name__}. Make it with with_regions.")
    else:
        options = model.regionizer.config
        newline = getattr(model.config, "regiontok_newline", None)
    made = copy.copy(processor)
    if not isinstance(processor, RegionProcessorMixin):
        made.__class__ = processor_class(type(processor))
    made.regiontok, made.regiontok_newline = options.to_dict(), newline
    return made


def load_model(folder: str | Path, *, regionizer: Regionizer | None = None, **options: Any) -> Any:
    """Return the region model of a folder, of whatever family it is.

    Args:
        folder: Folder of a region model's ``save_pretrained``, or a stock model, by folder or name on the hub.
        regionizer: For a stock model; by default every patch is a token, and the outputs are those of the stock model.
        options: Further arguments of ``from_pretrained``, such as ``dtype``.

    Raises:
        CheckpointError: A folder that holds no model, or a ``regionizer`` for a model that has its own.
        ValueRangeError: A model whose family is not supported; the message says why.
    """
    hub = {name: options[name] for name in HUB_OPTIONS if name in options}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **hub)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} holds no model of transformers: {error} Give a folder that save_pretrained wrote, or a name on "
            "the hub."
        ) from error
    region_type = f"region_{config.model_type.removeprefix('region_')}"
    stock = next((stock for stock, kind in CONFIGS.items() if kind.model_type == region_type), None)
    if stock is None:
        raise ValueRangeError(_why_not((config.architectures or [config.model_type])[0]))
    classes = family_classes(BY_STOCK[stock])
    if getattr(config, "regiontok", ...) is None:
        raise CheckpointError(
            f"{folder}: its config has regiontok null, where the options of a Regionizer should be. Take it "
            "out for a stock model, or put the options back."
        )
    if not hasattr(config, "regiontok"):
        regionizer = regionizer or Regionizer(source="patch", norm="none", padding="keep")
    elif regionizer is not None:
        raise CheckpointError(f"{folder} holds a region model, whose Regionizer is its own. Leave the other one out.")
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
        DTypeError: No region model.
    """
    if not isinstance(model, RegionMixin):
        raise DTypeError(f"model must be one that with_regions made or a family's class; got {type(model).__name__}.")
    stock = type(model)._stock
    view = _view(model, stock)
    view.config = with_class(model.config, stock.config_class)
    for name in ("regiontok", "regiontok_newline", "regiontok_positions", "auto_map"):
        vars(view.config).pop(name, None)
    view._modules["model"] = _view(view.model, type(model.model)._inner, config=view.config)
    del view.model._modules["regionizer"]
    return view


def check_supported(stock: type[Any]) -> None:
    """Reject a transformers whose stock class takes no features that are encoded already."""
    if "mm_encoder_outputs" not in inspect.signature(stock.forward).parameters:
        raise MissingDependencyError(
            f"transformers {transformers.__version__} is too old: {stock.__name__} takes no mm_encoder_outputs. Run: "
            "pip install 'regiontok[hf]'"
        )


def _classes_of(model: Any) -> FamilyClasses:
    """Return the classes of a model's family, also of a subclass of a stock class."""
    for kind in type(model).__mro__:
        if kind.__name__ in BY_STOCK:
            return family_classes(BY_STOCK[kind.__name__])
    raise ValueRangeError(_why_not(type(model).__name__))


def _warn_untrained(regionizer: Regionizer) -> None:
    """Warn of options that change the input of a stock model so that it needs training."""
    reasons = []
    if regionizer.config.norm != "none":
        reasons.append(f"norm={regionizer.config.norm!r} scales features that the stock projector knows unscaled")
    pool = regionizer.pool
    if isinstance(pool, CrossAttnPool) and not bool(pool.out.weight.any()):
        reasons.append("the cross-attention pool is not trained, and so the mean")
    if reasons:
        warnings.warn(
            f"{'; '.join(reasons)}. Train the model, or use it without training by with_regions(model, "
            "num_regions=128) or Regionizer(pool='mean', norm='none').",
            UntrainedWarning,
            stacklevel=3,
        )


def _view(model: Any, kind: Any, *, config: Any = None) -> Any:
    """Return a model with the same modules and weights as another class, and its own config or the one given."""
    if "forward" in vars(model) and "_hf_hook" not in vars(model):
        raise ValueRangeError(
            f"the forward of this {type(model).__name__} was replaced, as by torch.compile or accelerate's prepare, "
            "and would not make regions. Convert the model first."
        )
    view = kind.__new__(kind)
    view.__dict__ = {
        name: copy.copy(value) if isinstance(value, dict) else value for name, value in vars(model).items()
    }
    view.__dict__.pop("_compiled_call_impl", None)  # of the other class's forward
    view.config = copy.copy(model.config) if config is None else config
    if "_hf_hook" in vars(model):  # accelerate keeps the class's forward in the instance
        for name in ("forward", "_old_forward", "_hf_hook"):
            view.__dict__.pop(name, None)
        require("accelerate.hooks", extra="hf").add_hook_to_module(view, model._hf_hook)
    return view


def _why_not(name: str) -> str:
    supported = ", ".join(BY_STOCK)
    if "Peft" in name:
        return f"{name} wraps a model. Give the model in it, peft_model.get_base_model(), and wrap its region version."
    if name in REFUSED:
        return f"{name} cannot have region tokens: {REFUSED[name]}. Use one of {supported}."
    return f"there is no adapter for {name}. Use one of {supported}."
