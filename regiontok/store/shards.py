"""Shards of a store: Parquet files with one row per image, and the checks before their data is used."""

import re
from typing import Any, NamedTuple

import numpy as np

from regiontok._require import require
from regiontok.errors import StoreError, ValueRangeError
from regiontok.store.storage import Storage

_NAME = re.compile(r"(part|_failed)-(\d+)-(\d+)\.parquet")


class Shard(NamedTuple):
    """The parsed name of a shard: kind, writer number, and shard number of this writer."""

    name: str
    kind: str
    writer: int
    number: int

    @classmethod
    def parse(cls, name: str) -> "Shard | None":
        """Parse the name of a file; return None if the file is not a shard."""
        match = _NAME.fullmatch(name)
        return match and cls(name, match[1].removeprefix("_"), int(match[2]), int(match[3]))


def shard_name(kind: str, writer: int, number: int) -> str:
    """Return the name of a shard; ``kind`` is ``part`` for rows and ``failed`` for a failure table.

    Parquet readers skip files whose names start with an underscore, so only ``part`` files are read as a table.
    """
    return f"{'_' if kind == 'failed' else ''}{kind}-{writer:05d}-{number:06d}.parquet"


def list_shards(storage: Storage, kind: str | None = None, *, writer: int | None = None) -> list[Shard]:
    """Return the shards in a folder, sorted by writer, then number; optionally only those of one kind or writer."""
    shards = filter(None, map(Shard.parse, storage.names()))
    return sorted(
        (shard for shard in shards if kind in (None, shard.kind) and writer in (None, shard.writer)),
        key=lambda shard: shard[2:],
    )


def read_keys(file: Any) -> list[str]:
    """Return the keys in an open Parquet file.

    Raises:
        ValueRangeError: A row has no key, or two rows have the same key.
    """
    column = file.read(["key"], use_threads=False).column("key")
    keys: list[str] = column.to_numpy(zero_copy_only=False).tolist()
    if column.null_count or str(column.type) not in ("string", "large_string"):
        raise ValueRangeError("it has rows without a key")
    if len(set(keys)) != len(keys):
        raise ValueRangeError("it has two rows with the same key")
    return keys


def open_shard(storage: Storage, name: str) -> Any:
    """Open a shard and check its row counts.

    A memory map would crash the process if the file were truncated. Therefore the file is opened without one.

    Raises:
        StoreError: The shard is damaged or cannot be read.
    """
    _, pq = pyarrow()
    try:
        file = pq.ParquetFile(storage.open(name), page_checksum_verification=True)
        check_counts(file.metadata, storage.size(name))
        return file
    except damage_errors() as error:
        raise StoreError(f"{storage.address}/{name} cannot be read as a Parquet file ({error}).") from error


def damage_errors() -> tuple[type[Exception], ...]:
    """Return the exception classes that damaged files or unexpected types raise."""
    pa, _ = pyarrow()
    return (
        pa.ArrowException, OSError, KeyError, ValueError, RecursionError, TypeError, AttributeError, IndexError,
        OverflowError,
    )  # fmt: skip


def group_ends(file: Any) -> np.ndarray:
    """Return the end row of each row group of an open shard, ``(num_groups,)`` int64."""
    metadata = file.metadata
    return np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)], dtype=np.int64)


def check_counts(metadata: Any, num_bytes: int) -> None:
    """Reject row counts larger than the file size in bytes, before allocating memory.

    Column metadata is not read, because damaged values abort the process.

    Raises:
        ValueRangeError: A row count is too large or negative, or the row counts do not add up to the total.
    """
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if sum(rows) != metadata.num_rows or min([*rows, 0]) < 0 or max([*rows, 0]) > num_bytes:
        raise ValueRangeError("its row counts are invalid")


def pyarrow() -> tuple[Any, Any]:
    """Import pyarrow and its Parquet module.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """
    return require("pyarrow", extra="store"), require("pyarrow.parquet", extra="store", distribution="pyarrow")
