"""Rules that reduce the patches of a clip to a number of tokens; the peers are implemented here from their papers.

Each rule is a function from unit features ``(frames, rows, cols, D)`` and a number of tokens to `Tokens`, or None if it
cannot make so few.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from sklearn.cluster import KMeans
from torch import Tensor

from benchmarks.partition import tome
from regiontok import UnionFindClusterer
from regiontok.evaluation.partition import grid_regions

_LINKED = 0.8
"""Cosine above which TSTM links a token with the previous frame."""
_NEIGHBOURS = 7
"""Neighbours of the density of DPC-kNN."""
_QUADTREE_ROOTS = 3
"""Cells per side of the coarsest level of the quadtree."""


class Tokens(NamedTuple):
    """Tokens of a clip.

    Attributes:
        labels: ``(frames, rows, cols)`` int64: the token that stands for each patch.
        members: ``(frames, rows, cols)`` bool: patches in the mean of their token; others were dropped.
    """

    labels: Tensor
    members: Tensor


Rule = Callable[[Tensor, int], Tokens | None]


def _all(labels: Tensor) -> Tokens:
    return Tokens(labels, torch.ones(labels.shape, dtype=torch.bool))


def _number(labels: Tensor) -> Tensor:
    return labels.unique(return_inverse=True)[1]


def space_time(features: Tensor, count: int, *, motion: int, max_frames: int | None = None) -> Tokens:
    """Cluster with Ward linkage in space and time."""
    clusterer = UnionFindClusterer(
        linkage="ward", num_regions=count, motion=motion, max_frames=max_frames, num_threads=1
    )
    return _all(clusterer(features[None]).labels()[0])


def per_frame(features: Tensor, count: int) -> Tokens:
    """Cluster each frame with Ward linkage, and share the tokens equally."""
    frames = len(features)
    budgets = [count // frames + (frame < count % frames) for frame in range(frames)]
    labels = UnionFindClusterer(linkage="ward", num_threads=1)(features, num_regions=budgets).labels()
    first = torch.tensor([0, *budgets[:-1]]).cumsum(0)
    return _all(labels + first[:, None, None])


def _select_frames(features: Tensor, count: int, step: int) -> Tokens:
    """Cluster every ``step``-th frame; its tokens stand for the frames around it."""
    centres = torch.arange(step // 2, len(features), step)
    sampled = per_frame(features[centres], count)
    nearest = (torch.arange(len(features))[:, None] - centres).abs().argmin(1)
    members = torch.zeros(features.shape[:3], dtype=torch.bool)
    members[centres] = True
    return Tokens(sampled.labels[nearest], members)


def sampling(features: Tensor, count: int) -> Tokens:
    """Select every second, fourth or eighth frame, whichever has the least error, and cluster it with Ward linkage."""
    options = [_select_frames(features, count, step) for step in (2, 4, 8)]
    return min(options, key=lambda tokens: squared_error(features, tokens))


def grid(features: Tensor, count: int) -> Tokens:
    """Divide each frame into the cells of a regular grid."""
    cells = grid_regions(torch.ones(features.shape[1:3], dtype=torch.bool), count // len(features)).labels()
    per_grid = int(cells.max()) + 1
    return _all(cells + per_grid * torch.arange(len(features))[:, None, None])


def pairs(features: Tensor, count: int) -> Tokens:
    """Average pairs of frames, and cluster each pair with Ward linkage."""
    means = features.unflatten(0, (-1, 2)).mean(1)
    return _all(per_frame(means, count).labels.repeat_interleave(2, 0))


def tome_pairs(features: Tensor, count: int) -> Tokens:
    """Merge the patches of each pair of frames by bipartite matching (ToMe)."""
    share = 2 * count // len(features)
    labels = [torch.from_numpy(tome(pair.flatten(0, 1), share)) for pair in features.split(2)]
    stacked = torch.stack([one + number * share for number, one in enumerate(labels)])
    return _all(_number(stacked.reshape(features.shape[:3])))


def evs(features: Tensor, count: int) -> Tokens | None:
    """Keep the first frame and the patches that differ most from the previous frame.

    After "Efficient Video Sampling" (Bagrov et al., 2025). The last kept patch at a place stands for dropped ones.
    """
    frames, rows, cols, _ = features.shape
    if count < rows * cols:
        return None
    change = 1 - (features[1:] * features[:-1]).sum(-1)
    kept = torch.zeros(frames, rows, cols, dtype=torch.bool)
    kept[0] = True
    kept[1:].view(-1)[change.flatten().argsort(descending=True, stable=True)[: count - rows * cols]] = True
    times = torch.where(kept, torch.arange(frames)[:, None, None], 0).cummax(0).values
    return Tokens(_number(times * rows * cols + torch.arange(rows * cols).reshape(rows, cols)), kept)


def tstm(features: Tensor, count: int) -> Tokens:
    """Average trees of tokens that are linked over time, and reduce the trees of each frame by DPC-kNN.

    After "FlashVID" (Fan et al., 2026), without its selection by attention. A token is linked with the most similar one
    of the previous frame, if their cosine is high and the links do not leave fewer trees than tokens.
    """
    frames, size = len(features), features.shape[1] * features.shape[2]
    flat = features.flatten(1, 2)
    similarity, match = (flat[1:] @ flat[:-1].transpose(1, 2)).max(2)
    linked = similarity > _LINKED
    most = frames * size - count
    if int(linked.sum()) > most:
        linked &= similarity > similarity.flatten().sort(descending=True).values[most]
    roots = torch.arange(frames * size).reshape(frames, size).clone()
    for frame in range(1, frames):  # each frame needs the roots of the previous one
        roots[frame] = torch.where(linked[frame - 1], roots[frame - 1][match[frame - 1]], roots[frame])
    trees = _number(roots)
    means = _means(flat.flatten(0, 1), trees.flatten())
    num_trees = len(means)
    if num_trees <= count:
        return _all(trees.reshape(features.shape[:3]))
    first = torch.zeros(num_trees, dtype=torch.int64)
    first[trees.flatten()] = roots.flatten() // size
    tokens, start = torch.empty(num_trees, dtype=torch.int64), 0
    sizes = torch.bincount(first, minlength=frames)
    ends = (sizes.cumsum(0) * count / num_trees).round().long()
    for frame in sizes.nonzero()[:, 0].tolist():
        share = max(1, int(ends[frame]) - start)
        tokens[first == frame] = start + _density_peaks(means[first == frame], share)
        start += share
    return _all(tokens[trees].reshape(features.shape[:3]))


def _density_peaks(points: Tensor, count: int) -> Tensor:
    """Assign points to the ``count`` with the highest product of density and distance to a denser point (DPC-kNN)."""
    distance = torch.cdist(points, points)
    nearest = distance.topk(min(_NEIGHBOURS, len(points)), largest=False).values
    density = (-nearest.square().mean(1)).exp()
    denser = density[None] > density[:, None]
    gap = torch.where(denser, distance, torch.inf).min(1).values
    gap = torch.where(gap.isinf(), distance.max(1).values, gap)
    centres = (density * gap).argsort(descending=True, stable=True)[:count]
    nearest_centre = distance[:, centres].argmin(1)
    nearest_centre[centres] = torch.arange(len(centres))
    return nearest_centre


def sttm(features: Tensor, count: int) -> Tokens | None:
    """Merge cells of a quadtree in each frame, and equal cells of consecutive frames, above a cosine.

    After "Multi-Granular Spatio-Temporal Token Merging" (Hyun et al., 2025). Both thresholds, 0.25 apart as in the
    paper, are searched for the number of tokens; None if even the lowest leave more tokens.
    """
    low, high = -1.0, 1.0
    best = None
    for _ in range(12):
        middle = (low + high) / 2
        labels = _quadtree(features, middle)
        if int(labels.max()) + 1 <= count:
            best, low = labels, middle
        else:
            high = middle
    return None if best is None else _all(best)


def _quadtree(features: Tensor, threshold: float) -> Tensor:
    frames, rows, cols, _ = features.shape
    index = torch.arange(frames * rows * cols).reshape(frames, rows, cols)
    labels, size = index.clone(), 1
    whole, means = torch.ones(frames, rows, cols, dtype=torch.bool), features
    while rows // size % 2 == 0 and cols // size % 2 == 0 and rows // size > _QUADTREE_ROOTS:
        size *= 2
        children = means.unfold(1, 2, 2).unfold(2, 2, 2).flatten(4)  # (frames, rows, cols, D, 4)
        means = children.mean(-1)
        similar = torch.cosine_similarity(children, means[..., None], dim=3).min(-1).values >= threshold
        whole = similar & whole.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3).all(-1)
        large = whole.repeat_interleave(size, 1).repeat_interleave(size, 2)
        corner = index[:, ::size, ::size].repeat_interleave(size, 1).repeat_interleave(size, 2)
        labels = torch.where(large, corner, labels)
    node_means = _means(features.flatten(0, 2), _number(labels).flatten())[_number(labels)]
    for frame in range(1, frames):  # a cell continues the one of the previous frame that contains it
        similar = torch.cosine_similarity(node_means[frame], node_means[frame - 1], dim=-1) >= threshold - 0.25
        own, previous = labels[frame], labels[frame - 1]
        number = _number(own)
        contained = torch.zeros(int(number.max()) + 1).index_add_(0, number.flatten(), similar.flatten().float())
        sizes = torch.bincount(number.flatten())
        target = torch.full((len(sizes),), -1, dtype=torch.int64).scatter_reduce(
            0, number.flatten(), previous.flatten(), "amax", include_self=False
        )
        lowest = torch.full((len(sizes),), -1, dtype=torch.int64).scatter_reduce(
            0, number.flatten(), previous.flatten(), "amin", include_self=False
        )
        joins = (contained == sizes) & (target == lowest)
        labels[frame] = torch.where(joins[number], target[number], own)
    return _number(labels)


def k_means(features: Tensor, count: int) -> Tokens:
    """Cluster with scikit-learn's k-means and one start; clusters are connected neither in space nor in time."""
    labels = KMeans(count, n_init=1, max_iter=20, random_state=0).fit_predict(features.flatten(0, 2).numpy())
    return _all(torch.from_numpy(labels).long().reshape(features.shape[:3]))


