"""Vision towers with one grid per image, and regions before the projector: LLaVA-1.5 and VideoLLaVA."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from regiontok.adapters.huggingface.families.frames import FramesMixin
from regiontok.adapters.huggingface.inner import RegionModelMixin
from regiontok.adapters.huggingface.patches import Patches
from regiontok.adapters.huggingface.videos import Clips
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.geometry import Size
from regiontok.tiles import Tile, uncut_images
from regiontok.tokens import RegionTokens


class VisionTowerMixin(RegionModelMixin):
    """Families with a ``vision_tower`` of one grid and a ``multi_modal_projector``.

    Patch features of the tower at ``config.vision_feature_layer`` are pooled into regions, and the projector maps the
    pooled regions. Class and register tokens are dropped, for every value of ``vision_feature_select_strategy``.
    """

    @property
    def patch_dim(self) -> int:
        """Hidden size of the vision tower, times the number of feature layers."""
        return int(self.config.vision_config.hidden_size) * len(_feature_layers(self.config))

    @property
    def projector(self) -> Callable[[Tensor], Tensor]:
        """The projector of the stock model."""
        return self.multi_modal_projector

    @property
    def tower_grid(self) -> Size:
        """Rows and columns of the patches of the vision tower."""
        vision = self.config.vision_config
        (height, width), (patch_height, patch_width) = pair(vision.image_size), pair(vision.patch_size)
        return height // patch_height, width // patch_width

    def tiles(self, num_images: int, image_sizes: Any = None, **inputs: Any) -> list[Tile]:
        """Return one tile per image, with the grid of the vision tower."""
        return uncut_images([self.tower_grid] * num_images)

    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Return features ``(images, rows, cols, dim)`` of pixels ``(images, 3, height, width)``."""
        features, num_placeholders = self.encode_tiles(pixel_values)
        rows, cols = features.shape[1:3]
        tiles = uncut_images([(rows, cols)] * len(features))
        return Patches(features, [num_placeholders] * len(features), tiles)

    def encode_tiles(self, pixel_values: Tensor) -> tuple[Tensor, int]:
        """Return features ``(tiles, rows, cols, dim)`` of pixels, and the number of placeholders per tile."""
        if pixel_values.ndim != 4:
            raise ShapeError(f"pixel_values must be (images, 3, height, width); got {tuple(pixel_values.shape)}.")
        hidden = self._hidden_states(self.vision_tower, pixel_values)
        grids = [_as_grid(state, pixel_values, self.config.vision_config) for state in hidden]
        num_tokens = hidden[0].shape[1] if hidden[0].ndim == 3 else hidden[0][0, 0].numel()
        return torch.cat(grids, -1), num_tokens - (self.config.vision_feature_select_strategy == "default")

    def _hidden_states(self, tower: Any, pixel_values: Tensor) -> list[Tensor]:
        """Return the hidden states of a tower at ``vision_feature_layer``."""
        output = tower(pixel_values.to(tower.dtype), output_hidden_states=True, return_dict=True)
        states, layers = output.hidden_states, _feature_layers(self.config)
        if not all(-len(states) <= layer < len(states) for layer in layers):
            raise ValueRangeError(
                f"vision_feature_layer must be an index into the tower's {len(states)} hidden states; got {layers}. An "
                "EncoderTower has one: set vision_feature_layer=-1 and vision_feature_select_strategy='full'."
            )
        hidden = [states[layer] for layer in layers]
        if len(hidden[0]) != len(pixel_values):
            raise ShapeError(
                f"the vision tower must return features for each of the {len(pixel_values)} images; got "
                f"{len(hidden[0])}. Towers that join images into one sequence, such as Pixtral's, are not supported."
            )
        return hidden

    def blank_image(self) -> dict[str, Any]:
        """Return one black image of the input size of the vision tower."""
        tower = self.vision_tower
        height, width = pair(self.config.vision_config.image_size)
        return {"pixel_values": torch.zeros(1, 3, height, width, device=tower.device, dtype=tower.dtype)}


class VideoLlavaMixin(FramesMixin, VisionTowerMixin):
    """VideoLLaVA, with a tower for images and one for videos.

    The stock class also uses the class token of each frame. It is kept, before the patches of its frame, if every patch
    of the video is a token; otherwise it is dropped.
    """

    has_frame_tokens: ClassVar[bool] = True

    @property
    def vision_tower(self) -> Any:
        """Vision tower that encodes images."""
        return self.image_tower

    def pack_features(self, output: Any) -> Any:
        """Return all tokens as one tensor, as for videos."""
        return self.pack_videos(output)

    @property
    def frame_grid(self) -> Size:
        """Rows and columns of the patches of the tower."""
        return self.tower_grid

    def encode_clips(self, pixel_values_videos: Tensor, **inputs: Any) -> Clips:
        """Return the patch features of the tower for videos, and the class token of each frame."""
        frames = pixel_values_videos.flatten(0, 1)
        hidden = self._hidden_states(self.video_tower, frames)
        grids = torch.cat([_as_grid(state, frames, self.config.vision_config) for state in hidden], -1)
        class_tokens = torch.cat([state[:, 0] for state in hidden], -1)
        return Clips(list(grids.unflatten(0, pixel_values_videos.shape[:2])), frame_tokens=class_tokens)

    def arrange_video(
        self, tokens: RegionTokens, patches: Patches, unmerged: Sequence[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens with class tokens inserted before the patches of each frame, if every patch is a token."""
        values, region, _ = super().arrange_video(tokens, patches, unmerged)
        class_tokens = patches.frame_tokens
        if class_tokens is None or not any(unmerged):
            return values, region, region
        regions, device = tokens.regions, values.device
        cells = torch.tensor([tile.grid[0] * tile.grid[1] for tile in patches.tiles], device=device)[regions.image]
        is_unmerged = torch.tensor([unmerged[tile.image] for tile in patches.tiles], device=device)[regions.image]
        is_first = is_unmerged & (regions.patch[regions.starts] % cells == 0)
        neighbour = region.repeat_interleave(1 + is_first.long())
        is_class = torch.zeros_like(neighbour, dtype=torch.bool)
        is_class[:-1] = neighbour[1:] == neighbour[:-1]
        frames = torch.tensor([tile.frames or 0 for tile in patches.tiles], device=device)
        used = torch.tensor([unmerged[tile.image] for tile in patches.tiles], device=device).repeat_interleave(frames)
        arranged = values[neighbour].masked_scatter(is_class[:, None], self.projector(class_tokens[used]))
        return arranged, neighbour.masked_fill(is_class, -1), neighbour


def pair(size: Any) -> Size:
    """Return height and width from a config value of one or two numbers."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _feature_layers(config: Any) -> list[int]:
    layers = config.vision_feature_layer
    return [layers] if isinstance(layers, int) else list(layers)


def _as_grid(hidden: Tensor, pixels: Tensor, config: Any) -> Tensor:
    """Return a hidden state as ``(images, rows, cols, dim)``, without the tokens before the patches."""
    if hidden.ndim == 4:  # timm returns channels first
        return hidden.permute(0, 2, 3, 1)
    patch_height, patch_width = pair(config.patch_size)
    rows, cols = pixels.shape[2] // patch_height, pixels.shape[3] // patch_width
    num_prefix = hidden.shape[1] - rows * cols
    if num_prefix < 0:
        raise ShapeError(
            f"the vision tower must return a feature per patch, {rows} x {cols} for images of {pixels.shape[2]} x "
            f"{pixels.shape[3]}; got {hidden.shape[1]} of them. Towers that merge patches are not supported."
        )
    return hidden[:, num_prefix:].unflatten(1, (rows, cols))
