"""Grids that follow the image size, with positions in one dimension: VideoLlama3."""

import copy
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from regiontok.adapters.huggingface.inner import RegionModelMixin
from regiontok.adapters.huggingface.patches import Patches
from regiontok.adapters.huggingface.videos import Clips
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.regionizer import Regionizer
from regiontok.tiles import Tile, uncut_images


class VideoLlama3Mixin(RegionModelMixin):
    """VideoLlama3, whose processor merges patches by a factor per image, and may drop patches of frames that repeat.

    Regions are made of the merged and projected features. Patches that ``video_compression_mask`` drops are in no
    region.
    """

    encoder_inputs = ("image_grid_thw", "image_merge_sizes")
    video_inputs = ("video_grid_thw", "video_merge_sizes", "video_compression_mask")
    consumed_inputs: ClassVar[tuple[str, ...]] = ("video_compression_mask",)
    has_frame_blocks: ClassVar[bool] = True

    @property
    def projector(self) -> Any:
        """The projector of the stock class, which has the same name. Features of patches are already projected."""
        return self._modules["projector"]

    def tiles(self, num_images: int, image_sizes: Any = None, **inputs: Any) -> list[Tile]:
        """Return one tile per image, with its merged grid."""
        grids = _merged_grids("image", inputs.get("image_grid_thw"), inputs.get("image_merge_sizes"))
        for index, (frames, _, _) in enumerate(grids):
            if frames != 1:
                raise ShapeError(
                    f"image_grid_thw[{index}] must have one frame, of an image; got {frames}. Pass videos as "
                    "pixel_values_videos and video_grid_thw."
                )
        return uncut_images([(rows, cols) for _, rows, cols in grids])

    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Return features ``(rows, cols, dim)`` of each image."""
        tiles = self.tiles(0, **inputs)
        features = self._encode_grids(pixel_values, inputs["image_grid_thw"], inputs["image_merge_sizes"])
        grids = [grid.unflatten(0, tile.grid) for grid, tile in zip(features, tiles, strict=True)]
        return Patches(grids, [tile.patches for tile in tiles], tiles, is_projected=True)

    def video_grids(self, pixel_values_videos: Tensor | None = None, **inputs: Any) -> list[tuple[int, int, int]]:
        """Return the merged grid of each video."""
        return _merged_grids("video", inputs.get("video_grid_thw"), inputs.get("video_merge_sizes"))

    def encode_clips(self, pixel_values_videos: Tensor, **inputs: Any) -> Clips:
        """Return features of each video, and the patches that ``video_compression_mask`` keeps."""
        shapes = self.video_grids(**inputs)
        features = self._encode_grids(pixel_values_videos, inputs["video_grid_thw"], inputs["video_merge_sizes"])
        clips = [clip.unflatten(0, shape) for clip, shape in zip(features, shapes, strict=True)]
        mask = inputs.get("video_compression_mask")
        if mask is None or bool(mask.all()):
            return Clips(clips, is_projected=True)
        sizes = [clip.shape[:3].numel() for clip in clips]
        if len(mask) != sum(sizes):
            raise ShapeError(f"video_compression_mask must have {sum(sizes)} entries, one per patch; got {len(mask)}.")
        parts = mask.split(sizes)
        valid = [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]
        return Clips(clips, valid=valid, is_projected=True)

    def regionizer_for(self, patches: Patches) -> Regionizer:
        """Return the Regionizer without ``padding="keep"``, since patches were dropped for another reason."""
        if patches.valid is None or self.regionizer.config.padding == "drop":
            return self.regionizer
        regionizer = copy.copy(self.regionizer)  # shares its modules
        regionizer.config = replace(self.regionizer.config, padding="drop")
        return regionizer

    def frame_ends(self, input_ids: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
        """Return the column after each block: the text after a block belongs to the next frame."""
        return ends

    def blank_image(self) -> dict[str, Any]:
        """Return one black image of a single patch."""
        vision, weight = self.config.vision_config, next(self.vision_model.parameters())
        patch_dim = vision.num_channels * vision.patch_size**2
        return {
            "pixel_values": torch.zeros(1, patch_dim, device=weight.device, dtype=weight.dtype),
            "image_grid_thw": torch.ones(1, 3, dtype=torch.int64, device=weight.device),
            "image_merge_sizes": torch.ones(1, dtype=torch.int64, device=weight.device),
        }

    def _encode_grids(self, pixels: Tensor, grids: Any, merge_sizes: Any) -> list[Tensor]:
        """Return the projected features of images or videos, ``(patches, dim)`` each."""
        grids = torch.as_tensor(grids)
        num_patches = int(grids.prod(1).sum())
        if len(pixels) != num_patches:
            raise ShapeError(f"the pixels must be those of the {num_patches} patches of the grids; got {len(pixels)}.")
        output = self._inner.get_image_features(self, pixels, grids, torch.as_tensor(merge_sizes), return_dict=True)
        return list(output.pooler_output)


def _merged_grids(medium: str, grids: Any, merge_sizes: Any) -> list[tuple[int, int, int]]:
    """Return frames, rows and columns after merging."""
    if grids is None or merge_sizes is None:
        raise ValueRangeError(
            f"the grid of each {medium} is computed from {medium}_grid_thw and {medium}_merge_sizes. Pass the "
            "outputs of the processor."
        )
    sides = torch.as_tensor(merge_sizes).tolist()
    return [
        (frames, rows // side, cols // side)
        for (frames, rows, cols), side in zip(torch.as_tensor(grids).tolist(), sides, strict=True)
    ]
