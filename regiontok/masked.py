"""Masks at an exact budget: Ward's rule on features that are extended by each patch's masks.

The squared distance of two regions is that of their mean unit features, plus ``mask_weight`` squared times that of
their mean memberships (1 for each mask that a patch is in). A weight of 0 ignores the masks; with an infinite weight
regions of two masks merge only where nothing else can.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from regiontok._checks import Features, check_finite, flatten_features
from regiontok._kernels.labels import label
from regiontok._kernels.masked import add_up, join
from regiontok._kernels.merge import SMALLEST, WARD
from regiontok._merging import merge_patches
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from regiontok.regions import Regions

_INFINITE = 1e9
"""A weight of which the square leaves no digit of the features' growth in float64, and so acts as infinity."""


class Groups(NamedTuple):
    """Which masks the patches of one image are in: pairs of a patch and the number of a mask.

    Attributes:
        patch: ``(memberships,)`` int64.
        group: ``(memberships,)`` int64.
        masks: Number of masks.
    """

    patch: np.ndarray
    group: np.ndarray
    masks: int


def groups_of(masks: Regions) -> list[Groups]:
    """Return the memberships of each image of a batch of masks on the grid."""
    patch, region, image = (array.cpu().numpy() for array in (masks.patch, masks.region, masks.image))
    bounds = np.searchsorted(image, np.arange(len(masks.grids) + 1))
    starts = np.append(masks.starts.cpu().numpy(), len(patch))
    return [
        Groups(patch[starts[a] : starts[b]], region[starts[a] : starts[b]] - a, int(b - a)) for a, b in pairwise(bounds)
    ]


