"""Size and modification time of the files that images were read from, by which changed images are noticed."""

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from regiontok.store.shards import pyarrow

COLUMNS = ("image_bytes", "image_modified")
_EPOCH = datetime(1970, 1, 1)


class Stamp(NamedTuple):
    """A file's size in bytes, and its modification time in microseconds since 1970 (UTC); None where unknown."""

    size: int | None = None
    modified: int | None = None

    def differs(self, other: "Stamp") -> bool:
        """Return whether the files differ in something that is known of both."""
        return any(
            mine is not None and yours is not None and mine != yours for mine, yours in zip(self, other, strict=True)
        )


def stamp_of_file(path: str | Path) -> Stamp:
    """Return the stamp of a file on this machine; an empty one if there is no such file."""
    try:
        status = os.stat(path)  # noqa: PTH116  a million times
    except (OSError, ValueError):  # it fails when it is read
        return Stamp()
    return Stamp(status.st_size, status.st_mtime_ns // 1000)


def stamp_of(info: dict[str, Any]) -> Stamp:
    """Return the stamp of a file as a filesystem of fsspec describes it."""
    size = info.get("size")
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            naive = value.replace(tzinfo=None) - (value.utcoffset() or timedelta())
            return Stamp(size, (naive - _EPOCH) // timedelta(microseconds=1))
        if isinstance(value, int | float):
            return Stamp(size, int(value * 1_000_000))
    return Stamp(size)


def with_stamps(table: Any, stamps: list[Stamp]) -> Any:
    """Return a table of rows with the stamps of their images."""
    pa, _ = pyarrow()
    columns = [pa.array([stamp[place] for stamp in stamps], pa.int64()) for place in range(2)]
    for name, column in zip(COLUMNS, columns, strict=True):
        place = table.schema.get_field_index(name)
        table = table.append_column(name, column) if place < 0 else table.set_column(place, name, column)
    return table


def read_stamps(table: Any) -> list[Stamp]:
    """Return the stamps in a table of rows; empty ones where it has no such columns."""
    if not set(COLUMNS) <= set(table.column_names):
        return [Stamp()] * len(table)
    return [Stamp(*pair) for pair in zip(*(table.column(name).to_pylist() for name in COLUMNS), strict=True)]
