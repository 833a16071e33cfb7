"""Records of a store, and the check of every shard against them.

A record is a file ``_options-DIGEST.json`` with the provenance of shards, and the dimension and dtype of their tokens.
A store usually has one record; ``--mixed`` adds others. Readers and resumed writers both use `read_shard`, so that they
agree on which shards are complete.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from regiontok.errors import StoreError
from regiontok.store.manifest import FORMAT, Manifest
from regiontok.store.shards import damage_errors, group_ends, list_shards, open_shard, read_keys
from regiontok.store.stamps import COLUMNS as STAMPS
from regiontok.store.stamps import Stamp, read_stamps
from regiontok.store.storage import FileTakenError, Storage

GENERATION = b"generation"
"""Metadata key of shards with recomputed images: a number above the generations of all earlier shards."""
_NUMBERS = {"masks": ("height", "width"), "tokens": ("height", "width", "frames", "rows", "cols", "fallback")}
"""Required columns with one value per row, in addition to the key and the stamps."""
_LISTS = {
    "masks": ("counts", "scores", "stability", "ids", "categories"),
    "tokens": ("tokens", "patches", "mask_index", "scores", "dropped"),
}
"""Required columns with one list per row."""
_DTYPES = {"halffloat": "float16", "float": "float32"}


class Record(NamedTuple):
    """Provenance of shards, and the layout of their rows as `layout_of` returns it."""

    provenance: dict[str, Any]
    layout: dict[str, Any]


class ShardRows(NamedTuple):
    """Keys of a shard, the end of each row group, the generation, and the stamps if they were read."""

    keys: list[str]
    ends: np.ndarray
    generation: int
    stamps: list[Stamp]


def layout_of(schema: Any, kind: str) -> dict[str, Any]:
    """Return the dimension and dtype of tokens from the schema of a shard; empty for masks.

    Raises:
        ValueError: The column of tokens has a different type.
    """
    if kind != "tokens":
        return {}
    vector = schema.field("tokens").type.value_type
    dtype = _DTYPES.get(str(vector.value_type))
    if dtype is None or not hasattr(vector, "list_size"):
        raise ValueError(f"tokens must be fixed-size lists of float16 or float32; got {vector}")
    return {"dim": vector.list_size, "dtype": dtype}


def write_record(storage: Storage, record: Record, *, writer: int, mixed: bool) -> None:
    """Write a record unless the store already contains it.

    Raises:
        StoreError: The store has rows with the same provenance but a different layout, and ``mixed`` is False.
    """
    records = read_records(storage)
    if record in records:
        return
    layouts = [other.layout for other in records if other.provenance == record.provenance]
    other_layout = layouts[0] if layouts else _find_other_layout(storage, record)
    if other_layout is not None and not mixed:
        raise StoreError(
            f"{storage.address} has tokens with {_format(other_layout)}, but the new tokens have "
            f"{_format(record.layout)}. Pass a different store, replace this store with --overwrite, or add the rows "
            "anyway with --mixed."
        )
    data = json.dumps({"format": FORMAT, **record._asdict()}, indent=2, sort_keys=True).encode()
    name = f"_options-{blake2b(data, digest_size=6).hexdigest()}.json"
    with suppress(FileTakenError):  # another writer has the same options
        storage.write(name, data + b"\n", writer=writer)


def _find_other_layout(storage: Storage, record: Record) -> dict[str, Any] | None:
    """Return the layout of the first shard with the provenance of a record but a different layout."""
    kind = "tokens" if record.layout else "masks"
    for shard in list_shards(storage, "part"):
        try:
            with open_shard(storage, shard.name) as file:
                schema = file.schema_arrow
                provenance = json.loads((schema.metadata or {})[kind.encode()])
                layout = layout_of(schema, kind)
        except damage_errors():
            continue
        if provenance == record.provenance and layout != record.layout:
            return layout
    return None


def is_record(name: str) -> bool:
    """Return whether a file name is the name of a record."""
    return name.startswith("_options-") and name.endswith(".json")


def read_records(storage: Storage) -> list[Record]:
    """Return the records of a store.

    Raises:
        StoreError: A record is damaged or cannot be read.
    """
    records = []
    for name in filter(is_record, storage.names()):
        try:
            content = json.loads(storage.read(name))
            records.append(Record(dict(content["provenance"]), dict(content["layout"])))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{storage.address}/{name} is damaged: {error!r}. Remove it; shards are then compared with _store.json."
            ) from error
    return records


def read_shard(
    storage: Storage, name: str, manifest: Manifest, records: Sequence[Record], *, stamps: bool = False
) -> ShardRows:
    """Read the keys of a shard, and check that the shard is complete and belongs to the store.

    Args:
        storage: The folder of the store.
        name: The name of the shard.
        manifest: The manifest of the store.
        records: The records of the store.
        stamps: Also read the stamps of the images.

    Raises:
        StoreError: The shard is damaged, has no column of a required name, or its provenance, dimension and dtype do
            not match a record.
    """
    try:
        with open_shard(storage, name) as file:
            schema = file.schema_arrow
            _check_columns(schema, manifest.kind)
            metadata = schema.metadata or {}
            _check_origin(metadata, layout_of(schema, manifest.kind), manifest, records)
            return ShardRows(
                read_keys(file),
                group_ends(file),
                int(metadata.get(GENERATION, 0)),
                read_stamps(file.read(list(STAMPS), use_threads=False)) if stamps else [],
            )
    except StoreError:
        raise
    except damage_errors() as error:
        raise StoreError(
            f"{storage.address}/{name} is not a complete shard of this store of {manifest.kind} ({error})."
        ) from error


def _check_columns(schema: Any, kind: str) -> None:
    """Check that a shard has all columns of its kind, and that lists and stamps have the right types.

    Raises:
        KeyError, ValueError: A column is missing or has a different type.
    """
    for name in _NUMBERS.get(kind, ()):
        schema.field(name)
    expected = dict.fromkeys(_LISTS.get(kind, ()), ("list<", "large_list<")) | dict.fromkeys(STAMPS, ("int64",))
    for name, types in expected.items():
        if not str(schema.field(name).type).startswith(types):
            raise ValueError(f"column {name} must have type {types[0].rstrip('<')}; got {schema.field(name).type}")


def _check_origin(metadata: Any, layout: dict[str, Any], manifest: Manifest, records: Sequence[Record]) -> None:
    """Check the provenance and layout of a shard.

    Raises:
        ValueError: No record has the provenance and the layout of the shard.
    """
    text = metadata.get(manifest.kind.encode())  # None if a different program wrote the shard
    provenance = manifest.provenance if text is None else json.loads(text)
    layouts = [record.layout for record in records if record.provenance == provenance]
    if not layouts and provenance != manifest.provenance:
        differences = "; ".join(manifest.difference(Manifest(kind=manifest.kind, provenance=provenance)))
        raise ValueError(f"it was written with other options: {differences.replace(' now', ' in the shard')}")
    if layouts and layout not in layouts:
        raise ValueError(f"its tokens are {_format(layout)}, but those of the store are {_format(layouts[0])}")


def _format(layout: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in layout.items())
