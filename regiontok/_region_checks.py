"""Checks of the arguments of `Regions`."""

from collections.abc import Sequence
from operator import index

import numpy as np
import torch
from torch import Tensor

from regiontok.errors import DTypeError, ShapeError, ValueRangeError


def choose_images(images: int | slice | Sequence[int] | Tensor, batch: int) -> list[int]:
    """Return the numbers of the chosen images of a batch, from 0.

    Raises:
        IndexError: An image that the batch does not have.
        ValueRangeError: No image.
    """
    if isinstance(images, slice):
        chosen = list(range(batch))[images]
    else:
        numbers = images.tolist() if isinstance(images, Tensor | np.ndarray) else images
        numbers = numbers if isinstance(numbers, Sequence) else [numbers]
        chosen = [range(batch)[index(number)] for number in numbers]
    if not chosen:
        raise ValueRangeError(f"a batch holds at least one image; got none of {batch} by {images!r}.")
    return chosen


def flatten_labels(labels: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return checked label maps as one vector, and their grids ``(B, 2)``, or ``(B, 3)`` for clips."""
    maps = list(labels) if isinstance(labels, Sequence) or (isinstance(labels, Tensor) and labels.ndim) else [labels]
    if not maps:
        raise ShapeError("labels must hold at least one image; got none.")
    for image, label_map in enumerate(maps):
        if not isinstance(label_map, Tensor):
            raise DTypeError(
                f"labels must be a torch tensor or a list of tensors; got {type(label_map).__name__} for image "
                f"{image}. Convert arrays with torch.from_numpy."
            )
        shape, dtype = tuple(label_map.shape), label_map.dtype
        if label_map.ndim not in (2, 3) or label_map.ndim != maps[0].ndim or label_map.numel() == 0:
            raise ShapeError(
                "labels must be (batch, rows, cols), or a list of (rows, cols), and for clips (frames, rows, cols); "
                f"image {image} has {shape}."
            )
        if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
            raise DTypeError(f"labels must be integers; image {image} has {dtype}. Pass masks to Regions.from_masks.")
    flat = torch.cat([label_map.reshape(-1) for label_map in maps]).long()
    lowest, highest = int(flat.min()), int(flat.max())
    if lowest < -1 or highest >= 2**31:
        raise ValueRangeError(
            f"labels must be -1 (no region) or from 0 to 2**31 - 1; got {lowest if lowest < -1 else highest}."
        )
    return flat, torch.tensor([label_map.shape for label_map in maps], device="cpu")


def check_masks(masks: Sequence[Tensor], per_mask: dict[str, Sequence[Tensor] | None]) -> None:
    """Reject masks that are not one bool tensor per image, and lists without one entry per mask."""
    if isinstance(masks, Tensor) or not isinstance(masks, Sequence):
        raise DTypeError(
            f"masks must be a list with one (masks, rows, cols) tensor per image; got {type(masks).__name__}."
        )
    if not masks:
        raise ShapeError("masks must hold at least one image; got an empty list.")
    for name, values in per_mask.items():
        if values is not None and len(values) != len(masks):
            raise ShapeError(f"{name} must have one tensor per image, {len(masks)}; got {len(values)}.")
    for image, mask in enumerate(masks):
        if not isinstance(mask, Tensor) or mask.ndim not in (3, 4) or mask.ndim != masks[0].ndim or 0 in mask.shape[1:]:
            raise ShapeError(
                f"masks[{image}] must be (masks, rows, cols), or (masks, frames, rows, cols), with a grid that is not "
                f"empty; got {_describe(mask)}."
            )
        if mask.dtype != torch.bool:
            raise DTypeError(f"masks[{image}] must be bool; got {mask.dtype}. Compare it first, as in masks > 0.")
        for name, values in per_mask.items():
            if values is not None and (not isinstance(values[image], Tensor) or values[image].shape != (len(mask),)):
                raise ShapeError(
                    f"{name}[{image}] must be a ({len(mask)},) tensor, one value per mask; got "
                    f"{_describe(values[image])}."
                )


def _describe(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def check_selection(index: Tensor, image: Tensor, batch: int) -> Tensor:
    """Return a checked index of regions as ``(K,)`` int64."""
    if not isinstance(index, Tensor):
        raise DTypeError(f"index must be a torch tensor; got {type(index).__name__}. Make one with torch.tensor.")
    if index.dtype == torch.bool:
        if index.shape != image.shape:
            raise ShapeError(f"a bool index must be ({len(image)},), one value per region; got {tuple(index.shape)}.")
        index = index.nonzero().squeeze(1)
    if index.ndim != 1 or index.is_floating_point():
        raise ShapeError(f"index must be (K,) integers or bool; got {tuple(index.shape)} of {index.dtype}.")
    if len(index) and (index.min() < 0 or index.max() >= len(image)):
        raise ValueRangeError(f"index must be in 0 to {len(image) - 1}; got {int(index.min())} to {int(index.max())}.")
    if len(index.unique()) != len(index):
        raise ValueRangeError("index contains a region twice. Select each region at most once.")
    index = index.long()  # torch reads uint8 as a mask
    chosen = image[index]
    if (chosen.diff() < 0).any():
        raise ValueRangeError("index must keep the images in order; sort it by regions.image[index] first.")
    missing = torch.bincount(chosen, minlength=batch) == 0
    if missing.any():
        raise ValueRangeError(f"index leaves image {int(missing.nonzero()[0])} without a region. Select at least one.")
    return index