def merge_in_masks(
    values: np.ndarray,
    valid: np.ndarray,
    cols: int,
    diagonal: bool,
    groups: Groups,
    weight: float,
    target: int,
    image: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Merge the patches of one image until ``target`` regions are left.

    Patches that touch merge first; regions that touch no other merge after all others, so that every number is reached.

    Args:
        values: ``(P, D)`` float32.
        valid: ``(P,)`` bool.
        cols: Columns of the grid.
        diagonal: Whether patches that touch at a corner are neighbours.
        groups: The masks.
        weight: Of a membership, from 0 to infinity.
        target: Number of regions.
        image: Number of the image, for errors.

    Returns:
        ``pairs (m, 2)`` and scores ``(m,)`` of the merges, as ``regiontok._kernels.merge.merge`` writes them.
    """
    share = _memberships(len(valid), groups, weight)
    piece = _pieces(len(valid), groups) if np.isinf(weight) else None
    lowest, grid = -np.finfo(np.float64).max, (cols, diagonal)
    merges = merge_patches(
        values,
        valid,
        *grid,
        WARD,
        lowest,
        target,
        share=share.copy(),
        weight=weight * weight if share.size else 0.0,
        piece=piece,
        image=image,
    )
    pairs, scores = merges.pairs, merges.scores
    if int(valid.sum()) - len(pairs) == target:
        return pairs, scores
    labels = np.empty(len(valid), np.int64)
    regions = label(valid, pairs, len(pairs), labels)
    inside = np.flatnonzero(labels >= 0)
    extended = _extend(values, valid, share, weight)
    sums = np.zeros((regions, extended.shape[1]))
    add_up(extended, inside, labels[inside], sums)
    first = np.full(regions, len(labels), np.int64)
    np.minimum.at(first, labels[inside], inside)
    touching = np.zeros((regions, regions), np.bool_)
    more, growth = _join(sums, np.bincount(labels[inside], minlength=regions), touching, target)
    return np.concatenate([pairs, first[more].astype(np.int32)]), np.concatenate([scores, -growth])


def merge_masks(features: Features, masks: Regions, budgets: list[int], *, mask_weight: float) -> Regions:
    """Merge whole masks until at most ``budgets`` regions are left in each image.

    Masks that touch or overlap merge first. Regions are in the order of their first masks.

    Args:
        features: ``(B, rows, cols, D)`` or a list of ``(rows, cols, D)``.
        masks: The masks on the grid, from `MaskDownsampler`.
        budgets: Greatest number of regions of each image.
        mask_weight: See `regiontok.masked`.

    Returns:
        `Regions` without scores, and with the ``mask_index`` of regions that are one mask.

    Raises:
        ShapeError: Features of other grids than the masks'.
    """
    flat = flatten_features(features)
    if not torch.equal(flat.grids, masks.grids):
        raise ShapeError(f"features must have the masks' grids, {masks.grids.tolist()}; got {flat.grids.tolist()}.")
    sizes = flat.grids.prod(1).tolist()
    number = torch.arange(len(masks))
    start = 0
    for image, (values, groups) in enumerate(zip(flat.values.split(sizes), groups_of(masks), strict=True)):
        if groups.masks > budgets[image]:
            arrays = values.detach().to("cpu", torch.float32).contiguous().numpy()
            valid = np.zeros(len(arrays), np.bool_)
            valid[groups.patch] = True
            cols = int(flat.grids[image, 1])
            check_finite(torch.from_numpy(np.where(valid[:, None], arrays, np.float32(0))), image, cols)
            extended = _extend(arrays, valid, _memberships(len(arrays), groups, mask_weight), mask_weight)
            sums = np.zeros((groups.masks, extended.shape[1]))
            add_up(extended, groups.patch, groups.group, sums)
            members = np.bincount(groups.group, minlength=groups.masks)
            pairs, _ = _join(sums, members, _touching(groups, len(arrays), cols), budgets[image])
            own = np.empty(groups.masks, np.int64)
            label(np.ones(groups.masks, np.bool_), pairs, len(pairs), own)
            number[start : start + groups.masks] = torch.from_numpy(own + start)
        start += groups.masks
    return _union(masks, number.to(masks.device))


def check_weight(mask_weight: object) -> float:
    """Return a valid weight of masks, from 0 to infinity."""
    if isinstance(mask_weight, bool) or not isinstance(mask_weight, int | float | np.number):
        raise DTypeError(f"mask_weight must be a number; got {mask_weight!r}.")
    if not mask_weight >= 0:
        raise ValueRangeError(f"mask_weight must be at least 0; got {mask_weight}.")
    return float(mask_weight) if mask_weight < _INFINITE else float("inf")


def _memberships(patches: int, groups: Groups, weight: float) -> np.ndarray:
    """Return the memberships of each patch, ``(P, masks)`` float32 of 0 and 1.

    Without columns for weights of 0 and infinity. An infinite weight acts by parts of the image (`_pieces`) instead.
    """
    share = np.zeros((patches, groups.masks if 0 < weight < np.inf else 0), np.float32)
    if share.shape[1]:
        share[groups.patch, groups.group] = 1
    return share


def _extend(values: np.ndarray, valid: np.ndarray, share: np.ndarray, weight: float) -> np.ndarray:
    """Return unit features beside weighted memberships, ``(P, D + masks)`` float32; 0 where not valid."""
    shown = np.where(valid[:, None], values, np.float32(0))
    shown /= max(np.abs(shown).max(), np.float32(SMALLEST))  # so that squares fit float32
    norm = np.sqrt(np.einsum("pd,pd->p", shown, shown))[:, None]
    weighted = share * np.float32(weight) if share.size else share
    return np.concatenate([shown / np.where(norm == 0, 1, norm), weighted], 1)


def _join(sums: np.ndarray, members: np.ndarray, touching: np.ndarray, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Merge groups until ``target`` are left; return pairs ``(M, 2)`` of their numbers, and growths of the error."""
    groups = len(sums)
    first, second, growth = (np.empty(groups, kind) for kind in (np.int64, np.int64, np.float64))
    merges = join(sums, members, touching, target, first, second, growth)
    return np.stack([first[:merges], second[:merges]], 1), growth[:merges]


def _pieces(patches: int, groups: Groups) -> np.ndarray:
    """Return a number per patch that is the same for patches of the same masks, ``(P,)`` int32."""
    member = np.zeros((patches, groups.masks), np.bool_)
    member[groups.patch, groups.group] = True
    packed = np.packbits(member, axis=1)
    _, piece = np.unique(packed.view(np.dtype((np.void, packed.shape[1]))).ravel(), return_inverse=True)
    return piece.astype(np.int32)


def _touching(groups: Groups, patches: int, cols: int) -> np.ndarray:
    """Return which masks share a patch or have patches side by side, ``(masks, masks)`` bool."""
    member = np.zeros((groups.masks, patches), np.bool_)
    member[groups.group, groups.patch] = True
    grid = member.reshape(groups.masks, -1, cols)
    near = grid.copy()
    near[:, 1:] |= grid[:, :-1]
    near[:, :, 1:] |= grid[:, :, :-1]
    meets = near.reshape(groups.masks, -1).astype(np.float32) @ member.T.astype(np.float32) > 0
    return meets | meets.T


def _union(masks: Regions, number: Tensor) -> Regions:
    """Return regions that are unions of masks of the same number."""
    kept, region = number.unique(return_inverse=True)
    size = int(masks.grids.prod(1).max())
    key = (region[masks.region] * size + masks.patch).unique()  # a patch in two masks of a union counts once
    alone = torch.bincount(region, minlength=len(kept)) == 1
    return Regions(
        patch=key % size,
        region=key // size,
        image=masks.image[kept],
        mask_index=torch.where(alone, masks.mask_index[kept], -1),
        score=torch.where(alone, masks.score[kept], torch.nan),
        grids=masks.grids,
        fallback=masks.fallback,
        dropped=masks.dropped,
    )
