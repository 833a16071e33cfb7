"""Merging of one image's patches: the compiled loop, and features that float32 holds well enough for it."""

from typing import NamedTuple

import numpy as np
import torch

from regiontok._checks import check_finite
from regiontok._kernels.merge import CENTRED, OUT_OF_RANGE, SAFE, TOO_ALIKE, UNSEEN, merge


class Merges(NamedTuple):
    """Merges of one image in the order in which they happened.

    Attributes:
        pairs: ``(M, 2)`` int32: the two regions of each, by first patch, the smaller first.
        scores: ``(M,)`` float64: see ``regiontok._kernels.merge``.
        deviation: The squared deviation of the patches, where ``kept`` asks for it.
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
    kept: float = -1.0,
    *,
    share: np.ndarray | None = None,
    weight: float = 0.0,
    piece: np.ndarray | None = None,
    image: int = 0,
) -> Merges:
    """Merge the patches of one image; the arguments are those of ``regiontok._kernels.merge.merge``.

    Args:
        values: ``(P, D)`` float32.
        valid: ``(P,)`` bool.
        cols: Columns of the grid.
        diagonal: Whether patches that touch at a corner are neighbours.
        linkage: A rule of the kernel.
        lowest: Least score at which a pair merges.
        target: Number of regions at which to stop.
        kept: Share of the squared deviation at which to stop.
        share: ``(P, S)`` float32: whole numbers beside unit features; none by default. Changed.
        weight: What the growth of their squared error counts.
        piece: ``(P,)`` int32: parts that merge first; none by default. Changed.
        image: Number of the image, for errors.

    Raises:
        ValueRangeError: NaN or infinity.
    """
    pairs = np.empty((len(valid), 2), np.int32)
    scores = np.empty(len(valid), np.float64)
    share = np.empty((len(valid), 0), np.float32) if share is None else share
    piece = np.empty(0, np.int32) if piece is None else piece

    def run(features: np.ndarray, known: int, weight: float = weight) -> tuple[int, float]:
        how = (cols, diagonal, linkage, lowest, target, kept, known)
        result: tuple[int, float] = merge(features, valid, *how, share, weight, piece, pairs, scores)
        return result

    done, deviation = run(values, UNSEEN)
    if done == OUT_OF_RANGE:
        values = _scale_to_safe_range(values, valid, image, cols)
        done, deviation = run(values, SAFE)
    unit = 1.0
    if done == TOO_ALIKE:
        values, unit = _centre(values, valid)
        done, deviation = run(values, CENTRED, weight / unit)
    return Merges(pairs[:done], scores[:done] * unit, deviation * unit)


def _scale_to_safe_range(values: np.ndarray, valid: np.ndarray, image: int, cols: int) -> np.ndarray:
    """Scale by a power of two, which changes no cosine, so that squares fit float32; refuse NaN and infinity."""
    values = np.where(valid[:, None], values, np.float32(0))
    check_finite(torch.from_numpy(values), image, cols)
    largest = np.abs(values).max()
    if largest == 0:
        return values
    return np.ldexp(values, -int(np.frexp(largest)[1]))


def _centre(values: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, float]:
    """Unit vectors less their mean, scaled by a power of two; and what a squared error of them is worth.

    Ward's rule does not see where the mean is. Patches that all look alike lose their differences in float32 dot
    products; without their common part they do not. What is below the rounding of the features themselves is nothing.
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
