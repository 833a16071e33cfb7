"""The patch features of a batch of images or clips, checked and concatenated once per call."""

import math
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regiontok.errors import AmbiguousShapeWarning, DTypeError, ShapeError, ValueRangeError

_MAX_PREFIX_TOKENS = 8
"""Maximum number of class and register tokens before the patches for which error messages suggest a reshape."""


Shape = tuple[int, ...]
"""Rows and columns of an image, or frames, rows and columns of a clip."""


class PatchBatch:
    """The patch features of a batch of images or clips, concatenated.

    `Regionizer` creates one batch per call and passes it to all steps. Each step also accepts unchecked features. In a
    batch with clips, an image is a clip of one frame.

    Attributes:
        values: ``(N, D)`` floating point: the patches of all images, row by row, one image after another.
        shapes: Rows and columns of each image; or frames, rows and columns of each clip.

    Example:
        >>> batch = PatchBatch.of([torch.zeros(2, 3, 8), torch.zeros(1, 4, 8)])
        >>> batch.values.shape, batch.shapes, batch.sizes
        (torch.Size([10, 8]), [(2, 3), (1, 4)], [6, 4])
        >>> PatchBatch.of([torch.zeros(2, 3, 8), torch.zeros(5, 2, 3, 8)]).shapes
        [(1, 2, 3), (5, 2, 3)]
    """

    def __init__(self, values: Tensor, shapes: list[Shape], *, is_stacked: bool) -> None:
        self.values = values
        self.shapes = shapes
        self._is_stacked = is_stacked

    @classmethod
    def of(cls, features: "Features") -> "PatchBatch":
        """Return a checked batch; a batch is returned unchanged, and a contiguous tensor is not copied.

        Args:
            features: ``(B, rows, cols, D)`` floating point, or a list of ``(rows, cols, D)``; for clips
                ``(B, frames, rows, cols, D)``, or a list that may also contain ``(frames, rows, cols, D)``.

        Raises:
            ShapeError: A shape is wrong or empty, or the images have different dimensions, dtypes or devices.
            DTypeError: ``features`` are not floating point tensors.
        """
        if isinstance(features, PatchBatch):
            return features
        if isinstance(features, Tensor):
            _check_tensor(features)
            batch, *shape, dim = features.shape
            return cls(features.reshape(-1, dim), [tuple(shape)] * batch, is_stacked=True)
        _check_list(features)
        values = torch.cat([image.reshape(-1, image.shape[-1]) for image in features])
        shapes = [tuple(image.shape[:-1]) for image in features]
        if any(len(shape) == 3 for shape in shapes):
            shapes = [shape if len(shape) == 3 else (1, *shape) for shape in shapes]
        return cls(values, shapes, is_stacked=False)

    def with_values(self, values: Tensor) -> "PatchBatch":
        """Return the same batch with different features, ``(N, D')``."""
        return PatchBatch(values, self.shapes, is_stacked=self._is_stacked)

    def unflatten(self) -> "FeatureGrids":
        """Return the features in the form in which they were passed to `of`."""
        if self._is_stacked:
            return self.values.unflatten(0, (len(self.shapes), *self.shapes[0]))
        return [values.unflatten(0, shape) for values, shape in zip(self.split(self.values), self.shapes, strict=True)]

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Return the part of each image in a tensor ``(N, ...)``."""
        return values.split(self.sizes)

    def select(self, images: Sequence[int]) -> "PatchBatch":
        """Return a batch of some of the images."""
        parts = self.split(self.values)
        values = torch.cat([parts[image] for image in images])
        return PatchBatch(values, [self.shapes[image] for image in images], is_stacked=False)

    @cached_property
    def sizes(self) -> list[int]:
        """Number of patches of each image."""
        return [math.prod(shape) for shape in self.shapes]

    @cached_property
    def grids(self) -> Tensor:
        """``(B, 2)`` int64 on the CPU: rows and columns of each image; ``(B, 3)`` with frames for clips."""
        return torch.from_numpy(np.array(self.shapes))  # a fifth of the time of torch.tensor

    @property
    def device(self) -> torch.device:
        """The device of the features."""
        return self.values.device

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.shapes)

    def check_finite(self, is_used: Tensor | None = None) -> None:
        """Reject NaN and infinity.

        Args:
            is_used: ``(N,)`` bool: patches to check; all by default.

        Raises:
            ValueRangeError: A value is not finite; the message names the patch.
        """
        values = self.values.detach()
        if values.sum().isfinite():  # one pass in most cases; padding may be NaN, and the sum may overflow
            return
        if is_used is not None:
            values = torch.where(is_used[:, None], values, 0)
        for image, (part, shape) in enumerate(zip(self.split(values), self.shapes, strict=True)):
            check_finite(part, image, shape[-1])

    def check_grids(self, name: str, grids: Tensor) -> None:
        """Check that ``grids`` are the grids of the features.

        Args:
            name: Name of the argument with these grids, for the error message.
            grids: ``(B, 2)``: rows and columns of each image; ``(B, 3)`` with frames for clips.

        Raises:
            ShapeError: The number of images or a grid differs.
        """
        actual_shapes = [tuple(grid) for grid in grids.tolist()]
        if len(actual_shapes) != len(self):
            raise ShapeError(f"{name} must have as many images as features, {len(self)}; got {len(actual_shapes)}.")
        for image, (shape, actual) in enumerate(zip(self.shapes, actual_shapes, strict=True)):
            if shape != actual:
                raise ShapeError(f"{name} must have the grids of features, {shape} for image {image}; got {actual}.")


FeatureGrids = Tensor | Sequence[Tensor]
"""``(B, rows, cols, D)`` floating point, or a list of ``(rows, cols, D)`` if grids differ; clips also have frames."""
Features = FeatureGrids | PatchBatch
"""Features of a batch, or an already checked batch."""
Valid = Tensor | Sequence[Tensor]
"""``(B, rows, cols)`` bool, or a list of ``(rows, cols)``: the patches that show the image; clips also have frames."""


def flatten_valid(valid: Valid | None, shapes: Sequence[Shape]) -> Tensor | None:
    """Return the valid patches of a batch, ``(N,)`` bool, or None for all.

    Args:
        valid: ``(B, rows, cols)`` bool, or a list of ``(rows, cols)``; clips also have frames.
        shapes: Rows and columns of each image, or frames, rows and columns of each clip.

    Raises:
        ShapeError, DTypeError: ``valid`` does not have one bool tensor of the expected shape per image.
        ValueRangeError: An image has no valid patch.
    """
    if valid is None:
        return None
    if not isinstance(valid, Sequence | Tensor) or (isinstance(valid, Tensor) and valid.ndim == 0):
        raise DTypeError(_not_tensors("valid", valid))
    masks = list(valid)
    if not all(isinstance(mask, Tensor) for mask in masks):
        raise DTypeError(_not_tensors("valid", valid))
    if len(masks) != len(shapes):
        raise ShapeError(f"valid must have one (rows, cols) grid per image, {len(shapes)}; got {len(masks)}.")
    for image, (mask, shape) in enumerate(zip(masks, shapes, strict=True)):
        is_image_among_clips = len(shape) == 3 and shape[0] == 1 and tuple(mask.shape) == shape[1:]
        if tuple(mask.shape) != shape and not is_image_among_clips:
            raise ShapeError(f"valid[{image}] must be {shape} like its features; got {tuple(mask.shape)}.")
        if mask.dtype != torch.bool:
            raise DTypeError(f"valid must be bool; got {mask.dtype}. Compare it first, as in valid > 0.")
        if not mask.any():
            raise ValueRangeError(
                f"image {image} has no valid patch, so it can have no region. Leave it out of the batch."
            )
    return torch.cat([mask.reshape(-1) for mask in masks])


def check_finite(values: Tensor, image: int, cols: int) -> None:
    """Reject NaN and infinity in the patches ``(P, D)`` of one image.

    Raises:
        ValueRangeError: A value is not finite; the message names the first such patch.
    """
    if values.sum().isfinite():  # one pass in most cases
        return
    wrong = (~values.isfinite().all(1)).nonzero()
    if len(wrong):
        row, col = divmod(int(wrong[0]), cols)  # rows of a clip are counted through all frames
        raise ValueRangeError(
            f"features must be finite in float32; image {image} has NaN or infinity in {len(wrong)} of its patches, "
            f"the first at row {row}, column {col}. Look for them in the encoder, or mark the patches as not valid."
        )


def check_floating(features: Any) -> None:
    """Reject values that are not floating point tensors.

    Raises:
        DTypeError: ``features`` is not a floating point tensor.
    """
    if not isinstance(features, Tensor):
        raise DTypeError(f"features must be floating point tensors; got {type(features).__name__}.")
    if not features.is_floating_point() or features.dtype.itemsize == 1:
        raise DTypeError(f"features must be floating point; got {features.dtype}. Convert them with features.float().")
    check_readable("features", features)


def check_readable(name: str, tensor: Tensor) -> None:
    """Reject tensors whose values cannot be read: nested, sparse, on the meta device, or inside torch.func.

    Raises:
        DTypeError: The values of the tensor cannot be read.
    """
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


def _check_tensor(features: Tensor) -> None:
    if features.is_nested:
        check_readable("features", features)
    if features.ndim not in (4, 5):
        hint = _reshape_hint(features.shape)
        raise ShapeError(f"features must be (batch, rows, cols, dim); got {tuple(features.shape)}.{hint}")
    check_floating(features)
    if 0 in features.shape:
        raise ShapeError(
            f"features must have at least one image, row, column and dimension; got {tuple(features.shape)}."
        )


def _check_list(features: Any) -> None:
    if not isinstance(features, Sequence) or isinstance(features, str):
        raise DTypeError(_not_tensors("features", features))
    if not features:
        raise ShapeError("features must hold at least one image; got an empty list.")
    for number, image in enumerate(features):
        if not isinstance(image, Tensor):
            raise DTypeError(f"features[{number}] must be a torch tensor; got {type(image).__name__}.")
        check_floating(image)
        if image.ndim not in (3, 4) or 0 in image.shape:
            raise ShapeError(
                f"features[{number}] must be (rows, cols, dim), or (frames, rows, cols, dim), with no empty axis; got "
                f"{tuple(image.shape)}."
            )
        kind, expected = ((tensor.shape[-1], str(tensor.dtype), str(tensor.device)) for tensor in (image, features[0]))
        if kind != expected:
            raise ShapeError(
                f"all features of a batch must share dim, dtype and device; features[0] has {expected}, "
                f"features[{number}] has {kind}."
            )
    if all(image.ndim == 3 for image in features):
        _warn_about_hidden_states(features)


def _not_tensors(name: str, value: Any) -> str:
    return (
        f"{name} must be a torch tensor or a list of tensors; got {type(value).__name__}. Convert arrays with "
        "torch.from_numpy."
    )


def _warn_about_hidden_states(features: Sequence[Tensor]) -> None:
    """Warn if a list looks like hidden states of a model, ``(batch, tokens, dim)`` per layer, instead of images."""
    batch, tokens, dim = features[0].shape
    side = math.isqrt(tokens)
    all_equal = len(features) > 1 and all(image.shape == features[0].shape for image in features)
    extra = tokens - side**2
    is_narrow = 8 * batch <= tokens if extra else batch <= 4
    if all_equal and side >= 12 and 0 <= extra <= _MAX_PREFIX_TOKENS and is_narrow:
        warnings.warn(
            f"a list of {len(features)} tensors of {(batch, tokens, dim)} is read as images of {batch} x {tokens} "
            "patches. If these are the hidden states of a model, take those of one layer, as in "
            f"features[-2]{f'[:, {extra}:]' if extra else ''}.reshape({batch}, {side}, {side}, {dim}); else pass "
            "torch.stack(features) to leave out this warning.",
            AmbiguousShapeWarning,
            stacklevel=4,
        )


def _reshape_hint(shape: torch.Size) -> str:
    """Return a hint for features with a wrong rank that may be a sequence of tokens."""
    if len(shape) not in (2, 3):
        return ""
    batch, tokens, dim = shape if len(shape) == 3 else (1, *shape)
    side = math.isqrt(tokens)
    extra = tokens - side**2
    if 0 < extra <= _MAX_PREFIX_TOKENS and side >= 12 and batch != tokens:
        patches = f"features[{':, ' if len(shape) == 3 else ''}{extra}:]"
        return (
            f" {tokens} tokens are a grid of {side} x {side} and {extra} more, such as a class token: take "
            f"{patches}.reshape({batch}, {side}, {side}, {dim})."
        )
    grid = f"features.reshape({batch}, {side}, {side}, {dim})" if side * side == tokens else ""
    if len(shape) == 2:
        return f" Reshape with {grid}." if grid else ""
    if not grid or batch == tokens:  # a square of rows and columns is an image, not a batch of token sequences
        return " A single image needs a batch axis: features[None]."
    return f" Reshape a batch of tokens with {grid}; a single image needs features[None]."
