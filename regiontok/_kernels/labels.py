"""Label maps from merges, and memberships from label maps."""

from regiontok._kernels import compiled


@compiled
def collect(labels, regions, first, areas, patch, region):
    """List the memberships of one image sorted by region, then by patch, with a counting sort.

    Args:
        labels: ``(P,)``, from ``0`` to ``regions - 1``, or -1.
        regions: Number of regions.
        first: Number of the first region of the image within the batch.
        areas: ``(regions + 1,)`` int64, temporary.
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
            member = areas[number]
            patch[member] = index
            region[member] = first + number
            areas[number] = member + 1


@compiled
def label(valid, pairs, count, labels):
    """Write ``labels (P,)`` after the first ``count`` merges, numbered by first patch; -1 for invalid patches.

    The parent of a region has a smaller number, so one forward pass resolves all chains. Return the number of regions.
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
