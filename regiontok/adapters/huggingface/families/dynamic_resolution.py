"""Dynamic resolution: grids that follow the image size, with rows and columns as positions: Qwen-VL and GLM-V."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regiontok._positions import mean_positions, positions
from regiontok._values import check_choice
from regiontok.adapters.huggingface._transformers import CACHES
from regiontok.adapters.huggingface.inner import RegionModelMixin
from regiontok.adapters.huggingface.media import MEDIA, PLACEHOLDER
from regiontok.adapters.huggingface.patches import Patches
from regiontok.adapters.huggingface.videos import Clips, count_runs
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.placeholders import find_blocks, lay_out
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions
from regiontok.tiles import Tile, uncut_images

POSITIONS = ("centroid", "first", "even")


class DynamicResolutionMixin(RegionModelMixin):
    """Families with the interface of Qwen2-VL: ``image_grid_thw``, merged patches, positions of time, row and column.

    Regions are made of the merged features of the vision tower, one per 2 x 2 patches, so grids differ between images.
    The rotary position of a region is the row and column of its centroid on the merged grid, in the units of the stock
    class. The text after an image has the same positions as in the stock model.

    A video of Qwen2-VL and Qwen2.5-VL is one block of placeholders, and the position of a region in time is the mean of
    the positions that the stock class gives to its frames.

    Source:
        Not in the paper. Fractional positions for centroids between patches are our choice.
    """

    has_positions = True
    token_types = "mm_token_type_ids"
    encoder_inputs = ("image_grid_thw", "mm_token_type_ids")
    video_inputs: tuple[str, ...] = ("video_grid_thw", "second_per_grid_ts", "mm_token_type_ids")

    def tiles(self, num_images: int, image_sizes: Any = None, **inputs: Any) -> list[Tile]:
        """Return one tile per image, with its merged grid from ``image_grid_thw (images, 3)``."""
        if inputs.get("image_grid_thw") is None:
            raise ValueRangeError(
                "pixel_values need image_grid_thw, the grid of each image. Pass the image_grid_thw that the processor "
                "returns."
            )
        side = self.config.vision_config.spatial_merge_size
        grids = torch.as_tensor(inputs["image_grid_thw"]).tolist()
        for index, (frames, _, _) in enumerate(grids):
            if frames != 1:
                raise ShapeError(
                    f"image_grid_thw[{index}] must have one frame, of an image; got {frames}. Pass videos as "
                    "pixel_values_videos and video_grid_thw."
                )
        return uncut_images([(rows // side, cols // side) for _, rows, cols in grids])

    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Return features ``(rows, cols, dim)`` of each image; ``image_grid_thw (images, 3)`` gives the grids."""
        tiles = self.tiles(0, **inputs)
        grids = _check_patches("image", pixel_values, inputs["image_grid_thw"])
        output = self._inner.get_image_features(self, pixel_values, image_grid_thw=grids, return_dict=True)
        layers = [_as_grids(layer, tiles) for layer in getattr(output, "deepstack_features", None) or ()]
        num_placeholders = [tile.patches for tile in tiles]
        return Patches(_as_grids(output.pooler_output, tiles), num_placeholders, tiles, layers)

    def video_grids(self, pixel_values_videos: Tensor | None = None, **inputs: Any) -> list[tuple[int, int, int]]:
        """Return the merged grid of each video from ``video_grid_thw (videos, 3)``."""
        if inputs.get("video_grid_thw") is None:
            raise ValueRangeError(
                "pixel_values_videos need video_grid_thw, the grid of each video. Pass the video_grid_thw that the "
                "processor returns."
            )
        side = self.config.vision_config.spatial_merge_size
        grids = torch.as_tensor(inputs["video_grid_thw"]).tolist()
        return [(frames, rows // side, cols // side) for frames, rows, cols in grids]

    def encode_clips(self, pixel_values_videos: Tensor, **inputs: Any) -> Clips:
        """Return the merged features of videos; ``second_per_grid_ts`` are the seconds between two frames of each."""
        shapes = self.video_grids(**inputs)
        grids = _check_patches("video", pixel_values_videos, inputs["video_grid_thw"])
        output = self._stock_video_features(pixel_values_videos, grids)
        layers = [_as_clips(layer, shapes) for layer in getattr(output, "deepstack_features", None) or ()]
        features = _as_clips(output.pooler_output, shapes)
        times = self._frame_positions(shapes, inputs.get("second_per_grid_ts"), features[0].device)
        return Clips(features, layers, frame_positions=times)

    def _stock_video_features(self, pixel_values_videos: Tensor, grids: Tensor) -> Any:
        return self._inner.get_video_features(self, pixel_values_videos, video_grid_thw=grids, return_dict=True)

    def _frame_positions(self, shapes: Sequence[tuple[int, int, int]], seconds: Any, device: Any) -> list[Tensor]:
        """Return the rotary position in time of each frame of each video, from the start of its block."""
        if self.has_frame_blocks:
            return [torch.zeros(frames, device=device) for frames, _, _ in shapes]
        per_second = getattr(self.config.vision_config, "tokens_per_second", None)
        if per_second is None:
            return [torch.arange(frames, device=device) for frames, _, _ in shapes]
        seconds = [1.0] * len(shapes) if seconds is None else seconds
        if len(seconds) != len(shapes):
            raise ShapeError(f"second_per_grid_ts must have one entry per video, {len(shapes)}; got {len(seconds)}.")
        steps = [per_second * float(step) for step in seconds]
        return [
            (torch.arange(frames, device=device) * step).long()
            for (frames, _, _), step in zip(shapes, steps, strict=True)
        ]

    def blank_image(self) -> dict[str, Any]:
        """Return one black image of a single merged patch."""
        vision, visual = self.config.vision_config, self.visual
        side = vision.spatial_merge_size
        patch_dim = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        return {
            "pixel_values": torch.zeros(side**2, patch_dim, device=visual.device, dtype=visual.dtype),
            "image_grid_thw": torch.tensor([[1, side, side]], device=visual.device),
        }

    def get_rope_index(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the positions of the stock class, for blocks of placeholders of any length.

        Text has the positions that it has with one placeholder per patch. The ``n`` tokens of an image are spread
        evenly over its patches; `position` moves them to the centroids of their regions.
        """
        bound = inspect.signature(self._inner.get_rope_index).bind_partial(self, *args, **kwargs).arguments
        inputs = {**bound.pop("kwargs", {}), **{name: value for name, value in bound.items() if name != "self"}}
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        if inputs.get("mm_token_type_ids") is None:
            is_video = self.find_placeholders(ids, "video")
            inputs["mm_token_type_ids"] = self.find_placeholders(ids, "image").int() + 2 * is_video.int()
        types = inputs["mm_token_type_ids"]
        marked = ids.masked_fill(types > 0, PLACEHOLDER)
        blocks = find_blocks(marked, mask, PLACEHOLDER)
        if inputs.get("image_grid_thw") is None and inputs.get("video_grid_thw") is None:
            return self._inner.get_rope_index(self, **inputs)
        patches = self._patches_of_blocks(blocks, types[blocks[:, 0], blocks[:, 1]], inputs)
        if blocks[:, 2].tolist() == patches:
            return self._inner.get_rope_index(self, **inputs)
        layout = lay_out(
            marked, mask, image_token_id=PLACEHOLDER, counts=patches, num_placeholders=blocks[:, 2].tolist()
        )
        inputs["input_ids"] = layout.put(ids, 0)
        inputs["mm_token_type_ids"] = layout.put(inputs["mm_token_type_ids"], 0)
        inputs["attention_mask"] = layout.mask
        full_positions, deltas = self._inner.get_rope_index(self, **inputs)
        # These positions are for a prompt with one placeholder per patch. Find the column there of each token.
        is_full_token = layout.source >= 0
        length = layout.source.shape[1]
        full_column = torch.arange(length, device=ids.device).expand_as(layout.source)
        column = torch.full_like(ids, length).scatter_reduce(
            1, layout.source.clamp(min=0), full_column.masked_fill(~is_full_token, length), "amin"
        )
        lengths = blocks[:, 2]
        row, start, count = blocks.repeat_interleave(lengths, 0).unbind(1)
        index = torch.arange(len(row), device=ids.device) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        sizes = torch.tensor(patches, device=ids.device).repeat_interleave(lengths)
        column[row, start + index] = column[row, start] + index * sizes // count
        is_token = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        column = column.masked_fill(~is_token, 0)
        positions = full_positions.gather(2, column.expand(3, -1, -1)).masked_fill(~is_token, 0)
        return positions, deltas + (is_full_token.sum(1) - is_token.sum(1))[:, None]

    def _patches_of_blocks(self, blocks: Tensor, types: Tensor, inputs: dict[str, Any]) -> list[int]:
        """Return the number of placeholders of each block in prompts of the stock processor.

        If frames have blocks, ``inputs["video_grid_thw"]`` becomes the grid of the frame of each block.
        """
        counts: dict[int, list[int]] = {1: [], 2: []}
        if inputs.get("image_grid_thw") is not None:
            counts[1] = [tile.patches for tile in self.tiles(0, image_grid_thw=inputs["image_grid_thw"])]
        if inputs.get("video_grid_thw") is not None:
            tiles = self.video_tiles(video_grid_thw=inputs["video_grid_thw"])
            counts[2] = [tile.patches for tile in tiles]
            if self.has_frame_blocks:
                cells = [tile.grid[0] * tile.grid[1] for tile in tiles for _ in range(tile.frames or 0)]
                grids = torch.as_tensor(inputs["video_grid_thw"])
                runs = torch.tensor(count_runs(blocks[types == 2, 2].tolist(), tiles, cells), device=grids.device)
                frame_grids = grids.repeat_interleave(runs, 0)
                frame_grids[:, 0] = 1
                inputs["video_grid_thw"] = frame_grids
                counts[2] = [
                    tile.patches // (tile.frames or 1) for tile in self.video_tiles(video_grid_thw=frame_grids)
                ]
        for kind, medium in ((1, "image"), (2, "video")):
            num_blocks = int((types == kind).sum())
            if len(counts[kind]) != num_blocks:
                raise ShapeError(
                    f"{medium}_grid_thw must have a row for each of the {num_blocks} {medium}s of the prompts; got "
                    f"{len(counts[kind])}. Images added to a cached conversation need the grids of all images: pass "
                    "the whole conversation without the cache."
                )
        ordered = {kind: iter(values) for kind, values in counts.items()}
        return [next(ordered[kind]) for kind in types.tolist()]

    def offsets(self, regions: Regions, patches: Patches) -> Tensor | None:
        """Return the position of each region in time, row and column, from the start of its block, ``(R, 3)``."""
        if self.positions == "even":
            return None
        position = positions(regions)
        if patches.frame_positions:
            times = torch.cat(list(patches.frame_positions))
            lengths = torch.tensor([len(part) for part in patches.frame_positions], device=regions.device)
            first_frame = (lengths.cumsum(0) - lengths)[regions.image[regions.region]]
            position = torch.cat([times[first_frame + position[:, 0]][:, None], position[:, 1:]], 1)
        else:
            position = nn.functional.pad(position, (1, 0))
        return (
            position[regions.starts].float() if self.positions == "first" else mean_positions(regions, position, None)
        )

    def position(
        self, position_ids: Any, input_ids: Tensor, attention_mask: Any, outputs: Mapping[str, Any], **inputs: Any
    ) -> Tensor:
        """Return positions ``(3 or 4, B, columns)``, with each region token at the position of its region."""
        if position_ids is None:
            if any(inputs.get(name) is not None and inputs[name].get_seq_length() for name in CACHES):
                raise ValueRangeError(
                    "images added to a cached conversation need positions of the whole conversation. Pass the whole "
                    "conversation without the cache."
                )
            options = {name: inputs[name] for name in _ROPE_INPUTS if inputs.get(name) is not None}
            position_ids, self.rope_deltas = self.get_rope_index(input_ids, attention_mask=attention_mask, **options)
        if self.positions == "even" or position_ids.ndim == 2:  # two dimensions: no rows and columns to change
            return position_ids
        is_token = torch.ones_like(input_ids, dtype=torch.bool)
        if attention_mask is not None and attention_mask.ndim == 2:
            is_token = attention_mask.bool()
        new = position_ids.float()
        is_fractional = False
        for medium, output in outputs.items():
            offsets = getattr(output, "offsets", None)
            if offsets is None:
                continue
            token = self.config.image_token_id if medium == "image" else self.config.video_token_id
            is_placeholder = (input_ids == token) & is_token
            if _is_text(position_ids, is_placeholder):
                return position_ids
            start = _start_of_blocks(position_ids[-3], is_placeholder, is_token)
            new[-3:, is_placeholder] = start[is_placeholder] + offsets.T.to(new)
            is_fractional |= bool((offsets % 1).any())
        return new if is_fractional else new.to(position_ids.dtype)

    def positions_of(
        self, input_ids: Tensor, mask: Tensor, outputs: Mapping[str, Any], **inputs: Any
    ) -> dict[str, Any]:
        """Return ``position_ids (4, B, columns)``: text positions, then rotary positions of time, row and column."""
        rotary = self.position(None, input_ids, mask, outputs, **inputs)
        text = (mask.cumsum(1) - 1).clamp(min=0).masked_fill(mask == 0, 0)
        return {"position_ids": torch.cat([text[None].to(rotary.dtype), rotary])}

    @property
    def positions(self) -> str:
        """Positions of region tokens: of the ``centroid``, of the ``first`` patch, or ``even``.

        ``even`` positions are evenly spaced over the patches of an image or of a block of a video.
        """
        return getattr(self.config, "regiontok_positions", None) or "centroid"

    def check_regionizer(self, regionizer: Regionizer) -> None:
        """Raise an error for a Regionizer that does not fit this model, or unknown ``positions``."""
        super().check_regionizer(regionizer)
        check_choice("positions", self.positions, POSITIONS)


class FrameBlocksMixin(DynamicResolutionMixin):
    """Families whose prompts have a timestamp and a block of placeholders for each frame: Qwen3-VL and Qwen3.5."""

    has_frame_blocks: ClassVar[bool] = True
    video_inputs = ("video_grid_thw", "mm_token_type_ids")

    def _stock_video_features(self, pixel_values_videos: Tensor, grids: Tensor) -> Any:
        """Return the features of the stock class, whose method for videos calls that for images of this class."""
        return self._inner.get_image_features(self, pixel_values_videos, image_grid_thw=grids, return_dict=True)


class GlmMixin(FrameBlocksMixin):
    """GLM-V, whose frames have the placeholders of images, and their timestamps after them."""

    shares_placeholders: ClassVar[bool] = True

    def _stock_video_features(self, pixel_values_videos: Tensor, grids: Tensor) -> Any:
        return self._inner.get_video_features(self, pixel_values_videos, video_grid_thw=grids, return_dict=True)

    def find_placeholders(self, input_ids: Tensor, medium: str, types: Tensor | None = None) -> Tensor:
        """Return the placeholders of a medium: those between the tags of a video are frames."""
        started = (input_ids == self.config.video_start_token_id).cumsum(1)
        ended = (input_ids == self.config.video_end_token_id).cumsum(1)
        is_placeholder = input_ids == self.config.image_token_id
        return is_placeholder & ((started > ended) if medium == "video" else (started <= ended))

    def frame_ends(self, input_ids: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
        """Return the column after the timestamp of frames: the start of the next frame, or the end of the video."""
        is_end = (input_ids == self.config.image_start_token_id) | (input_ids == self.config.video_end_token_id)
        column = torch.arange(input_ids.shape[1], device=input_ids.device)
        column = column.masked_fill(~is_end[rows] | (column < ends[:, None]), input_ids.shape[1])
        return column.amin(1)


_ROPE_INPUTS = ("mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")


def _check_patches(medium: str, pixels: Tensor, grids: Any) -> Tensor:
    """Return the grids of images or videos ``(N, 3)``, whose patches must be those of the pixels."""
    grids = torch.as_tensor(grids)
    num_patches = int(grids.prod(1).sum())
    if len(pixels) != num_patches:
        raise ShapeError(
            f"{MEDIA[medium]} must hold the {num_patches} patches of {medium}_grid_thw; got {len(pixels)}."
        )
    return grids


def _as_grids(features: Sequence[Tensor], tiles: Sequence[Tile]) -> list[Tensor]:
    return [grid.unflatten(0, tile.grid) for grid, tile in zip(features, tiles, strict=True)]


def _as_clips(features: Sequence[Tensor], shapes: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    return [clip.unflatten(0, shape) for clip, shape in zip(features, shapes, strict=True)]


def _is_text(position_ids: Tensor, is_placeholder: Tensor) -> bool:
    """Return whether placeholders have positions of text, as stock models use for embeddings without ids."""
    is_continued = (
        is_placeholder[:, 1:] & is_placeholder[:, :-1]
    )  # only in text do all three positions advance together
    position = position_ids[-3:, :, 1:][:, is_continued]
    return position.numel() > 0 and bool((position == position[:1]).all())


def _start_of_blocks(position: Tensor, is_placeholder: Tensor, is_token: Tensor) -> Tensor:
    """Return the position at which the block of each placeholder starts, ``(B, columns)``: that after the text before.

    Args:
        position: ``(B, columns)``: positions of text, in which those of placeholders are not used.
        is_placeholder: ``(B, columns)``.
        is_token: ``(B, columns)``, False at padding.
    """
    after_text = nn.functional.pad((position + 1) * is_token, (1, 0))[:, :-1]
    is_first = is_placeholder & ~nn.functional.pad(is_placeholder, (1, 0))[:, :-1]
    column = torch.arange(position.shape[1], device=position.device)
    first = column.masked_fill(~is_first, 0).cummax(1).values
    return after_text.gather(1, first)
