"""Area, stability and bounding box of candidate masks in one pass over the logits."""

import numpy as np

from regiontok._kernels import compiled


@compiled
def measure(logits, offset, areas, boxes):
    """Measure candidate masks ``(N, h, w)``.

    Args:
        logits: ``(N, h, w)`` float32.
        offset: Distance from 0 for the stability.
        areas: ``(N, 2)`` int64, written: number of pixels above ``offset`` and above ``-offset``.
        boxes: ``(N, 4)`` int64, written: left, top, right and bottom of the pixels above 0; right and bottom are
            exclusive. All 0 for an empty mask.
    """
    count, height, width = logits.shape
    column = np.empty(width, np.uint8)
    for mask in range(count):
        inner = outer = np.int64(0)
        column[:] = 0
        top, bottom = height, 0
        for y in range(height):
            above = below = inside = np.int32(0)
            for x in range(width):
                above += logits[mask, y, x] > offset
                below += logits[mask, y, x] > -offset
                inside += logits[mask, y, x] > 0
            inner += above
            outer += below
            if inside:
                top = min(top, y)
                bottom = y + 1
                for x in range(width):
                    column[x] |= logits[mask, y, x] > 0
        areas[mask, 0] = inner
        areas[mask, 1] = outer
        boxes[mask] = 0
        if bottom:
            left, right = 0, width
            while column[left] == 0:
                left += 1
            while column[right - 1] == 0:
                right -= 1
            boxes[mask, 0] = left
            boxes[mask, 1] = top
            boxes[mask, 2] = right
            boxes[mask, 3] = bottom
