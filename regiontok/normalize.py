"""Normalisation of patch features before grouping and pooling."""

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from regiontok.batch import Features, PatchBatch, check_floating

_EPS = 1e-6
"""Added to the mean square, so that a zero vector stays zero."""


@overload
def rms_normalize(features: PatchBatch) -> PatchBatch: ...


@overload
def rms_normalize(features: Tensor) -> Tensor: ...


@overload
def rms_normalize(features: Sequence[Tensor]) -> Sequence[Tensor]: ...


def rms_normalize(features: Features) -> Features:
    """Divide each patch feature by its root mean square over the last axis, without a learned weight.

    Normalisation removes the high-norm outliers of some encoders, so that no patch dominates the mean of its region.
    Cosines between patches do not change; cosines between regions do.

    Args:
        features: ``(..., dim)``, a list of such tensors, or a `PatchBatch`.

    Returns:
        Features of the same kind, shapes and dtype; computed in float32 (float64 for float64). Vectors that are not
        finite get no gradient.

    Raises:
        DTypeError: ``features`` are not floating point tensors.

    Example:
        >>> rms_normalize(torch.tensor([[3.0, 4.0]]))
        tensor([[0.8485, 1.1314]])

    Source:
        Supplement, Table 1 (norm: rms) and Figure 1. We assume that it has no weight and is applied before grouping.
    """
    if isinstance(features, PatchBatch):
        return features.with_values(_normalize(features.values))
    if isinstance(features, Tensor):
        return _normalize(features)
    return [_normalize(image) for image in features]


def _normalize(features: Tensor) -> Tensor:
    check_floating(features)
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    scale = wide.detach().abs().amax(-1, keepdim=True).clamp(min=1)  # keeps the squares within float32
    if wide.requires_grad and torch.is_grad_enabled():
        is_finite = scale.isfinite()
        if torch.compiler.is_compiling() or not is_finite.all():  # such vectors may be padding
            wide = torch.where(is_finite, wide, wide.detach())
    scaled = wide / scale
    return (scaled * torch.rsqrt(scaled.square().mean(-1, keepdim=True) + _EPS / scale.square())).to(features.dtype)
