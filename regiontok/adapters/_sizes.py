"""What adapters must know of images' sizes before masks can be placed."""

from collections.abc import Sequence

from regiontok.downsample import Masks
from regiontok.errors import ValueRangeError
from regiontok.geometry import Size
from regiontok.maskset import MaskSet
from regiontok.regionizer import Regionizer


def need_sizes(regionizer: Regionizer, masks: Sequence[Masks] | None, sizes: Sequence[Size] | None) -> None:
    """Refuse masks of images that were padded, where nothing tells how: of another size they would lie elsewhere."""
    geometry = regionizer.config.geometry
    if masks is None or sizes is not None or geometry is None or geometry.mode != "letterbox":
        return
    if not all(isinstance(one, MaskSet) and one.coverage is not None for one in masks):
        raise ValueRangeError(
            "masks of images that are padded need image_sizes, the height and width of each image before "
            "preprocessing, as image processors give them. Pass image_sizes too."
        )
