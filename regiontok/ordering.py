"""The order in which an image's regions become tokens."""

import torch
from torch import Tensor

from regiontok._checks import check_choice
from regiontok.choices import ORDERS
from regiontok.errors import ValueRangeError
from regiontok.regions import Regions


def order_regions(regions: Regions, order: str = "raster", *, generator: torch.Generator | None = None) -> Regions:
    """Sort the regions of each image; images keep their places.

    Args:
        regions: The batch's regions.
        order: ``raster`` by first patch in row-major order; ``centroid`` top to bottom, then left to right; ``area``
            largest first; ``score`` highest first; ``random`` a fresh permutation per image. Regions that tie are in
            raster order.
        generator: Where ``random`` draws from, on the CPU; None for torch's global one.

    Raises:
        ValueRangeError: An unknown order, or ``score`` for regions without scores.

    Example:
        >>> regions = Regions.from_labels(torch.tensor([[[0, 1, 1], [2, 1, 1]]]))
        >>> order_regions(regions, "area").areas()
        tensor([4, 1, 1])

    Source:
        The paper tells a default order from a random one (Table 1) and leaves the default open; the rest is our choice.
    """
    check_choice("order", order, ORDERS)
    first_patch = regions.patch[regions.starts]
    if order == "raster":
        keys = [first_patch]
    elif order == "centroid":
        row, col = regions.centroids().unbind(1)
        keys = [first_patch, col, row]
    elif order == "area":
        keys = [first_patch, -regions.areas()]
    elif order == "score":
        if (regions.score.isnan() & ~regions.fallback[regions.image]).any():
            raise ValueRangeError("order='score' needs a score for every region; some have none. Use another order.")
        keys = [first_patch, -regions.score.nan_to_num()]  # a fallback region is alone in its image
    else:
        keys = [torch.rand(len(regions), generator=generator, device="cpu").to(regions.device)]
    return regions.select(_sort_by([*keys, regions.image]))


def _sort_by(keys: list[Tensor]) -> Tensor:
    """Indices that sort by the last key, then by the one before it, and so on (as ``numpy.lexsort``)."""
    index = torch.arange(len(keys[0]), device=keys[0].device)
    for key in keys:
        index = index[torch.argsort(key[index], stable=True)]
    return index
