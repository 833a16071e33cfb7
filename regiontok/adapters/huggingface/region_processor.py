"""Processors that write one placeholder per region token.

processor = region_processor(processor, model)
inputs = processor(images=image, text=prompt, return_tensors="pt")    # 128 placeholders instead of 576
"""

import copy
import difflib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from math import isqrt
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from regiontok._require import require
from regiontok.adapters.huggingface.checkpoints import auto_map, write_remote_code
from regiontok.budgets import resolve_budget
from regiontok.choices import PROMPT
from regiontok.config import RegionizerConfig
from regiontok.errors import CheckpointError, ShapeError, UnknownOptionError, ValueRangeError
from regiontok.geometry import ImageGeometry
from regiontok.views import View, share_budget

transformers = require("transformers", extra="hf")

_SIDE_INPUTS = ("num_regions", "keep", "masks")
_CALL: ContextVar[Mapping[str, Any]] = ContextVar("_CALL", default=MappingProxyType({}))
"""Side inputs of the call that is under way."""


class RegionProcessorMixin:
    """A processor of transformers that writes one placeholder per region token, mixed in before it.

    It takes the arguments of the stock processor, and a budget of the call. An image gets ``min(budget, patches)``
    placeholders. Where each tile has a block of its own, the budget of the image is shared over the tiles. The
    text around the placeholders is not changed; an image that keeps all of its patches has those of the stock
    processor.

    Attributes:
        regiontok: Options of the Regionizer for which prompts are written.
        regiontok_newline: What ends an image, for families whose tiles are packed; see `with_regions`.

    Shape:
        num_regions: Budget of the call: one number, or one per image of the batch.
        keep: The same budget as a fraction of the valid patches.
        masks: For sources that take masks: one entry per image of the batch; the model gets them.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Parts of the stock processor."""

    regiontok: dict[str, Any] | None = None
    regiontok_newline: str | None = None

    def __call__(self, images: Any = None, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Process images and text as the stock processor does, with the side inputs of this class."""
        sides = {name: kwargs.pop(name) for name in _SIDE_INPUTS if name in kwargs}
        for name in kwargs:
            near = difflib.get_close_matches(name, _SIDE_INPUTS, 1, 0.8)
            if near and name not in inspect.signature(super().__call__).parameters:
                raise UnknownOptionError(f"{type(self).__name__} takes no {name!r}. Did you mean {near[0]!r}?")
        with _calling(sides):
            try:
                made = super().__call__(images, text, *args, **kwargs)
            except (TypeError, ValueError) as error:
                truncates = {**kwargs, **kwargs.get("text_kwargs", {})}.get("truncation")
                is_cut = isinstance(error, TypeError) or "Mismatch in `image` token count" in str(error)
                if images is None or not truncates or not is_cut:
                    raise
                raise ShapeError(
                    "the prompt was truncated inside the placeholders of an image. Raise max_length, or do not "
                    "truncate."
                ) from error
        if images is not None:
            for name, value in sides.items():
                if value is not None:
                    made[name] = value
        return made

    @property
    def stock(self) -> Any:
        """The processor without regions, which writes one placeholder per patch."""
        plain = copy.copy(self)
        kinds: Any = type(self).__mro__
        plain.__class__ = next(kind for kind in kinds if not issubclass(kind, RegionProcessorMixin))
        return plain

    def _process_images(self, images: Any, **kwargs: Any) -> tuple[Any, list[str]]:
        count = len(require("transformers.image_utils", extra="hf").make_flat_list_of_images(images))
        for name, value in _CALL.get().items():
            is_number = value is None or isinstance(value, str) or getattr(value, "ndim", None) == 0
            if not is_number and hasattr(value, "__len__") and len(value) != count:
                raise ShapeError(f"{name} must have one entry per image, {count}; got {len(value)}.")
        processed, texts = super()._process_images(images, **kwargs)
        if hasattr(self, "start_image_token"):  # InternVL: the sizes of resized images give the layout of tiles
            processed["image_sizes"] = self._resized(images, processed["num_patches"], kwargs)
        return processed, texts

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """Return the text of an image with one placeholder per region token."""
        text: str = super().replace_image_token(image_inputs, image_idx, **kwargs)
        size = None if "image_sizes" not in image_inputs else image_inputs["image_sizes"][image_idx]
        return self._with_budget(text, image_idx, size, image_inputs)

    def count_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> Any:
        """Return the numbers of tokens that servers ask for, as the stock ``_get_num_multimodal_tokens`` does."""
        sides = {name: kwargs.pop(name) for name in _SIDE_INPUTS if name in kwargs}
        data = super()._get_num_multimodal_tokens(image_sizes=image_sizes, **kwargs)
        if image_sizes is not None:
            counts, tiles = [], list(data["num_image_patches"])
            with _calling(sides):
                for image, (size, count) in enumerate(zip(image_sizes, data["num_image_tokens"], strict=True)):
                    around, blocks = self._split_count(count, max(1, tiles[image] if image < len(tiles) else 1))
                    text = " ".join(self._placeholder * block for block in blocks)
                    counts.append(around + self._with_budget(text, image, size, None).count(self._placeholder))
            data.num_image_tokens = counts
        return data

    def to_dict(self) -> dict[str, Any]:
        """Return the values to save, with the options of the Regionizer."""
        own = {"regiontok": self.regiontok, "regiontok_newline": self.regiontok_newline}
        return super().to_dict() | own | {"auto_map": auto_map(AutoProcessor=type(self).__name__)}

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Save the processor as transformers does, with the options of the Regionizer."""
        write_remote_code(save_directory, [type(self).__name__])  # before super() may upload the folder
        return super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a processor of its parts and what `to_dict` returned."""
        own = {name: processor_dict.get(name) for name in ("regiontok", "regiontok_newline")}
        rest = {name: value for name, value in processor_dict.items() if name not in own}
        made = super().from_args_and_dict(args, rest, **kwargs)
        (made[0] if isinstance(made, tuple) else made).__dict__.update(own)
        return made

    @property
    def options(self) -> RegionizerConfig:
        """The options of the Regionizer."""
        if self.regiontok is None:
            raise CheckpointError(
                f"{type(self).__name__} was loaded from the folder of a stock processor, without a budget. Load "
                "that one with AutoProcessor and make it a region processor: region_processor(processor, model)."
            )
        return RegionizerConfig.from_dict(self.regiontok)

    @property
    def _placeholder(self) -> str:
        token = str(self.tokenizer.convert_ids_to_tokens(self.image_token_id))
        if token == getattr(self, "boi_token", None):  # Gemma 3 calls its start of an image image_token
            return str(self.tokenizer.image_token)
        return token

    def _with_budget(self, text: str, image: int, size: Any, image_inputs: dict[str, Any] | None) -> str:
        one = re.escape(self._placeholder)
        lengths = [len(block) // len(self._placeholder) for block in re.findall(f"(?:{one})+", text)]
        newlines = self._count_newlines(size, image_inputs, image) if len(lengths) == 1 else 0
        counts = iter(self._counts(image, lengths, newlines, size))
        return re.sub(f"(?:{one})+", lambda _: self._placeholder * next(counts), text)

    def _counts(self, image: int, lengths: list[int], newlines: int, size: Any) -> list[int]:
        """Return the number of placeholders of each block of an image."""
        sides, options = _CALL.get(), self.options
        num_regions, keep = _of_image(sides.get("num_regions"), image), _of_image(sides.get("keep"), image)
        if options.source == "patch":
            return lengths
        if num_regions is None and keep is None:
            num_regions, keep = options.num_regions, options.keep
        has_budget = num_regions not in (None, PROMPT) or keep is not None
        if options.source == "segmentation" or (options.source == "combined" and options.uncovered == "drop"):
            most = self._count_masks(image, lengths, size, has_budget)
            if not has_budget:
                return [most]
            valid_patches = [self._count_valid(lengths[0], size, False)]
            return [min(most, *(resolve_budget(valid_patches, num_regions, keep) or ()))]
        if not has_budget:
            raise ValueRangeError(
                "this processor has no budget, so the number of regions is known only after encoding. Pass num_regions "
                "or keep, or rewrite batches with model.expand(**inputs)."
            )
        if len(lengths) > 1 and hasattr(self, "full_image_sequence"):  # Gemma 3: each crop is an image
            return self._count_crops(lengths, num_regions, keep)
        if len(lengths) > 1:
            views = [View(0, block, (1, length)) for block, length in enumerate(lengths)]
            return share_budget(views, num_regions, keep=keep)
        patches = lengths[0] - newlines
        valid = self._count_valid(patches, size, newlines == 1)
        grids = self._count_grids(lengths[0], newlines)
        views = [View(0, 0, (1, valid - grids + 1)), *[View(0, 0, (1, 1))] * (grids - 1)]
        count = sum(share_budget(views, num_regions, keep=keep))
        if count == patches and self.regiontok_newline in (None, "row"):
            return lengths
        if self.regiontok_newline == "row":
            raise ValueRangeError(
                "newline='row' writes as many as rows in which a region begins, known after encoding. Rewrite batches "
                "with model.expand(**inputs)."
            )
        return [count + (self.regiontok_newline == "image")]

    def _count_crops(self, lengths: list[int], num_regions: Any, keep: Any) -> list[int]:
        if any(hasattr(_CALL.get().get(name), "__len__") for name in ("num_regions", "keep")):
            raise ValueRangeError(
                "with pan-and-scan each crop is an image with a budget of its own. Pass one budget for all, or leave "
                "do_pan_and_scan out."
            )
        return resolve_budget(lengths, num_regions, keep) or lengths

    def _count_grids(self, length: int, newlines: int) -> int:
        """Return in how many grids the model shows an image that has one block: each needs a token."""
        if hasattr(self, "start_image_token"):
            return 1 if length == self.image_seq_length else 2
        if hasattr(self, "pooling_ratio"):  # PerceptionLM
            side = self.image_processor.tile_size // self.patch_size // self.pooling_ratio
            return max(1, length // side**2)
        return 2 if hasattr(self, "_get_unpadded_features") and newlines > 1 else 1

    def _count_valid(self, patches: int, size: Any, is_thumbnail: bool) -> int:
        """Return the number of patches that may be in a region."""
        side, options = isqrt(patches), self.options
        geometry = ImageGeometry.letterbox(side) if is_thumbnail else options.geometry
        if size is None or geometry is None or side**2 != patches or options.padding == "keep":
            return patches
        height, width = (int(side) for side in size)
        return int(geometry.place((height, width)).valid((side, side)).sum())

    def _count_masks(self, image: int, lengths: list[int], size: Any, has_budget: bool) -> int:
        """Return how many regions the masks of an image can make: its masks, or the patches in them."""
        masks, options, side = _CALL.get().get("masks"), self.options, isqrt(lengths[0])
        is_counted = options.uncovered != "cluster" if options.source == "segmentation" else has_budget
        if masks is None or not is_counted or len(lengths) > 1 or side**2 != lengths[0]:
            raise ValueRangeError(
                f"source={options.source!r} makes as many regions as masks ask for. Pass masks for a square grid of "
                "one block, or rewrite batches with model.expand(**inputs, masks=masks)."
            )
        sizes = None if size is None else [(int(size[0]), int(size[1]))]
        features = torch.zeros(1, side, side, 1)
        regions = options.downsampler()([masks[image]], features=features, sizes=sizes)
        return len(regions) if options.source == "segmentation" else len(regions.patch.unique())

    def _count_newlines(self, size: Any, image_inputs: dict[str, Any] | None, image: int) -> int:
        """Return how many placeholders of an image are newlines, for families whose tiles are packed."""
        if not hasattr(self, "_get_unpadded_features"):
            return 0
        images = self.image_processor
        if image_inputs is None:
            sides = dict(images.size)
            side = sides.get("shortest_edge") or min(sides["height"], sides["width"])
        else:
            side = image_inputs["pixel_values"][0][0].shape[-1]
            several = image_inputs.get("batch_num_images")
            if several is not None and [count != 1 for count in several for _ in range(int(count))][image]:
                return 1
        height, width = (int(side) for side in size)
        patches = side // self.patch_size if hasattr(self, "patch_size") else isqrt(self.num_image_tokens)
        best = require("transformers.image_processing_utils", extra="hf").select_best_resolution
        down, across = (length // side for length in best([height, width], images.image_grid_pinpoints))
        return int(self._get_unpadded_features(height, width, patches, patches, down, across)[1])

    def _split_count(self, count: int, tiles: int) -> tuple[int, list[int]]:
        """Return how many of an image's tokens are no placeholders, and the lengths of its blocks."""
        if hasattr(self, "start_image_token"):  # InternVL: one block for all tiles
            return count - self.image_seq_length * tiles, [self.image_seq_length * tiles]
        if hasattr(self, "fake_image_token"):  # Idefics3
            per_tile = self.image_seq_len
        elif hasattr(self, "img_patch_token"):  # Aya Vision
            per_tile = (self.img_size // self.patch_size) ** 2
        elif hasattr(self, "img_line_break_token"):  # Cohere2 Vision
            per_tile = int(self.patch_size**2)
        else:
            return 0, [count]
        return count - per_tile * tiles, [per_tile] * tiles

    def _resized(self, images: Any, num_tiles: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        """Return the height and width to which each image was resized: whole tiles, ``(images, 2)``."""
        utils = require("transformers.image_utils", extra="hf")
        size = kwargs.get("size") or self.image_processor.size
        height, width = int(size["height"]), int(size["width"])
        canvas = sys.modules[type(self.image_processor).__module__].get_optimal_tiled_canvas
        sizes = []
        for image, count in zip(utils.make_flat_list_of_images(images), num_tiles, strict=True):
            tiles = int(count) - 1  # without the thumbnail
            is_picture = hasattr(image, "getbands")
            own = (image.height, image.width) if is_picture else utils.get_image_size(utils.to_numpy_array(image))
            cols, rows = (1, 1) if tiles < 1 else canvas(own, (height, width), tiles, tiles)
            sizes.append([rows * height, cols * width])
        return torch.tensor(sizes)


@contextmanager
def _calling(sides: dict[str, Any]) -> Iterator[None]:
    token = _CALL.set(sides)
    try:
        yield
    finally:
        _CALL.reset(token)


def _of_image(budget: Any, image: int) -> Any:
    """Return the budget of one image."""
    if budget is None or isinstance(budget, str) or not hasattr(budget, "__len__") or getattr(budget, "ndim", 1) == 0:
        return budget
    if image >= len(budget):
        raise ShapeError(f"budgets must be one number, or one per image; got {len(budget)} for more images.")
    return budget[image]
