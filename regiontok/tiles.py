"""Images and clips in several grids of patches: the part that each grid shows, and its budget."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regiontok.budgets import Budget, Keep, resolve_budget
from regiontok.errors import ValueRangeError
from regiontok.geometry import ImageGeometry, Size

MAX_FRAMES = 8
"""Number of frames of a chunk of a video, if the Regionizer has no ``max_frames``."""


@dataclass(frozen=True)
class TileLayout:
    """The position of a tile in the grid of its image before the image was cut.

    Attributes:
        geometry: How the image was placed on its input.
        grid: Rows and columns of the whole grid.
        top: First row of the tile.
        left: First column of the tile.
    """

    geometry: ImageGeometry
    grid: Size
    top: int = 0
    left: int = 0


@dataclass(frozen=True)
class Tile:
    """A grid of patches that shows an image or a part of it: a tile of the processor, joined tiles, or a thumbnail.

    In a batch of videos, a tile is a chunk of frames, and ``image`` is the number of its video.

    Attributes:
        image: Number of the image in the batch.
        block: Number of the block of placeholders; the tiles of a block are consecutive. If each frame of a video has a
            block, the block of the first frame of the chunk.
        grid: Rows and columns of patches.
        layout: Position in the image; None if it is not known or given by ``geometry`` of the Regionizer.
        empty_rows: Rows of the joined tiles of a very narrow image that have no patch left. The stock class writes a
            newline for each of them after the last token of the image.
        frames: Number of frames of a chunk of a video; None for images.
    """

    image: int
    block: int
    grid: Size
    layout: TileLayout | None = None
    empty_rows: int = 0
    frames: int | None = None

    @property
    def patches(self) -> int:
        """The number of patches of the tile."""
        return self.grid[0] * self.grid[1] * (self.frames or 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns; of a chunk frames, rows and columns."""
        return self.grid if self.frames is None else (self.frames, *self.grid)

    @property
    def padded(self) -> bool:
        """Whether the tile shows a whole image with padding around it."""
        layout = self.layout
        return layout is not None and layout.geometry.mode == "letterbox" and layout.grid == self.grid

    def valid(self, sizes: Sequence[Size] | None) -> Tensor | None:
        """Return the patches that show the image, ``(rows, cols)`` bool; None for all, or if the size is not known."""
        if not self.padded or sizes is None or self.layout is None:
            return None
        return self.layout.geometry.place(sizes[self.image]).valid(self.grid)


def uncut_images(grids: Sequence[Size]) -> list[Tile]:
    """Return one tile for each image of a batch."""
    return [Tile(image, image, grid) for image, grid in enumerate(grids)]


def cut_videos(grids: Sequence[tuple[int, int, int]], max_frames: int | None) -> list[Tile]:
    """Return the chunks of videos.

    Args:
        grids: Frames, rows and columns of patches of each video.
        max_frames: Largest number of frames of a chunk, if each frame has a block of placeholders; None if each video
            has one block, and is one chunk.

    Example:
        >>> [(tile.image, tile.block, tile.shape) for tile in cut_videos([(5, 2, 2), (1, 2, 2)], 4)]
        [(0, 0, (4, 2, 2)), (0, 4, (1, 2, 2)), (1, 5, (1, 2, 2))]
    """
    tiles: list[Tile] = []
    block = 0
    for video, (frames, rows, cols) in enumerate(grids):
        if max_frames is None:
            tiles.append(Tile(video, video, (rows, cols), frames=frames))
            continue
        for first in range(0, frames, max_frames):
            chunk = min(max_frames, frames - first)
            tiles.append(Tile(video, block + first, (rows, cols), frames=chunk))
        block += frames
    return tiles


def count_images(tiles: Sequence[Tile]) -> int:
    """Return the number of images of a batch of tiles."""
    return 1 + max(tile.image for tile in tiles) if tiles else 0


