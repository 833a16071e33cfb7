"""The encoder ``pixels``: a descriptor of colour, texture, edges and position that needs no weights."""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from regiontok.encoders.base import Encoder, LoadOptions
from regiontok.geometry import ImageGeometry

_LINEAR_RGB_TO_LMS = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_LMS_TO_OKLAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)
_CHROMA_GAIN = 2.5  # in images, the range of Oklab's a and b is about 0.4 times that of lightness
_COLOUR_FREQUENCIES = (7.0, 23.0)  # radians per unit of lightness; not harmonic, to avoid aliasing of colours
_TEXTURE_FREQUENCY = 10.0  # radians per unit of standard deviation
_TEXTURE_WEIGHT = 0.3
_ORIENTATIONS = 6
_EDGE_WEIGHT = 6.0
_POSITION_FREQUENCIES = (math.pi / 2, math.pi)  # over the whole input
_POSITION_WEIGHT = 0.05


class PixelDescriptor(nn.Module):
    """Descriptors of patches of 16 x 16 RGB pixels: 48 values whose cosine measures the similarity of patches.

    Raw colours and gradients are non-negative, so all of their cosines would be close to 1. Mean colours are therefore
    encoded as sines and cosines of two frequencies. The dot product of two patches then depends only on their
    perceptual difference and is 1 for equal colours. The weights limit the effect of gradient noise: clustering with
    the default threshold of 0.7 divides ordinary images into 50 to 300 regions. The descriptor is intended for demos,
    tests and offline use, not for multimodal models.

    The values are 12 of mean colour (Oklab); 4 of texture (standard deviation of lightness and of chroma); 24 of edges
    (square roots of gradients in 6 orientations and 2 x 2 cells, minus their mean over orientations); 8 of position.

    Shape:
        pixels: ``(B, 3, height, width)`` in ``[0, 1]`` with sides divisible by 16; returns ``(B, height / 16,
            width / 16, 48)``.

    Source:
        Our design. Oklab is by Björn Ottosson.
    """

    patch_size = 16
    dim = 48

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the descriptors of the patches of a batch."""
        lab = _oklab(pixels)
        patches = rearrange(lab, "b c (r p) (s q) -> b r s c (p q)", p=self.patch_size, q=self.patch_size)
        mean, spread = patches.mean(-1), patches.std(-1, correction=0)
        colour = _waves(mean, _COLOUR_FREQUENCIES) / math.sqrt(mean.shape[-1] * len(_COLOUR_FREQUENCIES))
        texture = torch.stack([spread[..., 0], 1.2 * spread[..., 1:].mean(-1)], -1)
        return torch.cat(
            [
                colour,
                _TEXTURE_WEIGHT * _waves(texture, (_TEXTURE_FREQUENCY,)),
                _EDGE_WEIGHT * _edges(lab[:, 0], self.patch_size),
                _POSITION_WEIGHT * _positions(mean),
            ],
            -1,
        )


def build(options: LoadOptions) -> Encoder:
    """Build the descriptor as an `Encoder`, by default with a grid of 24 x 24 patches."""
    side = 24 * PixelDescriptor.patch_size
    return Encoder(
        PixelDescriptor(),
        geometry=ImageGeometry(options.geometry, options.size or (side, side)),
        patch_size=PixelDescriptor.patch_size,
        fill="edge",
        name=options.name,
    ).to(options.device)


def _oklab(pixels: Tensor) -> Tensor:
    """Convert RGB to Oklab: lightness in ``[0, 1]``, and two chroma axes scaled to a similar range."""
    linear = torch.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4)
    lms = torch.einsum("ij,bjhw->bihw", pixels.new_tensor(_LINEAR_RGB_TO_LMS), linear)
    lab = torch.einsum("ij,bjhw->bihw", pixels.new_tensor(_LMS_TO_OKLAB), lms.clamp(min=0) ** (1 / 3))
    return lab * pixels.new_tensor((1.0, _CHROMA_GAIN, _CHROMA_GAIN))[:, None, None]


def _waves(values: Tensor, frequencies: tuple[float, ...]) -> Tensor:
    """Return the sines and cosines of values ``(..., n)`` at each frequency, ``(..., 2 * n * frequencies)``."""
    angle = values[..., None] * values.new_tensor(frequencies)
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)


def _edges(lightness: Tensor, patch_size: int) -> Tensor:
    """Return gradients by orientation minus their mean, per quarter of a patch: ``(B, rows, cols, 24)``."""
    padded = F.pad(lightness[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    across = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    down = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    angle = torch.atan2(down, across) % math.pi / math.pi  # [0, 1], without the sign of the edge
    orientation = (angle * _ORIENTATIONS).long().clamp(max=_ORIENTATIONS - 1)
    strength = F.one_hot(orientation, _ORIENTATIONS) * torch.hypot(across, down)[..., None]
    half = patch_size // 2
    cells = rearrange(strength, "b (r u p) (s v q) o -> b r s u v o (p q)", u=2, v=2, p=half, q=half).mean(-1).sqrt()
    return (cells - cells.mean(-1, keepdim=True)).flatten(3)


def _positions(patches: Tensor) -> Tensor:
    """Return the encoded x and y positions of patches ``(B, rows, cols, D)``, as ``(B, rows, cols, 8)``."""
    batch, rows, cols, _ = patches.shape
    y = (torch.arange(rows, device=patches.device) + 0.5) / rows
    x = (torch.arange(cols, device=patches.device) + 0.5) / cols
    position = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).to(patches.dtype)
    return _waves(position, _POSITION_FREQUENCIES).expand(batch, rows, cols, -1)
