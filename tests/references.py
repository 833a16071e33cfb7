"""Slow reference implementations of the fast paths. Each follows its definition and shares no code with the package."""

import math
from fractions import Fraction

import numpy as np
import torch


def neighbours(rows, cols, connectivity):
    """Yield pairs of neighbouring patches in their order: row by row; right, below, below left, below right."""
    steps = [(0, 1), (1, 0)] + ([(1, -1), (1, 1)] if connectivity == 8 else [])
    for row in range(rows):
        for col in range(cols):
            for down, right in steps:
                if 0 <= row + down < rows and 0 <= col + right < cols:
                    yield row * cols + col, (row + down) * cols + col + right


def cosine(x, y):
    square_x, square_y = float(np.dot(x, x)), float(np.dot(y, y))
    if square_x == 0 or square_y == 0:
        return 1.0 if square_x == square_y else 0.0
    return min(1.0, max(-1.0, float(np.dot(x, y)) / math.sqrt(square_x * square_y)))


def unit_length(features):
    """Scale features ``(..., D)`` to unit length in float64; a zero vector stays zero."""
    features = np.asarray(features, np.float64)
    norm = np.sqrt((features * features).sum(-1, keepdims=True))
    return features / np.where(norm == 0, 1, norm)


def pair_score(linkage, x, y, m, n):
    """Return the score of merging regions with sums ``x`` and ``y`` of ``m`` and ``n`` patches; the highest merges first.

    Scores are exact fractions of float64 dot products, so that only equal scores tie.
    """
    if linkage == "centroid":
        return cosine(x, y)
    dot, square_x, square_y = (Fraction(float(np.dot(left, right))) for left, right in ((x, y), (x, x), (y, y)))
    if linkage == "average":
        return Fraction(1) if square_x == square_y == 0 else dot / (m * n)
    return -Fraction(m * n, m + n) * (square_x / m**2 - 2 * dot / (m * n) + square_y / n**2)


def merge_by_scanning(
    features, *, linkage="centroid", threshold=-math.inf, num_regions=1, connectivity=4, valid=None, allowed=math.inf
):
    """Merge by scanning a dictionary: return labels ``(rows, cols)`` and scores of merges for ``(rows, cols, D)``.

    Sums and scores are in float64 or exact. A pair's key holds its two regions by first patch; its value is (score,
    moment of creation). With ``allowed`` merging stops before the scores' sum falls below its negative.
    """
    rows, cols, dim = features.shape
    patches = range(rows * cols)
    valid = np.ones(rows * cols, bool) if valid is None else np.asarray(valid).reshape(-1)
    vectors = (features if linkage == "centroid" else unit_length(features)).reshape(-1, dim).astype(np.float64)
    total = {patch: vectors[patch] for patch in patches if valid[patch]}
    members = {patch: {patch} for patch in total}

    def score(x, y):
        return pair_score(linkage, total[x], total[y], len(members[x]), len(members[y]))

    pairs = {}
    for number, (x, y) in enumerate(neighbours(rows, cols, connectivity)):
        if valid[x] and valid[y]:
            pairs[x, y] = (score(x, y), (0, number))
    scores = []
    while pairs and len(total) > num_regions:
        (a, b), (best, _) = min(pairs.items(), key=lambda item: (-item[1][0], item[1][1]))
        if best < threshold or -(sum(scores) + best) > allowed:
            break
        scores.append(best)
        around = {x if y in (a, b) else y for x, y in pairs if {x, y} & {a, b}} - {a, b}
        pairs = {pair: value for pair, value in pairs.items() if not {a, b} & set(pair)}
        total[a] = total[a] + total.pop(b)
        members[a] |= members.pop(b)
        for other in around:
            pairs[min(a, other), max(a, other)] = (score(a, other), (len(scores), other))
    labels = np.full(rows * cols, -1)
    for number, first in enumerate(sorted(members)):
        labels[list(members[first])] = number
    return labels.reshape(rows, cols), [float(score) for score in scores]


