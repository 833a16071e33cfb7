"""Checks of the arguments of `Regions`."""

from collections.abc import Sequence
from operator import index

import numpy as np
import torch
from torch import Tensor

from regiontok.errors import DTypeError, ShapeError, ValueRangeError


def image_numbers(images: int | slice | Sequence[int] | Tensor, batch: int) -> list[int]:
    """Return the numbers of chosen images of a batch, from 0."""
    if isinstance(images, slice):
        chosen = list(range(batch))[images]
    else:
        several = images.tolist() if isinstance(images, Tensor | np.ndarray) else images
        chosen = [range(batch)[index(one)] for one in (several if isinstance(several, Sequence) else [several])]
    if not chosen:
        raise ValueRangeError(f"a batch holds at least one image; got none of {batch} by {images!r}.")
    return chosen


def flatten_labels(labels: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Check label maps; return them as one vector, and their grids ``(B, 2)``."""
    maps = list(labels) if isinstance(labels, Sequence) or (isinstance(labels, Tensor) and labels.ndim) else [labels]
    if not maps:
        raise ShapeError("labels must hold at least one image; got none.")
    for image, one in enumerate(maps):
        if not isinstance(one, Tensor):
            raise DTypeError(
                f"labels must be a torch tensor or a list of tensors; got {type(one).__name__} for image {image}. "
                "Arrays go through torch.from_numpy."
            )
        if one.ndim != 2 or one.numel() == 0:
            raise ShapeError(
                f"labels must be (batch, rows, cols), or a list of (rows, cols); image {image} has {tuple(one.shape)}."
            )
        if one.is_floating_point() or one.is_complex() or one.dtype == torch.bool:
            raise DTypeError(f"labels must be integers; image {image} has {one.dtype}. Masks go to Regions.from_masks.")
    flat = torch.cat([one.reshape(-1) for one in maps]).long()
    lowest, highest = int(flat.min()), int(flat.max())
    if lowest < -1 or highest >= 2**31:
        raise ValueRangeError(
            f"labels must be -1 (no region) or from 0 to 2**31 - 1; got {lowest if lowest < -1 else highest}."
        )
    return flat, torch.tensor([one.shape for one in maps], device="cpu")


def check_masks(masks: Sequence[Tensor], per_mask: dict[str, Sequence[Tensor] | None]) -> None:
    """Reject masks that are not one bool tensor per image, and lists that do not have an entry per mask."""
    if isinstance(masks, Tensor) or not isinstance(masks, Sequence):
        raise DTypeError(
            f"masks must be a list with one (masks, rows, cols) tensor per image; got {type(masks).__name__}."
        )
    if not masks:
        raise ShapeError("masks must hold at least one image; got an empty list.")
    for name, given in per_mask.items():
        if given is not None and len(given) != len(masks):
            raise ShapeError(f"{name} must have one tensor per image, {len(masks)}; got {len(given)}.")
    for image, mask in enumerate(masks):
        if not isinstance(mask, Tensor) or mask.ndim != 3 or 0 in mask.shape[1:]:
            got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise ShapeError(f"masks[{image}] must be (masks, rows, cols) with a grid that is not empty; got {got}.")
        if mask.dtype != torch.bool:
            raise DTypeError(f"masks[{image}] must be bool; got {mask.dtype}. Compare it first, as in masks > 0.")
        for name, given in per_mask.items():
            one = torch.empty(len(mask), device="meta") if given is None else given[image]
            if not isinstance(one, Tensor) or one.shape != (len(mask),):
                got = tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__
                raise ShapeError(f"{name}[{image}] must be a ({len(mask)},) tensor, one per mask; got {got}.")


def check_selection(index: Tensor, image: Tensor, batch: int) -> Tensor:
    """Check an index of regions; return it as ``(K,)`` int64."""
    if not isinstance(index, Tensor):
        raise DTypeError(f"index must be a torch tensor; got {type(index).__name__}. Make one with torch.tensor.")
    if index.dtype == torch.bool:
        if index.shape != image.shape:
            raise ShapeError(f"a bool index must be ({len(image)},), one per region; got {tuple(index.shape)}.")
        index = index.nonzero().squeeze(1)
    if index.ndim != 1 or index.is_floating_point():
        raise ShapeError(f"index must be (K,) integers or bool; got {tuple(index.shape)} of {index.dtype}.")
    if len(index) and (index.min() < 0 or index.max() >= len(image)):
        raise ValueRangeError(f"index must lie in 0 to {len(image) - 1}; got {int(index.min())} to {int(index.max())}.")
    if len(index.unique()) != len(index):
        raise ValueRangeError("index names a region twice; each may be kept once.")
    index = index.long()  # uint8 would be taken for a mask
    chosen = image[index]
    if (chosen.diff() < 0).any():
        raise ValueRangeError("index must keep the images in order; sort it by regions.image[index] first.")
    missing = torch.bincount(chosen, minlength=batch) == 0
    if missing.any():
        raise ValueRangeError(f"index leaves image {int(missing.nonzero()[0])} without a region; keep at least one.")
    return index
