"""Masks on disk: one Parquet file, a row per photo, readable by pycocotools, datasets and DuckDB alike.

Columns: ``key`` (string), ``height``, ``width`` (int32), ``counts`` (list of binary: COCO's compressed RLE), ``scores``
and ``stability`` (list of float32); ``ids`` and ``categories`` (list of int64), null where masks have none. The file's
metadata has ``regiontok`` (version) and ``masks`` (how they were made, as JSON).
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from regiontok._files import written
from regiontok._require import require
from regiontok.errors import CheckpointError, ValueRangeError
from regiontok.maskset import MaskSet

_ROWS = 200
"""Photos that are compressed together, and read together."""


def write_masks(
    path: str | Path, masks: Iterable[tuple[str, MaskSet]], *, made_by: dict[str, Any] | None = None
) -> int:
    """Write masks to a Parquet file; it appears under its name only when it is whole.

    Args:
        path: The file; one that is there is replaced.
        masks: Pairs of a photo's key and its masks; taken one by one, so that they may be a generator.
        made_by: How they were made, such as ``generator.describe()``; plain values for JSON.

    Returns:
        The number of photos.

    Raises:
        OutputError: A file that cannot be written.
        ValueRangeError: A key that comes twice, or is no text.
        MissingDependencyError: pyarrow is not installed.
    """
    pa, pq = _pyarrow()
    path = Path(path)
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
        ],
        metadata={"regiontok": version("regiontok"), "masks": json.dumps(made_by or {})},
    )
    keys: set[str] = set()
    rows: list[dict[str, Any]] = []
    with written(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for key, one in masks:
            if key in keys:
                raise ValueRangeError(f"masks of {key} come twice; every photo needs a key of its own.")
            check_key(key)
            keys.add(key)
            rows.append(
                {
                    "key": key,
                    "height": one.size[0],
                    "width": one.size[1],
                    "counts": [mask["counts"] for mask in one.to_coco()],
                    "scores": one.scores,
                    "stability": one.stability,
                    "ids": one.ids,
                    "categories": one.categories,
                }
            )
            if len(rows) == _ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows.clear()
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
    return len(keys)


def check_key(key: str) -> None:
    """Refuse a key that no file can hold: a file name that is not UTF-8.

    Raises:
        ValueRangeError: Such a key.
    """
    try:
        key.encode()
    except UnicodeEncodeError:
        raise ValueRangeError(f"{key!r} is not UTF-8, and keys of masks are. Rename the photo.") from None


class MaskStore:
    """Masks of photos, read from a file that `write_masks` or ``regiontok masks`` wrote.

    Args:
        path: The Parquet file.

    Attributes:
        made_by: How the masks were made.

    Raises:
        CheckpointError: No such file, or not one of masks.
        MissingDependencyError: pyarrow is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        pa, pq = _pyarrow()
        self.path = Path(path)
        if not self.path.is_file():
            raise CheckpointError(
                f"masks: there is no file {path}. Make one with regiontok masks PHOTO... --out {path}"
            )
        try:
            self._file = pq.ParquetFile(self.path)  # no memory map: a file that is cut short would end the process
            _check_counts(self._file.metadata, self.path.stat().st_size)
            metadata = self._file.schema_arrow.metadata or {}
            self.made_by: dict[str, Any] = json.loads(metadata.get(b"masks", b"{}"))
            keys = [self._read(group, ["key"]).column("key").to_pylist() for group in range(self._file.num_row_groups)]
            for column in ("height", "width", "counts", "scores", "stability"):
                self._file.schema_arrow.field(column)
        except (pa.ArrowException, OSError, KeyError, ValueError, RecursionError) as error:
            raise CheckpointError(f"masks: {path} is not a whole Parquet file of masks ({error}).") from error
        if not all(isinstance(key, str) for some in keys for key in some):
            raise CheckpointError(f"masks: {path} has rows without a key.")
        if len({key for some in keys for key in some}) != sum(map(len, keys)):
            raise CheckpointError(f"masks: {path} has a key that comes twice.")
        self._place = {key: (group, row) for group, some in enumerate(keys) for row, key in enumerate(some)}
        self._by_name: dict[str, list[str]] = {}
        for key in self._place:
            self._by_name.setdefault(PurePath(key).name, []).append(key)
        self._group: tuple[int, Any] = (-1, None)
        self._counts: dict[str, int] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Opened anew where it is unpickled, as in a DataLoader's worker."""
        return type(self), (self.path,)

    def __len__(self) -> int:
        """The number of photos."""
        return len(self._place)

    def __repr__(self) -> str:
        return f"MaskStore({str(self.path)!r}, {len(self)} photo{'s' * (len(self) != 1)})"

    def keys(self) -> list[str]:
        """The photos' keys, in the order of the file."""
        return list(self._place)

    def __getitem__(self, key: str | Path) -> MaskSet:
        """The masks of a photo, by its key; or where one path ends in the other and no other key's does.

        Raises:
            CheckpointError: No such photo, several of that name, or a damaged row.
        """
        group, row = self._place[self._find(key)]
        if self._group[0] != group:
            self._group = (group, self._read(group))
        table = self._group[1]

        def value(name: str) -> Any:  # a file of before has no ids
            return table.column(name)[row].as_py() if name in table.column_names else None

        try:
            size = (value("height"), value("width"))
            masks = [{"size": size, "counts": counts} for counts in value("counts")]
            scores, stability = (np.array(value(name), np.float32) for name in ("scores", "stability"))
            more: dict[str, Any] = {
                name: np.array(found, np.int64) for name in ("ids", "categories") if (found := value(name)) is not None
            }
            made = MaskSet.from_coco(masks, size=size, scores=scores, stability=stability)
            if any(found.shape != (len(made),) for found in more.values()):
                raise ValueRangeError("there must be as many ids and categories as masks.")
        except (ValueError, TypeError, OverflowError) as error:
            raise CheckpointError(f"masks of {key} in {self.path}: {error}") from error
        return replace(made, **more)

    def _read(self, group: int, columns: list[str] | None = None) -> Any:
        """A group of rows.

        Raises:
            CheckpointError: It is damaged.
        """
        pa, _ = _pyarrow()
        try:
            return self._file.read_row_group(group, columns=columns)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CheckpointError(f"masks: {self.path} is damaged ({error}).") from error

    def count(self, key: str | Path) -> int:
        """The number of a photo's masks, found as in ``store[key]`` but without reading them.

        Raises:
            CheckpointError: No such photo, or several of that name.
        """
        if self._counts is None:
            columns = (
                self._read(group, ["scores"]).column("scores").to_pylist() for group in range(self._file.num_row_groups)
            )
            self._counts = dict(
                zip(self._place, (len(scores or ()) for some in columns for scores in some), strict=True)
            )
        return self._counts[self._find(key)]

    def _find(self, key: str | Path) -> str:
        """The key in the file."""
        text = PurePath(key).as_posix()
        if text not in self._place:
            same = [one for one in self._by_name.get(PurePath(key).name, []) if _one_ends_the_other(one, text)]
            if len(same) != 1:
                why = f"has {len(same)} photos of that name: {', '.join(same[:3])}" if same else "has no such photo"
                raise CheckpointError(f"masks of {key}: {self.path} {why}.")
            return same[0]
        return text


def _check_counts(metadata: Any, size: int) -> None:
    """Refuse numbers of rows that a file of so many bytes cannot have, before memory is asked for them.

    What the metadata tells of columns is left alone: Arrow ends the process where some of that is damaged.

    Raises:
        ValueRangeError: Such a number.
    """
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if sum(rows) != metadata.num_rows or min([*rows, 0]) < 0 or max([*rows, 0]) > size:
        raise ValueRangeError("its numbers of rows are damaged")


def _one_ends_the_other(key: str, path: str) -> bool:
    """Whether a path is the other's end, folder by folder: two photos of one name in different folders are not."""
    short, long = sorted((PurePath(key).parts, PurePath(path).parts), key=len)
    return long[len(long) - len(short) :] == short


def _pyarrow() -> tuple[Any, Any]:
    return require("pyarrow", extra="masks"), require("pyarrow.parquet", extra="masks", distribution="pyarrow")
