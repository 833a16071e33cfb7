"""A vision tower of one grid, a projector, a language model: LLaVA-1.5. Regions are made before the projector."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regiontok.adapters.huggingface.encoding import Patches
from regiontok.adapters.huggingface.inner import RegionModelMixin
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.geometry import Size
from regiontok.views import View, uncut_images


class VisionTowerMixin(RegionModelMixin):
    """Families with a ``vision_tower`` of one grid and a ``multi_modal_projector``.

    Regions are made of the tower's patch features at ``config.vision_feature_layer``; class and register tokens are
    left out, whatever ``vision_feature_select_strategy`` says. The projector maps the pooled regions.
    """

    @property
    def patch_dim(self) -> int:
        """The vision tower's dimension, times the layers that are taken."""
        return int(self.config.vision_config.hidden_size) * len(_layers(self.config))

    @property
    def projector(self) -> Callable[[Tensor], Tensor]:
        """LLaVA's own."""
        return self.multi_modal_projector

    @property
    def tower_grid(self) -> Size:
        """Rows and columns of the tower's patches."""
        vision = self.config.vision_config
        (height, width), (down, across) = pair(vision.image_size), pair(vision.patch_size)
        return height // down, width // across

    def views(self, images: int, image_sizes: Any = None, **inputs: Any) -> list[View]:
        """The vision tower's one grid, for each image."""
        return uncut_images([self.tower_grid] * images)

    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Features ``(images, rows, cols, dim)`` of pixels ``(images, 3, height, width)``."""
        features, written = self.encode_tiles(pixel_values)
        rows, cols = features.shape[1:3]
        views = uncut_images([(rows, cols)] * len(features))
        return Patches(features, [written] * len(features), views)

    def encode_tiles(self, pixel_values: Tensor) -> tuple[Tensor, int]:
        """Features ``(tiles, rows, cols, dim)`` of pixels, and how many of its tokens the stock class takes of each."""
        if pixel_values.ndim != 4:
            raise ShapeError(f"pixel_values must be (images, 3, height, width); got {tuple(pixel_values.shape)}.")
        tower = self.vision_tower
        output = tower(pixel_values.to(tower.dtype), output_hidden_states=True, return_dict=True)
        states, layers = output.hidden_states, _layers(self.config)
        if not all(-len(states) <= layer < len(states) for layer in layers):
            raise ValueRangeError(
                f"vision_feature_layer must name some of the tower's {len(states)} hidden states; got {layers}. An "
                "EncoderTower has one: set vision_feature_layer=-1 and vision_feature_select_strategy='full'."
            )
        hidden = [states[layer] for layer in layers]
        if len(hidden[0]) != len(pixel_values):
            raise ShapeError(
                f"the vision tower must give features of each of the {len(pixel_values)} images; got "
                f"{len(hidden[0])}. Towers that join images in one row, as Pixtral's, are not supported."
            )
        maps = [_as_map(one, pixel_values, self.config.vision_config) for one in hidden]
        tokens = hidden[0].shape[1] if hidden[0].ndim == 3 else hidden[0][0, 0].numel()
        return torch.cat(maps, -1), tokens - (self.config.vision_feature_select_strategy == "default")

    def blank_image(self) -> dict[str, Any]:
        """One black image of the vision tower's size."""
        tower = self.vision_tower
        height, width = pair(self.config.vision_config.image_size)
        return {"pixel_values": torch.zeros(1, 3, height, width, device=tower.device, dtype=tower.dtype)}


def _layers(config: Any) -> list[int]:
    layers = config.vision_feature_layer
    return [layers] if isinstance(layers, int) else list(layers)


def pair(size: Any) -> Size:
    """Height and width of what a config names by one number or two."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _as_map(hidden: Tensor, pixels: Tensor, config: Any) -> Tensor:
    """``(images, rows, cols, dim)`` of a hidden state; tokens before the patches are left out."""
    if hidden.ndim == 4:  # timm's, with channels first
        return hidden.permute(0, 2, 3, 1)
    down, across = pair(config.patch_size)
    rows, cols = pixels.shape[2] // down, pixels.shape[3] // across
    prefix = hidden.shape[1] - rows * cols
    if prefix < 0:
        raise ShapeError(
            f"the vision tower must give a feature per patch, {rows} x {cols} for images of {pixels.shape[2]} x "
            f"{pixels.shape[3]}; got {hidden.shape[1]} of them. Towers that merge patches are not supported."
        )
    return hidden[:, prefix:].unflatten(1, (rows, cols))
