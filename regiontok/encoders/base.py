"""The frame around every encoder: images in, patch features and valid patches out, with one geometry."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from regiontok._checks import check_choice, check_integer
from regiontok.errors import CheckpointError, DTypeError, ShapeError, ValueRangeError
from regiontok.geometry import ImageGeometry, Size
from regiontok.images import Images, as_images

RGB = tuple[float, float, float]


_MOST_PREFIX_TOKENS = 64
"""Class and register tokens are 16 at the most in known models; more is another layout taken for tokens."""


class Encoded(NamedTuple):
    """What an encoder returns: ``features (B, rows, cols, D)``, and ``valid (B, rows, cols)``, where the image lies."""

    features: Tensor
    valid: Tensor


class Encoder(nn.Module):
    """Turn images into patch features with any frozen model.

    The model may be anything that takes pixels ``(B, 3, height, width)`` and returns ``(B, N, D)``, where prefix
    tokens (class, registers) come before the patches in row-major order, or ``(B, rows, cols, D)``. Prefix tokens are
    counted from the grid and removed. An object that returns more than one tensor is wrapped in a function, as below.

    Args:
        model: The callable; a module is moved by ``.to`` and put into evaluation mode.
        geometry: How images are placed on its input.
        patch_size: Side of a patch in input pixels; must divide the input's sides.
        mean: Subtracted from RGB in ``[0, 1]``.
        std: Divided by, after that.
        fill: What letterbox padding shows: ``mean``, the mean colour, as LLaVA does it; or ``edge``, the image's edge
            extended.
        name: What to call it in messages.

    Raises:
        ShapeError: An input size that patches do not divide.
        ValueRangeError: ``std`` with a zero.

    Example:
        RADIOv2.5 from its own hub, the encoder of the paper (non-commercial licence, needs a download)::

            radio = torch.hub.load("NVlabs/RADIO", "radio_model", version="radio_v2.5-l", skip_validation=True)
            geometry = ImageGeometry.letterbox(384)
            encoder = Encoder(lambda pixels: radio(pixels).features, geometry=geometry, patch_size=16)

        The same with a stand-in that averages each patch's colour:

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
                f"geometry must be an ImageGeometry; got {geometry!r}. Make one, as in ImageGeometry.letterbox(336)."
            )
        height, width = geometry.size
        if height % patch_size or width % patch_size:
            raise ShapeError(
                f"patch_size must divide the input's sides; got {patch_size} for {height} x {width}. "
                f"Try {max(1, height // patch_size) * patch_size} x {max(1, width // patch_size) * patch_size}."
            )
        if len(mean) != 3 or len(std) != 3 or 0 in std:
            raise ValueRangeError(f"mean and std must be 3 numbers each, std without a zero; got {mean} and {std}.")
        self.model = model
        self.geometry = geometry
        self.patch_size = patch_size
        self.fill = fill
        self.name = name
        self.options: dict[str, Any] = {}
        self._colour = (int(255 * mean[0]), int(255 * mean[1]), int(255 * mean[2]))  # in whole numbers, as LLaVA
        self.mean, self.std = tuple(mean), tuple(std)  # numbers and no buffers, which a half dtype would round
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)  # goes where `.to` moves the encoder
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._anchor.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, or what a model without any was moved to."""
        return next((one.dtype for one in self.parameters()), self._anchor.dtype)

    @property
    def grid(self) -> Size:
        """Rows and columns of patches."""
        return self.geometry.size[0] // self.patch_size, self.geometry.size[1] // self.patch_size

    def describe(self) -> dict[str, Any]:
        """What its features depend on, as JSON can hold it: its name, the options of ``load``, and its geometry."""
        return {"encoder": self.name, "encoder_options": self.options, "geometry": self.geometry.to_config()}

    def num_patches(self, sizes: Sequence[Size]) -> list[int]:
        """How many patches show images of these heights and widths, before they are encoded.

        With `Regionizer.num_tokens` it tells how many tokens they will get.

        Example:
            >>> encoder = Encoder(torch.nn.Identity(), geometry=ImageGeometry.letterbox(64), patch_size=16)
            >>> encoder.num_patches([(480, 640), (100, 400)])
            [16, 8]
        """
        return [int(self.geometry.place(size).valid(self.grid).sum()) for size in sizes]

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return f"name={self.name!r}, geometry={self.geometry}, patch_size={self.patch_size}"

    def preprocess(self, images: Images) -> tuple[Tensor, Tensor]:
        """Place images on the input and normalise them: pixels ``(B, 3, height, width)`` and ``valid (B, rows, cols)``.

        Args:
            images: One or a list: Pillow images, paths of files, or arrays ``(height, width, 3)`` of RGB or ``(height,
                width)`` of grey, uint8; or one array ``(B, height, width, 3)``.

        Raises:
            DTypeError, ImageError: Not such images, none at all, or pictures that cannot be one RGB image.
        """
        fill = self._colour if self.fill == "mean" else None
        pixels, valid = [], []
        for image in as_images(images):
            placement = self.geometry.place((image.height, image.width))
            placed = np.array(placement.image(image, fill=fill))
            pixels.append(torch.from_numpy(placed).permute(2, 0, 1))
            valid.append(placement.valid(self.grid))
        batch = torch.stack(pixels).to(self.device)
        mean, std = (torch.tensor(one, device=self.device).reshape(3, 1, 1) for one in (self.mean, self.std))
        return (batch / 255 - mean) / std, torch.stack(valid).to(self.device)

    @torch.no_grad()
    def forward(self, images: Images) -> Encoded:
        """Encode one image or several; see `Encoded` for what comes back and `preprocess` for errors."""
        pixels, valid = self.preprocess(images)
        return Encoded(self.encode(pixels), valid)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Features ``(B, rows, cols, D)`` of pixels that are already placed and normalised.

        Raises:
            ShapeError: The model returned something else than patches of this grid.
        """
        parameter = next(self.parameters(), None)
        output = self.model(pixels if parameter is None else pixels.to(parameter.dtype))
        rows, cols = self.grid
        if isinstance(output, Tensor) and len(output) == len(pixels):
            prefix = output.shape[1] - rows * cols if output.ndim == 3 else -1
            if 0 <= prefix <= _MOST_PREFIX_TOKENS:
                return output[:, prefix:].unflatten(1, self.grid)
            if output.ndim == 4 and output.shape[1:3] == self.grid:
                return output
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ShapeError(
            f"encoder {self.name!r} must return ({len(pixels)}, {rows * cols} or a few more, dim) or "
            f"({len(pixels)}, {rows}, {cols}, dim) "
            f"for its {rows} x {cols} patches; got {got}. Check patch_size and the geometry's size, or wrap the model "
            "in a function that returns its patch tokens."
        )


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How an encoder is to be loaded, see `regiontok.encoders.load`; ``size`` is ``img_size`` as height and width."""

    name: str
    pretrained: bool
    weights: str | Path | None
    device: torch.device | str
    size: Size | None
    layer: int
    final_norm: bool
    geometry: str

    def frame(
        self, model: nn.Module, *, size: Size, patch_size: int, mean: Sequence[float], std: Sequence[float]
    ) -> Encoder:
        """The encoder around a model that was built by these options; the rest is the model's own."""
        return Encoder(
            model,
            geometry=ImageGeometry(self.geometry, size),
            patch_size=patch_size,
            mean=(mean[0], mean[1], mean[2]),
            std=(std[0], std[1], std[2]),
            name=self.name,
        ).to(self.device)


def read_weights(file: str | Path, *, name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, for the encoder ``name``.

    Raises:
        CheckpointError: No such file, or not a whole safetensors file.
    """
    if not Path(file).is_file():
        raise CheckpointError(f"weights for encoder {name!r}: there is no file {file}.")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(
            f"weights for encoder {name!r}: {file} is not a whole safetensors file ({error})."
        ) from error
