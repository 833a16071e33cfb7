"""DBSCAN of every region of one image, over one graph of which patches are near each other."""

import numpy as np

from regiontok._kernels import compiled

UNSURE = 2
"""Marks a pair whose distance is too close to eps to be told in float32."""


@compiled
def find_near(products, length, reach, most, margin, near):
    """Mark in ``near (P, P)`` the pairs whose directions are at a squared distance of at most ``most``.

    ``products (P, P)`` and ``length (P,)`` are those of the vectors; a zero vector stays one. A row is compared with
    the earlier ones whose ``reach`` is up to it. Returns how many pairs are within ``margin`` of ``most``, marked
    `UNSURE`.
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
            beyond = squares - 2 * products[i, j] * inverse[i] * inverse[j] - most
            near[i, j] = beyond <= 0
            if abs(beyond) < margin:
                near[i, j] = UNSURE
                unsure += 1
    return unsure


@compiled
def split(near, patch, starts, splits, min_samples, label):
    """Label the memberships of each region ``starts[i]:starts[i + 1]``; -1 is noise; regions not to be split stay 0.

    Clusters are numbered by their first core patch, and a patch on the border of several is in the lowest, as in
    scikit-learn. ``near (P, P)`` is read where the row is the later patch; members of a region ascend.
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
            neighbours = 1  # itself
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
