"""Image processors of transformers: the geometry of theirs, so that masks go the same way, and one for our encoders."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from PIL import Image

from regiontok._require import require
from regiontok.adapters.huggingface.tower import EncoderConfig
from regiontok.encoders import Encoder
from regiontok.errors import ValueRangeError
from regiontok.geometry import ImageGeometry, Size
from regiontok.images import as_images

transformers = require("transformers", extra="hf")


_NATIVE = 1008
"""Side in pixels on which an image of any size is placed, where none matters."""
_TILING = ("image_grid_pinpoints", "crop_to_patches", "do_image_splitting", "max_num_tiles")
"""What image processors that cut images into tiles have."""


class EncoderImageProcessor(transformers.BaseImageProcessor):
    """What one of regiontok's encoders does to images before it sees them, for ``AutoProcessor`` and pipelines.

    It takes PIL images, and gives ``image_sizes`` with ``pixel_values``, so that a region model keeps padding out of
    its regions.

    Args:
        geometry: How images are placed, as of ``ImageGeometry.to_config``.
        patch_size: Side of a patch.
        mean: Subtracted from RGB in ``[0, 1]``.
        std: Divided by, after that.
        fill: What padding shows; see `regiontok.encoders.Encoder` for all of these.
        kwargs: Those of transformers' image processors, which a saved one has.

    Example:
        >>> from regiontok import encoders
        >>> processor = EncoderImageProcessor.of(encoders.load("pixels", img_size=64))
        >>> inputs = processor(Image.new("RGB", (80, 40)), return_tensors="pt")
        >>> inputs["pixel_values"].shape, inputs["image_sizes"].tolist()
        (torch.Size([1, 3, 64, 64]), [[40, 80]])
    """

    model_input_names = ("pixel_values", "image_sizes")

    def __init__(
        self,
        geometry: dict[str, Any] | None = None,
        patch_size: int = 16,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        fill: str = "mean",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.geometry = geometry or ImageGeometry.letterbox(384).to_config()
        self.patch_size = patch_size
        self.mean = list(mean)
        self.std = list(std)
        self.fill = fill

    @classmethod
    def of(cls, encoder: Encoder, geometry: ImageGeometry | None = None) -> "EncoderImageProcessor":
        """That of an encoder, whose images may be placed by another geometry."""
        return cls(
            geometry=(geometry or encoder.geometry).to_config(),
            patch_size=encoder.patch_size,
            mean=encoder.mean,
            std=encoder.std,
            fill=encoder.fill,
        )

    @property
    def encoder(self) -> Encoder:
        """An encoder without its model: it only places images."""
        mean, std = ((one[0], one[1], one[2]) for one in (self.mean, self.std))
        geometry = ImageGeometry(**self.geometry)
        return Encoder(_no_model, geometry=geometry, patch_size=self.patch_size, mean=mean, std=std, fill=self.fill)

    def preprocess(self, images: Any, *args: Any, return_tensors: Any = None, **kwargs: Any) -> Any:
        """Images, in one list or one per sample, as ``pixel_values`` and ``image_sizes``."""
        images = as_images(flat_images(images))
        pixels, _ = self.encoder.preprocess(images)
        sizes = torch.tensor([[image.height, image.width] for image in images])
        data = {"pixel_values": pixels, "image_sizes": sizes}
        return transformers.BatchFeature(data, tensor_type=return_tensors)

    __call__ = preprocess


def flat_images(images: Any) -> list[Any]:
    """Return images in one list, of one image, a list, or lists per sample."""
    if isinstance(images, Image.Image):
        return [images]
    return [image for one in images for image in (one if isinstance(one, Sequence) else [one])]


def _no_model(pixels: torch.Tensor) -> torch.Tensor:
    raise ValueRangeError("this encoder only places images: it has no model.")


def geometry_of(processor: Any) -> ImageGeometry:
    """The geometry of a processor, or of its image processor.

    Args:
        processor: What ``AutoProcessor`` or ``AutoImageProcessor`` loaded.

    A processor of native resolution keeps the whole image, whatever its size, which is a squash to any.

    Raises:
        ValueRangeError: It cuts images into tiles, whose places the model knows itself, or does something else that is
            none of letterbox, squash or center crop.

    Example:
        >>> import transformers
        >>> geometry_of(transformers.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=336))
        ImageGeometry(mode='center_crop', size=(336, 336))
    """
    images = getattr(processor, "image_processor", processor)
    if isinstance(images, EncoderImageProcessor):
        return ImageGeometry(**images.geometry)
    if hasattr(images, "merge_size") or hasattr(images, "pooling_kernel_size"):
        return ImageGeometry.squash(_NATIVE)
    if any(hasattr(images, name) for name in _TILING):
        raise ValueRangeError(
            f"{type(images).__name__} may cut images into tiles, and a model of them knows itself where they lie. Leave"
            " geometry out of its Regionizer."
        )
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


def process(model: Any, processor: Any, texts: Sequence[str], images: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """What a model takes of texts and their images: what its processor gives, padded, and ``tiles`` where it tells.

    Args:
        model: Of `regiontok.adapters.huggingface`.
        processor: The model's.
        texts: With a placeholder per image. Where they begin with the token of the beginning, as chat templates write
            it, the tokenizer adds none.
        images: One list per text.

    Raises:
        ValueRangeError: Images and texts that the processor cannot bring together; the message is its own.
    """
    processor = getattr(processor, "stock", processor)  # the model expands prompts itself
    begin = processor.tokenizer.bos_token
    told = bool(begin) and texts[0].startswith(begin)
    flat = [image for some in images for image in some]
    try:
        made = processor(
            text=list(texts),
            images=[list(some) for some in images] if flat else None,
            return_tensors="pt",
            padding=True,
            add_special_tokens=not told,
        )
    except ValueError as error:
        raise ValueRangeError(
            f"{type(processor).__name__} does not take these texts and images together: {error} Ask one at a time."
        ) from error
    of_all = ("input_ids", "attention_mask", "pixel_values", "image_sizes", "token_type_ids", "mm_token_type_ids")
    inputs = {name: made[name] for name in dict.fromkeys((*of_all, *model.encoder_inputs)) if name in made}
    if flat and "tiles" in model.encoder_inputs:
        with suppress(ValueRangeError):  # then prompts tell at least their number
            inputs["tiles"] = tiles_of(processor, flat)
    return {name: one.to(model.device) if isinstance(one, torch.Tensor) else one for name, one in inputs.items()}


def tiles_of(processor: Any, images: Sequence[Any]) -> list[Size]:
    """The rows and columns of the tiles that a processor cuts images into, ``(1, 1)`` for one in one piece.

    Args:
        processor: Of InternVL, Aya Vision, Cohere2 Vision, Idefics3 or SmolVLM, with the options that it has.
        images: As ``regiontok.images.as_images`` takes them.

    Raises:
        ValueRangeError: A processor that cuts images otherwise, or not at all.

    Example:
        >>> sizes = {"size": {"longest_edge": 1024}, "max_image_size": {"longest_edge": 512}}
        >>> tiles_of(transformers.SmolVLMImageProcessor(**sizes), [Image.new("RGB", (80, 40))])
        [(1, 2)]
    """
    image_processor = getattr(processor, "image_processor", processor)
    sizes = [(image.height, image.width) for image in as_images(list(images))]
    module = sys.modules[type(image_processor).__module__]
    canvas = getattr(module, "get_optimal_tiled_canvas", None)
    if hasattr(image_processor, "do_image_splitting"):
        cut = [image_processor.get_number_of_image_patches(height, width, {})[1:] for height, width in sizes]
        return [(int(rows) or 1, int(cols) or 1) for rows, cols in cut]
    if canvas is None or not hasattr(image_processor, "crop_to_patches"):
        raise ValueRangeError(
            f"{type(image_processor).__name__} does not report the rows and columns of its tiles. Pass tiles, "
            "or leave them out."
        )
    of_images = getattr(type(processor), "images_kwargs", None)
    if of_images is None:  # of transformers 5.23, in a class beside the processor's
        kwargs = vars(sys.modules[type(processor).__module__]).get(f"{type(processor).__name__}Kwargs")
        of_images = getattr(kwargs, "_defaults", {}).get("images_kwargs", {})
    if not (image_processor.crop_to_patches or of_images.get("crop_to_patches", False)):
        return [(1, 1)] * len(sizes)
    tile = _pair(_sides(image_processor.size))
    cut = [canvas(size, tile, image_processor.min_patches, image_processor.max_patches) for size in sizes]
    return [(int(rows), int(cols)) for cols, rows in cut]


def _sides(size: Any) -> dict[str, int]:
    """The sides that a processor's size names."""
    if size is None:
        return {}
    if isinstance(size, int):
        return {"height": size, "width": size}
    return {name: int(side) for name, side in dict(size).items() if side is not None}


def _pair(size: dict[str, int]) -> tuple[int, int]:
    return size["height"], size["width"]


transformers.AutoImageProcessor.register(
    EncoderConfig, image_processor_classes={"torchvision": EncoderImageProcessor}, exist_ok=True
)
