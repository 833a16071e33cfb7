"""Reading images: one upright RGB picture of 8 bits, or an error that says why not."""

import contextlib
import functools
import io
import os
import stat
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from regiontok._checks import check_integer
from regiontok.errors import DTypeError, ImageError, ValueRangeError

Size = tuple[int, int]
"""Height and width."""

Images = Image.Image | str | Path | np.ndarray | Sequence[Image.Image | str | Path | np.ndarray]
"""One image or several: Pillow images, paths, or arrays of uint8."""

DRAWN = ".regions.png"
"""Suffix of the pictures that ``regiontok tokenize`` draws, which are no input."""
_ORIENTATION = 0x0112
_SINGLE_PICTURE_FORMATS = ("MPO",)
"""Formats whose further frames are previews or depth of the same image, as phones write them."""


def read_image(
    path: str | Path,
    data: bytes | None = None,
    *,
    bits: int | None = None,
    admit: Callable[[int], None] | None = None,
) -> Image.Image:
    """Read an image from a file, or from its bytes if they are given.

    It is turned upright by its EXIF orientation; CMYK, palette and greyscale are converted to RGB; greyscale of 16 bits
    is scaled from 65535 to 255; transparency is laid over white. Invalid EXIF data is ignored.

    Args:
        path: The file.
        data: Its bytes, if they are known.
        bits: Bits that a 16-bit greyscale image uses, such as 12 for many scanners and cameras: white is then
            ``2**bits - 1``.
        admit: Called with the number of pixels before they are decoded, as to wait for memory.

    Raises:
        ImageError: No such file, not an image, truncated, animated or of several pages, of an unknown depth, or above
            Pillow's limit against decompression bombs.
    """
    if bits is not None:
        check_integer("bits", bits)
        if bits > 16:
            raise ValueRangeError(f"bits must be from 1 to 16; got {bits}.")
    try:
        with _opened(path, data) as image:
            limit = (
                Image.MAX_IMAGE_PIXELS
            )  # Pillow only warns up to twice of it, and filters of warnings are no thread's own
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError
            if admit is not None:
                admit(image.width * image.height)
            return as_rgb(image, bits=bits)
    except UserWarning:  # the caller has made warnings errors
        raise
    except Exception as error:  # Pillow's decoders raise all kinds of errors on damaged files
        raise explain_image(str(path), error) from error


