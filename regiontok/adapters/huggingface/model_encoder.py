"""The patch features of a multimodal model, in the form of an encoder."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from regiontok._require import check_importable, require
from regiontok.adapters.huggingface._transformers import default_image_options
from regiontok.adapters.huggingface.loading import load_model
from regiontok.adapters.huggingface.patches import Patches
from regiontok.adapters.huggingface.processors import geometry_of, tilings_of
from regiontok.encoders import EncodedImage
from regiontok.errors import CheckpointError, ValueRangeError
from regiontok.images import as_rgb
from regiontok.tiles import Tile, TileLayout

transformers = require("transformers", extra="hf")


class ModelEncoder:
    """Compute the patch features from which a model makes its regions.

    They are the features of the vision tower for families that make regions before the projector, otherwise the
    projected or merged features. If a model cuts images into tiles, the tiles are joined, without the thumbnail.

    Args:
        model: A region model of `regiontok.adapters.huggingface`; see `with_regions` for stock models.
        processor: Its processor or image processor.
        name: Name of the model in figures.

    Example:
        The regions that a stock model would use, on a page::

            encoder = ModelEncoder.load("llava-hf/llava-1.5-7b-hf")
            regiontok.viewing.write_page("image.html", image, encoder, norm="none", num_regions=64)
    """

    def __init__(self, model: Any, processor: Any, *, name: str = "model") -> None:
        self.model = model
        self.processor = processor
        self.name = name
        self.options: dict[str, Any] = {}

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "cpu", **options: Any) -> "ModelEncoder":
        """Load a region model or stock model with its processor.

        Args:
            folder: Folder or name on the hub.
            device: Device of the model.
            options: Further arguments of ``from_pretrained``, such as ``dtype``.

        Raises:
            CheckpointError: The folder has no supported model, or no processor.
        """
        check_importable("torchvision")
        model = load_model(folder, **options)
        try:
            processor = transformers.AutoProcessor.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder} has a model but no processor: {error}") from error
        return cls(model.to(device), processor, name=str(folder))

    @property
    def device(self) -> torch.device:
        """Device on which the model computes."""
        return torch.device(self.model.device)

    def describe(self) -> dict[str, Any]:
        """Return the model, which determines the features."""
        return {"model": self.name}

    @torch.no_grad()
    def encode_image(self, image: Image.Image) -> EncodedImage:
        """Return an image with its patch features.

        Raises:
            ImageError: The image cannot be converted to one RGB image.
            ValueRangeError: The model does not know the position of its tiles in the image.
        """
        image = as_rgb(image)
        size = (image.height, image.width)
        patches = self._encode(image)
        layouts = [self._layout(tile, len(patches.tiles)) for tile in patches.tiles]
        whole = max(layouts, key=lambda layout: layout.grid[0] * layout.grid[1])
        features = patches.features[0].new_zeros(*whole.grid, patches.features[0].shape[-1])
        valid = torch.zeros(whole.grid, dtype=torch.bool)
        for part, layout in zip(patches.features, layouts, strict=True):
            if (layout.geometry, layout.grid) == (whole.geometry, whole.grid):
                rows = slice(layout.top, layout.top + part.shape[0])
                cols = slice(layout.left, layout.left + part.shape[1])
                features[rows, cols] = part
                valid[rows, cols] = True
        valid &= whole.geometry.place(size).valid(whole.grid)
        return EncodedImage(image, features.float().cpu(), valid, whole.geometry)

    def _encode(self, image: Image.Image) -> Patches:
        inner = self.model.model
        options = default_image_options(self.processor) | {"return_tensors": "pt"}
        image_processor = getattr(self.processor, "image_processor", self.processor)
        output = image_processor(images=[image], **options)
        inputs = {name: output[name] for name in ("pixel_values", *inner.encoder_inputs) if name in output}
        if "tilings" in inner.encoder_inputs:
            with suppress(ValueRangeError):  # then the model infers the number of tiles from the pixels
                inputs["tilings"] = tilings_of(self.processor, [image])
        inputs = {
            name: value.to(self.device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()
        }
        pixels = inputs.pop("pixel_values")
        inner.infer_tilings(pixels, inputs)
        return inner.encode_patches(pixels, **inputs)

    def _layout(self, tile: Tile, num_tiles: int) -> TileLayout:
        """Return the position of a tile; a model with one grid per image places images like its processor."""
        if tile.layout is not None:
            return tile.layout
        if num_tiles > 1:
            raise ValueRangeError(f"{self.name} does not report the position of its tiles in the image.")
        geometry = self.model.regionizer.config.geometry or geometry_of(self.processor)
        return TileLayout(geometry, tile.grid)
