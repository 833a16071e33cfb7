"""A store as a mapping from keys to what it holds; `MaskStore` and `TokenStore` say how a row is read."""

import os
import threading
import warnings
from abc import abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath
from typing import Any, ClassVar, TypeVar

import numpy as np
from torch.utils.data import Dataset

from regiontok.errors import DTypeError, MissingKeyError, StoreError, ValueRangeError
from regiontok.store.failures import read_failures
from regiontok.store.keys import as_key
from regiontok.store.manifest import NAME, Manifest, read_manifest
from regiontok.store.places import Address, Place
from regiontok.store.records import ShardRows, read_records, read_shard
from regiontok.store.shards import damage, open_shard, pyarrow, shards_of
from regiontok.store.stamps import Stamp, read_stamps

_T = TypeVar("_T")
_OPEN_FILES = 32
_KEPT_GROUPS = 4
_OPENERS = 8
"""Threads that read footers: a remote filesystem answers slowly, and many at once."""


class Store(Mapping[str, _T]):
    """Rows by key, in the order of the shards; see `MaskStore` and `TokenStore`."""

    kind: ClassVar[str]
    counted: ClassVar[str]
    """The cheapest column of lists with an entry per mask or token."""

    def __init__(self, path: Address, *, shards: slice | Sequence[str] | None = None) -> None:
        pyarrow()
        self.path = os.fspath(path)
        self.shards: list[str] = []
        self.damaged: dict[str, str] = {}
        self._slice = shards
        self._start(self._open(shards))

    def _open(self, chosen: slice | Sequence[str] | None) -> list[str]:
        """Find the shards and the manifest."""
        self._place = Place.of(self.path)
        if self._place.is_file():  # the form of before: one file
            whole = PurePath(self.path)
            self._place = Place.of(whole.parent)
            self.manifest = self._manifest_of_file(whole.name)
            return [whole.name]
        found = read_manifest(self._place)
        if found is None:
            raise StoreError(
                f"there is no store of {self.kind} in {self.path}: it has no {NAME}. Make one with regiontok "
                f"{'masks IMAGE... --out' if self.kind == 'masks' else 'tokenize IMAGE... --store'} {self.path}"
            )
        if found.kind != self.kind:
            raise StoreError(f"{self.path} is a store of {found.kind}, and one of {self.kind} is wanted here.")
        self.manifest = found
        return self._choose([shard.name for shard in shards_of(self._place, "part")], chosen)

    def _choose(self, names: list[str], chosen: slice | Sequence[str] | None) -> list[str]:
        """Return the chosen ones of the store's shards."""
        if chosen is None:
            return names
        if isinstance(chosen, slice):
            return names[chosen]
        if isinstance(chosen, str | bytes) or not isinstance(chosen, Iterable):
            raise DTypeError(f"shards must be a slice or a list of names, such as {names[:1]}; got {chosen!r}.")
        chosen = list(chosen)
        unknown = [name for name in chosen if name not in names]
        if unknown:
            raise ValueRangeError(
                f"{self.path} has no shard {unknown[0]!r}; it has {len(names)}, such as {', '.join(names[:2])}."
            )
        return [name for name in names if name in set(chosen)]

    @abstractmethod
    def _manifest_of_file(self, name: str) -> Manifest:
        """How the rows of a single file were made."""

    def _start(self, names: list[str]) -> None:
        """Read the keys of all shards; shards that are damaged or not of this store are named, and the others read."""
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._files: OrderedDict[int, Any] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._counts: np.ndarray | None = None
        starts: list[int] = []
        self._ends: list[np.ndarray] = []
        shards: list[ShardRows] = []
        total = 0
        for name, rows in zip(names, self._read_all(names), strict=True):
            if isinstance(rows, StoreError):
                self.damaged[name] = str(rows)
                continue
            shards.append(rows)
            self.shards.append(name)
            starts.append(total)
            self._ends.append(rows.ends)
            total += len(rows.keys)
        self._starts = np.array([*starts, total], np.int64)
        self._rows = _number_rows(shards, starts)
        self.repeated = total - len(self._rows)
        if self.damaged and not self.shards and not os.path.isdir(self.path) and len(names) == 1:  # noqa: PTH112
            raise StoreError(next(iter(self.damaged.values())))
        for why in self.damaged.values():
            warnings.warn(f"a shard is damaged and left out: {why}", stacklevel=4)

    def _read_all(self, names: list[str]) -> Iterator[ShardRows | StoreError]:
        records = read_records(self._place) if self._place.address == Place.of(self.path).address else []

        def read(name: str) -> ShardRows | StoreError:
            try:
                return read_shard(self._place, name, self.manifest, records)
            except StoreError as error:
                return error

        if len(names) < 2:
            return iter([read(name) for name in names])
        with ThreadPoolExecutor(_OPENERS) as pool:
            return iter(list(pool.map(read, names)))

    @property
    def made_by(self) -> dict[str, Any]:
        """How the rows were made."""
        return self.manifest.made_by

    @property
    def failures(self) -> dict[str, str]:
        """Images that are not in the store since they failed, and why; a damaged table of them tells nothing."""
        found = read_failures(self._place).by_key.values()
        return {failure.key: failure.reason for failure in found if failure.key not in self._rows}

    @property
    def failure_kinds(self) -> dict[str, int]:
        """How many images failed, by the kind of fault that `regiontok.errors.failure_kind` names."""
        found = read_failures(self._place).by_key.values()
        return dict(Counter(failure.kind for failure in found if failure.key not in self._rows).most_common())

    def __reduce__(self) -> tuple[Any, ...]:
        """Opened anew where it is unpickled, as in a spawned worker."""
        return _reopen, (type(self), self.path, self._slice)

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
        """What the store holds of an image.

        Raises:
            MissingKeyError: No such image.
            StoreError: A damaged row, or shard.
        """
        table, row = self._row(as_key(key))
        try:
            return self._value(table, row)
        except (ValueError, TypeError, OverflowError, KeyError, AttributeError, IndexError) as error:
            raise StoreError(f"{self.kind} of {key} in {self.path} are damaged: {error}") from error

    @abstractmethod
    def _value(self, table: Any, row: int) -> _T:
        """A row as what it stands for."""

    def count(self, key: str | PurePath) -> int:
        """How many masks or tokens an image has, without reading them.

        Raises:
            MissingKeyError: No such image.
            StoreError: A damaged shard.
        """
        shard, row = self._find(as_key(key))
        if self._counts is None:
            self._counts = self._joined(column.value_lengths() for column in self._column(self.counted))
        return int(self._counts[self._starts[shard] + row])

    def stamp(self, key: str | PurePath) -> Stamp:
        """The size in bytes and the modification time of the file that the row was made of, as far as they are known.

        Raises:
            MissingKeyError: No such image.
            StoreError: A damaged shard.
        """
        table, row = self._row(as_key(key))
        return read_stamps(table.slice(row, 1))[0]

    def check(self, key: str | PurePath) -> None:
        """Read a row in full, and check its values.

        Raises:
            MissingKeyError: No such image.
            StoreError: A damaged row.
        """
        self[key]

    def rows(self) -> Dataset[dict[str, Any]]:
        """The same as a torch dataset of ``{"key": ..., "masks" or "tokens": ...}``, by number."""
        return _Rows(self)

    def _row(self, key: str) -> tuple[Any, int]:
        """The group of rows that a key's is in, and its place there."""
        shard, row = self._find(key)
        group = int(np.searchsorted(self._ends[shard], row, side="right"))
        with self._alone():
            table = self._group(shard, group)
        return table, row - (0 if group == 0 else int(self._ends[shard][group - 1]))

    def _find(self, key: str) -> tuple[int, int]:
        """The shard of a key and its row there."""
        row = self._rows.get(key)
        if row is None:
            like = f" Its keys are such as {next(iter(self._rows))!r}." if self._rows else " It is empty."
            lost = f" {len(self.damaged)} of its shards are damaged and may have it." if self.damaged else ""
            raise MissingKeyError(f"{self.path} has no {self.kind} of {key!r}.{self._failure(key) or like}{lost}")
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return shard, row - int(self._starts[shard])

    def _failure(self, key: str) -> str:
        """Why an image failed, if the store tells."""
        failure = read_failures(self._place).by_key.get(key)
        return f" It failed: {failure.reason}" if failure else ""

    def _column(self, name: str) -> Iterator[Any]:
        """A column over all rows, a shard at a time."""
        pa, _ = pyarrow()
        for shard in range(len(self.shards)):
            with self._alone():
                try:
                    yield self._file(shard).read([name], use_threads=False).column(name).combine_chunks()
                except damage(pa) as error:
                    raise StoreError(f"{self._name(shard)} is damaged ({error}).") from error

    def _joined(self, lengths: Iterable[Any]) -> np.ndarray:
        """Numbers of all rows, a shard's at a time, as one array; null is 0."""
        return np.concatenate([*(one.fill_null(0).to_numpy() for one in lengths), np.empty(0, np.int64)])

    def _alone(self) -> threading.Lock:
        """A Parquet file is one thread's at a time; a forked process has files and a lock of its own."""
        if self._process != os.getpid():
            self._lock = threading.Lock()
            self._files = OrderedDict()
            self._process = os.getpid()
        return self._lock

    def _group(self, shard: int, group: int) -> Any:
        """A group of rows; the last ones that were read are kept."""
        pa, _ = pyarrow()
        known = self._groups.get((shard, group))
        if known is None:
            try:
                known = self._file(shard).read_row_group(group, use_threads=False).combine_chunks()
            except damage(pa) as error:
                raise StoreError(f"{self._name(shard)} is damaged ({error}).") from error
            self._groups[shard, group] = known
            if len(self._groups) > _KEPT_GROUPS:
                self._groups.popitem(last=False)
        return known

    def _file(self, shard: int) -> Any:
        """An open shard."""
        if shard not in self._files:
            self._files[shard] = open_shard(self._place, self.shards[shard])
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(shard)
        return self._files[shard]

    def _name(self, shard: int) -> str:
        return f"{self._place.address}/{self.shards[shard]}"


class _Rows(Dataset[dict[str, Any]]):
    """A store by number."""

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

    Of two rows of a key the one of the later generation counts, or else the one in the later shard.
    """
    rows: dict[str, int] = {}
    numbered = [(shard, range(start, start + len(shard.keys))) for shard, start in zip(shards, starts, strict=True)]
    for shard, numbers in numbered:
        rows.update(zip(shard.keys, numbers, strict=True))
    if len(rows) < sum(len(shard.keys) for shard in shards):
        latest: dict[str, int] = {}
        for shard, numbers in sorted(numbered, key=lambda pair: pair[0].generation):
            latest.update(zip(shard.keys, numbers, strict=True))
        rows = {key: latest[key] for key in rows}
    return rows


def _reopen(kind: type[Store[Any]], path: str, shards: slice | Sequence[str] | None) -> Store[Any]:
    return kind(path, shards=shards)
