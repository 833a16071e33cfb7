"""DBSCAN of the regions of one image on a common neighbour graph of its patches."""

import numpy as np

from regiontok._kernels import compiled

UNSURE = 2
"""Marks a pair whose distance is too close to eps for float32."""


@compiled
def find_near(products, length, reach, limit, margin, near):
    """Mark in ``near (P, P)`` the pairs whose unit vectors have a squared distance of at most ``limit``.

    Args:
        products: ``(P, P)``: dot products of the vectors.
        length: ``(P,)``: norms of the vectors; a zero vector stays zero.
        reach: ``(P,)``: each row is compared with the earlier rows whose ``reach`` is not smaller than its index.
        limit: Greatest squared distance.
        margin: Pairs this close to ``limit`` are marked `UNSURE`.
        near: ``(P, P)`` uint8, written.

    Returns:
        The number of pairs that are marked `UNSURE`.
    """
    unsure = 0
    inverse = np.empty(len(length), np.float32)
    for i in range(len(length)):
        inverse[i] = 1 / length[i] if length[i] > 0 else 0
    for i in range(len(length)):
        for j in range(i):
            if reach[j] < i:
                continue
            squares = (1.0 if inverse[i] > 0 else 0.0) + (1.0 if inverse[j] > 0 else 0.0)
            beyond = squares - 2 * products[i, j] * inverse[i] * inverse[j] - limit
            near[i, j] = beyond <= 0
            if abs(beyond) < margin:
                near[i, j] = UNSURE
                unsure += 1
    return unsure


@compiled
def split(near, patch, starts, splits, min_samples, label):
    """Label the memberships of each region ``starts[i]:starts[i + 1]``; noise is -1, regions that are not split are 0.

    Clusters are numbered by their first core patch. A border patch of several clusters belongs to the first of them, as
    in scikit-learn. ``near (P, P)`` is read with the later patch as its row; the members of a region are sorted.
    """
    longest = 0
    for region in range(len(starts) - 1):
        longest = max(longest, starts[region + 1] - starts[region])
    core = np.empty(longest, np.bool_)
    stack = np.empty(longest, np.int64)
    for region in range(len(starts) - 1):
        first = starts[region]
        size = starts[region + 1] - first
        if not splits[region]:
            continue
        for i in range(size):
            neighbours = 1  # the patch
            for j in range(i):
                neighbours += near[patch[first + i], patch[first + j]]
            for j in range(i + 1, size):
                neighbours += near[patch[first + j], patch[first + i]]
            core[i] = neighbours >= min_samples
            label[first + i] = -1
        cluster = 0
        for seed in range(size):
            if not core[seed] or label[first + seed] >= 0:
                continue
            label[first + seed] = cluster
            stack[0] = seed
            height = 1
            while height:
                height -= 1
                i = stack[height]
                for j in range(size):
                    if label[first + j] < 0 and near[patch[first + max(i, j)], patch[first + min(i, j)]]:
                        label[first + j] = cluster
                        if core[j]:
                            stack[height] = j
                            height += 1
            cluster += 1
