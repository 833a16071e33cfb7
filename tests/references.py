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


def coverage(mask, placement, grid, *, size=None):
    """The share of each patch inside one mask ``(height, width)``, pixel by pixel from the definition."""
    height, width = mask.shape
    photo = size or placement.photo

    def edges(axis, pixels):
        position = np.arange(pixels + 1) * photo[axis] / pixels * placement.scale[axis] + placement.offset[axis]
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
    """Kept candidates, best first, by SAM 2's rules at the logits' own resolution: their indices."""
    kept = {}
    for index, (one, score) in enumerate(zip(logits, scores, strict=True)):
        inner, outer = (one > offset).sum(), (one > -offset).sum()
        rows, cols = np.nonzero((one > 0).any(1))[0], np.nonzero((one > 0).any(0))[0]
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
