"""Merging the patches of one image: the compiled loop, and scaling of features that float32 cannot represent well."""

from typing import NamedTuple

import numpy as np
import torch

from regiontok._kernels.merge import AVERAGE, CENTRED, CENTROID, OUT_OF_RANGE, SAFE, TOO_ALIKE, UNSEEN, WARD, merge
from regiontok._kernels.neighbours import find_next
from regiontok.batch import check_finite

LINKAGES = {"centroid": CENTROID, "average": AVERAGE, "ward": WARD}
"""The linkages of the kernel by name."""
_NO_GRAPH = np.empty((0, 2), np.int32)
_NO_SIZES = np.empty(0, np.int32)


class Merges(NamedTuple):
    """The merges of one image in the order in which they happened.

    Attributes:
        pairs: ``(M, 2)`` int32: the two regions of each merge, named by their first patches, the smaller one first.
        scores: ``(M,)`` float64; see ``regiontok._kernels.merge``.
        deviation: Squared deviation of the patches from their mean; 0 if it was not computed.
    """

    pairs: np.ndarray
    scores: np.ndarray
    deviation: float


def merge_patches(
    values: np.ndarray,
    valid: np.ndarray,
    cols: int,
    diagonal: bool,
    linkage: int,
    lowest: float,
    target: int,
    explained_variance: float = -1.0,
    *,
    share: np.ndarray | None = None,
    weight: float = 0.0,
    piece: np.ndarray | None = None,
    image: int = 0,
    frame: int | None = None,
    motion: int = 0,
    max_frames: int | None = None,
) -> Merges:
    """Merge the patches of one image or clip; the arguments are those of ``regiontok._kernels.merge.merge``.

    Args:
        values: ``(P, D)`` float32.
        valid: ``(P,)`` bool.
        cols: Columns of the grid.
        diagonal: Whether patches that share only a corner are neighbours.
        linkage: A linkage of the kernel.
        lowest: Least score at which a pair merges.
        target: Number of regions at which merging stops.
        explained_variance: Merging stops before less than this fraction is preserved. 0 only computes the deviation;
            a negative number does neither.
        share: ``(P, S)`` float32: memberships of the patches, added to the unit features. Modified.
        weight: Weight of the growth of their squared error.
        piece: ``(P,)`` int32: number of the part that contains a patch; parts merge last. Modified.
        image: Number of the image, for error messages.
        frame: Patches of a frame of a clip; None for an image.
        motion: A patch and the most similar patch within so many rows and columns of the next frame are neighbours.
        max_frames: No region extends over more frames.

    Raises:
        ValueRangeError: NaN or infinity.
    """
    frame = len(valid) if frame is None else frame
    next_patch = np.empty(len(valid) if frame < len(valid) else 0, np.int32)
    pairs = np.empty((len(valid), 2), np.int32)
    scores = np.empty(len(valid), np.float64)
    share = np.empty((len(valid), 0), np.float32) if share is None else share
    piece = np.empty(0, np.int32) if piece is None else piece

    def run(features: np.ndarray, state: int, weight: float = weight) -> tuple[int, float]:
        options = (
            cols,
            frame,
            next_patch,
            _NO_GRAPH,
            _NO_SIZES,
            diagonal,
            linkage,
            lowest,
            target,
            explained_variance,
            state,
        )
        result: tuple[int, float] = merge(features, valid, *options, share, weight, piece, pairs, scores)
        return result

    def connect_frames() -> None:
        if len(next_patch):
            find_next(values, valid, cols, frame, motion, max_frames or 0, 0, next_patch)

    connect_frames()
    count, deviation = run(values, UNSEEN)
    if count == OUT_OF_RANGE:
        values = _scale_to_safe_range(values, valid, image, cols)
        connect_frames()
        count, deviation = run(values, SAFE)
    unit = 1.0
    if count == TOO_ALIKE:
        values, unit = _centre(values, valid)
        count, deviation = run(values, CENTRED, weight / unit)
    return Merges(pairs[:count], scores[:count] * unit, deviation * unit)


def merge_graph(
    nodes: np.ndarray, graph: np.ndarray, areas: np.ndarray, linkage: str, lowest: float, target: int
) -> np.ndarray:
    """Merge the nodes of a graph, and return the pairs in the order of the merges, ``(M, 2)`` int32.

    Args:
        nodes: ``(P, D)`` float64: sums of the patches of each node, at unit length for ``average`` and ``ward``.
        graph: ``(E, 2)`` int32: pairs of neighbours, the smaller one first.
        areas: ``(P,)``: number of patches of each node.
        linkage: ``centroid``, ``average`` or ``ward``.
        lowest: Least score at which a pair merges.
        target: Number of nodes at which merging stops.
    """
    count = len(nodes)
    pairs, scores = np.empty((count, 2), np.int32), np.empty(count, np.float64)
    if linkage == "ward":  # translation invariant: without the mean, float32 products keep small differences
        nodes = nodes - areas[:, None] * (nodes.sum(0) / areas.sum())
    largest = np.abs(nodes / areas[:, None]).max()
    if largest > 0:
        nodes = np.ldexp(nodes, -int(np.frexp(largest)[1]))
    grid = (1, count, _NO_SIZES, graph, areas.astype(np.int32), False)
    options = (LINKAGES[linkage], lowest, target, -1.0, CENTRED)
    no_parts = np.empty((count, 0), np.float32), 0.0, _NO_SIZES
    num_merges, _ = merge(nodes.astype(np.float32), np.ones(count, np.bool_), *grid, *options, *no_parts, pairs, scores)
    return pairs[:num_merges]


def _scale_to_safe_range(values: np.ndarray, valid: np.ndarray, image: int, cols: int) -> np.ndarray:
    """Scale by a power of two, which changes no cosine, so that squares fit float32; reject NaN and infinity."""
    values = np.where(valid[:, None], values, np.float32(0))
    check_finite(torch.from_numpy(values), image, cols)
    largest = np.abs(values).max()
    if largest == 0:
        return values
    return np.ldexp(values, -int(np.frexp(largest)[1]))


def _centre(values: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, float]:
    """Return unit vectors minus their mean, scaled by a power of two, and the unit of their squared errors.

    Ward's criterion is translation invariant, so the mean is subtracted to avoid cancellation in float32 if patches are
    nearly identical. Differences below the rounding error of the features are set to 0.
    """
    shown = values[valid].astype(np.float64)
    norm = np.sqrt((shown * shown).sum(1, keepdims=True))
    shown /= np.where(norm == 0, 1, norm)
    shown -= shown.mean(0)
    if (shown * shown).sum() < 1e-13 * len(shown):
        shown[:] = 0
    power = int(np.frexp(np.abs(shown).max())[1])
    centred = np.zeros_like(values)
    centred[valid] = np.ldexp(shown, -power)
    return centred, 4.0**power
