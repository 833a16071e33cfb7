"""Drawings of the regions of an image with Pillow and NumPy: their outlines and their mean colours."""

import numpy as np
from PIL import Image
from scipy import ndimage

from regiontok.errors import ShapeError
from regiontok.geometry import Placement
from regiontok.images import shrink
from regiontok.regions import Regions

_LONGEST_SIDE = 1280
_GAP = 16
_LIGHT, _DARK = (255, 255, 255), (20, 20, 20)  # a light line with dark borders is visible on any image


def draw_regions(image: Image.Image, regions: Regions, placement: Placement) -> Image.Image:
    """Draw the regions of an image twice: on the left as outlines on the image, on the right in their mean colours.

    All outlines of overlapping regions are drawn, and the smallest region is filled last. Pixels outside of all regions
    are dimmed. Images with a side above 1280 pixels are reduced.

    Args:
        image: The upright RGB image.
        regions: The regions of the image, as a batch of one image.
        placement: Placement of the image on the input of the encoder.

    Returns:
        An RGBA image with a transparent gap in the middle.

    Raises:
        ShapeError: ``regions`` has several images, or ``image`` and ``placement`` have different sizes.
    """
    smallest, region_set = label_patches(regions)
    if smallest.ndim == 3:
        raise ShapeError("regions must be of an image; got a clip. Use draw_clip.")
    if (image.height, image.width) != placement.image_size:
        raise ShapeError(f"the placement is for images of {placement.image_size}; got {(image.height, image.width)}.")
    pixels = np.asarray(shrink(image, _LONGEST_SIDE))
    height, width = pixels.shape[:2]
    drawing = Image.new("RGBA", (2 * width + _GAP, height), (0, 0, 0, 0))
    outlined = outline(pixels, to_pixels(region_set, placement, (height, width), outside=-1))
    filled = fill(pixels, to_pixels(smallest, placement, (height, width), outside=-1))
    drawing.paste(Image.fromarray(outlined), (0, 0))
    drawing.paste(Image.fromarray(filled), (width + _GAP, 0))
    return drawing


def label_patches(regions: Regions) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest region and an index of the set of all regions of each patch, -1 for no region.

    Args:
        regions: A batch of one image or clip.

    Returns:
        Two arrays ``(rows, cols)``, of a clip ``(frames, rows, cols)``.

    Raises:
        ShapeError: ``regions`` has several images.
    """
    if len(regions.grids) != 1:
        raise ShapeError(f"regions must be of one image; got {len(regions.grids)}.")
    masks = regions.masks()[0].cpu().numpy()
    by_size = np.argsort(-masks.reshape(len(masks), -1).sum(1), kind="stable")
    smallest = np.full(masks.shape[1:], -1)
    covered = masks.any(0)
    last = len(masks) - 1 - masks[by_size[::-1]].argmax(0)
    smallest[covered] = by_size[last][covered]
    _, sets = np.unique(np.packbits(masks, axis=0).reshape(-1, smallest.size), axis=1, return_inverse=True)
    return smallest, np.where(covered, sets.reshape(smallest.shape), -1)


def to_pixels(values: np.ndarray, placement: Placement, size: tuple[int, int], *, outside: float) -> np.ndarray:
    """Resize values of patches ``(rows, cols, ...)`` to an image: ``(height, width, ...)``.

    Args:
        values: Values of the patches.
        placement: Placement of the image on the input of the encoder.
        size: Height and width of the result.
        outside: Value of the pixels that are cropped from the input.
    """
    rows, cols = values.shape[:2]
    patch = placement.patches((rows, cols), size)
    flat = values.reshape(rows * cols, *values.shape[2:])
    return np.concatenate([flat, np.full((1, *values.shape[2:]), outside)])[patch]


def outline(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Draw lines between labels ``(height, width)`` on pixels ``(height, width, 3)``, and dim pixels of label -1."""
    is_edge = find_edges(labels)
    width = max(1, round(min(labels.shape) / 400))
    outlined = _dim_outside(pixels, labels)
    outlined[ndimage.maximum_filter(is_edge, 3 * width)] = _DARK
    outlined[ndimage.maximum_filter(is_edge, width)] = _LIGHT
    return outlined


def find_edges(labels: np.ndarray) -> np.ndarray:
    """Return which pixels ``(height, width)`` have another label than the pixel to the left or above."""
    is_edge = np.zeros(labels.shape, bool)
    is_edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    is_edge[1:] |= labels[1:] != labels[:-1]
    return is_edge


def fill(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Draw each label ``(height, width)`` in the mean colour of its pixels, and dim pixels of label -1."""
    filled = _dim_outside(pixels, labels)
    covered = labels >= 0
    if covered.any():
        index = labels[covered]
        area = np.bincount(index)
        sums = np.stack([np.bincount(index, pixels[covered][:, channel]) for channel in range(3)], 1)
        filled[covered] = (sums / np.maximum(area, 1)[:, None]).round().astype(np.uint8)[index]
    return filled


def _dim_outside(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.where((labels >= 0)[..., None], pixels, pixels // 3).astype(np.uint8)