def make_tiles(
    tilings: Sequence[Size | int],
    tile_grid: Size,
    pixels: Size,
    *,
    is_joined: bool = False,
    block_per_tile: bool = False,
    thumbnail_first: bool = False,
) -> list[Tile]:
    """Return the tiles of images that a processor stretched and cut into tiles of equal size.

    Args:
        tilings: For each image, rows and columns of its tiles; or the number of tiles if the layout is not known.
            Images with several tiles also have a thumbnail, which the number includes.
        tile_grid: Rows and columns of patches of a tile.
        pixels: Height and width of a tile.
        is_joined: Whether the tiles of an image become one `Tile`.
        block_per_tile: Whether each tile has its own block of placeholders, instead of one block per image.
        thumbnail_first: Whether the thumbnail precedes the tiles.

    Example:
        >>> tiles = make_tiles([(1, 1), (1, 2)], (4, 4), (56, 56), is_joined=True)
        >>> [(tile.image, tile.grid) for tile in tiles]
        [(0, (4, 4)), (1, (4, 8)), (1, (4, 4))]
    """
    tiles: list[Tile] = []
    block = -1
    (rows, cols), (height, width) = tile_grid, pixels
    single = TileLayout(ImageGeometry.squash(pixels), tile_grid)
    for image, tiling in enumerate(tilings):
        parts: list[tuple[Size, TileLayout | None]]
        if isinstance(tiling, int):
            parts = [(tile_grid, single if tiling == 1 else None)] * tiling
        elif tiling == (1, 1):
            parts = [(tile_grid, single)]
        else:
            down, across = tiling
            geometry, grid = ImageGeometry.squash((down * height, across * width)), (down * rows, across * cols)
            if is_joined:
                parts = [(grid, TileLayout(geometry, grid))]
            else:
                corners = [(row * rows, col * cols) for row in range(down) for col in range(across)]
                parts = [(tile_grid, TileLayout(geometry, grid, top, left)) for top, left in corners]
            parts.insert(0 if thumbnail_first else len(parts), (tile_grid, single))
        block += not block_per_tile
        for grid, layout in parts:
            block += block_per_tile
            tiles.append(Tile(image, block, grid, layout))
    return tiles


def join_tiles(features: Tensor, rows: int, cols: int) -> Tensor:
    """Return features of tiles ``(rows * cols, r, c, dim)``, row by row, as one grid ``(rows * r, cols * c, dim)``."""
    _, down, across, dim = features.shape
    return features.reshape(rows, cols, down, across, dim).transpose(1, 2).reshape(rows * down, cols * across, dim)


def share_budget(
    tiles: Sequence[Tile],
    num_regions: Budget | None = None,
    *,
    keep: Keep | None = None,
    patches: Sequence[int] | None = None,
) -> list[int]:
    """Return budgets of tiles that add up to the budget of their image, in proportion to their patches.

    Args:
        tiles: The tiles of a batch.
        num_regions: Number of tokens of an image, one number or one per image.
        keep: The same as a fraction of the patches of an image.
        patches: Number of valid patches of each tile; all patches by default.

    Raises:
        ShapeError: Not one budget per image.
        ValueRangeError: ``num_regions`` is less than the number of tiles of an image, each of which needs a token.

    Example:
        >>> share_budget(make_tiles([(2, 2)], (4, 4), (56, 56), is_joined=True), 40)
        [32, 8]
    """
    counts = [tile.patches for tile in tiles] if patches is None else list(patches)
    spare_per_image = [
        torch.tensor([count - 1 for tile, count in zip(tiles, counts, strict=True) if tile.image == image])
        for image in range(count_images(tiles))
    ]
    budgets = resolve_budget([int(spare.sum()) + len(spare) for spare in spare_per_image], num_regions, keep)
    if budgets is None:
        raise ValueRangeError("share_budget needs num_regions or keep. Pass one of them.")
    shares: list[int] = []
    for image, (budget, spare) in enumerate(zip(budgets, spare_per_image, strict=True)):
        remaining = (budget if keep is None else max(budget, len(spare))) - len(spare)
        if remaining < 0:
            if tiles[0].frames is not None:
                raise ValueRangeError(
                    f"the budget of a video must be at least the number of its chunks, {len(spare)} for video {image}; "
                    f"got {budget}. Pass a larger budget, or sample fewer frames, or increase max_frames."
                )
            raise ValueRangeError(
                f"num_regions must be at least {len(spare)} for image {image}, whose tiles need a token each; got "
                f"{budget}. Let the processor cut fewer tiles, or pass a larger budget."
            )
        quota = spare.double() * remaining / max(1, int(spare.sum()))
        share = quota.floor().long()
        largest_fraction = (quota - share).sort(descending=True, stable=True).indices
        share[largest_fraction[: remaining - int(share.sum())]] += 1
        shares += (share + 1).tolist()
    return shares


def count_tokens(
    num_patches: int, num_grids: int = 1, num_regions: int | None = None, keep: float | None = None
) -> int:
    """Return the number of tokens of an image, whose grids need at least one token each.

    Args:
        num_patches: Number of patches of the image.
        num_grids: Number of grids: joined tiles count as one.
        num_regions: Number of tokens of the image.
        keep: The same as a fraction of the patches.

    Raises:
        DTypeError, ValueRangeError: The budget is invalid, or less than ``num_grids``.

    Example:
        >>> count_tokens(576, num_regions=128), count_tokens(576, 2, keep=0.25)
        (128, 144)
    """
    tiles = [Tile(0, 0, (1, size)) for size in split_patches(num_patches, num_grids)]
    return sum(share_budget(tiles, num_regions, keep=keep))


def split_patches(num_patches: int, num_grids: int) -> list[int]:
    """Return sizes of ``num_grids`` grids with ``num_patches`` patches, to count the tokens of an image.

    The number of tokens depends on the sum and the number of the sizes only.
    """
    return [num_patches - num_grids + 1, *[1] * (num_grids - 1)]
