"""Functions that do the work of a class in one call."""

from regiontok.batch import Features, Valid
from regiontok.budgets import Budget, Keep
from regiontok.choices import Linkage
from regiontok.clustering import UnionFindClusterer
from regiontok.errors import ValueRangeError
from regiontok.pooling import MeanPool
from regiontok.tokens import RegionTokens


def cluster_regions(
    features: Features,
    num_regions: Budget | None = None,
    *,
    keep: Keep | None = None,
    threshold: float | None = None,
    explained_variance: float | None = None,
    linkage: Linkage | None = None,
    connectivity: int = 4,
    valid: Valid | None = None,
) -> RegionTokens:
    """Merge similar neighbouring patches and return the mean of each region.

    This needs no training. Use `Regionizer` for other sources, normalisation, trained pooling and saving.

    Args:
        features: ``(B, rows, cols, dim)`` floating point, or a list of ``(rows, cols, dim)``.
        num_regions: Number of regions of an image, or one number per image.
        keep: Number of regions as a fraction of the valid patches.
        threshold: Merge while the cosine of two regions is at least this; 0.7 if no other argument stops the merging.
        explained_variance: As few regions as preserve this fraction of the squared deviation.
        linkage: ``ward`` by default with a budget; see `UnionFindClusterer` for all arguments.
        connectivity: 4 or 8 neighbours.
        valid: ``(B, rows, cols)`` bool, or a list of ``(rows, cols)``: patches that may be in a region.

    Returns:
        `RegionTokens`: values ``(R, dim)`` in the dtype and on the device of the features, and their regions.

    Raises:
        ShapeError, DTypeError, ValueRangeError: Invalid features or options.

    Example:
        >>> tokens = cluster_regions(torch.rand(2, 24, 24, 32), num_regions=64)
        >>> tokens.values.shape, tokens.counts.tolist()
        (torch.Size([128, 32]), [64, 64])
    """
    stops = {"num_regions": num_regions, "keep": keep, "threshold": threshold, "explained_variance": explained_variance}
    names = [name for name, value in stops.items() if value is not None]
    if len(names) > 1:
        raise ValueRangeError(f"{' and '.join(names)} both say when to stop merging. Pass one of them.")
    clusterer = UnionFindClusterer(
        linkage=linkage, threshold=threshold, explained_variance=explained_variance, connectivity=connectivity
    )
    return MeanPool()(features, clusterer(features, valid, num_regions=num_regions, keep=keep))
