"""Write stores: rows are collected into shards, and a shard gets its name only when it is complete."""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from regiontok._values import check_integer
from regiontok.errors import DTypeError, OutputError, StoreError, ValueRangeError
from regiontok.store.failures import Failure, failures_table, read_failures
from regiontok.store.keys import check_key, printable
from regiontok.store.locks import writer_lock
from regiontok.store.manifest import MANIFEST_NAME, Manifest, read_manifest
from regiontok.store.records import (
    GENERATION,
    Record,
    ShardRows,
    is_record,
    layout_of,
    read_records,
    read_shard,
    write_record,
)
from regiontok.store.shards import Shard, list_shards, pyarrow, shard_name
from regiontok.store.stamps import Stamp
from regiontok.store.storage import Address, Storage, is_remote

_GROUP_BYTES = 1 << 20
"""Bytes of rows that are compressed and read together: reading one row costs as much as reading its whole group."""


class StoreWriter:
    """Add rows to a store, as a context manager.

    Args:
        path: A local folder, or a remote address such as ``s3://bucket/masks``; created if it does not exist.
        manifest: The kind and provenance of the rows.
        writer: The number of this writer; writers of the same store must have different numbers.
        shared: Allow other writers at the same time. If False, a second writer is an error.
        shard_size: Maximum number of rows and failures in a shard.
        shard_minutes: Approximate maximum age of an incomplete shard in minutes; None for no limit.
        mixed: Allow rows of another provenance than that of the store.
        overwrite: Remove existing rows first.
        locked: Acquire the writer lock. Set to False if the caller already holds it.
        generation: The generation of the rows. If a key is repeated, the row of the highest generation is used.

    Raises:
        OutputError: The folder is not writable, is a file, or is locked by another writer.
        StoreError: The store is damaged, or has another kind or provenance; the message lists the differences.
        MissingDependencyError: pyarrow is not installed.
    """

    def __init__(
        self,
        path: Address,
        manifest: Manifest,
        *,
        writer: int = 0,
        shared: bool = False,
        shard_size: int = 1000,
        shard_minutes: float | None = 5,
        mixed: bool = False,
        overwrite: bool = False,
        locked: bool = True,
        generation: int = 0,
    ) -> None:
        check_integer("shard_size", shard_size)
        check_integer("writer", writer, minimum=0)
        if shard_minutes is not None and not shard_minutes > 0:
            raise ValueRangeError(f"shard_minutes must be positive; got {shard_minutes}.")
        pyarrow()
        self.storage = Storage.of(path)
        self.manifest = manifest
        self.writer = writer
        self.shard_size = shard_size
        self.shard_minutes = shard_minutes
        self.mixed = mixed
        self.generation = generation
        self.rows = self.failed = 0
        self._shard = _OpenShard(self)
        self._stack = ExitStack()
        check_store(path, manifest, mixed=mixed, overwrite=overwrite)
        self.storage.make()
        try:
            if locked and not is_remote(path):
                self._stack.enter_context(writer_lock(Path(self.storage.address), writer, shared=shared))
            if overwrite:
                self._clear()
            if read_manifest(self.storage) is None:
                manifest.write(self.storage, writer=writer)
            check_store(path, manifest, mixed=mixed)  # another writer may have created the store in the meantime
            self.storage.clean(writer)
            numbers = [shard.number for shard in list_shards(self.storage, writer=writer)]
            self._number = 1 + max(numbers, default=-1)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            if kind is None:
                self.flush()
            else:
                with suppress(OutputError):  # the collected rows are valid, but the first error must be raised
                    self.flush()
        finally:
            self._shard.discard()
            self._stack.close()

    def write(self, table: Any) -> None:
        """Add a table of rows; a shard that is full or old enough is written."""
        if not len(table):
            return
        self._shard.add(table)
        self.rows += len(table)
        self._flush_if_due()

    def add_failure(self, key: str, reason: str, kind: str = "internal") -> None:
        """Add a failed image with the reason, and the kind of error as a stable word."""
        self._shard.add_failure(Failure(printable(key), printable(reason), kind))
        self.failed += 1
        self._flush_if_due()

    def _flush_if_due(self) -> None:
        shard = self._shard
        minutes = (time.monotonic() - shard.started) / 60 if shard.started else 0
        is_old = self.shard_minutes is not None and minutes > self.shard_minutes
        if is_old or len(shard.keys) + len(shard.failures) >= self.shard_size:
            self.flush()

    def flush(self) -> None:
        """Write the current shard if it has rows or failures.

        Raises:
            OutputError: The shard cannot be written. Its rows are lost, but earlier shards are complete.
            StoreError: The store has rows with the same provenance but another dimension or dtype.
        """
        shard, self._shard = self._shard, _OpenShard(self)
        try:
            shard.finish()
        finally:
            shard.discard()
        self._number += bool(shard.failures or shard.keys)

    def _clear(self) -> None:
        """Remove all rows, and the manifest last, so that an interrupted removal still leaves a store."""
        shards = [shard.name for shard in list_shards(self.storage)]
        for name in [*shards, *filter(is_record, self.storage.names()), MANIFEST_NAME]:
            self.storage.remove(name)


