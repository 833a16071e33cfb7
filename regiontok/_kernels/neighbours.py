"""The pairs of neighbouring patches of an image or clip, and their dot products."""

import numpy as np

from regiontok._kernels import compiled
from regiontok._kernels.vectors import dot_product, square_and_dot_two

NONE = -1


@compiled
def find_next(features, valid, cols, frame, radius, max_frames, first_frame, following):
    """Write the neighbour of each patch in the next frame: the most similar patch around the same place.

    Of equally similar patches, the one in the same place is chosen, then the first one.

    Args:
        features: ``(P, D)`` float32.
        valid: ``(P,)`` bool.
        cols: Columns of a frame.
        frame: Patches of a frame.
        radius: Largest difference of rows and of columns.
        max_frames: Frames ``max_frames``, ``2 * max_frames``, ... have no neighbour in the frame before; 0 for none.
        first_frame: Number of the first frame.
        following: ``(P,)`` int32, written: the patch in the next frame, -1 for none.
    """
    patches = len(valid)
    length = np.empty(patches if radius > 0 else 0, np.float64)
    for patch in range(len(length)):
        length[patch] = np.sqrt(np.float64(dot_product(features, patch, features, patch)))
    for patch in range(patches):
        following[patch] = NONE
        number = patch // frame + 1
        if (
            patch + frame >= patches
            or not valid[patch]
            or (max_frames > 0 and (first_frame + number) % max_frames == 0)
        ):
            continue
        if valid[patch + frame]:
            following[patch] = patch + frame
        if radius == 0:
            continue
        row, col = patch % frame // cols, patch % cols
        first = number * frame
        best = -np.inf
        if valid[patch + frame]:
            if length[patch + frame] > 0:
                best = dot_product(features, patch, features, patch + frame) / length[patch + frame]
            else:
                best = 0.0
        for y in range(max(0, row - radius), min(frame // cols, row + radius + 1)):
            for x in range(max(0, col - radius), min(cols, col + radius + 1)):
                other = first + y * cols + x
                if valid[other]:
                    similarity = 0.0
                    if length[other] > 0:
                        similarity = dot_product(features, patch, features, other) / length[other]
                    if similarity > best:
                        following[patch] = other
                        best = similarity


@compiled
def score_graph(features, graph, target, dot, square):
    """Compute the dot products of given pairs of neighbours ``(E, 2)``, and return their number."""
    for patch in range(len(square)):
        square[patch] = dot_product(features, patch, features, patch)
    for edge in range(len(graph)):
        target[2 * edge], target[2 * edge + 1] = graph[edge, 1], graph[edge, 0]
        dot[edge] = dot_product(features, graph[edge, 0], features, graph[edge, 1])
    return len(graph)


@compiled
def score_grid(features, valid, cols, frame, next_patch, diagonal, target, dot, square):
    """Compute the dot products of all pairs of neighbouring valid patches.

    The neighbours of a patch are right, below, below left, below right, and ``next_patch`` in the next frame.

    Return the number of edges.
    """
    patches = len(valid)
    edges = 0
    for patch in range(patches):
        square[patch] = 0.0
        if not valid[patch]:
            continue
        col = patch % cols
        below = patch + cols
        is_above = patch % frame + cols < frame
        right = col + 1 < cols and valid[patch + 1]
        down = is_above and valid[below]
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
        if diagonal and is_above:
            if col > 0 and valid[below - 1]:
                target[2 * edges] = below - 1
                dot[edges] = dot_product(features, patch, features, below - 1)
                edges += 1
            if col + 1 < cols and valid[below + 1]:
                target[2 * edges] = below + 1
                dot[edges] = dot_product(features, patch, features, below + 1)
                edges += 1
        if frame < patches and next_patch[patch] >= 0:
            target[2 * edges] = next_patch[patch]
            dot[edges] = dot_product(features, patch, features, next_patch[patch])
            edges += 1
        for edge in range(start, edges):
            target[2 * edge + 1] = patch
    return edges
