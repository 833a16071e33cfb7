"""What transformers' image processors do to a photo, as an `ImageGeometry`, so that masks go the same way."""

from typing import Any

from regiontok.errors import ValueRangeError
from regiontok.geometry import ImageGeometry


def geometry_of(processor: Any) -> ImageGeometry:
    """The geometry of a processor, or of its image processor.

    Args:
        processor: What ``AutoProcessor`` or ``AutoImageProcessor`` loaded.

    Raises:
        ValueRangeError: It does something to photos that is none of letterbox, squash or center crop.

    Example:
        >>> import transformers
        >>> geometry_of(transformers.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=336))
        ImageGeometry(mode='center_crop', size=(336, 336))
    """
    images = getattr(processor, "image_processor", processor)
    size = _sides(getattr(images, "size", None))
    crop = _sides(getattr(images, "crop_size", None)) if getattr(images, "do_center_crop", False) else None
    if getattr(images, "do_resize", False):
        side = size.get("shortest_edge")
        whole = {"height": side, "width": side} if side else size
        if getattr(images, "do_pad", False) and crop in (None, whole):
            return ImageGeometry.letterbox(_pair(whole))
        if crop is None and side is None:
            return ImageGeometry.squash(_pair(size))
        if crop is not None and side is not None and crop == whole:
            return ImageGeometry.center_crop(_pair(crop))
    raise ValueRangeError(
        f"{type(images).__name__} with size {size} and crop {crop} is none of letterbox, squash or center crop. Make "
        "masks on the grid yourself, with MaskSet.on_grid."
    )


def _sides(size: Any) -> dict[str, int]:
    """The sides that a processor's size names."""
    if size is None:
        return {}
    if isinstance(size, int):
        return {"height": size, "width": size}
    return {name: int(side) for name, side in dict(size).items() if side is not None}


def _pair(size: dict[str, int]) -> tuple[int, int]:
    return size["height"], size["width"]
