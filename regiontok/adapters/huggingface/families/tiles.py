"""Photos cut into equal tiles: those of InternVL and PerceptionLM share a run, others have a run each."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regiontok._checks import check_integer
from regiontok._require import require
from regiontok.adapters.huggingface.base import Patches
from regiontok.adapters.huggingface.families.one_tensor import OneTensorMixin
from regiontok.adapters.huggingface.families.vision_tower import pair
from regiontok.adapters.huggingface.placeholders import find_runs
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.geometry import Size
from regiontok.views import View, stitch, tiled

transformers = require("transformers", extra="hf")


class TilesMixin(OneTensorMixin):
    """Families that cut a photo into tiles of one size, with a thumbnail of the whole photo beside several.

    Where the tiles of a photo share one run of placeholders and ``tiles`` tells their rows and columns, they become one
    grid, and regions cross their borders; else regions stay in their tile. A photo's masks and its budget are for all
    its tiles. ``source="patch"`` keeps the stock order, tile by tile.

    Shape:
        tiles: Of each photo the rows and columns of its tiles, ``(1, 1)`` for a photo in one piece, as `tiles_of` tells
            them; or their number, the thumbnail included, where no more is known. Prompts with the processor's runs
            tell at least the number.
    """

    encoder_inputs: tuple[str, ...] = ("tiles",)
    places_photos = True
    _tagged = False
    _thumbnail_first = False

    @property
    @abstractmethod
    def tile_grid(self) -> Size:
        """Rows and columns of the features of one tile."""

    def views(self, photos: int, image_sizes: Any = None, **inputs: Any) -> list[View]:
        """The grids of ``tiles``."""
        if inputs.get("tiles") is None:
            raise ValueRangeError(
                "how a photo is cut depends on its processor. Pass tiles, the rows and columns of each photo's, as "
                "tiles_of(processor, photos) tells them."
            )
        return tiled(
            check_tiles(inputs["tiles"]),
            self.tile_grid,
            self.tile_pixels,
            stitched=not self._tagged and self.regionizer.config["source"] != "patch",
            tagged=self._tagged,
            thumbnail_first=self._thumbnail_first,
        )

    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Features of each view; ``pixel_values`` holds all tiles of all photos, as the processor gives them."""
        features = self.encode_tiles(pixel_values)
        tiles = [1] * len(features) if inputs.get("tiles") is None else check_tiles(inputs["tiles"])
        if count_tiles(tiles) != len(features):
            raise ShapeError(
                f"tiles must add up to the {len(features)} that pixel_values hold; got {count_tiles(tiles)} of {tiles},"
                " with a thumbnail for every photo of several."
            )
        views = self.views(len(tiles), tiles=tiles)
        per_tile = self.tile_grid[0] * self.tile_grid[1]
        written = [0] * (1 + views[-1].run)
        grids: list[Tensor] = []
        start = 0
        for view in views:
            size = view.patches // per_tile
            part = features[start : start + size]
            grids.append(
                part[0]
                if size == 1
                else stitch(part, *(b // a for a, b in zip(self.tile_grid, view.grid, strict=True)))
            )
            written[view.run] += view.patches
            start += size
        return Patches(grids, written, views)

    def read_prompts(
        self, input_ids: Tensor, attention_mask: Tensor | None, pixel_values: Tensor, inputs: dict[str, Any]
    ) -> dict[str, Any]:
        """How many tiles each photo has, by the lengths of its runs or their tags, where ``tiles`` does not say it."""
        given = inputs.get("tiles")
        if given is not None and not self._tagged:
            return inputs
        runs = find_runs(input_ids, attention_mask, self.config.image_token_id)
        tiles = self.read_tags(runs, input_ids) if self._tagged else self._read_lengths(runs, pixel_values)
        if given is not None and self._tagged and tiles is not None:
            _compare(check_tiles(given), tiles)
        if given is not None or tiles is None:
            return inputs
        return inputs | {"tiles": tiles}

    def read_tags(self, runs: Tensor, input_ids: Tensor) -> list[Size | int] | None:
        """The tiles of each photo, whose runs are apart; None where prompts do not tell."""
        return None

    def _read_lengths(self, runs: Tensor, pixel_values: Tensor) -> list[Size | int] | None:
        lengths, per_tile = runs[:, 2], self.tile_grid[0] * self.tile_grid[1]
        images = pixel_values.shape[:-3].numel()
        if int(lengths.sum()) == images * per_tile and not (lengths % per_tile).any():
            counts: list[Size | int] = (lengths // per_tile).tolist()
            if 2 in counts:
                raise ValueRangeError(
                    "a photo has one tile, or three and more with its thumbnail; got a run of two. Do photos follow "
                    "each other without a word between? Write the processor's tags around them, or pass tiles."
                )
            return counts
        if int(lengths.sum()) < images:  # one placeholder per photo
            raise ValueRangeError(
                f"the samples hold {int(lengths.sum())} placeholders and pixel_values {images} tiles: which are whose? "
                "Write the processor's runs of placeholders, or pass tiles, as tiles_of(processor, photos) tells them."
            )
        return None


class RegionInternVLForConditionalGeneration(TilesMixin, transformers.InternVLForConditionalGeneration):
    """``InternVLForConditionalGeneration`` that sees a photo as region tokens; see `TilesMixin`."""

    _stock = transformers.InternVLForConditionalGeneration

    @property
    def tile_grid(self) -> Size:
        """Patches, of which ``downsample_ratio`` makes one."""
        (height, width), (down, across) = self.tile_pixels, pair(self.config.vision_config.patch_size)
        ratio = self.config.downsample_ratio
        return int(height // down * ratio), int(width // across * ratio)


class RegionPerceptionLMForConditionalGeneration(TilesMixin, transformers.PerceptionLMForConditionalGeneration):
    """``PerceptionLMForConditionalGeneration`` that sees a photo as region tokens; see `TilesMixin`.

    The rows and columns of its tiles are not told by its processor, so regions stay in their tile unless ``tiles`` says
    more.
    """

    _stock = transformers.PerceptionLMForConditionalGeneration
    _thumbnail_first = True

    @property
    def tile_pixels(self) -> Size:
        """Of its tower of timm."""
        return pair(self.model.vision_tower.timm_model.patch_embed.img_size)

    @property
    def tile_grid(self) -> Size:
        """Patches, of which ``projector_pooling_ratio`` makes one."""
        rows, cols = self.model.vision_tower.timm_model.patch_embed.grid_size
        return rows // self.config.projector_pooling_ratio, cols // self.config.projector_pooling_ratio

    def read_prompts(
        self, input_ids: Tensor, attention_mask: Tensor | None, pixel_values: Tensor, inputs: dict[str, Any]
    ) -> dict[str, Any]:
        """Its pixels tell the tiles of each photo."""
        if inputs.get("tiles") is not None or pixel_values.ndim != 5:
            return super().read_prompts(input_ids, attention_mask, pixel_values, inputs)
        return inputs | {"tiles": [pixel_values.shape[1]] * len(pixel_values)}

    def encode_tiles(self, pixel_values: Tensor) -> Tensor:
        """Features of pixels ``(photos, tiles, 3, height, width)``, or without photos."""
        return super().encode_tiles(pixel_values if pixel_values.ndim == 5 else pixel_values[:, None])


class TaggedTilesMixin(TilesMixin):
    """Families that cut a photo into tiles, and write a token of its own before the run of each."""

    _tagged = True
    _same_row: int | None = None
    """Words between two tiles of a row; None where prompts do not tell rows."""

    def read_tags(self, runs: Tensor, input_ids: Tensor) -> list[Size | int] | None:
        """The tag of the thumbnail, which ends a photo, is the one before the last run."""
        per_tile = self.tile_grid[0] * self.tile_grid[1]
        if not len(runs) or (runs[:, 2] != per_tile).any():  # one placeholder for each, without what stands around them
            return None
        ends = {*self._photo_ends(_tags(runs, input_ids)), *_last_of_samples(runs)}
        tiles: list[Size | int] = []
        start = 0
        for end in sorted(ends):
            tiles.append(self._read_rows(runs[start : end + 1]))
            start = end + 1
        return tiles

    def _photo_ends(self, tags: Tensor) -> list[int]:
        """Which runs end a photo: here those with the tag of the last."""
        return [int(one) for one in (tags == tags[-1]).nonzero()[:, 0]]

    def _read_rows(self, runs: Tensor) -> Size | int:
        """Rows and columns of a photo's runs, or their number."""
        count = len(runs) - 1
        if count == 0:
            return (1, 1)
        between = runs[1:count, 1] - runs[: count - 1, 1] - runs[: count - 1, 2]
        if self._same_row is None or count == 1 or (between < self._same_row).any():
            return count + 1
        rows = 1 + int((between > self._same_row).sum())
        return (rows, count // rows) if count % rows == 0 else count + 1


class RegionAyaVisionForConditionalGeneration(TaggedTilesMixin, transformers.AyaVisionForConditionalGeneration):
    """``AyaVisionForConditionalGeneration`` that sees a photo as region tokens; see `TilesMixin`."""

    _stock = transformers.AyaVisionForConditionalGeneration

    @property
    def tile_grid(self) -> Size:
        """Patches, of which ``downsample_factor`` squared make one."""
        return _merged(self, self.config.downsample_factor)


class RegionCohere2VisionForConditionalGeneration(TaggedTilesMixin, transformers.Cohere2VisionForConditionalGeneration):
    """``Cohere2VisionForConditionalGeneration`` that sees a photo as region tokens; see `TilesMixin`."""

    _stock = transformers.Cohere2VisionForConditionalGeneration

    @property
    def tile_grid(self) -> Size:
        """Patches, of which ``downsample_factor`` squared make one."""
        return _merged(self, self.config.downsample_factor)

    def _photo_ends(self, tags: Tensor) -> list[int]:
        """Its tiles end with a line break, so that only the first of a photo stands after another token."""
        return [int(start) - 1 for start in (tags == tags[0]).nonzero()[1:, 0]]


class _Idefics(TaggedTilesMixin):
    """Idefics3 and SmolVLM: prompts tell rows and columns; pixels are padded to as many tiles in every sample."""

    encoder_inputs: tuple[str, ...] = ("tiles", "pixel_attention_mask")
    _same_row = 2

    @property
    def tile_grid(self) -> Size:
        """Patches, of which ``scale_factor`` squared make one."""
        return _merged(self, self.config.scale_factor)

    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Features of each view, of pixels ``(samples, tiles, 3, height, width)``; tiles of zeros are padding."""
        if pixel_values.ndim != 5:
            raise ShapeError(
                f"pixel_values must be (samples, tiles, 3, height, width); got {tuple(pixel_values.shape)}."
            )
        mask = inputs.pop("pixel_attention_mask", None)
        if mask is not None and not mask.flatten(0, 1)[(pixel_values != 0).flatten(0, 1).flatten(1).any(1)].all():
            raise ValueRangeError(
                "pixel_attention_mask leaves pixels of a tile out, whose features would not stand for them. Let the "
                "processor resize photos to whole tiles, as it does by default."
            )
        return super().encode_patches(pixel_values, **inputs)

    def encode_tiles(self, pixel_values: Tensor) -> Tensor:
        """Features ``(tiles, rows, cols, dim)`` of the tiles that are not padding."""
        output = self.model.get_image_features(pixel_values, return_dict=True).pooler_output
        rows, cols = self.tile_grid
        return torch.cat(list(output)).unflatten(0, (-1, rows, cols))

    def hand_over(self, output: Any) -> Any:
        """As they are."""
        return output

    def blank_image(self) -> dict[str, Any]:
        """One grey tile, since black is padding."""
        height, width = self.tile_pixels
        weight = next(self.model.vision_model.parameters())
        return {"pixel_values": torch.ones(1, 1, 3, height, width, device=weight.device, dtype=weight.dtype)}


class RegionIdefics3ForConditionalGeneration(_Idefics, transformers.Idefics3ForConditionalGeneration):
    """``Idefics3ForConditionalGeneration`` that sees a photo as region tokens; see `TilesMixin`."""

    _stock = transformers.Idefics3ForConditionalGeneration


class RegionSmolVLMForConditionalGeneration(_Idefics, transformers.SmolVLMForConditionalGeneration):
    """``SmolVLMForConditionalGeneration`` that sees a photo as region tokens; see `TilesMixin`."""

    _stock = transformers.SmolVLMForConditionalGeneration


def check_tiles(tiles: Any) -> list[Size | int]:
    """Rows and columns of each photo's tiles, or their number."""
    given = tiles.tolist() if hasattr(tiles, "tolist") else tiles
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ShapeError(f"tiles must have (rows, cols) for each photo, or a number; got {tiles!r}.")
    checked: list[Size | int] = []
    for photo, one in enumerate(given):
        if isinstance(one, Sequence) and not isinstance(one, str):
            if len(one) != 2:
                raise ShapeError(f"tiles[{photo}] must be (rows, cols); got {one}.")
            rows, cols = (check_integer(f"tiles[{photo}]", side) for side in one)
            checked.append((rows, cols))
        else:
            checked.append(check_integer(f"tiles[{photo}]", one))
    return checked


def count_tiles(tiles: Sequence[Size | int]) -> int:
    """How many images photos were cut into, with the thumbnail that stands beside several."""
    return sum(one if isinstance(one, int) else one[0] * one[1] + (one != (1, 1)) for one in tiles)


def _merged(model: Any, factor: int) -> Size:
    (height, width), (down, across) = model.tile_pixels, pair(model.config.vision_config.patch_size)
    return height // down // factor, width // across // factor


def _compare(given: list[Size | int], read: list[Size | int]) -> None:
    """Refuse tiles that are not those of the prompts."""
    counts = [[count_tiles([one]) for one in some] for some in (given, read)]
    known = [
        isinstance(one, int) or isinstance(other, int) or one == other for one, other in zip(given, read, strict=False)
    ]
    if counts[0] != counts[1] or not all(known):
        raise ShapeError(f"tiles must be those of the prompts, {read}; got {given}. Leave them out.")


def _last_of_samples(runs: Tensor) -> list[int]:
    """Which runs are the last of their sample."""
    sample = runs[:, 0].tolist()
    return [number for number, one in enumerate(sample) if number + 1 == len(sample) or sample[number + 1] != one]


def _tags(runs: Tensor, input_ids: Tensor) -> Tensor:
    """The token before each run; -1 at the start of a sample."""
    before = input_ids[runs[:, 0], (runs[:, 1] - 1).clamp(min=0)]
    return torch.where(runs[:, 1] > 0, before, -1)
