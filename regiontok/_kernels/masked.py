"""Loops of `regiontok.masked`, which merge groups of patches, such as masks."""

import numpy as np

from regiontok._kernels import compiled


@compiled
def add_up(values, rows, groups, sums):
    """Add ``values[rows[i]]`` to ``sums[groups[i]]``.

    Args:
        values: ``(P, D)`` float32.
        rows: ``(memberships,)`` int64.
        groups: ``(memberships,)`` int64, below ``G``.
        sums: ``(G, D)`` float64; changed.
    """
    for index in range(len(rows)):
        row, group = rows[index], groups[index]
        for d in range(values.shape[1]):
            sums[group, d] += values[row, d]


@compiled
def join(sums, members, touching, target, first, second, scores):
    """Merge groups by Ward's criterion until ``target`` are left; groups that touch merge first.

    Args:
        sums: ``(G, D)`` float64: sums of features; changed.
        members: ``(G,)`` int64: number of features in each sum; changed.
        touching: ``(G, G)`` bool, symmetric; changed.
        target: Number of groups at which to stop, at least 1.
        first: ``(G,)`` int64, written: the group that remains after each merge, the smaller number.
        second: ``(G,)`` int64, written: the group that is merged into it.
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
            cost[a, b] = _growth(sums, members, a, b)
    for a in range(groups - 1):
        best[a] = _best_of_row(cost, touching, a)
    left, done = groups, 0
    while left > target:
        a = -1
        for row in range(groups - 1):
            if live[row] and (a < 0 or _comes_first(cost, touching, row, best[row], a, best[a])):
                a = row
        b = best[a]
        first[done], second[done] = a, b
        scores[done] = cost[a, b]
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
                cost[min(a, c), max(a, c)] = _growth(sums, members, a, c)
            cost[min(b, c), max(b, c)] = np.inf
        for row in range(groups - 1):
            changed = row == a or best[row] == a or best[row] == b
            if live[row] and (changed or _comes_first(cost, touching, row, a, row, best[row])):
                best[row] = _best_of_row(cost, touching, row)
    return done


@compiled
def _comes_first(cost, touching, a, b, c, d):
    """Return whether ``a, b`` merges before ``c, d``: touching pairs first, then lower cost; infinite is no pair."""
    if cost[a, b] == np.inf or cost[c, d] == np.inf:
        return cost[a, b] < cost[c, d]
    if touching[a, b] != touching[c, d]:
        return touching[a, b]
    return cost[a, b] < cost[c, d]


@compiled
def _best_of_row(cost, touching, a):
    best = a + 1
    for b in range(a + 2, len(cost)):
        if _comes_first(cost, touching, a, b, a, best):
            best = b
    return best


@compiled(reassociate=True)
def _growth(sums, members, a, b):
    """Return the growth of the squared error by merging two groups."""
    m, n = np.float64(members[a]), np.float64(members[b])
    per_m, per_n = 1 / m, 1 / n
    total = 0.0
    for d in range(sums.shape[1]):
        difference = sums[a, d] * per_m - sums[b, d] * per_n
        total += difference * difference
    return total * m * n / (m + n)
