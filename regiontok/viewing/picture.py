"""An image with its regions: outlined, and filled with their mean colours. Needs nothing beyond Pillow and numpy."""

import numpy as np
from PIL import Image
from scipy import ndimage

from regiontok.errors import ShapeError
from regiontok.geometry import Placement
from regiontok.regions import Regions
from regiontok.viewing._pixels import edges, shrunk

_LONGEST_SIDE = 1280
_GAP = 16
_LIGHT, _DARK = (255, 255, 255), (20, 20, 20)  # a light line with dark rims is seen on any image


def draw_regions(image: Image.Image, regions: Regions, placement: Placement) -> Image.Image:
    """Draw one image's regions: on the left the image with their outlines, on the right each in its mean colour.

    Where regions overlap every outline is drawn, and the smallest region lies on top. What lies in no region keeps its
    own pixels, dimmed. Images with a side above 1280 pixels are drawn smaller.

    Args:
        image: The upright RGB image.
        regions: Its regions, a batch of one image.
        placement: How the image lay on the encoder's input.

    Returns:
        An RGBA picture; the gap in the middle is transparent.

    Raises:
        ShapeError: Regions of several images, or an image of another size than the placement's.
    """
    if len(regions.grids) != 1:
        raise ShapeError(f"regions must be of one image; got {len(regions.grids)}.")
    if (image.height, image.width) != placement.image_size:
        raise ShapeError(f"the placement is for images of {placement.image_size}; got {(image.height, image.width)}.")
    top, membership = flatten(regions)
    pixels = np.asarray(shrunk(image, _LONGEST_SIDE))
    height, width = pixels.shape[:2]
    patch = placement.patches((top.shape[0], top.shape[1]), (height, width))
    picture = Image.new("RGBA", (2 * width + _GAP, height), (0, 0, 0, 0))
    picture.paste(Image.fromarray(outline(pixels, np.append(membership, -1)[patch])), (0, 0))
    picture.paste(Image.fromarray(_fill(pixels, np.append(top, -1)[patch])), (width + _GAP, 0))
    return picture


def flatten(regions: Regions) -> tuple[np.ndarray, np.ndarray]:
    """Two maps ``(rows, cols)``, -1 in no region: the smallest region of each patch, and the set of all its regions."""
    masks = regions.masks()[0].cpu().numpy()
    by_size = np.argsort(-masks.sum((1, 2)), kind="stable")
    top = np.full(masks.shape[1:], -1)
    covered = masks.any(0)
    last = len(masks) - 1 - masks[by_size[::-1]].argmax(0)  # the smallest comes last
    top[covered] = by_size[last][covered]
    _, sets = np.unique(np.packbits(masks, axis=0).reshape(-1, top.size), axis=1, return_inverse=True)
    return top, np.where(covered, sets.reshape(top.shape), -1)


def outline(pixels: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Pixels ``(height, width, 3)`` with lines where labels change, dimmed where there is none (-1)."""
    edge = edges(label)
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
