"""Rasterisation of polygons into runs, exactly like COCO's tools.

COCO draws the edges of a polygon on a grid that is five times finer, from vertex to vertex, in steps along the longer
axis. The line crosses a pixel column where it moves from the third to the fourth fine column of the pixel. At a
crossing, inside and outside change, starting with the first pixel whose centre is not above the line. Only crossings
determine the mask. They are computed directly for each edge and column, so the time does not depend on the height of an
edge or on its distance from the image.
"""

import numpy as np

from regiontok._kernels import compiled

_FINE = 5


@compiled
def count_crossings(x, y, bounds, width, counts):
    """Count the crossings of each polygon, ``(P,)``; vertices ``x``, ``y`` are in fine units."""
    for polygon in range(len(bounds) - 1):
        first, end = bounds[polygon], bounds[polygon + 1]
        counts[polygon] = 0
        for corner in range(first, end):
            following = corner + 1 if corner + 1 < end else first
            low, high = _columns(x[corner], x[following], width)
            counts[polygon] += max(high - low, 0)


@compiled
def crossings(x, y, bounds, width, height, starts, positions):
    """Write the crossings of each polygon, sorted by column and row, to ``positions`` from ``starts[polygon]`` on.

    ``starts (P + 1,)`` are the cumulative counts of `count_crossings`.
    """
    for polygon in range(len(bounds) - 1):
        first, end = bounds[polygon], bounds[polygon + 1]
        count = starts[polygon]
        for corner in range(first, end):
            following = corner + 1 if corner + 1 < end else first
            count = _edge(x[corner], y[corner], x[following], y[following], width, height, positions, count)
        positions[starts[polygon] : count].sort()


@compiled
def _columns(x0, x1, width):
    """Return the pixel columns ``[low, high)`` that an edge crosses."""
    low, high = min(x0, x1), max(x0, x1)
    first = max((low - 2 + _FINE - 1) // _FINE, 0)
    last = (high - 3) // _FINE
    return first, min(last + 1, width)


@compiled
def _edge(x0, y0, x1, y1, width, height, positions, count):
    """Add the crossings of an edge to ``positions``; return the new count."""
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
        passed = _FINE * col + 3 if slope > 0 else _FINE * col + 2  # the fine column that the edge reaches first
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
    """Return the first pixel of a column whose centre is not above a fine row."""
    centre = (fine + 0.5) / _FINE - 0.5
    return int(np.ceil(min(max(centre, 0.0), height)))


@compiled
def union(positions, crossing_starts, first, pixels, offsets, runs):
    """Write the runs of each mask, the union of its polygons ``[first[mask], first[mask + 1])``.

    ``offsets (M + 1,)`` is written too. ``runs`` must have two entries more per mask than there are positions.
    """
    count = 0
    offsets[0] = 0
    for mask in range(len(first) - 1):
        begin, end = crossing_starts[first[mask]], crossing_starts[first[mask + 1]]
        starts, ends = np.empty((end - begin) // 2, np.int64), np.empty((end - begin) // 2, np.int64)
        spans = 0
        for polygon in range(first[mask], first[mask + 1]):
            for index in range(crossing_starts[polygon], crossing_starts[polygon + 1] - 1, 2):
                starts[spans], ends[spans] = positions[index], positions[index + 1]
                spans += 1
        if first[mask + 1] - first[mask] > 1:
            order = np.argsort(starts[:spans])
            starts, ends = starts[:spans][order], ends[:spans][order]
        at = np.int64(0)  # end of the last run
        reached = np.int64(-1)  # end of the last foreground run, -1 for none
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
