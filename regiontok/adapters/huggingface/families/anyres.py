"""Images in tiles that are packed into one run without their padding (anyres): LLaVA-NeXT and LLaVA-OneVision."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from regiontok._checks import check_choice, check_sizes
from regiontok._require import require
from regiontok.adapters.huggingface.encoding import Patches
from regiontok.adapters.huggingface.families.vision_tower import VisionTowerMixin, pair
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.geometry import ImageGeometry, Size
from regiontok.regionizer import Regionizer
from regiontok.tokens import RegionTokens
from regiontok.views import Canvas, View, stitch

transformers = require("transformers", extra="hf")

NEWLINES = ("drop", "image", "row")


class AnyresMixin(VisionTowerMixin):
    """Families that pad an image to a grid of tiles, and pack a thumbnail and the tiles without padding into one block.

    The tiles of an image are one grid, so that regions cross their borders; the thumbnail is a second. The stock class
    ends each row of patches with a newline, which says little after regions: ``newline`` says whether it is kept.
    ``drop`` leaves it out, ``image`` writes one after each image, ``row`` one after the regions that begin in each row,
    so that with ``source="patch"`` the logits are the stock model's. By default ``row`` for that source in raster
    order, and else ``drop``. An image so narrow that nothing is left of its tiles is its thumbnail alone; with ``row``
    the newlines that the stock class writes for the empty rows of tiles follow it.
    """

    encoder_inputs: tuple[str, ...] = ("image_sizes",)
    places_images = True

    has_newline = True

    def newline_of(self, whole: bool) -> str:
        """Return how newlines of an image are written, by whether all of its patches are kept."""
        in_rows = whole and self.regionizer.config.order == "raster"
        return getattr(self.config, "regiontok_newline", None) or ("row" if in_rows else "drop")

    @property
    def projector(self) -> Callable[[Tensor], Tensor]:
        """LLaVA's own; a newline that is not used is kept in the graph, for ranks that train together."""
        project, newline = self.multi_modal_projector, self.image_newline
        return lambda values: project(values) + 0.0 * newline if self.training else project(values)

    def views(self, images: int, image_sizes: Any = None, **inputs: Any) -> list[View]:
        """Of each image the thumbnail, and the tiles without their padding."""
        views: list[View] = []
        for image, size in enumerate(_need(image_sizes)):
            views += self._views_of(image, size)
        return views

    def tiles_of(self, size: Size) -> Size:
        """Rows and columns of the tiles of an image."""
        side = self.config.vision_config.image_size
        best = require("transformers.image_processing_utils", extra="hf").select_best_resolution
        height, width = best(size, self.config.image_grid_pinpoints)
        return height // side, width // side

    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Features of each view, of pixels ``(images, tiles, 3, height, width)``, which may be padded with tiles."""
        sizes, inputs = self._sizes(pixel_values, inputs)
        tiles, views = self._tiles(sizes, **inputs), self._views(sizes, **inputs)
        counts = [1 if tile is None else 1 + tile[0] * tile[1] for tile in tiles]
        if pixel_values.ndim == 5:
            if len(pixel_values) != len(sizes) or pixel_values.shape[1] < max(counts):
                raise ShapeError(
                    f"pixel_values must hold {counts} tiles of {len(sizes)} images, as image_sizes give; got "
                    f"{tuple(pixel_values.shape)}. Pass the processor's image_sizes, (height, width) of each image."
                )
            pixel_values = torch.cat([image[:count] for image, count in zip(pixel_values, counts, strict=True)])
        elif len(pixel_values) != sum(counts):
            raise ShapeError(f"pixel_values must hold {sum(counts)} tiles; got {tuple(pixel_values.shape)}.")
        features, _ = self.encode_tiles(pixel_values)
        grids: list[Tensor] = []
        written: list[int] = []
        start = 0
        for image, count in enumerate(counts):
            own = features[start : start + count]
            start += count
            seen = [view for view in views if view.image == image]
            grids.append(own[0])
            for view in seen[1:]:
                grids.append(self._unpad(stitch(own[1:], *(tiles[image] or (1, 1))), sizes[image], view))
            if tiles[image] is None:
                written.append(seen[0].patches + 1)
            else:
                rows, cols = seen[1].grid if len(seen) > 1 else self._kept(sizes[image]).shape
                written.append(seen[0].patches + rows * (cols + 1))
        return Patches(grids, written, views)

    def arrange(self, tokens: RegionTokens, views: Sequence[View], whole: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """Return tokens with the newline after each image or row of them, where it is kept."""
        after = self._newlines_after(tokens, views, whole)
        region = torch.arange(len(tokens), device=tokens.values.device)
        if after is None:
            return tokens.values, region
        index = region.repeat_interleave(1 + after.long())
        is_newline = torch.zeros_like(index, dtype=torch.bool)
        is_newline[1:] = index[1:] == index[:-1]
        newline = self.image_newline.to(tokens.values)
        return torch.where(is_newline[:, None], newline, tokens.values[index]), index.masked_fill(is_newline, -1)

    def _newlines_after(self, tokens: RegionTokens, views: Sequence[View], whole: Sequence[bool]) -> Tensor | None:
        """Return how many newlines follow each token, ``(R,)``; None for none at all."""
        kinds = [self.newline_of(is_whole) for is_whole in whole]
        if set(kinds) == {"drop"}:
            return None
        regions, device = tokens.regions, tokens.regions.device
        image = torch.tensor([view.image for view in views], device=device)
        ends = _changes(image[regions.image])
        in_padded = torch.tensor([view.padded for view in views], device=device)[regions.image]
        rows = torch.tensor([view.grid[0] for view in views], device=device)
        cols = torch.tensor([view.grid[1] for view in views], device=device)
        row = regions.patch[regions.starts] // cols[regions.image] + (rows.cumsum(0) - rows)[regions.image]
        is_thumbnail = torch.ones_like(image, dtype=torch.bool)
        is_thumbnail[1:] = image[1:] != image[:-1]
        empty = torch.tensor([view.empty_rows for view in views], device=device)
        in_rows = (
            torch.where(is_thumbnail[regions.image], ends & in_padded, _changes(row)) + ends * empty[regions.image]
        )
        kind = torch.tensor([NEWLINES.index(kind) for kind in kinds], device=device)[image[regions.image]]
        return torch.where(kind == NEWLINES.index("row"), in_rows, ends * (kind == NEWLINES.index("image")))

    def count_newlines(self, views: Sequence[View], whole: Sequence[bool]) -> list[int]:
        """Return the number of newlines of each image.

        Raises:
            ValueRangeError: ``newline="row"`` for regions, whose rows are known only after encoding.
        """
        counts = []
        for image, one in enumerate(whole):
            kind = self.newline_of(one)
            if kind == "row" and not one:
                raise ValueRangeError(
                    "newline='row' writes as many as rows in which a region begins, known after encoding."
                )
            own = [view for view in views if view.image == image]
            in_rows = own[1].grid[0] if len(own) > 1 else int(own[0].padded) + own[0].empty_rows
            counts.append({"drop": 0, "image": 1, "row": in_rows}[kind])
        return counts

    def _views_of(self, image: int, size: Size) -> list[View]:
        height, width = pair(self.config.vision_config.image_size)
        rows, cols = self.tower_grid
        down, across = self.tiles_of(size)
        thumbnail = View(image, image, (rows, cols), Canvas(ImageGeometry.squash((height, width)), (rows, cols)))
        kept = self._kept(size)
        if 0 in kept.shape:  # an image so narrow that the stock class, too, leaves nothing of its tiles
            return [replace(thumbnail, empty_rows=kept.shape[0])]
        top, left = divmod(int(kept[0, 0]), across * cols)
        geometry = ImageGeometry.letterbox((down * height, across * width))
        canvas = Canvas(geometry, (down * rows, across * cols), top, left)
        return [thumbnail, View(image, image, (kept.shape[0], kept.shape[1]), canvas)]

    def _kept(self, size: Size) -> Tensor:
        """Which patches of all tiles of an image are no padding, by number."""
        (rows, cols), (down, across) = self.tower_grid, self.tiles_of(size)
        return self._unpad_image(
            torch.arange(down * rows * across * cols).reshape(1, down * rows, across * cols), size
        )[0]

    def _unpad(self, grid: Tensor, size: Size, view: View) -> Tensor:
        return self._unpad_image(grid.permute(2, 0, 1), size).permute(1, 2, 0)

    def _unpad_image(self, tensor: Tensor, size: Size) -> Tensor:
        """The stock module's own function: ``(dim, rows, cols)`` without what is padding."""
        unpad: Callable[[Tensor, Size], Tensor] = require(self._inner.__module__, extra="hf").unpad_image
        return unpad(tensor, size)

    def _sizes(self, pixel_values: Tensor, inputs: dict[str, Any]) -> tuple[list[Size], dict[str, Any]]:
        """Sizes of images, and the other inputs."""
        return _need(inputs.get("image_sizes")), {name: one for name, one in inputs.items() if name != "image_sizes"}

    def _tiles(self, sizes: list[Size], **inputs: Any) -> list[Size | None]:
        """Rows and columns of each image's tiles; None for an image that is a thumbnail alone."""
        return [self.tiles_of(size) for size in sizes]

    def _views(self, sizes: list[Size], **inputs: Any) -> list[View]:
        return self.views(len(sizes), sizes)

    def blank_image(self) -> dict[str, Any]:
        """An image of one tile, and its thumbnail."""
        height, width = self.config.image_grid_pinpoints[0]
        side = self.config.vision_config.image_size
        tower, count = self.vision_tower, 1 + height // side * (width // side)
        pixels = torch.zeros(1, count, 3, side, side, device=tower.device, dtype=tower.dtype)
        return {"pixel_values": pixels, "image_sizes": [(height, width)]}

    def check_regionizer(self, regionizer: Regionizer) -> None:
        """Reject a Regionizer that does not fit this model, and newlines that do not fit it."""
        super().check_regionizer(regionizer)
        newline = getattr(self.config, "regiontok_newline", None)
        if newline is not None:
            check_choice("newline", newline, NEWLINES)
            if newline == "row" and regionizer.config.order != "raster":
                raise ValueRangeError("newline='row' needs order='raster', in which rows of tokens follow each other.")


