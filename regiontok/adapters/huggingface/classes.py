"""The classes of each family, made on demand from its row in the table and registered with transformers.

``LlavaForConditionalGeneration`` gives `RegionLlavaConfig`, `RegionLlavaModel`, `RegionLlavaForConditionalGeneration`
and, with other families of the same processor, `RegionLlavaProcessor`. The own ``model_type`` keeps a process without
regiontok from taking a folder for one of a stock model.
"""

import difflib
import functools
import inspect
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from regiontok._require import require
from regiontok.adapters.huggingface.checkpoints import CheckpointMixin, auto_map
from regiontok.adapters.huggingface.families import FAMILIES, Family
from regiontok.adapters.huggingface.inner import CACHES, SIDE_INPUTS, RegionModelMixin, reject_other_media
from regiontok.adapters.huggingface.outer import RegionMixin
from regiontok.adapters.huggingface.region_processor import RegionProcessorMixin
from regiontok.errors import UnknownOptionError, ValueRangeError

transformers = require("transformers", extra="hf")
_mapping = require("transformers.conversion_mapping", extra="hf")

_PACKAGE = "regiontok.adapters.huggingface"
_ENGINES = (
    "attention_instances", "return_dict", "use_cache", "output_attentions", "output_hidden_states", "shift_labels",
    "skip_logits",
)  # fmt: skip
"""Arguments of every model: of transformers' decorators, and what its Trainer, TRL and vLLM pass."""


class FamilyClasses(NamedTuple):
    """The region classes of a family.

    Attributes:
        config: Subclass of its config.
        inner: Subclass of its inner model.
        outer: Subclass of its ``*ForConditionalGeneration``.
        processor: Subclass of its processor.
        stock: The ``*ForConditionalGeneration`` of transformers.
    """

    config: Any
    inner: Any
    outer: Any
    processor: Any
    stock: Any

    def of_subclass(self, stock: Any) -> "FamilyClasses":
        """Return these classes for a subclass of the stock class, whose methods are kept."""
        if stock is self.stock:
            return self
        return self._replace(outer=_make_outer(self.config, self.inner, stock), stock=stock)


CLASSES: dict[str, Any] = {}
"""Region classes by name, as far as they were made."""
_OWNERS: dict[str, Family] = {}
"""The family that a class belongs to, by the name of the class."""
BY_STOCK: dict[str, Family] = {}
"""The family of each ``*ForConditionalGeneration``, by name."""
CONFIGS: dict[str, Any] = {}
"""Likewise the class of its region config."""


_LOCK = threading.RLock()


class _RegionConfig:
    """A config that makes the model classes of its family before an Auto class looks for them."""

    family: Family

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        family_classes(cls.family)
        return super().__new__(cls)


def register_family(family: Family) -> None:
    """Support a family of models that is not in the table.

    Its config and processor are registered with transformers at once; the model classes are made when they are needed.

    Args:
        family: Its row. The classes of a model outside transformers are given as ``stock_class`` and
            ``processor_class``; its inner model is ``<name>Model`` in the module of ``stock_class``.

    Raises:
        ValueRangeError: A family with these classes exists.
    """
    if family.stock in BY_STOCK:
        raise ValueRangeError(f"there is a family of {family.stock}. Give the new one another name.")
    config_stock = getattr(family.stock_class, "config_class", None) or getattr(transformers, f"{family.name}Config")
    names = {
        "AutoConfig": f"Region{config_stock.__name__}",
        "AutoModel": f"Region{family.name}Model",
        "AutoModelForImageTextToText": f"Region{family.stock}",
    }
    processors = require("transformers.models.auto.processing_auto", extra="hf").PROCESSOR_MAPPING_NAMES
    stock = family.processor_class or getattr(transformers, processors.get(config_stock.model_type, "LlavaProcessor"))
    processor = processor_class(stock)
    config = _make(
        names["AutoConfig"],
        (_RegionConfig, config_stock),
        model_type=f"region_{config_stock.model_type}",
        family=family,
    )
    if family not in FAMILIES:
        FAMILIES.append(family)
    BY_STOCK[family.stock], CONFIGS[family.stock] = family, config
    _OWNERS.update(dict.fromkeys(names.values(), family))
    config.classes_of_folder = auto_map(**names, AutoProcessor=processor.__name__)
    transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
    transformers.AutoProcessor.register(config, processor, exist_ok=True)


def find_class(name: str) -> Any:
    """Return a region class by its name, and make it if it was not needed before; None if there is none."""
    if name not in CLASSES and name in _OWNERS:
        family_classes(_OWNERS[name])
    return CLASSES.get(name)


def class_names() -> list[str]:
    """Return the names of all region classes."""
    return sorted({*CLASSES, *_OWNERS})


def family_classes(family: Family) -> FamilyClasses:
    """Return the region classes of a family; the first call imports its modelling code and registers the classes."""
    with _LOCK:  # of two threads that load models, one makes the classes
        return _make_family(family)


