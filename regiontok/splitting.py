"""The combined source: masks split where their patches' features fall into groups."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from regiontok._checks import (
    Features,
    Valid,
    check_choice,
    check_finite,
    check_integer,
    check_number,
    flatten_features,
    flatten_valid,
)
from regiontok._kernels import dbscan
from regiontok.choices import NOISES
from regiontok.errors import ShapeError
from regiontok.regions import Dropped, Regions

_UNSURE = 1e-5
"""Squared distances this close to eps squared are computed again in float64: float32 cannot tell their side."""
_BLOCK = 48
"""Columns of the distance matrix computed at a time: only as far down as a region reaches."""
_TINY = torch.finfo(torch.float32).tiny
_LAST = 2**31
"""Labels from here on are those of noise: after all others."""


def split_regions(
    features: Features,
    regions: Regions,
    *,
    eps: float = 0.7,
    min_samples: int = 3,
    min_patches: int = 10,
    noise: str = "own_region",
    valid: Valid | None = None,
) -> Regions:
    """Split each mask by DBSCAN on its patches' features at unit length.

    Two patches are near if their unit features are at most ``eps`` apart, which is a cosine of at least
    ``1 - eps**2 / 2`` (0.755 for 0.7). Labels equal scikit-learn's on features in float64, mask by mask, also under
    autocast; only pairs at exactly eps are told by rounding. Only masks of at least ``min_patches`` are split; regions
    of uncovered patches and fallback regions stay as they are.

    Args:
        features: ``(B, rows, cols, D)`` floating point, or a list of ``(rows, cols, D)``; any length.
        regions: The batch's regions of masks, from `MaskDownsampler` or `Regions.from_masks`.
        eps: Greatest distance between near patches, in ``(0, 2]``.
        min_samples: A patch with so many near patches in its mask, itself included, is the core of a group.
        min_patches: The least patches of a mask that is split.
        noise: Patches in no group: ``own_region`` makes one region of a mask's, ``single_patches`` one of each,
            ``drop`` leaves them out. A mask of noise alone is then named in ``dropped``, and an image left without a
            region gets one of all its patches.
        valid: Which patches may be in such a region; None for all.

    Returns:
        `Regions` with the masks' ``mask_index`` and ``score``, parts by their first core patch, noise last.

    Raises:
        ShapeError: Features of other grids than the regions'.
        DTypeError, ValueRangeError: An option that cannot be, or features that are not finite.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat_interleave(6, 0).reshape(1, 2, 6, 2)
        >>> one_mask = Regions.from_masks([torch.ones(1, 2, 6, dtype=torch.bool)])
        >>> split_regions(features, one_mask).labels()
        tensor([[[0, 0, 0, 0, 0, 0],
                 [1, 1, 1, 1, 1, 1]]])

    Source:
        Supplement A.1: metric, eps, min_samples, masks of at least 10 patches, "the normalized patch features". These
        must be of unit length: at any other scale eps would leave almost only noise. What becomes of noise is open.
    """
    check_splitting(eps, min_samples, min_patches, noise)
    flat = flatten_features(features)
    if not torch.equal(flat.grids, regions.grids):
        raise ShapeError(f"features must have the regions' grids, {regions.grids.tolist()}; got {flat.grids.tolist()}.")
    label = _label(flat.values, regions, eps, min_samples, min_patches).to(regions.device)
    if noise == "own_region":
        label = torch.where(label < 0, _LAST, label)
    elif noise == "single_patches":
        label = torch.where(label < 0, _LAST + regions.patch, label)
    return _regroup(regions, label, flatten_valid(valid, regions.grids))


def check_splitting(
    eps: float, min_samples: int, min_patches: int, noise: str, *, patches: str = "min_patches"
) -> None:
    """Refuse options of `split_regions` that cannot be; ``patches`` is what the caller calls ``min_patches``."""
    check_number("eps", eps, low=torch.finfo(torch.float32).tiny, high=2)
    check_integer("min_samples", min_samples)
    check_integer(patches, min_patches)
    check_choice("noise", noise, NOISES)


def _label(values: Tensor, regions: Regions, eps: float, min_samples: int, min_patches: int) -> Tensor:
    """``(M,)``: the part of its region that each membership is in, -1 for noise."""
    patch, region, image = (tensor.cpu().numpy() for tensor in (regions.patch, regions.region, regions.image))
    starts = np.append(regions.starts.cpu().numpy(), len(patch))
    splits = (np.diff(starts) >= min_patches) & (regions.mask_index.cpu().numpy() >= 0)
    last = patch[starts[1:] - 1][region]  # per membership, the last patch of its region
    label = np.zeros(len(patch), np.int64)
    first_region = np.searchsorted(image, np.arange(len(regions.grids) + 1))
    sizes = regions.grids.prod(1).tolist()
    for one, features in enumerate(values.split(sizes)):
        first, end = first_region[one], first_region[one + 1]
        members = slice(starts[first], starts[end])
        chosen = splits[region[members]]
        reach = np.full(sizes[one], -1)  # per patch, the last one it shares a region with; -1 for patches not needed
        np.maximum.at(reach, patch[members][chosen], last[members][chosen])
        near = _near(features, reach, eps, one, int(regions.grids[one, 1]))
        dbscan.split(
            near,
            patch[members],
            starts[first : end + 1] - starts[first],
            splits[first:end],
            min_samples,
            label[members],
        )
    return torch.from_numpy(label)


def _near(features: Tensor, reach: np.ndarray, eps: float, image: int, cols: int) -> np.ndarray:
    """Which of one image's patches (rows) are near an earlier one, ``(P, P)``; told of those that share a region."""
    near = np.zeros((len(reach), len(reach)), np.uint8)
    if reach.max() < 0:
        return near
    values, length = _measure(features.detach().float(), torch.from_numpy(reach >= 0).to(features.device), image, cols)
    exact = values if values.device.type == "cpu" else values.double()  # a GPU may be set to round float32's products
    products = exact.new_empty(near.shape)
    with torch.autocast(values.device.type, enabled=False):
        for start in range(0, len(values), _BLOCK):
            end = int(reach[start : start + _BLOCK].max()) + 1
            if end > start:  # tall and narrow is quicker than low and wide
                part = products[start:end, start : start + _BLOCK]
                torch.mm(exact[start:end], exact[start : start + _BLOCK].T, out=part)
    if dbscan.find_near(products.float().cpu().numpy(), length.cpu().numpy(), reach, eps**2, _UNSURE, near):
        unsure = np.argwhere(near == dbscan.UNSURE)
        for pairs in np.split(unsure, range(4096, len(unsure), 4096)):
            index = torch.from_numpy(pairs).to(values.device).T
            unit = [values[one] / length[one, None].clamp(min=_TINY) for one in index]
            distance = (unit[0].double() - unit[1].double()).square().sum(1)
            near[pairs[:, 0], pairs[:, 1]] = (distance <= eps**2).cpu().numpy()
    return near


