"""Segments of an image's colours, by graph-based segmentation from scikit-image: offline, without weights."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from regiontok._checks import check_integer, check_number
from regiontok._require import require
from regiontok.images import as_images
from regiontok.maskset import MaskSet


@dataclass(frozen=True)
class FelzenszwalbMasks:
    """Felzenszwalb and Huttenlocher's segments: they cover the image, do not overlap, and have no scores.

    For offline use, demos and tests; they follow colours, not objects. Images are segmented at ``longest_side`` at the
    most, so that the settings mean the same at any size, and the segments are enlarged by nearest pixel.

    Args:
        scale: Larger gives larger segments.
        sigma: Width of the Gaussian that smooths the image first, in pixels.
        min_size: Least area of a segment, in pixels.
        longest_side: In pixels.

    Raises:
        DTypeError, ValueRangeError: A setting that cannot be.

    Source:
        Felzenszwalb and Huttenlocher, 2004; our choice, not in the paper. The defaults give some 100 segments.
    """

    scale: float = 150.0
    sigma: float = 0.8
    min_size: int = 120
    longest_side: int = 480

    def __post_init__(self) -> None:
        check_number("scale", self.scale, low=0, high=1e9)
        check_number("sigma", self.sigma, low=0, high=1e3)
        check_integer("min_size", self.min_size)
        check_integer("longest_side", self.longest_side)

    def describe(self) -> dict[str, Any]:
        """What makes these masks, as plain values."""
        return {"generator": "felzenszwalb", **asdict(self)}

    def __call__(self, images: Image.Image | Sequence[Image.Image]) -> list[MaskSet]:
        """Masks of one image or several, at the images' sizes.

        Raises:
            DTypeError, ImageError: Not Pillow images, or pictures that cannot be one RGB image.
            MissingDependencyError: scikit-image is not installed.
        """
        segment = require("skimage.segmentation", extra="masks", distribution="scikit-image").felzenszwalb
        return [self._segment(image, segment) for image in as_images(images)]

    def _segment(self, image: Image.Image, segment: Any) -> MaskSet:
        shrink = min(1.0, self.longest_side / max(image.size))
        size = (max(1, round(image.width * shrink)), max(1, round(image.height * shrink)))
        small = image.resize(size, Image.Resampling.BOX) if shrink < 1 else image
        labels = segment(np.asarray(small), scale=self.scale, sigma=self.sigma, min_size=self.min_size)
        row, col = (
            ((np.arange(side) + 0.5) * own / side).astype(np.int64)
            for side, own in zip((image.height, image.width), labels.shape, strict=True)
        )
        return MaskSet.from_labels(labels[row[:, None], col])