def _means(values: Tensor, labels: Tensor) -> Tensor:
    count = int(labels.max()) + 1
    sums = torch.zeros(count, values.shape[1]).index_add_(0, labels, values)
    return sums / torch.bincount(labels, minlength=count).clamp(min=1)[:, None]


def squared_error(features: Tensor, tokens: Tokens) -> float:
    """Return the squared error of patches to their tokens, as a fraction of the deviation from the mean of the clip."""
    flat, labels, members = features.flatten(0, 2), tokens.labels.flatten(), tokens.members.flatten()
    count = int(labels.max()) + 1
    sums = torch.zeros(count, flat.shape[1]).index_add_(0, labels[members], flat[members])
    means = sums / torch.bincount(labels[members], minlength=count).clamp(min=1)[:, None]
    return float((flat - means[labels]).square().sum() / (flat - flat.mean(0)).square().sum())


RULES: dict[str, Rule] = {
    "frame sampling, Ward": sampling,
    "grid per frame": grid,
    "Ward per frame": per_frame,
    "space-time Ward, motion 0": partial(space_time, motion=0),
    "space-time Ward, motion 2": partial(space_time, motion=2),
    "pairs of frames, Ward": pairs,
    "EVS": evs,
    "TSTM, DPC-kNN": tstm,
    "STTM": sttm,
    "ToMe on pairs": tome_pairs,
}
