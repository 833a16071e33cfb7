"""Shards: Parquet files with a row per image, their names, and what must hold before their bytes are trusted."""

import re
from typing import Any, NamedTuple

import numpy as np

from regiontok._require import require
from regiontok.errors import StoreError, ValueRangeError
from regiontok.store.places import Place

_NAME = re.compile(r"(part|failed)-(\d+)-(\d+)\.parquet")


class Shard(NamedTuple):
    """A shard's name, which tells the number of its writer and its own among this writer's."""

    name: str
    kind: str
    writer: int
    number: int

    @classmethod
    def of(cls, name: str) -> "Shard | None":
        """From a file's name; None for other files."""
        match = _NAME.fullmatch(name)
        return match and cls(name, match[1], int(match[2]), int(match[3]))


def shard_name(kind: str, writer: int, number: int) -> str:
    """The file of a shard; ``kind`` is ``part``, or ``failed`` for a table of failures."""
    return f"{kind}-{writer:05d}-{number:06d}.parquet"


def shards_of(place: Place, kind: str) -> list[Shard]:
    """The shards of a kind in a folder, by writer and number."""
    found = [shard for name in place.names() if (shard := Shard.of(name)) and shard.kind == kind]
    return sorted(found, key=lambda shard: shard[2:])


def read_keys(file: Any) -> list[str]:
    """The keys of an open Parquet file.

    Raises:
        ValueRangeError: A row without a key, or a key that comes twice.
    """
    column = file.read(["key"], use_threads=False).column("key")
    keys: list[str] = column.to_numpy(zero_copy_only=False).tolist()
    if column.null_count or str(column.type) not in ("string", "large_string"):
        raise ValueRangeError("it has rows without a key")
    if len(set(keys)) != len(keys):
        raise ValueRangeError("it has a key that comes twice")
    return keys


def open_shard(place: Place, name: str) -> Any:
    """Open a shard and check its numbers of rows.

    No memory map: a file that is cut short while it is read would end the process.

    Raises:
        StoreError: It is damaged, or cannot be read.
    """
    pa, pq = pyarrow()
    try:
        file = pq.ParquetFile(place.open(name), page_checksum_verification=True)
        check_counts(file.metadata, place.size(name))
        return file
    except damage(pa) as error:
        raise StoreError(f"{place.address}/{name} is not a whole Parquet file ({error}).") from error


def damage(pa: Any) -> tuple[type[Exception], ...]:
    """What pyarrow raises on damaged files."""
    return (pa.ArrowException, OSError, KeyError, ValueError, RecursionError, UnicodeError)


def group_ends(file: Any) -> np.ndarray:
    """The row after each row group of an open shard, ``(groups,)``."""
    metadata = file.metadata
    return np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)], dtype=np.int64)


def check_counts(metadata: Any, size: int) -> None:
    """Refuse numbers of rows that a file of so many bytes cannot have, before memory is asked for them.

    What the metadata tells of columns is left alone: Arrow ends the process where some of that is damaged.

    Raises:
        ValueRangeError: Such a number.
    """
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if sum(rows) != metadata.num_rows or min([*rows, 0]) < 0 or max([*rows, 0]) > size:
        raise ValueRangeError("its numbers of rows are damaged")


def pyarrow() -> tuple[Any, Any]:
    """The package and its Parquet.

    Raises:
        MissingDependencyError: It is not installed.
    """
    return require("pyarrow", extra="store"), require("pyarrow.parquet", extra="store", distribution="pyarrow")
