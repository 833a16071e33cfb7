"""Reading of images as upright 8-bit RGB."""

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

from regiontok._values import check_integer
from regiontok.errors import DTypeError, ImageError, ValueRangeError
from regiontok.geometry import Size

Images = Image.Image | str | Path | np.ndarray | Sequence[Image.Image | str | Path | np.ndarray]
"""One image or several: PIL images, paths, or uint8 arrays."""

_DRAWING_SUFFIX = ".regions.png"
"""Suffix of the drawings that ``regiontok tokenize`` writes next to images. They are not inputs."""
_ORIENTATION = 0x0112
_SINGLE_IMAGE_FORMATS = ("MPO",)
"""Formats of phones in which all frames after the first are previews or depth maps of the same image."""


def read_image(
    path: str | Path,
    data: bytes | None = None,
    *,
    bits: int | None = None,
    admit: Callable[[int], None] | None = None,
) -> Image.Image:
    """Read an image from a file, or from its bytes if they are passed.

    The image is rotated upright by its EXIF orientation. CMYK, palette and greyscale images are converted to RGB,
    16-bit greyscale is scaled from 65535 to 255, and transparent images are composited over white. Invalid EXIF data is
    ignored.

    Args:
        path: Path of the file.
        data: Content of the file, if it is already read.
        bits: Number of bits that a 16-bit greyscale image uses, such as 12 for many scanners and cameras: white is
            then ``2**bits - 1``.
        admit: Called with the number of pixels before they are decoded, for example to wait for free memory.

    Raises:
        ImageError: The file does not exist, is not an image, is truncated, has several frames or pages or an
            unsupported depth, or exceeds Pillow's limit against decompression bombs.
        ValueRangeError: ``bits`` is not between 1 and 16.
    """
    if bits is not None:
        check_integer("bits", bits)
        if bits > 16:
            raise ValueRangeError(f"bits must be from 1 to 16; got {bits}.")
    try:
        with _opened(path, data) as image:
            limit = Image.MAX_IMAGE_PIXELS  # Pillow itself only warns up to twice the limit
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError
            if admit is not None:
                admit(image.width * image.height)
            return as_rgb(image, bits=bits)
    except UserWarning:  # the caller turned warnings into errors
        raise
    except Exception as error:  # Pillow's decoders raise errors of any type for damaged files
        raise explain_image(str(path), error) from error


def as_rgb(image: Image.Image, *, bits: int | None = None) -> Image.Image:
    """Convert a PIL image to upright 8-bit RGB; see `read_image`.

    Warns:
        UserWarning: All 16-bit colours are below a sixteenth of full brightness, so they may be 12-bit values.

    Raises:
        DTypeError: ``image`` is not a PIL image.
        ImageError: The image has several frames, or floating-point or out-of-range pixels.
    """
    if not isinstance(image, Image.Image):
        raise DTypeError(
            f"an image must be a PIL image; got {type(image).__name__}. Read files with regiontok.read_image."
        )
    check_single_frame(image)
    name = getattr(image, "filename", None) or "an image"
    is_wide = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))  # Pillow keeps 8 of the 16 bits
    image.load()  # raises for truncated files, outside of the block that ignores errors
    with contextlib.suppress(Exception):  # Pillow raises errors of any type for invalid EXIF data
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = _from_wide_grey(np.asarray(image), bits)
    elif image.mode == "F":
        raise ImageError("floating-point pixels have no defined value of white. Convert the image to 8 bits first.")
    elif is_wide and 0 < np.asarray(image.convert("RGB")).max() < 16:
        warnings.warn(
            f"{name}: all 16-bit colours are below a sixteenth of full brightness. If they are 12-bit values, scale "
            "them to 16 bits.",
            stacklevel=2,
        )
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def shrink(image: Image.Image, longest_side: int) -> Image.Image:
    """Resize an image so that its longer side has at most ``longest_side`` pixels; smaller images are unchanged."""
    scale = min(1.0, longest_side / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BOX) if scale < 1 else image


