"""The order of the tokens of an image."""

import torch
from torch import Tensor

from regiontok.errors import ValueRangeError
from regiontok.options import check_option
from regiontok.regions import Regions


def order_regions(regions: Regions, order: str = "raster", *, generator: torch.Generator | None = None) -> Regions:
    """Sort the regions of each image; the order of the images does not change.

    Args:
        regions: The regions of a batch.
        order: ``raster`` sorts by first patch in row-major order; ``centroid`` by time for clips, then from top to
            bottom, then from left to right; ``area`` largest first; ``score`` highest first; ``random`` permutes the
            regions of each image. Ties are in raster order.
        generator: Random generator on the CPU for ``random``; None for torch's global one.

    Raises:
        ValueRangeError: An unknown order, or ``score`` for regions without scores.

    Example:
        >>> regions = Regions.from_labels(torch.tensor([[[0, 1, 1], [2, 1, 1]]]))
        >>> order_regions(regions, "area").areas()
        tensor([4, 1, 1])

    Source:
        The paper compares its default order with a random one (Table 1) but does not define it; the orders are our
        choice.
    """
    check_option("order", order)
    first_patch = regions.patch[regions.starts]
    if order == "raster":
        keys = [first_patch]
    elif order == "centroid":
        keys = [first_patch, *reversed(regions.centroids().unbind(1))]
    elif order == "area":
        keys = [first_patch, -regions.areas()]
    elif order == "score":
        if (regions.score.isnan() & ~regions.fallback[regions.image]).any():
            raise ValueRangeError("order='score' needs a score for every region; some have none. Use another order.")
        keys = [first_patch, -regions.score.nan_to_num()]  # a fallback region is the only one of its image
    else:
        keys = [torch.rand(len(regions), generator=generator, device="cpu").to(regions.device)]
    return regions.select(_sort_by([*keys, regions.image]))


def _sort_by(keys: list[Tensor]) -> Tensor:
    """Return indices that sort by the last key, then by the previous key, and so on, like ``numpy.lexsort``."""
    index = torch.arange(len(keys[0]), device=keys[0].device)
    for key in keys:
        index = index[torch.argsort(key[index], stable=True)]
    return index
