"""Mask generators with a common interface: they map images to one `MaskSet` per image.

    generate = regiontok.masks.load("sam2")      # or "felzenszwalb", which needs no weights
    masks = generate([image, ...])               # a list with one MaskSet per image

Any callable with this signature is a mask generator. It may return any masks that `MaskDownsampler` accepts.
`regiontok.store.MaskStore` stores masks; `CocoMasks`, `MaskFiles` and `LabelMaps` read existing annotations.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import nn

from regiontok._checks import check_device
from regiontok._require import check_importable, require
from regiontok._values import check_choice
from regiontok.choices import GENERATORS
from regiontok.errors import CheckpointError, ValueRangeError
from regiontok.masks.coco_file import CocoMasks
from regiontok.masks.felzenszwalb import FelzenszwalbMasks
from regiontok.masks.granularity import DEFAULT_SETTINGS, GRANULARITY_SCHEDULE, TARGET_MASK_COUNT, MaskSettings
from regiontok.masks.mask_files import LabelMaps, MaskFiles
from regiontok.masks.package import PackageMasks
from regiontok.masks.pipeline import PipelineMasks
from regiontok.masks.sam2 import Sam2Masks
from regiontok.maskset import MaskSet

__all__ = [
    "DEFAULT_SETTINGS",
    "GENERATORS",
    "GRANULARITY_SCHEDULE",
    "TARGET_MASK_COUNT",
    "CocoMasks",
    "FelzenszwalbMasks",
    "LabelMaps",
    "MaskFiles",
    "MaskGenerator",
    "MaskSettings",
    "PackageMasks",
    "PipelineMasks",
    "Sam2Masks",
    "load",
    "register",
]

_REGISTERED: dict[str, Callable[..., Any]] = {}


def register(name: str, build: Callable[..., Any]) -> None:
    """Register a mask generator that `load` loads by name.

    Args:
        name: A name that is not in use.
        build: Returns a `MaskGenerator`. It is called with the arguments that the caller of `load` passed:
            ``model``, ``pretrained``, ``device``, ``dtype`` and further options.

    Raises:
        ValueRangeError: The name is already registered.

    Example:
        >>> halves = lambda images: [MaskSet.from_labels(torch.arange(image.width).ge(image.width // 2).long().expand(
        ...     image.height, -1)) for image in images]
        >>> register("halves", lambda: halves)
        >>> load("halves")([Image.new("RGB", (64, 48))])
        [MaskSet(2 masks of 48 x 64 pixels)]
    """
    if name in (*GENERATORS, *_REGISTERED):
        raise ValueRangeError(f"a mask generator {name!r} is already registered. Choose a different name.")
    _REGISTERED[name] = build


_SIZES = {
    "tiny": ("t", 96, 1, (1, 2, 7, 2), (5, 7, 9), (7, 7), (8, 4, 14, 7)),
    "small": ("s", 96, 1, (1, 2, 11, 2), (7, 10, 13), (7, 7), (8, 4, 14, 7)),
    "base-plus": ("b+", 112, 2, (2, 3, 16, 3), (12, 16, 20), (14, 14), (8, 4, 14, 7)),
    "large": ("l", 144, 2, (2, 6, 36, 4), (23, 33, 43), (7, 7), (8, 4, 16, 8)),
}
"""Sizes of SAM 2: letter, width, heads, blocks per stage, global attention blocks, size of the positional background,
and window sizes."""


class _Generator(NamedTuple):
    """A built-in mask generator, and the arguments of `load` that it accepts."""

    build: Callable[..., "MaskGenerator"]
    default_model: str | None
    accepts_dtype: bool


_SAM2_LARGE = "facebook/sam2.1-hiera-large"
_GENERATORS = {
    "sam2": _Generator(Sam2Masks, _SAM2_LARGE, True),
    "sam3": _Generator(Sam2Masks, "facebook/sam3", True),
    "sam2-pipeline": _Generator(PipelineMasks, _SAM2_LARGE, False),
    "sam2-package": _Generator(PackageMasks, _SAM2_LARGE, False),
    "felzenszwalb": _Generator(FelzenszwalbMasks, None, False),
}


class MaskGenerator(Protocol):
    """A callable that generates the masks of images."""

    def __call__(self, images: Sequence[Image.Image], /) -> Sequence[MaskSet]:
        """Return one `MaskSet`, or other masks that `MaskDownsampler` accepts, per image."""


def load(
    name: str,
    *,
    model: str | Path | None = None,
    pretrained: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Any:
    """Load a mask generator by name.

    Args:
        name: One of ``GENERATORS``, or a name that was passed to `register`.
        model: Name of a model on the Hugging Face hub, or a folder that ``save_pretrained`` wrote; for ``sam2-package``
            also a checkpoint of the package, such as ``sam2.1_hiera_large.pt``. Defaults to SAM 2.1 large, or SAM 3.
        pretrained: Load the weights; if False, they are random.
        device: Device of the model; the CPU by default.
        dtype: Data type of the weights, float32 by default. bfloat16 is faster on a GPU. Only ``sam2`` and ``sam3``
            accept it.
        options: Options of the class of the generator: `Sam2Masks`, `PipelineMasks`, `PackageMasks` or
            `FelzenszwalbMasks`.

    Returns:
        A `MaskGenerator`.

    Raises:
        ValueRangeError: The name is unknown, the device is not available, or the generator does not accept an option.
        CheckpointError: The weights cannot be downloaded or read.
        MissingDependencyError: A package that the generator needs is not installed.

    Example:
        >>> generate = load("felzenszwalb")
        >>> generate([Image.new("RGB", (64, 48))])
        [MaskSet(1 mask of 48 x 64 pixels)]
    """
    check_choice("name", name, (*GENERATORS, *_REGISTERED))
    check_device(device)
    if name in _REGISTERED:
        arguments = {"model": model, "pretrained": None if pretrained else False, "device": device, "dtype": dtype}
        arguments = {argument: value for argument, value in arguments.items() if value is not None}
        return _build(_REGISTERED[name], name, options | arguments)
    generator = _GENERATORS[name]
    for argument, value, is_accepted in (
        ("model", model, generator.default_model is not None),
        ("dtype", dtype, generator.accepts_dtype),
    ):
        if value is not None and not is_accepted:
            raise ValueRangeError(f"generator {name!r} takes no {argument}; got {value}. Leave it out.")
    if generator.default_model is None:
        return _build(generator.build, name, options)
    check_importable("torchvision")  # imported by transformers and sam2
    model = str(model or generator.default_model)
    if name == "sam2-package":
        loaded, weights = _load_package(model, pretrained, device)
        return _build(generator.build, name, options | {"name": weights}, loaded)
    loaded = _load_transformers(model, pretrained, sam3=name == "sam3")
    loaded = loaded.to(device or "cpu", dtype or torch.float32).eval()
    return _build(generator.build, name, options, loaded)


def _build(build: Callable[..., Any], name: str, options: dict[str, Any], *model: nn.Module) -> Any:
    try:
        return build(*model, **options)
    except TypeError as error:
        raise ValueRangeError(f"generator {name!r}: {error}.") from error


def _load_transformers(model: str, pretrained: bool, *, sam3: bool) -> nn.Module:
    transformers = require("transformers", extra="masks")
    model_class = transformers.Sam3TrackerModel if sam3 else transformers.Sam2Model
    if not pretrained:
        return model_class(transformers.Sam3TrackerConfig() if sam3 else _config(transformers, _size(model)))
    try:
        loaded, report = model_class.from_pretrained(model, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise _loading_error(model, error, "a folder that save_pretrained wrote") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{model} does not contain all weights of {model_class.__name__}: {len(missing)} are missing, such as "
            f"{missing[0]}. Pass a model of this class."
        )
    return loaded


def _config(transformers: Any, size: str) -> Any:
    """Return the configuration of a size of SAM 2."""
    _, width, heads, blocks, global_attention, background, windows = _SIZES[size]
    widths = [width * 2**stage for stage in range(4)]
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=width,
        num_attention_heads=heads,
        blocks_per_stage=list(blocks),
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[heads * 2**stage for stage in range(4)],
        window_size_per_stage=list(windows),
        window_positional_embedding_background_size=list(background),
        global_attention_blocks=list(global_attention),
    )
    vision = transformers.Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=widths[::-1])
    return transformers.Sam2Config(vision_config=vision)


def _load_package(model: str, pretrained: bool, device: torch.device | str | None) -> tuple[nn.Module, str]:
    build = require("sam2.build_sam", extra="sam2")
    letter = _SIZES[_size(model)][0]
    name = Path(model).name
    family = "sam2" if "sam2" in name and "sam2.1" not in name else "sam2.1"
    config = f"configs/{family}/{family}_hiera_{letter}.yaml"
    target = str(device or "cpu")
    if not pretrained:
        return build.build_sam2(config, None, device=target), "random weights"
    try:
        if Path(model).suffix == ".pt":
            return build.build_sam2(config, model, device=target), model
        return build.build_sam2_hf(model, device=target), model
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise _loading_error(model, error, "a checkpoint such as sam2.1_hiera_large.pt") from error


def _size(model: str) -> str:
    name = Path(model).name.lower().replace("_", "-")
    for size in _SIZES:
        if size in name:
            return size
    raise ValueRangeError(f"the name of a SAM 2 model must contain its size, one of {', '.join(_SIZES)}; got {model}.")


def _loading_error(model: str, error: Exception, alternative: str) -> CheckpointError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return CheckpointError(
        f"cannot load SAM weights {model!r}: {reason} Pass model={alternative} (--sam-model on the command line), use "
        "masks from a file, or use the generator 'felzenszwalb', which needs no weights."
    )
