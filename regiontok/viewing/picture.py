"""A photo with its regions: outlined, and filled with their mean colours. Needs nothing beyond Pillow and numpy."""

import numpy as np
from PIL import Image
from scipy import ndimage

from regiontok.errors import ShapeError
from regiontok.geometry import Placement
from regiontok.regions import Regions

_LONGEST_SIDE = 1280
_GAP = 16
_LIGHT, _DARK = (255, 255, 255), (20, 20, 20)  # a light line with dark rims is seen on any photo


def draw_regions(photo: Image.Image, regions: Regions, placement: Placement) -> Image.Image:
    """Draw one photo's regions: on the left the photo with their outlines, on the right each in its mean colour.

    Where regions overlap every outline is drawn, and the smallest region lies on top. What lies in no region keeps its
    own pixels, dimmed. Photos with a side above 1280 pixels are drawn smaller.

    Args:
        photo: The upright RGB photo.
        regions: Its regions, a batch of one image.
        placement: How the photo lay on the encoder's input.

    Returns:
        An RGBA picture; the gap in the middle is transparent.

    Raises:
        ShapeError: Regions of several images, or a photo of another size than the placement's.
    """
    if len(regions.grids) != 1:
        raise ShapeError(f"regions must be of one image; got {len(regions.grids)}.")
    if (photo.height, photo.width) != placement.photo:
        raise ShapeError(f"the placement is for photos of {placement.photo}; got {(photo.height, photo.width)}.")
    top, membership = _flatten(regions)
    shrink = min(1.0, _LONGEST_SIDE / max(photo.size))
    size = (max(1, round(photo.width * shrink)), max(1, round(photo.height * shrink)))
    pixels = np.asarray(photo.resize(size, Image.Resampling.BOX) if shrink < 1 else photo)
    height, width = pixels.shape[:2]
    outlined = _outline(pixels, _label_pixels(membership, placement, height, width))
    filled = _fill(pixels, _label_pixels(top, placement, height, width))
    picture = Image.new("RGBA", (2 * size[0] + _GAP, size[1]), (0, 0, 0, 0))
    picture.paste(Image.fromarray(outlined), (0, 0))
    picture.paste(Image.fromarray(filled), (size[0] + _GAP, 0))
    return picture


def _flatten(regions: Regions) -> tuple[np.ndarray, np.ndarray]:
    """Two maps ``(rows, cols)``, -1 in no region: the smallest region of each patch, and the set of all its regions."""
    masks = regions.masks()[0].cpu().numpy()
    by_size = np.argsort(-masks.sum((1, 2)), kind="stable")
    top = np.full(masks.shape[1:], -1)
    covered = masks.any(0)
    last = len(masks) - 1 - masks[by_size[::-1]].argmax(0)  # the smallest comes last
    top[covered] = by_size[last][covered]
    _, sets = np.unique(np.packbits(masks, axis=0).reshape(-1, top.size), axis=1, return_inverse=True)
    return top, np.where(covered, sets.reshape(top.shape), -1)


def _label_pixels(labels: np.ndarray, placement: Placement, height: int, width: int) -> np.ndarray:
    """The region of each of ``height x width`` pixels laid over the photo; -1 where there is none."""
    rows, cols = labels.shape
    x = (np.arange(width) + 0.5) * placement.photo[1] / width
    y = (np.arange(height) + 0.5) * placement.photo[0] / height
    col = np.floor((x * placement.scale[1] + placement.offset[1]) * cols / placement.input[1]).astype(int)
    row = np.floor((y * placement.scale[0] + placement.offset[0]) * rows / placement.input[0]).astype(int)
    inside = ((row >= 0) & (row < rows))[:, None] & ((col >= 0) & (col < cols))
    return np.where(inside, labels[row.clip(0, rows - 1)[:, None], col.clip(0, cols - 1)], -1)


def _outline(pixels: np.ndarray, label: np.ndarray) -> np.ndarray:
    edge = np.zeros(label.shape, bool)
    edge[:, 1:] |= label[:, 1:] != label[:, :-1]
    edge[1:] |= label[1:] != label[:-1]
    thin = max(1, round(min(label.shape) / 400))
    outlined = _dim_uncovered(pixels, label)
    outlined[ndimage.maximum_filter(edge, 3 * thin)] = _DARK
    outlined[ndimage.maximum_filter(edge, thin)] = _LIGHT
    return outlined


def _fill(pixels: np.ndarray, label: np.ndarray) -> np.ndarray:
    filled = _dim_uncovered(pixels, label)
    covered = label >= 0
    if covered.any():
        index = label[covered]
        area = np.bincount(index)
        mean = np.stack([np.bincount(index, pixels[covered][:, channel]) for channel in range(3)], 1)
        filled[covered] = (mean / np.maximum(area, 1)[:, None]).round().astype(np.uint8)[index]
    return filled


def _dim_uncovered(pixels: np.ndarray, label: np.ndarray) -> np.ndarray:
    return np.where((label >= 0)[..., None], pixels, pixels // 3).astype(np.uint8)
