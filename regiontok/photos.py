"""Reading photos: one upright RGB picture of 8 bits, or an error that says why not."""

import contextlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from regiontok.errors import DTypeError, PhotoError

Size = tuple[int, int]
"""Height and width."""

_ORIENTATION = 0x0112
_SINGLE_PICTURE_FORMATS = ("MPO",)
"""Formats whose further frames are previews or depth of the same photo, as phones write them."""


def read_photo(path: str | Path) -> Image.Image:
    """Read a photo from a file.

    Turned upright by its EXIF orientation; CMYK, palette and grey converted to RGB; 16-bit grey scaled to 8;
    transparency laid over white. A damaged EXIF block is passed over: it says nothing of the pixels.

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
    except Exception as error:  # Pillow's decoders raise all kinds of errors on damaged files
        raise explain_photo(str(path), error) from error


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
    one_frame(image)
    image.load()  # a file cut short must show here, not be taken for a damaged EXIF block
    with contextlib.suppress(Exception):  # a damaged EXIF block, for which Pillow raises all kinds, is not the pixels
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


def one_frame(image: Image.Image) -> None:
    """Refuse a picture of several frames.

    Raises:
        PhotoError: Such a picture.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and getattr(image, "format", None) not in _SINGLE_PICTURE_FORMATS:
        raise PhotoError(
            f"it has {frames} frames and one is wanted. Save the one you want as a photo, or in Python: image.seek(0); "
            "image = image.copy()."
        )


def read_size(path: str | Path) -> tuple[Size, int]:
    """A photo's height and width, upright, and its EXIF orientation; its pixels are not read.

    Raises:
        PhotoError: No such file, or not an image.
    """
    try:
        with Image.open(path) as image:
            orientation = 1
            with contextlib.suppress(Exception):  # a damaged EXIF block says nothing, as for `as_rgb`
                orientation = image.getexif().get(_ORIENTATION, 1)
            size = (image.height, image.width)
    except Exception as error:  # Pillow raises all kinds of errors on damaged files
        raise explain_photo(str(path), error) from error
    if orientation not in range(1, 9):
        orientation = 1
    return (size if orientation < 5 else size[::-1]), orientation


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
        except DTypeError:
            raise
        except Exception as error:  # a file opened lazily is decoded only here
            raise explain_photo(f"photo {index}", error) from error
    return result


def explain_photo(photo: str, error: Exception) -> PhotoError:
    """Say in a user's words why a photo cannot be had."""
    if isinstance(error, PhotoError):
        return PhotoError(f"{photo}: {error}")
    if isinstance(error, FileNotFoundError):
        return PhotoError(f"{photo}: there is no such file.")
    if isinstance(error, IsADirectoryError):
        return PhotoError(f"{photo}: a folder, not a photo. Name the files in it.")
    if isinstance(error, UnidentifiedImageError):
        return PhotoError(f"{photo}: not an image that Pillow {PIL.__version__} can read.")
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return PhotoError(
            f"{photo}: more pixels than Pillow's limit of {Image.MAX_IMAGE_PIXELS}, which guards against decompression "
            "bombs. Make the photo smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file."
        )
    if isinstance(error, OSError) and error.strerror:
        return PhotoError(f"{photo}: cannot be read ({error.strerror}).")
    return PhotoError(f"{photo}: damaged or cut short ({error}).")


def _from_wide_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise PhotoError(
            f"its pixels go from {values.min()} to {values.max()}, beyond 16 bits. Convert it to 8 bits first."
        )
    return Image.fromarray((values / 257).round().astype(np.uint8))
