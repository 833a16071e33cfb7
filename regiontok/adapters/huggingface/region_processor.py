"""Processors that write one placeholder per region token, such as 128 per image instead of 576.

`region_processor` converts a stock processor, whose class is mixed with `RegionProcessorMixin`.
"""

import copy
import difflib
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt
from typing import Any

import torch

from regiontok._steps import make_downsampler
from regiontok.adapters.huggingface._transformers import (
    TRUNCATED,
    BlockFormat,
    find_tile_chooser,
    flatten_images,
    image_size,
    select_best_resolution,
)
from regiontok.adapters.huggingface.checkpoints import auto_map, write_remote_code
from regiontok.adapters.huggingface.video_prompts import SIDES, TEXTS, VideoPromptsMixin, budget_of
from regiontok.budgets import is_per_image, resolve_budget
from regiontok.choices import PROMPT
from regiontok.config import RegionizerConfig
from regiontok.errors import CheckpointError, ShapeError, UnknownOptionError, ValueRangeError
from regiontok.geometry import ImageGeometry
from regiontok.tiles import Tile, count_tokens, share_budget

_SIDE_INPUTS = ("num_regions", "keep", "masks", "video_num_regions", "video_keep")
_SAVED = ("regiontok", "regiontok_newline", "regiontok_videos")
"""Attributes that are saved with a processor."""


