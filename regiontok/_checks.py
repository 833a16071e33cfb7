"""Checks shared by the public functions, and the flat layout that the steps work on.

A batch comes as one tensor ``(B, rows, cols, D)`` or, where grids differ, as a list of ``(rows, cols, D)``. The steps
see it flat: ``(N, D)`` with the images' patches one after another, and ``grids (B, 2)`` on the CPU.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regiontok.errors import AmbiguousShapeWarning, DTypeError, ShapeError, ValueRangeError

Features = Tensor | Sequence[Tensor]
"""``(B, rows, cols, D)`` floating point, or a list of ``(rows, cols, D)`` where grids differ between images."""
Valid = Tensor | Sequence[Tensor]
"""``(B, rows, cols)`` bool, or a list of ``(rows, cols)``: which patches show the image."""


_MOST_PREFIX_TOKENS = 8
"""Class and register tokens that stand before a grid of patches; with more it is no grid with a prefix."""


class FlatFeatures(NamedTuple):
    """A batch's patches in one row: ``values (N, D)`` and, on the CPU, ``grids (B, 2)``."""

    values: Tensor
    grids: Tensor


def flatten_features(features: Features) -> FlatFeatures:
    """Check a batch of features and lay it flat; a contiguous tensor is not copied."""
    grids = check_features(features)
    if isinstance(features, Tensor):
        return FlatFeatures(features.reshape(-1, features.shape[3]), grids)
    return FlatFeatures(torch.cat([grid.reshape(-1, grid.shape[2]) for grid in features]), grids)


def check_features(features: Features) -> Tensor:
    """Check a batch of features; returns its ``grids (B, 2)`` on the CPU."""
    if isinstance(features, Tensor):
        if features.is_nested:
            check_readable("features", features)
        if features.ndim != 4:
            hint = _reshape_hint(features.shape)
            raise ShapeError(f"features must be (batch, rows, cols, dim); got {tuple(features.shape)}.{hint}")
        check_floating(features)
        if 0 in features.shape:
            raise ShapeError(
                f"features must have at least one image, row, column and dimension; got {tuple(features.shape)}."
            )
        batch, rows, cols, _ = features.shape
        return torch.from_numpy(np.full((batch, 2), (rows, cols)))  # a fifth of what torch.tensor of a list costs
    if not isinstance(features, Sequence) or isinstance(features, str):
        raise DTypeError(
            f"features must be a torch tensor or a list of tensors; got {type(features).__name__}. "
            "Arrays go through torch.from_numpy."
        )
    if not features:
        raise ShapeError("features must hold at least one image; got an empty list.")
    for image, grid in enumerate(features):
        if not isinstance(grid, Tensor):
            raise DTypeError(f"features[{image}] must be a torch tensor; got {type(grid).__name__}.")
        check_floating(grid)
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
    _warn_of_hidden_states(features)
    return torch.tensor([grid.shape[:2] for grid in features], device="cpu")


def _warn_of_hidden_states(features: Sequence[Tensor]) -> None:
    """Warn of a list that may be the hidden states of a model, one batch of tokens per layer, and no images."""
    batch, tokens, dim = features[0].shape
    side = math.isqrt(tokens)
    alike = len(features) > 1 and all(grid.shape == features[0].shape for grid in features)
    extra = tokens - side**2
    narrow = 8 * batch <= tokens if extra else batch <= 4
    if alike and side >= 12 and 0 <= extra <= _MOST_PREFIX_TOKENS and narrow:
        warnings.warn(
            f"a list of {len(features)} tensors of {(batch, tokens, dim)} is read as images of {batch} x {tokens} "
            "patches. If these are the hidden states of a model, take those of one layer, as in "
            f"features[-2]{f'[:, {extra}:]' if extra else ''}.reshape({batch}, {side}, {side}, {dim}); else pass "
            "torch.stack(features) to leave out this warning.",
            AmbiguousShapeWarning,
            stacklevel=4,
        )


def flatten_valid(valid: Valid | None, grids: Tensor) -> Tensor | None:
    """Check which patches show the image and lay them flat, ``(N,)`` bool."""
    if valid is None:
        return None
    shapes = [tuple(grid) for grid in grids.tolist()]
    given: list[Any] = (
        list(valid) if isinstance(valid, Sequence) or (isinstance(valid, Tensor) and valid.ndim) else [None]
    )
    if any(not isinstance(one, Tensor) for one in given):
        raise DTypeError(
            f"valid must be a torch tensor or a list of tensors; got {type(valid).__name__}. "
            "Arrays go through torch.from_numpy."
        )
    if len(given) != len(shapes):
        raise ShapeError(f"valid must have one (rows, cols) grid per image, {len(shapes)}; got {len(given)}.")
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