def check_single_frame(image: Image.Image) -> None:
    """Check that an image has a single frame.

    Raises:
        ImageError: The image has several frames.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and getattr(image, "format", None) not in _SINGLE_IMAGE_FORMATS:
        raise ImageError(
            f"expected a single frame; got {frames}. Save one frame as an image, or in Python: image.seek(0); "
            "image = image.copy()."
        )


def read_size(path: str | Path, data: bytes | None = None) -> tuple[Size, int]:
    """Read the upright height and width of an image and its EXIF orientation, without decoding pixels.

    Args:
        path: Path of the file.
        data: Content of the file, if it is already read.

    Raises:
        ImageError: The file does not exist, or is not an image.
    """
    try:
        with _opened(path, data) as image:
            orientation = 1
            with contextlib.suppress(Exception):  # invalid EXIF data is ignored, as in `as_rgb`
                orientation = image.getexif().get(_ORIENTATION, 1)
            size = (image.height, image.width)
    except Exception as error:  # Pillow raises errors of any type for damaged files
        raise explain_image(str(path), error) from error
    if orientation not in range(1, 9):
        orientation = 1
    return (size if orientation < 5 else size[::-1]), orientation


def _opened(path: str | Path, data: bytes | None) -> Image.Image:
    """Open an image from a file or from its bytes.

    Raises:
        ImageError: The path is neither a regular file nor a folder. Reading a named pipe could block forever.
    """
    if data is not None:
        return Image.open(io.BytesIO(data))
    mode = os.stat(path).st_mode  # noqa: PTH116  called for millions of files
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ImageError("expected a regular file; got a named pipe, a socket or a device.", "unreadable")
    return Image.open(path)


def as_images(images: Images) -> list[Image.Image]:
    """Return one image or several as a list of upright RGB images; see `Encoder.preprocess` for the accepted types.

    Raises:
        DTypeError: An image has an unsupported type.
        ImageError: There is no image, or an image cannot be read as one RGB image.
    """
    if isinstance(images, Image.Image | str | Path) or (isinstance(images, np.ndarray) and images.ndim != 4):
        images = [images]
    if not isinstance(images, Sequence | np.ndarray):
        raise DTypeError(
            f"images must be a PIL image, a path or an array, or a list of them; got {type(images).__name__}."
        )
    if not len(images):
        raise ImageError("images must contain at least one image; got an empty list.")
    result = []
    for index, image in enumerate(images):
        if isinstance(image, str | Path):
            result.append(read_image(image))
            continue
        try:
            result.append(as_rgb(_from_array(image) if isinstance(image, np.ndarray) else image))
        except DTypeError:
            raise
        except Exception as error:  # a lazily opened file is decoded only here
            raise explain_image(f"image {index}", error) from error
    return result


def _from_array(array: np.ndarray) -> Image.Image:
    """Convert an 8-bit array ``(height, width, 3)`` or ``(height, width)``, or a 16-bit one ``(height, width)``."""
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        raise ImageError(f"an array must be (height, width, 3); got {array.shape}. Use array.transpose(1, 2, 0).")
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or 0 in array.shape:
        raise ImageError(f"an array must be (height, width, 3) RGB or (height, width) greyscale; got {array.shape}.")
    if array.dtype == np.uint16 and array.ndim == 2:
        return _from_wide_grey(array)
    if array.dtype != np.uint8:
        raise ImageError(f"an array must be uint8, from 0 to 255; got {array.dtype}. Scale and convert it first.")
    return Image.fromarray(np.ascontiguousarray(array))


def explain_image(image: str, error: Exception) -> ImageError:
    """Return an `ImageError` that explains to the user why an image cannot be read."""
    if isinstance(error, ImageError):
        return ImageError(f"{image}: {error}", error.kind)
    if isinstance(error, FileNotFoundError):
        return ImageError(f"{image}: there is no such file.", "missing")
    if isinstance(error, IsADirectoryError):
        return ImageError(f"{image}: expected an image; got a folder. Pass the files in it.", "not_an_image")
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
    return ImageError(f"{image}: damaged or truncated ({error}).", "damaged")


def _from_wide_grey(values: np.ndarray, bits: int | None = None) -> Image.Image:
    """Scale greyscale values of 16 bits, or of ``bits`` if it is set, to 8 bits."""
    values = values.astype(np.int64)
    white = (1 << (bits or 16)) - 1
    if values.min() < 0 or values.max() > white:
        raise ImageError(
            f"its pixels range from {values.min()} to {values.max()}, which exceeds {bits or 16} bits. "
            + ("Increase bits." if bits else "Convert the image to 8 bits first.")
        )
    return Image.fromarray((values * 255 / white).round().astype(np.uint8))


def is_image_name(name: str) -> bool:
    """Return whether a file name has a suffix that Pillow reads and is not a drawing of ``regiontok tokenize``."""
    _, suffix = os.path.splitext(name)  # noqa: PTH122  called for millions of files
    return suffix.lower() in _suffixes() and not name.endswith(_DRAWING_SUFFIX)


@functools.cache
def _suffixes() -> frozenset[str]:
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)
