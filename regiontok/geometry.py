"""The one recipe by which an encoder's images, and their masks and points, are placed on its input."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regiontok._checks import check_choice, check_size
from regiontok.errors import DTypeError, ShapeError

_MODES = ("letterbox", "squash", "center_crop")
_LEAST_SHARE = 0.07
"""A patch shows the image if more than this share of it does: the paper's rule for masks (A.1), for images too."""
_MOST_PIXELS = 2**26
"""Images are padded before they are resized, as LLaVA does it, where that makes no larger picture than this."""

Size = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True)
class ImageGeometry:
    """How images of any size are brought to one input size. It is saved with an encoder and knows no image.

    Use `letterbox`, `squash` or `center_crop`, then `place` an image. An image and its masks go through the same
    placement, so they can never be preprocessed differently.

    Attributes:
        mode: ``letterbox`` pads to the input's aspect, then resizes; ``squash`` resizes both sides; ``center_crop``
            resizes until the input is covered, then crops the middle.
        size: Height and width of the encoder's input in pixels.

    Raises:
        DTypeError, ValueRangeError: An unknown mode, or a size that is not of whole positive numbers.

    Example:
        >>> placement = ImageGeometry.letterbox(336).place((480, 640))
        >>> placement.scale, placement.offset
        ((0.525, 0.525), (42.0, 0.0))
        >>> placement.valid((24, 24)).sum().item()  # 18 of 24 rows show the image
        432

    Source:
        Letterbox is LLaVA-1.5's ``pad`` (second stage and evaluation), center crop its first stage's.
    """

    mode: str
    size: Size

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, _MODES)
        given = self.size if isinstance(self.size, Sequence | np.ndarray | Tensor) else (self.size, self.size)
        object.__setattr__(self, "size", check_size("size", given))

    @classmethod
    def letterbox(cls, size: int | Size) -> "ImageGeometry":
        """Pad to the input's aspect with the image in the middle, then resize: nothing is cut off or distorted."""
        return cls("letterbox", size)  # type: ignore[arg-type]

    @classmethod
    def squash(cls, size: int | Size) -> "ImageGeometry":
        """Resize both sides to the input: every patch shows the image, distorted."""
        return cls("squash", size)  # type: ignore[arg-type]

    @classmethod
    def center_crop(cls, size: int | Size) -> "ImageGeometry":
        """Resize until the input is just covered, then crop the middle: the ends of the longer side are lost."""
        return cls("center_crop", size)  # type: ignore[arg-type]

    def place(self, image: Size) -> "Placement":
        """The placement of an image of ``(height, width)`` pixels."""
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
        """Plain values for JSON; ``ImageGeometry(**config)`` makes it again."""
        return {"mode": self.mode, "size": list(self.size)}


