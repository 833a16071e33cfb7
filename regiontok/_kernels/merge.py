"""Greedy merging of the best pair of neighbouring regions: the loop behind `UnionFindClusterer`.

The state of one image:

- a region is named by its first patch in row-major order, so that disjoint sets need no ranks: the smaller name wins;
- a region's *total* is the sum of its features. A patch alone is read from ``features``, times its ``factor``, which
  makes it unit length where the rule wants that; a row of ``sums``, its ``slot``, is used from the first merge on. So
  features are neither copied nor changed;
- a pair of neighbours is an *edge* of two half-edges, ``2e`` and ``2e + 1``, each in the ring (a circular doubly linked
  list) of one region and pointing to the other, so that an edge leaves or changes its region in constant time. The
  numbers from ``rings`` on are the rings' own nodes, one per region;
- an edge's *score* is the rule: the three differ in it alone (see ``_score``), and the highest merges first;
- a heap with four children per node has at most one entry per edge. When an edge's score falls its entry stays and is
  outdated; that shows when it surfaces, and then it sinks to its place. An edge whose score rises is lifted at once. So
  a top that is up to date is the best pair.

``stamp`` breaks ties: pairs created first come first, and the pairs of one merge in the order of their other regions.
"""

import numpy as np

from regiontok._kernels import compiled
from regiontok._kernels.heap import lift, sink
from regiontok._kernels.vectors import add_row, add_two, dot_product, dot_two, square_and_dot_two

_NONE = -1
_SHARED = -2
_GONE = -np.inf  # below every threshold

CENTROID, AVERAGE, WARD = 0, 1, 2
SMALLEST = 2.0**-126
"""Squares below have lost digits: float32 holds none smaller in full."""
_ALIKE = 5e-3
"""Mean growth of the first pairs below which patches are so alike that float32 dot products lose their differences."""
_ROUNDING = 1e-4
"""How far sums of growths may be off, as a share of the whole deviation."""

_APART = 2.0**32
"""What it costs to merge across parts: more than any growth of the squared error."""
UNSEEN, SAFE, CENTRED = 0, 1, 2
"""What is known of an image's features: nothing; that their squares fit float32; that they are unit vectors less their
mean, scaled."""
OUT_OF_RANGE, TOO_ALIKE = -1, -2


@compiled
def _score(linkage, dot, square_x, square_y, members_x, members_y):
    """How good it is to merge two regions: cosine of their means, mean cosine of their patches, or Ward's cost negated.

    Products of sizes come before the one division, so that costs which are equal as fractions are equal here.
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
def allowance(kept, deviation):
    """The squared error that merging may cost where a share of the deviation is to be kept."""
    return (1 - kept + _ROUNDING) * deviation


@compiled
def _total_deviation(features, valid, factor, square, members):
    """Squared deviation of an image's patches from their mean, summed in float64."""
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
    """Put a half-edge into a ring. No branches here and below: with them numba would count references again."""
    after = following[ring]
    following[half] = after
    previous[half] = ring
    previous[after] = half
    following[ring] = half


@compiled
def _unlink(following, previous, half):
    """Take a half-edge out of its ring."""
    following[previous[half]] = following[half]
    previous[following[half]] = previous[half]


@compiled
def _score_grid(features, valid, cols, diagonal, target, dot, square):
    """Score every pair of neighbouring valid patches, row by row: right, below, below left, below right.

    Returns the number of edges.
    """
    patches = len(valid)
    edges = 0
    for patch in range(patches):
        square[patch] = 0.0
        if not valid[patch]:
            continue
        col = patch % cols
        below = patch + cols
        right = col + 1 < cols and valid[patch + 1]
        down = below < patches and valid[below]
        start = edges
        if right:
            target[2 * edges] = patch + 1
            edges += 1
        if down:
            target[2 * edges] = below
            edges += 1
        if right and down:
            square[patch], dot[start], dot[start + 1] = square_and_dot_two(features, patch, patch + 1, below)
        else:
            square[patch] = dot_product(features, patch, features, patch)
            if edges > start:
                dot[start] = dot_product(features, patch, features, target[2 * start])
        if diagonal and below < patches:
            if col > 0 and valid[below - 1]:
                target[2 * edges] = below - 1
                dot[edges] = dot_product(features, patch, features, below - 1)
                edges += 1
            if col + 1 < cols and valid[below + 1]:
                target[2 * edges] = below + 1
                dot[edges] = dot_product(features, patch, features, below + 1)
                edges += 1
        for edge in range(start, edges):
            target[2 * edge + 1] = patch
    return edges


