"""Label maps of merges, and memberships of label maps."""

from regiontok._kernels import compiled


@compiled
def collect(labels, regions, first, areas, patch, region):
    """List the memberships of one image by region, and by patch within a region (a counting sort).

    Args:
        labels: ``(P,)``, from ``0`` to ``regions - 1``, or -1.
        regions: Their number.
        first: The batch's number of the image's first region.
        areas: ``(regions + 1,)`` int64, scratch.
        patch: ``(members,)`` int64, written.
        region: ``(members,)`` int64, written.
    """
    areas[:] = 0
    for number in labels:
        if number >= 0:
            areas[number + 1] += 1
    for number in range(regions):
        areas[number + 1] += areas[number]
    for index in range(len(labels)):
        number = labels[index]
        if number >= 0:
            place = areas[number]
            patch[place] = index
            region[place] = first + number
            areas[number] = place + 1


@compiled
def label(valid, pairs, count, labels):
    """Number regions by first patch after the first ``count`` merges; write ``labels (P,)``, -1 where not valid.

    Returns the number of regions. A region's parent is always smaller, so one forward pass resolves every chain.
    """
    for patch in range(len(labels)):
        labels[patch] = patch
    for i in range(count):
        labels[pairs[i, 1]] = pairs[i, 0]
    regions = 0
    for patch in range(len(labels)):
        if not valid[patch]:
            labels[patch] = -1
        elif labels[patch] == patch:
            labels[patch] = regions
            regions += 1
        else:
            labels[patch] = labels[labels[patch]]
    return regions