def _measure(values: Tensor, wanted: Tensor, image: int, cols: int) -> tuple[Tensor, Tensor]:
    """Features ``(P, D)`` and their lengths; scaled, which changes no direction, where squares would leave float32."""
    length = values.norm(dim=1)
    if ((length > 1e-15) & (length < 1e15))[wanted].all():
        return values, length
    values = torch.where(wanted[:, None], values, 0)
    check_finite(values, image, cols)
    values = values / values.abs().amax(1, keepdim=True).clamp(min=_TINY)
    return values, values.norm(dim=1)


def _regroup(regions: Regions, label: Tensor, valid: Tensor | None) -> Regions:
    """Regions of the memberships of one region and label; those labelled -1 are left out."""
    kept = (label >= 0).nonzero().squeeze(1)
    patch, parent, label = regions.patch[kept], regions.region[kept], label[kept]
    image = regions.image[parent]
    lost = torch.bincount(parent, minlength=len(regions)) == 0
    emptied = torch.bincount(image, minlength=len(regions.grids)) == 0
    for one in emptied.nonzero().squeeze(1).tolist():
        sizes = regions.grids.prod(1).tolist()
        shown = torch.ones(sizes[one], dtype=torch.bool) if valid is None else valid.split(sizes)[one]
        whole = shown.nonzero().squeeze(1).to(patch)
        patch, image = torch.cat([patch, whole]), torch.cat([image, torch.full_like(whole, one)])
        parent = torch.cat([parent, torch.full_like(whole, -1)])
        label = torch.cat([label, torch.zeros_like(whole)])
    order = torch.argsort((parent << 33) + label, stable=True)  # labels of noise end below 2**33
    if emptied.any():
        order = order[torch.argsort(image[order], stable=True)]
    patch, parent, image, label = patch[order], parent[order], image[order], label[order]
    begins = torch.ones(len(patch), dtype=torch.bool, device=patch.device)
    begins[1:] = (parent[1:] != parent[:-1]) | (label[1:] != label[:-1]) | (image[1:] != image[:-1])
    origin = parent[begins]
    dropped = tuple(
        Dropped(one, index, "all its patches are noise")
        for one, index in zip(regions.image[lost].tolist(), regions.mask_index[lost].tolist(), strict=True)
    )
    return replace(
        regions,
        patch=patch,
        region=begins.cumsum(0) - 1,
        image=image[begins],
        mask_index=torch.where(origin < 0, -1, regions.mask_index[origin]),
        score=torch.where(origin < 0, torch.nan, regions.score[origin]),
        fallback=regions.fallback | emptied,
        dropped=regions.dropped + dropped,
    )
