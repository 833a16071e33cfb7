"""Masks in a store, a row per image: COCO's RLE, readable by pycocotools, datasets and DuckDB alike.

Columns: ``key`` (string), ``height``, ``width`` (int32), ``counts`` (list of binary: COCO's compressed RLE), ``scores``
and ``stability`` (list of float32); ``ids`` and ``categories`` (list of int64), null where masks have none;
``image_bytes`` and ``image_modified`` (int64: microseconds since 1970, UTC) of the image's file, null if unknown.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from regiontok.errors import DTypeError, StoreError, ValueRangeError
from regiontok.maskset import MaskSet
from regiontok.store.base import Store
from regiontok.store.keys import check_key
from regiontok.store.manifest import Manifest
from regiontok.store.places import Address
from regiontok.store.shards import damage, open_shard, pyarrow
from regiontok.store.stamps import Stamp, with_stamps
from regiontok.store.writer import StoreWriter, keys_in

_ROWS = 50


class MaskStore(Store[MaskSet]):
    """Masks of images by key, read from a store that `write_masks` or ``regiontok masks`` wrote.

    A mapping: ``store[key]``, ``key in store``, ``len(store)``, iteration over keys, ``store.items()``. Keys are
    images' paths below the folder that was named when masks were made, and match whole. It may be used by many threads,
    and in forked and spawned workers.

    Args:
        path: The folder, or an address of fsspec such as ``s3://bucket/masks``; or a single Parquet file.
        shards: Open some of the shards alone, such as ``slice(rank, None, world_size)``, or by their names.

    Attributes:
        made_by: How the masks were made.
        shards: The names of the shards.
        damaged: Shards that cannot be read, and why; there is a warning too, and the others are served.
        failures: Images that have no masks since they failed, and why.
        repeated: Rows whose key another has too; the later one counts.

    Raises:
        StoreError: No store, or not one of masks.
        MissingDependencyError: pyarrow is not installed.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp() + "/masks"
        >>> write_masks(folder, [("a.jpg", MaskSet.from_masks(np.ones((2, 4, 6), bool)))])
        1
        >>> store = MaskStore(folder)
        >>> len(store), store["a.jpg"], "b.jpg" in store
        (1, MaskSet(2 masks of 4 x 6 pixels), False)
    """

    kind = "masks"
    counted = "scores"

    def _manifest_of_file(self, name: str) -> Manifest:
        pa, _ = pyarrow()
        try:
            with open_shard(self._place, name) as file:
                metadata = file.schema_arrow.metadata or {}
            made_by = json.loads(metadata.get(b"masks", b"{}"))
            if not isinstance(made_by, dict):
                raise ValueRangeError("what it tells of how masks were made is no object")
            return Manifest(kind="masks", made_by=made_by)
        except StoreError:
            raise
        except damage(pa) as error:
            raise StoreError(f"{self.path} is no whole file of masks ({error}).") from error

    def _value(self, table: Any, row: int) -> MaskSet:
        def value(name: str) -> Any:  # a file of before has no ids
            return table.column(name)[row].as_py() if name in table.column_names else None

        size = (value("height"), value("width"))
        masks = [{"size": size, "counts": counts} for counts in value("counts")]
        scores, stability = (np.array(value(name), np.float32) for name in ("scores", "stability"))
        made = MaskSet.from_coco(masks, size=size, scores=scores, stability=stability)
        more: dict[str, Any] = {
            name: np.array(found, np.int64) for name in ("ids", "categories") if (found := value(name)) is not None
        }
        if any(found.shape != (len(made),) for found in more.values()):
            raise ValueRangeError("there must be as many ids and categories as masks.")
        return replace(made, **more)


def write_masks(
    path: Address,
    masks: Iterable[tuple[str, MaskSet]],
    *,
    made_by: dict[str, Any] | None = None,
    overwrite: bool = False,
    shard_size: int = 1000,
) -> int:
    """Write masks to a store, in addition to those that it has.

    Args:
        path: The folder, or an address of fsspec; made where it is not there.
        masks: Pairs of an image's key and its masks, in any form of `MaskSet.of`; taken one by one, as a generator's.
        made_by: How they were made, such as ``generator.describe()``; plain values for JSON. A store has one such way.
        overwrite: Remove what the store has, first.
        shard_size: Images per shard.

    Returns:
        The number of images.

    Raises:
        OutputError: A place that cannot be written to, or is no store.
        ValueRangeError: A key that the store has, or is no path below a folder; a store made in another way.
        MissingDependencyError: pyarrow is not installed.
    """
    manifest, masks = Manifest(kind="masks", made_by=made_by or {}), checked_pairs(masks, "masks")
    with StoreWriter(path, manifest, overwrite=overwrite, shard_size=shard_size, shard_minutes=None) as writer:
        add_new(writer, path, masks, lambda keys, some: masks_table(keys, [MaskSet.of(one) for one in some]))
        return writer.rows


def add_new(writer: StoreWriter, path: Address, pairs: Iterable[tuple[str, Any]], as_table: Any) -> None:
    """Write pairs of keys and values, a few rows at a time; refuse keys that the store has.

    Raises:
        ValueRangeError: Such a key.
    """
    known = keys_in(path).keys
    waiting: list[Any] = []
    try:
        for key, value in pairs:
            check_key(key)
            if key in known:
                raise ValueRangeError(
                    f"{writer.manifest.kind} of {key} are there already, or come twice; every image needs a key of its "
                    "own."
                )
            known[key] = Stamp()
            waiting.append(as_table([key], [value]))
            if len(waiting) == min(_ROWS, writer.shard_size):
                some, waiting = waiting, []
                writer.write(pyarrow()[0].concat_tables(some))
    finally:
        if waiting:  # whole, whatever ended the rest
            writer.write(pyarrow()[0].concat_tables(waiting))


def checked_pairs(pairs: Any, kind: str) -> Iterator[tuple[str, Any]]:
    """Pairs of keys and values, the first of which is taken at once: what is wrong from the start changes no store.

    Raises:
        DTypeError: No pairs.
    """
    if isinstance(pairs, Mapping):
        pairs = pairs.items()
    if not isinstance(pairs, Iterable):
        raise DTypeError(f"{kind} must come in pairs of a key and its {kind}; got {type(pairs).__name__}.")
    rest = iter(pairs)
    first = list(itertools.islice(rest, 1))

    def check(pair: Any) -> tuple[str, Any]:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DTypeError(f"{kind} must come in pairs of a key and its {kind}; got {type(pair).__name__}.")
        return check_key(pair[0]), pair[1]

    first = [check(pair) for pair in first]
    return itertools.chain(first, map(check, rest))


def masks_table(keys: Sequence[str], masks: Sequence[MaskSet]) -> Any:
    """Rows of a store of masks, as a table of pyarrow.

    Raises:
        ValueRangeError: Masks on the grid, whose pixels are not known.
    """
    pa, _ = pyarrow()
    schema = pa.schema(
        [
            ("key", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("counts", pa.list_(pa.binary())),
            ("scores", pa.list_(pa.float32())),
            ("stability", pa.list_(pa.float32())),
            ("ids", pa.list_(pa.int64())),
            ("categories", pa.list_(pa.int64())),
        ]
    )
    columns = {
        "key": list(keys),
        "height": [one.size[0] for one in masks],
        "width": [one.size[1] for one in masks],
        "counts": [[mask["counts"] for mask in one.to_coco()] for one in masks],
        "scores": [one.scores for one in masks],
        "stability": [one.stability for one in masks],
        "ids": [one.ids for one in masks],
        "categories": [one.categories for one in masks],
    }
    return with_stamps(pa.table(columns, schema), [Stamp()] * len(keys))
