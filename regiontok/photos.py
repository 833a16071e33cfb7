"""Reading photos: one upright RGB picture of 8 bits, or an error that says why not."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from regiontok.errors import DTypeError, PhotoError

_SINGLE_PICTURE_FORMATS = ("MPO",)
"""Formats whose further frames are previews or depth of the same photo, as phones write them."""


def read_photo(path: str | Path) -> Image.Image:
    """Read a photo from a file.

    Turned upright by its EXIF orientation; CMYK, palette and grey converted to RGB; 16-bit grey scaled to 8;
    transparency laid over white.

    Raises:
        PhotoError: No such file, not an image, truncated, animated or of several pages, of an unknown depth, or above
            Pillow's limit against decompression bombs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return as_rgb(image)
    except FileNotFoundError as error:
        raise PhotoError(f"{path}: there is no such file.") from error
    except UnidentifiedImageError as error:
        raise PhotoError(f"{path}: not an image that Pillow {PIL.__version__} can read.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PhotoError(
            f"{path}: more pixels than Pillow's limit of {Image.MAX_IMAGE_PIXELS}, which guards against decompression "
            "bombs. Make the photo smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file."
        ) from error
    except PhotoError as error:
        raise PhotoError(f"{path}: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow's decoders raise on damaged files
        raise PhotoError(f"{path}: damaged or cut short ({error}).") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Turn any Pillow image into one upright RGB picture of 8 bits; see `read_photo`.

    Raises:
        DTypeError: Not a Pillow image.
        PhotoError: Several frames, or a depth that does not say what white is.
    """
    if not isinstance(image, Image.Image):
        raise DTypeError(
            f"a photo must be a PIL image; got {type(image).__name__}. Read files with regiontok.read_photo."
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and getattr(image, "format", None) not in _SINGLE_PICTURE_FORMATS:
        raise PhotoError(f"it has {frames} frames and one is wanted. Choose one: image.seek(0); image = image.copy().")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = _from_wide_grey(image)
    elif image.mode == "F":
        raise PhotoError("its pixels are floating point and do not say what white is. Convert it to 8 bits first.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def as_photos(photos: Image.Image | Sequence[Image.Image]) -> list[Image.Image]:
    """One photo or several as a list of upright RGB pictures."""
    if isinstance(photos, Image.Image):
        photos = [photos]
    if isinstance(photos, str | Path) or not isinstance(photos, Sequence):
        raise DTypeError(
            f"photos must be a PIL image or a list of them; got {type(photos).__name__}. "
            "Read files with regiontok.read_photo."
        )
    if not photos:
        raise PhotoError("photos must hold at least one; got an empty list.")
    result = []
    for index, photo in enumerate(photos):
        try:
            result.append(as_rgb(photo))
        except PhotoError as error:
            raise PhotoError(f"photo {index}: {error}") from error
    return result


def _from_wide_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise PhotoError(
            f"its pixels go from {values.min()} to {values.max()}, beyond 16 bits. Convert it to 8 bits first."
        )
    return Image.fromarray((values / 257).round().astype(np.uint8))
