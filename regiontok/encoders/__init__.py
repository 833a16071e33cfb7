"""Vision encoders with a common interface: they map images to patch features.

    encoder = regiontok.encoders.load("clip-336")
    features, valid = encoder(image)        # (1, 24, 24, 1024), (1, 24, 24)

`Encoder` wraps any callable as an encoder. `ENCODERS` lists the named encoders.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from regiontok._checks import check_device, check_size
from regiontok._require import check_importable
from regiontok._values import check_choice, check_integer
from regiontok.choices import GEOMETRIES
from regiontok.encoders import huggingface, open_clip, pixels, timm
from regiontok.encoders.base import Encoded, EncodedImage, Encoder, ImageEncoder, LoadOptions
from regiontok.encoders.pixels import PixelDescriptor
from regiontok.errors import ValueRangeError
from regiontok.geometry import Size
from regiontok.presets import ENCODERS, Recipe

__all__ = [
    "ENCODERS",
    "Encoded",
    "EncodedImage",
    "Encoder",
    "ImageEncoder",
    "LoadOptions",
    "PixelDescriptor",
    "load",
    "register",
]

_BUILDERS: dict[str, Callable[[str, LoadOptions], Encoder]] = {
    "timm": timm.build,
    "open_clip": open_clip.build,
    "hf": huggingface.build,
}
"""Functions that build an encoder by library, the prefix of names such as ``timm:MODEL``."""
_REGISTERED: dict[str, Callable[[LoadOptions], Encoder]] = {}


def register(name: str, build: Callable[[LoadOptions], Encoder]) -> None:
    """Register an encoder that `load` loads by name.

    Args:
        name: A name that is not in use, without a colon.
        build: Returns an `Encoder`. It is called with the options of `load`.

    Raises:
        ValueRangeError: The name is already registered, or contains a colon.

    Example:
        >>> def build(options):
        ...     model = lambda pixels: pixels.unfold(2, 16, 16).unfold(3, 16, 16).mean((4, 5)).permute(0, 2, 3, 1)
        ...     return Encoder(model, geometry=ImageGeometry(options.geometry, options.size or (96, 96)), patch_size=16)
        >>> register("mean-colours", build)
        >>> load("mean-colours")(Image.new("RGB", (64, 48))).features.shape
        torch.Size([1, 6, 6, 3])
    """
    if name in ("pixels", *ENCODERS, *_REGISTERED) or ":" in name:
        raise ValueRangeError(
            f"an encoder {name!r} is already registered, or the name contains a colon. Choose another name."
        )
    _REGISTERED[name] = build


def load(
    name: str,
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    device: torch.device | str | None = None,
    layer: int | None = None,
    final_norm: bool | None = None,
    img_size: int | Size | None = None,
    geometry: str = "letterbox",
) -> Encoder:
    """Load an encoder by name.

    Args:
        name: One of `ENCODERS`; ``pixels``, which needs no weights; ``timm:MODEL``; ``open_clip:MODEL/TAG``;
            ``hf:MODEL``, a vision transformer of transformers on the hub or in a folder; or a name that was passed to
            `register`.
        pretrained: Load the weights; if False, they are random.
        weights: A safetensors file with the weights. Not supported by ``hf:``, which loads a folder.
        device: Device of the encoder; the CPU by default.
        layer: Index of the block or stage that provides the features, from 0, or negative from the end. By default the
            second to last for ``clip-336``, as in LLaVA, and the last for all others.
        final_norm: Apply the final norm of the model to the features. Defaults to False for ``clip-336`` and True for
            all others.
        img_size: Side of the input in pixels, or height and width, if it differs from the default of the model. The
            encoders in `ENCODERS` have a fixed size.
        geometry: How images are resized and padded: ``letterbox``, ``squash`` or ``center_crop``.

    Returns:
        An `Encoder`.

    Raises:
        ValueRangeError: The name, geometry or layer is unknown, the device is not available, or the encoder does not
            accept an option.
        CheckpointError: The weights cannot be loaded, or do not match the model.
        MissingDependencyError: timm, open_clip or transformers is not installed.

    Example:
        >>> encoder = load("pixels")
        >>> features, valid = encoder(Image.new("RGB", (640, 480), "teal"))
        >>> features.shape
        torch.Size([1, 24, 24, 48])

    Source:
        Supplement: CLIP at 336, SigLIP2 at 378, RADIO at 384 and 576, DINOv2, DINOv2 with registers, AIMv2 at 448
        (Table 1, Figure 2). The paper does not specify the layer.
    """
    check_choice("geometry", geometry, GEOMETRIES)
    size = img_size if img_size is None or isinstance(img_size, Sequence) else (img_size, img_size)
    size = None if size is None else check_size("img_size", size)
    if size is not None:
        _check_memory(size)
    if layer is not None:
        check_integer("layer", layer, minimum=-1000)
    check_device(device)
    passed: dict[str, Any] = {"layer": layer, "final_norm": final_norm, "weights": weights and str(weights)}
    if size is not None:
        passed["img_size"] = size[0] if size[0] == size[1] else list(size)
    library, _, model = name.partition(":")
    recipe = ENCODERS.get(name)
    if name == "pixels":
        _reject(name, weights=weights, layer=layer, final_norm=final_norm)
    elif recipe is not None:
        _reject(name, img_size=img_size)
        library, model, size = "timm", recipe.timm_model, (recipe.img_size, recipe.img_size)
    elif library == "hf":
        _reject(name, weights=weights)
    default = recipe or Recipe(model, 0)
    options = LoadOptions(
        name=name,
        pretrained=pretrained,
        weights=weights,
        device=device or "cpu",
        size=size,
        layer=default.layer if layer is None else layer,
        final_norm=default.final_norm if final_norm is None else final_norm,
        geometry=geometry,
    )
    if name == "pixels":
        encoder = pixels.build(options)
    elif name in _REGISTERED:
        encoder = _REGISTERED[name](options)
    elif library in _BUILDERS and model:
        check_importable("torchvision")  # imported by these libraries, which hide the cause of a failed import
        encoder = _BUILDERS[library](model, options)
    else:
        raise ValueRangeError(
            f"there is no encoder {name!r}. Name one of {', '.join(ENCODERS)}, pixels, timm:MODEL, "
            "open_clip:MODEL/TAG, hf:MODEL or hf:FOLDER, or wrap your own model in regiontok.encoders.Encoder, or "
            "regiontok.encoders.register it."
        )
    encoder.options = {option: value for option, value in passed.items() if value is not None}
    return encoder


def _check_memory(size: Size) -> None:
    """Check that the machine has enough memory for an input: its pixels as integers, as floats and as patches.

    Raises:
        ValueRangeError: The input is too large.
    """
    needed = 30 * size[0] * size[1]
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        raise ValueRangeError(
            f"img_size must fit into memory; got {size[0]} x {size[1]} pixels, which need about {needed >> 30} GiB; "
            f"this machine has {available >> 30} GiB."
        )


def _reject(name: str, **options: object) -> None:
    """Raise an error for the first of these options that is set, because the encoder does not accept it."""
    for option, value in options.items():
        if value is not None:
            raise ValueRangeError(f"encoder {name!r} takes no {option}; got {value}. Leave it out.")
