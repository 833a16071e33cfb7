"""The combined source: split masks by DBSCAN on the features of their patches."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from regiontok._kernels import dbscan
from regiontok.batch import Features, PatchBatch, Valid, check_finite, flatten_valid
from regiontok.options import check_option
from regiontok.regions import Dropped, Regions

_UNSURE = 1e-5
"""Squared distances this close to eps squared are computed again in float64, since float32 may round across eps."""
_BLOCK = 48
"""Columns of the distance matrix that are computed at a time, and only as many rows as a region needs."""
_TINY = torch.finfo(torch.float32).tiny
_NOISE = 2**31
"""Labels of noise start here, so that noise sorts after all groups."""


def split_regions(
    features: Features,
    regions: Regions,
    *,
    eps: float = 0.7,
    min_samples: int = 3,
    split_min_patches: int = 10,
    noise: str = "own_region",
    valid: Valid | None = None,
) -> Regions:
    """Split each mask by DBSCAN on the unit-length features of its patches.

    Two patches are neighbours if their unit features are at most ``eps`` apart, which is a cosine of at least
    ``1 - eps**2 / 2`` (0.755 for 0.7). The labels of each mask equal those of scikit-learn on float64 features, also
    under autocast; only pairs at a distance of exactly ``eps`` depend on rounding. Masks with fewer than
    ``split_min_patches`` patches, regions of unassigned patches and fallback regions are not split.

    Args:
        features: ``(B, rows, cols, D)`` floating point, or a list of ``(rows, cols, D)``, of any norm.
        regions: Regions of masks, from `MaskDownsampler` or `Regions.from_masks`.
        eps: Greatest distance between neighbours, in ``(0, 2]``.
        min_samples: Number of neighbours in the same mask, including the patch, that make a patch the core of a group.
        split_min_patches: Masks with fewer patches are not split.
        noise: Patches in no group: ``own_region`` makes them one region per mask, ``single_patches`` one region each,
            ``drop`` leaves them out. A mask without a group is then listed in ``dropped``, and an image without a
            region gets one of all its valid patches.
        valid: Valid patches, for such a region; all by default.

    Returns:
        `Regions` with the ``mask_index`` and ``score`` of their masks, sorted by first core patch, noise last.

    Raises:
        ShapeError: Features and regions on different grids.
        DTypeError, ValueRangeError: An invalid option, or features that are not finite.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat_interleave(6, 0).reshape(1, 2, 6, 2)
        >>> one_mask = Regions.from_masks([torch.ones(1, 2, 6, dtype=torch.bool)])
        >>> split_regions(features, one_mask).labels()
        tensor([[[0, 0, 0, 0, 0, 0],
                 [1, 1, 1, 1, 1, 1]]])

    Source:
        Supplement A.1: metric, eps, min_samples, masks of at least 10 patches, "the normalized patch features". We read
        "normalized" as unit length: at any other scale eps would leave almost only noise. Noise is our choice.
    """
    eps, min_samples = check_option("eps", eps), check_option("min_samples", min_samples)
    split_min_patches, noise = check_option("split_min_patches", split_min_patches), check_option("noise", noise)
    batch = PatchBatch.of(features)
    batch.check_grids("regions", regions.grids)
    label = _cluster(batch, regions, eps, min_samples, split_min_patches).to(regions.device)
    if noise == "own_region":
        label = torch.where(label < 0, _NOISE, label)
    elif noise == "single_patches":
        label = torch.where(label < 0, _NOISE + regions.patch, label)
    return _regroup(regions, label, flatten_valid(valid, batch.shapes))


def _cluster(batch: PatchBatch, regions: Regions, eps: float, min_samples: int, split_min_patches: int) -> Tensor:
    """Return the group of each membership within its region, ``(M,)``; -1 for noise."""
    patch, region, image_of = (tensor.cpu().numpy() for tensor in (regions.patch, regions.region, regions.image))
    starts = np.append(regions.starts.cpu().numpy(), len(patch))
    is_split = (np.diff(starts) >= split_min_patches) & (regions.mask_index.cpu().numpy() >= 0)
    last_patch = patch[starts[1:] - 1][region]  # of the region of each membership
    label = np.zeros(len(patch), np.int64)
    bounds = np.searchsorted(image_of, np.arange(len(batch) + 1))
    for image, features in enumerate(batch.split(batch.values)):
        first, end = bounds[image], bounds[image + 1]
        members = slice(starts[first], starts[end])
        chosen = is_split[region[members]]
        reach = np.full(batch.sizes[image], -1)  # the last patch that shares a region with each patch; -1 for none
        np.maximum.at(reach, patch[members][chosen], last_patch[members][chosen])
        dbscan.split(
            _find_neighbours(features, reach, eps, image, batch.shapes[image][1]),
            patch[members],
            starts[first : end + 1] - starts[first],
            is_split[first:end],
            min_samples,
            label[members],
        )
    return torch.from_numpy(label)


def _find_neighbours(features: Tensor, reach: np.ndarray, eps: float, image: int, cols: int) -> np.ndarray:
    """Return which patches (rows) of an image are neighbours of an earlier one (columns), ``(P, P)`` uint8.

    Only pairs that share a region are computed.
    """
    near = np.zeros((len(reach), len(reach)), np.uint8)
    if reach.max() < 0:
        return near
    is_used = torch.from_numpy(reach >= 0).to(features.device)
    values, norm = _scale(features.detach().float(), is_used, image, cols)
    exact = values if values.device.type == "cpu" else values.double()  # GPUs may round float32 products to TF32
    products = exact.new_empty(near.shape)
    with torch.autocast(values.device.type, enabled=False):
        for start in range(0, len(values), _BLOCK):
            end = int(reach[start : start + _BLOCK].max()) + 1
            if end > start:  # tall, narrow blocks are faster than flat, wide ones
                block = products[start:end, start : start + _BLOCK]
                torch.mm(exact[start:end], exact[start : start + _BLOCK].T, out=block)
    if dbscan.find_near(products.float().cpu().numpy(), norm.cpu().numpy(), reach, eps**2, _UNSURE, near):
        unsure = np.argwhere(near == dbscan.UNSURE)
        for pairs in np.split(unsure, range(4096, len(unsure), 4096)):
            first, second = (
                (values[index] / norm[index, None].clamp(min=_TINY)).double()
                for index in torch.from_numpy(pairs).to(values.device).T
            )
            distance = (first - second).square().sum(1)
            near[pairs[:, 0], pairs[:, 1]] = (distance <= eps**2).cpu().numpy()
    return near


def _scale(values: Tensor, is_used: Tensor, image: int, cols: int) -> tuple[Tensor, Tensor]:
    """Return features ``(P, D)`` and their norms, scaled if their squares would leave the range of float32."""
    norm = values.norm(dim=1)
    if ((norm > 1e-15) & (norm < 1e15))[is_used].all():
        return values, norm
    values = torch.where(is_used[:, None], values, 0)
    check_finite(values, image, cols)
    values = values / values.abs().amax(1, keepdim=True).clamp(min=_TINY)
    return values, values.norm(dim=1)


def _regroup(regions: Regions, label: Tensor, valid: Tensor | None) -> Regions:
    """Return regions of the memberships with the same region and label, without those labelled -1."""
    chosen = (label >= 0).nonzero().squeeze(1)
    patch, parent, label = regions.patch[chosen], regions.region[chosen], label[chosen]
    image = regions.image[parent]
    is_lost = torch.bincount(parent, minlength=len(regions)) == 0
    is_empty = torch.bincount(image, minlength=len(regions.grids)) == 0
    for number in is_empty.nonzero().squeeze(1).tolist():
        sizes = regions.grids.prod(1).tolist()
        shown = torch.ones(sizes[number], dtype=torch.bool) if valid is None else valid.split(sizes)[number]
        all_valid = shown.nonzero().squeeze(1).to(patch)
        patch, image = torch.cat([patch, all_valid]), torch.cat([image, torch.full_like(all_valid, number)])
        parent = torch.cat([parent, torch.full_like(all_valid, -1)])
        label = torch.cat([label, torch.zeros_like(all_valid)])
    order = torch.argsort((parent << 33) + label, stable=True)  # labels of noise are below 2**33
    if is_empty.any():
        order = order[torch.argsort(image[order], stable=True)]
    patch, parent, image, label = patch[order], parent[order], image[order], label[order]
    begins = torch.ones(len(patch), dtype=torch.bool, device=patch.device)
    begins[1:] = (parent[1:] != parent[:-1]) | (label[1:] != label[:-1]) | (image[1:] != image[:-1])
    origin = parent[begins]
    dropped = tuple(
        Dropped(number, index, "all its patches are noise")
        for number, index in zip(regions.image[is_lost].tolist(), regions.mask_index[is_lost].tolist(), strict=True)
    )
    return replace(
        regions,
        patch=patch,
        region=begins.cumsum(0) - 1,
        image=image[begins],
        mask_index=torch.where(origin < 0, -1, regions.mask_index[origin]),
        score=torch.where(origin < 0, torch.nan, regions.score[origin]),
        fallback=regions.fallback | is_empty,
        dropped=regions.dropped + dropped,
    )
