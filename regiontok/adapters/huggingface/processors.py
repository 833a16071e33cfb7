"""Image processors: geometry and tiles of transformers' processors, and a processor for regiontok's encoders."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from PIL import Image

from regiontok._require import require
from regiontok.adapters.huggingface._transformers import (
    MERGING_OPTIONS,
    TILING_OPTIONS,
    default_image_options,
    find_tile_chooser,
)
from regiontok.adapters.huggingface.tower import EncoderConfig
from regiontok.encoders import Encoder
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.geometry import ImageGeometry, Size
from regiontok.images import as_images
from regiontok.videos import Video

transformers = require("transformers", extra="hf")

_ANY_SIDE = 1008
"""Side in pixels of the geometry of processors of dynamic resolution; any value places masks in the same way."""


class EncoderImageProcessor(transformers.BaseImageProcessor):
    """Image processor that preprocesses images for one of regiontok's encoders, for ``AutoProcessor`` and pipelines.

    It returns ``image_sizes`` with ``pixel_values``, so that a region model excludes padding from regions.

    Args:
        geometry: How images are resized and padded, as returned by ``ImageGeometry.to_config``.
        patch_size: Side of a patch in pixels.
        mean: Mean of each RGB channel in ``[0, 1]``.
        std: Standard deviation of each channel.
        fill: Colour of the padding; see `regiontok.encoders.Encoder`.
        kwargs: Arguments of transformers' image processors, present in a saved configuration.

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
        """Return the image processor of an encoder.

        Args:
            encoder: Encoder whose preprocessing is used.
            geometry: Geometry to use instead of the encoder's.
        """
        return cls(
            geometry=(geometry or encoder.geometry).to_config(),
            patch_size=encoder.patch_size,
            mean=encoder.mean,
            std=encoder.std,
            fill=encoder.fill,
        )

    @property
    def encoder(self) -> Encoder:
        """Encoder without a model, which only preprocesses images."""
        mean, std = ((red, green, blue) for red, green, blue in (self.mean, self.std))
        geometry = ImageGeometry(**self.geometry)
        return Encoder(_no_model, geometry=geometry, patch_size=self.patch_size, mean=mean, std=std, fill=self.fill)

    def preprocess(self, images: Any, *args: Any, return_tensors: Any = None, **kwargs: Any) -> Any:
        """Return ``pixel_values`` and ``image_sizes`` of images, in one list or in one list per sample."""
        images = as_images(flat_images(images))
        pixels, _ = self.encoder.preprocess(images)
        sizes = torch.tensor([[image.height, image.width] for image in images])
        data = {"pixel_values": pixels, "image_sizes": sizes}
        return transformers.BatchFeature(data, tensor_type=return_tensors)

    __call__ = preprocess


def flat_images(images: Any) -> list[Any]:
    """Return a flat list of images from one image, a list, or a list per sample."""
    if isinstance(images, Image.Image):
        return [images]
    return [image for entry in images for image in (entry if isinstance(entry, Sequence) else [entry])]


def _no_model(pixels: torch.Tensor) -> torch.Tensor:
    raise ValueRangeError("this encoder has no model and only preprocesses images.")


def geometry_of(processor: Any) -> ImageGeometry:
    """Return the geometry of a processor: how it resizes, crops and pads images.

    A processor of dynamic resolution keeps the whole image at any size, which is the geometry ``squash``.

    Args:
        processor: Processor or image processor, as ``AutoProcessor`` or ``AutoImageProcessor`` loads it.

    Raises:
        ValueRangeError: The processor cuts images into tiles, which models compute themselves, or it is none of
            letterbox, squash and center crop.

    Example:
        >>> import transformers
        >>> geometry_of(transformers.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=336))
        ImageGeometry(mode='center_crop', size=(336, 336))
    """
    images = getattr(processor, "image_processor", processor)
    if isinstance(images, EncoderImageProcessor):
        return ImageGeometry(**images.geometry)
    if any(hasattr(images, name) for name in MERGING_OPTIONS.values()):
        return ImageGeometry.squash(_ANY_SIDE)
    if any(hasattr(images, name) for name in TILING_OPTIONS.values()):
        raise ValueRangeError(
            f"{type(images).__name__} may cut images into tiles, which the model places itself. Leave geometry out of "
            "its Regionizer."
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
        f"{type(images).__name__} with size {size} and crop {crop} is none of letterbox, squash or center crop. Pass "
        "masks on the patch grid, as MaskSet.on_grid returns them."
    )