@compiled
def merge(features, valid, cols, diagonal, linkage, threshold, least, kept, known, share, weight, piece, pairs, scores):
    """Merge the regions of one image until the best pair is below ``threshold`` or ``least`` regions are left.

    Args:
        features: ``(P, D)`` float32, C-contiguous.
        valid: ``(P,)`` bool; other patches are in no region.
        cols: Columns of the grid.
        diagonal: Whether patches that touch at a corner are neighbours.
        linkage: ``CENTROID``, ``AVERAGE`` or ``WARD``.
        threshold: Least score at which a pair merges.
        least: Number of regions at which to stop.
        kept: For ``WARD``: stop before less than this share of the squared deviation is kept; below 0 to not look.
        known: ``UNSEEN``, ``SAFE`` or ``CENTRED``.
        share: ``(P, S)`` float32: for ``WARD``, small whole numbers beside the unit features of each patch, such as
            memberships in masks; ``S`` may be 0. Changed.
        weight: What the growth of their squared error counts. It is summed apart from that of the features, in exact
            whole numbers, so that a large weight hides no feature.
        piece: ``(P,)`` int32: parts of the image whose patches merge first; regions of two parts merge only where no
            part has two regions that touch. Empty where there are no parts. Changed.
        pairs: ``(P, 2)`` int32, written: the two regions of each merge, by first patch, the smaller first.
        scores: ``(P,)`` float64, written: the score of each merge.

    Returns:
        The number of merges; ``OUT_OF_RANGE`` where squares leave float32's safe range, which is also where NaN and
        infinity show; or, for ``WARD``, ``TOO_ALIKE``. And the image's squared deviation, or 0 where nobody asked.
    """
    patches, dim = features.shape
    most = (4 if diagonal else 2) * patches
    target = np.empty(2 * most, np.int32)
    dot = np.empty(most, np.float64)
    square = np.empty(patches, np.float64)
    edges = _score_grid(features, valid, cols, diagonal, target, dot, square)
    magnitude = square.sum()
    if known == UNSEEN and not 1e-20 < magnitude < 1e30:
        return OUT_OF_RANGE, 0.0

    factor = np.ones(patches, np.float32)
    members = np.ones(patches, np.int32)
    left = valid.sum()
    if linkage != CENTROID and known != CENTRED:
        for patch in range(patches):
            factor[patch] = 1 / np.sqrt(square[patch]) if square[patch] >= SMALLEST else 0.0
            square[patch] *= np.float64(factor[patch]) * factor[patch]
    deviation, allowed = 0.0, np.inf
    if kept >= 0:
        deviation = _total_deviation(features, valid, factor, square, left)
    if kept > 0:
        allowed = allowance(kept, deviation)

    in_parts, has_share = len(piece) > 0, share.shape[1] > 0
    spread = 0.0
    for edge in range(edges):
        x, y = target[2 * edge + 1], target[2 * edge]
        dot[edge] *= np.float64(factor[x]) * factor[y]
        spread += max(0.0, (square[x] + square[y]) / 2 - dot[edge])
    if linkage == WARD and known != CENTRED and edges > 0 and spread < _ALIKE * edges:
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
        score[edge] = _score(linkage, dot[edge], square[x], square[y], 1, 1)
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

    slots = patches // 2  # at most so many regions of two patches or more live at once
    sums = np.empty((slots, dim), np.float32)
    free = np.arange(slots - 1, -1, -1).astype(np.int32)
    num_free = slots
    slot = np.full(patches, _NONE, np.int32)
    known = np.full(patches, _NONE, np.int32)  # the half-edge by which the winner already knew a neighbour
    unscored = np.empty(patches, np.int32)
    spent = 0.0
    done = 0
    mixed = 0
    while size > 0 and left > least:
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

        # The union has the neighbours of both. Where both knew c, (a + b)·c = a·c + b·c; the rest is scored anew.
        half = following[rings + a]
        while half < rings:
            known[target[half]] = half
            half = following[half]
        count = 0
        half = following[rings + b]
        while half < rings:
            after = following[half]
            neighbour = target[half]
            if known[neighbour] >= 0:
                dot[known[neighbour] >> 1] += dot[half >> 1]
                if has_share:
                    share_dot[known[neighbour] >> 1] += share_dot[half >> 1]
                known[neighbour] = _SHARED
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
            if known[neighbour] >= 0:
                unscored[count] = half
                count += 1
            known[neighbour] = _NONE
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
        left -= 1
    return done, deviation