def check_finite(values: Tensor, image: int, cols: int) -> None:
    """Reject NaN and infinity in the patches ``(P, dim)`` of one image; name the first patch."""
    if values.sum().isfinite():  # most often one pass is enough; a sum may leave the range of finite values
        return
    wrong = (~values.isfinite().all(1)).nonzero()
    if len(wrong):
        row, col = divmod(int(wrong[0]), cols)
        raise ValueRangeError(
            f"features must be finite in float32; image {image} has NaN or infinity in {len(wrong)} of its patches, "
            f"the first at row {row}, column {col}. Look for them in the encoder, or mark the patches as not valid."
        )


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Refuse an option that is not one of ``choices``."""
    choices = list(choices)
    if isinstance(value, Tensor | np.ndarray) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueRangeError(f"{name} must be one of {listed}; got {value!r}.")


def check_integer(name: str, value: Any, *, minimum: int = 1) -> int:
    """Refuse what is not a whole number of at least ``minimum``; returns Python's own, which cannot overflow."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
        raise DTypeError(f"{name} must be a whole number; got {value!r}.")
    if value < minimum:
        raise ValueRangeError(f"{name} must be at least {minimum}; got {value}.")
    return int(value)


def check_number(name: str, value: Any, *, low: float, high: float) -> float:
    """Refuse what is not a number in ``[low, high]``, and NaN is in no range; returns Python's own."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise DTypeError(f"{name} must be a number; got {value!r}.")
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond floating point
        number = math.nan
    if not low <= number <= high:
        raise ValueRangeError(f"{name} must be in [{low:g}, {high:g}]; got {str(value)[:40]}.")
    return number


def check_size(name: str, size: Any) -> tuple[int, int]:
    """A height and width, as Python's own integers; arrays and tensors of two are taken too."""
    if isinstance(size, Tensor | np.ndarray):
        size = size.tolist()
    if not isinstance(size, Sequence) or isinstance(size, str | bytes) or len(size) != 2:
        raise ShapeError(f"{name} must be (height, width); got {size!r}.")
    return check_integer(name, size[0]), check_integer(name, size[1])


def check_grid(grid: Any) -> tuple[int, int]:
    """Rows and columns, likewise."""
    if isinstance(grid, Tensor | np.ndarray):
        grid = grid.tolist()
    if not isinstance(grid, Sequence) or isinstance(grid, str | bytes) or len(grid) != 2:
        raise ShapeError(f"grid must be (rows, cols); got {grid!r}.")
    return check_integer("grid", grid[0]), check_integer("grid", grid[1])


def check_sizes(name: str, sizes: Any, count: int | None = None) -> list[tuple[int, int]]:
    """Heights and widths of ``count`` images: a list of pairs, or an array or tensor ``(count, 2)``."""
    if isinstance(sizes, Tensor | np.ndarray):
        sizes = sizes.tolist()
    if not isinstance(sizes, Sequence) or isinstance(sizes, str | bytes):
        raise DTypeError(f"{name} must have a (height, width) per image; got {sizes!r}.")
    if count is not None and len(sizes) != count:
        raise ShapeError(f"{name} must have one entry per image, {count}; got {len(sizes)}.")
    return [check_size(f"{name}[{image}]", size) for image, size in enumerate(sizes)]


def check_device(device: Any) -> None:
    """Refuse a device that is not there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueRangeError(f"device {device} cannot be used here: {str(error).splitlines()[0]}") from error


def check_floating(features: Any) -> None:
    """Refuse what is not a floating point tensor."""
    if not isinstance(features, Tensor):
        raise DTypeError(f"features must be floating point tensors; got {type(features).__name__}.")
    if not features.is_floating_point() or features.dtype.itemsize == 1:
        raise DTypeError(f"features must be floating point; got {features.dtype}. Convert them with features.float().")
    check_readable("features", features)


def check_readable(name: str, tensor: Tensor) -> None:
    """Reject a tensor without values that can be read: nested, sparse, on the meta device, or inside torch.func."""
    if tensor.is_nested:
        raise DTypeError(f"{name} must be a dense tensor, or a list of them; got a nested tensor. Use tensor.unbind().")
    if tensor.layout != torch.strided:
        raise DTypeError(f"{name} must be a dense tensor; got layout {tensor.layout}. Use tensor.to_dense().")
    if tensor.is_meta:
        raise DTypeError(f"{name} must have values; got a tensor on the meta device.")
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        raise DTypeError(
            f"{name} cannot be inside torch.func.grad, vmap or jvp: grouping reads their values. Group outside, or use "
            "torch.autograd.grad."
        )


def _reshape_hint(shape: torch.Size) -> str:
    if len(shape) not in (2, 3):
        return ""
    batch, tokens, dim = shape if len(shape) == 3 else (1, *shape)
    side = math.isqrt(tokens)
    extra = tokens - side**2
    if 0 < extra <= _MOST_PREFIX_TOKENS and side >= 12 and batch != tokens:
        cut = f"features[{':, ' if len(shape) == 3 else ''}{extra}:]"
        return (
            f" {tokens} tokens are a grid of {side} x {side} and {extra} more, such as a class token: take "
            f"{cut}.reshape({batch}, {side}, {side}, {dim})."
        )
    grid = f"features.reshape({batch}, {side}, {side}, {dim})" if side * side == tokens else ""
    if len(shape) == 2:
        return f" Reshape with {grid}." if grid else ""
    if not grid or batch == tokens:  # as many rows as columns: an image, and no batch of rows of tokens
        return " A single image needs a batch axis: features[None]."
    return f" Reshape a batch of tokens with {grid}; a single image needs features[None]."