@dataclass(frozen=True)
class Placement:
    """One image on an encoder's input: padded to ``canvas``, resized, cropped to ``input``; sizes are (height, width).

    Points are ``(x, y)`` in pixels from the top left corner of the top left pixel. A point of the image goes to
    ``point * scale + offset`` on the input.

    Attributes:
        image_size: Height and width of the image.
        canvas: Size after padding.
        pad: Rows above and columns left of the image on the canvas.
        resized: Size after resizing the canvas.
        crop: Rows and columns cut off at the top and left.
        input: The encoder's input size.
    """

    image_size: Size
    canvas: Size
    pad: Size
    resized: Size
    crop: Size
    input: Size

    @property
    def scale(self) -> tuple[float, float]:
        """Input pixels per image pixel, vertically and horizontally."""
        return self.resized[0] / self.canvas[0], self.resized[1] / self.canvas[1]

    @property
    def offset(self) -> tuple[float, float]:
        """Where the image's top left corner lies on the input, in rows and columns; negative where cropped."""
        scale = self.scale
        return self.pad[0] * scale[0] - self.crop[0], self.pad[1] * scale[1] - self.crop[1]

    def image(self, image: Image.Image, *, fill: tuple[int, int, int] | None = (0, 0, 0)) -> Image.Image:
        """Place an RGB image, resized with Pillow's antialiased bicubic filter.

        ``fill`` is the padding's colour; None extends the image's edge, so that padding makes no edge of its own.

        Raises:
            ShapeError: An image of another size.
        """
        if (image.height, image.width) != self.image_size:
            raise ShapeError(f"this placement is for images of {self.image_size}; got {(image.height, image.width)}.")
        if max(math.prod(self.canvas), math.prod(self.resized)) > _MOST_PIXELS:
            return self._image_of_long_image(image, fill)
        if self.canvas != self.image_size:
            image = _pad(image, self.pad, self.canvas, fill)
        if self.resized != self.canvas:
            image = image.resize(self.resized[::-1], Image.Resampling.BICUBIC)
        if self.input != self.resized:
            top, left = self.crop
            image = image.crop((left, top, left + self.input[1], top + self.input[0]))
        return image

    def mask(self, mask: Tensor | np.ndarray) -> Tensor:
        """Place boolean masks ``(..., height, width)`` of the image by nearest pixel; padding is false.

        Returns:
            ``(..., input height, input width)`` bool.

        Raises:
            ShapeError: Masks of another size.
            DTypeError: Masks that are not boolean.
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
        """Move ``(..., 2)`` points ``(x, y)`` from the image to the input."""
        scale, offset = self._xy(points)
        return points * scale + offset

    def points_to_image(self, points: Tensor) -> Tensor:
        """Move ``(..., 2)`` points ``(x, y)`` from the input back to the image."""
        scale, offset = self._xy(points)
        return (points - offset) / scale

    def valid(self, grid: Size) -> Tensor:
        """``(rows, cols)`` bool: the patches of a grid of which more than 0.07 shows the image.

        An image so narrow that it has no such patch has those that show the most of it.
        """
        share = self._share(0, grid[0])[:, None] * self._share(1, grid[1])
        return share > min(_LEAST_SHARE, share.max().item() / 2)

    def patches(self, grid: Size, size: Size | None = None) -> np.ndarray:
        """The patch of a grid that shows each pixel of the image, ``(height, width)``; -1 where none does.

        Args:
            grid: Rows and columns of patches.
            size: As many pixels laid over the image instead of its own.
        """
        (rows, cols), (height, width) = grid, size or self.image_size
        x = (np.arange(width) + 0.5) * self.image_size[1] / width
        y = (np.arange(height) + 0.5) * self.image_size[0] / height
        col = np.floor((x * self.scale[1] + self.offset[1]) * cols / self.input[1]).astype(int)
        row = np.floor((y * self.scale[0] + self.offset[0]) * rows / self.input[0]).astype(int)
        inside = ((row >= 0) & (row < rows))[:, None] & ((col >= 0) & (col < cols))
        return np.where(inside, row.clip(0, rows - 1)[:, None] * cols + col.clip(0, cols - 1), -1)

    def _image_of_long_image(self, image: Image.Image, fill: tuple[int, int, int] | None) -> Image.Image:
        """Place an image whose canvas would be huge: resize its visible part alone, to whole pixels, then pad."""
        scale, offset = np.array(self.scale), np.array(self.offset)
        start = np.clip(np.round(offset), 0, np.array(self.input) - 1).astype(int)
        end = np.clip(np.round(offset + np.array(self.image_size) * scale), start + 1, self.input).astype(int)
        low = np.clip((start - offset) / scale, 0, np.array(self.image_size) - 1)  # at least one pixel of the image
        high = np.clip((end - offset) / scale, low + 1, self.image_size)
        size = (int(end[1] - start[1]), int(end[0] - start[0]))
        image = image.resize(size, Image.Resampling.BICUBIC, box=(low[1], low[0], high[1], high[0]))
        return _pad(image, (int(start[0]), int(start[1])), self.input, fill)

    def _share(self, axis: int, patches: int) -> Tensor:
        """The part of each patch along an axis that the image lies on."""
        edges = torch.arange(patches + 1, dtype=torch.float64, device="cpu") * (self.input[axis] / patches)
        start = self.offset[axis]
        end = start + self.image_size[axis] * self.scale[axis]
        overlap = edges[1:].clamp(max=end) - edges[:-1].clamp(min=start)
        return overlap.clamp(min=0) / (self.input[axis] / patches)

    def _source(self, axis: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The image's pixel for each input pixel along an axis, and which input pixels show the image."""
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
    """Put an image on a canvas, ``pad`` rows from the top and columns from the left; None extends its edge."""
    (top, left), (height, width) = pad, canvas
    if fill is not None:
        padded = Image.new("RGB", (width, height), fill)
        padded.paste(image, (left, top))
        return padded
    bottom, right = height - top - image.height, width - left - image.width
    return Image.fromarray(np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge"))