class _OpenShard:
    """The rows and failures of a shard that is not complete yet."""

    def __init__(self, store: StoreWriter) -> None:
        self.keys: set[str] = set()
        self.failures: dict[str, Failure] = {}
        self.started: float | None = None
        self._store = store
        self._tables: list[Any] = []
        self._bytes = 0.0
        self._stack = ExitStack()
        self._writer: Any = None
        self._sink: Any = None
        self._temporary: Path | None = None

    def add(self, table: Any) -> None:
        for key in table.column("key").to_pylist():
            check_key(key)
            if key in self.keys:
                raise ValueRangeError(f"{self._store.manifest.kind} of {key} are repeated; every key must be unique.")
            self.keys.add(key)
        self.started = self.started or time.monotonic()
        row_bytes = max(1, table.nbytes) / len(table)
        step = max(1, int(_GROUP_BYTES / row_bytes))
        for start in range(0, len(table), step):
            self._tables.append(table.slice(start, step))
            self._bytes += row_bytes * len(self._tables[-1])
            if self._bytes >= _GROUP_BYTES:
                self._write_group()

    def add_failure(self, failure: Failure) -> None:
        self.failures[failure.key] = failure
        self.started = self.started or time.monotonic()

    def finish(self) -> None:
        """Write the failures, then the remaining rows, and give both files their names."""
        _, pq = pyarrow()
        storage = self._store.storage
        if self.failures:
            with storage.temporary(name := self._name("failed")) as temporary:
                with self._write_errors(name):
                    table = failures_table(list(self.failures.values()))
                    pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
                storage.commit(temporary, name)
        if self._tables:
            self._write_group()
        if self._temporary is not None:
            with self._write_errors(name := self._name("part")):
                self._writer.close()
                self._sink.close()
            storage.commit(self._temporary, name)

    def discard(self) -> None:
        """Close and remove the temporary file if there is one."""
        if self._writer is not None:
            for resource in (self._writer, self._sink):
                with suppress(OSError, ValueError):  # such as a full disk, which has already raised an error
                    resource.close()
        self._stack.close()

    def _write_group(self) -> None:
        """Write the rows in memory as a row group."""
        pa, _ = pyarrow()
        with self._write_errors(self._name("part")):
            if self._writer is None:
                self._open(self._tables[0].schema)
            group = pa.concat_tables(self._tables).combine_chunks()
            self._writer.write_table(group, row_group_size=len(group))
        self._tables, self._bytes = [], 0.0

    def _open(self, schema: Any) -> None:
        """Write the record of the shard, and create its temporary file."""
        pa, pq = pyarrow()
        store, kind = self._store, self._store.manifest.kind
        provenance = json.dumps(store.manifest.provenance)
        record = Record(json.loads(provenance), layout_of(schema, kind))
        write_record(store.storage, record, writer=store.writer, mixed=store.mixed)
        metadata: dict[str | bytes, str] = {"regiontok": version("regiontok"), kind: provenance}
        if store.generation:
            metadata[GENERATION] = str(store.generation)
        self._temporary = self._stack.enter_context(store.storage.temporary(self._name("part")))
        self._sink = pa.OSFile(str(self._temporary), "wb")  # not a path, so that it can be closed on a full disk
        self._writer = pq.ParquetWriter(
            self._sink,
            schema.with_metadata(metadata),
            compression="zstd",
            use_dictionary=False,  # keys and RLEs differ in every row
            write_statistics=False,
            write_page_checksum=True,
        )

    def _name(self, kind: str) -> str:
        return shard_name(kind, self._store.writer, self._store._number)

    @contextmanager
    def _write_errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self._store.storage.address}/{name} cannot be written ({error}).") from error


