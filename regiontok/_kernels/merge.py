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

Arrays are passed one by one, and rows as a matrix and a number: tuples of arrays and views of rows cost numba atomic
counts of references, about as much as the dot products themselves. Tests for -1 are written ``< 0``, which also tells
the compiler that an index needs no wrapping around.
"""

import numpy as np

from regiontok._kernels import compiled

_NONE = -1
_SHARED = -2
_GONE = -np.inf  # below every threshold

CENTROID, AVERAGE, WARD = 0, 1, 2
_SMALLEST = 2.0**-126
"""Squares below have lost digits: float32 holds none smaller in full."""
_ALIKE = 5e-3
"""Mean growth of the first pairs below which patches are so alike that float32 dot products lose their differences."""
_ROUNDING = 1e-4
"""How far sums of growths may be off, as a share of the whole deviation."""

APART = 2.0**40
"""What it costs to merge across parts: more than any growth of the squared error."""
UNSEEN, SAFE, CENTRED = 0, 1, 2
"""What is known of an image's features: nothing; that their squares fit float32; that they are unit vectors less their
mean, scaled."""
OUT_OF_RANGE, TOO_ALIKE = -1, -2


@compiled(reassociate=True)
def _dot(x, i, y, j):
    total = np.float32(0)
    for d in range(x.shape[1]):
        total += x[i, d] * y[j, d]
    return total


@compiled(reassociate=True)
def _dot_two(x, i, y, j, z, k):
    """``x[i]·y[j]`` and ``x[i]·z[k]`` with one reading of ``x[i]``: loads are what a dot product waits for."""
    first, second = np.float32(0), np.float32(0)
    for d in range(x.shape[1]):
        value = x[i, d]
        first += value * y[j, d]
        second += value * z[k, d]
    return first, second


@compiled(reassociate=True)
def _square_and_dot_two(x, i, j, k):
    square, first, second = np.float32(0), np.float32(0), np.float32(0)
    for d in range(x.shape[1]):
        value = x[i, d]
        square += value * value
        first += value * x[j, d]
        second += value * x[k, d]
    return square, first, second


@compiled(reassociate=True)
def _add(x, i, factor_i, j, factor_j, out, k):
    """Write ``factor_i x[i] + factor_j x[j]`` to ``out[k]``; return its square."""
    square = np.float32(0)
    for d in range(x.shape[1]):
        value = factor_i * x[i, d] + factor_j * x[j, d]
        out[k, d] = value
        square += value * value
    return square


@compiled(reassociate=True)
def _add_to(out, i, x, j, factor):
    """Add ``factor x[j]`` to ``out[i]``; return the square of the sum."""
    square = np.float32(0)
    for d in range(x.shape[1]):
        value = out[i, d] + factor * x[j, d]
        out[i, d] = value
        square += value * value
    return square


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
def _before(score_x, stamp_x, score_y, stamp_y):
    return score_x > score_y or (score_x == score_y and stamp_x < stamp_y)


@compiled
def _lift(heap_score, heap_stamp, heap_edge, position, i, score, stamp, edge):
    """Put an entry at ``i`` or above."""
    while i > 0:
        parent = (i - 1) >> 2
        if not _before(score, stamp, heap_score[parent], heap_stamp[parent]):
            break
        heap_score[i] = heap_score[parent]
        heap_stamp[i] = heap_stamp[parent]
        heap_edge[i] = heap_edge[parent]
        position[heap_edge[i]] = i
        i = parent
    heap_score[i] = score
    heap_stamp[i] = stamp
    heap_edge[i] = edge
    position[edge] = i


@compiled
def _sink(heap_score, heap_stamp, heap_edge, position, size, i, score, stamp, edge):
    """Put an entry at ``i`` or below."""
    while True:
        child = 4 * i + 1
        if child >= size:
            break
        best = child
        for other in range(child + 1, min(child + 4, size)):
            if _before(heap_score[other], heap_stamp[other], heap_score[best], heap_stamp[best]):
                best = other
        if not _before(heap_score[best], heap_stamp[best], score, stamp):
            break
        heap_score[i] = heap_score[best]
        heap_stamp[i] = heap_stamp[best]
        heap_edge[i] = heap_edge[best]
        position[heap_edge[i]] = i
        i = best
    heap_score[i] = score
    heap_stamp[i] = stamp
    heap_edge[i] = edge
    position[edge] = i


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
            square[patch], dot[start], dot[start + 1] = _square_and_dot_two(features, patch, patch + 1, below)
        else:
            square[patch] = _dot(features, patch, features, patch)
            if edges > start:
                dot[start] = _dot(features, patch, features, target[2 * start])
        if diagonal and below < patches:
            if col > 0 and valid[below - 1]:
                target[2 * edges] = below - 1
                dot[edges] = _dot(features, patch, features, below - 1)
                edges += 1
            if col + 1 < cols and valid[below + 1]:
                target[2 * edges] = below + 1
                dot[edges] = _dot(features, patch, features, below + 1)
                edges += 1
        for edge in range(start, edges):
            target[2 * edge + 1] = patch
    return edges


@compiled
def merge(features, valid, cols, diagonal, linkage, threshold, least, kept, known, piece, pairs, scores):
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
            factor[patch] = 1 / np.sqrt(square[patch]) if square[patch] >= _SMALLEST else 0.0
            square[patch] *= np.float64(factor[patch]) * factor[patch]
    deviation, allowed = 0.0, np.inf
    if kept >= 0:
        deviation = _total_deviation(features, valid, factor, square, left)
    if kept > 0:
        allowed = allowance(kept, deviation)

    in_parts = len(piece) > 0
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
        dot[edge] *= np.float64(factor[x]) * factor[y]
        score[edge] = _score(linkage, dot[edge], square[x], square[y], 1, 1)
        if in_parts and piece[x] != piece[y]:
            score[edge] -= APART
        stamp[edge] = edge
        if score[edge] >= threshold:
            heap_score[size] = score[edge]
            heap_stamp[size] = edge
            heap_edge[size] = edge
            position[edge] = size
            size += 1
    if linkage == WARD and known != CENTRED and edges > 0 and -score.sum() < _ALIKE * edges:
        return TOO_ALIKE, 0.0
    for i in range((size - 2) // 4, -1, -1):
        _sink(heap_score, heap_stamp, heap_edge, position, size, i, heap_score[i], heap_stamp[i], heap_edge[i])

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
            _sink(heap_score, heap_stamp, heap_edge, position, size, 0, score[edge], stamp[edge], edge)
            continue
        position[edge] = _NONE
        size -= 1
        if size > 0:
            _sink(
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
        _unlink(following, previous, 2 * edge)
        _unlink(following, previous, 2 * edge + 1)

        if slot[a] < 0 and slot[b] < 0:
            num_free -= 1
            slot[a] = free[num_free]
            square[a] = _add(features, a, factor[a], b, factor[b], sums, slot[a])
        elif slot[a] < 0:
            slot[a] = slot[b]
            square[a] = _add_to(sums, slot[a], features, a, factor[a])
        elif slot[b] < 0:
            square[a] = _add_to(sums, slot[a], features, b, factor[b])
        else:
            square[a] = _add_to(sums, slot[a], sums, slot[b], np.float32(1))
            free[num_free] = slot[b]
            num_free += 1
        members[a] += members[b]
        if in_parts and piece[a] != piece[b]:
            mixed += 1
            piece[a] = -mixed

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
                dot_x, dot_y = _dot_two(sums, row, features, target[x], features, target[y])
            elif row_x < 0:
                dot_x, dot_y = _dot_two(sums, row, features, target[x], sums, row_y)
            elif row_y < 0:
                dot_x, dot_y = _dot_two(sums, row, sums, row_x, features, target[y])
            else:
                dot_x, dot_y = _dot_two(sums, row, sums, row_x, sums, row_y)
            dot[x >> 1] = dot_x if row_x >= 0 else dot_x * factor[target[x]]
            dot[y >> 1] = dot_y if row_y >= 0 else dot_y * factor[target[y]]
        if count % 2:
            x = unscored[count - 1]
            if slot[target[x]] < 0:
                dot[x >> 1] = _dot(sums, row, features, target[x]) * factor[target[x]]
            else:
                dot[x >> 1] = _dot(sums, row, sums, slot[target[x]])

        created = edges + np.int64(done) * patches
        half = following[rings + a]
        while half < rings:
            edge, neighbour = half >> 1, target[half]
            score[edge] = _score(linkage, dot[edge], square[a], square[neighbour], members[a], members[neighbour])
            if in_parts and piece[a] != piece[neighbour]:
                score[edge] -= APART
            stamp[edge] = created + neighbour
            entry = position[edge]
            if entry < 0:
                if score[edge] >= threshold:
                    _lift(heap_score, heap_stamp, heap_edge, position, size, score[edge], stamp[edge], edge)
                    size += 1
            elif score[edge] > heap_score[entry]:
                _lift(heap_score, heap_stamp, heap_edge, position, entry, score[edge], stamp[edge], edge)
            half = following[half]
        done += 1
        left -= 1
    return done, deviation


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
    for one in labels:
        if one >= 0:
            areas[one + 1] += 1
    for one in range(regions):
        areas[one + 1] += areas[one]
    for index in range(len(labels)):
        one = labels[index]
        if one >= 0:
            place = areas[one]
            patch[place] = index
            region[place] = first + one
            areas[one] = place + 1


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


@compiled
def extend(features, valid, patch, group, weight, out):
    """Write unit vectors with a coordinate per group; return the squared deviation of the unit vectors per patch.

    Args:
        features: ``(P, D)`` float32.
        valid: ``(P,)`` bool; rows of other patches are 0.
        patch: ``(memberships,)`` int64: patches that are in a group.
        group: ``(memberships,)`` int64: which of the ``G`` groups.
        weight: The value of a membership.
        out: ``(P, D + G)`` float32, written.
    """
    dim = features.shape[1]
    out[:] = 0
    total = np.zeros(dim, np.float64)
    members = 0
    squares = 0.0
    for row in range(len(valid)):
        if not valid[row]:
            continue
        members += 1
        square = np.float64(_dot(features, row, features, row))
        if not square < 1e30:
            return -1.0  # out of range, or not a number
        if square < _SMALLEST:
            continue
        factor = np.float32(1 / np.sqrt(square))
        squares += 1.0
        for d in range(dim):
            value = factor * features[row, d]
            out[row, d] = value
            total[d] += value
    for index in range(len(patch)):
        out[patch[index], dim + group[index]] = weight
    if members == 0:
        return 0.0
    return max(0.0, squares - (total * total).sum() / members) / members


@compiled
def join(sums, members, touching, target, first, second, scores):
    """Merge groups by Ward's rule until ``target`` are left; groups that touch first.

    Args:
        sums: ``(G, D)`` float64: sums of features; changed.
        members: ``(G,)`` int64: how many features each is the sum of; changed.
        touching: ``(G, G)`` bool, symmetric; changed.
        target: Number of groups at which to stop, at least 1.
        first: ``(G,)`` int64, written: the group that each merge keeps, the smaller number.
        second: ``(G,)`` int64, written: the group that it ends.
        scores: ``(G,)`` float64, written: the growth of the squared error.

    Returns:
        The number of merges.
    """
    groups, dim = sums.shape
    live = np.ones(groups, np.bool_)
    cost = np.full((groups, groups), np.inf)
    best = np.zeros(groups, np.int64)
    for a in range(groups):
        for b in range(a + 1, groups):
            cost[a, b] = _growth(sums, members, a, b) + (0.0 if touching[a, b] else APART)
    for a in range(groups - 1):
        best[a] = a + 1 + np.argmin(cost[a, a + 1 :])
    left, done = groups, 0
    while left > target:
        a = -1
        for row in range(groups - 1):
            if live[row] and cost[row, best[row]] < np.inf and (a < 0 or cost[row, best[row]] < cost[a, best[a]]):
                a = row
        b = best[a]
        first[done], second[done] = a, b
        scores[done] = cost[a, b] - (0.0 if touching[a, b] else APART)
        done += 1
        left -= 1
        for d in range(dim):
            sums[a, d] += sums[b, d]
        members[a] += members[b]
        live[b] = False
        for c in range(groups):
            if live[c] and c != a:
                meets = touching[a, c] or touching[b, c]
                touching[a, c] = meets
                touching[c, a] = meets
                value = _growth(sums, members, a, c) + (0.0 if meets else APART)
                cost[min(a, c), max(a, c)] = value
            cost[min(b, c), max(b, c)] = np.inf
        for row in range(groups - 1):
            if live[row] and (row == a or best[row] == a or best[row] == b or cost[row, a] < cost[row, best[row]]):
                best[row] = row + 1 + np.argmin(cost[row, row + 1 :])
    return done


@compiled
def _growth(sums, members, a, b):
    m, n = np.float64(members[a]), np.float64(members[b])
    total = 0.0
    for d in range(sums.shape[1]):
        difference = sums[a, d] / m - sums[b, d] / n
        total += difference * difference
    return total * m * n / (m + n)
