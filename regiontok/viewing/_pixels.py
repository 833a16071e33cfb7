"""From patches to the pixels of the photo that they show."""

import numpy as np
from PIL import Image

from regiontok.geometry import Placement, Size


def patches_at(placement: Placement, grid: Size, size: Size) -> np.ndarray:
    """The patch that shows each of ``size`` pixels laid over a photo, ``(height, width)``; -1 where none does."""
    (rows, cols), (height, width) = grid, size
    x = (np.arange(width) + 0.5) * placement.photo[1] / width
    y = (np.arange(height) + 0.5) * placement.photo[0] / height
    col = np.floor((x * placement.scale[1] + placement.offset[1]) * cols / placement.input[1]).astype(int)
    row = np.floor((y * placement.scale[0] + placement.offset[0]) * rows / placement.input[0]).astype(int)
    inside = ((row >= 0) & (row < rows))[:, None] & ((col >= 0) & (col < cols))
    return np.where(inside, row.clip(0, rows - 1)[:, None] * cols + col.clip(0, cols - 1), -1)


def shrunk(photo: Image.Image, longest: int) -> Image.Image:
    """A photo whose longer side is at most ``longest`` pixels."""
    shrink = min(1.0, longest / max(photo.size))
    size = (max(1, round(photo.width * shrink)), max(1, round(photo.height * shrink)))
    return photo.resize(size, Image.Resampling.BOX) if shrink < 1 else photo


def edges(label: np.ndarray) -> np.ndarray:
    """Which pixels ``(height, width)`` differ from the one to the left or above."""
    edge = np.zeros(label.shape, bool)
    edge[:, 1:] |= label[:, 1:] != label[:, :-1]
    edge[1:] |= label[1:] != label[:-1]
    return edge
