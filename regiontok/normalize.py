"""Feature normalisation before grouping and pooling."""

import torch
from torch import Tensor

from regiontok._checks import Features, check_floating


def rms_normalize(features: Features, *, eps: float = 1e-6) -> Features:
    """Divide every patch feature by its root mean square over the last axis; no learned weight.

    It takes away the high-norm outliers of some encoders, so that no single patch rules the mean of its region. The
    cosine between two patches stays as it was; the one between two regions does not.

    Args:
        features: ``(..., dim)``, or a list of such tensors.
        eps: Added to the mean square, so that a zero vector stays zero.

    Returns:
        The same kind, shapes and dtype; computed in float32 (float64 for float64). A vector that is not finite has no
        gradient.

    Raises:
        DTypeError: Not floating point tensors.

    Example:
        >>> rms_normalize(torch.tensor([[3.0, 4.0]]))
        tensor([[0.8485, 1.1314]])

    Source:
        Supplement, Table 1 (norm: rms) and Figure 1. That it has no weight and comes before grouping is our reading.
    """
    if not isinstance(features, Tensor):
        return [_rms(one, eps) for one in features]
    return _rms(features, eps)


def _rms(features: Tensor, eps: float) -> Tensor:
    check_floating(features)
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    scale = wide.detach().abs().amax(-1, keepdim=True).clamp(min=1)  # so that no square leaves float32
    if wide.requires_grad and torch.is_grad_enabled():
        finite = scale.isfinite()
        if torch.compiler.is_compiling() or not finite.all():  # such as padding: those vectors get no gradient
            wide = torch.where(finite, wide, wide.detach())
    scaled = wide / scale
    return (scaled * torch.rsqrt(scaled.square().mean(-1, keepdim=True) + eps / scale.square())).to(features.dtype)
