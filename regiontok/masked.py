"""Masks with a budget: Ward's criterion on features that are extended by the masks of each patch.

The squared distance of two regions is the squared distance of their mean unit features, plus ``mask_weight`` squared
times the squared distance of their mean memberships (1 for each mask that contains a patch). A weight of 0 ignores the
masks. With an infinite weight, regions of different masks merge only when no other merge is left.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from regiontok._kernels.labels import label
from regiontok._kernels.masked import add_up, join
from regiontok._kernels.merge import SMALLEST, WARD
from regiontok._merging import Merges, merge_patches
from regiontok.batch import Features, PatchBatch, check_finite
from regiontok.regions import Regions

_INFINITE = 1e9
"""From this weight on, the masks leave no digit of the features in float64, so the weight acts as infinite."""


class Groups(NamedTuple):
    """The masks of the patches of one image, as pairs of a patch and a mask.

    Attributes:
        patch: ``(memberships,)`` int64.
        group: ``(memberships,)`` int64: number of the mask.
        num_masks: Number of masks.
    """

    patch: np.ndarray
    group: np.ndarray
    num_masks: int


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
    *,
    frame: int | None = None,
    motion: int = 0,
    max_frames: int | None = None,
) -> Merges:
    """Merge the patches of one image or clip until ``target`` regions are left.

    Neighbouring regions merge first. Regions without a neighbour merge afterwards, so that every target is reached.

    Args:
        values: ``(P, D)`` float32.
        valid: ``(P,)`` bool.
        cols: Columns of the grid.
        diagonal: Whether patches that share only a corner are neighbours.
        groups: The masks.
        weight: Weight of the memberships, from 0 to infinity.
        target: Number of regions.
        image: Number of the image, for error messages.
        frame: Patches of a frame of a clip; None for an image.
        motion: Neighbours in the next frame; see the clusterer.
        max_frames: Frames after which no patches are neighbours; see the clusterer.
    """
    weight = np.inf if weight >= _INFINITE else weight
    share = _memberships(len(valid), groups, weight)
    merges = merge_patches(
        values,
        valid,
        cols,
        diagonal,
        WARD,
        -np.finfo(np.float64).max,
        target,
        share=share.copy(),
        weight=weight * weight if share.size else 0.0,
        piece=_pieces(len(valid), groups) if np.isinf(weight) else None,
        image=image,
        frame=frame,
        motion=motion,
        max_frames=max_frames,
    )
    if int(valid.sum()) - len(merges.pairs) == target:
        return merges
    labels = np.empty(len(valid), np.int64)
    num_regions = label(valid, merges.pairs, len(merges.pairs), labels)
    inside = np.flatnonzero(labels >= 0)
    extended = _extend(values, valid, share, weight)
    sums = np.zeros((num_regions, extended.shape[1]))
    add_up(extended, inside, labels[inside], sums)
    first_patch = np.full(num_regions, len(labels), np.int64)
    np.minimum.at(first_patch, labels[inside], inside)
    touching = np.zeros((num_regions, num_regions), np.bool_)
    pairs, growth = _join(sums, np.bincount(labels[inside], minlength=num_regions), touching, target)
    return Merges(
        np.concatenate([merges.pairs, first_patch[pairs].astype(np.int32)]),
        np.concatenate([merges.scores, -growth]),
        merges.deviation,
    )


def merge_masks(features: Features, masks: Regions, budgets: list[int], *, mask_weight: float) -> Regions:
    """Merge whole masks until each image has at most as many regions as its budget.

    Masks that touch or overlap merge first. Regions keep the order of their first masks.

    Args:
        features: ``(B, rows, cols, D)`` or a list of ``(rows, cols, D)``.
        masks: The masks on the grid, from `MaskDownsampler`.
        budgets: Greatest number of regions of each image.
        mask_weight: See `regiontok.masked`.

    Returns:
        `Regions` without scores; regions of a single mask have its ``mask_index``.

    Raises:
        ShapeError: Features and masks on different grids.
    """
    batch = PatchBatch.of(features)
    batch.check_grids("masks", masks.grids)
    weight = np.inf if mask_weight >= _INFINITE else mask_weight
    union = torch.arange(len(masks))
    start = 0
    for image, (values, groups) in enumerate(zip(batch.split(batch.values), groups_of(masks), strict=True)):
        end = start + groups.num_masks
        if groups.num_masks > budgets[image]:
            array = values.detach().to("cpu", torch.float32).contiguous().numpy()
            merged = _merge_groups(array, groups, batch.shapes[image], weight, budgets[image], image)
            union[start:end] = torch.from_numpy(merged + start)
        start = end
    return _unite(masks, union.to(masks.device))


def _merge_groups(
    values: np.ndarray, groups: Groups, shape: tuple[int, ...], weight: float, target: int, image: int
) -> np.ndarray:
    """Return for each mask of an image the number of the region that it becomes part of."""
    valid = np.zeros(len(values), np.bool_)
    valid[groups.patch] = True
    check_finite(torch.from_numpy(np.where(valid[:, None], values, np.float32(0))), image, shape[-1])
    extended = _extend(values, valid, _memberships(len(values), groups, weight), weight)
    sums = np.zeros((groups.num_masks, extended.shape[1]))
    add_up(extended, groups.patch, groups.group, sums)
    members = np.bincount(groups.group, minlength=groups.num_masks)
    pairs, _ = _join(sums, members, _find_touching(groups, shape), target)
    labels = np.empty(groups.num_masks, np.int64)
    label(np.ones(groups.num_masks, np.bool_), pairs, len(pairs), labels)
    return labels


def _memberships(patches: int, groups: Groups, weight: float) -> np.ndarray:
    """Return the memberships of each patch, ``(P, masks)`` float32 of 0 and 1.

    There are no columns for weights of 0 and infinity. An infinite weight is applied through `_pieces`.
    """
    share = np.zeros((patches, groups.num_masks if 0 < weight < np.inf else 0), np.float32)
    if share.shape[1]:
        share[groups.patch, groups.group] = 1
    return share


def _extend(values: np.ndarray, valid: np.ndarray, share: np.ndarray, weight: float) -> np.ndarray:
    """Return unit features and weighted memberships, ``(P, D + masks)`` float32; 0 for invalid patches."""
    shown = np.where(valid[:, None], values, np.float32(0))
    shown /= max(np.abs(shown).max(), np.float32(SMALLEST))  # keeps the squares within float32
    norm = np.sqrt(np.einsum("pd,pd->p", shown, shown))[:, None]
    weighted = share * np.float32(weight) if share.size else share
    return np.concatenate([shown / np.where(norm == 0, 1, norm), weighted], 1)


def _join(sums: np.ndarray, members: np.ndarray, touching: np.ndarray, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Merge groups until ``target`` are left; return the merged pairs ``(M, 2)`` and the growths of the error."""
    groups = len(sums)
    first, second, growth = (np.empty(groups, kind) for kind in (np.int64, np.int64, np.float64))
    merges = join(sums, members, touching, target, first, second, growth)
    return np.stack([first[:merges], second[:merges]], 1), growth[:merges]


