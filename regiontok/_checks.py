"""Checks of sizes, grids and devices."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regiontok._values import check_integer
from regiontok.errors import DTypeError, ShapeError, ValueRangeError


def check_size(name: str, size: Any) -> tuple[int, int]:
    """Return a height and width as Python integers.

    Raises:
        ShapeError, DTypeError, ValueRangeError: ``size`` is not a pair of positive integers.
    """
    return _check_pair(name, size, "(height, width)")


def check_grid(grid: Any) -> tuple[int, int]:
    """Return rows and columns as Python integers.

    Raises:
        ShapeError, DTypeError, ValueRangeError: ``grid`` is not a pair of positive integers.
    """
    return _check_pair("grid", grid, "(rows, cols)")


def _check_pair(name: str, pair: Any, form: str) -> tuple[int, int]:
    if isinstance(pair, Tensor | np.ndarray):
        pair = pair.tolist()
    if not isinstance(pair, Sequence) or isinstance(pair, str | bytes) or len(pair) != 2:
        raise ShapeError(f"{name} must be {form}; got {pair!r}.")
    return check_integer(name, pair[0]), check_integer(name, pair[1])


def check_sizes(name: str, sizes: Any, count: int | None = None) -> list[tuple[int, int]]:
    """Return the heights and widths of images.

    Args:
        name: The name of the argument.
        sizes: A list of pairs, or an array or tensor ``(count, 2)``.
        count: Number of images.

    Raises:
        ShapeError, DTypeError, ValueRangeError: ``sizes`` does not have one pair of positive integers per image.
    """
    if isinstance(sizes, Tensor | np.ndarray):
        sizes = sizes.tolist()
    if not isinstance(sizes, Sequence) or isinstance(sizes, str | bytes):
        raise DTypeError(f"{name} must have a (height, width) per image; got {sizes!r}.")
    if count is not None and len(sizes) != count:
        raise ShapeError(f"{name} must have one entry per image, {count}; got {len(sizes)}.")
    return [check_size(f"{name}[{image}]", size) for image, size in enumerate(sizes)]


def check_device(device: Any) -> None:
    """Check that a device can be used.

    Raises:
        ValueRangeError: The device cannot be used.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueRangeError(f"device {device} cannot be used here: {str(error).splitlines()[0]}") from error
