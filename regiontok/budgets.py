"""Budgets: how many regions an image gets, as a number or as a fraction of its patches."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from regiontok._checks import check_integer, check_number
from regiontok.errors import ShapeError, ValueRangeError

Budget = int | Sequence[int] | np.ndarray | Tensor
"""A number of regions: one for all images, or one per image."""
Keep = float | Sequence[float] | np.ndarray | Tensor
"""A fraction of the valid patches, in ``(0, 1]``: one for all images, or one per image."""

_PRECISION = 1e-7
"""Fractions have the precision of float32: ``0.1`` of 100 patches are 10, not the 11 of its rounded value."""


def check_keep(keep: Any) -> float:
    """Return a valid fraction of patches.

    Raises:
        DTypeError, ValueRangeError: Not a number in ``(0, 1]``.
    """
    value = check_number("keep", keep, low=0, high=1)
    if value == 0:
        raise ValueRangeError("keep must be above 0; got 0. For one region pass num_regions=1.")
    return value


def resolve_budget(
    patches: Sequence[int], num_regions: Budget | None = None, keep: Keep | None = None
) -> list[int] | None:
    """Return the number of regions of each image; None without a budget.

    Args:
        patches: Number of valid patches of each image.
        num_regions: Absolute budget; an image with fewer patches gets one region per patch.
        keep: Relative budget: this fraction of the patches, rounded up, at least 1.

    Raises:
        ShapeError: Neither one budget nor one per image.
        DTypeError, ValueRangeError: A budget that is not a positive integer, a fraction outside ``(0, 1]``, or both
            kinds of budget.

    Example:
        >>> resolve_budget([576, 24], num_regions=64), resolve_budget([576, 24], keep=0.25)
        ([64, 24], [144, 6])
    """
    if num_regions is not None and keep is not None:
        raise ValueRangeError(f"num_regions={num_regions} and keep={keep} are both budgets. Pass one of them.")
    if num_regions is not None:
        budgets = _per_image("num_regions", num_regions, len(patches))
        return [min(check_integer("num_regions", budget), most) for budget, most in zip(budgets, patches, strict=True)]
    if keep is not None:
        fractions = [check_keep(fraction) for fraction in _per_image("keep", keep, len(patches))]
        return [
            max(1, math.ceil(fraction * most * (1 - _PRECISION)))
            for fraction, most in zip(fractions, patches, strict=True)
        ]
    return None


def _per_image(name: str, budget: Any, images: int) -> list[Any]:
    if isinstance(budget, Tensor | np.ndarray):
        budget = budget.tolist()  # a number if there is no axis
    several = list(budget) if isinstance(budget, Sequence) and not isinstance(budget, str) else [budget] * images
    if len(several) != images:
        raise ShapeError(f"{name} must be one number, or one per image, {images}; got {len(several)} of them.")
    return several
