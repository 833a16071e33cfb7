"""Size and modification time of image files, to detect images that have changed."""

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from regiontok.store.shards import pyarrow

COLUMNS = ("image_bytes", "image_modified")
_EPOCH = datetime(1970, 1, 1)


class Stamp(NamedTuple):
    """Size of a file in bytes, and its modification time in microseconds since 1970 (UTC); None if unknown."""

    size: int | None = None
    modified: int | None = None

    def differs(self, other: "Stamp") -> bool:
        """Return whether a field that is not None in both stamps differs."""
        return any(
            mine is not None and theirs is not None and mine != theirs for mine, theirs in zip(self, other, strict=True)
        )


def stamp_of_file(path: str | Path) -> Stamp:
    """Return the stamp of a local file, or an empty stamp if there is no such file."""
    try:
        status = os.stat(path)  # noqa: PTH116  called for millions of files
    except (OSError, ValueError):  # reading the file will raise an error
        return Stamp()
    return Stamp(status.st_size, status.st_mtime_ns // 1000)


def stamp_of(info: dict[str, Any]) -> Stamp:
    """Return the stamp of a remote file from the ``info`` of its fsspec filesystem."""
    size = info.get("size")
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            utc = value.replace(tzinfo=None) - (value.utcoffset() or timedelta())
            return Stamp(size, (utc - _EPOCH) // timedelta(microseconds=1))
        if isinstance(value, int | float):
            return Stamp(size, int(value * 1_000_000))
    return Stamp(size)


def with_stamps(table: Any, stamps: list[Stamp]) -> Any:
    """Return a table of rows with the stamps of their images added or replaced."""
    pa, _ = pyarrow()
    for field, name in enumerate(COLUMNS):
        column = pa.array([stamp[field] for stamp in stamps], pa.int64())
        index = table.schema.get_field_index(name)
        table = table.append_column(name, column) if index < 0 else table.set_column(index, name, column)
    return table


def read_stamps(table: Any) -> list[Stamp]:
    """Return the stamps in a table of rows."""
    return [Stamp(*pair) for pair in zip(*(table.column(name).to_pylist() for name in COLUMNS), strict=True)]
