"""Run-length encoded masks (COCO's RLE: column by column, background first): codec, areas, and coverage of patches.

Coverage uses patch units: patch row ``i`` spans ``[i, i + 1]``, and ``row_edge[y]`` is the upper edge of pixel row
``y``; the same holds for columns. The weight of a pixel in a patch is the area of their overlap.

A mask is a sum of signed half planes, one for each change from a run to the next: all pixels after the change in column
order. The position of the change gives the overlap of its half plane with every patch. So each change is added to
difference arrays in constant time, which are summed once per mask. Pixels are not visited.
"""

import numpy as np

from regiontok._kernels import compiled

TRUNCATED, NEGATIVE, TOO_LONG = 1, 2, 3
"""The faults of a compressed mask."""


@compiled
def count_runs(text, bounds, offsets):
    """Write the first run of each compressed mask to ``offsets (M + 1,)``; return the first truncated mask, or -1."""
    offsets[0] = 0
    for mask in range(len(bounds) - 1):
        count = 0
        for i in range(bounds[mask], bounds[mask + 1]):
            if not (text[i] - 48) & 0x20:
                count += 1
        if bounds[mask + 1] > bounds[mask] and (text[bounds[mask + 1] - 1] - 48) & 0x20:
            return mask
        offsets[mask + 1] = offsets[mask] + count
    return -1


@compiled
def decompress(text, bounds, offsets, runs):
    """Decode compressed masks into ``runs``; return a fault or 0, its mask, and its value.

    A run is a number in groups of five bits, lowest group first. From the third run on, the number is the difference to
    the run before the previous one.
    """
    for mask in range(len(bounds) - 1):
        i = bounds[mask]
        first = offsets[mask]
        for run in range(first, offsets[mask + 1]):
            value = np.int64(0)
            shift = np.int64(0)
            while True:
                group = np.int64(text[i]) - 48
                i += 1
                if shift < 40:
                    value |= (group & 0x1F) << shift
                shift += 5
                if not group & 0x20:
                    break
            if shift > 40:
                return TOO_LONG, mask, value
            if group & 0x10:
                value -= np.int64(1) << shift
            if run - first > 2:
                value += np.int64(runs[run - 2])
            if value < 0:
                return NEGATIVE, mask, value
            if value >= 2**32:
                return TOO_LONG, mask, value
            runs[run] = value
    return 0, -1, np.int64(0)


@compiled
def compress(runs, offsets, text, bounds):
    """Encode runs; the inverse of `decompress`. ``text`` has 7 bytes per run; ``bounds (M + 1,)`` is written."""
    i = 0
    bounds[0] = 0
    for mask in range(len(offsets) - 1):
        first = offsets[mask]
        for run in range(first, offsets[mask + 1]):
            value = np.int64(runs[run])
            if run - first > 2:
                value -= np.int64(runs[run - 2])
            while True:
                group = value & 0x1F
                value >>= 5
                has_more = value != -1 if group & 0x10 else value != 0
                text[i] = (group | 0x20 if has_more else group) + 48
                i += 1
                if not has_more:
                    break
        bounds[mask + 1] = i


@compiled
def sum_runs(runs, offsets, total, area):
    """Compute the number of pixels in all runs and in the foreground runs of each mask."""
    for mask in range(len(offsets) - 1):
        total[mask] = 0
        area[mask] = 0
        first = offsets[mask]
        for run in range(first, offsets[mask + 1]):
            total[mask] += runs[run]
            if (run - first) & 1:
                area[mask] += runs[run]


@compiled
def count_changes(masks, offsets):
    """Write the first run of each dense mask to ``offsets (M + 1,)``; masks are ``(M, H, W)`` bytes of 0 or 1."""
    count, height, width = masks.shape
    offsets[0] = 0
    for mask in range(count):
        changes = np.int64(masks[mask, 0, 0])
        for y in range(1, height):
            for x in range(width):
                changes += masks[mask, y, x] != masks[mask, y - 1, x]
        for x in range(1, width):
            changes += masks[mask, 0, x] != masks[mask, height - 1, x - 1]
        offsets[mask + 1] = offsets[mask] + changes + 1


