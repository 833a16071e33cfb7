"""Vision encoders under one face: images in, patch features out.

    encoder = regiontok.encoders.load("clip-336")
    features, valid = encoder(image)        # (1, 24, 24, 1024), (1, 24, 24)

Any callable becomes an encoder with `Encoder`; `ENCODERS` lists the names that are known.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from regiontok._checks import check_choice, check_device, check_integer, check_size
from regiontok._require import check_importable
from regiontok.choices import GEOMETRIES
from regiontok.encoders import huggingface, open_clip, timm
from regiontok.encoders.base import Encoded, Encoder, LoadOptions
from regiontok.encoders.pixels import PixelDescriptor
from regiontok.errors import ValueRangeError
from regiontok.geometry import ImageGeometry, Size
from regiontok.presets import ENCODERS, Recipe

__all__ = ["ENCODERS", "Encoded", "Encoder", "LoadOptions", "PixelDescriptor", "load", "register"]

_BUILDERS: dict[str, Callable[[str, LoadOptions], Encoder]] = {
    "timm": timm.build,
    "open_clip": open_clip.build,
    "hf": huggingface.build,
}
"""By library, as in ``timm:MODEL``."""
_REGISTERED: dict[str, Callable[[LoadOptions], Encoder]] = {}


def register(name: str, build: Callable[[LoadOptions], Encoder]) -> None:
    """Let `load` find an encoder by name.

    Args:
        name: A new name without a colon.
        build: Called with the options of `load`; returns an `Encoder`.

    Raises:
        ValueRangeError: The name is taken, or has a colon.

    Example:
        >>> def build(options):
        ...     model = lambda pixels: pixels.unfold(2, 16, 16).unfold(3, 16, 16).mean((4, 5)).permute(0, 2, 3, 1)
        ...     return Encoder(model, geometry=ImageGeometry(options.geometry, options.size or (96, 96)), patch_size=16)
        >>> register("mean-colours", build)
        >>> load("mean-colours")(Image.new("RGB", (64, 48))).features.shape
        torch.Size([1, 6, 6, 3])
    """
    if name in ("pixels", *ENCODERS, *_REGISTERED) or ":" in name:
        raise ValueRangeError(f"an encoder {name!r} exists, or the name has a colon. Choose another name.")
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
        name: One of `ENCODERS`; ``pixels``, which needs no weights; ``timm:MODEL``; ``open_clip:MODEL/TAG``; or
            ``hf:MODEL``, a vision transformer of transformers on the hub or in a folder.
        pretrained: Fetch the weights; with False they are random.
        weights: A safetensors file to take them from instead; not for ``hf:``, which takes a folder.
        device: Where to build it; the CPU by default.
        layer: Block or stage whose features to take, counted from 0, or negative from the end. By default the second
            to last for ``clip-336``, as LLaVA does, and the last for all others.
        final_norm: Apply the model's last norm to them. By default not for ``clip-336``, but for all others.
        img_size: Input side in pixels, or height and width, where it should not be the model's own; the named encoders
            have theirs.
        geometry: How images are placed: ``letterbox``, ``squash`` or ``center_crop``.

    Returns:
        An `Encoder`.

    Raises:
        ValueRangeError: An unknown name, geometry or layer, an option that this encoder has no use for, or a device
            that is not there.
        CheckpointError: Weights that cannot be reached or do not fit.
        MissingDependencyError: timm, open_clip or transformers is not installed.

    Example:
        >>> encoder = load("pixels")
        >>> features, valid = encoder(Image.new("RGB", (640, 480), "teal"))
        >>> features.shape
        torch.Size([1, 24, 24, 48])

    Source:
        Supplement: CLIP at 336, SigLIP2 at 378, RADIO at 384 and 576, DINOv2, DINOv2 with registers, AIMv2 at 448
        (Table 1, Figure 2). Which layer is taken the paper does not say.
    """
    check_choice("geometry", geometry, GEOMETRIES)
    size = img_size if img_size is None or isinstance(img_size, Sequence) else (img_size, img_size)
    size = None if size is None else check_size("img_size", size)
    if size is not None:
        _check_memory(size)
    if layer is not None:
        check_integer("layer", layer, minimum=-1000)
    check_device(device)
    given: dict[str, Any] = {"layer": layer, "final_norm": final_norm, "weights": weights and str(weights)}
    if size is not None:
        given["img_size"] = size[0] if size[0] == size[1] else list(size)
    if name == "pixels":
        _refuse("pixels", weights=weights, layer=layer, final_norm=final_norm)
        side = 24 * PixelDescriptor.patch_size
        encoder = Encoder(
            PixelDescriptor(),
            geometry=ImageGeometry(geometry, size or (side, side)),
            patch_size=PixelDescriptor.patch_size,
            fill="edge",
            name=name,
        )
        return _tell(encoder.to(device or "cpu"), given)
    library, _, model = name.partition(":")
    recipe = ENCODERS.get(name)
    if recipe is not None:
        _refuse(name, img_size=img_size)
        library, model, size = "timm", recipe.timm_model, (recipe.img_size, recipe.img_size)
    if name not in _REGISTERED and (library not in _BUILDERS or not model):
        raise ValueRangeError(
            f"there is no encoder {name!r}. Name one of {', '.join(ENCODERS)}, pixels, timm:MODEL, "
            "open_clip:MODEL/TAG, hf:MODEL or hf:FOLDER, or wrap your own model in regiontok.encoders.Encoder, or "
            "regiontok.encoders.register it."
        )
    if name not in _REGISTERED:
        check_importable("torchvision")  # these libraries import it, and hide why that failed
    if library == "hf":
        _refuse(name, weights=weights)
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
    return _tell(_REGISTERED[name](options) if name in _REGISTERED else _BUILDERS[library](model, options), given)


def _check_memory(size: Size) -> None:
    """Reject an input that this machine has no memory for: its pixels as integers, as floats, and cut into patches.

    Raises:
        ValueRangeError: Such a size.
    """
    needed = 30 * size[0] * size[1]
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        raise ValueRangeError(
            f"img_size must fit into memory; got {size[0]} x {size[1]} pixels, which take about {needed >> 30} GiB; "
            f"this machine has {available >> 30} GiB."
        )


def _tell(encoder: Encoder, given: dict[str, Any]) -> Encoder:
    """Let an encoder know the options that it was loaded with."""
    encoder.options = {name: value for name, value in given.items() if value is not None}
    return encoder


def _refuse(name: str, **options: object) -> None:
    for option, value in options.items():
        if value is not None:
            raise ValueRangeError(f"encoder {name!r} takes no {option}; got {value}. Leave it out.")