def as_rgb(image: Image.Image, *, bits: int | None = None) -> Image.Image:
    """Turn any Pillow image into one upright RGB image of 8 bits; see `read_image`.

    Warns:
        UserWarning: Colours of 16 bits that are all below a sixteenth of full brightness, as those of 12 bits are.

    Raises:
        DTypeError: Not a Pillow image.
        ImageError: Several frames, or a depth that does not say what white is.
    """
    if not isinstance(image, Image.Image):
        raise DTypeError(
            f"an image must be a PIL image; got {type(image).__name__}. Read files with regiontok.read_image."
        )
    one_frame(image)
    name = getattr(image, "filename", None) or "an image"
    wide = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))  # Pillow keeps 8 of 16 bits of a colour
    image.load()  # a file cut short must show here, not be taken for a damaged EXIF block
    with contextlib.suppress(Exception):  # a damaged EXIF block, for which Pillow raises all kinds, is not the pixels
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = _from_wide_grey(np.asarray(image), bits)
    elif image.mode == "F":
        raise ImageError("its pixels are floating point and do not say what white is. Convert it to 8 bits first.")
    elif wide and 0 < np.asarray(image.convert("RGB")).max() < 16:
        warnings.warn(
            f"{name}: its colours of 16 bits are all below a sixteenth of full brightness, as those of 12 bits are. If "
            "they are, scale them to 16 bits.",
            stacklevel=2,
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def one_frame(image: Image.Image) -> None:
    """Refuse a picture of several frames.

    Raises:
        ImageError: Such a picture.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and getattr(image, "format", None) not in _SINGLE_PICTURE_FORMATS:
        raise ImageError(
            f"it has {frames} frames, and one is expected. Save one of them as an image, or in Python: image.seek(0); "
            "image = image.copy()."
        )


def read_size(path: str | Path, data: bytes | None = None) -> tuple[Size, int]:
    """An image's height and width, upright, and its EXIF orientation; its pixels are not read.

    From a file, or from its bytes where these are given.

    Raises:
        ImageError: No such file, or not an image.
    """
    try:
        with _opened(path, data) as image:
            orientation = 1
            with contextlib.suppress(Exception):  # a damaged EXIF block says nothing, as for `as_rgb`
                orientation = image.getexif().get(_ORIENTATION, 1)
            size = (image.height, image.width)
    except Exception as error:  # Pillow raises all kinds of errors on damaged files
        raise explain_image(str(path), error) from error
    if orientation not in range(1, 9):
        orientation = 1
    return (size if orientation < 5 else size[::-1]), orientation


def _opened(path: str | Path, data: bytes | None) -> Image.Image:
    """Open an image from a file or from its bytes.

    Raises:
        ImageError: Neither a regular file nor a folder: reading a named pipe would wait for a writer without end.
    """
    if data is not None:
        return Image.open(io.BytesIO(data))
    mode = os.stat(path).st_mode  # noqa: PTH116  a million times
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ImageError("not a regular file but a named pipe, a socket or a device.", "unreadable")
    return Image.open(path)


def as_images(images: Images) -> list[Image.Image]:
    """One image or several as a list of upright RGB pictures; see `Encoder.preprocess` for what they may be.

    Raises:
        DTypeError, ImageError: Something else, nothing, or a picture that cannot be one RGB image.
    """
    if isinstance(images, Image.Image | str | Path) or (isinstance(images, np.ndarray) and images.ndim != 4):
        images = [images]
    if not isinstance(images, Sequence | np.ndarray):
        raise DTypeError(
            f"images must be a PIL image, a path or an array, or a list of them; got {type(images).__name__}."
        )
    if not len(images):
        raise ImageError("images must hold at least one; got an empty list.")
    result = []
    for index, image in enumerate(images):
        if isinstance(image, str | Path):
            result.append(read_image(image))
            continue
        try:
            result.append(as_rgb(_from_array(image) if isinstance(image, np.ndarray) else image))
        except DTypeError:
            raise
        except Exception as error:  # a file opened lazily is decoded only here
            raise explain_image(f"image {index}", error) from error
    return result


def _from_array(array: np.ndarray) -> Image.Image:
    """A picture of ``(height, width, 3)`` RGB or ``(height, width)`` grey, of 8 bits or grey of 16."""
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        raise ImageError(f"an array must be (height, width, 3); got {array.shape}. Use array.transpose(1, 2, 0).")
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or 0 in array.shape:
        raise ImageError(f"an array must be (height, width, 3) of RGB or (height, width) of grey; got {array.shape}.")
    if array.dtype == np.uint16 and array.ndim == 2:
        return _from_wide_grey(array)
    if array.dtype != np.uint8:
        raise ImageError(f"an array must be of uint8, from 0 to 255; got {array.dtype}. Scale it and convert it first.")
    return Image.fromarray(np.ascontiguousarray(array))


def explain_image(image: str, error: Exception) -> ImageError:
    """Return why an image cannot be read, in a user's words and with its kind."""
    if isinstance(error, ImageError):
        return ImageError(f"{image}: {error}", error.kind)
    if isinstance(error, FileNotFoundError):
        return ImageError(f"{image}: there is no such file.", "missing")
    if isinstance(error, IsADirectoryError):
        return ImageError(f"{image}: a folder, not an image. Name the files in it.", "not_an_image")
    if isinstance(error, UnidentifiedImageError):
        return ImageError(f"{image}: not an image that Pillow {PIL.__version__} can read.", "not_an_image")
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return ImageError(
            f"{image}: more pixels than Pillow's limit of {Image.MAX_IMAGE_PIXELS}, which guards against decompression "
            "bombs. Make the image smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file.",
            "too_large",
        )
    if isinstance(error, OSError) and error.strerror:
        return ImageError(f"{image}: cannot be read ({error.strerror}).", "unreadable")
    return ImageError(f"{image}: damaged or cut short ({error}).", "damaged")


def _from_wide_grey(values: np.ndarray, bits: int | None = None) -> Image.Image:
    """Scale greyscale of 16 bits, or of the ``bits`` that it uses, to 8 bits."""
    values = values.astype(np.int64)
    white = (1 << (bits or 16)) - 1
    if values.min() < 0 or values.max() > white:
        raise ImageError(
            f"its pixels go from {values.min()} to {values.max()}, beyond {bits or 16} bits. "
            + ("Give as many bits as it has." if bits else "Convert it to 8 bits first.")
        )
    return Image.fromarray((values * 255 / white).round().astype(np.uint8))


def is_image_name(name: str) -> bool:
    """Return whether a file's name has a suffix that Pillow reads, and is no picture that ``tokenize`` drew."""
    _, suffix = os.path.splitext(name)  # noqa: PTH122  a million times
    return suffix.lower() in _suffixes() and not name.endswith(DRAWN)


@functools.cache
def _suffixes() -> frozenset[str]:
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)