@compiled
def encode(masks, offsets, runs):
    """Encode dense masks: count the changes in each column, then write the position of each change."""
    count, height, width = masks.shape
    column = np.empty(width + 1, np.int64)
    for mask in range(count):
        column[:] = 0
        for x in range(width):
            column[x + 1] = masks[mask, 0, 0] if x == 0 else masks[mask, 0, x] != masks[mask, height - 1, x - 1]
        for y in range(1, height):
            for x in range(width):
                column[x + 1] += masks[mask, y, x] != masks[mask, y - 1, x]
        column[0] = offsets[mask]
        for x in range(width):
            column[x + 1] += column[x]
        for x in range(width):
            before = masks[mask, height - 1, x - 1] if x else np.uint8(0)
            if masks[mask, 0, x] != before:
                runs[column[x]] = x * height
                column[x] += 1
        for y in range(1, height):
            for x in range(width):
                if masks[mask, y, x] != masks[mask, y - 1, x]:
                    runs[column[x]] = x * height + y
                    column[x] += 1
        last = offsets[mask + 1] - 1  # runs are the differences of positions
        runs[last] = height * width
        for run in range(last, offsets[mask], -1):
            runs[run] -= runs[run - 1]


@compiled
def count_label_changes(labels, count, offsets):
    """Do the same as `count_changes` for a map ``(H, W)`` of labels from -1 to ``count - 1``, one mask per label."""
    height, width = labels.shape
    offsets[:] = 0
    before = -1
    for x in range(width):
        for y in range(height):
            label = labels[y, x]
            if label != before:
                if before >= 0:
                    offsets[before + 1] += 1
                if label >= 0:
                    offsets[label + 1] += 1
                before = label
    for label in range(count):
        offsets[label + 1] += offsets[label] + 1


@compiled
def encode_labels(labels, offsets, runs):
    """Encode the masks of all labels in one pass over the map."""
    height, width = labels.shape
    following = offsets[:-1].copy()
    before = -1
    for x in range(width):
        for y in range(height):
            label = labels[y, x]
            if label != before:
                for changed in (before, label):
                    if changed >= 0:
                        runs[following[changed]] = x * height + y
                        following[changed] += 1
                before = label
    for label in range(len(offsets) - 1):
        last = offsets[label + 1] - 1
        runs[last] = height * width
        for run in range(last, offsets[label], -1):
            runs[run] -= runs[run - 1]


@compiled
def decode(runs, offsets, height, masks):
    """Decode runs into dense masks ``(M, H, W)``, which must be zero."""
    for mask in range(len(offsets) - 1):
        position = np.int64(0)
        first = offsets[mask]
        for run in range(first, offsets[mask + 1]):
            end = position + np.int64(runs[run])
            if (run - first) & 1:
                x, y = position // height, position % height
                for _ in range(position, end):
                    masks[mask, y, x] = True
                    y += 1
                    if y == height:
                        x += 1
                        y = 0
            position = end


@compiled
def coverage_of_runs(runs, offsets, row_edge, col_edge, covered):
    """Compute the fraction of each patch inside each mask, ``covered (M, rows, cols)``; edges are clipped."""
    count, rows, cols = covered.shape
    height, width = len(row_edge) - 1, len(col_edge) - 1
    # For each patch column, the area to the right of the changes: whole columns, and the part of the edge's column.
    whole_cols, part_cols = np.empty(cols + 1), np.empty(cols + 1)
    # For each patch column and row, the area above the changes within their pixel columns.
    whole, part = np.empty((cols + 1, rows + 1)), np.empty((cols + 1, rows + 1))
    in_column = np.empty(cols + 1)
    for mask in range(count):
        whole_cols[:] = 0
        part_cols[:] = 0
        whole[:] = 0
        part[:] = 0
        in_column[:] = 0
        total = 0.0
        x = y = np.int64(0)
        first = offsets[mask]
        for run in range(first, offsets[mask + 1] - 1):
            y += np.int64(runs[run])
            if y >= height:
                x += y // height
                y %= height
            if x >= width:
                break  # empty runs at the end
            sign = -1.0 if (run - first) & 1 else 1.0
            left, right = col_edge[x], col_edge[x + 1]
            col = int(left)
            total += sign
            whole_cols[col] += sign
            part_cols[col] += sign * (left - col)
            if y == 0:
                continue  # no pixels above the change in its column
            top = row_edge[y]
            row = int(top)
            cut = top - row
            while left < right:
                end = min(right, col + 1.0)
                weight = sign * (end - left)
                in_column[col] += weight
                whole[col, row] += weight
                part[col, row] += weight * cut
                left = end
                col += 1
        start, end = row_edge[0], row_edge[height]
        limit = col_edge[width]
        beyond = 0.0
        for col in range(cols - 1, -1, -1):
            beyond += whole_cols[col + 1]
            across = total * min(max(limit - col, 0.0), 1.0) - beyond - part_cols[col]
            below = 0.0
            for row in range(rows - 1, -1, -1):
                below += whole[col, row + 1]
                before = min(max(start - row, 0.0), 1.0)
                image = min(max(end - row, 0.0), 1.0) - before
                share = across * image - (below + part[col, row] - in_column[col] * before)
                covered[mask, row, col] = min(max(share, 0.0), 1.0)  # removes rounding errors


