"""Greedy merging of the best pair of neighbouring regions: the loop of `UnionFindClusterer`.

The state of one image:

- A region is named by its first patch in row-major order. Disjoint sets need no ranks: the smaller name is the parent.
- The sum of the features of a region of two or more patches is a row of ``sums``, its ``slot``. A single patch is read
  from ``features`` and multiplied by its ``factor``, which scales it to unit length if the linkage requires it. So
  features are neither copied nor changed.
- A pair of neighbours is an *edge* of two half-edges, ``2e`` and ``2e + 1``. Each is in the ring (a circular doubly
  linked list) of one region and points to the other region, so an edge is removed or moved in constant time. Numbers
  from ``rings`` on are the head nodes of the rings, one per region.
- The *score* of an edge is the linkage: the three linkages differ only in ``_score``. The highest score merges first.
- A heap with four children per node has at most one entry per edge. When the score of an edge falls, its entry becomes
  outdated; it is moved down when it reaches the top. When the score rises, the entry is moved up at once. So an entry
  at the top that is up to date is the best pair.

``stamp`` breaks ties: edges that were created first precede others, and the edges of one merge are sorted by their
other regions.
"""

import numpy as np

from regiontok._kernels import compiled
from regiontok._kernels.heap import lift, sink
from regiontok._kernels.neighbours import score_graph, score_grid
from regiontok._kernels.vectors import add_row, add_two, dot_product, dot_two

_NONE = -1
_SHARED = -2
_GONE = -np.inf  # below every threshold

CENTROID, AVERAGE, WARD = 0, 1, 2
SMALLEST = 2.0**-126
"""The smallest normal float32: smaller squares have lost digits."""
_ALIKE = 5e-3
"""Below this mean growth of the initial pairs, float32 dot products lose the differences between patches."""
_ROUNDING = 1e-4
"""Tolerance of sums of growths, as a fraction of the whole deviation."""

_APART = 2.0**32
"""Cost of a merge across parts, larger than any growth of the squared error."""
UNSEEN, SAFE, CENTRED = 0, 1, 2
"""State of the features: not examined; squares fit float32; unit vectors minus their mean, scaled."""
OUT_OF_RANGE, TOO_ALIKE = -1, -2


@compiled
def _score(linkage, dot, square_x, square_y, members_x, members_y):
    """Return the score of a pair: cosine of means, mean cosine of patches, or the negative growth of Ward's criterion.

    Products of sizes are computed before the only division, so that costs which are equal as fractions are equal.
    """
    if linkage == WARD:
        m, n = np.float64(members_x), np.float64(members_y)
        growth = n * n * square_x + m * m * square_y - 2 * m * n * dot
        return -max(0.0, growth / (m * n * (m + n)))
    if linkage == AVERAGE:
        if square_x == 0 and square_y == 0:
            return 1.0
        return min(1.0, max(-1.0, dot / (np.float64(members_x) * members_y)))
    if square_x == 0 or square_y == 0:
        return 1.0 if square_x == square_y else 0.0
    return min(1.0, max(-1.0, dot / np.sqrt(square_x * square_y)))


@compiled
def allowance(explained_variance, deviation):
    """Return the squared error that merging may add if a fraction of the deviation must be preserved."""
    return (1 - explained_variance + _ROUNDING) * deviation


@compiled
def _total_deviation(features, valid, factor, square, members):
    """Return the squared deviation of the patches from their mean, summed in float64."""
    total = np.zeros(features.shape[1], np.float64)
    squares = 0.0
    for patch in range(len(valid)):
        if valid[patch]:
            squares += square[patch]
            for d in range(features.shape[1]):
                total[d] += factor[patch] * features[patch, d]
    return max(0.0, squares - (total * total).sum() / members)


@compiled
def _link(following, previous, half, ring):
    """Insert a half-edge into a ring. Branches here would make numba count references."""
    after = following[ring]
    following[half] = after
    previous[half] = ring
    previous[after] = half
    following[ring] = half


