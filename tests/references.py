"""Slow, obvious twins of the fast paths. Each follows its definition and shares no code with the package."""

import math

import numpy as np
import torch


def neighbours(rows, cols, connectivity):
    """Pairs of neighbouring patches in the order of their creation: row by row; right, below, below left, below right."""
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


def merge_by_scanning(features, *, threshold=0.7, num_regions=1, connectivity=4, valid=None):
    """The plain dictionary scan: labels ``(rows, cols)`` and the merges' similarities; features ``(rows, cols, D)``.

    Sums and cosines are in float64. A pair's key holds its two regions by first patch; its value is
    (similarity, moment of creation).
    """
    rows, cols, dim = features.shape
    patches = range(rows * cols)
    valid = np.ones(rows * cols, bool) if valid is None else np.asarray(valid).reshape(-1)
    total = {patch: features.reshape(-1, dim)[patch].astype(np.float64) for patch in patches if valid[patch]}
    members = {patch: {patch} for patch in total}
    pairs = {}
    for number, (x, y) in enumerate(neighbours(rows, cols, connectivity)):
        if valid[x] and valid[y]:
            pairs[x, y] = (cosine(total[x], total[y]), (0, number))
    similarities = []
    while pairs and len(total) > num_regions:
        (a, b), (similarity, _) = min(pairs.items(), key=lambda item: (-item[1][0], item[1][1]))
        if similarity < threshold:
            break
        similarities.append(similarity)
        around = {x if y in (a, b) else y for x, y in pairs if {x, y} & {a, b}} - {a, b}
        pairs = {pair: value for pair, value in pairs.items() if not {a, b} & set(pair)}
        total[a] = total[a] + total.pop(b)
        members[a] |= members.pop(b)
        for other in around:
            pairs[min(a, other), max(a, other)] = (cosine(total[a], total[other]), (len(similarities), other))
    labels = np.full(rows * cols, -1)
    for number, first in enumerate(sorted(members)):
        labels[list(members[first])] = number
    return labels.reshape(rows, cols), similarities


def islands(valid, connectivity):
    """The number of connected groups of true cells, by flood fill."""
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
    """Cross-attention pooling by its definition, head by head and region by region, in float64.

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
    """Mean feature per region in float64; shapes as in `attend`."""
    return torch.stack([features.double()[mask].mean(0) for mask in masks])
