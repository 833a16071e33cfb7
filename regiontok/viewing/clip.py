"""Drawings of the regions of a clip with Pillow and NumPy: a strip of frames, and an animation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regiontok._files import atomic_write
from regiontok._values import check_integer
from regiontok.errors import OutputError, ShapeError, ValueRangeError
from regiontok.geometry import Placement
from regiontok.images import as_images, shrink
from regiontok.regions import Regions
from regiontok.viewing.picture import fill, label_patches, outline, to_pixels

_LONGEST_SIDE = 480
_GAP = 8
ANIMATIONS = (".apng", ".gif", ".webp")
"""Suffixes of files that contain only animations."""
_FORMATS = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG", ".apng": "PNG"}


def draw_clip(frames: Sequence[Any], regions: Regions, placement: Placement, *, columns: int = 8) -> Image.Image:
    """Draw the regions of a clip as a strip: each frame with outlines, and below it the regions in their mean colours.

    The colour of a region is its mean over all frames, so a region has one colour in the whole strip.

    Args:
        frames: The frames of the clip, as ``Video.frames``.
        regions: The regions of the clip, as a batch of one clip.
        placement: Placement of a frame on the input of the encoder, ``encoder.geometry.place((height, width))``.
        columns: Frames side by side; more frames continue below.

    Returns:
        An RGBA image with transparent gaps.

    Raises:
        ShapeError: ``regions`` are not of one clip with as many frames, or frames are not of the size of ``placement``.
        ValueRangeError: ``columns`` is below 1.
    """
    columns = check_integer("columns", columns)
    pairs = _draw_frames(frames, regions, placement)
    height, width = pairs[0][0].shape[:2]
    across, down = min(columns, len(pairs)), -(-len(pairs) // columns)
    block = 2 * height + _GAP
    strip = Image.new("RGBA", (across * (width + _GAP) - _GAP, down * (block + 2 * _GAP) - 2 * _GAP), (0, 0, 0, 0))
    for number, (outlined, filled) in enumerate(pairs):
        left, top = number % columns * (width + _GAP), number // columns * (block + 2 * _GAP)
        strip.paste(Image.fromarray(outlined), (left, top))
        strip.paste(Image.fromarray(filled), (left, top + height + _GAP))
    return strip


def check_picture(path: Path) -> None:
    """Raise an error for a file that Pillow cannot write.

    Raises:
        OutputError: The suffix is not that of a format that Pillow writes.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise OutputError(
            f"{path.name} must have the suffix of a picture, such as .png, or one of {', '.join(ANIMATIONS)}."
        )


def save_clip(
    path: str | Path, frames: Sequence[Any], regions: Regions, placement: Placement, *, fps: float = 4
) -> Path:
    """Write an animation of the regions of a clip: outlines on the left, mean colours on the right. Return its path.

    Args:
        path: A file with the suffix ``.gif``, ``.webp``, ``.png`` or ``.apng``.
        frames: The frames of the clip, as ``Video.frames``.
        regions: The regions of the clip, as a batch of one clip.
        placement: Placement of a frame on the input of the encoder.
        fps: Frames per second.

    Raises:
        ShapeError: See `draw_clip`.
        ValueRangeError: ``fps`` is not positive.
        OutputError: The suffix is none of these, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise OutputError(f"an animation must be one of {', '.join(_FORMATS)}; got {path.name}.")
    if not fps > 0:
        raise ValueRangeError(f"fps must be positive; got {fps}.")
    drawn = [Image.fromarray(np.concatenate(pair, 1)) for pair in _draw_frames(frames, regions, placement)]
    with atomic_write(path) as temporary:
        drawn[0].save(
            temporary,
            format=_FORMATS[path.suffix.lower()],
            save_all=True,
            append_images=drawn[1:],
            duration=round(1000 / fps),
            loop=0,
            lossless=True,  # of WebP
        )
    return path


def _draw_frames(frames: Sequence[Any], regions: Regions, placement: Placement) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the outlined and the filled pixels of each frame."""
    smallest, region_set = label_patches(regions)
    if smallest.ndim != 3 or len(smallest) != len(frames):
        raise ShapeError(f"regions must be of a clip with {len(frames)} frames; got grids {regions.grids.tolist()}.")
    images = as_images(list(frames))
    for number, image in enumerate(images):
        if (image.height, image.width) != placement.image_size:
            raise ShapeError(
                f"the placement is for frames of {placement.image_size}; got {(image.height, image.width)} for frame "
                f"{number}."
            )
    pixels = np.stack([np.asarray(shrink(image, _LONGEST_SIDE)) for image in images])
    count, height, width = pixels.shape[:3]
    labels = [to_pixels(frame, placement, (height, width), outside=-1) for frame in smallest]
    sets = [to_pixels(frame, placement, (height, width), outside=-1) for frame in region_set]
    filled = fill(pixels.reshape(count * height, width, 3), np.concatenate(labels)).reshape(pixels.shape)
    return [(outline(*pair), colours) for *pair, colours in zip(pixels, sets, filled, strict=True)]
