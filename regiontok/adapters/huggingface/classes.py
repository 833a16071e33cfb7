"""Region classes of each family, created on demand from the table of families and registered with transformers.

For ``LlavaForConditionalGeneration`` these are `RegionLlavaConfig`, `RegionLlavaModel`,
`RegionLlavaForConditionalGeneration` and `RegionLlavaProcessor`, which all families with ``LlavaProcessor`` share. The
configs have their own ``model_type``, so that a process without regiontok does not load a folder as a stock model.
"""

import difflib
import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from regiontok._require import require
from regiontok.adapters.huggingface._transformers import (
    CACHES,
    FORWARD_KWARGS,
    PROCESSOR_NAMES,
    exclude_regionizer,
    find_block_format,
    find_inner_class,
    find_video_format,
    get_renaming_rules,
    register_renaming_rules,
)
from regiontok.adapters.huggingface.checkpoints import CheckpointMixin, auto_map
from regiontok.adapters.huggingface.families import FAMILIES, Family
from regiontok.adapters.huggingface.inner import RegionModelMixin
from regiontok.adapters.huggingface.media import SIDE_INPUTS
from regiontok.adapters.huggingface.outer import RegionMixin
from regiontok.adapters.huggingface.region_processor import RegionProcessorMixin
from regiontok.adapters.huggingface.videos import VIDEO_SIDE_INPUTS, VideoEncoderMixin
from regiontok.errors import UnknownOptionError, ValueRangeError

transformers = require("transformers", extra="hf")

_PACKAGE = "regiontok.adapters.huggingface"
_ENGINE_KWARGS = (
    "attention_instances", "return_dict", "use_cache", "output_attentions", "output_hidden_states", "shift_labels",
    "skip_logits",
)  # fmt: skip
"""Arguments that transformers' decorators and Trainer, TRL and vLLM pass to any model."""


class FamilyClasses(NamedTuple):
    """The region classes of a family.

    Attributes:
        config: Subclass of the stock config.
        inner: Subclass of the stock inner model.
        outer: Subclass of ``stock``.
        processor: Subclass of the stock processor.
        stock: The ``*ForConditionalGeneration`` of transformers.
    """

    config: Any
    inner: Any
    outer: Any
    processor: Any
    stock: Any

    def of_subclass(self, stock: Any) -> "FamilyClasses":
        """Return these classes for a subclass of ``stock``, and keep the methods of the subclass."""
        if stock is self.stock:
            return self
        return self._replace(outer=_make_outer(self.config, self.inner, stock), stock=stock)


CLASSES: dict[str, Any] = {}
"""Region classes that exist so far, by their names."""
_OWNERS: dict[str, Family] = {}
"""Families by the names of their config and model classes, also of classes that do not exist yet."""
BY_STOCK: dict[str, Family] = {}
"""Families by the names of their ``*ForConditionalGeneration``."""
CONFIGS: dict[str, Any] = {}
"""Region config classes by the names of their ``*ForConditionalGeneration``."""
_LOCK = threading.RLock()


class _RegionConfig:
    """Config that creates the model classes of its family, so that an Auto class finds them registered."""

    family: Family

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        family_classes(cls.family)
        return super().__new__(cls)


def register_family(family: Family) -> None:
    """Add a family of models to the table.

    Its config and processor are registered with transformers immediately; its model classes are created when needed.

    Args:
        family: Row of the table. Pass the classes of a model outside transformers as ``stock_class`` and
            ``processor_class``; its inner model must be ``<name>Model`` in the module of ``stock_class``.

    Raises:
        ValueRangeError: A family of the same ``*ForConditionalGeneration`` exists.
    """
    if family.stock in BY_STOCK:
        raise ValueRangeError(f"a family of {family.stock} exists already. Give the new family another name.")
    config_stock = getattr(family.stock_class, "config_class", None) or getattr(transformers, f"{family.name}Config")
    names = {
        "AutoConfig": f"Region{config_stock.__name__}",
        "AutoModel": f"Region{family.name}Model",
        "AutoModelForImageTextToText": f"Region{family.stock}",
    }
    processor_name = PROCESSOR_NAMES.get(config_stock.model_type, "LlavaProcessor")
    processor = processor_class(family.processor_class or getattr(transformers, processor_name))
    config_bases = (_RegionConfig, config_stock)
    config = _make(names["AutoConfig"], config_bases, model_type=f"region_{config_stock.model_type}", family=family)
    if family not in FAMILIES:
        FAMILIES.append(family)
    BY_STOCK[family.stock], CONFIGS[family.stock] = family, config
    _OWNERS.update(dict.fromkeys(names.values(), family))
    config.classes_of_folder = auto_map(**names, AutoProcessor=processor.__name__)
    transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
    transformers.AutoProcessor.register(config, processor, exist_ok=True)


def find_class(name: str) -> Any:
    """Return a region class by its name, and create it if it does not exist yet; None for other names."""
    if name not in CLASSES and name in _OWNERS:
        family_classes(_OWNERS[name])
    return CLASSES.get(name)


def class_names() -> list[str]:
    """Return the names of all region classes, also of those that do not exist yet."""
    return sorted({*CLASSES, *_OWNERS})


def family_classes(family: Family) -> FamilyClasses:
    """Return the region classes of a family; the first call imports its modelling code and registers the classes."""
    with _LOCK:  # threads may load models of one family at the same time
        return _make_family(family)