def _pieces(patches: int, groups: Groups) -> np.ndarray:
    """Return ``(P,)`` int32: a number that is equal for patches with the same masks."""
    member = np.zeros((patches, groups.num_masks), np.bool_)
    member[groups.patch, groups.group] = True
    packed = np.packbits(member, axis=1)
    _, piece = np.unique(packed.view(np.dtype((np.void, packed.shape[1]))).ravel(), return_inverse=True)
    return piece.astype(np.int32)


def _find_touching(groups: Groups, shape: tuple[int, ...]) -> np.ndarray:
    """Return ``(masks, masks)`` bool: masks that share a patch or have patches side by side, in space or in time."""
    member = np.zeros((groups.num_masks, math.prod(shape)), np.bool_)
    member[groups.group, groups.patch] = True
    grid = member.reshape(groups.num_masks, *shape)
    near = grid.copy()
    for axis in range(1, grid.ndim):
        later, earlier = np.moveaxis(near, axis, 0), np.moveaxis(grid, axis, 0)
        later[1:] |= earlier[:-1]
    meets = near.reshape(groups.num_masks, -1).astype(np.float32) @ member.T.astype(np.float32) > 0
    return meets | meets.T


def _unite(masks: Regions, union: Tensor) -> Regions:
    """Return the unions of masks with the same number in ``union (R,)``."""
    first_mask, region = union.unique(return_inverse=True)
    size = int(masks.grids.prod(1).max())
    key = (region[masks.region] * size + masks.patch).unique()  # counts a patch of two united masks once
    is_single = torch.bincount(region, minlength=len(first_mask)) == 1
    return Regions(
        patch=key % size,
        region=key // size,
        image=masks.image[first_mask],
        mask_index=torch.where(is_single, masks.mask_index[first_mask], -1),
        score=torch.where(is_single, masks.score[first_mask], torch.nan),
        grids=masks.grids,
        fallback=masks.fallback,
        dropped=masks.dropped,
    )
