"""Images cut into equal tiles: those of InternVL and PerceptionLM share a run, others have a run each."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regiontok._checks import check_integer, check_sizes
from regiontok.adapters.huggingface.encoding import Patches, Prompt
from regiontok.adapters.huggingface.families.one_tensor import OneTensorMixin
from regiontok.adapters.huggingface.families.vision_tower import pair
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.geometry import Size
from regiontok.tokens import RegionTokens
from regiontok.views import View, stitch, tiled


class TilesMixin(OneTensorMixin):
    """Families that cut an image into tiles of one size, with a thumbnail of the whole image beside several.

    If the tiles of an image share one block of placeholders and ``tiles`` gives their rows and columns, they become one
    grid, and regions cross their borders; otherwise regions stay in their tile. Masks and the budget are for the whole
    image. ``source="patch"`` keeps the stock order, tile by tile.

    Shape:
        tiles: Of each image the rows and columns of its tiles, ``(1, 1)`` for an image in one piece, as `tiles_of`
            returns them; or their number with the thumbnail, where no more is known. Prompts with the processor's runs
            tell at least the number.
    """

    encoder_inputs: tuple[str, ...] = ("tiles",)
    places_images = True
    _tagged = False
    _thumbnail_first = False

    @property
    @abstractmethod
    def tile_grid(self) -> Size:
        """Rows and columns of the features of one tile."""

    def views(self, images: int, image_sizes: Any = None, **inputs: Any) -> list[View]:
        """The grids of ``tiles``."""
        tiles = inputs.get("tiles")
        if tiles is None:
            tiles = self.tiles_of_sizes(image_sizes)
        if tiles is None:
            raise ValueRangeError(
                "how an image is cut depends on its processor. Pass tiles, the rows and columns of each image's, as "
                "tiles_of(processor, images) returns them."
            )
        options = {"tagged": self._tagged, "thumbnail_first": self._thumbnail_first}
        return tiled(check_tiles(tiles), self.tile_grid, self.tile_pixels, stitched=not self._tagged, **options)

    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Features of each view; ``pixel_values`` holds all tiles of all images, as the processor gives them."""
        features = self.encode_tiles(pixel_values)
        given = inputs.get("tiles")
        tiles = [1] * len(features) if given is None else check_tiles(given)
        if count_tiles(tiles) != len(features):
            raise ShapeError(
                f"tiles must add up to the {len(features)} that pixel_values hold; got {count_tiles(tiles)} of {tiles},"
                " with a thumbnail for every image of several."
            )
        views = self.views(len(tiles), tiles=tiles)
        per_tile = self.tile_grid[0] * self.tile_grid[1]
        written = [0] * (1 + views[-1].run)
        grids: list[Tensor] = []
        start = 0
        for view in views:
            size = view.patches // per_tile
            part = features[start : start + size]
            rows, cols = (whole // side for whole, side in zip(view.grid, self.tile_grid, strict=True))
            grids.append(part[0] if size == 1 else stitch(part, rows, cols))
            written[view.run] += view.patches
            start += size
        return Patches(grids, written, views)

    def arrange(self, tokens: RegionTokens, views: Sequence[View], whole: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """Return tokens in the order of their placeholders; those of an image with all patches tile by tile."""
        if not any(whole) or self.regionizer.config.order != "raster":
            return super().arrange(tokens, views, whole)
        regions, (down, across) = tokens.regions, self.tile_grid
        device = regions.device
        cols = torch.tensor([view.grid[1] for view in views], device=device)[regions.image]
        is_whole = torch.tensor([whole[view.image] for view in views], device=device)[regions.image]
        patch = regions.patch[regions.starts]
        row, col = patch // cols, patch % cols
        tile = (row // down) * (cols // across) + col // across
        place = torch.where(is_whole, (tile * down + row % down) * across + col % across, patch)
        order = (regions.image * (1 + int(place.max())) + place).argsort(stable=True)
        return tokens.values[order], order

    def infer_tiles(self, pixel_values: Tensor, inputs: dict[str, Any], prompt: Prompt | None = None) -> None:
        """Add the tiles of each image: by the sizes of resized images, or by the lengths of the prompt's blocks."""
        tiles = self.tiles_of_sizes(inputs.get("image_sizes"), pixel_values)
        if tiles is not None:
            inputs["image_sizes"] = None
        elif prompt is not None and inputs.get("tiles") is None:
            tiles = self._read_lengths(prompt.blocks, pixel_values)
        if inputs.get("tiles") is None:
            inputs["tiles"] = tiles

    def tiles_of_sizes(self, image_sizes: Any, pixel_values: Tensor | None = None) -> list[Size | int] | None:
        """Return tiles that ``image_sizes`` give; None by default."""
        return None

    def _read_lengths(self, blocks: Tensor, pixel_values: Tensor) -> list[Size | int] | None:
        lengths, per_tile = blocks[:, 2], self.tile_grid[0] * self.tile_grid[1]
        images = pixel_values.shape[:-3].numel()
        if int(lengths.sum()) == images * per_tile and not (lengths % per_tile).any():
            counts: list[Size | int] = (lengths // per_tile).tolist()
            if 2 in counts:
                raise ValueRangeError(
                    "an image has one tile, or three and more with its thumbnail; got a block of two. Do images follow "
                    "each other without a word between? Write the processor's tags around them, or pass tiles."
                )
            return counts
        if len(lengths) == 1:
            return [images]
        if len(lengths) == images:
            return [1] * images
        raise ValueRangeError(
            f"the samples hold {len(lengths)} images and pixel_values {images} tiles: which are whose? Write the "
            "prompts with a region processor, or pass tiles, as tiles_of(processor, images) returns them."
        )


class InternVLMixin(TilesMixin):
    """InternVL. Its region processor gives as ``image_sizes`` the size to which an image was resized: whole tiles."""

    @property
    def tile_grid(self) -> Size:
        """Patches, of which ``downsample_ratio`` makes one."""
        (height, width), (down, across) = self.tile_pixels, pair(self.config.vision_config.patch_size)
        ratio = self.config.downsample_ratio
        return int(height // down * ratio), int(width // across * ratio)

    def tiles_of_sizes(self, image_sizes: Any, pixel_values: Tensor | None = None) -> list[Size | int] | None:
        """Return tiles of images that were resized to whole tiles; None for sizes before preprocessing."""
        if image_sizes is None:
            return None
        sides, (height, width) = check_sizes("image_sizes", image_sizes), self.tile_pixels
        tiles: list[Size | int] = [(rows // height, cols // width) for rows, cols in sides]
        if any(rows % height or cols % width for rows, cols in sides):
            return None
        count = None if pixel_values is None else pixel_values.shape[:-3].numel()
        return tiles if count in (None, count_tiles(tiles)) else None


class PerceptionLMMixin(TilesMixin):
    """PerceptionLM.

    The rows and columns of its tiles are not returned by its processor, so regions stay in their tile unless ``tiles``
    gives them.
    """

    _thumbnail_first = True

    @property
    def tile_pixels(self) -> Size:
        """Of its tower of timm."""
        return pair(self.vision_tower.timm_model.patch_embed.img_size)

    @property
    def tile_grid(self) -> Size:
        """Patches, of which ``projector_pooling_ratio`` makes one."""
        rows, cols = self.vision_tower.timm_model.patch_embed.grid_size
        return rows // self.config.projector_pooling_ratio, cols // self.config.projector_pooling_ratio

    def infer_tiles(self, pixel_values: Tensor, inputs: dict[str, Any], prompt: Prompt | None = None) -> None:
        """Add the tiles of each image, which its pixels give."""
        if inputs.get("tiles") is None and pixel_values.ndim == 5:
            inputs["tiles"] = [pixel_values.shape[1]] * len(pixel_values)
        super().infer_tiles(pixel_values, inputs, prompt)

    def encode_tiles(self, pixel_values: Tensor) -> Tensor:
        """Features of pixels ``(images, tiles, 3, height, width)``, or without images."""
        return super().encode_tiles(pixel_values if pixel_values.ndim == 5 else pixel_values[:, None])


class TaggedTilesMixin(TilesMixin):
    """Families that cut an image into tiles, and write a token of its own before the run of each."""

    _tagged = True
    _same_row: int | None = None
    """Words between two tiles of a row; None where prompts do not give rows."""

    def infer_tiles(self, pixel_values: Tensor, inputs: dict[str, Any], prompt: Prompt | None = None) -> None:
        """Add the tiles of each image, by the tags of the prompt's blocks."""
        if prompt is None or not len(prompt.blocks):
            return
        tiles = self._read_tags(prompt.blocks, prompt.input_ids)
        if (prompt.blocks[:, 2] == 1).all() and not self._has_one_token_per_tile(tiles, pixel_values, prompt):
            return  # a placeholder for each image, without tags
        if inputs.get("tiles") is not None:
            _compare(check_tiles(inputs["tiles"]), tiles)
        else:
            inputs["tiles"] = tiles

    def _has_one_token_per_tile(self, tiles: list[Size | int], pixel_values: Tensor, prompt: Prompt) -> bool:
        """Return whether these are the tiles of the images, and the budget gives one token to each."""
        if 2 in tiles or count_tiles(tiles) != self._count_pixel_tiles(pixel_values):
            return False
        views = self.views(len(tiles), tiles=tiles)
        budgets = self._budgets(views, [None] * len(views), prompt.num_regions, prompt.keep)
        return budgets is None or set(budgets) == {1}

    def _count_pixel_tiles(self, pixel_values: Tensor) -> int:
        """Return the number of tiles; tiles of zeros are padding."""
        return int((pixel_values != 0).flatten(-3).any(-1).sum())

    def _read_tags(self, blocks: Tensor, input_ids: Tensor) -> list[Size | int]:
        """Return the tiles of each image. The tag of the thumbnail, which ends an image, is before the last block."""
        ends = {*self._image_ends(_tags(blocks, input_ids)), *_last_of_samples(blocks)}
        tiles: list[Size | int] = []
        start = 0
        for end in sorted(ends):
            tiles.append(self._read_rows(blocks[start : end + 1]))
            start = end + 1
        return tiles

    def _image_ends(self, tags: Tensor) -> list[int]:
        """Which blocks end an image: here those with the tag of the last."""
        return [int(index) for index in (tags == tags[-1]).nonzero()[:, 0]]

    def _read_rows(self, runs: Tensor) -> Size | int:
        """Rows and columns of an image's runs, or their number."""
        count = len(runs) - 1
        if count == 0:
            return (1, 1)
        between = runs[1:count, 1] - runs[: count - 1, 1] - runs[: count - 1, 2]
        if self._same_row is None or count == 1 or (between < self._same_row).any():
            return count + 1
        rows = 1 + int((between > self._same_row).sum())
        return (rows, count // rows) if count % rows == 0 else count + 1


class AyaVisionMixin(TaggedTilesMixin):
    """Aya Vision."""

    @property
    def tile_grid(self) -> Size:
        """Patches, of which ``downsample_factor`` squared make one."""
        return _merged(self, self.config.downsample_factor)


class Cohere2VisionMixin(TaggedTilesMixin):
    """Cohere2 Vision."""

    @property
    def tile_grid(self) -> Size:
        """Patches, of which ``downsample_factor`` squared make one."""
        return _merged(self, self.config.downsample_factor)

    def _image_ends(self, tags: Tensor) -> list[int]:
        """Its tiles end with a line break, so that only the first of an image stands after another token."""
        return [int(start) - 1 for start in (tags == tags[0]).nonzero()[1:, 0]]


class IdeficsMixin(TaggedTilesMixin):
    """Idefics3 and SmolVLM: prompts give rows and columns; pixels are padded to as many tiles in every sample."""

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
                "pixel_attention_mask leaves pixels of a tile out, whose features would be of other pixels. Let the "
                "processor resize images to whole tiles, as it does by default."
            )
        return super().encode_patches(pixel_values, **inputs)

    def encode_tiles(self, pixel_values: Tensor) -> Tensor:
        """Features ``(tiles, rows, cols, dim)`` of the tiles that are not padding."""
        output = self._inner.get_image_features(self, pixel_values, return_dict=True).pooler_output
        rows, cols = self.tile_grid
        return torch.cat(list(output)).unflatten(0, (-1, rows, cols))

    def pack_features(self, output: Any) -> Any:
        """Return them as they are."""
        return output

    def blank_image(self) -> dict[str, Any]:
        """One grey tile, since black is padding."""
        height, width = self.tile_pixels
        weight = next(self.vision_model.parameters())
        return {"pixel_values": torch.ones(1, 1, 3, height, width, device=weight.device, dtype=weight.dtype)}


def check_tiles(tiles: Any) -> list[Size | int]:
    """Rows and columns of each image's tiles, or their number."""
    given = tiles.tolist() if hasattr(tiles, "tolist") else tiles
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ShapeError(f"tiles must have (rows, cols) for each image, or a number; got {tiles!r}.")
    checked: list[Size | int] = []
    for image, one in enumerate(given):
        if isinstance(one, Sequence) and not isinstance(one, str):
            if len(one) != 2:
                raise ShapeError(f"tiles[{image}] must be (rows, cols); got {one}.")
            rows, cols = (check_integer(f"tiles[{image}]", side) for side in one)
            checked.append((rows, cols))
        else:
            checked.append(check_integer(f"tiles[{image}]", one))
    return checked


def count_tiles(tiles: Sequence[Size | int]) -> int:
    """Return the number of tiles of all images, with the thumbnail of those that are cut."""
    return sum(tile if isinstance(tile, int) else tile[0] * tile[1] + (tile != (1, 1)) for tile in tiles)


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
