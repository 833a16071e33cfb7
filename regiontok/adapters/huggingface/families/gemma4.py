"""Grids that follow the image size, padded to equal length and given by patch positions: Gemma 4."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from regiontok.adapters.huggingface.inner import RegionModelMixin
from regiontok.adapters.huggingface.patches import Patches
from regiontok.adapters.huggingface.videos import Clips
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.tiles import Tile, uncut_images


class Gemma4Mixin(RegionModelMixin):
    """Gemma 4, whose vision tower pools patches to a grid that differs between images.

    Regions are made of the pooled and projected features. The region tokens of an image attend to each other in both
    directions if the config enables this for patches; for videos, those of a chunk of frames do.
    """

    token_types = "mm_token_type_ids"
    encoder_inputs = ("image_position_ids", "num_soft_tokens_per_image", "mm_token_type_ids")
    video_inputs = ("video_position_ids", "num_frames_per_video", "mm_token_type_ids")
    has_frame_blocks: ClassVar[bool] = True

    def tiles(self, num_images: int, image_sizes: Any = None, **inputs: Any) -> list[Tile]:
        """Return one tile per image, with its pooled grid.

        ``image_position_ids (images, patches, 2)`` holds x and y of each patch, -1 at padding.
        """
        positions = inputs.get("image_position_ids")
        if positions is None:
            raise ValueRangeError(
                "pixel_values need image_position_ids, from which the grid of each image is computed. Pass the "
                "image_position_ids that the processor returns."
            )
        return uncut_images(self._pooled_grids(positions))

    def _pooled_grids(self, positions: Tensor) -> list[tuple[int, int]]:
        """Return rows and columns after pooling, of images or frames with ``positions (images, patches, 2)``."""
        side = self.config.vision_config.pooling_kernel_size
        cols, rows = (positions.amax(1) + 1).unbind(1)
        return list(zip((rows // side).tolist(), (cols // side).tolist(), strict=True))

    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Return features ``(rows, cols, dim)`` of each image, from flattened patches ``(images, patches, pixels)``."""
        tiles = self.tiles(0, **inputs)
        output = self._inner.get_image_features(self, pixel_values, inputs["image_position_ids"], return_dict=True)
        features = [image.unflatten(0, tile.grid) for image, tile in zip(output.pooler_output, tiles, strict=True)]
        return Patches(features, [tile.patches for tile in tiles], tiles)

    def video_grids(self, pixel_values_videos: Tensor | None = None, **inputs: Any) -> list[tuple[int, int, int]]:
        """Return the pooled grid of each video.

        ``video_position_ids (frames, patches, 2)`` holds x and y of each patch of all frames, and
        ``num_frames_per_video (videos,)`` the number of frames of each video.
        """
        positions, num_frames = inputs.get("video_position_ids"), inputs.get("num_frames_per_video")
        if positions is None or num_frames is None:
            raise ValueRangeError(
                "pixel_values_videos need video_position_ids and num_frames_per_video. Pass the outputs of the "
                "processor."
            )
        counts = [int(count) for count in num_frames]
        if sum(counts) != len(positions):
            raise ShapeError(
                f"num_frames_per_video must add up to the {len(positions)} frames of video_position_ids; got {counts}."
            )
        grids = self._pooled_grids(positions)
        firsts = [sum(counts[:video]) for video in range(len(counts))]
        return [(count, *grids[first]) for count, first in zip(counts, firsts, strict=True)]

    def encode_clips(self, pixel_values_videos: Tensor, **inputs: Any) -> Clips:
        """Return features of each video, from flattened patches ``(frames, patches, pixels)``."""
        output = self._inner.get_video_features(
            self,
            pixel_values_videos,
            inputs.get("video_position_ids"),
            num_frames_per_video=inputs.get("num_frames_per_video"),
            return_dict=True,
        )
        shapes = self.video_grids(**inputs)
        return Clips([clip.unflatten(0, shape) for clip, shape in zip(output.pooler_output, shapes, strict=True)])

    def blank_image(self) -> dict[str, Any]:
        """Return one black image of a single pooled patch."""
        vision, weight = self.config.vision_config, self.vision_tower.patch_embedder.input_proj.weight
        side = vision.pooling_kernel_size
        positions = torch.cartesian_prod(torch.arange(side), torch.arange(side)).to(weight.device)[None]
        pixels = torch.zeros(1, side**2, 3 * vision.patch_size**2, device=weight.device, dtype=weight.dtype)
        return {"pixel_values": pixels, "image_position_ids": positions}
