"""Placement of images, masks and points on the input of an encoder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regiontok._checks import check_size
from regiontok._values import check_choice
from regiontok.choices import GEOMETRIES
from regiontok.errors import DTypeError, ShapeError

_MIN_SHOWN = 0.07
"""A patch is valid if the image covers more than this fraction of it: the paper's rule for masks (A.1)."""
_MAX_PIXELS = 2**26
"""Images are padded before resizing, as in LLaVA, unless the padded image would have more pixels than this."""

Size = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True)
class ImageGeometry:
    """How images of any size are placed on an input of fixed size. It is saved with an encoder.

    Create it with `letterbox`, `squash` or `center_crop`; `place` returns the placement of an image. An image and its
    masks use the same placement, so they are always preprocessed alike.

    Attributes:
        mode: ``letterbox`` pads to the aspect ratio of the input, then resizes; ``squash`` resizes both sides;
            ``center_crop`` resizes until the input is covered, then crops the centre.
        size: Height and width of the input in pixels.

    Raises:
        DTypeError, ValueRangeError: An unknown mode, or a size that is not two positive integers.

    Example:
        >>> placement = ImageGeometry.letterbox(336).place((480, 640))
        >>> placement.scale, placement.offset
        ((0.525, 0.525), (42.0, 0.0))
        >>> placement.valid((24, 24)).sum().item()  # 18 of 24 rows show the image
        432

    Source:
        Letterbox is ``pad`` of LLaVA-1.5 (second stage and evaluation); its first stage uses a centre crop.
    """

    mode: str
    size: Size

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, GEOMETRIES)
        size = self.size if isinstance(self.size, Sequence | np.ndarray | Tensor) else (self.size, self.size)
        object.__setattr__(self, "size", check_size("size", size))

    @classmethod
    def letterbox(cls, size: int | Size) -> "ImageGeometry":
        """Pad around the image to the aspect ratio of the input, then resize; nothing is cropped or distorted."""
        return cls("letterbox", size)  # type: ignore[arg-type]

    @classmethod
    def squash(cls, size: int | Size) -> "ImageGeometry":
        """Resize both sides to the input; every patch shows the image, which may be distorted."""
        return cls("squash", size)  # type: ignore[arg-type]

    @classmethod
    def center_crop(cls, size: int | Size) -> "ImageGeometry":
        """Resize until the input is covered, then crop the centre; the ends of the longer side are lost."""
        return cls("center_crop", size)  # type: ignore[arg-type]

    def place(self, image: Size) -> "Placement":
        """Return the placement of an image of ``(height, width)`` pixels."""
        height, width = check_size("an image's size", image)
        rows, cols = self.size
        canvas, pad, resized, crop = (height, width), (0, 0), self.size, (0, 0)
        if self.mode == "letterbox":
            if height * cols >= width * rows:
                canvas = (height, max(width, round(height * cols / rows)))
            else:
                canvas = (max(height, round(width * rows / cols)), width)
            pad = ((canvas[0] - height) // 2, (canvas[1] - width) // 2)
        elif self.mode == "center_crop":
            if height * cols <= width * rows:
                resized = (rows, max(cols, int(rows * width / height)))
            else:
                resized = (max(rows, int(cols * height / width)), cols)
            crop = ((resized[0] - rows) // 2, (resized[1] - cols) // 2)
        return Placement((height, width), canvas, pad, resized, crop, self.size)

    def to_config(self) -> dict[str, Any]:
        """Return values for JSON; ``ImageGeometry(**config)`` restores the geometry."""
        return {"mode": self.mode, "size": list(self.size)}


@dataclass(frozen=True)
class Placement:
    """The placement of one image: padded to ``canvas``, resized, cropped to ``input``. Sizes are (height, width).

    Points are ``(x, y)`` in pixels from the top left corner of the top left pixel. A point of the image is mapped to
    ``point * scale + offset`` on the input.

    Attributes:
        image_size: Height and width of the image.
        canvas: Size after padding.
        pad: Rows above and columns left of the image on the canvas.
        resized: Size after resizing the canvas.
        crop: Rows cropped at the top and columns cropped at the left.
        input: Size of the input.
    """

    image_size: Size
    canvas: Size
    pad: Size
    resized: Size
    crop: Size
    input: Size

    @property
    def scale(self) -> tuple[float, float]:
        """Number of input pixels per image pixel, vertically and horizontally."""
        return self.resized[0] / self.canvas[0], self.resized[1] / self.canvas[1]

    @property
    def offset(self) -> tuple[float, float]:
        """Row and column of the top left corner of the image on the input; negative if it is cropped."""
        scale = self.scale
        return self.pad[0] * scale[0] - self.crop[0], self.pad[1] * scale[1] - self.crop[1]

    def image(self, image: Image.Image, *, fill: tuple[int, int, int] | None = (0, 0, 0)) -> Image.Image:
        """Return an RGB image placed on the input, resized by Pillow with antialiased bicubic interpolation.

        ``fill`` is the colour of the padding; None repeats the border pixels, so that no edge appears.

        Raises:
            ShapeError: An image of another size.
        """
        if (image.height, image.width) != self.image_size:
            raise ShapeError(f"this placement is for images of {self.image_size}; got {(image.height, image.width)}.")
        if max(math.prod(self.canvas), math.prod(self.resized)) > _MAX_PIXELS:
            return self._place_long_image(image, fill)
        if self.canvas != self.image_size:
            image = _pad(image, self.pad, self.canvas, fill)
        if self.resized != self.canvas:
            image = image.resize(self.resized[::-1], Image.Resampling.BICUBIC)
        if self.input != self.resized:
            top, left = self.crop
            image = image.crop((left, top, left + self.input[1], top + self.input[0]))
        return image

    def mask(self, mask: Tensor | np.ndarray) -> Tensor:
        """Return bool masks ``(..., height, width)`` placed on the input by nearest pixel; padding is false.

        Returns:
            ``(..., input height, input width)`` bool.

        Raises:
            ShapeError: Masks of another size.
            DTypeError: Masks that are not bool.
        """
        mask = torch.as_tensor(mask)
        if tuple(mask.shape[-2:]) != self.image_size:
            raise ShapeError(
                f"masks must be (..., {self.image_size[0]}, {self.image_size[1]}) like their image; got "
                f"{tuple(mask.shape)}."
            )
        if mask.dtype != torch.bool:
            raise DTypeError(f"masks must be bool; got {mask.dtype}. Compare them first, as in masks > 0.")
        row, row_inside = self._source(0, mask.device)
        col, col_inside = self._source(1, mask.device)
        return mask[..., row[:, None], col] & row_inside[:, None] & col_inside

    def points(self, points: Tensor) -> Tensor:
        """Map ``(..., 2)`` points ``(x, y)`` from the image to the input."""
        scale, offset = self._xy(points)
        return points * scale + offset

    def points_to_image(self, points: Tensor) -> Tensor:
        """Map ``(..., 2)`` points ``(x, y)`` from the input to the image."""
        scale, offset = self._xy(points)
        return (points - offset) / scale

    def valid(self, grid: Size) -> Tensor:
        """Return the valid patches of a grid, ``(rows, cols)`` bool: the image covers more than 0.07 of each.

        If an image is too narrow for that, the patches that it covers most are valid.
        """
        covered = self._covered(0, grid[0])[:, None] * self._covered(1, grid[1])
        return covered > min(_MIN_SHOWN, covered.max().item() / 2)

    def patches(self, grid: Size, size: Size | None = None) -> np.ndarray:
        """Return the patch that contains each pixel of the image, ``(height, width)``; -1 for pixels that are cropped.

        Args:
            grid: Rows and columns of patches.
            size: Height and width of the result; by default those of the image.
        """
        (rows, cols), (height, width) = grid, size or self.image_size
        x = (np.arange(width) + 0.5) * self.image_size[1] / width
        y = (np.arange(height) + 0.5) * self.image_size[0] / height
        col = np.floor((x * self.scale[1] + self.offset[1]) * cols / self.input[1]).astype(int)
        row = np.floor((y * self.scale[0] + self.offset[0]) * rows / self.input[0]).astype(int)
        inside = ((row >= 0) & (row < rows))[:, None] & ((col >= 0) & (col < cols))
        return np.where(inside, row.clip(0, rows - 1)[:, None] * cols + col.clip(0, cols - 1), -1)

    def _place_long_image(self, image: Image.Image, fill: tuple[int, int, int] | None) -> Image.Image:
        """Place an image whose canvas would be huge: resize only its visible part, to whole pixels, then pad."""
        scale, offset = np.array(self.scale), np.array(self.offset)
        start = np.clip(np.round(offset), 0, np.array(self.input) - 1).astype(int)
        end = np.clip(np.round(offset + np.array(self.image_size) * scale), start + 1, self.input).astype(int)
        low = np.clip((start - offset) / scale, 0, np.array(self.image_size) - 1)  # at least one pixel of the image
        high = np.clip((end - offset) / scale, low + 1, self.image_size)
        size = (int(end[1] - start[1]), int(end[0] - start[0]))
        image = image.resize(size, Image.Resampling.BICUBIC, box=(low[1], low[0], high[1], high[0]))
        return _pad(image, (int(start[0]), int(start[1])), self.input, fill)

    def _covered(self, axis: int, patches: int) -> Tensor:
        """Return the fraction of each patch that the image covers along an axis."""
        edges = torch.arange(patches + 1, dtype=torch.float64, device="cpu") * (self.input[axis] / patches)
        start = self.offset[axis]
        end = start + self.image_size[axis] * self.scale[axis]
        overlap = edges[1:].clamp(max=end) - edges[:-1].clamp(min=start)
        return overlap.clamp(min=0) / (self.input[axis] / patches)

    def _source(self, axis: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the image pixel of each input pixel along an axis, and the input pixels that show the image."""
        center = torch.arange(self.input[axis], dtype=torch.float64, device="cpu") + 0.5
        source = ((center - self.offset[axis]) / self.scale[axis]).floor().long()
        inside = (source >= 0) & (source < self.image_size[axis])
        return source.clamp(0, self.image_size[axis] - 1).to(device), inside.to(device)

    def _xy(self, points: Tensor) -> tuple[Tensor, Tensor]:
        if points.shape[-1:] != (2,):
            raise ShapeError(f"points must be (..., 2), x and y; got {tuple(points.shape)}.")
        if not points.is_floating_point():
            raise DTypeError(f"points must be floating point; got {points.dtype}. Convert them with points.float().")
        return points.new_tensor(self.scale[::-1]), points.new_tensor(self.offset[::-1])


def _pad(image: Image.Image, pad: Size, canvas: Size, fill: tuple[int, int, int] | None) -> Image.Image:
    """Pad an image to a canvas, ``pad`` rows at the top and columns at the left; None repeats the border pixels."""
    (top, left), (height, width) = pad, canvas
    if fill is not None:
        padded = Image.new("RGB", (width, height), fill)
        padded.paste(image, (left, top))
        return padded
    bottom, right = height - top - image.height, width - left - image.width
    return Image.fromarray(np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge"))