@compiled
def _unlink(following, previous, half):
    """Remove a half-edge from its ring."""
    following[previous[half]] = following[half]
    previous[following[half]] = previous[half]


@compiled
def merge(
    features, valid, cols, frame, next_patch, graph, sizes, diagonal, linkage, threshold, target_count,
    explained_variance, state, share, weight, piece, pairs, scores,
):  # fmt: skip
    """Merge the regions of one image or clip until the best score is below ``threshold``, or ``target_count`` are left.

    Args:
        features: ``(P, D)`` float32, C-contiguous.
        valid: ``(P,)`` bool; invalid patches are in no region.
        cols: Columns of the grid.
        frame: Patches of a frame of a clip; ``P`` for an image.
        next_patch: ``(P,)`` int32: the neighbour of each patch in the next frame, -1 for none; not read for an image.
        graph: ``(E, 2)`` int32: the pairs of neighbours, the smaller one first, instead of those of a grid; empty for a
            grid.
        sizes: ``(P,)`` int32: the numbers of patches of regions that are continued from before, 1 for patches. Their
            features are the sums of their patches, scaled as the linkage requires. Empty for a grid.
        diagonal: Whether patches that share only a corner are neighbours.
        linkage: ``CENTROID``, ``AVERAGE`` or ``WARD``.
        threshold: Least score at which a pair merges.
        target_count: Number of regions at which merging stops.
        explained_variance: For ``WARD``: merging stops before less than this fraction of the squared deviation is
            preserved. 0 only computes the deviation; negative values do neither.
        state: ``UNSEEN``, ``SAFE`` or ``CENTRED``.
        share: ``(P, S)`` float32: for ``WARD``, small integers that extend the unit features of each patch, such as
            memberships in masks; ``S`` may be 0. Changed.
        weight: Weight of the growth of their squared error. It is summed separately in exact integers, so that a large
            weight does not hide the features.
        piece: ``(P,)`` int32: number of the part that contains each patch. Regions of different parts merge only if no
            two regions of one part touch. Empty without parts. Changed.
        pairs: ``(P, 2)`` int32, written: the two regions of each merge, named by first patch, the smaller one first.
        scores: ``(P,)`` float64, written: the score of each merge.

    Returns:
        The number of merges; or ``OUT_OF_RANGE`` if squares leave the safe range of float32, also because of NaN and
        infinity; or, for ``WARD``, ``TOO_ALIKE``. And the squared deviation, or 0 if it was not requested.
    """
    patches, dim = features.shape
    max_edges = max(len(graph), (4 if diagonal else 2) * patches + max(0, patches - frame))
    target = np.empty(2 * max_edges, np.int32)
    dot = np.empty(max_edges, np.float64)
    square = np.empty(patches, np.float64)
    if len(sizes) > 0:
        edges = score_graph(features, graph, target, dot, square)
        magnitude = 0.0
        for patch in range(patches):
            magnitude += square[patch] / (np.float64(sizes[patch]) * sizes[patch])
    else:
        edges = score_grid(features, valid, cols, frame, next_patch, diagonal, target, dot, square)
        magnitude = square.sum()
    if state == UNSEEN and not 1e-20 < magnitude < 1e30:
        return OUT_OF_RANGE, 0.0

    factor = np.ones(patches, np.float32)
    members = np.ones(patches, np.int32)
    if len(sizes) > 0:
        members[:] = sizes
    num_regions = valid.sum()
    if linkage != CENTROID and state != CENTRED:
        for patch in range(patches):
            if members[patch] > 1:
                continue
            factor[patch] = 1 / np.sqrt(square[patch]) if square[patch] >= SMALLEST else 0.0
            square[patch] *= np.float64(factor[patch]) * factor[patch]
    deviation, allowed = 0.0, np.inf
    if explained_variance >= 0:
        deviation = _total_deviation(features, valid, factor, square, num_regions)
    if explained_variance > 0:
        allowed = allowance(explained_variance, deviation)

    in_parts, has_share = len(piece) > 0, share.shape[1] > 0
    spread = 0.0
    for edge in range(edges):
        x, y = target[2 * edge + 1], target[2 * edge]
        dot[edge] *= np.float64(factor[x]) * factor[y]
        spread += max(0.0, (square[x] + square[y]) / 2 - dot[edge])  # of patches; sums of regions only add to it
    if linkage == WARD and state != CENTRED and edges > 0 and spread < _ALIKE * edges:
        return TOO_ALIKE, 0.0
    share_square = np.empty(patches if has_share else 0, np.float64)
    share_dot = np.empty(edges if has_share else 0, np.float64)
    if has_share:
        for patch in range(patches):
            share_square[patch] = dot_product(share, patch, share, patch)
        for edge in range(edges):
            share_dot[edge] = dot_product(share, target[2 * edge + 1], share, target[2 * edge])

    rings = 2 * edges
    following = np.arange(rings + patches, dtype=np.int32)
    previous = np.arange(rings + patches, dtype=np.int32)
    score = np.empty(edges, np.float64)
    stamp = np.empty(edges, np.int64)
    heap_score = np.empty(edges, np.float64)
    heap_stamp = np.empty(edges, np.int64)
    heap_edge = np.empty(edges, np.int32)
    position = np.full(edges, _NONE, np.int32)
    size = 0
    for edge in range(edges):
        x, y = target[2 * edge + 1], target[2 * edge]
        _link(following, previous, 2 * edge, rings + x)
        _link(following, previous, 2 * edge + 1, rings + y)
        score[edge] = _score(linkage, dot[edge], square[x], square[y], members[x], members[y])
        if has_share:
            score[edge] += weight * _score(WARD, share_dot[edge], share_square[x], share_square[y], 1, 1)
        if in_parts and piece[x] != piece[y]:
            score[edge] -= _APART
        stamp[edge] = edge
        if score[edge] >= threshold:
            heap_score[size] = score[edge]
            heap_stamp[size] = edge
            heap_edge[size] = edge
            position[edge] = size
            size += 1
    for i in range((size - 2) // 4, -1, -1):
        sink(heap_score, heap_stamp, heap_edge, position, size, i, heap_score[i], heap_stamp[i], heap_edge[i])

    slots = patches // 2  # the most regions of two or more patches at the same time
    sums = np.empty((slots, dim), np.float32)
    free = np.arange(slots - 1, -1, -1).astype(np.int32)
    num_free = slots
    slot = np.full(patches, _NONE, np.int32)
    half_of = np.full(patches, _NONE, np.int32)  # the half-edge from the first region to each of its neighbours
    unscored = np.empty(patches, np.int32)
    spent = 0.0
    done = 0
    mixed = 0
    while size > 0 and num_regions > target_count:
        edge = heap_edge[0]
        if score[edge] >= threshold and (heap_score[0] != score[edge] or heap_stamp[0] != stamp[edge]):
            sink(heap_score, heap_stamp, heap_edge, position, size, 0, score[edge], stamp[edge], edge)
            continue
        position[edge] = _NONE
        size -= 1
        if size > 0:
            sink(
                heap_score, heap_stamp, heap_edge, position, size, 0,
                heap_score[size], heap_stamp[size], heap_edge[size],
            )  # fmt: skip
        if score[edge] < threshold:
            continue

        a, b = target[2 * edge], target[2 * edge + 1]
        if a > b:
            a, b = b, a
        if allowed < np.inf:
            spent -= score[edge]
            if spent > allowed:
                break
        pairs[done, 0] = a
        pairs[done, 1] = b
        scores[done] = score[edge]
        if in_parts and piece[a] != piece[b]:
            scores[done] = _score(linkage, dot[edge], square[a], square[b], members[a], members[b])
            mixed += 1
            piece[a] = -mixed
        _unlink(following, previous, 2 * edge)
        _unlink(following, previous, 2 * edge + 1)

        if slot[a] < 0 and slot[b] < 0:
            num_free -= 1
            slot[a] = free[num_free]
            square[a] = add_two(features, a, factor[a], b, factor[b], sums, slot[a])
        elif slot[a] < 0:
            slot[a] = slot[b]
            square[a] = add_row(sums, slot[a], features, a, factor[a])
        elif slot[b] < 0:
            square[a] = add_row(sums, slot[a], features, b, factor[b])
        else:
            square[a] = add_row(sums, slot[a], sums, slot[b], np.float32(1))
            free[num_free] = slot[b]
            num_free += 1
        members[a] += members[b]
        if has_share:
            share_square[a] = add_row(share, a, share, b, np.float32(1))

        # The union has the neighbours of both. For a common neighbour c, (a + b)·c = a·c + b·c; others are computed.
        half = following[rings + a]
        while half < rings:
            half_of[target[half]] = half
            half = following[half]
        count = 0
        half = following[rings + b]
        while half < rings:
            after = following[half]
            neighbour = target[half]
            if half_of[neighbour] >= 0:
                dot[half_of[neighbour] >> 1] += dot[half >> 1]
                if has_share:
                    share_dot[half_of[neighbour] >> 1] += share_dot[half >> 1]
                half_of[neighbour] = _SHARED
                score[half >> 1] = _GONE
                _unlink(following, previous, half ^ 1)
            else:
                target[half ^ 1] = a
                unscored[count] = half
                count += 1
            half = after
        only_b = count
        half = following[rings + a]
        while half < rings:
            neighbour = target[half]
            if half_of[neighbour] >= 0:
                unscored[count] = half
                count += 1
            half_of[neighbour] = _NONE
            half = following[half]
        for i in range(only_b):
            _link(following, previous, unscored[i], rings + a)
        row = slot[a]
        for i in range(0, count - 1, 2):
            x, y = unscored[i], unscored[i + 1]
            row_x, row_y = slot[target[x]], slot[target[y]]
            if row_x < 0 and row_y < 0:
                dot_x, dot_y = dot_two(sums, row, features, target[x], features, target[y])
            elif row_x < 0:
                dot_x, dot_y = dot_two(sums, row, features, target[x], sums, row_y)
            elif row_y < 0:
                dot_x, dot_y = dot_two(sums, row, sums, row_x, features, target[y])
            else:
                dot_x, dot_y = dot_two(sums, row, sums, row_x, sums, row_y)
            dot[x >> 1] = dot_x if row_x >= 0 else dot_x * factor[target[x]]
            dot[y >> 1] = dot_y if row_y >= 0 else dot_y * factor[target[y]]
        if count % 2:
            x = unscored[count - 1]
            if slot[target[x]] < 0:
                dot[x >> 1] = dot_product(sums, row, features, target[x]) * factor[target[x]]
            else:
                dot[x >> 1] = dot_product(sums, row, sums, slot[target[x]])
        if has_share:
            for i in range(count):
                share_dot[unscored[i] >> 1] = dot_product(share, a, share, target[unscored[i]])

        created = edges + np.int64(done) * patches
        half = following[rings + a]
        while half < rings:
            edge, neighbour = half >> 1, target[half]
            score[edge] = _score(linkage, dot[edge], square[a], square[neighbour], members[a], members[neighbour])
            if has_share:
                score[edge] += weight * _score(
                    WARD, share_dot[edge], share_square[a], share_square[neighbour], members[a], members[neighbour]
                )
            if in_parts and piece[a] != piece[neighbour]:
                score[edge] -= _APART
            stamp[edge] = created + neighbour
            entry = position[edge]
            if entry < 0:
                if score[edge] >= threshold:
                    lift(heap_score, heap_stamp, heap_edge, position, size, score[edge], stamp[edge], edge)
                    size += 1
            elif score[edge] > heap_score[entry]:
                lift(heap_score, heap_stamp, heap_edge, position, entry, score[edge], stamp[edge], edge)
            half = following[half]
        done += 1
        num_regions -= 1
    return done, deviation
