"""Budgets: the number of regions of an image, absolute or as a fraction of its patches."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from regiontok.errors import ShapeError, ValueRangeError
from regiontok.options import check_option

Budget = int | Sequence[int] | np.ndarray | Tensor
"""A number of regions: one for all images, or one per image."""
Keep = float | Sequence[float] | np.ndarray | Tensor
"""A fraction of the valid patches, in ``(0, 1]``: one for all images, or one per image."""

_TOLERANCE = 1e-7
"""Without this tolerance, a float32 ``0.1`` of 100 patches would be rounded up to 11."""


def resolve_budget(
    num_patches: Sequence[int], num_regions: Budget | None = None, keep: Keep | None = None
) -> list[int] | None:
    """Return the number of regions of each image, or None without a budget.

    Args:
        num_patches: Number of valid patches of each image.
        num_regions: Absolute budget; an image with fewer patches gets one region per patch.
        keep: Relative budget: this fraction of the patches, rounded up, at least 1.

    Raises:
        ShapeError: The number of budgets is not the number of images.
        DTypeError, ValueRangeError: A budget is not a positive integer, a fraction is outside ``(0, 1]``, or both
            arguments are given.

    Example:
        >>> resolve_budget([576, 24], num_regions=64), resolve_budget([576, 24], keep=0.25)
        ([64, 24], [144, 6])
    """
    if num_regions is not None and keep is not None:
        raise ValueRangeError(f"num_regions={num_regions} and keep={keep} are both budgets. Pass one of them.")
    if num_regions is not None:
        budgets = _per_image("num_regions", num_regions, len(num_patches))
        return [
            min(check_option("num_regions", budget), limit) for budget, limit in zip(budgets, num_patches, strict=True)
        ]
    if keep is not None:
        fractions = [check_option("keep", fraction) for fraction in _per_image("keep", keep, len(num_patches))]
        return [
            max(1, math.ceil(fraction * count * (1 - _TOLERANCE)))
            for fraction, count in zip(fractions, num_patches, strict=True)
        ]
    return None


def is_per_image(budget: Any) -> bool:
    """Return whether a budget has an entry per image, instead of one number for all.

    Example:
        >>> is_per_image([64, 32]), is_per_image(64), is_per_image(None)
        (True, False, False)
    """
    return not isinstance(budget, str) and hasattr(budget, "__len__") and getattr(budget, "ndim", 1) != 0


def _per_image(name: str, budget: Any, num_images: int) -> list[Any]:
    if isinstance(budget, Tensor | np.ndarray):
        budget = budget.tolist()  # tolist() of a 0-d tensor returns a number
    budgets = list(budget) if isinstance(budget, Sequence) and not isinstance(budget, str) else [budget] * num_images
    if len(budgets) != num_images:
        raise ShapeError(
            f"{name} must be one number or a list of length {num_images} (one number per image); got length "
            f"{len(budgets)}."
        )
    return budgets