def write_pairs(
    path: Address,
    kind: str,
    pairs: Any,
    as_table: Callable[[str, Any], Any],
    *,
    provenance: dict[str, Any] | None,
    overwrite: bool,
    shard_size: int,
) -> int:
    """Add pairs of keys and values to a store; see `write_masks` and `write_tokens`.

    Args:
        path: The folder of the store.
        kind: ``masks`` or ``tokens``.
        pairs: Pairs of a key and a value, or a mapping. They are read one at a time.
        as_table: A function that returns a key and its value as a table with one row.
        provenance: How the values were made.
        overwrite: Remove existing rows first.
        shard_size: Maximum number of rows in a shard.

    Returns:
        The number of rows.
    """
    if isinstance(pairs, Mapping):
        pairs = pairs.items()
    if not isinstance(pairs, Iterable):
        raise DTypeError(f"{kind} must be pairs of a key and its {kind}; got {type(pairs).__name__}.")
    checked = (_check_pair(pair, kind) for pair in pairs)
    first = list(itertools.islice(checked, 1))  # an invalid first pair raises before the store is changed
    manifest = Manifest(kind=kind, provenance=provenance or {})
    with StoreWriter(path, manifest, overwrite=overwrite, shard_size=shard_size, shard_minutes=None) as writer:
        keys = set(read_contents(path).keys)
        for key, value in itertools.chain(first, checked):
            if key in keys:
                raise ValueRangeError(f"{kind} of {key} are already in the store; every key must be unique.")
            keys.add(key)
            writer.write(as_table(key, value))
        return writer.rows


def _check_pair(pair: Any, kind: str) -> tuple[str, Any]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise DTypeError(f"{kind} must be pairs of a key and its {kind}; got {type(pair).__name__}.")
    return check_key(pair[0]), pair[1]


def check_store(path: Address, manifest: Manifest, *, mixed: bool = False, overwrite: bool = False) -> None:
    """Check before the work that rows with this manifest can be written to a location.

    Raises:
        OutputError: The location is a file, or a folder with files that do not belong to a store.
        StoreError: The store is damaged, or has another kind or provenance; the message lists the differences.
    """
    existing = check_location(path, overwrite=overwrite)
    if existing is not None:
        existing.check_compatible(manifest, os.fspath(path), mixed=mixed or overwrite)


def check_location(path: Address, *, overwrite: bool = False) -> Manifest | None:
    """Check that a location is a store or can become one, and return the manifest of an existing store.

    Args:
        path: The folder of the store.
        overwrite: Allow a missing or damaged manifest, because the store will be replaced.

    Raises:
        OutputError: The location is a file, or a folder with files that do not belong to a store.
        StoreError: The manifest of the store is missing or damaged.
    """
    storage = Storage.of(path)
    if storage.is_file():
        raise OutputError(f"{storage.address} is a file, but a store is a folder. Name another, or remove the file.")
    try:
        manifest = read_manifest(storage)
    except StoreError:
        if not overwrite:
            raise
        manifest = None
    if manifest is not None:
        return manifest
    names = [name for name in storage.names() if name != MANIFEST_NAME]
    has_shards = any(Shard.parse(name) for name in names)
    # another writer may have created the manifest and the shards after the manifest was read above
    if has_shards and not overwrite and read_manifest(storage) is None:
        raise StoreError(
            f"{storage.address} has shards but no {MANIFEST_NAME}, which describes how they were made. Restore it, or "
            "replace the store with --overwrite."
        )
    for name in names:
        if Shard.parse(name) is None and not is_record(name) and not name.endswith(".damaged"):
            raise OutputError(
                f"{storage.address} is not a store: it has other files, such as {name}. Name another folder."
            )
    return None


class StoreContents(NamedTuple):
    """Keys and failures of a store.

    Attributes:
        keys: The stamp of each image with a row.
        failures: Failed images without a row.
        damaged: The reason why a file is ignored, by name: it is damaged or does not belong to the store.
        generation: The highest generation of its shards.
    """

    keys: dict[str, Stamp]
    failures: dict[str, Failure]
    damaged: dict[str, str]
    generation: int


def read_contents(path: Address, *, writer: int | None = None) -> StoreContents:
    """Return the contents of a store, or those that one writer has written, without reading masks or tokens."""
    storage = Storage.of(path)
    manifest = read_manifest(storage)
    if manifest is None:
        return StoreContents({}, {}, {}, 0)
    records = read_records(storage)
    shards: list[ShardRows] = []
    damaged: dict[str, str] = {}
    for shard in list_shards(storage, "part", writer=writer):
        try:
            shards.append(read_shard(storage, shard.name, manifest, records, stamps=True))
        except StoreError as error:
            damaged[shard.name] = str(error)
    keys: dict[str, Stamp] = {}
    for rows in sorted(shards, key=lambda rows: rows.generation):
        keys.update(zip(rows.keys, rows.stamps, strict=True))
    failed = read_failures(storage, writer=writer)
    damaged |= {name: f"{storage.address}/{name} is damaged." for name in failed.damaged}
    failures = {key: failure for key, failure in failed.by_key.items() if key not in keys}
    return StoreContents(keys, failures, damaged, max((rows.generation for rows in shards), default=0))
