"""Check for image sizes that adapters share."""

from collections.abc import Sequence

from regiontok.downsample import Masks
from regiontok.errors import ValueRangeError
from regiontok.geometry import Size
from regiontok.maskset import MaskSet
from regiontok.regionizer import Regionizer


def require_image_sizes(regionizer: Regionizer, masks: Sequence[Masks] | None, sizes: Sequence[Size] | None) -> None:
    """Raise an error for masks of padded images without sizes; the padding depends on the size of the image.

    Masks that are on the patch grid already need no sizes.
    """
    geometry = regionizer.config.geometry
    if masks is None or sizes is not None or geometry is None or geometry.mode != "letterbox":
        return
    if not all(isinstance(mask, MaskSet) and mask.coverage is not None for mask in masks):
        raise ValueRangeError(
            "masks of padded images need image_sizes, the height and width of each image before preprocessing, as "
            "image processors return them. Pass image_sizes too."
        )
