"""Checks shared by the public functions, and the flat layout that the steps work on.

A batch comes as one tensor ``(B, rows, cols, D)`` or, where grids differ, as a list of ``(rows, cols, D)``. The steps
see it flat: ``(N, D)`` with the images' patches one after another, and ``grids (B, 2)`` on the CPU.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regiontok.errors import DTypeError, ShapeError, ValueRangeError

Features = Tensor | Sequence[Tensor]
"""``(B, rows, cols, D)`` floating point, or a list of ``(rows, cols, D)`` where grids differ between images."""
Valid = Tensor | Sequence[Tensor]
"""``(B, rows, cols)`` bool, or a list of ``(rows, cols)``: which patches show the photo."""


class FlatFeatures(NamedTuple):
    """A batch's patches in one row: ``values (N, D)`` and, on the CPU, ``grids (B, 2)``."""

    values: Tensor
    grids: Tensor


def flatten_features(features: Features) -> FlatFeatures:
    """Check a batch of features and lay it flat; a contiguous tensor is not copied."""
    if isinstance(features, Tensor):
        if features.ndim != 4:
            hint = _reshape_hint(features.shape)
            raise ShapeError(f"features must be (batch, rows, cols, dim); got {tuple(features.shape)}.{hint}")
        _check_floating(features)
        if 0 in features.shape:
            raise ShapeError(
                f"features must have at least one image, row, column and dimension; got {tuple(features.shape)}."
            )
        batch, rows, cols, dim = features.shape
        return FlatFeatures(features.reshape(-1, dim), torch.tensor([[rows, cols]]).expand(batch, 2))
    if not isinstance(features, Sequence) or isinstance(features, str):
        raise DTypeError(f"features must be a torch tensor or a list of tensors; got {type(features).__name__}.")
    if not features:
        raise ShapeError("features must hold at least one image; got an empty list.")
    for image, grid in enumerate(features):
        if not isinstance(grid, Tensor):
            raise DTypeError(f"features[{image}] must be a torch tensor; got {type(grid).__name__}.")
        _check_floating(grid)
        if grid.ndim != 3 or 0 in grid.shape:
            raise ShapeError(
                f"features[{image}] must be (rows, cols, dim) with no empty axis; got {tuple(grid.shape)}."
            )
        first = features[0]
        if (grid.shape[2], grid.dtype, grid.device) != (first.shape[2], first.dtype, first.device):
            raise ShapeError(
                f"all features of a batch must share dim, dtype and device; features[0] has "
                f"({first.shape[2]}, {first.dtype}, {first.device}), features[{image}] has "
                f"({grid.shape[2]}, {grid.dtype}, {grid.device})."
            )
    grids = torch.tensor([grid.shape[:2] for grid in features])
    return FlatFeatures(torch.cat([grid.reshape(-1, grid.shape[2]) for grid in features]), grids)


def flatten_valid(valid: Valid | None, grids: Tensor) -> Tensor | None:
    """Check which patches show the photo and lay them flat, ``(N,)`` bool."""
    if valid is None:
        return None
    shapes = [tuple(grid) for grid in grids.tolist()]
    given = list(valid)
    if len(given) != len(shapes) or any(not isinstance(one, Tensor) for one in given):
        raise ShapeError(
            f"valid must be a tensor or list with one (rows, cols) grid per image, {len(shapes)}; got {len(given)}."
        )
    for image, (one, shape) in enumerate(zip(given, shapes, strict=True)):
        if tuple(one.shape) != shape:
            raise ShapeError(f"valid[{image}] must be {shape} like its features; got {tuple(one.shape)}.")
        if one.dtype != torch.bool:
            raise DTypeError(f"valid must be bool; got {one.dtype}. Compare it first, as in valid > 0.")
        if not one.any():
            raise ValueRangeError(
                f"image {image} has no valid patch, so it can have no region. Leave it out of the batch."
            )
    return torch.cat([one.reshape(-1) for one in given])


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Refuse an option that is not one of ``choices``."""
    choices = list(choices)
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueRangeError(f"{name} must be one of {listed}; got {value!r}.")


def check_integer(name: str, value: Any, *, minimum: int = 1) -> None:
    """Refuse what is not a whole number of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise DTypeError(f"{name} must be a whole number; got {value!r}.")
    if value < minimum:
        raise ValueRangeError(f"{name} must be at least {minimum}; got {value}.")


def check_number(name: str, value: Any, *, low: float, high: float) -> None:
    """Refuse what is not a number in ``[low, high]``; NaN is in no range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DTypeError(f"{name} must be a number; got {value!r}.")
    if not low <= value <= high:
        raise ValueRangeError(f"{name} must be in [{low:g}, {high:g}]; got {value}.")


def _check_floating(tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise DTypeError(f"features must be floating point; got {tensor.dtype}. Convert them with features.float().")


def _reshape_hint(shape: torch.Size) -> str:
    if len(shape) == 3:
        side = round(shape[1] ** 0.5)
        if side * side == shape[1]:
            return f" Reshape with features.reshape({shape[0]}, {side}, {side}, {shape[2]})."
        return " A single image needs a batch axis: features[None]."
    if len(shape) == 2:
        side = round(shape[0] ** 0.5)
        if side * side == shape[0]:
            return f" Reshape with features.reshape(1, {side}, {side}, {shape[1]})."
    return ""