@compiled(reassociate=True)
def _sum(line, start, end):
    total = np.float64(0)
    for x in range(start, end):
        total += line[x]
    return total


@compiled
def _count_rows(masks, mask, y, end, counted):
    """Sum at most 255 rows as bytes, eight rows at a time to reduce loads and stores of the sums."""
    width = masks.shape[2]
    counted[:] = 0
    while y + 8 <= end:
        for x in range(width):
            counted[x] = np.uint8(
                counted[x]
                + (masks[mask, y, x] != 0)
                + (masks[mask, y + 1, x] != 0)
                + (masks[mask, y + 2, x] != 0)
                + (masks[mask, y + 3, x] != 0)
                + (masks[mask, y + 4, x] != 0)
                + (masks[mask, y + 5, x] != 0)
                + (masks[mask, y + 6, x] != 0)
                + (masks[mask, y + 7, x] != 0)
            )
        y += 8
    while y < end:
        for x in range(width):
            counted[x] = np.uint8(counted[x] + (masks[mask, y, x] != 0))
        y += 1


@compiled
def _add_counted(counted, weight, line):
    """Add counts to a line of weighted sums; return whether any count is not zero."""
    any_count = np.uint8(0)
    for x in range(len(counted)):
        any_count |= counted[x]
    if any_count == 0:
        return False
    for x in range(len(counted)):
        line[x] += weight * counted[x]
    return True


@compiled
def coverage_of_pixels(masks, row_edge, col_edge, covered):
    """Compute the coverage of dense masks ``(M, H, W)`` of bytes, reading each once; edges are not clipped.

    Pixel rows inside a patch row have equal weights, so they are counted as bytes. The two rows that cross its edges
    are added with their weights.
    """
    count, rows, cols = covered.shape
    height, width = len(row_edge) - 1, len(col_edge) - 1
    counted = np.empty(width, np.uint8)
    line = np.zeros(width, np.float64)
    column, weight_of = np.empty((cols, 4), np.int64), np.empty((cols, 3), np.float64)
    _find_columns(col_edge, column, weight_of)
    for mask in range(count):
        y = 0
        for row in range(rows):
            while y < height and row_edge[y + 1] <= row:
                y += 1
            touched = False
            while y < height and row_edge[y] < row + 1:
                end = y + 1
                if row_edge[y] < row or row_edge[y + 1] > row + 1:
                    weight = min(row_edge[y + 1], row + 1.0) - max(row_edge[y], row + 0.0)
                else:
                    while end < min(height, y + 255) and row_edge[end + 1] <= row + 1:
                        end += 1
                    weight = (row_edge[end] - row_edge[y]) / (end - y)
                _count_rows(masks, mask, y, end, counted)
                touched |= _add_counted(counted, weight, line)
                if row_edge[end] > row + 1:
                    break  # the next patch row contains the rest of it
                y = end
            if touched:
                _sum_columns(line, column, weight_of, mask, row, covered)
                line[:] = 0
            else:
                covered[mask, row] = 0


@compiled
def _find_columns(col_edge, column, weight):
    """Find the pixels of each patch column: the one on its left edge, the range inside, and the one on its right edge.

    Their indices are written to ``column (cols, 4)``, the weights of left, inside and right to ``weight (cols, 3)``.
    """
    width = len(col_edge) - 1
    x = 0
    for col in range(len(column)):
        while x < width and col_edge[x + 1] <= col:
            x += 1
        column[col] = 0
        weight[col] = 0
        if x < width and col_edge[x] < col:
            column[col, 0] = x
            weight[col, 0] = min(col_edge[x + 1], col + 1.0) - col
            if col_edge[x + 1] > col + 1:
                continue  # the patch is inside one pixel
            x += 1
        column[col, 1] = x
        while x < width and col_edge[x + 1] <= col + 1:
            x += 1
        column[col, 2] = x
        if x > column[col, 1]:
            weight[col, 1] = (col_edge[x] - col_edge[column[col, 1]]) / (x - column[col, 1])
        if x < width and col_edge[x] < col + 1:
            column[col, 3] = x
            weight[col, 2] = col + 1 - col_edge[x]


@compiled
def _sum_columns(line, column, weight, mask, row, covered):
    """Sum the weighted sums of a patch row within each patch."""
    for col in range(len(column)):
        total = weight[col, 1] * _sum(line, column[col, 1], column[col, 2])
        total += weight[col, 0] * line[column[col, 0]] + weight[col, 2] * line[column[col, 3]]
        covered[mask, row, col] = min(total, 1.0)
