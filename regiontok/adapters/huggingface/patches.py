"""Patch features of a batch, and the number of regions and placeholders of its images or videos."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from regiontok.batch import FeatureGrids
from regiontok.budgets import Budget, Keep
from regiontok.errors import ShapeError
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions
from regiontok.tiles import Tile, count_images


class Patches(NamedTuple):
    """Patch features of a batch of images or videos.

    Attributes:
        features: ``(tiles, rows, cols, dim)``, or a list of ``(rows, cols, dim)``. Most families have one tile per
            image. A tile of a video is a chunk of frames, ``(frames, rows, cols, dim)``.
        num_placeholders: Number of placeholders that the stock processor writes for each block.
        tiles: The `Tile` of each grid: its image, and the part of the image that it shows.
        layers: Features of further layers that the language model uses (deepstack), each like ``features``.
        valid: Patches of each tile that the stock model uses, if it drops some, each of the shape of the tile.
        frame_positions: Rotary position of each frame of each tile, for families that have one in time.
        frame_tokens: ``(frames, dim)``: one further feature per frame of the batch, which precedes its patches.
        is_projected: Whether the features already are in the dimension of the language model.
    """

    features: FeatureGrids
    num_placeholders: list[int]
    tiles: list[Tile]
    layers: Sequence[FeatureGrids] = ()
    valid: Sequence[Tensor] | None = None
    frame_positions: Sequence[Tensor] = ()
    frame_tokens: Tensor | None = None
    is_projected: bool = False


class Prompt(NamedTuple):
    """Prompts of a batch and the budget of the call, from which some families infer the tiles of images.

    Attributes:
        input_ids: ``(B, columns)``.
        blocks: ``(blocks, 3)``: blocks of placeholders, as `regiontok.placeholders.find_blocks` returns them.
        num_regions: Number of tokens per image, if the call has a budget.
        keep: The same budget as a fraction of the valid patches.
    """

    input_ids: Tensor
    blocks: Tensor
    num_regions: Budget | None = None
    keep: Keep | None = None


class EncodedImages(NamedTuple):
    """Region tokens of a batch of images or videos, before they replace placeholders.

    Attributes:
        values: ``(N, text_dim)``: region tokens, and the newlines and frame tokens of some families.
        region: ``(N,)`` int64: the region of each value, -1 for newlines and frame tokens.
        regions: The `Regions` of the batch, with one image per tile.
        patches: The patch features that are pooled.
        lengths: Number of values of each block of placeholders.
        offsets: ``(N, 3)`` float32: rotary position of each value from the start of its block, in time, rows and
            columns, for families with such positions.
    """

    values: Tensor
    region: Tensor
    regions: Regions
    patches: Patches
    lengths: list[int]
    offsets: Tensor | None = None


def check_dim(regionizer: Regionizer, dim: int) -> None:
    """Raise an error for a Regionizer for features of another dimension."""
    if regionizer.config.dim not in (None, dim):
        raise ShapeError(
            f"the Regionizer has dim={regionizer.config.dim}, and the features of this model have dimension {dim}. "
            f"Create it with dim={dim}, or load the checkpoint for this encoder."
        )


def per_image(tiles: Sequence[Tile], counts: Sequence[int]) -> list[int]:
    """Return the sums of counts of tiles for each image."""
    sums = [0] * count_images(tiles)
    for tile, count in zip(tiles, counts, strict=True):
        sums[tile.image] += count
    return sums


def count_valid(tiles: Sequence[Tile], valid: Sequence[Tensor | None]) -> list[int]:
    """Return the number of valid patches of each tile."""
    return [tile.patches if mask is None else int(mask.sum()) for tile, mask in zip(tiles, valid, strict=True)]


def unmerged_images(
    tiles: Sequence[Tile], counts: Sequence[int] | None, patches: Sequence[int] | None = None
) -> list[bool]:
    """Return for each image whether every patch is a region; False if counts are not known.

    Args:
        tiles: The tiles of a batch.
        counts: Number of regions of each tile, if known.
        patches: Number of patches of each tile; by default those of its grid.
    """
    if counts is None:
        return [False] * count_images(tiles)
    totals = per_image(tiles, [tile.patches for tile in tiles] if patches is None else patches)
    return [count == total for count, total in zip(per_image(tiles, counts), totals, strict=True)]
