"""`Encoder`: a model with its image preprocessing, which maps images to patch features and valid patches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from regiontok._values import check_choice, check_integer
from regiontok.errors import CheckpointError, DTypeError, ShapeError, ValueRangeError
from regiontok.geometry import ImageGeometry, Placement, Size
from regiontok.images import Images, as_images, as_rgb

RGB = tuple[float, float, float]

_MAX_PREFIX_TOKENS = 64
"""Models have at most 16 class and register tokens; a larger excess indicates another layout of the output."""


class Encoded(NamedTuple):
    """Output of an encoder: ``features (B, rows, cols, D)`` and the mask of valid patches ``valid (B, rows, cols)``."""

    features: Tensor
    valid: Tensor


class EncodedImage(NamedTuple):
    """An image and its patch features, as `Encoder.encode_image` returns them.

    Attributes:
        image: The upright RGB image.
        features: ``(rows, cols, D)`` float32 on the CPU.
        valid: ``(rows, cols)`` bool: patches that show the image.
        geometry: How the image was resized and padded to the input.
    """

    image: Image.Image
    features: Tensor
    valid: Tensor
    geometry: ImageGeometry

    @property
    def placement(self) -> Placement:
        """Placement of the image on the input."""
        return self.geometry.place((self.image.height, self.image.width))


class ImageEncoder(Protocol):
    """Any object that encodes one image at a time, such as an `Encoder`, or the vision part of a multimodal model."""

    @property
    def name(self) -> str:
        """Name in figures and messages."""

    @property
    def device(self) -> torch.device:
        """Device on which it computes."""

    def describe(self) -> dict[str, Any]:
        """Return everything that determines the features, as plain values."""

    def encode_image(self, image: Image.Image) -> EncodedImage:
        """Return an image with its patch features."""


class Encoder(nn.Module):
    """Extract patch features of images with any frozen model.

    The model is any callable that maps pixels ``(B, 3, height, width)`` to features ``(B, rows, cols, D)`` or
    ``(B, N, D)``. In the latter, patches are in row-major order after the prefix tokens (class token, registers), whose
    number is inferred from the grid and which are removed. Wrap a model that returns several tensors in a function, as
    in the example.

    Args:
        model: The callable. A module is moved by ``.to`` and set to evaluation mode.
        geometry: How images are resized and padded to the input.
        patch_size: Side of a patch in input pixels; must divide the sides of the input.
        mean: Mean that is subtracted from RGB in ``[0, 1]``.
        std: Standard deviation by which the result is divided.
        fill: Content of letterbox padding: ``mean``, the mean colour as in LLaVA; or ``edge``, the extended edge of the
            image.
        name: Name of the encoder in messages.

    Raises:
        ShapeError: ``patch_size`` does not divide the input size.
        DTypeError: ``geometry`` is not an `ImageGeometry`.
        ValueRangeError: ``mean`` or ``std`` does not have three values, or ``std`` contains a zero.

    Example:
        RADIOv2.5, the encoder of the paper, from its own hub (non-commercial licence, needs a download)::

            radio = torch.hub.load("NVlabs/RADIO", "radio_model", version="radio_v2.5-l", skip_validation=True)
            geometry = ImageGeometry.letterbox(384)
            encoder = Encoder(lambda pixels: radio(pixels).features, geometry=geometry, patch_size=16)

        A function that returns the mean colour of each patch:

        >>> mean_colour = torch.nn.AvgPool2d(16)
        >>> encoder = Encoder(
        ...     lambda pixels: mean_colour(pixels).flatten(2).transpose(1, 2),
        ...     geometry=ImageGeometry.letterbox(64), patch_size=16,
        ... )
        >>> features, valid = encoder(Image.new("RGB", (200, 100), "red"))
        >>> features.shape
        torch.Size([1, 4, 4, 3])
        >>> valid[0, :, 0]
        tensor([False,  True,  True, False])
    """

    _anchor: Tensor

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        geometry: ImageGeometry,
        patch_size: int,
        mean: RGB = (0.0, 0.0, 0.0),
        std: RGB = (1.0, 1.0, 1.0),
        fill: str = "mean",
        name: str = "custom",
    ) -> None:
        super().__init__()
        check_integer("patch_size", patch_size)
        check_choice("fill", fill, ("mean", "edge"))
        if not isinstance(geometry, ImageGeometry):
            raise DTypeError(
                f"geometry must be an ImageGeometry; got {geometry!r}. Use one such as ImageGeometry.letterbox(336)."
            )
        height, width = geometry.size
        if height % patch_size or width % patch_size:
            raise ShapeError(
                f"patch_size must divide the input's sides; got {patch_size} for {height} x {width}. "
                f"Try {max(1, height // patch_size) * patch_size} x {max(1, width // patch_size) * patch_size}."
            )
        if len(mean) != 3 or len(std) != 3 or 0 in std:
            raise ValueRangeError(f"mean and std must have 3 numbers each, and std no zero; got {mean} and {std}.")
        self.model = model
        self.geometry = geometry
        self.patch_size = patch_size
        self.fill = fill
        self.name = name
        self.options: dict[str, Any] = {}
        self._colour = (int(255 * mean[0]), int(255 * mean[1]), int(255 * mean[2]))  # truncated as in LLaVA
        self.mean, self.std = tuple(mean), tuple(std)  # not buffers: `.half()` would round them
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)  # device without parameters
        self.eval()

    @property
    def device(self) -> torch.device:
        """Device on which the encoder computes."""
        return self._anchor.device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights; for a model without weights, the one passed to ``.to``."""
        return next((parameter.dtype for parameter in self.parameters()), self._anchor.dtype)

    @property
    def grid(self) -> Size:
        """Number of rows and columns of patches."""
        return self.geometry.size[0] // self.patch_size, self.geometry.size[1] // self.patch_size

    def describe(self) -> dict[str, Any]:
        """Return the name, the options of ``load`` and the geometry, which determine the features, as plain values."""
        return {"encoder": self.name, "encoder_options": self.options, "geometry": self.geometry.to_config()}

    def num_patches(self, sizes: Sequence[Size]) -> list[int]:
        """Return the number of valid patches of images with these heights and widths, before they are encoded.

        `Regionizer.num_tokens` computes the number of region tokens from it.

        Example:
            >>> encoder = Encoder(torch.nn.Identity(), geometry=ImageGeometry.letterbox(64), patch_size=16)
            >>> encoder.num_patches([(480, 640), (100, 400)])
            [16, 8]
        """
        return [int(self.geometry.place(size).valid(self.grid).sum()) for size in sizes]

    def extra_repr(self) -> str:
        """Return the arguments that ``repr`` shows."""
        return f"name={self.name!r}, geometry={self.geometry}, patch_size={self.patch_size}"

    def preprocess(self, images: Images) -> tuple[Tensor, Tensor]:
        """Resize, pad and normalise images: pixels ``(B, 3, height, width)`` and valid patches ``(B, rows, cols)``.

        Args:
            images: One image or a list: PIL images, paths, or uint8 arrays ``(height, width, 3)`` of RGB or ``(height,
                width)`` of greyscale; or one array ``(B, height, width, 3)``.

        Raises:
            DTypeError: An image has an unsupported type.
            ImageError: There is no image, or an image cannot be read as one RGB image.
        """
        fill = self._colour if self.fill == "mean" else None
        pixels, valid = [], []
        for image in as_images(images):
            placement = self.geometry.place((image.height, image.width))
            resized = np.array(placement.image(image, fill=fill))
            pixels.append(torch.from_numpy(resized).permute(2, 0, 1))
            valid.append(placement.valid(self.grid))
        batch = torch.stack(pixels).to(self.device)
        mean, std = (torch.tensor(rgb, device=self.device).reshape(3, 1, 1) for rgb in (self.mean, self.std))
        return (batch / 255 - mean) / std, torch.stack(valid).to(self.device)

    @torch.no_grad()
    def forward(self, images: Images) -> Encoded:
        """Encode one image or several; see `preprocess` for the accepted images and the errors."""
        pixels, valid = self.preprocess(images)
        return Encoded(self.encode(pixels), valid)

    def encode_image(self, image: Image.Image) -> EncodedImage:
        """Encode one image, and return it with its features and its geometry, for figures and pages.

        Raises:
            ImageError: The image cannot be converted to one RGB image.

        Example:
            >>> encoded = Encoder(
            ...     lambda pixels: pixels.permute(0, 2, 3, 1), geometry=ImageGeometry.squash(8), patch_size=1
            ... ).encode_image(Image.new("RGB", (64, 48)))
            >>> encoded.features.shape
            torch.Size([8, 8, 3])
        """
        image = as_rgb(image)
        features, valid = self(image)
        return EncodedImage(image, features[0].float().cpu(), valid[0].cpu(), self.geometry)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Return features ``(B, rows, cols, D)`` of preprocessed pixels ``(B, 3, height, width)``.

        Raises:
            ShapeError: The output of the model does not match the grid.
        """
        parameter = next(self.parameters(), None)
        output = self.model(pixels if parameter is None else pixels.to(parameter.dtype))
        rows, cols = self.grid
        if isinstance(output, Tensor) and len(output) == len(pixels):
            prefix = output.shape[1] - rows * cols if output.ndim == 3 else -1
            if 0 <= prefix <= _MAX_PREFIX_TOKENS:
                return output[:, prefix:].unflatten(1, self.grid)
            if output.ndim == 4 and output.shape[1:3] == self.grid:
                return output
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ShapeError(
            f"encoder {self.name!r} must return ({len(pixels)}, {rows * cols} + prefix tokens, dim) or "
            f"({len(pixels)}, {rows}, {cols}, dim) for its {rows} x {cols} patches; got {got}. Check patch_size and "
            "the size of the geometry, or wrap the model in a function that returns its patch tokens."
        )


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Options of `regiontok.encoders.load` with defaults filled in; ``size`` is ``img_size`` as height and width."""

    name: str
    pretrained: bool
    weights: str | Path | None
    device: torch.device | str
    size: Size | None
    layer: int
    final_norm: bool
    geometry: str

    def make_encoder(
        self, model: nn.Module, *, size: Size, patch_size: int, mean: Sequence[float], std: Sequence[float]
    ) -> Encoder:
        """Return an encoder with a model that was built with these options, and with the preprocessing of the model."""
        return Encoder(
            model,
            geometry=ImageGeometry(self.geometry, size),
            patch_size=patch_size,
            mean=(mean[0], mean[1], mean[2]),
            std=(std[0], std[1], std[2]),
            name=self.name,
        ).to(self.device)


def read_weights(file: str | Path, *, name: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file for the encoder ``name``.

    Raises:
        CheckpointError: The file does not exist, or is not a valid safetensors file.
    """
    if not Path(file).is_file():
        raise CheckpointError(f"weights for encoder {name!r}: there is no file {file}.")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(
            f"weights for encoder {name!r}: {file} is not a valid safetensors file ({error})."
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of the message of an error, with a full stop."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".") + "."