class OnevisionMixin(AnyresMixin):
    """LLaVA-OneVision.

    Its processor cuts the image of a sample that has one, and returns a thumbnail alone if there are several: then pass
    its ``batch_num_images``. An image of more than nine tiles is scaled down: by the stock class after the projector,
    and here before it, where regions are made.
    """

    encoder_inputs: tuple[str, ...] = ("image_sizes", "batch_num_images", "vision_aspect_ratio")

    def views(self, images: int, image_sizes: Any = None, **inputs: Any) -> list[View]:
        """Of each image the thumbnail, and the tiles without their padding where it was cut."""
        return self._views(_need(image_sizes), **inputs)

    def _tiles(self, sizes: list[Size], **inputs: Any) -> list[Size | None]:
        cut = self._cut(len(sizes), inputs)
        return [self.tiles_of(size) if is_cut else None for size, is_cut in zip(sizes, cut, strict=True)]

    def _views(self, sizes: list[Size], **inputs: Any) -> list[View]:
        cut = self._cut(len(sizes), inputs)
        limit = _most_tiles(inputs.get("vision_aspect_ratio") or self.config.vision_aspect_ratio)
        views: list[View] = []
        for image, (size, one) in enumerate(zip(sizes, cut, strict=True)):
            if one:
                thumbnail, *whole = self._views_of(image, size)
                views += [thumbnail, *(self._scaled(view, limit) for view in whole)]
            else:
                padded = Canvas(ImageGeometry.letterbox(pair(self.config.vision_config.image_size)), self.tower_grid)
                views.append(View(image, image, self.tower_grid, padded))
        return views

    def _sizes(self, pixel_values: Tensor, inputs: dict[str, Any]) -> tuple[list[Size], dict[str, Any]]:
        """An image of one tile was not cut, and needs no size but for its masks."""
        if pixel_values.ndim == 5 and pixel_values.shape[1] == 1:
            inputs = inputs | {"in_one_piece": True}
            if inputs.get("image_sizes") is None:
                inputs["image_sizes"] = [pair(self.config.vision_config.image_size)] * len(pixel_values)
        return super()._sizes(pixel_values, inputs)

    def _cut(self, images: int, inputs: dict[str, Any]) -> list[bool]:
        """Which images are cut: those of samples that have one."""
        given = inputs.get("batch_num_images")
        if given is None or inputs.get("in_one_piece"):
            return [not inputs.get("in_one_piece")] * images
        counts = [int(count) for count in given]
        if sum(counts) != images:
            raise ShapeError(f"batch_num_images must add up to the {images} images; got {counts}.")
        return [count == 1 for count in counts for _ in range(count)]

    def _scaled(self, view: View, limit: int) -> View:
        (rows, cols), side = view.grid, self.tower_grid[0]
        ratio = math.sqrt(rows * cols / (limit * side**2))
        if ratio <= 1.1:
            return view
        grid = int(rows // ratio), int(cols // ratio)
        patch = pair(self.config.vision_config.patch_size)
        whole = ImageGeometry.squash((grid[0] * patch[0], grid[1] * patch[1]))
        return View(view.image, view.run, grid, Canvas(whole, grid))

    def _unpad(self, grid: Tensor, size: Size, view: View) -> Tensor:
        kept = self._unpad_image(grid.permute(2, 0, 1), size)
        if kept.shape[1:] != view.grid:
            kept = nn.functional.interpolate(kept[None], view.grid, mode="bilinear")[0]
        return kept.permute(1, 2, 0)


def _need(image_sizes: Any) -> list[Size]:
    if image_sizes is None:
        raise ValueRangeError(
            "pixel_values need image_sizes, the height and width of each image, which the processor gives with them: "
            "they give how it was cut. Pass them."
        )
    return check_sizes("image_sizes", image_sizes)


def _changes(values: Tensor) -> Tensor:
    """Where the next one differs, and at the end."""
    last = torch.ones_like(values, dtype=torch.bool)
    last[:-1] = values[1:] != values[:-1]
    return last


def _most_tiles(ratio: str) -> int:
    told = ratio.removeprefix("anyres_max_")
    if not told.isdigit():
        raise ValueRangeError(f"vision_aspect_ratio must be anyres_max_ and a number of tiles; got {ratio!r}.")
    return int(told)
