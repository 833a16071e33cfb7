"""A heap of edges with four children per node, ordered by descending score, then by ascending stamp."""

from regiontok._kernels import compiled


@compiled
def _before(score_x, stamp_x, score_y, stamp_y):
    return score_x > score_y or (score_x == score_y and stamp_x < stamp_y)


@compiled
def lift(heap_score, heap_stamp, heap_edge, position, i, score, stamp, edge):
    """Insert an entry at ``i`` or at one of its ancestors."""
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
def sink(heap_score, heap_stamp, heap_edge, position, size, i, score, stamp, edge):
    """Insert an entry at ``i`` or at one of its descendants."""
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
