"""Graph-based colour segmentation by scikit-image, which needs no weights and no network."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from regiontok._require import require
from regiontok._values import check_integer, check_number
from regiontok.images import as_images, shrink
from regiontok.maskset import MaskSet


@dataclass(frozen=True)
class FelzenszwalbMasks:
    """Felzenszwalb and Huttenlocher's segments, which cover the image, do not overlap, and have no scores.

    Intended for offline use, demos and tests: segments follow colours, not objects. Larger images are reduced to
    ``longest_side`` for the segmentation, so that the settings have the same effect at any size. Segments are resized
    to the image by nearest neighbour.

    Args:
        scale: Size of segments; a larger value gives larger segments.
        sigma: Standard deviation in pixels of the Gaussian filter that is applied first.
        min_size: Minimum area of a segment in pixels.
        longest_side: Maximum length of the longer side for the segmentation, in pixels.

    Raises:
        DTypeError: A setting has the wrong type.
        ValueRangeError: A setting is out of range.

    Source:
        Felzenszwalb and Huttenlocher, 2004; our choice, not in the paper. The defaults give about 100 segments.
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
        """Return the name and settings of the generator as JSON-serializable values."""
        return {"generator": "felzenszwalb", **asdict(self)}

    def __call__(self, images: Image.Image | Sequence[Image.Image]) -> list[MaskSet]:
        """Generate the masks of one image or several, at the size of each image.

        Raises:
            DTypeError: An image is not a PIL image.
            ImageError: An image cannot be converted to one RGB image.
            MissingDependencyError: scikit-image is not installed.
        """
        segment = require("skimage.segmentation", extra="masks", distribution="scikit-image").felzenszwalb
        return [self._segment(image, segment) for image in as_images(images)]

    def _segment(self, image: Image.Image, segment: Any) -> MaskSet:
        pixels = np.asarray(shrink(image, self.longest_side))
        labels = segment(pixels, scale=self.scale, sigma=self.sigma, min_size=self.min_size)
        row, col = (
            ((np.arange(side) + 0.5) * label_side / side).astype(np.int64)
            for side, label_side in zip((image.height, image.width), labels.shape, strict=True)
        )
        return MaskSet.from_labels(labels[row[:, None], col])
