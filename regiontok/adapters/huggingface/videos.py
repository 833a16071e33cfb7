"""Encode videos as region tokens in a multimodal model; shared by all families whose stock class accepts videos.

A stock processor writes one block of placeholders per video, or one per frame with a timestamp between them. In Qwen-VL
and GLM-V, whose vision towers merge two frames of a video, such a pair counts as one frame here.

With one block per video, regions extend over all frames. With one block per frame, a video is cut into chunks of at
most ``max_frames`` frames of the Regionizer, 8 by default. Regions stay within their chunk, and their tokens follow the
timestamp of its first frame. The budget of a video is shared over its chunks in proportion to their patches, so that
the length of each block is known before the video is encoded.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from regiontok._values import check_choice
from regiontok.adapters.huggingface.encoding import RegionEncoderMixin
from regiontok.adapters.huggingface.patches import Patches, count_valid, per_image, unmerged_images
from regiontok.budgets import Budget, Keep, is_per_image
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions
from regiontok.tiles import MAX_FRAMES, Tile, count_images, cut_videos
from regiontok.tokens import RegionTokens

EMPTY_FRAMES = ("drop", "keep")
VIDEO_SIDE_INPUTS = ("video_num_regions", "video_keep")
"""Arguments of region models that accept videos, in addition to `SIDE_INPUTS`."""


class Clips(NamedTuple):
    """Patch features of the videos of a batch, before they are cut into chunks.

    Attributes:
        features: ``(frames, rows, cols, dim)`` of each video.
        layers: Features of further layers, each like ``features``.
        valid: Patches that the stock model uses, ``(frames, rows, cols)`` bool of each video; None for all.
        frame_positions: ``(frames,)`` of each video; see `Patches`, as for the next two attributes.
        frame_tokens: ``(frames, dim)``.
        is_projected: Whether the features are in the dimension of the language model.
    """

    features: Sequence[Tensor]
    layers: Sequence[Sequence[Tensor]] = ()
    valid: Sequence[Tensor] | None = None
    frame_positions: Sequence[Tensor] = ()
    frame_tokens: Tensor | None = None
    is_projected: bool = False


class VideoEncoderMixin(RegionEncoderMixin):
    """Encode videos of a family as region tokens, without a prompt.

    A family whose stock class accepts videos provides the grids of videos (`video_grids`) and their patch features
    (`encode_clips`).
    """

    video_inputs: tuple[str, ...] = ()
    """Names of the inputs of `encode_clips` other than pixels."""
    has_frame_blocks: ClassVar[bool] = False
    """Whether each frame of a video has a block of placeholders, instead of one block per video."""
    video_newlines: ClassVar[int] = 0
    """Number of placeholders after the patches of a video, for families with one block per video."""
    has_frame_tokens: ClassVar[bool] = False
    """Whether each frame has a further token if every patch of the video is a token."""

    def video_grids(self, pixel_values_videos: Tensor | None = None, **inputs: Any) -> list[tuple[int, int, int]]:
        """Return frames, rows and columns of the patches of each video, without encoding them.

        Raises:
            ValueRangeError: The stock class does not accept videos.
        """
        raise self._no_videos()

    def encode_clips(self, pixel_values_videos: Tensor, **inputs: Any) -> Clips:
        """Return the patch features of the videos of a batch; see `video_grids` for the errors."""
        raise self._no_videos()

    def _no_videos(self) -> ValueRangeError:
        return ValueRangeError(
            f"{self._stock.__name__} does not accept videos. Pass frames as images, or use a family that accepts "
            "videos: see the table of families in the documentation."
        )

    @property
    def accepts_videos(self) -> bool:
        """Whether the stock class accepts videos."""
        return hasattr(self, "has_videos")

    @property
    def max_frames(self) -> int | None:
        """Number of frames of a chunk; None if a video is one chunk."""
        return (self.regionizer.config.max_frames or MAX_FRAMES) if self.has_frame_blocks else None

    @property
    def empty_frames(self) -> str:
        """What happens to the text of frames without a token, such as timestamps: ``drop`` or ``keep``."""
        return str(self._video_options.get("empty_frames") or "drop")

    @property
    def _video_options(self) -> dict[str, Any]:
        return getattr(self.config, "regiontok_videos", None) or {}

    def video_tiles(self, pixel_values_videos: Tensor | None = None, **inputs: Any) -> list[Tile]:
        """Return the chunks of videos, without encoding them; see `video_grids` for the arguments."""
        return cut_videos(self.video_grids(pixel_values_videos, **inputs), self.max_frames)

    def encode_videos(self, pixel_values_videos: Tensor, **inputs: Any) -> Patches:
        """Return the patch features of the chunks of videos.

        Args:
            pixel_values_videos: Pixels, as the processor returns them.
            inputs: Inputs named in ``video_inputs``.

        Raises:
            ValueRangeError: The stock class does not accept videos, or the Regionizer needs masks.
        """
        tiles = self.video_tiles(pixel_values_videos, **inputs)
        if self.regionizer.config.source in ("segmentation", "combined"):
            raise ValueRangeError(
                f"a Regionizer with source={self.regionizer.config.source!r} needs masks, and region models take masks "
                "of images only. Use source='clustering' for videos."
            )
        clips = self.encode_clips(pixel_values_videos, **inputs)
        return Patches(
            _cut(clips.features, tiles),
            self._count_placeholders(tiles, clips),
            tiles,
            [_cut(layer, tiles) for layer in clips.layers],
            None if clips.valid is None else _cut(clips.valid, tiles),
            _cut(clips.frame_positions, tiles) if clips.frame_positions else (),
            clips.frame_tokens,
            clips.is_projected,
        )

    def _count_placeholders(self, tiles: Sequence[Tile], clips: Clips) -> list[int]:
        """Return the number of placeholders of the stock processor, of each frame or of each video."""
        valid = [None] * len(tiles) if clips.valid is None else _cut(clips.valid, tiles)
        if not self.has_frame_blocks:
            per_frame = 0 if clips.frame_tokens is None else 1
            counts = zip(tiles, count_valid(tiles, valid), strict=True)
            return [count + self.video_newlines + per_frame * (tile.frames or 0) for tile, count in counts]
        lengths: list[int] = []
        for tile, mask in zip(tiles, valid, strict=True):
            cells = tile.grid[0] * tile.grid[1]
            lengths += [cells] * (tile.frames or 0) if mask is None else mask.flatten(1).sum(1).tolist()
        return lengths

    def encode_video_regions(
        self,
        pixel_values_videos: Tensor,
        *,
        num_regions: Budget | None = None,
        keep: Keep | None = None,
        **inputs: Any,
    ) -> RegionTokens:
        """Return region tokens of videos without a prompt, in the dimension of the language model.

        Args:
            pixel_values_videos: Pixels, as the processor returns them.
            num_regions: Budget of tokens, one number or one per video.
            keep: The same budget as a fraction of the patches.
            inputs: Inputs named in ``video_inputs``.

        Returns:
            Tokens with one image of the `Regions` per chunk of frames; see `video_tiles`.
        """
        patches = self.encode_videos(pixel_values_videos, **inputs)
        valid = self._valid_of_videos(patches)
        budget = self.video_budget(None, None, num_regions, keep)
        tokens = self._regionize(patches, None, None, valid, self._budgets(patches.tiles, valid, *budget))
        return self._project(tokens, patches)

    def num_video_tokens(
        self,
        pixel_values_videos: Tensor | None = None,
        *,
        num_regions: Budget | None = None,
        keep: Keep | None = None,
        **inputs: Any,
    ) -> list[int]:
        """Return the number of tokens of each video, before it is encoded; timestamps are not counted.

        Args:
            pixel_values_videos: Pixels, for families whose grids depend on their shape.
            num_regions: Budget of tokens, one number or one per video.
            keep: The same budget as a fraction of the patches.
            inputs: Inputs named in ``video_inputs``.

        Raises:
            ValueRangeError: The counts depend on features.
        """
        tiles = self.video_tiles(pixel_values_videos, **inputs)
        valid: list[Tensor | None] = [None] * len(tiles)
        counts = self._known_counts(
            tiles, valid, self._budgets(tiles, valid, *self.video_budget(None, None, num_regions, keep))
        )
        if counts is None:  # raises an error with the reason
            counts = self.regionizer.num_tokens([tile.patches for tile in tiles])
        frame_tokens = [self.has_frame_tokens * is_unmerged for is_unmerged in unmerged_images(tiles, counts)]
        frames = per_image(tiles, [tile.frames or 0 for tile in tiles])
        return [
            count + self.video_newlines + has_tokens * num_frames
            for count, has_tokens, num_frames in zip(per_image(tiles, counts), frame_tokens, frames, strict=True)
        ]

    def video_budget(
        self,
        num_regions: Budget | None,
        keep: Keep | None,
        video_num_regions: Budget | None,
        video_keep: Keep | None,
    ) -> tuple[Budget | None, Keep | None]:
        """Return the budget of videos: that of the call for videos, that of the config, or that for images.

        Args:
            num_regions: Budget of the call for images, which holds for videos too if it is one number and the config
                has no budget for videos.
            keep: The same as a fraction.
            video_num_regions: Budget of the call for videos.
            video_keep: The same as a fraction.
        """
        if video_num_regions is not None or video_keep is not None:
            return video_num_regions, video_keep
        options = self._video_options
        if options.get("num_regions") is not None or options.get("keep") is not None:
            return options.get("num_regions"), options.get("keep")
        return None if is_per_image(num_regions) else num_regions, None if is_per_image(keep) else keep

    def read_video_budgets(self, lengths: list[int], patches: Patches) -> tuple[list[int], list[bool]]:
        """Return the budget of each video from its placeholders, and whether these are the stock processor's.

        Args:
            lengths: Length of each block of placeholders in the prompts.
            patches: Features of the videos.

        Raises:
            ShapeError: The blocks do not match the videos.
        """
        tiles, stock = patches.tiles, patches.num_placeholders
        num_videos = count_images(tiles)
        if not self.has_frame_blocks:
            stock_runs = runs = [1] * num_videos
            if len(lengths) != num_videos:
                raise ShapeError(
                    f"the prompts have {len(lengths)} blocks of placeholders for {num_videos} videos. Write a block "
                    "for each, with other tokens between them, or pass video_num_regions."
                )
        else:
            stock_runs = per_image(tiles, [tile.frames or 0 for tile in tiles])
            runs = count_runs(lengths, tiles, stock)
        blocks, stock_blocks = iter(lengths), iter(stock)
        budgets, unmerged = [], []
        for count, stock_count in zip(runs, stock_runs, strict=True):
            written = [next(blocks) for _ in range(count)]
            unmerged.append(written == [next(stock_blocks) for _ in range(stock_count)])
            budgets.append(max(1, sum(written) - self.video_newlines))
        return budgets, unmerged

    def check_regionizer(self, regionizer: Regionizer) -> None:
        """Raise an error for a Regionizer that does not fit this model, or unknown options of videos."""
        super().check_regionizer(regionizer)
        check_choice("empty_frames", self.empty_frames, EMPTY_FRAMES)
        options = self._video_options
        if options.get("num_regions") is not None or options.get("keep") is not None:
            regionizer.check_budget(options.get("num_regions"), options.get("keep"))

    def frame_ends(self, input_ids: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
        """Return the column after the text of frames; by default a closing tag belongs to the block before it.

        Args:
            input_ids: ``(B, columns)``.
            rows: ``(blocks,)``: sample of each block of placeholders.
            ends: ``(blocks,)``: column after each block.
        """
        return ends + 1

    def arrange_video(
        self, tokens: RegionTokens, patches: Patches, unmerged: Sequence[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens in the order of their placeholders, with the newlines and frame tokens of the stock model.

        Returns:
            Values ``(N, text_dim)``; the region of each, -1 for others; and a region in the block of each.
        """
        region = torch.arange(len(tokens), device=tokens.values.device)
        return tokens.values, region, region

    def block_of_regions(self, regions: Regions, tiles: Sequence[Tile], unmerged: Sequence[bool]) -> Tensor:
        """Return the block of each region: of the first frame of its chunk, or of its own frame without merging."""
        block = super().block_of_regions(regions, tiles, unmerged)
        if not self.has_frame_blocks or tiles[0].frames is None:
            return block
        device = regions.device
        cells = torch.tensor([tile.grid[0] * tile.grid[1] for tile in tiles], device=device)[regions.image]
        is_unmerged = torch.tensor([unmerged[tile.image] for tile in tiles], device=device)[regions.image]
        return block + is_unmerged * (regions.patch[regions.starts] // cells)

    def _in_block_order(self, tokens: RegionTokens, tiles: Sequence[Tile], unmerged: Sequence[bool]) -> RegionTokens:
        if not self.has_frame_blocks or tiles[0].frames is None or self.regionizer.config.order == "raster":
            return tokens
        order = self.block_of_regions(tokens.regions, tiles, unmerged).argsort(stable=True)
        return RegionTokens(tokens.values[order], tokens.regions.select(order))

    def _arranged(
        self, tokens: RegionTokens, patches: Patches, unmerged: Sequence[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        arrange = super()._arranged if patches.tiles[0].frames is None else self.arrange_video
        return arrange(tokens, patches, unmerged)

    def _valid_of_videos(self, patches: Patches) -> list[Tensor | None]:
        return [None] * len(patches.tiles) if patches.valid is None else list(patches.valid)


def count_runs(lengths: Sequence[int], tiles: Sequence[Tile], stock_lengths: Sequence[int]) -> list[int]:
    """Return the number of blocks of placeholders that each video has in prompts with a block per frame.

    A video has one block per frame if every patch is a token, otherwise one per chunk.

    Args:
        lengths: Length of each block in the prompts.
        tiles: The chunks of the videos.
        stock_lengths: Number of placeholders that the stock processor writes for each frame of the batch.

    Raises:
        ShapeError: The blocks do not match the videos.
    """
    num_videos = count_images(tiles)
    frames = per_image(tiles, [tile.frames or 0 for tile in tiles])
    chunks = per_image(tiles, [1] * len(tiles))
    stock = iter(stock_lengths)
    stock_of_video = [[next(stock) for _ in range(count)] for count in frames]

    @cache
    def runs_from(video: int, start: int) -> tuple[int, ...] | None:
        if video == num_videos:
            return () if start == len(lengths) else None
        is_stock = list(lengths[start : start + frames[video]]) == stock_of_video[video]
        for count in (*([frames[video]] if is_stock else []), chunks[video]):
            others = runs_from(video + 1, start + count)
            if others is not None:
                return (count, *others)
        return None

    runs = runs_from(0, 0)
    if runs is None:
        raise ShapeError(
            f"the prompts have {len(lengths)} blocks of placeholders for videos; {num_videos} videos of {frames} "
            f"frames need one block per frame, or {chunks} blocks, one per chunk of frames. Write the prompts with "
            "region_processor(processor, model)."
        )
    return list(runs)


def _cut(videos: Sequence[Tensor], tiles: Sequence[Tile]) -> list[Tensor]:
    """Return the frames of each chunk."""
    parts: list[Tensor] = []
    for video, frames in enumerate(videos):
        parts += frames.split([tile.frames or 0 for tile in tiles if tile.image == video])
    return parts
