"""A loaded model or a folder in, its region version out, and back."""

import copy
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from regiontok._require import check_importable, require
from regiontok.adapters.huggingface.base import (
    HUB_OPTIONS,
    RegionMixin,
    check_supported,
    guard_inner,
    set_newline,
    unguard_inner,
)
from regiontok.adapters.huggingface.families import FAMILIES, REFUSED
from regiontok.errors import CheckpointError, DTypeError, RegiontokError, ValueRangeError
from regiontok.regionizer import Regionizer

transformers = require("transformers", extra="hf")

_BY_STOCK: dict[str, Any] = {family.stock: family.model for family in FAMILIES}


def with_regions(model: Any, regionizer: Regionizer, *, newline: str | None = None) -> Any:
    """The region version of a loaded model.

    The given model keeps its class, config and methods and can still be used; no class is patched, and there is
    nothing to undo. Both models share their weights, so training one trains the other. Call ``train``, ``eval``, ``to``
    and ``resize_token_embeddings`` on the model that is used: calls on the stock model do not reach the Regionizer, and
    calls on either do not change the mode, and the size in the config, of the other.

    Args:
        model: A multimodal model of transformers, of one of ``FAMILIES``, or the region version of one.
        regionizer: How photos become tokens. It is moved to the model's device and dtype and becomes part of it.
        newline: ``drop``, ``photo`` or ``row``, for LLaVA-NeXT and LLaVA-OneVision; see their `AnyresMixin`.

    Returns:
        A `RegionLlavaForConditionalGeneration`, or the like of the model's family.

    Raises:
        ValueRangeError: A model whose family is not supported; the message says why.
        ShapeError: A ``regionizer`` of another dimension than the model's patch features.

    Example:
        A training-free budget of 128 tokens per image::

            model = LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf")
            small = with_regions(model, Regionizer(pool="mean", norm="none", num_regions=128))
    """
    if not isinstance(regionizer, Regionizer):
        raise DTypeError(f"regionizer must be a Regionizer; got {type(regionizer).__name__}.")
    stock = model._stock if isinstance(model, RegionMixin) else type(model)
    family = _BY_STOCK.get(stock.__name__)
    if family is None:
        raise ValueRangeError(_why_not(stock.__name__))
    check_supported(stock)
    view = _view(model, family)
    view.config.regiontok = dict(regionizer.config)
    vars(view.config).pop("regiontok_newline", None)  # of the regions before
    set_newline(view.config, family, newline)
    view._modules["model"] = _view(view.model, type(view.model), config=view.config)
    guard_inner(view)
    view._check_regionizer(regionizer)
    view.regionizer = regionizer.to(device=model.device, dtype=model.dtype).train(model.training)
    return view


def load_model(folder: str | Path, *, regionizer: Regionizer | None = None, **options: Any) -> Any:
    """The region model of a folder, of whatever family it is.

    Args:
        folder: What a region model's ``save_pretrained`` wrote, or a stock model, by folder or name on the hub.
        regionizer: For a stock model; by default every patch is a token, and the model is what it was.
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
    family = next((one for one in _BY_STOCK.values() if one.config_class.model_type == config.model_type), None)
    if family is None:
        raise ValueRangeError(_why_not((config.architectures or [config.model_type])[0]))
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
        return family.from_pretrained(folder, regionizer=regionizer, **options).eval()
    except RegiontokError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: its weights cannot be loaded: {error}") from error


def without_regions(model: Any) -> Any:
    """The stock version of a region model, with the same weights; the region model stays as it is.

    Raises:
        DTypeError: No region model.
    """
    if not isinstance(model, RegionMixin):
        raise DTypeError(f"model must be one that with_regions made or a family's class; got {type(model).__name__}.")
    view = _view(model, model._stock)
    del view._modules["regionizer"]
    view._modules["model"] = _view(view.model, type(view.model), config=view.config)
    unguard_inner(view)
    for name in ("regiontok", "regiontok_newline"):
        if hasattr(view.config, name):
            delattr(view.config, name)
    return view


def _view(model: Any, kind: Any, *, config: Any = None) -> Any:
    """The same modules and weights as another class, with a config of its own, or the one that is given."""
    view = kind.__new__(kind)
    view.__dict__ = {
        name: copy.copy(value) if isinstance(value, dict) else value for name, value in vars(model).items()
    }
    view.config = copy.copy(model.config) if config is None else config
    if "_hf_hook" in vars(model):  # accelerate keeps the class's forward in the instance
        for name in ("forward", "_old_forward", "_hf_hook"):
            view.__dict__.pop(name, None)
        require("accelerate.hooks", extra="hf").add_hook_to_module(view, model._hf_hook)
    return view


def _why_not(name: str) -> str:
    known = ", ".join(_BY_STOCK)
    if "Peft" in name:
        return f"{name} wraps a model. Give the model in it, peft_model.get_base_model(), and wrap its region version."
    if name in REFUSED:
        return f"{name} cannot have region tokens: {REFUSED[name]}. Use one of {known}."
    return f"there is no adapter for {name}. Use one of {known}."