@functools.cache
def _make_family(family: Family) -> FamilyClasses:
    stock = family.stock_class or getattr(transformers, family.stock)
    inner_stock = find_inner_class(stock, family.name)
    config = CONFIGS[family.stock]
    bases = (CheckpointMixin, family.mixin, inner_stock)
    inner = _make(f"Region{family.name}Model", bases, _inner=inner_stock, _stock=stock, config_class=config)
    inner._region_config = config
    if inner.video_grids is not VideoEncoderMixin.video_grids:
        inner.has_videos = True
    inner.forward = _with_region_inputs(inner, family.mixin.forward, inner_stock.forward)
    inner.get_image_features = _with_signature(inner.get_image_features, inner_stock.get_image_features)
    if hasattr(inner_stock, "get_video_features"):
        inner.get_video_features = _with_signature(inner.get_video_features, inner_stock.get_video_features)
    outer = CLASSES[f"Region{family.stock}"] = _make_outer(config, inner, stock)
    processor = CLASSES[config.classes_of_folder["AutoProcessor"].rpartition(".")[2]]
    _register_models(config, inner, outer, stock, inner_stock)
    return FamilyClasses(config, inner, outer, processor, stock)


@functools.cache
def _make_outer(config: Any, inner: Any, stock: Any) -> Any:
    bases = (CheckpointMixin, RegionMixin, stock)
    outer = _make_class(f"Region{stock.__name__}", bases, _inner=inner, _stock=stock, config_class=config)
    outer._region_config = config
    outer.forward = _with_region_inputs(inner, RegionMixin.forward, stock.forward)
    for name in ("has_newline", "has_positions", "has_videos"):
        if hasattr(inner, name):
            setattr(outer, name, True)
    return outer


def processor_class(stock: Any) -> Any:
    """Return the region class of a stock processor's class, and create it if it does not exist yet."""
    name = f"Region{stock.__name__}"
    if name not in CLASSES:
        formats = {"block_format": find_block_format(stock), "video_format": find_video_format(stock)}
        processor = _make(name, (RegionProcessorMixin, stock), **formats)
        if hasattr(stock, "_get_num_multimodal_tokens"):
            processor._get_num_multimodal_tokens = RegionProcessorMixin.count_multimodal_tokens
    return CLASSES[name]


def _make(name: str, bases: tuple[type[Any], ...], **attributes: Any) -> Any:
    CLASSES[name] = _make_class(name, bases, **attributes)
    return CLASSES[name]


def _make_class(name: str, bases: tuple[type[Any], ...], **attributes: Any) -> Any:
    doc = f"``{bases[-1].__name__}`` with region tokens."
    for mixin in (RegionModelMixin, RegionMixin, RegionProcessorMixin):
        if any(issubclass(base, mixin) for base in bases):
            doc += f" See `{mixin.__name__}`."
    return type(name, bases, {"__module__": _PACKAGE, "__doc__": doc, **attributes})


def _register_models(config: Any, inner: Any, outer: Any, stock: Any, inner_stock: Any) -> None:
    """Register models with the Auto classes, and their rules for renaming weights."""
    transformers.AutoModel.register(config, inner, exist_ok=True)
    for auto in ("AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
        if hasattr(transformers, auto):
            getattr(transformers, auto).register(config, outer, exist_ok=True)
    for stock_name, region_name in (
        (stock.config_class.model_type, config.model_type),
        (inner_stock.__name__, inner.__name__),
        (stock.__name__, outer.__name__),
    ):
        rules = get_renaming_rules(stock_name)
        if rules is not None:
            register_renaming_rules(region_name, [exclude_regionizer(rule) for rule in rules], overwrite=True)


def _with_signature(function: Callable[..., Any], stock: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method with the signature of the stock method, from which ``generate`` reads the accepted arguments."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    functools.update_wrapper(call, function)
    del call.__wrapped__  # type: ignore[attr-defined]
    call.__signature__ = inspect.signature(stock)  # type: ignore[attr-defined]
    return call


def _with_region_inputs(
    inner: Any, forward: Callable[..., Any], stock_forward: Callable[..., Any]
) -> Callable[..., Any]:
    """Return ``forward`` with the arguments of the stock class, in its order, and those of a region model.

    Trainers read from the signature which columns of a data set a model accepts. Unknown arguments are rejected.
    """
    stock_parameters = inspect.signature(stock_forward).parameters
    var_keyword = [parameter for parameter in stock_parameters.values() if parameter.kind is parameter.VAR_KEYWORD]
    names = [*SIDE_INPUTS, *inner.encoder_inputs]
    if hasattr(inner, "has_videos"):
        names += ["pixel_values_videos", *VIDEO_SIDE_INPUTS, *inner.video_inputs]
    added = [name for name in dict.fromkeys(names) if name not in stock_parameters]
    signature = inspect.Signature([
        *(parameter for parameter in stock_parameters.values() if parameter not in var_keyword),
        *(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in added),
        *var_keyword,
    ])  # fmt: skip
    of_outer = inspect.signature(inner._stock.forward).parameters  # some outer models pass all of theirs to the inner
    accepted = {*signature.parameters, *of_outer, *FORWARD_KWARGS, *_ENGINE_KWARGS, *CACHES}

    @functools.wraps(forward)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args:
            named = signature.bind(self, *args, **kwargs).arguments
            del named["self"]
            kwargs = {**(named.pop(var_keyword[0].name, {}) if var_keyword else {}), **named}
        getattr(self, "model", self).reject_other_media(kwargs)
        for name in [name for name in kwargs if name not in signature.parameters]:
            if kwargs[name] is None:
                del kwargs[name]
            elif name not in accepted:
                near = difflib.get_close_matches(name, sorted(accepted), 1)
                hint = f"Did you mean {near[0]!r}?" if near else "Leave it out."
                raise UnknownOptionError(f"{type(self).__name__} takes no argument {name!r}. {hint}")
        return forward(self, **kwargs)

    del call.__wrapped__  # accelerate unwraps methods, and would call the original one
    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


for _family in FAMILIES:
    register_family(_family)
