"""Tiles that are packed without padding into one block (anyres): LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regiontok._checks import check_sizes
from regiontok._require import require
from regiontok._values import check_choice
from regiontok.adapters.huggingface.families.frames import FramesMixin, encode_frames
from regiontok.adapters.huggingface.families.vision_tower import VisionTowerMixin, pair
from regiontok.adapters.huggingface.patches import Patches
from regiontok.adapters.huggingface.videos import Clips
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.geometry import ImageGeometry, Size
from regiontok.pooling import MeanPool
from regiontok.regionizer import Regionizer
from regiontok.tiles import Tile, TileLayout, join_tiles
from regiontok.tokens import RegionTokens

transformers = require("transformers", extra="hf")

NEWLINES = ("drop", "image", "row")


class AnyresMixin(VisionTowerMixin):
    """Families that pad an image to a grid of tiles, and pack a thumbnail and the unpadded tiles into one block.

    An image has two grids: the thumbnail and the joined tiles. Regions cross the borders of tiles.

    The stock class adds a newline token after each row of patches. Regions have no rows, so the option ``newline`` is
    ``drop`` (no newlines), ``image`` (one after each image) or ``row`` (one after the regions that begin in each row).
    The default is ``row`` for ``source="patch"`` in raster order, which gives the logits of the stock model, and
    ``drop`` otherwise.

    If unpadding leaves no patch of the tiles of a very narrow image, the image is its thumbnail. With ``row``, the
    newlines that the stock class adds for the empty rows follow the thumbnail.
    """

    encoder_inputs: tuple[str, ...] = ("image_sizes",)
    knows_tile_layout = True

    has_newline = True

    def newline_mode(self, is_unmerged: bool) -> str:
        """Return ``drop``, ``image`` or ``row`` for an image; ``is_unmerged`` is True if each patch is a region."""
        has_rows = is_unmerged and self.regionizer.config.order == "raster"
        return getattr(self.config, "regiontok_newline", None) or ("row" if has_rows else "drop")

    @property
    def projector(self) -> Callable[[Tensor], Tensor]:
        """The projector of the stock model. In training, it also connects the newline embedding to the graph."""
        project, newline = self.multi_modal_projector, self.image_newline
        # Distributed training waits for gradients of all parameters, also of a newline that no prompt uses.
        return lambda values: project(values) + 0.0 * newline if self.training else project(values)

    def tiles(self, num_images: int, image_sizes: Any = None, **inputs: Any) -> list[Tile]:
        """Return two tiles per image: the thumbnail, and the joined tiles without padding."""
        return self._tiles(_check_image_sizes(image_sizes), **inputs)

    def tiling_of(self, size: Size) -> Size:
        """Return rows and columns of the tiles of an image of ``size``."""
        side = self.config.vision_config.image_size
        best = require("transformers.image_processing_utils", extra="hf").select_best_resolution
        height, width = best(size, self.config.image_grid_pinpoints)
        return height // side, width // side

    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Return features of all tiles.

        ``pixel_values`` is ``(images, tiles, 3, height, width)``, padded to the largest number of tiles, or
        ``(tiles, 3, height, width)``.
        """
        sizes, inputs = self._sizes(pixel_values, inputs)
        tilings, tiles = self._tilings(sizes, **inputs), self._tiles(sizes, **inputs)
        counts = [1 if tiling is None else 1 + tiling[0] * tiling[1] for tiling in tilings]
        if pixel_values.ndim == 5:
            if len(pixel_values) != len(sizes) or pixel_values.shape[1] < max(counts):
                raise ShapeError(
                    f"pixel_values must hold {counts} tiles of {len(sizes)} images, according to image_sizes; got "
                    f"{tuple(pixel_values.shape)}. Pass the processor's image_sizes, (height, width) of each image."
                )
            pixel_values = torch.cat([image[:count] for image, count in zip(pixel_values, counts, strict=True)])
        elif len(pixel_values) != sum(counts):
            raise ShapeError(f"pixel_values must hold {sum(counts)} tiles; got {tuple(pixel_values.shape)}.")
        features, _ = self.encode_tiles(pixel_values)
        grids: list[Tensor] = []
        num_placeholders: list[int] = []
        start = 0
        for image, (size, tiling, count) in enumerate(zip(sizes, tilings, counts, strict=True)):
            thumbnail, parts = features[start], features[start + 1 : start + count]
            start += count
            image_tiles = [tile for tile in tiles if tile.image == image]
            grids.append(thumbnail)
            for tile in image_tiles[1:]:
                grids.append(self._unpad(join_tiles(parts, *(tiling or (1, 1))), size, tile))
            if tiling is None:
                num_placeholders.append(image_tiles[0].patches + 1)
            else:
                rows, cols = image_tiles[1].grid if len(image_tiles) > 1 else self._unpadded_patches(size).shape
                num_placeholders.append(image_tiles[0].patches + rows * (cols + 1))
        return Patches(grids, num_placeholders, tiles)

    def arrange(self, tokens: RegionTokens, tiles: Sequence[Tile], unmerged: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """Return tokens with newlines inserted, and the region of each; see `newline_mode`."""
        num_newlines = self._newlines_after(tokens, tiles, unmerged)
        region = torch.arange(len(tokens), device=tokens.values.device)
        if num_newlines is None:
            return tokens.values, region
        index = region.repeat_interleave(1 + num_newlines.long())
        is_newline = torch.zeros_like(index, dtype=torch.bool)
        is_newline[1:] = index[1:] == index[:-1]
        newline = self.image_newline.to(tokens.values)
        return torch.where(is_newline[:, None], newline, tokens.values[index]), index.masked_fill(is_newline, -1)

    def _newlines_after(self, tokens: RegionTokens, tiles: Sequence[Tile], unmerged: Sequence[bool]) -> Tensor | None:
        """Return the number of newlines after each token, ``(R,)``; None if there are no newlines."""
        modes = [self.newline_mode(is_unmerged) for is_unmerged in unmerged]
        if set(modes) == {"drop"}:
            return None
        regions, device = tokens.regions, tokens.regions.device
        image = torch.tensor([tile.image for tile in tiles], device=device)
        is_last = _is_last(image[regions.image])
        is_padded = torch.tensor([tile.padded for tile in tiles], device=device)[regions.image]
        rows = torch.tensor([tile.grid[0] for tile in tiles], device=device)
        cols = torch.tensor([tile.grid[1] for tile in tiles], device=device)
        row = regions.patch[regions.starts] // cols[regions.image] + (rows.cumsum(0) - rows)[regions.image]
        is_thumbnail = torch.ones_like(image, dtype=torch.bool)
        is_thumbnail[1:] = image[1:] != image[:-1]
        empty_rows = torch.tensor([tile.empty_rows for tile in tiles], device=device)[regions.image]
        after_row = torch.where(is_thumbnail[regions.image], is_last & is_padded, _is_last(row)) + is_last * empty_rows
        mode = torch.tensor([NEWLINES.index(mode) for mode in modes], device=device)[image[regions.image]]
        return torch.where(mode == NEWLINES.index("row"), after_row, is_last * (mode == NEWLINES.index("image")))

    def count_newlines(self, tiles: Sequence[Tile], unmerged: Sequence[bool]) -> list[int]:
        """Return the number of newlines of each image.

        Raises:
            ValueRangeError: ``newline="row"`` for an image with fewer regions than patches: the number of newlines is
                known only after encoding.
        """
        counts = []
        for image, is_unmerged in enumerate(unmerged):
            mode = self.newline_mode(is_unmerged)
            if mode == "row" and not is_unmerged:
                raise ValueRangeError(
                    "the number of newlines with newline='row' is known only after encoding. Use newline='image'."
                )
            image_tiles = [tile for tile in tiles if tile.image == image]
            thumbnail = image_tiles[0]
            num_rows = image_tiles[1].grid[0] if len(image_tiles) > 1 else int(thumbnail.padded) + thumbnail.empty_rows
            counts.append({"drop": 0, "image": 1, "row": num_rows}[mode])
        return counts

    def _tiles(self, sizes: list[Size], **inputs: Any) -> list[Tile]:
        return [tile for image, size in enumerate(sizes) for tile in self._tiles_of(image, size)]

    def _tiles_of(self, image: int, size: Size) -> list[Tile]:
        """Return the thumbnail and the joined tiles of one image."""
        height, width = pair(self.config.vision_config.image_size)
        rows, cols = self.tower_grid
        tile_rows, tile_cols = self.tiling_of(size)
        thumbnail = Tile(image, image, (rows, cols), TileLayout(ImageGeometry.squash((height, width)), (rows, cols)))
        patches = self._unpadded_patches(size)
        if 0 in patches.shape:  # a very narrow image, of which the stock class drops all patches of the tiles
            return [replace(thumbnail, empty_rows=patches.shape[0])]
        top, left = divmod(int(patches[0, 0]), tile_cols * cols)
        geometry = ImageGeometry.letterbox((tile_rows * height, tile_cols * width))
        layout = TileLayout(geometry, (tile_rows * rows, tile_cols * cols), top, left)
        return [thumbnail, Tile(image, image, (patches.shape[0], patches.shape[1]), layout)]

    def _unpadded_patches(self, size: Size) -> Tensor:
        """Return the indices of the patches of the joined tiles that are not padding, ``(rows, cols)``."""
        (rows, cols), (tile_rows, tile_cols) = self.tower_grid, self.tiling_of(size)
        shape = (1, tile_rows * rows, tile_cols * cols)
        return self._unpad_image(torch.arange(shape[1] * shape[2]).reshape(shape), size)[0]

    def _unpad(self, grid: Tensor, size: Size, tile: Tile) -> Tensor:
        return self._unpad_image(grid.permute(2, 0, 1), size).permute(1, 2, 0)

    def _unpad_image(self, tensor: Tensor, size: Size) -> Tensor:
        """Remove the padding from ``(dim, rows, cols)``, with the function of the stock module."""
        unpad: Callable[[Tensor, Size], Tensor] = require(self._inner.__module__, extra="hf").unpad_image
        return unpad(tensor, size)

    def _sizes(self, pixel_values: Tensor, inputs: dict[str, Any]) -> tuple[list[Size], dict[str, Any]]:
        """Return the image sizes, and the other inputs."""
        others = {name: value for name, value in inputs.items() if name != "image_sizes"}
        return _check_image_sizes(inputs.get("image_sizes")), others

    def _tilings(self, sizes: list[Size], **inputs: Any) -> list[Size | None]:
        """Return rows and columns of the tiles of each image; None for an image with only a thumbnail."""
        return [self.tiling_of(size) for size in sizes]

    def blank_image(self) -> dict[str, Any]:
        """Return one black image, as a thumbnail and tiles."""
        height, width = self.config.image_grid_pinpoints[0]
        side = self.config.vision_config.image_size
        tower, count = self.vision_tower, 1 + height // side * (width // side)
        pixels = torch.zeros(1, count, 3, side, side, device=tower.device, dtype=tower.dtype)
        return {"pixel_values": pixels, "image_sizes": [(height, width)]}

    def check_regionizer(self, regionizer: Regionizer) -> None:
        """Raise an error for a Regionizer that does not fit this model, or does not fit the option ``newline``."""
        super().check_regionizer(regionizer)
        newline = getattr(self.config, "regiontok_newline", None)
        if newline is not None:
            check_choice("newline", newline, NEWLINES)
            if newline == "row" and regionizer.config.order != "raster":
                raise ValueRangeError("newline='row' needs order='raster', in which the tokens of a row are adjacent.")


class LlavaNextVideoMixin(FramesMixin, AnyresMixin):
    """LLaVA-NeXT-Video, whose patch features of frames are pooled before the projector, usually 2 x 2."""

    @property
    def frame_grid(self) -> Size:
        """Rows and columns of the pooled patches of a frame."""
        rows, cols = self.tower_grid
        return rows // self.config.spatial_pool_stride, cols // self.config.spatial_pool_stride

    def encode_clips(self, pixel_values_videos: Tensor, **inputs: Any) -> Clips:
        """Return the pooled features of the vision tower."""

        def encode(frames: Tensor) -> Tensor:
            features, _ = self.encode_tiles(frames)
            pooled: Tensor = self.vision_resampler(features.flatten(1, 2))
            return pooled.unflatten(1, self.frame_grid)

        return encode_frames(pixel_values_videos, encode)

    def pack_videos(self, output: Any) -> Any:
        """Return the output unchanged: the stock class takes a list."""
        return output


class OnevisionMixin(FramesMixin, AnyresMixin):
    """LLaVA-OneVision, which cuts an image into tiles only if it is the only image of its sample.

    Pass the ``batch_num_images`` of the processor if samples have several images. The features of an image with more
    than nine tiles are downscaled: in the stock class after the projector, here before it, where regions are made.

    The features of frames are resized to half as many rows and columns, in the stock class after the projector. Regions
    of videos are made of these features if the Regionizer averages without parameters. A Regionizer with parameters, or
    with a norm, works on features of the vision tower, which are then resized before the projector.
    """

    video_newlines: ClassVar[int] = 1

    encoder_inputs: tuple[str, ...] = ("image_sizes", "batch_num_images", "vision_aspect_ratio")

    @property
    def frame_grid(self) -> Size:
        """Rows and columns of the resized patches of a frame."""
        rows, cols = self.tower_grid
        return math.ceil(rows / 2), math.ceil(cols / 2)

    def encode_clips(self, pixel_values_videos: Tensor, **inputs: Any) -> Clips:
        """Return the resized features of all frames, projected if the Regionizer only averages them."""
        features, _ = self.encode_tiles(pixel_values_videos.flatten(0, 1))
        is_average = isinstance(self.regionizer.pool, MeanPool) and self.regionizer.config.norm == "none"
        patches = features.flatten(1, 2)
        pooled = self.apply_pooling(self.projector(patches) if is_average else patches)
        clips = pooled.unflatten(1, self.frame_grid).unflatten(0, pixel_values_videos.shape[:2])
        return Clips(list(clips), is_projected=is_average)

    def arrange_video(
        self, tokens: RegionTokens, patches: Patches, unmerged: Sequence[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens with a newline after each video."""
        region = torch.arange(len(tokens), device=tokens.values.device)
        neighbour = region.repeat_interleave(1 + _is_last(tokens.regions.image).long())
        is_newline = torch.zeros_like(neighbour, dtype=torch.bool)
        is_newline[1:] = neighbour[1:] == neighbour[:-1]
        newline = self.image_newline.to(tokens.values)
        values = torch.where(is_newline[:, None], newline, tokens.values[neighbour])
        return values, neighbour.masked_fill(is_newline, -1), neighbour

    def _tilings(self, sizes: list[Size], **inputs: Any) -> list[Size | None]:
        is_cut = self._is_cut(len(sizes), inputs)
        return [self.tiling_of(size) if cut else None for size, cut in zip(sizes, is_cut, strict=True)]

    def _tiles(self, sizes: list[Size], **inputs: Any) -> list[Tile]:
        is_cut = self._is_cut(len(sizes), inputs)
        max_tiles = _read_max_tiles(inputs.get("vision_aspect_ratio") or self.config.vision_aspect_ratio)
        tiles: list[Tile] = []
        for image, (size, cut) in enumerate(zip(sizes, is_cut, strict=True)):
            if cut:
                thumbnail, *joined = self._tiles_of(image, size)
                tiles += [thumbnail, *(self._downscale(tile, max_tiles) for tile in joined)]
            else:
                padded = TileLayout(
                    ImageGeometry.letterbox(pair(self.config.vision_config.image_size)), self.tower_grid
                )
                tiles.append(Tile(image, image, self.tower_grid, padded))
        return tiles

    def _sizes(self, pixel_values: Tensor, inputs: dict[str, Any]) -> tuple[list[Size], dict[str, Any]]:
        if pixel_values.ndim == 5 and pixel_values.shape[1] == 1:  # no image is cut, so sizes matter only for masks
            inputs = inputs | {"is_uncut": True}
            if inputs.get("image_sizes") is None:
                inputs["image_sizes"] = [pair(self.config.vision_config.image_size)] * len(pixel_values)
        return super()._sizes(pixel_values, inputs)

    def _is_cut(self, num_images: int, inputs: dict[str, Any]) -> list[bool]:
        """Return which images are cut into tiles: those that are the only image of their sample."""
        per_sample, is_uncut = inputs.get("batch_num_images"), inputs.get("is_uncut", False)
        if per_sample is None or is_uncut:
            return [not is_uncut] * num_images
        counts = [int(count) for count in per_sample]
        if sum(counts) != num_images:
            raise ShapeError(f"batch_num_images must add up to the {num_images} images; got {counts}.")
        return [count == 1 for count in counts for _ in range(count)]

    def _downscale(self, tile: Tile, max_tiles: int) -> Tile:
        """Return the tile with the smaller grid that the stock class interpolates to above ``max_tiles``."""
        (rows, cols), side = tile.grid, self.tower_grid[0]
        ratio = math.sqrt(rows * cols / (max_tiles * side**2))
        if ratio <= 1.1:
            return tile
        grid = int(rows // ratio), int(cols // ratio)
        patch_height, patch_width = pair(self.config.vision_config.patch_size)
        geometry = ImageGeometry.squash((grid[0] * patch_height, grid[1] * patch_width))
        return Tile(tile.image, tile.block, grid, TileLayout(geometry, grid))

    def _unpad(self, grid: Tensor, size: Size, tile: Tile) -> Tensor:
        unpadded = self._unpad_image(grid.permute(2, 0, 1), size)
        if unpadded.shape[1:] != tile.grid:
            unpadded = nn.functional.interpolate(unpadded[None], tile.grid, mode="bilinear")[0]
        return unpadded.permute(1, 2, 0)


def _check_image_sizes(image_sizes: Any) -> list[Size]:
    if image_sizes is None:
        raise ValueRangeError(
            "pixel_values need image_sizes, the height and width of each image, which determine its tiles. Pass the "
            "image_sizes that the processor returns."
        )
    return check_sizes("image_sizes", image_sizes)


def _is_last(values: Tensor) -> Tensor:
    """Return which elements are the last of a run of equal values."""
    is_last = torch.ones_like(values, dtype=torch.bool)
    is_last[:-1] = values[1:] != values[:-1]
    return is_last


def _read_max_tiles(ratio: str) -> int:
    number = ratio.removeprefix("anyres_max_")
    if not number.isdigit():
        raise ValueRangeError(f"vision_aspect_ratio must be anyres_max_ and a number of tiles; got {ratio!r}.")
    return int(number)