@functools.cache
def _make_family(family: Family) -> FamilyClasses:
    stock = family.stock_class or getattr(transformers, family.stock)
    inner_stock = getattr(sys.modules[stock.__module__], f"{family.name}Model")
    config = CONFIGS[family.stock]
    bases = (CheckpointMixin, family.mixin, inner_stock)
    inner = _make(f"Region{family.name}Model", bases, _inner=inner_stock, _stock=stock, config_class=config)
    inner._region_config = config
    inner.forward = _signed(inner, family.mixin.forward, inner_stock.forward)
    inner.get_image_features = _with_signature(inner.get_image_features, inner_stock.get_image_features)
    outer = CLASSES[f"Region{family.stock}"] = _make_outer(config, inner, stock)
    processor = CLASSES[config.classes_of_folder["AutoProcessor"].rpartition(".")[2]]
    _register_models(config, inner, outer, stock, inner_stock)
    return FamilyClasses(config, inner, outer, processor, stock)


@functools.cache
def _make_outer(config: Any, inner: Any, stock: Any) -> Any:
    bases = (CheckpointMixin, RegionMixin, stock)
    outer = _make_class(f"Region{stock.__name__}", bases, _inner=inner, _stock=stock, config_class=config)
    outer._region_config = config
    outer.forward = _signed(inner, RegionMixin.forward, stock.forward)
    for name in ("has_newline", "has_positions"):
        if hasattr(inner, name):
            setattr(outer, name, True)
    return outer


def processor_class(stock: Any) -> Any:
    """Return the region processor of a stock processor's class; made once."""
    name = f"Region{stock.__name__}"
    if name not in CLASSES:
        made = _make(name, (RegionProcessorMixin, stock))
        if hasattr(stock, "_get_num_multimodal_tokens"):
            made._get_num_multimodal_tokens = RegionProcessorMixin.count_multimodal_tokens
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
    """Register models with the Auto classes, and let weights be renamed as for the stock classes.

    Without the second, transformers renames nothing for classes that are not its own, and would lose ``lm_head``.
    """
    transformers.AutoModel.register(config, inner, exist_ok=True)
    for auto in ("AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
        if hasattr(transformers, auto):
            getattr(transformers, auto).register(config, outer, exist_ok=True)
    for old, new in (
        (stock.config_class.model_type, config.model_type),
        (inner_stock.__name__, inner.__name__),
        (stock.__name__, outer.__name__),
    ):
        mapping = _mapping.get_checkpoint_conversion_mapping(old)
        if mapping is not None:
            _mapping.register_checkpoint_conversion_mapping(
                new, [_leave_regionizer(transform) for transform in mapping], overwrite=True
            )


def _leave_regionizer(transform: Any) -> Any:
    """Return a renaming that does not take the Regionizer for a part of the language model, as Qwen2-VL's do."""
    patterns = [pattern for pattern in transform.source_patterns if "model" in pattern and "(?!" in pattern]
    if not patterns:
        return transform
    pattern = patterns[0]
    target = transform.target_patterns[0]
    if "prefix_to_add" in getattr(type(transform), "__slots__", ()):
        prefix, add = transform.model_prefix, transform.prefix_to_add
        return (
            type(transform)(prefix_to_add=add, model_prefix=prefix)
            if not prefix
            else _mapping.WeightRenaming(
                source_patterns=rf"^{prefix}\.(?!{add}\.|regionizer\.)(.+)", target_patterns=rf"{prefix}.{add}.\1"
            )
        )
    return _mapping.WeightRenaming(
        source_patterns=pattern.replace("visual)", "visual|regionizer)"), target_patterns=target
    )


def _with_signature(function: Callable[..., Any], stock: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method with the signature of a stock one, from which ``generate`` reads its arguments."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    functools.update_wrapper(call, function)
    del call.__wrapped__  # type: ignore[attr-defined]
    call.__signature__ = inspect.signature(stock)  # type: ignore[attr-defined]
    return call


def _signed(inner: Any, forward: Callable[..., Any], stock: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``forward`` with the arguments of a stock class's in its order, and those of a region model.

    Trainers read from the signature which columns of a data set a model takes; other arguments are rejected.
    """
    theirs = inspect.signature(stock).parameters
    rest = [one for one in theirs.values() if one.kind is one.VAR_KEYWORD]
    ours = [name for name in (*SIDE_INPUTS, *inner.encoder_inputs) if name not in theirs]
    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in dict.fromkeys(ours)]
    signature = inspect.Signature([one for one in theirs.values() if one not in rest] + more + rest)
    of_outer = inspect.signature(inner._stock.forward).parameters  # some hand all of theirs to the inner model
    of_all = transformers.utils.TransformersKwargs.__annotations__
    known = {*signature.parameters, *of_outer, *of_all, *_ENGINES, *CACHES}

    @functools.wraps(forward)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args:
            named = signature.bind(self, *args, **kwargs).arguments
            del named["self"]
            kwargs = {**(named.pop(rest[0].name, {}) if rest else {}), **named}
        reject_other_media(kwargs)
        for name in [name for name in kwargs if name not in signature.parameters]:
            if kwargs[name] is None:
                del kwargs[name]
            elif name not in known:
                near = difflib.get_close_matches(name, sorted(known), 1)
                hint = f"Did you mean {near[0]!r}?" if near else "Leave it out."
                raise UnknownOptionError(f"{type(self).__name__} takes no argument {name!r}. {hint}")
        return forward(self, **kwargs)

    del call.__wrapped__  # accelerate looks through it, and would find the bare one
    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


for _family in FAMILIES:
    register_family(_family)
