"""Region tokens in a store, a row per image, readable by pyarrow, datasets and DuckDB.

Columns: ``key`` (string); ``height``, ``width`` of the image, null where they are not known; ``rows``, ``cols`` of the
grid (int32); ``tokens`` (list of K lists of dim float16 or float32); ``patches`` (list of K lists of int32: the patches
of each token's region, counted row by row); for regions of masks ``mask_index`` (list of int32) and ``scores`` (list of
float32), else null; ``dropped`` (list of mask_index and reason) and ``fallback`` (bool), as `Regions` has them;
``image_bytes`` and ``image_modified`` (int64: microseconds since 1970, UTC) of the image's file, null if unknown.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from regiontok._checks import check_choice
from regiontok.choices import TOKEN_DTYPES
from regiontok.errors import DTypeError, ShapeError, StoreError, ValueRangeError
from regiontok.geometry import Size
from regiontok.regions import Dropped, Regions
from regiontok.store.base import Store
from regiontok.store.keys import as_key
from regiontok.store.manifest import Manifest
from regiontok.store.masks import add_new, checked_pairs
from regiontok.store.places import Address
from regiontok.store.shards import damage, open_shard, pyarrow
from regiontok.store.stamps import Stamp, with_stamps
from regiontok.store.writer import StoreWriter
from regiontok.tokens import RegionTokens


class TokenStore(Store[RegionTokens]):
    """Region tokens of images by key, read from a store that `write_tokens` or ``regiontok tokenize --store`` wrote.

    A mapping, as `MaskStore` is; ``store[key]`` is the `RegionTokens` of one image, as they were written but for the
    rounding of float16. ``store.rows()`` is a torch dataset.

    Args:
        path: The folder, or an address of fsspec such as ``s3://bucket/tokens``.
        shards: Open some of the shards alone, such as ``slice(rank, None, world_size)``, or by their names.

    Attributes:
        made_by: How the tokens were made.
        shards: The names of the shards.
        damaged: Shards that cannot be read, and why; there is a warning too, and the others are served.
        failures: Images that have no tokens since they failed, and why.
        repeated: Rows whose key another has too; the later one counts.

    Raises:
        StoreError: No store, or not one of tokens.
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
    counted = "patches"

    def _manifest_of_file(self, name: str) -> Manifest:
        pa, _ = pyarrow()
        try:
            with open_shard(self._place, name) as file:
                return Manifest(kind="tokens", made_by=json.loads((file.schema_arrow.metadata or {})[b"tokens"]))
        except damage(pa) as error:
            raise StoreError(f"{self.path} is no shard of a store of tokens ({error}).") from error

    def _value(self, table: Any, row: int) -> RegionTokens:
        def one(name: str) -> Any:
            return table.column(name)[row]

        grid, fallback = (one("rows").as_py(), one("cols").as_py()), one("fallback").as_py()
        vectors, members = one("tokens").values, one("patches").values
        dim = vectors.type.list_size
        values = np.array(vectors.flatten()).reshape(-1, dim)  # a copy, which torch may write to
        areas, patch = members.value_lengths().to_numpy(), np.array(members.flatten(), np.int64)
        if not len(values) or len(areas) != len(values) or not areas.all() or grid[0] < 1 or grid[1] < 1:
            raise ShapeError("every token must have a patch, and an image a token")
        if not isinstance(fallback, bool):
            raise DTypeError("fallback must be true or false")
        if patch.min() < 0 or patch.max() >= grid[0] * grid[1]:
            raise ValueRangeError(f"patches must lie on the grid of {grid[0]} x {grid[1]}")
        count = len(values)
        index, scores = (self._per_token(table, row, name, count) for name in ("mask_index", "scores"))
        dropped = one("dropped").as_py() or ()
        regions = Regions(
            patch=torch.from_numpy(patch),
            region=torch.from_numpy(np.repeat(np.arange(count), areas)),
            image=torch.zeros(count, dtype=torch.int64),
            mask_index=torch.full((count,), -1) if index is None else torch.from_numpy(index.astype(np.int64)),
            score=torch.full((count,), torch.nan) if scores is None else torch.from_numpy(scores.astype(np.float32)),
            grids=torch.tensor([grid]),
            fallback=torch.tensor([fallback]),
            dropped=tuple(Dropped(0, entry["mask_index"], entry["reason"]) for entry in dropped),
        )
        return RegionTokens(torch.from_numpy(values), regions)

    def check(self, key: str | PurePath) -> None:
        """Read a row in full, and check that its tokens are finite."""
        tokens = self[key]
        if not tokens.values.isfinite().all():
            raise StoreError(f"tokens of {key} in {self.path} are damaged: they have NaN or infinity")

    def _per_token(self, table: Any, row: int, name: str, count: int) -> np.ndarray | None:
        """A number per token, where the image has them."""
        found = table.column(name)[row].values
        if found is None:
            return None
        if len(found) != count:
            raise ShapeError(f"{name} must be one per token")
        return np.array(found)

    def size(self, key: str | PurePath) -> Size | None:
        """An image's height and width, if they are known.

        Raises:
            MissingKeyError: No such image.
        """
        table, row = self._row(as_key(key))
        height, width = (table.column(name)[row].as_py() for name in ("height", "width"))
        return None if height is None or width is None else (height, width)


