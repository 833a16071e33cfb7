"""What the shards of a store must agree with: their columns, the options they were made by, dimension and dtype.

Readers and writers that resume use `read_shard` alone, so that both have the same notion of a complete shard. A store
keeps, beside ``store.json``, a file ``options-DIGEST.json`` for every set of options that its shards were made by, with
the dimension and dtype of their tokens. Usually that is one file; ``--mixed`` adds others.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from regiontok.errors import StoreError, ValueRangeError
from regiontok.store.manifest import FORMAT, Manifest
from regiontok.store.places import Place, TakenError
from regiontok.store.shards import damage, group_ends, open_shard, pyarrow, read_keys, shards_of
from regiontok.store.stamps import COLUMNS as STAMP_COLUMNS
from regiontok.store.stamps import Stamp, read_stamps

COLUMNS = {
    "masks": ("height", "width", "counts", "scores", "stability"),
    "tokens": ("rows", "cols", "tokens", "patches", "fallback"),
}
"""Columns that every shard of a kind must have, beside ``key``."""
LISTS = {"masks": ("counts", "scores"), "tokens": ("tokens", "patches")}
"""Columns that hold lists."""
GENERATION = b"generation"
"""Metadata of shards of images that were made again: a number above those of all shards that were there before."""
_DTYPES = {"halffloat": "float16", "float": "float32"}


class Record(NamedTuple):
    """Options that shards were made by, and the layout of their rows."""

    made_by: dict[str, Any]
    layout: dict[str, Any]


class ShardRows(NamedTuple):
    """The rows of a shard: keys, the end of each row group, its generation, and stamps if they were asked for."""

    keys: list[str]
    ends: np.ndarray
    generation: int
    stamps: list[Stamp]


def layout_of(schema: Any, kind: str) -> dict[str, Any]:
    """Return the dimension and dtype of tokens by a shard's schema; nothing for masks, which are runs of any size.

    Raises:
        ValueError: The column of tokens is of another type.
    """
    if kind != "tokens":
        return {}
    vector = schema.field("tokens").type.value_type
    dtype = _DTYPES.get(str(vector.value_type))
    if dtype is None or not hasattr(vector, "list_size"):
        raise ValueError(f"tokens are lists of {vector}, and not of a fixed number of float16 or float32")
    return {"dim": vector.list_size, "dtype": dtype}


def write_record(place: Place, record: Record, *, writer: int, mixed: bool) -> None:
    """Keep a set of options in the store, unless it is there.

    Raises:
        ValueRangeError: The store has rows of another layout by the same options, and ``mixed`` does not allow that.
    """
    known = read_records(place)
    if record in known:
        return
    other = next((one.layout for one in known if one.made_by == record.made_by), None) or _layout_there(place, record)
    if other is not None and not mixed:
        raise ValueRangeError(
            f"{place.address} has tokens of {_named(other)}, and these are of {_named(record.layout)}. Name another "
            "folder, make it anew with --overwrite, or add to it all the same with --mixed."
        )
    data = json.dumps({"format": FORMAT, **record._asdict()}, indent=2, sort_keys=True).encode()
    with suppress(TakenError):  # by another writer, at the same time
        name = f"options-{blake2b(data, digest_size=6).hexdigest()}.json"
        place.write(name, data + b"\n", label=f"part-{writer:05d}-{name}")  # which this writer's next run cleans


def _layout_there(place: Place, record: Record) -> dict[str, Any] | None:
    """Return the layout of a shard by the same options, if there is another one than the record's."""
    kind = "tokens" if record.layout else "masks"
    for shard in shards_of(place, "part"):
        try:
            with open_shard(place, shard.name) as file:
                schema = file.schema_arrow
                made_by = json.loads((schema.metadata or {})[kind.encode()])
                layout = layout_of(schema, kind)
        except _faults():
            continue  # a damaged shard says nothing
        if made_by == record.made_by and layout != record.layout:
            return layout
    return None


def _faults() -> tuple[type[Exception], ...]:
    """Return what is raised on damaged bytes, and on columns and metadata of other types than ours."""
    return (*damage(pyarrow()[0]), TypeError, AttributeError, IndexError)


def is_record(name: str) -> bool:
    """Return whether a file's name is that of a set of options."""
    return name.startswith("options-") and name.endswith(".json")


def read_records(place: Place) -> list[Record]:
    """Return the sets of options that the shards of a store may be made by.

    Raises:
        StoreError: One of the files is damaged.
    """
    records = []
    for name in filter(is_record, place.names()):
        try:
            value = json.loads(place.read(name))
            records.append(Record(dict(value["made_by"]), dict(value["layout"])))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{place.address}/{name} is damaged: {error!r}. Remove it; shards are then compared with store.json."
            ) from error
    return records


def read_shard(
    place: Place, name: str, manifest: Manifest, records: Sequence[Record], *, stamps: bool = False
) -> ShardRows:
    """Read the keys of a shard, and check that it belongs to the store.

    Args:
        place: Of the store.
        name: Of the shard.
        manifest: Of the store.
        records: As `read_records` returns them.
        stamps: Whether to read the stamps of the images, too.

    Raises:
        StoreError: It is damaged, lacks a column, or was made by options, or with a dimension or dtype, that the
            store does not have.
    """
    try:
        with open_shard(place, name) as file:
            schema = file.schema_arrow
            for column in COLUMNS.get(manifest.kind, ()):
                schema.field(column)
            for column in LISTS.get(manifest.kind, ()):
                if not str(schema.field(column).type).startswith(("list<", "large_list<")):
                    raise ValueError(f"column {column} is of {schema.field(column).type}, and not of lists")
            metadata = schema.metadata or {}
            _check_origin(metadata, layout_of(schema, manifest.kind), manifest, records)
            keys, known = read_keys(file), [Stamp()]
            if stamps and all(_is_integer(schema, column) for column in STAMP_COLUMNS):
                known = read_stamps(file.read(list(STAMP_COLUMNS), use_threads=False))
            generation = int(metadata.get(GENERATION, 0))
            return ShardRows(
                keys, group_ends(file), generation, known if len(known) == len(keys) else known * len(keys)
            )
    except StoreError:
        raise
    except _faults() as error:
        raise StoreError(
            f"{place.address}/{name} is no complete shard of this store of {manifest.kind} ({error})."
        ) from error


def _is_integer(schema: Any, column: str) -> bool:
    place = schema.get_field_index(column)
    return place >= 0 and str(schema.field(place).type) == "int64"


def _check_origin(metadata: Any, layout: dict[str, Any], manifest: Manifest, records: Sequence[Record]) -> None:
    """Compare what a shard says of itself with the store.

    Raises:
        ValueError: They differ.
    """
    text = metadata.get(manifest.kind.encode())  # None if another program wrote the shard
    made_by = manifest.made_by if text is None else json.loads(text)
    layouts = [record.layout for record in records if record.made_by == made_by]
    if not layouts and made_by != manifest.made_by:
        found = "; ".join(manifest.difference(Manifest(kind=manifest.kind, made_by=made_by)))
        raise ValueError(f"it was made by other options: {found.replace(' now', ' in the shard')}")
    if layouts and layout not in layouts:
        raise ValueError(f"its tokens are {_named(layout)}, and those of the store {_named(layouts[0])}")


def _named(layout: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in layout.items())