class RegionProcessorMixin(VideoPromptsMixin):
    """Mixin for a processor of transformers that writes one placeholder per region token.

    A call takes the arguments of the stock processor and those below. An image gets ``min(budget, patches)``
    placeholders, and those of the stock processor if all of its patches are kept. If each tile has its own block, the
    budget of the image is shared over its tiles. The text around the placeholders is not changed.

    Attributes:
        regiontok: Options of the Regionizer for which prompts are written.
        regiontok_newline: Option ``newline`` of `with_regions`, for families with anyres tiles.
        regiontok_videos: Options of videos of `with_regions`.
        block_format: Blocks of placeholders that the stock processor writes for images.
        video_format: Blocks of placeholders that the stock processor writes for videos.

    Shape:
        num_regions: Budget of the call: one number, or one per image of the batch.
        keep: The same budget as a fraction of the valid patches.
        masks: One entry per image of the batch, for sources that use masks. The model gets them too.
        video_num_regions: Budget of the call for videos: one number, or one per video of the batch.
        video_keep: The same budget as a fraction of the patches.
    """

    regiontok: dict[str, Any] | None = None
    regiontok_newline: str | None = None
    block_format: BlockFormat = BlockFormat()

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Process images, text and videos with the stock processor and the side inputs of this class.

        Raises:
            ShapeError: A side input has another number of entries than there are images, or a prompt was truncated
                inside a block.
            UnknownOptionError: An argument is a misspelt side input.
            ValueRangeError: The number of regions is not known before encoding.
        """
        sides = {name: kwargs.pop(name) for name in _SIDE_INPUTS if name in kwargs}
        for name in kwargs:
            near = difflib.get_close_matches(name, _SIDE_INPUTS, 1, 0.8)
            if near and name not in inspect.signature(super().__call__).parameters:
                raise UnknownOptionError(f"{type(self).__name__} takes no {name!r}. Did you mean {near[0]!r}?")
        with _calling(sides):
            try:
                if videos is None:
                    inputs = super().__call__(images, text, *args, **kwargs)
                elif self.video_format.as_images:
                    inputs = self._call_with_frames(images, text, videos, **kwargs)
                else:
                    inputs = super().__call__(images, text, videos, *args, **kwargs)
            except (TypeError, ValueError) as error:
                truncation = {**kwargs, **kwargs.get("text_kwargs", {})}.get("truncation")
                is_truncated = isinstance(error, TypeError) or TRUNCATED in str(error)
                if (images is None and videos is None) or not truncation or not is_truncated:
                    raise
                raise ShapeError(
                    "the prompt was truncated inside the placeholders of an image or video. Raise max_length, or do "
                    "not truncate."
                ) from error
        users = {"masks": [images], "video_num_regions": [videos], "video_keep": [videos]}
        for name, value in sides.items():
            if value is not None and any(medium is not None for medium in users.get(name, [images, videos])):
                inputs[name] = value
        return inputs

    @property
    def stock(self) -> Any:
        """The stock processor with the same parts, which writes one placeholder per patch."""
        stock = copy.copy(self)
        bases: Any = type(self).__mro__
        stock.__class__ = next(base for base in bases if not issubclass(base, VideoPromptsMixin))
        return stock

    def _process_images(self, images: Any, **kwargs: Any) -> tuple[Any, list[str]]:
        count = len(flatten_images(images))
        for name in ("num_regions", "keep", "masks"):
            value = SIDES.get().get(name)
            if is_per_image(value) and len(value) != count:
                raise ShapeError(f"{name} must have one entry per image, {count}; got {len(value)}.")
        processed, texts = super()._process_images(images, **kwargs)
        recorded = TEXTS.get()
        if recorded is not None:
            recorded["image"] += texts
        if self.block_format.kind == "joined":  # the model infers the tiling from the sizes of resized images
            processed["image_sizes"] = self._resized_sizes(images, processed["num_patches"], kwargs)
        return processed, texts

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """Return the text for an image, with one placeholder per region token."""
        text: str = super().replace_image_token(image_inputs, image_idx, **kwargs)
        size = None if "image_sizes" not in image_inputs else image_inputs["image_sizes"][image_idx]
        return self._with_budget(text, image_idx, size, image_inputs)

    def count_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> Any:
        """Return the numbers of tokens of images, as the stock ``_get_num_multimodal_tokens`` does for servers."""
        sides = {name: kwargs.pop(name) for name in _SIDE_INPUTS if name in kwargs}
        data = super()._get_num_multimodal_tokens(image_sizes=image_sizes, **kwargs)
        if image_sizes is not None:
            counts, num_tiles = [], list(data["num_image_patches"])
            with _calling(sides):
                for image, (size, count) in enumerate(zip(image_sizes, data["num_image_tokens"], strict=True)):
                    around, blocks = self._split_count(count, max(1, num_tiles[image] if image < len(num_tiles) else 1))
                    text = " ".join(self._placeholder * block for block in blocks)
                    counts.append(around + self._with_budget(text, image, size, None).count(self._placeholder))
            data.num_image_tokens = counts
        return data

    def to_dict(self) -> dict[str, Any]:
        """Return the values to save, with the options of the Regionizer."""
        options = {name: getattr(self, name) for name in _SAVED}
        return super().to_dict() | options | {"auto_map": auto_map(AutoProcessor=type(self).__name__)}

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Save the processor as transformers does, with the options of the Regionizer."""
        write_remote_code(save_directory, [type(self).__name__])  # before super() may upload the folder
        return super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Create a processor from its parts and the values of `to_dict`."""
        options = {name: processor_dict.get(name) for name in _SAVED}
        stock_dict = {name: value for name, value in processor_dict.items() if name not in options}
        result = super().from_args_and_dict(args, stock_dict, **kwargs)
        processor = result[0] if isinstance(result, tuple) else result  # a tuple with unused arguments
        processor.__dict__.update(options)
        return result

    @property
    def options(self) -> RegionizerConfig:
        """Options of the Regionizer.

        Raises:
            CheckpointError: The processor was loaded from the folder of a stock processor.
        """
        if self.regiontok is None:
            raise CheckpointError(
                f"{type(self).__name__} was loaded from the folder of a stock processor, without a budget. Load the "
                "folder with AutoProcessor and convert the processor: region_processor(processor, model)."
            )
        return RegionizerConfig.from_dict(self.regiontok)

    @property
    def _placeholder(self) -> str:
        if self.block_format.kind == "per_crop":  # image_token_id of Gemma 3 is the start of an image
            return str(self.tokenizer.image_token)
        return str(self.tokenizer.convert_ids_to_tokens(self.image_token_id))

    def _with_budget(self, text: str, image: int, size: Any, image_inputs: dict[str, Any] | None) -> str:
        """Return the text for an image with the number of placeholders for its budget in each block."""
        block_pattern = f"(?:{re.escape(self._placeholder)})+"
        lengths = [len(block) // len(self._placeholder) for block in re.findall(block_pattern, text)]
        newlines, grids = self._read_anyres(size, image_inputs, image) if len(lengths) == 1 else (0, 1)
        counts = iter(self._counts(image, lengths, newlines, grids, size))
        return re.sub(block_pattern, lambda _: self._placeholder * next(counts), text)

    def _counts(self, image: int, lengths: list[int], newlines: int, grids: int, size: Any) -> list[int]:
        """Return the number of placeholders of each block of an image."""
        sides, options = SIDES.get(), self.options
        num_regions, keep = budget_of(sides.get("num_regions"), image), budget_of(sides.get("keep"), image)
        if options.source == "patch":
            return lengths
        if num_regions is None and keep is None:
            num_regions, keep = options.num_regions, options.keep
        has_budget = num_regions not in (None, PROMPT) or keep is not None
        if options.source == "segmentation" or (options.source == "combined" and options.unassigned == "drop"):
            limit = self._count_masks(image, lengths, size, has_budget)
            if not has_budget:
                return [limit]
            valid_patches = [self._count_valid(lengths[0], size, False)]
            return [min(limit, *(resolve_budget(valid_patches, num_regions, keep) or ()))]
        if not has_budget:
            raise ValueRangeError(
                "this processor has no budget, so the number of regions is known only after encoding. Pass num_regions "
                "or keep, or rewrite batches with model.expand(**inputs)."
            )
        if len(lengths) > 1 and self.block_format.kind == "per_crop":
            return self._count_crops(lengths, num_regions, keep)
        if len(lengths) > 1:
            tiles = [Tile(0, block, (1, length)) for block, length in enumerate(lengths)]
            return share_budget(tiles, num_regions, keep=keep)
        patches = lengths[0] - newlines
        valid = self._count_valid(patches, size, newlines == 1)
        count = count_tokens(valid, self._count_grids(lengths[0], grids), num_regions, keep)
        if count == patches and self.regiontok_newline in (None, "row"):
            return lengths
        if self.regiontok_newline == "row":
            raise ValueRangeError(
                "newline='row' needs the rows in which regions start, which are known only after encoding. Rewrite "
                "batches with model.expand(**inputs)."
            )
        return [count + (self.regiontok_newline == "image")]

    def _count_crops(self, lengths: list[int], num_regions: Any, keep: Any) -> list[int]:
        """Return the number of placeholders of each crop of an image."""
        if any(hasattr(SIDES.get().get(name), "__len__") for name in ("num_regions", "keep")):
            raise ValueRangeError(
                "with pan-and-scan each crop is an image with its own budget. Pass one budget for all images, or leave "
                "do_pan_and_scan out."
            )
        return resolve_budget(lengths, num_regions, keep) or lengths

    def _count_grids(self, length: int, anyres_grids: int) -> int:
        """Return the number of grids of an image that has one block of ``length``; each grid needs a token."""
        kind, tile_length = self.block_format
        if kind == "joined":
            return 1 if length == tile_length(self) else 2
        if kind == "concatenated":
            return max(1, length // tile_length(self))
        return anyres_grids

    def _count_valid(self, patches: int, size: Any, is_thumbnail: bool) -> int:
        """Return the number of valid patches of an image."""
        side, options = isqrt(patches), self.options
        geometry = ImageGeometry.letterbox(side) if is_thumbnail else options.geometry
        if size is None or geometry is None or side**2 != patches or options.padding == "keep":
            return patches
        height, width = (int(side) for side in size)
        return int(geometry.place((height, width)).valid((side, side)).sum())

    def _count_masks(self, image: int, lengths: list[int], size: Any, has_budget: bool) -> int:
        """Return the largest number of regions for the masks of an image: its masks, or the patches in them."""
        masks, options, side = SIDES.get().get("masks"), self.options, isqrt(lengths[0])
        is_counted = options.unassigned != "cluster" if options.source == "segmentation" else has_budget
        if masks is None or not is_counted or len(lengths) > 1 or side**2 != lengths[0]:
            raise ValueRangeError(
                f"source={options.source!r}: the number of regions depends on the masks. Pass masks, for images of one "
                "square grid, or rewrite batches with model.expand(**inputs, masks=masks)."
            )
        sizes = None if size is None else [(int(size[0]), int(size[1]))]
        features = torch.zeros(1, side, side, 1)
        regions = make_downsampler(options)([masks[image]], features=features, sizes=sizes)
        return len(regions) if options.source == "segmentation" else len(regions.patch.unique())

    def _read_anyres(self, size: Any, image_inputs: dict[str, Any] | None, image: int) -> tuple[int, int]:
        """Return the number of newlines among the placeholders of an image, and of its grids: 0 and 1 without tiles.

        A very narrow image has only the grid of its thumbnail, because unpadding leaves no patch of its tiles.
        """
        if self.block_format.kind != "anyres":
            return 0, 1
        images = self.image_processor
        if image_inputs is None:
            sides = dict(images.size)
            side = sides.get("shortest_edge") or min(sides["height"], sides["width"])
        else:
            side = image_inputs["pixel_values"][0][0].shape[-1]
            images_per_sample = image_inputs.get("batch_num_images")
            if images_per_sample is not None:
                is_uncut = [count != 1 for count in images_per_sample for _ in range(int(count))]
                if is_uncut[image]:
                    return 1, 1
        height, width = (int(side) for side in size)
        patches = side // self.patch_size if hasattr(self, "patch_size") else isqrt(self.num_image_tokens)
        resolution = select_best_resolution([height, width], images.image_grid_pinpoints)
        rows, cols = (length // side for length in resolution)
        unpadded, newlines = self._get_unpadded_features(height, width, patches, patches, rows, cols)
        return int(newlines), 1 + (unpadded > 0)

    def _split_count(self, count: int, num_tiles: int) -> tuple[int, list[int]]:
        """Return how many of an image's tokens are not placeholders, and the lengths of its blocks."""
        kind, tile_length = self.block_format
        if kind not in ("joined", "per_tile"):
            return 0, [count]
        length = tile_length(self)
        blocks = [length * num_tiles] if kind == "joined" else [length] * num_tiles
        return count - sum(blocks), blocks

    def _resized_sizes(self, images: Any, num_tiles: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        """Return the height and width of each image after it was resized to whole tiles, ``(images, 2)``."""
        tile = kwargs.get("size") or self.image_processor.size
        height, width = int(tile["height"]), int(tile["width"])
        choose_tiles: Any = find_tile_chooser(self.image_processor)
        sizes = []
        for image, count in zip(flatten_images(images), num_tiles, strict=True):
            without_thumbnail = int(count) - 1
            cols, rows = (1, 1)
            if without_thumbnail >= 1:
                cols, rows = choose_tiles(image_size(image), (height, width), without_thumbnail, without_thumbnail)
            sizes.append([rows * height, cols * width])
        return torch.tensor(sizes)


@contextmanager
def _calling(sides: dict[str, Any]) -> Iterator[None]:
    """Set the side inputs of a call in its thread."""
    token = SIDES.set(sides)
    try:
        yield
    finally:
        SIDES.reset(token)