def write_tokens(
    path: Address,
    tokens: Iterable[tuple[str, RegionTokens]],
    *,
    made_by: dict[str, Any] | None = None,
    dtype: str = "float16",
    overwrite: bool = False,
    shard_size: int = 1000,
) -> int:
    """Write region tokens to a store, in addition to those that it has.

    Args:
        path: The folder, or an address of fsspec; made where it is not there.
        tokens: Pairs of an image's key and its tokens; taken one by one, so that they may be a generator.
        made_by: How they were made; plain values for JSON. A store has one such way.
        dtype: Of the stored tokens, ``float16`` or ``float32``.
        overwrite: Remove what the store has, first.
        shard_size: Images per shard.

    Returns:
        The number of images.

    Raises:
        OutputError: A place that cannot be written to, or is no store.
        ShapeError: Tokens of several images under one key.
        ValueRangeError: A key that the store has, or is no path below a folder; a store made in another way; tokens
            beyond what float16 can hold.
        MissingDependencyError: pyarrow is not installed.
    """
    check_choice("dtype", dtype, TOKEN_DTYPES)
    dims: set[int] = set()

    def as_table(keys: Sequence[str], some: Sequence[RegionTokens]) -> Any:
        (key,), (one,) = keys, some
        if not isinstance(one, RegionTokens):
            raise DTypeError(f"tokens of {key} must be RegionTokens; got {type(one).__name__}.")
        if len(one.regions.grids) != 1:
            raise ShapeError(f"tokens of {key} are of {len(one.regions.grids)} images; a key is one image's.")
        dims.add(one.values.shape[1])
        if len(dims) > 1:
            raise ShapeError(f"tokens of {key} have {one.values.shape[1]} numbers, and others {sorted(dims)}.")
        return tokens_table([key], one, dtype=dtype)

    manifest, tokens = Manifest(kind="tokens", made_by=made_by or {}), checked_pairs(tokens, "tokens")
    with StoreWriter(path, manifest, overwrite=overwrite, shard_size=shard_size, shard_minutes=None) as writer:
        add_new(writer, path, tokens, as_table)
        return writer.rows


def tokens_table(
    keys: Sequence[str], tokens: RegionTokens, *, sizes: Sequence[Size] | None = None, dtype: str = "float16"
) -> Any:
    """Rows of a store of tokens, as a table of pyarrow.

    Args:
        keys: One per image.
        tokens: Of as many images.
        sizes: The images' heights and widths, if they are known.
        dtype: ``float16`` or ``float32``.

    Raises:
        ValueRangeError: Tokens beyond what float16 can hold.
    """
    pa, _ = pyarrow()
    regions = tokens.regions.to("cpu")
    values = tokens.values.detach().to("cpu", getattr(torch, dtype)).numpy()
    if not np.isfinite(values).all():
        raise ValueRangeError(f"tokens must be finite as {dtype}. Keep larger ones as float32 (--dtype float32).")
    counts, areas = regions.counts.numpy(), regions.areas().numpy()
    ends = _offsets(pa, counts)
    has_masks = np.add.reduceat(regions.mask_index.numpy() >= 0, ends.to_numpy()[:-1]) > 0
    dropped: list[list[dict[str, Any]]] = [[] for _ in keys]
    for one in regions.dropped:
        dropped[one.image].append({"mask_index": one.mask_index, "reason": one.reason})
    element = pa.field("element", pa.from_numpy_dtype(values.dtype), nullable=False)
    vector = pa.field("element", pa.list_(element, values.shape[1]), nullable=False)
    patches = pa.field("element", pa.list_(pa.field("element", pa.int32(), nullable=False)), nullable=False)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=vector.type)
    members = pa.ListArray.from_arrays(
        _offsets(pa, areas), pa.array(regions.patch.numpy().astype(np.int32)), patches.type
    )
    none = pa.array(~has_masks)
    columns = {
        "key": pa.array(keys, pa.string()),
        "height": pa.array([None] * len(keys) if sizes is None else [size[0] for size in sizes], pa.int32()),
        "width": pa.array([None] * len(keys) if sizes is None else [size[1] for size in sizes], pa.int32()),
        "rows": pa.array(regions.grids[:, 0].numpy().astype(np.int32)),
        "cols": pa.array(regions.grids[:, 1].numpy().astype(np.int32)),
        "tokens": pa.ListArray.from_arrays(ends, vectors, pa.list_(vector)),
        "patches": pa.ListArray.from_arrays(ends, members, pa.list_(patches)),
        "mask_index": pa.ListArray.from_arrays(ends, pa.array(regions.mask_index.numpy().astype(np.int32)), mask=none),
        "scores": pa.ListArray.from_arrays(ends, pa.array(regions.score.numpy()), mask=none),
        "dropped": pa.array(dropped, pa.list_(pa.struct({"mask_index": pa.int32(), "reason": pa.string()}))),
        "fallback": pa.array(regions.fallback.numpy()),
    }
    return with_stamps(pa.table(columns), [Stamp()] * len(keys))


def _offsets(pa: Any, lengths: np.ndarray) -> Any:
    """Arrow's offsets of lists of these lengths."""
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
