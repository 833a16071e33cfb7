"""Save and load region models: their config, and weights of the Regionizer that no stock checkpoint has."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regiontok._require import require
from regiontok.errors import CheckpointError, ValueRangeError
from regiontok.regionizer import Regionizer

transformers = require("transformers", extra="hf")

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
_MODEL_OPTIONS = ("dtype", "torch_dtype", "quantization_config", "attn_implementation")
"""Arguments of ``from_pretrained`` that belong to the model, though a config has attributes of these names."""
_OLD_NAMES = {r"^regionizer\.": "model.regionizer."}
"""Weights of the Regionizer in folders that were saved when it was part of the outer model."""
_REMOTE = "modeling_regiontok.py"
_CODE = '''"""Load this folder with transformers and trust_remote_code=True. It needs: pip install 'regiontok[hf]'"""

from regiontok.adapters.huggingface import {names}  # noqa: F401
'''


class CheckpointMixin:
    """``from_pretrained`` and ``save_pretrained`` of region models, inner and outer."""

    config: Any
    regionizer: Regionizer
    _region_config: type[Any]

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(to_region_config(config, self._region_config), *args, **kwargs)  # type: ignore[call-arg]

    @classmethod
    def from_pretrained(
        cls,
        name: Any,
        *args: Any,
        regionizer: Regionizer | None = None,
        newline: str | None = None,
        positions: str | None = None,
        config: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Load what ``save_pretrained`` wrote, or with ``regionizer`` a stock checkpoint.

        All other arguments are those of transformers. The weights of a ``regionizer`` given here are the model's, and
        are left as they are by a ``quantization_config``. For ``newline`` and ``positions`` see `with_regions`.

        Raises:
            CheckpointError: A stock checkpoint, and no ``regionizer``; or a checkpoint that lacks weights of its
                Regionizer, or has others.
            ShapeError: A ``regionizer`` of another dimension than the features.
        """
        if not isinstance(config, transformers.PreTrainedConfig):
            hub = {option: kwargs[option] for option in HUB_OPTIONS if option in kwargs}
            config = transformers.AutoConfig.from_pretrained(name if config is None else config, **hub)
        is_old = not isinstance(config, cls._region_config)
        config = to_region_config(copy.deepcopy(config), cls._region_config)
        for option in [name for name in kwargs if hasattr(config, name) and name not in _MODEL_OPTIONS]:
            setattr(config, option, kwargs.pop(option))
        set_options(config, cls, newline=newline, positions=positions)
        for options in (kwargs, vars(config)):
            if options.get("quantization_config") is not None:
                options["quantization_config"] = _without_regionizer(options["quantization_config"])
        if regionizer is not None:
            config.regiontok = regionizer.config.to_dict()
        elif is_old:
            kwargs["key_mapping"] = {**(kwargs.get("key_mapping") or {}), **_OLD_NAMES}
        wants_report = kwargs.pop("output_loading_info", False)
        model, report = super().from_pretrained(name, *args, config=config, output_loading_info=True, **kwargs)
        model._weight_conversions = [  # saved again, weights have their new names
            conversion for conversion in model._weight_conversions if conversion.source_patterns != list(_OLD_NAMES)
        ]
        if regionizer is not None:
            model.regionizer.load_state_dict(regionizer.state_dict())
        else:
            _check_loaded(name, report)
        return (model, report) if wants_report else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Save the model as transformers does, with the options of the Regionizer that it has now."""
        self.config.regiontok = self.regionizer.config.to_dict()
        write_remote_code(save_directory, self.config.auto_map.values())  # before super() may upload the folder
        return super().save_pretrained(save_directory, *args, **kwargs)


def write_remote_code(folder: Any, names: Any) -> None:
    """Write the module that ``auto_map`` names, so that a process without regiontok gets an error that names it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    classes = sorted({name.rpartition(".")[2] for name in names} | _named_in(Path(folder) / _REMOTE))
    (Path(folder) / _REMOTE).write_text(_CODE.format(names=", ".join(classes)), encoding="utf-8")


def _named_in(file: Path) -> set[str]:
    if not file.is_file():
        return set()
    names = file.read_text(encoding="utf-8").rpartition("import ")[2].partition("  #")[0]
    return {name.strip() for name in names.split(",") if name.strip().isidentifier()}


def auto_map(**names: str) -> dict[str, str]:
    """Return the ``auto_map`` of a config or processor: the names of the classes that a folder is loaded with."""
    module = _REMOTE.removesuffix(".py")
    return {auto: f"{module}.{name}" for auto, name in names.items()}


def to_region_config(config: Any, kind: type[Any]) -> Any:
    """Return a config of a stock model as that of a region model, with the same parts."""
    if not isinstance(config, kind):
        config = with_class(config, kind)
    config.auto_map = dict(kind.classes_of_folder)
    return config


def with_class(config: Any, kind: type[Any]) -> Any:
    """Return a config with the same parts as one of another class."""
    config = copy.copy(config)
    config.__class__ = kind
    vars(config).pop("model_type", None)  # as loaded configs have it; it is the class's
    return config


def set_options(config: Any, kind: type[Any], *, newline: str | None = None, positions: str | None = None) -> None:
    """Write options of the adapter into a config; None leaves them as they are.

    Raises:
        ValueRangeError: An option that the family does not have.
    """
    for name, value, why in (
        ("newline", newline, "is for families whose tiles are packed"),
        ("positions", positions, "is for families with positions in rows and columns"),
    ):
        if value is None:
            continue
        if not hasattr(kind, f"has_{name}"):
            raise ValueRangeError(f"{name}={value!r} {why}; {kind.__name__} has none. Leave it out.")
        setattr(config, f"regiontok_{name}", value)


def _check_loaded(name: Any, report: Mapping[str, Any]) -> None:
    """Reject a checkpoint whose weights of the Regionizer are not those that its config asks for."""
    for keys, fault in (
        (report["missing_keys"], "lacks"),
        (report["unexpected_keys"], "has unexpected"),
        (report.get("mismatched_keys") or (), "has of another shape"),
    ):
        wrong = sorted(key for key in keys if "regionizer." in str(key))
        if wrong:
            raise CheckpointError(
                f"{name} {fault} {len(wrong)} weights of the Regionizer that its config describes, the first "
                f"{wrong[0]}. A stock class that loads and saves a region model loses them: take the folder that the "
                "region model's save_pretrained wrote, or remove regiontok from its config.json and pass regionizer=."
            )


def _without_regionizer(quantization: Any) -> Any:
    """Return a config of quantisation that skips the Regionizer, and the head unless the config says otherwise."""
    changed = copy.deepcopy(quantization)
    fields = changed if isinstance(changed, dict) else vars(changed)
    present = [name for name in ("llm_int8_skip_modules", "modules_to_not_convert") if name in fields]
    for name in present or ("llm_int8_skip_modules",):
        fields[name] = sorted({*(fields.get(name) or ("lm_head",)), "regionizer"})
    return changed
