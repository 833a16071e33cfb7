"""Pixels of photos and of label maps."""

import numpy as np
from PIL import Image


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
