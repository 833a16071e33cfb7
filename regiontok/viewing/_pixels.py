"""Pixels of images and of label maps."""

import numpy as np
from PIL import Image


def shrunk(image: Image.Image, longest: int) -> Image.Image:
    """An image whose longer side is at most ``longest`` pixels."""
    shrink = min(1.0, longest / max(image.size))
    size = (max(1, round(image.width * shrink)), max(1, round(image.height * shrink)))
    return image.resize(size, Image.Resampling.BOX) if shrink < 1 else image


def edges(label: np.ndarray) -> np.ndarray:
    """Which pixels ``(height, width)`` differ from the one to the left or above."""
    edge = np.zeros(label.shape, bool)
    edge[:, 1:] |= label[:, 1:] != label[:, :-1]
    edge[1:] |= label[1:] != label[:-1]
    return edge
