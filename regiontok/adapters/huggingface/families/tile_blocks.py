"""Tiles of equal size with a block of placeholders each: Aya Vision, Cohere2 Vision, Idefics3 and SmolVLM."""

from typing import Any

import torch
from torch import Tensor

from regiontok.adapters.huggingface.families.tiles import TilesMixin, TypedFramesMixin, check_tilings, count_tiles
from regiontok.adapters.huggingface.families.vision_tower import pair
from regiontok.adapters.huggingface.patches import Patches, Prompt
from regiontok.adapters.huggingface.videos import Clips
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.geometry import Size


class BlockPerTileMixin(TilesMixin):
    """Families whose prompts have a separate block of placeholders for each tile, after a tag."""

    _block_per_tile = True
    _same_row: int | None = None
    """Number of tokens between the blocks of two adjacent tiles in a row; None if prompts do not mark rows."""

    def infer_tilings(self, pixel_values: Tensor, inputs: dict[str, Any], prompt: Prompt | None = None) -> None:
        """Add ``tilings``, inferred from the tags before the blocks in the prompt."""
        if prompt is None or not len(prompt.blocks):
            return
        tilings = self._read_tile_tags(prompt.blocks, prompt.input_ids)
        if (prompt.blocks[:, 2] == 1).all() and not self._has_one_token_per_tile(tilings, pixel_values, prompt):
            return  # one placeholder per image, without tags
        if inputs.get("tilings") is not None:
            _check_match(check_tilings(inputs["tilings"]), tilings)
        else:
            inputs["tilings"] = tilings

    def _has_one_token_per_tile(self, tilings: list[Size | int], pixel_values: Tensor, prompt: Prompt) -> bool:
        """Return whether ``tilings`` fit the pixels, and the budget is one token per tile."""
        if 2 in tilings or count_tiles(tilings) != self._count_pixel_tiles(pixel_values):
            return False
        tiles = self.tiles(len(tilings), tilings=tilings)
        budgets = self._budgets(tiles, [None] * len(tiles), prompt.num_regions, prompt.keep)
        return budgets is None or set(budgets) == {1}

    def _count_pixel_tiles(self, pixel_values: Tensor) -> int:
        """Return the number of tiles. Tiles of zeros are padding."""
        return int((pixel_values != 0).flatten(-3).any(-1).sum())

    def _read_tile_tags(self, blocks: Tensor, input_ids: Tensor) -> list[Size | int]:
        """Return the tiling of each image. The last block of an image is its thumbnail, with a tag of its own."""
        ends = {*self._image_ends(_tags(blocks, input_ids)), *_last_of_samples(blocks)}
        tilings: list[Size | int] = []
        start = 0
        for end in sorted(ends):
            tilings.append(self._read_rows(blocks[start : end + 1]))
            start = end + 1
        return tilings

    def _image_ends(self, tags: Tensor) -> list[int]:
        """Return the blocks that end an image: by default those with the tag of the last block."""
        return [int(index) for index in (tags == tags[-1]).nonzero()[:, 0]]

    def _read_rows(self, blocks: Tensor) -> Size | int:
        """Return rows and columns of the tiles of an image, or the number of its blocks."""
        count = len(blocks) - 1
        if count == 0:
            return (1, 1)
        between = blocks[1:count, 1] - blocks[: count - 1, 1] - blocks[: count - 1, 2]
        if self._same_row is None or count == 1 or (between < self._same_row).any():
            return count + 1
        rows = 1 + int((between > self._same_row).sum())
        return (rows, count // rows) if count % rows == 0 else count + 1


class AyaVisionMixin(BlockPerTileMixin):
    """Aya Vision, with a numbered tag before each tile."""

    @property
    def tile_grid(self) -> Size:
        """Rows and columns of a tile, after merging patches by ``downsample_factor``."""
        return _merged_grid(self, self.config.downsample_factor)


class Cohere2VisionMixin(BlockPerTileMixin):
    """Cohere2 Vision, with a line break after each tile."""

    @property
    def tile_grid(self) -> Size:
        """Rows and columns of a tile, after merging patches by ``downsample_factor``."""
        return _merged_grid(self, self.config.downsample_factor)

    def _image_ends(self, tags: Tensor) -> list[int]:
        """Return the blocks before the first block of each image, which does not follow a line break."""
        return [int(start) - 1 for start in (tags == tags[0]).nonzero()[1:, 0]]


class IdeficsMixin(BlockPerTileMixin):
    """Idefics3 and SmolVLM, whose prompts mark rows and columns. Each sample is padded to the same number of tiles."""

    encoder_inputs: tuple[str, ...] = ("tilings", "pixel_attention_mask")
    _same_row = 2

    @property
    def tile_grid(self) -> Size:
        """Rows and columns of a tile, after merging patches by ``scale_factor``."""
        return _merged_grid(self, self.config.scale_factor)

    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Return features of all tiles of ``(samples, tiles, 3, height, width)``. Tiles of zeros are padding."""
        if pixel_values.ndim != 5:
            raise ShapeError(
                f"pixel_values must be (samples, tiles, 3, height, width); got {tuple(pixel_values.shape)}."
            )
        mask = inputs.pop("pixel_attention_mask", None)
        if mask is not None and not mask.flatten(0, 1)[(pixel_values != 0).flatten(0, 1).flatten(1).any(1)].all():
            raise ValueRangeError(
                "pixel_attention_mask must not mask a part of a tile; partly masked tiles are not supported. Let the "
                "processor resize images to whole tiles, the default."
            )
        return super().encode_patches(pixel_values, **inputs)

    def encode_tiles(self, pixel_values: Tensor) -> Tensor:
        """Return features ``(tiles, rows, cols, dim)`` of the tiles that are not padding."""
        output = self._inner.get_image_features(self, pixel_values, return_dict=True).pooler_output
        rows, cols = self.tile_grid
        return torch.cat(list(output)).unflatten(0, (-1, rows, cols))

    def pack_features(self, output: Any) -> Any:
        """Return the output unchanged: the stock class takes a list."""
        return output

    def blank_image(self) -> dict[str, Any]:
        """Return one grey tile. A black tile would be padding."""
        height, width = self.tile_pixels
        weight = next(self.vision_model.parameters())
        return {"pixel_values": torch.ones(1, 1, 3, height, width, device=weight.device, dtype=weight.dtype)}


class SmolVLMMixin(TypedFramesMixin, IdeficsMixin):
    """SmolVLM, whose prompts give the time of each frame of a video. Frames of zeros are padding."""

    encoder_inputs: tuple[str, ...] = ("tilings", "pixel_attention_mask", "mm_token_type_ids")

    def video_grids(self, pixel_values_videos: Tensor | None = None, **inputs: Any) -> list[tuple[int, int, int]]:
        """Return the grid of each video, without padding frames."""
        grids = super().video_grids(pixel_values_videos, **inputs)
        frames = (pixel_values_videos != 0).flatten(2).any(-1).sum(1).tolist()  # type: ignore[union-attr]
        return [(count, rows, cols) for count, (_, rows, cols) in zip(frames, grids, strict=True)]

    def encode_clips(self, pixel_values_videos: Tensor, **inputs: Any) -> Clips:
        """Return the features of all frames that are not padding."""
        features = self.encode_tiles(pixel_values_videos)
        return Clips(list(features.split([frames for frames, _, _ in self.video_grids(pixel_values_videos)])))


def _merged_grid(model: Any, factor: int) -> Size:
    (height, width), (patch_height, patch_width) = model.tile_pixels, pair(model.config.vision_config.patch_size)
    return height // patch_height // factor, width // patch_width // factor


def _check_match(tilings: list[Size | int], prompt_tilings: list[Size | int]) -> None:
    """Raise ShapeError if ``tilings`` contradict the prompts."""
    if len(tilings) != len(prompt_tilings) or not all(map(_is_match, tilings, prompt_tilings)):
        raise ShapeError(f"tilings must match the prompts, {prompt_tilings}; got {tilings}. Leave tilings out.")


def _is_match(first: Size | int, second: Size | int) -> bool:
    if isinstance(first, int) or isinstance(second, int):
        return count_tiles([first]) == count_tiles([second])
    return first == second


def _last_of_samples(blocks: Tensor) -> list[int]:
    """Return the indices of the last block of each sample."""
    samples = blocks[:, 0].tolist()
    return [index for index, sample in enumerate(samples) if index + 1 == len(samples) or samples[index + 1] != sample]


def _tags(blocks: Tensor, input_ids: Tensor) -> Tensor:
    """Return the token before each block; -1 at the start of a sample."""
    before = input_ids[blocks[:, 0], (blocks[:, 1] - 1).clamp(min=0)]
    return torch.where(blocks[:, 1] > 0, before, -1)
