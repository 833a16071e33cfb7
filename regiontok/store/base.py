"""Read a store as a mapping from keys to values; `MaskStore` and `TokenStore` convert the rows."""

import os
import threading
import warnings
from abc import abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import PurePath
from typing import Any, ClassVar, TypeVar

import numpy as np
from torch.utils.data import Dataset

from regiontok.errors import DTypeError, MissingKeyError, StoreError, ValueRangeError
from regiontok.store.failures import Failure, read_failures
from regiontok.store.keys import as_key
from regiontok.store.manifest import MANIFEST_NAME, read_manifest
from regiontok.store.records import ShardRows, read_records, read_shard
from regiontok.store.shards import damage_errors, list_shards, open_shard, pyarrow
from regiontok.store.stamps import Stamp, read_stamps
from regiontok.store.storage import Address, Storage

_T = TypeVar("_T")
_MAX_OPEN_SHARDS = 32
_MAX_CACHED_GROUPS = 4
_NUM_OPENERS = 8
"""Threads that read footers: requests to a remote filesystem are slow but can run in parallel."""


class Store(Mapping[str, _T]):
    """A mapping from keys to values, in the order of the shards; see `MaskStore` and `TokenStore`."""

    kind: ClassVar[str]
    count_column: ClassVar[str]
    """The smallest column with one list entry per mask or token."""

    def __init__(self, path: Address, *, shards: slice | Sequence[str] | None = None) -> None:
        pyarrow()
        self.path = os.fspath(path)
        self.shards: list[str] = []
        self.damaged: dict[str, str] = {}
        self._selection = shards
        self._storage = Storage.of(self.path)
        manifest = read_manifest(self._storage)
        if manifest is None:
            command = "masks IMAGE... --out" if self.kind == "masks" else "tokenize IMAGE... --store"
            raise StoreError(
                f"there is no store of {self.kind} in {self.path}: it has no {MANIFEST_NAME}. Create one with "
                f"regiontok {command} {self.path}"
            )
        if manifest.kind != self.kind:
            raise StoreError(f"{self.path} must be a store of {self.kind}; it is a store of {manifest.kind}.")
        self.manifest = manifest
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._files: OrderedDict[int, Any] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._counts: np.ndarray | None = None
        self._read_keys(self._select([shard.name for shard in list_shards(self._storage, "part")], shards))
        for reason in self.damaged.values():
            warnings.warn(f"a damaged shard is ignored: {reason}", stacklevel=2)

    def _select(self, names: list[str], selection: slice | Sequence[str] | None) -> list[str]:
        """Return the names of the selected shards."""
        if selection is None:
            return names
        if isinstance(selection, slice):
            return names[selection]
        if isinstance(selection, str | bytes) or not isinstance(selection, Iterable):
            raise DTypeError(f"shards must be a slice or a list of names, such as {names[:1]}; got {selection!r}.")
        selected = list(selection)
        unknown = [name for name in selected if name not in names]
        if unknown:
            raise ValueRangeError(
                f"{self.path} has no shard {unknown[0]!r}; it has {len(names)}, such as {', '.join(names[:2])}."
            )
        return [name for name in names if name in set(selected)]

    def _read_keys(self, names: list[str]) -> None:
        """Read the keys of all shards, and collect the damaged shards."""
        records = read_records(self._storage)

        def read(name: str) -> ShardRows | StoreError:
            try:
                return read_shard(self._storage, name, self.manifest, records)
            except StoreError as error:
                return error

        with ThreadPoolExecutor(_NUM_OPENERS) as pool:
            results = dict(zip(names, pool.map(read, names), strict=True))
        self.damaged = {name: str(error) for name, error in results.items() if isinstance(error, StoreError)}
        shards = {name: rows for name, rows in results.items() if isinstance(rows, ShardRows)}
        self.shards = list(shards)
        self._ends = [rows.ends for rows in shards.values()]
        self._starts = np.cumsum([0, *(len(rows.keys) for rows in shards.values())])
        self._rows = _number_rows(list(shards.values()), self._starts.tolist())
        self.repeated = int(self._starts[-1]) - len(self._rows)

    @property
    def provenance(self) -> dict[str, Any]:
        """How the rows were made, as JSON values."""
        return self.manifest.provenance

    @property
    def failures(self) -> dict[str, str]:
        """The reasons of failed images that have no row, by key; damaged failure tables are ignored."""
        return {failure.key: failure.reason for failure in self._failures()}

    @property
    def failure_kinds(self) -> dict[str, int]:
        """The number of failed images without a row for each kind of `regiontok.errors.failure_kind`."""
        return dict(Counter(failure.kind for failure in self._failures()).most_common())

    def _failures(self) -> list[Failure]:
        failures = read_failures(self._storage).by_key.values()
        return [failure for failure in failures if failure.key not in self._rows]

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the store again when it is unpickled, as in a spawned worker."""
        return _open, (type(self), self.path, self._selection)

    def __repr__(self) -> str:
        shards = f", {len(self.shards)} shards" if len(self.shards) != 1 else ""
        damaged = f", {len(self.damaged)} damaged" if self.damaged else ""
        return f"{type(self).__name__}({self.path!r}, {len(self)} image{'s' * (len(self) != 1)}{shards}{damaged})"

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __contains__(self, key: object) -> bool:
        return (as_key(key) if isinstance(key, PurePath) else key) in self._rows

    def __getitem__(self, key: str | PurePath) -> _T:
        """Return the masks or tokens of an image.

        Raises:
            MissingKeyError: The store has no such key.
            StoreError: The row or its shard is damaged.
        """
        table, row = self._read_row(as_key(key))
        try:
            return self._value(table, row)
        except damage_errors() as error:
            raise StoreError(f"{self.kind} of {key} in {self.path} are damaged: {error}") from error

    @abstractmethod
    def _value(self, table: Any, row: int) -> _T:
        """Convert a row of a table to masks or tokens."""

    def count(self, key: str | PurePath) -> int:
        """Return the number of masks or tokens of an image without reading them.

        Raises:
            MissingKeyError: The store has no such key.
            StoreError: A shard is damaged.
        """
        shard, row = self._locate(as_key(key))
        if self._counts is None:
            counts = [self._read_counts(number) for number in range(len(self.shards))]
            self._counts = np.concatenate([*counts, np.empty(0, np.int64)])
        return int(self._counts[self._starts[shard] + row])

    def stamp(self, key: str | PurePath) -> Stamp:
        """Return the size and modification time of the image file that the row was made from, as far as known.

        Raises:
            MissingKeyError: The store has no such key.
            StoreError: The shard is damaged.
        """
        table, row = self._read_row(as_key(key))
        return read_stamps(table.slice(row, 1))[0]

    def check(self, key: str | PurePath) -> None:
        """Read a row completely and check its values.

        Raises:
            MissingKeyError: The store has no such key.
            StoreError: The row is damaged.
        """
        self[key]

    def as_dataset(self) -> Dataset[dict[str, Any]]:
        """Return a map-style torch dataset with items ``{"key": ..., "masks": ...}``, or ``"tokens"``."""
        return _Rows(self)

    def _read_row(self, key: str) -> tuple[Any, int]:
        """Return the row group with the row of a key, and the index of the row in it."""
        shard, row = self._locate(key)
        group = int(np.searchsorted(self._ends[shard], row, side="right"))
        with self._file_lock():
            table = self._read_group(shard, group)
        return table, row - (0 if group == 0 else int(self._ends[shard][group - 1]))

    def _locate(self, key: str) -> tuple[int, int]:
        """Return the shard of a key and the row in it."""
        row = self._rows.get(key)
        if row is None:
            failure = read_failures(self._storage).by_key.get(key)
            if failure is not None:
                hint = f" It failed: {failure.reason}"
            else:
                hint = f" Its keys look like {next(iter(self._rows))!r}." if self._rows else " It is empty."
            if self.damaged:
                hint += f" The key may be in one of its {len(self.damaged)} damaged shards."
            raise MissingKeyError(f"{self.path} has no {self.kind} of {key!r}.{hint}")
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return shard, row - int(self._starts[shard])

    def _read_counts(self, shard: int) -> np.ndarray:
        with self._file_lock():
            file = self._file(shard)
            with self._damage(shard):
                column = file.read([self.count_column], use_threads=False).column(0).combine_chunks()
                lengths: np.ndarray = column.value_lengths().fill_null(0).to_numpy()
                return lengths

    def _read_group(self, shard: int, group: int) -> Any:
        """Return a row group; the groups that were read last are cached."""
        table = self._groups.get((shard, group))
        if table is None:
            file = self._file(shard)
            with self._damage(shard):
                table = file.read_row_group(group, use_threads=False).combine_chunks()
            self._groups[shard, group] = table
            if len(self._groups) > _MAX_CACHED_GROUPS:
                self._groups.popitem(last=False)
        return table

    def _file(self, shard: int) -> Any:
        if shard not in self._files:
            self._files[shard] = open_shard(self._storage, self.shards[shard])
            if len(self._files) > _MAX_OPEN_SHARDS:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(shard)
        return self._files[shard]

    def _file_lock(self) -> threading.Lock:
        """Return the lock of the open files: a Parquet file is not thread-safe.

        In a forked process the files are opened again, and the lock is replaced because a thread may have held it.
        """
        if self._process != os.getpid():
            self._lock = threading.Lock()
            self._files = OrderedDict()
            self._process = os.getpid()
        return self._lock

    @contextmanager
    def _damage(self, shard: int) -> Iterator[None]:
        try:
            yield
        except damage_errors() as error:
            raise StoreError(f"{self._storage.address}/{self.shards[shard]} is damaged ({error}).") from error


class _Rows(Dataset[dict[str, Any]]):
    """A store as a map-style dataset."""

    def __init__(self, store: Store[Any]) -> None:
        self.store = store
        self.keys = list(store)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        key = self.keys[index]
        return {"key": key, self.store.kind: self.store[key]}


def _number_rows(shards: Sequence[ShardRows], starts: Sequence[int]) -> dict[str, int]:
    """Return the row of each key, in the order of the shards.

    If a key is repeated, the row of the highest generation is used, and among these the row in the last shard.
    """
    rows: dict[str, int] = {}
    numbered = [(shard, range(start, end)) for shard, (start, end) in zip(shards, pairwise(starts), strict=True)]
    for shard, numbers in numbered:
        rows.update(zip(shard.keys, numbers, strict=True))
    if len(rows) < starts[-1]:
        latest: dict[str, int] = {}
        for shard, numbers in sorted(numbered, key=lambda pair: pair[0].generation):
            latest.update(zip(shard.keys, numbers, strict=True))
        rows = {key: latest[key] for key in rows}
    return rows


def _open(kind: type[Store[Any]], path: str, shards: slice | Sequence[str] | None) -> Store[Any]:
    return kind(path, shards=shards)
