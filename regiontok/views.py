"""Images in several grids: which part of an image each shows, its masks cut to them, its budget shared over them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regiontok.budgets import Budget, Keep, resolve_budget
from regiontok.downsample import MaskDownsampler, Masks
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.geometry import ImageGeometry, Size
from regiontok.maskset import MaskSet
from regiontok.regions import Regions


@dataclass(frozen=True)
class Canvas:
    """Where a view lies: on the input that its whole image was placed on, before it was cut.

    Attributes:
        geometry: How the image was placed.
        grid: Rows and columns of the patches of all of it.
        top: The view's first row.
        left: The view's first column.
    """

    geometry: ImageGeometry
    grid: Size
    top: int = 0
    left: int = 0


@dataclass(frozen=True)
class View:
    """A grid of patches that shows an image or a part of it.

    Attributes:
        image: Which image of the batch.
        run: Which run of placeholders its tokens stand in; views of one run follow each other.
        grid: Rows and columns of its patches.
        canvas: Where it lies; None where that is not known, or is the Regionizer's own ``geometry``.
        empty_rows: Rows of the image's tiles of which no patch is left, as of a very narrow image. The stock class
            writes a newline for each of them after the last token of the image.
    """

    image: int
    run: int
    grid: Size
    canvas: Canvas | None = None
    empty_rows: int = 0

    @property
    def patches(self) -> int:
        """How many it has."""
        return self.grid[0] * self.grid[1]

    @property
    def padded(self) -> bool:
        """Whether it shows all of a canvas that the image was padded on to."""
        canvas = self.canvas
        return canvas is not None and canvas.geometry.mode == "letterbox" and canvas.grid == self.grid

    def valid(self, sizes: Sequence[Size] | None) -> Tensor | None:
        """Which of its patches show the image, ``(rows, cols)`` bool; None for all, or where its size is not known."""
        if not self.padded or sizes is None or self.canvas is None:
            return None
        return self.canvas.geometry.place(sizes[self.image]).valid(self.grid)


def uncut_images(grids: Sequence[Size]) -> list[View]:
    """One view of every image."""
    return [View(image, image, grid) for image, grid in enumerate(grids)]


def count_images(views: Sequence[View]) -> int:
    """How many images views are of."""
    return 1 + max(view.image for view in views) if views else 0


def tiled(
    tiles: Sequence[Size | int],
    side: Size,
    pixels: Size,
    *,
    stitched: bool = False,
    tagged: bool = False,
    thumbnail_first: bool = False,
    letterbox: bool = False,
) -> list[View]:
    """The views of images that a processor cut into equal tiles.

    Args:
        tiles: Per image the rows and columns of its tiles, or their number where no more is known. An image of several
            has a thumbnail besides, which a number counts too.
        side: Rows and columns of the patches of one tile.
        pixels: Height and width of one tile.
        stitched: Whether the tiles of an image become one view.
        tagged: Whether each tile has a run of its own, and not each image.
        thumbnail_first: Whether the thumbnail stands before the tiles.
        letterbox: Whether the image was padded on to the tiles, and not stretched.

    Example:
        >>> views = tiled([(1, 1), (1, 2)], (4, 4), (56, 56), stitched=True)
        >>> [(view.image, view.grid) for view in views]
        [(0, (4, 4)), (1, (4, 8)), (1, (4, 4))]
    """
    views: list[View] = []
    run = -1
    (rows, cols), (height, width) = side, pixels
    whole = Canvas(ImageGeometry.squash(pixels), side)
    for image, one in enumerate(tiles):
        parts: list[tuple[Size, Canvas | None]]
        if isinstance(one, int):
            parts = [(side, whole if one == 1 else None)] * one
        elif one == (1, 1):
            parts = [(side, whole)]
        else:
            down, across = one
            kind = ImageGeometry.letterbox if letterbox else ImageGeometry.squash
            geometry, grid = kind((down * height, across * width)), (down * rows, across * cols)
            if stitched:
                parts = [(grid, Canvas(geometry, grid))]
            else:
                corners = [(row * rows, col * cols) for row in range(down) for col in range(across)]
                parts = [(side, Canvas(geometry, grid, top, left)) for top, left in corners]
            parts.insert(0 if thumbnail_first else len(parts), (side, whole))
        run += not tagged
        for grid, canvas in parts:
            run += tagged
            views.append(View(image, run, grid, canvas))
    return views


def stitch(tiles: Tensor, rows: int, cols: int) -> Tensor:
    """Tiles ``(rows * cols, r, c, dim)``, row by row, as one grid ``(rows * r, cols * c, dim)``."""
    _, down, across, dim = tiles.shape
    return tiles.reshape(rows, cols, down, across, dim).transpose(1, 2).reshape(rows * down, cols * across, dim)


def cut_masks(
    views: Sequence[View], masks: Sequence[Masks], sizes: Sequence[Size] | None, **options: Any
) -> list[MaskSet]:
    """Each image's masks on the grids of its views; all masks are in all of them, so their numbers stay.

    Args:
        views: Of the batch.
        masks: One entry per image; see `MaskDownsampler`.
        sizes: Height and width of each image: masks of another size are refused.
        options: Of `MaskDownsampler`: ``method``, ``threshold`` and ``overlap``. Masks that lie on each other are
            parted on the whole image, before it is cut.

    Raises:
        ShapeError: Another number of entries than images, or masks of another size than their image.
        ValueRangeError: Masks on a grid, which cannot be cut, or an image whose tiles lie nobody knows how.
    """
    images = count_images(views)
    for name, given in (("masks", masks), ("image_sizes", sizes)):
        if given is not None and len(given) != images:
            raise ShapeError(f"{name} must have one entry per image, {images}; got {len(given)}.")
    prepared: list[MaskSet] = []
    for image, one in enumerate(masks):
        own = MaskSet.of(one, size=None if sizes is None else sizes[image])
        if own.coverage is not None:
            raise ValueRangeError(f"masks[{image}] are on a grid, and its image has several. Pass masks of the image.")
        prepared.append(own)
    covered: dict[tuple[int, ImageGeometry, Size], Tensor] = {}
    cut = []
    for view in views:
        own, canvas = prepared[view.image], view.canvas
        if canvas is None:
            raise ValueRangeError(
                f"image {view.image} has several tiles whose rows and columns are not known, so its masks cannot be "
                "cut. Pass tiles, the rows and columns of each image, as tiles_of(processor, images) tells them."
            )
        known = view.image, canvas.geometry, canvas.grid
        if known not in covered:
            downsampler = MaskDownsampler(canvas.grid, geometry=canvas.geometry, **options)
            size = None if sizes is None else sizes[view.image]
            covered[known] = downsampler.coverage(own, size=size)
            if downsampler.overlap != "keep":
                covered[known] = _parted(downsampler, own, len(covered[known]))
        (rows, cols), top, left = view.grid, canvas.top, canvas.left
        part = covered[known][:, top : top + rows, left : left + cols]
        cut.append(MaskSet.on_grid(part, valid=view.valid(sizes), scores=own.scores, stability=own.stability))
    return cut


def _parted(downsampler: MaskDownsampler, masks: MaskSet, count: int) -> Tensor:
    """Which patches are each mask's, ``(M, rows, cols)``, where one patch belongs to one mask."""
    regions = downsampler([masks])
    parted = torch.zeros(count, *regions.grids[0].tolist(), dtype=torch.bool)
    own = regions.mask_index >= 0
    parted[regions.mask_index[own]] = regions.masks()[0][own]
    return parted


