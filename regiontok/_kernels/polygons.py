"""Polygons to runs, filled to the pixel as COCO's own tools fill them.

COCO draws a polygon's edges on a grid five times as fine, each from one corner to the next, a step at a time along its
longer axis. A pixel column begins where such a line passes from the third to the fourth fine column of a pixel; where
it does so, inside and outside change, from the first pixel whose middle is not above the line. Only these passings
matter. They are computed here for each edge and column alone, so that time does not grow with an edge's height, nor
with how far it lies outside of the image.
"""

import numpy as np

from regiontok._kernels import compiled

_FINE = 5


@compiled
def count_crossings(x, y, bounds, width, counts):
    """Per polygon ``(P,)``, how often its edges pass a pixel column; corners ``x``, ``y`` in fine units."""
    for polygon in range(len(bounds) - 1):
        first, end = bounds[polygon], bounds[polygon + 1]
        counts[polygon] = 0
        for corner in range(first, end):
            following = corner + 1 if corner + 1 < end else first
            low, high = _columns(x[corner], x[following], width)
            counts[polygon] += max(high - low, 0)


@compiled
def crossings(x, y, bounds, width, height, places, positions):
    """Where each polygon's inside begins and ends, column by column, sorted; ``places (P + 1,)`` has room for each.

    Fills ``positions`` from ``places[polygon]`` on; the counts are those of `count_crossings`.
    """
    for polygon in range(len(bounds) - 1):
        first, end = bounds[polygon], bounds[polygon + 1]
        count = places[polygon]
        for corner in range(first, end):
            following = corner + 1 if corner + 1 < end else first
            count = _edge(x[corner], y[corner], x[following], y[following], width, height, positions, count)
        positions[places[polygon] : count].sort()


@compiled
def _columns(x0, x1, width):
    """The pixel columns ``[low, high)`` whose third and fourth fine columns lie on an edge."""
    low, high = min(x0, x1), max(x0, x1)
    first = max((low - 2 + _FINE - 1) // _FINE, 0)
    last = (high - 3) // _FINE
    return first, min(last + 1, width)


@compiled
def _edge(x0, y0, x1, y1, width, height, positions, count):
    """Add an edge's passings to ``positions``; returns how many there are by now."""
    across, down = abs(x1 - x0), abs(y1 - y0)
    low, high = _columns(x0, x1, width)
    if across >= down:
        if x0 > x1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        slope = (y1 - y0) / across if across else 0.0
        for col in range(low, high):
            step = _FINE * col + 2 - x0
            before, after = int(y0 + slope * step + 0.5), int(y0 + slope * (step + 1) + 0.5)
            positions[count] = col * height + _row(min(before, after), height)
            count += 1
        return count
    if y0 > y1:
        x0, y0, x1, y1 = x1, y1, x0, y0
    slope = (x1 - x0) / down
    for col in range(low, high):
        passed = _FINE * col + 3 if slope > 0 else _FINE * col + 2  # the fine column that is met first
        step = int((passed - x0) / slope)
        while step > 0 and _is_past(x0, slope, step - 1, passed):
            step -= 1
        while not _is_past(x0, slope, step, passed):
            step += 1
        positions[count] = col * height + _row(y0 + step - 1, height)
        count += 1
    return count


@compiled
def _is_past(x0, slope, step, passed):
    at = int(x0 + slope * step + 0.5)
    return at >= passed if slope > 0 else at <= passed


@compiled
def _row(fine, height):
    """The first pixel of a column whose middle does not lie above a fine row."""
    middle = (fine + 0.5) / _FINE - 0.5
    return int(np.ceil(min(max(middle, 0.0), height)))


@compiled
def union(positions, places, first, pixels, offsets, runs):
    """Runs of each mask, the union of its polygons ``[first[mask], first[mask + 1])``.

    Fills ``offsets (M + 1,)``, and ``runs``, which has room for two more per mask than there are positions.
    """
    count = 0
    offsets[0] = 0
    for mask in range(len(first) - 1):
        begin, end = places[first[mask]], places[first[mask + 1]]
        starts, ends = np.empty((end - begin) // 2, np.int64), np.empty((end - begin) // 2, np.int64)
        spans = 0
        for polygon in range(first[mask], first[mask + 1]):
            for one in range(places[polygon], places[polygon + 1] - 1, 2):
                starts[spans], ends[spans] = positions[one], positions[one + 1]
                spans += 1
        if first[mask + 1] - first[mask] > 1:
            order = np.argsort(starts[:spans])
            starts, ends = starts[:spans][order], ends[:spans][order]
        at = np.int64(0)  # where the last run ends
        reached = np.int64(-1)  # where the inside that is open ends, -1 for none
        for span in range(spans):
            if ends[span] <= starts[span]:
                continue
            if reached >= starts[span]:
                if ends[span] > reached:
                    runs[count - 1] += ends[span] - reached
                    reached = ends[span]
                    at = reached
                continue
            runs[count] = starts[span] - at
            runs[count + 1] = ends[span] - starts[span]
            count += 2
            at = reached = ends[span]
        if at < pixels or count == offsets[mask]:
            runs[count] = pixels - at
            count += 1
        offsets[mask + 1] = count