def regret(features, merges, *, linkage, connectivity=4, valid=None):
    """Return by how much each of ``merges (M, 2)`` is worse than the best pair at that time, in float64."""
    rows, cols, dim = features.shape
    vectors = (features if linkage == "centroid" else unit_length(features)).reshape(-1, dim).astype(np.float64)
    valid = np.ones(rows * cols, bool) if valid is None else np.asarray(valid).reshape(-1)
    total, size = vectors.copy(), np.ones(rows * cols)
    around = {patch: set() for patch in range(rows * cols) if valid[patch]}
    for x, y in neighbours(rows, cols, connectivity):
        if valid[x] and valid[y]:
            around[x].add(y)
            around[y].add(x)
    score = {(x, y): float(pair_score(linkage, total[x], total[y], 1, 1)) for x in around for y in around[x] if x < y}
    worse = []
    for a, b in merges:
        worse.append(max(score.values()) - score[a, b])
        total[a], size[a] = total[a] + total[b], size[a] + size[b]
        around[a] = (around[a] | around.pop(b)) - {a, b}
        score = {pair: value for pair, value in score.items() if not {a, b} & set(pair)}
        for other in around[a]:
            around[other] = around[other] - {b} | {a}
            pair = (min(a, other), max(a, other))
            score[pair] = float(pair_score(linkage, total[a], total[other], int(size[a]), int(size[other])))
    return np.array(worse)


def squared_error(features, labels):
    """Sum the squared distances of unit features ``(rows, cols, D)`` to the means of their regions; -1 is no region."""
    vectors, labels = unit_length(features).reshape(-1, features.shape[-1]), np.asarray(labels).reshape(-1)
    return sum(
        ((part - part.mean(0)) ** 2).sum() for part in (vectors[labels == label] for label in set(labels) - {-1})
    )


def islands(valid, connectivity):
    """Count the connected groups of true cells by flood fill."""
    todo = {(row, col) for row, col in np.argwhere(np.asarray(valid))}
    count = 0
    while todo:
        count += 1
        stack = [todo.pop()]
        while stack:
            row, col = stack.pop()
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    if connectivity == 4 and down and right:
                        continue
                    if (row + down, col + right) in todo:
                        todo.remove((row + down, col + right))
                        stack.append((row + down, col + right))
    return count


def attend(pool, features, masks):
    """Pool by cross-attention as it is defined, head by head and region by region, in float64.

    Args:
        pool: A ``CrossAttnPool``; its weights are read.
        features: ``(patches, dim)``.
        masks: ``(regions, patches)`` bool.
    """
    weights = {name: tensor.detach().double() for name, tensor in pool.state_dict().items()}
    features = features.double()
    size = pool.dim // pool.num_heads
    tokens = []
    for mask in masks:
        patches = features[mask]
        mean = patches.mean(0)
        query = weights["query.weight"] @ mean + weights["query.bias"]
        gathered = []
        for head in range(pool.num_heads):
            part = slice(head * size, (head + 1) * size)
            keys = patches @ weights["key.weight"][part].T
            values = patches @ weights["value.weight"][part].T + weights["value.bias"][part]
            scores = keys @ query[part] / math.sqrt(size)
            gathered.append(scores.softmax(0) @ values)
        tokens.append(mean + weights["out.weight"] @ torch.cat(gathered) + weights["out.bias"])
    return torch.stack(tokens)


def mean_pool(features, masks):
    """Return the mean feature of each region in float64, with the shapes of `attend`."""
    return torch.stack([features.double()[mask].mean(0) for mask in masks])


def coverage(mask, placement, grid, *, size=None):
    """Return the fraction of each patch that a mask ``(height, width)`` covers, pixel by pixel."""
    height, width = mask.shape
    image = size or placement.image_size

    def edges(axis, pixels):
        position = np.arange(pixels + 1) * image[axis] / pixels * placement.scale[axis] + placement.offset[axis]
        return position * grid[axis] / placement.input[axis]

    down, across = edges(0, height), edges(1, width)
    covered = np.zeros(grid)
    for row, col in np.ndindex(grid):
        for y, x in np.argwhere(mask):
            tall = min(down[y + 1], row + 1) - max(down[y], row)
            wide = min(across[x + 1], col + 1) - max(across[x], col)
            covered[row, col] += max(0, tall) * max(0, wide)
    return covered


def automatic_masks(logits, scores, *, stability, quality, overlap, offset):
    """Return the indices of the candidates that SAM 2's rules select at the resolution of the logits, best first."""
    kept = {}
    for index, (mask, score) in enumerate(zip(logits, scores, strict=True)):
        inner, outer = (mask > offset).sum(), (mask > -offset).sum()
        rows, cols = np.nonzero((mask > 0).any(1))[0], np.nonzero((mask > 0).any(0))[0]
        if score > quality and outer and inner / outer >= stability and len(rows):
            kept[index] = (cols[0], rows[0], cols[-1] + 1, rows[-1] + 1)
    best = []
    for index in sorted(kept, key=lambda index: -scores[index]):
        if all(_box_iou(kept[index], kept[other]) <= overlap for other in best):
            best.append(index)
    return best


def _box_iou(a, b):
    wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, wide) * max(0, tall)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)