def share_budget(
    views: Sequence[View],
    num_regions: Budget | None = None,
    *,
    keep: Keep | None = None,
    patches: Sequence[int] | None = None,
) -> list[int]:
    """Return budgets of views that add up to the budget of their image, in proportion to their patches.

    Args:
        views: Of the batch.
        num_regions: Number of tokens of an image, one number or one per image.
        keep: The fraction of the patches of an image instead, one number or one per image.
        patches: Number of valid patches of each view; all of them by default.

    Raises:
        ShapeError: The number of budgets is not the number of images.
        ValueRangeError: ``num_regions`` is less than the number of views of an image, each of which needs a token.

    Example:
        >>> share_budget(tiled([(2, 2)], (4, 4), (56, 56), stitched=True), 40)
        [32, 8]
    """
    sizes = [view.patches for view in views] if patches is None else list(patches)
    spare = [
        torch.tensor([size - 1 for view, size in zip(views, sizes, strict=True) if view.image == image])
        for image in range(count_images(views))
    ]
    budgets = resolve_budget([int(one.sum()) + len(one) for one in spare], num_regions, keep)
    if budgets is None:
        raise ValueRangeError("share_budget needs num_regions or keep. Pass one of them.")
    shared: list[int] = []
    for image, (budget, own) in enumerate(zip(budgets, spare, strict=True)):
        left = (budget if keep is None else max(budget, len(own))) - len(own)
        if left < 0:
            raise ValueRangeError(
                f"num_regions must be at least {len(own)} for image {image}, whose tiles need a token each; got "
                f"{budget}. Give the processor fewer tiles, or a larger budget."
            )
        quota = own.double() * left / max(1, int(own.sum()))
        part = quota.floor().long()
        rest = (quota - part).sort(descending=True, stable=True).indices[: left - int(part.sum())]
        part[rest] += 1
        shared += (part + 1).tolist()
    return shared


def by_canvas(regions: Regions, views: Sequence[View], image: int = 0) -> list[tuple[Canvas, Regions, Tensor]]:
    """The regions of an image's views brought together where these were cut from one canvas.

    Args:
        regions: Of a batch whose images are the views.
        views: What each image shows.
        image: Which image.

    Returns:
        For each canvas, the thumbnail's or that of the tiles: the canvas, its regions as a batch of one image, and
        which of the batch's regions they are. Views whose place is not known are left out.
    """
    starts = regions.counts.cumsum(0) - regions.counts
    found: dict[tuple[ImageGeometry, Size], list[int]] = {}
    for number, view in enumerate(views):
        if view.image == image and view.canvas is not None:
            found.setdefault((view.canvas.geometry, view.canvas.grid), []).append(number)
    together = []
    masks = regions.masks()
    for (geometry, grid), numbers in found.items():
        parts = []
        for number in numbers:
            canvas, (rows, cols) = views[number].canvas or Canvas(geometry, grid), views[number].grid
            right, below = grid[1] - canvas.left - cols, grid[0] - canvas.top - rows
            parts.append(nn.functional.pad(masks[number], (canvas.left, right, canvas.top, below)))
        index = [torch.arange(int(regions.counts[number])) + int(starts[number]) for number in numbers]
        together.append((Canvas(geometry, grid), Regions.from_masks([torch.cat(parts)]), torch.cat(index)))
    return together
