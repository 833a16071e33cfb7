"""Positions of regions on the patch grid."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regiontok.errors import ShapeError

if TYPE_CHECKING:
    from regiontok.regions import Regions


def positions(regions: "Regions") -> Tensor:
    """Return the row and column of the patch of each membership, ``(M, 2)`` int64; ``(M, 3)`` with frames for clips."""
    grids = regions.grids.to(regions.device)[regions.image[regions.region]]
    row, col = regions.patch // grids[:, -1], regions.patch % grids[:, -1]
    if grids.shape[1] == 2:
        return torch.stack([row, col], 1)
    return torch.stack([row // grids[:, 1], row % grids[:, 1], col], 1)


def mean_positions(regions: "Regions", position: Tensor, is_used: Tensor | None) -> Tensor:
    """Return the mean position of each region over the used memberships, by default all, as float32."""
    weight = torch.ones_like(regions.region) if is_used is None else is_used.long()
    total = position.new_zeros(len(regions), position.shape[1], dtype=torch.float32)
    total.index_add_(0, regions.region, (position * weight[:, None]).float())
    return total / weight.new_zeros(len(regions)).index_add_(0, regions.region, weight)[:, None]


def first_and_last_frame(regions: "Regions", position: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the last frame of each region, ``(R,)`` int64.

    Raises:
        ShapeError: The regions are those of images.
    """
    if position.shape[1] != 3:
        raise ShapeError("regions of images have no frames. Group clips, whose features are (frames, rows, cols, dim).")
    start = position.new_zeros(len(regions))
    first, last = (
        start.scatter_reduce(0, regions.region, position[:, 0], kind, include_self=False) for kind in ("amin", "amax")
    )
    return first, last
