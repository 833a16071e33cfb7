"""The fraction of each patch that each mask covers, for masks in image pixels."""

import numpy as np
import torch
from torch import Tensor

from regiontok._kernels import rle
from regiontok.errors import ShapeError
from regiontok.geometry import Placement, Size
from regiontok.maskset import MaskSet
from regiontok.tracks import TrackSet

CheckedMasks = MaskSet | np.ndarray | Tensor
"""The masks of an image: run-length encoded; dense uint8, ``(M, height, width)``; or bool on a device."""


def size_of(masks: CheckedMasks | TrackSet) -> Size:
    """Return the height and width of masks."""
    return masks.size if isinstance(masks, MaskSet | TrackSet) else (int(masks.shape[1]), int(masks.shape[2]))


def cover_exactly(masks: CheckedMasks, placement: Placement, grid: Size) -> Tensor:
    """Return exact areas, ``(M, rows, cols)`` float32 in ``[0, 1]``: each pixel is a rectangle on the input."""
    size = size_of(masks)
    edges = [
        (
            np.arange(size[axis] + 1) * (placement.image_size[axis] / size[axis]) * placement.scale[axis]
            + placement.offset[axis]
        )
        * (grid[axis] / placement.input[axis])
        for axis in (0, 1)
    ]
    if isinstance(masks, Tensor):
        return _cover_on_device(masks, edges, grid)
    covered = np.empty((len(masks), *grid), np.float32)
    if isinstance(masks, MaskSet):
        clipped = [edge.clip(0, side) for edge, side in zip(edges, grid, strict=True)]
        rle.coverage_of_runs(masks.runs, masks.offsets, *clipped, covered)
    else:
        rle.coverage_of_pixels(masks, *edges, covered)
    return torch.from_numpy(covered)


def cover_in_two_steps(masks: CheckedMasks, placement: Placement, grid: Size) -> Tensor:
    """Return coverage as in the paper: masks are resized to the input by nearest pixel and averaged per patch.

    Raises:
        ShapeError: A grid that does not divide the input.
    """
    if any(side % patches for side, patches in zip(placement.input, grid, strict=True)):
        raise ShapeError(
            f"downsampling='two_step' needs a grid that divides the input {placement.input}; got {grid}. Use "
            "downsampling='exact'."
        )
    dense = masks.masks() if isinstance(masks, MaskSet) else torch.as_tensor(masks != 0)
    if tuple(dense.shape[1:]) != placement.image_size:
        row, col = (
            ((torch.arange(side, device="cpu") + 0.5) * mask_side / side).long()
            for side, mask_side in zip(placement.image_size, dense.shape[1:], strict=True)
        )
        dense = dense[:, row[:, None], col]
    placed = placement.mask(dense)
    height, width = (side // patches for side, patches in zip(placement.input, grid, strict=True))
    covered = torch.empty(len(placed), *grid, device=placed.device)
    for part, result in zip(placed.split(64), covered.split(64), strict=True):  # limits the memory of floats
        result.copy_(part.float().unflatten(2, (grid[1], width)).unflatten(1, (grid[0], height)).mean((2, 4)))
    return covered


def _cover_on_device(masks: Tensor, edges: list[np.ndarray], grid: Size) -> Tensor:
    """Return exact coverage by two matrix products in float64, on the device of the masks, in parts."""
    weights = []
    for edge, side in zip(edges, grid, strict=True):
        patch = np.arange(side)[:, None]
        overlap = np.minimum(edge[1:], patch + 1) - np.maximum(edge[:-1], patch)
        weights.append(torch.from_numpy(overlap.clip(min=0)).to(masks.device))
    step = max(1, 2**24 // masks[0].numel()) if len(masks) else 1
    with torch.autocast(masks.device.type, enabled=False):
        parts = [weights[0] @ part.double() @ weights[1].T for part in masks.split(step)]
    return torch.cat(parts).clamp_(0, 1).float() if parts else torch.empty(0, *grid, device=masks.device)
