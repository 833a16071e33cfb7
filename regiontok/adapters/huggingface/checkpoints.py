"""Save and load region models: their configs, and the weights of the Regionizer that stock checkpoints do not have."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regiontok._require import require
from regiontok.errors import CheckpointError, ValueRangeError
from regiontok.regionizer import Regionizer

transformers = require("transformers", extra="hf")

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
"""Arguments of ``from_pretrained`` that find files, for the config as for the weights."""
ADAPTER_OPTIONS = ("regiontok_newline", "regiontok_positions", "regiontok_videos")
"""Attributes of the config of a region model, in addition to the options of its Regionizer."""
_MODEL_OPTIONS = ("dtype", "torch_dtype", "quantization_config", "attn_implementation")
"""Arguments of ``from_pretrained`` for the model, although configs have attributes of these names."""
_REMOTE = "modeling_regiontok.py"
_CODE = '''"""Load this folder with transformers and trust_remote_code=True. It needs: pip install 'regiontok[hf]'"""

from regiontok.adapters.huggingface import {names}  # noqa: F401
'''


class CheckpointMixin:
    """Mixin for ``from_pretrained`` and ``save_pretrained`` of inner and outer region models."""

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
        video_num_regions: int | None = None,
        video_keep: float | None = None,
        empty_frames: str | None = None,
        config: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Load a region model, or a stock checkpoint with a Regionizer.

        Args:
            name: Folder or name on the hub.
            args: Positional arguments of transformers.
            regionizer: Regionizer to add to a stock checkpoint, with its weights. It is never quantized.
            newline: See `with_regions`.
            positions: See `with_regions`, as for the next three arguments.
            video_num_regions: Budget of tokens per video.
            video_keep: The same budget as a fraction of the patches.
            empty_frames: What happens to the text of frames without tokens.
            config: Config, or its folder or name on the hub; by default that of ``name``.
            kwargs: Other arguments of transformers.

        Raises:
            CheckpointError: A stock checkpoint without ``regionizer``, or a checkpoint whose weights of the Regionizer
                do not match its config.
            ShapeError: ``regionizer`` has another dimension than the patch features.
        """
        if not isinstance(config, transformers.PreTrainedConfig):
            hub = {option: kwargs[option] for option in HUB_OPTIONS if option in kwargs}
            config = transformers.AutoConfig.from_pretrained(name if config is None else config, **hub)
        config = to_region_config(copy.deepcopy(config), cls._region_config)
        for option in [name for name in kwargs if hasattr(config, name) and name not in _MODEL_OPTIONS]:
            setattr(config, option, kwargs.pop(option))
        set_options(
            config,
            cls,
            newline=newline,
            positions=positions,
            videos=video_options(video_num_regions, video_keep, empty_frames),
        )
        for options in (kwargs, vars(config)):
            if options.get("quantization_config") is not None:
                options["quantization_config"] = _without_regionizer(options["quantization_config"])
        if regionizer is not None:
            config.regiontok = regionizer.config.to_dict()
        output_loading_info = kwargs.pop("output_loading_info", False)
        model, report = super().from_pretrained(name, *args, config=config, output_loading_info=True, **kwargs)
        if regionizer is not None:
            model.regionizer.load_state_dict(regionizer.state_dict())
        else:
            _check_loaded(name, report)
        return (model, report) if output_loading_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Save the model as transformers does, with the current options of the Regionizer."""
        self.config.regiontok = self.regionizer.config.to_dict()
        write_remote_code(save_directory, self.config.auto_map.values())  # before super() may upload the folder
        return super().save_pretrained(save_directory, *args, **kwargs)


def write_remote_code(folder: Any, names: Any) -> None:
    """Write the module named in ``auto_map``; without regiontok installed, its error says how to install it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    classes = sorted({name.rpartition(".")[2] for name in names} | _imported_names(Path(folder) / _REMOTE))
    (Path(folder) / _REMOTE).write_text(_CODE.format(names=", ".join(classes)), encoding="utf-8")


def _imported_names(file: Path) -> set[str]:
    """Return the names that an existing module of `write_remote_code` imports, of the model or of its processor."""
    if not file.is_file():
        return set()
    names = file.read_text(encoding="utf-8").rpartition("import ")[2].partition("  #")[0]
    return {name.strip() for name in names.split(",") if name.strip().isidentifier()}


def auto_map(**names: str) -> dict[str, str]:
    """Return the ``auto_map`` of a config or processor, from which transformers finds the classes of a folder."""
    module = _REMOTE.removesuffix(".py")
    return {auto: f"{module}.{name}" for auto, name in names.items()}


def to_region_config(config: Any, kind: type[Any]) -> Any:
    """Return the config of a region model from that of a stock model; both share their nested configs."""
    if not isinstance(config, kind):
        config = with_class(config, kind)
    config.auto_map = dict(kind.classes_of_folder)
    return config


def with_class(config: Any, kind: type[Any]) -> Any:
    """Return a copy of a config as another class; both share their nested configs."""
    config = copy.copy(config)
    config.__class__ = kind
    vars(config).pop("model_type", None)  # loaded configs have it as an attribute, which hides that of the class
    return config


def video_options(num_regions: int | None, keep: float | None, empty_frames: str | None) -> dict[str, Any] | None:
    """Return the options of videos in the config of a model or processor; None without any."""
    options = {"num_regions": num_regions, "keep": keep, "empty_frames": empty_frames}
    return {name: value for name, value in options.items() if value is not None} or None


def set_options(
    config: Any,
    kind: type[Any],
    *,
    newline: str | None = None,
    positions: str | None = None,
    videos: dict[str, Any] | None = None,
) -> None:
    """Write options of the adapter into a config; None keeps the present value.

    Raises:
        ValueRangeError: The family does not have the option.
    """
    for name, value, families in (
        ("newline", newline, "families with anyres tiles"),
        ("positions", positions, "families with positions in rows and columns"),
        ("videos", videos, "families that accept videos"),
    ):
        if value is None:
            continue
        if not hasattr(kind, f"has_{name}"):
            raise ValueRangeError(f"{name}={value!r} requires {families}; got {kind.__name__}. Leave it out.")
        setattr(config, f"regiontok_{name}", value)


def _check_loaded(name: Any, report: Mapping[str, Any]) -> None:
    """Raise an error if the weights of the Regionizer in a checkpoint do not match its config."""
    for keys, fault in (
        (report["missing_keys"], "lacks {} weights"),
        (report["unexpected_keys"], "has {} unexpected weights"),
        (report.get("mismatched_keys") or (), "has {} weights of other shapes"),
    ):
        wrong = sorted(key for key in keys if "regionizer." in str(key))
        if wrong:
            raise CheckpointError(
                f"{name} {fault.format(len(wrong))} of the Regionizer in its config, the first {wrong[0]}. Saving with "
                "a stock class loses them: use the folder that the region model's save_pretrained wrote, or remove "
                "regiontok from its config.json and pass regionizer=."
            )


def _without_regionizer(quantization: Any) -> Any:
    """Return a quantization config that skips the Regionizer, and by default the head of the language model."""
    changed = copy.deepcopy(quantization)
    fields = changed if isinstance(changed, dict) else vars(changed)
    present = [name for name in ("llm_int8_skip_modules", "modules_to_not_convert") if name in fields]
    for name in present or ("llm_int8_skip_modules",):
        fields[name] = sorted({*(fields.get(name) or ("lm_head",)), "regionizer"})
    return changed
