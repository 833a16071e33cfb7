"""Mask generators under one face: images in, a `MaskSet` per image out.

    generate = regiontok.masks.load("sam2")      # or "felzenszwalb", which needs no weights
    masks = generate([image, ...])               # a list with one MaskSet per image

Any callable of this shape is a generator: what it returns may also be what `MaskDownsampler` takes. `MaskStore` and
`write_masks` keep masks in a file; `CocoMasks`, `MaskFiles` and `LabelMaps` read masks that people have.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import nn

from regiontok._checks import check_choice, check_device
from regiontok._require import check_importable, require
from regiontok.choices import GENERATORS
from regiontok.errors import CheckpointError, ValueRangeError
from regiontok.masks.coco_file import CocoMasks
from regiontok.masks.felzenszwalb import FelzenszwalbMasks
from regiontok.masks.granularity import BOUND, CHEAP, LADDER, MaskSettings
from regiontok.masks.mask_files import LabelMaps, MaskFiles
from regiontok.masks.package import PackageMasks
from regiontok.masks.pipeline import PipelineMasks
from regiontok.masks.sam2 import Sam2Masks
from regiontok.maskset import MaskSet

__all__ = [
    "BOUND",
    "CHEAP",
    "GENERATORS",
    "LADDER",
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
    """Let `load` find a mask generator by name.

    Args:
        name: A new name.
        build: Called with those arguments of `load` that were given, ``model``, ``pretrained``, ``device``, ``dtype``
            and further options; returns a `MaskGenerator`.

    Raises:
        ValueRangeError: The name is taken.

    Example:
        >>> halves = lambda images: [MaskSet.from_labels(torch.arange(image.width).ge(image.width // 2).long().expand(
        ...     image.height, -1)) for image in images]
        >>> register("halves", lambda: halves)
        >>> load("halves")([Image.new("RGB", (64, 48))])
        [MaskSet(2 masks of 48 x 64 pixels)]
    """
    if name in (*GENERATORS, *_REGISTERED):
        raise ValueRangeError(f"a mask generator {name!r} exists. Choose another name.")
    _REGISTERED[name] = build


_SIZES = {
    "tiny": ("t", 96, 1, (1, 2, 7, 2), (5, 7, 9), (7, 7), (8, 4, 14, 7)),
    "small": ("s", 96, 1, (1, 2, 11, 2), (7, 10, 13), (7, 7), (8, 4, 14, 7)),
    "base-plus": ("b+", 112, 2, (2, 3, 16, 3), (12, 16, 20), (14, 14), (8, 4, 14, 7)),
    "large": ("l", 144, 2, (2, 6, 36, 4), (23, 33, 43), (7, 7), (8, 4, 16, 8)),
}
"""SAM 2's sizes: letter, width, heads, blocks per stage, blocks with global attention, background, and windows."""


class MaskGenerator(Protocol):
    """Whatever makes masks of images."""

    def __call__(self, images: Sequence[Image.Image], /) -> Sequence[MaskSet]:
        """One `MaskSet`, or what `MaskDownsampler` takes in its place, per image."""


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
        name: One of ``GENERATORS``, or a name that was given to `register`.
        model: A model's name on the hub, or a folder that ``save_pretrained`` wrote; for ``sam2-package`` also one of
            its own checkpoints, such as ``sam2.1_hiera_large.pt``. By default SAM 2.1 large.
        pretrained: Fetch the weights; with False they are random.
        device: Where to build it; the CPU by default.
        dtype: Of the model's weights, float32 by default; bfloat16 is faster on a GPU. For ``sam2`` and ``sam3`` only.
        options: Of the generator's class: `Sam2Masks`, `PipelineMasks`, `PackageMasks` or `FelzenszwalbMasks`.

    Returns:
        A `MaskGenerator`.

    Raises:
        ValueRangeError: An unknown name, an option that this generator has no use for, or a device that is not there.
        CheckpointError: Weights that cannot be reached or read.
        MissingDependencyError: A package that this generator needs is not installed.

    Example:
        >>> generate = load("felzenszwalb")
        >>> generate([Image.new("RGB", (64, 48))])
        [MaskSet(1 mask of 48 x 64 pixels)]
    """
    check_choice("name", name, (*GENERATORS, *_REGISTERED))
    check_device(device)
    if name in _REGISTERED:
        named = {"model": model, "pretrained": None if pretrained else False, "device": device, "dtype": dtype}
        return _make(_REGISTERED[name], name, options | {key: one for key, one in named.items() if one is not None})
    if dtype is not None and name not in ("sam2", "sam3"):
        raise ValueRangeError(f"generator {name!r} takes no dtype; got {dtype}. Leave it out.")
    if name == "felzenszwalb":
        if model is not None:
            raise ValueRangeError(f"generator 'felzenszwalb' takes no model; got {model}. Leave it out.")
        return _make(FelzenszwalbMasks, name, options)
    check_importable("torchvision")  # which transformers and sam2 import
    if name == "sam2-package":
        loaded, told = _load_package(str(model or "facebook/sam2.1-hiera-large"), pretrained, device)
        return _make(PackageMasks, name, options | {"name": told}, loaded)
    default = "facebook/sam3" if name == "sam3" else "facebook/sam2.1-hiera-large"
    loaded = _load_transformers(str(model or default), pretrained, sam3=name == "sam3")
    loaded = loaded.to(device or "cpu", dtype or torch.float32).eval()
    return _make(PipelineMasks if name == "sam2-pipeline" else Sam2Masks, name, options, loaded)


def _make(generator: Any, name: str, options: dict[str, Any], *model: nn.Module) -> Any:
    try:
        return generator(*model, **options)
    except TypeError as error:
        raise ValueRangeError(f"generator {name!r}: {error}.") from error


def _load_transformers(model: str, pretrained: bool, *, sam3: bool) -> nn.Module:
    transformers = require("transformers", extra="masks")
    kind = transformers.Sam3TrackerModel if sam3 else transformers.Sam2Model
    if not pretrained:
        return kind(transformers.Sam3TrackerConfig() if sam3 else _config(transformers, _size(model)))
    try:
        loaded, report = kind.from_pretrained(model, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreachable(model, error, "a folder that save_pretrained wrote") from error
    if report["missing_keys"]:
        raise CheckpointError(
            f"{model} lacks {len(report['missing_keys'])} of the weights of {kind.__name__}, the first "
            f"{sorted(report['missing_keys'])[0]}. It is another kind of model."
        )
    return loaded


def _config(transformers: Any, size: str) -> Any:
    """The architecture of one of SAM 2's sizes."""
    _, width, heads, blocks, attending, background, windows = _SIZES[size]
    widths = [width * 2**stage for stage in range(4)]
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=width,
        num_attention_heads=heads,
        blocks_per_stage=list(blocks),
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[heads * 2**stage for stage in range(4)],
        window_size_per_stage=list(windows),
        window_positional_embedding_background_size=list(background),
        global_attention_blocks=list(attending),
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
        raise _unreachable(model, error, "a checkpoint such as sam2.1_hiera_large.pt") from error


def _size(model: str) -> str:
    name = Path(model).name.lower().replace("_", "-")
    for size in _SIZES:
        if size in name:
            return size
    raise ValueRangeError(f"the name of a SAM 2 model says its size, one of {', '.join(_SIZES)}; got {model}.")


def _unreachable(model: str, error: Exception, instead: str) -> CheckpointError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return CheckpointError(
        f"SAM weights {model!r} cannot be reached or read: {first} Give model={instead} (--sam-model on the command "
        "line), or use masks from a file or the generator 'felzenszwalb', which needs none."
    )
