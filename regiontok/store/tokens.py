"""Stores of region tokens, with a row per image; pyarrow, datasets and DuckDB can read the shards.

Columns: ``key`` (string); ``height`` and ``width`` (int32) of the image, null if unknown; ``rows`` and ``cols`` (int32)
of the grid; ``tokens`` (list of K lists of dim float16 or float32); ``patches`` (list of K lists of int32: the patches
of each region, numbered row by row); ``mask_index`` (list of int32) and ``scores`` (list of float32), null if the
regions are not made from masks; ``dropped`` (list of mask_index and reason) and ``fallback`` (bool) of `Regions`;
``image_bytes`` and ``image_modified`` (int64: microseconds since 1970, UTC) of the image file, null if unknown.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from regiontok._values import check_choice
from regiontok.choices import TOKEN_DTYPES
from regiontok.errors import DTypeError, ShapeError, StoreError, ValueRangeError
from regiontok.geometry import Size
from regiontok.regions import Dropped, Regions
from regiontok.store.base import Store
from regiontok.store.keys import as_key
from regiontok.store.shards import pyarrow
from regiontok.store.stamps import Stamp, with_stamps
from regiontok.store.storage import Address
from regiontok.store.writer import write_pairs
from regiontok.tokens import RegionTokens


class TokenStore(Store[RegionTokens]):
    """Region tokens of images by key, read from a store of `write_tokens` or ``regiontok tokenize --store``.

    The store is a mapping like `MaskStore`. ``store[key]`` returns the `RegionTokens` of one image, with values rounded
    to the dtype of the store. ``store.as_dataset()`` returns a torch dataset.

    Args:
        path: A local folder, or a remote address such as ``s3://bucket/tokens``.
        shards: Open only these shards: a slice such as ``slice(rank, None, world_size)``, or their names.

    Attributes:
        provenance: How the tokens were made.
        shards: The names of the shards.
        damaged: The reasons of damaged shards by name. They cause a warning, and the other shards are used.
        failures: The reasons of failed images, by key.
        repeated: Number of rows that are not used because a later row has the same key.

    Raises:
        StoreError: There is no store, or it is not a store of tokens.
        MissingDependencyError: pyarrow is not installed.

    Example:
        >>> import tempfile
        >>> tokens = Regionizer(pool="mean")(torch.rand(1, 6, 6, 8))
        >>> folder = tempfile.mkdtemp() + "/tokens"
        >>> write_tokens(folder, [("a.jpg", tokens)], dtype="float32")
        1
        >>> torch.equal(TokenStore(folder)["a.jpg"].values, tokens.values)
        True
    """

    kind = "tokens"
    count_column = "patches"

    def _value(self, table: Any, row: int) -> RegionTokens:
        def cell(name: str) -> Any:
            return table.column(name)[row]

        frames, grid, fallback = cell("frames").as_py(), [cell("rows").as_py(), cell("cols").as_py()], cell("fallback")
        fallback, grid = fallback.as_py(), grid if frames is None else [frames, *grid]
        vectors, members = cell("tokens").values, cell("patches").values
        values = np.array(vectors.flatten()).reshape(-1, vectors.type.list_size)  # a copy that torch can write to
        areas, patch = members.value_lengths().to_numpy(), np.array(members.flatten(), np.int64)
        count = len(values)
        if not count or len(areas) != count or not areas.all() or min(grid) < 1:
            raise ShapeError("an image must have a token, and every token a patch")
        if not isinstance(fallback, bool):
            raise DTypeError("fallback must be true or false")
        if patch.min() < 0 or patch.max() >= math.prod(grid):
            raise ValueRangeError(f"patches must be on the grid of {' x '.join(map(str, grid))}")
        regions = Regions(
            patch=torch.from_numpy(patch),
            region=torch.from_numpy(np.repeat(np.arange(count), areas)),
            image=torch.zeros(count, dtype=torch.int64),
            mask_index=_per_token(cell("mask_index"), torch.full((count,), -1)),
            score=_per_token(cell("scores"), torch.full((count,), torch.nan)),
            grids=torch.tensor([grid]),
            fallback=torch.tensor([fallback]),
            dropped=tuple(Dropped(0, mask["mask_index"], mask["reason"]) for mask in cell("dropped").as_py() or ()),
        )
        return RegionTokens(torch.from_numpy(values), regions)

    def check(self, key: str | PurePath) -> None:
        """Read a row completely and check that its tokens are finite; see ``Store.check``."""
        tokens = self[key]
        if not tokens.values.isfinite().all():
            raise StoreError(f"tokens of {key} in {self.path} are damaged: they contain NaN or infinity")

    def size(self, key: str | PurePath) -> Size | None:
        """Return the height and width of an image in pixels, or None if unknown.

        Raises:
            MissingKeyError: The store has no such key.
            StoreError: The shard is damaged.
        """
        table, row = self._read_row(as_key(key))
        height, width = (table.column(name)[row].as_py() for name in ("height", "width"))
        return None if height is None or width is None else (height, width)


def _per_token(cell: Any, default: torch.Tensor) -> torch.Tensor:
    """Return a list of numbers with the shape and dtype of the default, or the default if the list is null.

    Raises:
        ShapeError: The list does not have one number per token.
    """
    if cell.values is None:
        return default
    if len(cell.values) != len(default):
        raise ShapeError("mask_index and scores must have one value per token")
    return torch.from_numpy(np.array(cell.values)).to(default.dtype)


def write_tokens(
    path: Address,
    tokens: Iterable[tuple[str, RegionTokens]],
    *,
    provenance: dict[str, Any] | None = None,
    dtype: str = "float16",
    overwrite: bool = False,
    shard_size: int = 1000,
) -> int:
    """Add region tokens to a store.

    Args:
        path: A local folder, or a remote address such as ``s3://bucket/tokens``; created if it does not exist.
        tokens: Pairs of a key and the tokens of this image. A generator is read one pair at a time.
        provenance: How the tokens were made, as JSON values. It must be the same for all rows of a store.
        dtype: The dtype of the stored tokens, ``float16`` or ``float32``.
        overwrite: Remove existing rows first.
        shard_size: Maximum number of images in a shard.

    Returns:
        The number of images.

    Raises:
        OutputError: The folder is not writable, or is not a store.
        ShapeError: Tokens are of several images, or of different dimensions.
        StoreError: The store is damaged, or has another kind, provenance, dimension or dtype.
        ValueRangeError: A key is already in the store, or is not a relative path; tokens are not finite as float16.
        MissingDependencyError: pyarrow is not installed.
    """
    check_choice("dtype", dtype, TOKEN_DTYPES)
    dims: set[int] = set()

    def as_table(key: str, value: RegionTokens) -> Any:
        if not isinstance(value, RegionTokens):
            raise DTypeError(f"tokens of {key} must be RegionTokens; got {type(value).__name__}.")
        if len(value.regions.grids) != 1:
            raise ShapeError(f"tokens of {key} must be of one image; got {len(value.regions.grids)} images.")
        dims.add(value.values.shape[1])
        if len(dims) > 1:
            raise ShapeError(f"all tokens must have the same dimension; got {sorted(dims)} at {key}.")
        return tokens_table([key], value, dtype=dtype)

    return write_pairs(
        path, "tokens", tokens, as_table, provenance=provenance, overwrite=overwrite, shard_size=shard_size
    )


def tokens_table(
    keys: Sequence[str], tokens: RegionTokens, *, sizes: Sequence[Size] | None = None, dtype: str = "float16"
) -> Any:
    """Return rows of a store of tokens as a table of pyarrow.

    Args:
        keys: A key for each image.
        tokens: The tokens of the images.
        sizes: The heights and widths of the images in pixels, if known.
        dtype: ``float16`` or ``float32``.

    Raises:
        ValueRangeError: Tokens are not finite in this dtype.
    """
    pa, _ = pyarrow()
    regions = tokens.regions.to("cpu")
    values = tokens.values.detach().to("cpu", getattr(torch, dtype)).numpy()
    if not np.isfinite(values).all():
        raise ValueRangeError(f"tokens must be finite as {dtype}. Store large values as float32 (--dtype float32).")
    counts, areas = regions.counts.numpy(), regions.areas().numpy()
    ends = _offsets(pa, counts)
    has_masks = np.add.reduceat(regions.mask_index.numpy() >= 0, ends.to_numpy()[:-1]) > 0
    dropped: list[list[dict[str, Any]]] = [[] for _ in keys]
    for mask in regions.dropped:
        dropped[mask.image].append({"mask_index": mask.mask_index, "reason": mask.reason})
    element = pa.field("element", pa.from_numpy_dtype(values.dtype), nullable=False)
    vector = pa.field("element", pa.list_(element, values.shape[1]), nullable=False)
    patches = pa.field("element", pa.list_(pa.field("element", pa.int32(), nullable=False)), nullable=False)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=vector.type)
    members = pa.ListArray.from_arrays(
        _offsets(pa, areas), pa.array(regions.patch.numpy().astype(np.int32)), patches.type
    )
    image_sizes: Sequence[tuple[int | None, int | None]] = sizes or [(None, None)] * len(keys)
    is_null = pa.array(~has_masks)
    frames = regions.grids[:, 0].tolist() if regions.grids.shape[1] == 3 else [None] * len(keys)
    mask_index = pa.array(regions.mask_index.numpy().astype(np.int32))
    columns = {
        "key": pa.array(keys, pa.string()),
        "height": pa.array([height for height, _ in image_sizes], pa.int32()),
        "width": pa.array([width for _, width in image_sizes], pa.int32()),
        "frames": pa.array(frames, pa.int32()),
        "rows": pa.array(regions.grids[:, -2].numpy().astype(np.int32)),
        "cols": pa.array(regions.grids[:, -1].numpy().astype(np.int32)),
        "tokens": pa.ListArray.from_arrays(ends, vectors, pa.list_(vector)),
        "patches": pa.ListArray.from_arrays(ends, members, pa.list_(patches)),
        "mask_index": pa.ListArray.from_arrays(ends, mask_index, mask=is_null),
        "scores": pa.ListArray.from_arrays(ends, pa.array(regions.score.numpy()), mask=is_null),
        "dropped": pa.array(dropped, pa.list_(pa.struct({"mask_index": pa.int32(), "reason": pa.string()}))),
        "fallback": pa.array(regions.fallback.numpy()),
    }
    return with_stamps(pa.table(columns), [Stamp()] * len(keys))


def _offsets(pa: Any, lengths: np.ndarray) -> Any:
    """Return the offsets of lists with these lengths, as Arrow stores them."""
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