def process(model: Any, processor: Any, texts: Sequence[str], images: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Return the inputs of a region model for texts and their images: the padded output of the processor.

    ``tilings`` are added for families whose prompts do not give them.

    Args:
        model: Region model.
        processor: Processor of the model, of the stock class or a region processor.
        texts: Texts with one placeholder per image. If they start with the beginning-of-sequence token, as chat
            templates write it, the tokenizer does not add another.
        images: One list per text.

    Raises:
        ValueRangeError: The processor rejects these texts and images; the message includes its own.
    """
    processor = getattr(processor, "stock", processor)  # the model rewrites prompts itself
    bos_token = processor.tokenizer.bos_token
    has_bos_token = bool(bos_token) and texts[0].startswith(bos_token)
    all_images = [image for sample in images for image in sample]
    try:
        output = processor(
            text=list(texts),
            images=[list(sample) for sample in images] if all_images else None,
            return_tensors="pt",
            padding=True,
            add_special_tokens=not has_bos_token,
        )
    except ValueError as error:
        raise ValueRangeError(
            f"{type(processor).__name__} does not accept these texts and images together: {error} Pass one text at a "
            "time."
        ) from error
    names = ("input_ids", "attention_mask", "pixel_values", "image_sizes", "token_type_ids", "mm_token_type_ids")
    inputs = {name: output[name] for name in dict.fromkeys((*names, *model.encoder_inputs)) if name in output}
    if all_images and "tilings" in model.encoder_inputs:
        with suppress(ValueRangeError):  # then the model infers the number of tiles from the prompts
            inputs["tilings"] = tilings_of(processor, all_images)
    return {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()
    }


def video_arguments(*videos: Video) -> dict[str, Any]:
    """Return the arguments with which a processor takes frames that ``regiontok.read_video`` has read.

    Args:
        videos: Videos, in the order of their placeholders in the prompts.

    Returns:
        ``videos``, ``video_metadata``, from which prompts get the times of frames, and ``do_sample_frames=False``.

    Raises:
        ShapeError: Frames of a video have different sizes.

    Example:
        >>> from regiontok import read_video
        >>> video = read_video(np.zeros((10, 48, 64, 3), np.uint8), num_frames=4)
        >>> arguments = video_arguments(video)
        >>> arguments["videos"][0].shape, arguments["video_metadata"][0]["frames_indices"]
        ((4, 48, 64, 3), [0, 2, 5, 7])
    """
    for number, video in enumerate(videos):
        sizes = sorted({frame.size for frame in video.frames})
        if len(sizes) > 1:
            raise ShapeError(f"the frames of a video must have one size; video {number} has {sizes}. Resize them.")
    return {
        "videos": [np.stack([np.asarray(frame) for frame in video.frames]) for video in videos],
        "video_metadata": [
            {"fps": video.fps, "total_num_frames": video.num_frames, "frames_indices": list(video.indices)}
            for video in videos
        ],
        "do_sample_frames": False,
    }


def tilings_of(processor: Any, images: Sequence[Any]) -> list[Size]:
    """Return the tiling of each image: rows and columns of its tiles, ``(1, 1)`` if it is not cut.

    Args:
        processor: Processor of InternVL, Aya Vision, Cohere2 Vision, Idefics3 or SmolVLM.
        images: Images in any format of ``regiontok.images.as_images``.

    Raises:
        ValueRangeError: The processor does not report rows and columns of tiles.

    Example:
        >>> sizes = {"size": {"longest_edge": 1024}, "max_image_size": {"longest_edge": 512}}
        >>> tilings_of(transformers.SmolVLMImageProcessor(**sizes), [Image.new("RGB", (80, 40))])
        [(1, 2)]
    """
    image_processor = getattr(processor, "image_processor", processor)
    sizes = [(image.height, image.width) for image in as_images(list(images))]
    choose_tiles = find_tile_chooser(image_processor)
    if hasattr(image_processor, "do_image_splitting"):
        cut = [image_processor.get_number_of_image_patches(height, width, {})[1:] for height, width in sizes]
        return [(int(rows) or 1, int(cols) or 1) for rows, cols in cut]
    if choose_tiles is None or not hasattr(image_processor, "crop_to_patches"):
        raise ValueRangeError(
            f"{type(image_processor).__name__} does not report the rows and columns of its tiles. Pass tilings, "
            "or leave them out."
        )
    if not (image_processor.crop_to_patches or default_image_options(processor).get("crop_to_patches", False)):
        return [(1, 1)] * len(sizes)
    tile = _pair(_sides(image_processor.size))
    cut = [choose_tiles(size, tile, image_processor.min_patches, image_processor.max_patches) for size in sizes]
    return [(int(rows), int(cols)) for cols, rows in cut]


def _sides(size: Any) -> dict[str, int]:
    """Return the sides in the size of an image processor, without those that are None."""
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
