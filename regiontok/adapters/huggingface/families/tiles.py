"""Tiles of equal size that share the block of placeholders of their image: InternVL and PerceptionLM."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from regiontok._checks import check_sizes
from regiontok._values import check_integer
from regiontok.adapters.huggingface.families.flat import FlatFeaturesMixin
from regiontok.adapters.huggingface.families.frames import FramesMixin, encode_frames
from regiontok.adapters.huggingface.families.vision_tower import pair
from regiontok.adapters.huggingface.patches import Patches, Prompt
from regiontok.adapters.huggingface.videos import Clips
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.geometry import Size
from regiontok.tiles import Tile, join_tiles, make_tiles
from regiontok.tokens import RegionTokens


class TilesMixin(FlatFeaturesMixin):
    """Families that cut an image into tiles of one size, and add a thumbnail if there are several tiles.

    If the tiles of an image share one block of placeholders and ``tilings`` gives their rows and columns, they are
    joined into one grid, and regions cross their borders. Otherwise regions stay within their tile. Masks and budgets
    are per image. ``source="patch"`` keeps the stock order, tile by tile.

    Shape:
        tilings: Rows and columns of the tiles of each image, as `tilings_of` returns them, ``(1, 1)`` for an image that
            is not cut; or the number of its tiles with the thumbnail, if their rows and columns are unknown. By
            default, the number of tiles is inferred from the blocks of placeholders in the prompt.
    """

    encoder_inputs: tuple[str, ...] = ("tilings",)
    knows_tile_layout = True
    _block_per_tile = False
    _thumbnail_first = False

    @property
    @abstractmethod
    def tile_grid(self) -> Size:
        """Rows and columns of the features of one tile."""

    def tiles(self, num_images: int, image_sizes: Any = None, **inputs: Any) -> list[Tile]:
        """Return the tiles given by ``tilings``, or by the sizes of resized images."""
        tilings = inputs.get("tilings")
        if tilings is None:
            tilings = self.tilings_from_sizes(image_sizes)
        if tilings is None:
            raise ValueRangeError(
                "the tiles of an image depend on its processor. Pass tilings, rows and columns of the tiles of each "
                "image, as tilings_of(processor, images) returns them."
            )
        options = {"block_per_tile": self._block_per_tile, "thumbnail_first": self._thumbnail_first}
        return make_tiles(
            check_tilings(tilings), self.tile_grid, self.tile_pixels, is_joined=not self._block_per_tile, **options
        )

    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Return features of all tiles; ``pixel_values`` holds the tiles of all images, as the processor returns."""
        features = self.encode_tiles(pixel_values)
        tilings = [1] * len(features) if inputs.get("tilings") is None else check_tilings(inputs["tilings"])
        if count_tiles(tilings) != len(features):
            raise ShapeError(
                f"tilings must add up to the {len(features)} tiles of pixel_values; got {count_tiles(tilings)} of "
                f"{tilings}, with a thumbnail for each image of several tiles."
            )
        tiles = self.tiles(len(tilings), tilings=tilings)
        per_tile = self.tile_grid[0] * self.tile_grid[1]
        num_placeholders = [0] * (1 + tiles[-1].block)
        grids: list[Tensor] = []
        start = 0
        for tile in tiles:
            count = tile.patches // per_tile
            parts = features[start : start + count]
            rows, cols = (joined // single for joined, single in zip(tile.grid, self.tile_grid, strict=True))
            grids.append(parts[0] if count == 1 else join_tiles(parts, rows, cols))
            num_placeholders[tile.block] += tile.patches
            start += count
        return Patches(grids, num_placeholders, tiles)

    def arrange(self, tokens: RegionTokens, tiles: Sequence[Tile], unmerged: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """Return tokens in the order of their placeholders: tile by tile, if each patch of an image is a region."""
        if not any(unmerged) or self.regionizer.config.order != "raster":
            return super().arrange(tokens, tiles, unmerged)
        regions, (tile_rows, tile_cols) = tokens.regions, self.tile_grid
        device = regions.device
        cols = torch.tensor([tile.grid[1] for tile in tiles], device=device)[regions.image]
        is_unmerged = torch.tensor([unmerged[tile.image] for tile in tiles], device=device)[regions.image]
        patch = regions.patch[regions.starts]
        row, col = patch // cols, patch % cols
        tile = (row // tile_rows) * (cols // tile_cols) + col // tile_cols
        index = (tile * tile_rows + row % tile_rows) * tile_cols + col % tile_cols
        rank = torch.where(is_unmerged, index, patch)
        order = (regions.image * (1 + int(rank.max())) + rank).argsort(stable=True)
        return tokens.values[order], order

    def infer_tilings(self, pixel_values: Tensor, inputs: dict[str, Any], prompt: Prompt | None = None) -> None:
        """Add ``tilings``, inferred from the sizes of resized images or the lengths of the blocks in the prompt."""
        tilings = self.tilings_from_sizes(inputs.get("image_sizes"), pixel_values)
        if tilings is not None:
            inputs["image_sizes"] = None
        elif prompt is not None and inputs.get("tilings") is None:
            tilings = self._read_lengths(prompt.blocks, pixel_values)
        if inputs.get("tilings") is None:
            inputs["tilings"] = tilings

    def tilings_from_sizes(self, image_sizes: Any, pixel_values: Tensor | None = None) -> list[Size | int] | None:
        """Return the tilings of images of ``image_sizes``; None if they are unknown, the default."""
        return None

    def _read_lengths(self, blocks: Tensor, pixel_values: Tensor) -> list[Size | int]:
        """Return the number of tiles of each image, inferred from the lengths of blocks."""
        lengths, per_tile = blocks[:, 2], self.tile_grid[0] * self.tile_grid[1]
        num_tiles = pixel_values.shape[:-3].numel()
        if int(lengths.sum()) == num_tiles * per_tile and not (lengths % per_tile).any():
            counts: list[Size | int] = (lengths // per_tile).tolist()
            if 2 in counts:
                raise ValueRangeError(
                    "an image must have one tile, or at least three with its thumbnail; got a block of two. If images "
                    "are adjacent in the prompt, separate them by the processor's tags, or pass tilings."
                )
            return counts
        if len(lengths) == 1:
            return [num_tiles]
        if len(lengths) == num_tiles:
            return [1] * num_tiles
        raise ValueRangeError(
            f"cannot assign the {num_tiles} tiles of pixel_values to the {len(lengths)} images of the prompts. Write "
            "the prompts with a region processor, or pass tilings, as tilings_of(processor, images) returns them."
        )


class TypedFramesMixin(FramesMixin):
    """Families whose stock class treats frames of videos as images: InternVL and SmolVLM.

    Frames have the placeholders of images. The region processor returns frames as ``pixel_values_videos``, and marks
    their placeholders by 2 in ``mm_token_type_ids``. In prompts of the stock processor, frames are images.
    """

    video_inputs = ("mm_token_type_ids",)
    has_frame_blocks: ClassVar[bool] = True
    shares_placeholders: ClassVar[bool] = True

    @property
    def frame_grid(self) -> Size:
        """Rows and columns of a frame, which is one tile."""
        return self.tile_grid

    def find_placeholders(self, input_ids: Tensor, medium: str, types: Tensor | None = None) -> Tensor:
        """Return the placeholders of a medium: frames have type 2."""
        is_placeholder = input_ids == self.config.image_token_id
        is_video = torch.zeros_like(is_placeholder) if types is None else types == 2
        return is_placeholder & (is_video if medium == "video" else ~is_video)


class InternVLMixin(TypedFramesMixin, TilesMixin):
    """InternVL, whose region processor returns as ``image_sizes`` the sizes after resizing to whole tiles."""

    encoder_inputs: tuple[str, ...] = ("tilings", "mm_token_type_ids")

    def encode_clips(self, pixel_values_videos: Tensor, **inputs: Any) -> Clips:
        """Return the projected features of each frame."""
        return encode_frames(pixel_values_videos, self.encode_tiles)

    @property
    def tile_grid(self) -> Size:
        """Rows and columns of a tile, after merging patches by ``downsample_ratio``."""
        (height, width), (patch_height, patch_width) = self.tile_pixels, pair(self.config.vision_config.patch_size)
        ratio = self.config.downsample_ratio
        return int(height // patch_height * ratio), int(width // patch_width * ratio)

    def tilings_from_sizes(self, image_sizes: Any, pixel_values: Tensor | None = None) -> list[Size | int] | None:
        """Return the tilings of images that were resized to whole tiles; None for sizes before resizing."""
        if image_sizes is None:
            return None
        sides, (height, width) = check_sizes("image_sizes", image_sizes), self.tile_pixels
        tilings: list[Size | int] = [(rows // height, cols // width) for rows, cols in sides]
        if any(rows % height or cols % width for rows, cols in sides):
            return None
        count = None if pixel_values is None else pixel_values.shape[:-3].numel()
        return tilings if count in (None, count_tiles(tilings)) else None


class PerceptionLMMixin(FramesMixin, TilesMixin):
    """PerceptionLM, whose processor does not return rows and columns of tiles.

    Regions stay within tiles unless ``tilings`` gives the rows and columns.
    """

    _thumbnail_first = True

    @property
    def tile_pixels(self) -> Size:
        """Height and width of a tile in pixels, from the timm model."""
        return pair(self.vision_tower.timm_model.patch_embed.img_size)

    @property
    def tile_grid(self) -> Size:
        """Rows and columns of a tile, after pooling patches by ``projector_pooling_ratio``."""
        rows, cols = self.vision_tower.timm_model.patch_embed.grid_size
        return rows // self.config.projector_pooling_ratio, cols // self.config.projector_pooling_ratio

    @property
    def frame_grid(self) -> Size:
        """Rows and columns of a frame, which is one tile."""
        return self.tile_grid

    def encode_clips(self, pixel_values_videos: Tensor, **inputs: Any) -> Clips:
        """Return the projected features of each frame."""
        return encode_frames(pixel_values_videos, self.encode_tiles)

    def infer_tilings(self, pixel_values: Tensor, inputs: dict[str, Any], prompt: Prompt | None = None) -> None:
        """Add ``tilings``, the number of tiles in ``pixel_values``."""
        if inputs.get("tilings") is None and pixel_values.ndim == 5:
            inputs["tilings"] = [pixel_values.shape[1]] * len(pixel_values)
        super().infer_tilings(pixel_values, inputs, prompt)

    def encode_tiles(self, pixel_values: Tensor) -> Tensor:
        """Return features of pixels ``(images, tiles, 3, height, width)`` or ``(tiles, 3, height, width)``."""
        return super().encode_tiles(pixel_values if pixel_values.ndim == 5 else pixel_values[:, None])


def check_tilings(tilings: Any) -> list[Size | int]:
    """Return the rows and columns of the tiles of each image, or their number, after validation.

    Raises:
        ShapeError: ``tilings`` is not a sequence of numbers and ``(rows, cols)``.
        DTypeError, ValueRangeError: A number is not a positive integer.
    """
    values = tilings.tolist() if hasattr(tilings, "tolist") else tilings
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ShapeError(f"tilings must have (rows, cols) for each image, or a number; got {tilings!r}.")
    checked: list[Size | int] = []
    for image, tiling in enumerate(values):
        if isinstance(tiling, Sequence) and not isinstance(tiling, str):
            if len(tiling) != 2:
                raise ShapeError(f"tilings[{image}] must be (rows, cols); got {tiling}.")
            rows, cols = (check_integer(f"tilings[{image}]", side) for side in tiling)
            checked.append((rows, cols))
        else:
            checked.append(check_integer(f"tilings[{image}]", tiling))
    return checked


def count_tiles(tilings: Sequence[Size | int]) -> int:
    """Return the number of tiles of all images, including the thumbnails of cut images."""
    return sum(tiling if isinstance(tiling, int) else tiling[0] * tiling[1] + (tiling != (1, 1)) for tiling in tilings)
