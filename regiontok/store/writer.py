"""Writing a store: rows gather in a shard, which appears under its name only when it is whole."""

import json
import os
import time
from contextlib import ExitStack, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from regiontok._checks import check_integer
from regiontok.errors import OutputError, StoreError, ValueRangeError
from regiontok.store.failures import Failure, failures_table, read_failures
from regiontok.store.keys import check_key, printable
from regiontok.store.locks import writing
from regiontok.store.manifest import NAME, Manifest, read_manifest
from regiontok.store.places import Address, Place, is_remote
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
from regiontok.store.shards import Shard, pyarrow, shard_name, shards_of
from regiontok.store.stamps import Stamp

_GROUP_BYTES = 1 << 20
"""Of rows that are compressed together and read together: one row costs as much as all of its group."""


class StoreWriter:
    """Write rows to a store, as a context; what was written before stays.

    Args:
        path: A folder on a disk, or an address of fsspec such as ``s3://bucket/masks``; made where it is not there.
        manifest: What the rows are and how they are made.
        writer: A number of its own for each of several writers of one store.
        shared: Whether these write at the same time; else a second one is refused.
        shard_size: Rows of a shard, at most.
        shard_minutes: Minutes that a shard gathers rows, about, at most; None is no limit.
        mixed: Take rows that were made by other options than those of the store.
        overwrite: Remove what the store has, first.
        locked: Acquire the writer's lock. Set to False if the caller already holds it.
        generation: Of two rows of a key the one of the higher generation counts; ``keys_in`` returns the highest.

    Raises:
        OutputError: A place that cannot be written to, a file in its place, or another writer.
        ValueRangeError: A store of other options; the differences are named.
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
        self.place = Place.of(path)
        self.manifest = manifest
        self.writer = writer
        self.shard_size = shard_size
        self.shard_minutes = shard_minutes
        self.mixed = mixed
        self.generation = generation
        self.rows = self.failed = 0
        self._in_hand = _InHand()
        self._stack = ExitStack()
        check_store(path, manifest, mixed=mixed, overwrite=overwrite)
        self.place.make()
        try:
            if locked and not is_remote(path):
                self._stack.enter_context(writing(Path(self.place.address), writer, shared=shared))
            if overwrite:
                self._clear()
            if read_manifest(self.place) is None:
                manifest.write(self.place)
            check_store(path, manifest, mixed=mixed)  # once more, since another may have made it meanwhile
            for kind in ("part", "failed"):
                self.place.clean(f"{kind}-{writer:05d}-")
            mine = [
                shard for kind in ("part", "failed") for shard in shards_of(self.place, kind) if shard.writer == writer
            ]
            self._number = 1 + max((shard.number for shard in mine), default=-1)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            if kind is None:
                self.cut()
            else:
                with suppress(OutputError):  # rows in hand are whole, whatever ended the rest
                    self.cut()
        finally:
            self._in_hand.drop()
            self._stack.close()

    def write(self, table: Any) -> None:
        """Add rows, a table of the store's columns; the shard is cut when it is full or old."""
        if not len(table):
            return
        self._in_hand.add(self, table)
        self.rows += len(table)
        self._cut_if_due()

    def fail(self, key: str, reason: str, kind: str = "internal") -> None:
        """Add an image to the table of failures, with why it failed and the kind of fault as a stable word."""
        self._in_hand.failures[printable(key)] = Failure(printable(key), printable(reason), kind)
        self._in_hand.started = self._in_hand.started or time.monotonic()
        self.failed += 1
        self._cut_if_due()

    def _cut_if_due(self) -> None:
        hand = self._in_hand
        minutes = (time.monotonic() - hand.started) / 60 if hand.started else 0
        old = self.shard_minutes is not None and minutes > self.shard_minutes
        if old or len(hand.keys) + len(hand.failures) >= self.shard_size:
            self.cut()

    def cut(self) -> None:
        """Finish the shard in hand, if it has any rows or failures.

        Raises:
            OutputError: It cannot be written; the rows in hand are lost, and all before are kept.
        """
        hand, self._in_hand = self._in_hand, _InHand()
        try:
            if hand.failures:
                self._write_failures(hand.failures)
            hand.finish(self, shard_name("part", self.writer, self._number))
        finally:
            hand.drop()
        self._number += bool(hand.failures or hand.keys)

    def _write_failures(self, failures: dict[str, Failure]) -> None:
        _, pq = pyarrow()
        table = failures_table(list(failures.values()))
        name = shard_name("failed", self.writer, self._number)
        with self.place.temporary(name) as temporary:
            try:
                pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
            except OSError as error:
                raise OutputError(f"{self.place.address}/{name} cannot be written ({error}).") from error
            self.place.take(temporary, name)

    def _clear(self) -> None:
        """Remove the rows of a store, its manifest last: what is left of it is still known for one."""
        for kind in ("part", "failed"):
            for shard in shards_of(self.place, kind):
                self.place.remove(shard.name)
        for name in filter(is_record, self.place.names()):
            self.place.remove(name)
        self.place.remove(NAME)


class _InHand:
    """The rows of a shard that is not finished."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.failures: dict[str, Failure] = {}
        self.started: float | None = None
        self._tables: list[Any] = []
        self._bytes = 0
        self._stack = ExitStack()
        self._writer: Any = None
        self._sink: Any = None
        self._temporary: Path | None = None

    def add(self, store: StoreWriter, table: Any) -> None:
        keys = table.column("key").to_pylist()
        for key in keys:
            check_key(key)
            if key in self.keys:
                raise ValueRangeError(f"{store.manifest.kind} of {key} come twice; every image needs a key of its own.")
            self.keys.add(key)
        self.started = self.started or time.monotonic()
        for start in range(0, len(table), step := max(1, int(_GROUP_BYTES * len(table) / max(1, table.nbytes)))):
            part = table.slice(start, step)
            self._tables.append(part)
            self._bytes += part.nbytes
            if self._bytes >= _GROUP_BYTES:
                self._flush(store)

    def _flush(self, store: StoreWriter) -> None:
        """Write the rows in memory as a group."""
        pa, pq = pyarrow()
        if not self._tables:
            return
        try:
            if self._writer is None:
                kind, made_by = store.manifest.kind, store.manifest.made_by
                metadata: dict[str | bytes, str] = {"regiontok": version("regiontok"), kind: json.dumps(made_by)}
                if store.generation:
                    metadata[GENERATION] = str(store.generation)
                schema = self._tables[0].schema.with_metadata(metadata)
                write_record(
                    store.place,
                    Record(json.loads(json.dumps(made_by)), layout_of(schema, kind)),
                    writer=store.writer,
                    mixed=store.mixed,
                )
                name = shard_name("part", store.writer, store._number)
                self._temporary = self._stack.enter_context(store.place.temporary(name))
                self._sink = pa.OSFile(str(self._temporary), "wb")  # ours to close, also on a full disk
                self._writer = pq.ParquetWriter(
                    self._sink,
                    schema,
                    compression="zstd",
                    use_dictionary=False,  # keys and RLE differ in every row
                    write_statistics=False,
                    write_page_checksum=True,
                )
            group = pa.concat_tables(self._tables).combine_chunks()
            self._writer.write_table(group, row_group_size=len(group))
        except OSError as error:
            raise OutputError(f"{store.place.address}: a shard cannot be written ({error}).") from error
        self._tables, self._bytes = [], 0

    def finish(self, store: StoreWriter, name: str) -> None:
        """Give the shard its name."""
        self._flush(store)
        if self._writer is None or self._temporary is None:
            return
        try:
            self._writer.close()
            self._sink.close()
        except OSError as error:
            raise OutputError(f"{store.place.address}/{name} cannot be written ({error}).") from error
        store.place.take(self._temporary, name)

    def drop(self) -> None:
        """Remove what is not finished."""
        if self._writer is not None:
            for one in (self._writer, self._sink):
                with suppress(OSError, ValueError):  # on a full disk, say, which has been told
                    one.close()
        self._stack.close()


def check_store(path: Address, manifest: Manifest, *, mixed: bool = False, overwrite: bool = False) -> None:
    """Refuse a place where rows of this manifest cannot go, before any work.

    Raises:
        OutputError: A file, or a folder of other things.
        ValueRangeError: A store of other rows; the differences are named.
    """
    found = check_place(path, overwrite=overwrite)
    if found is not None:
        found.check_more(manifest, os.fspath(path), mixed=mixed or overwrite)


def check_place(path: Address, *, overwrite: bool = False) -> Manifest | None:
    """Refuse a place where no store can be; returns the manifest of the one that is there.

    Args:
        path: Of the store.
        overwrite: Whether it is to be made anew, so that one without its manifest will do.

    Raises:
        OutputError: A file, or a folder of other things.
        StoreError: A store without its manifest, or with a damaged one.
    """
    place = Place.of(path)
    if place.is_file():
        raise OutputError(f"{place.address} is a file, and a store is a folder. Name another, or remove the file.")
    try:
        found = read_manifest(place)
    except StoreError:
        if not overwrite:
            raise
        found = None
    if found is not None:
        return found
    names = [name for name in place.names() if name != NAME]
    if any(Shard.of(name) for name in names) and not overwrite and read_manifest(place) is None:
        raise StoreError(
            f"{place.address} has shards and no {NAME}, which tells how they were made. Put it back, or make the store "
            "anew with --overwrite."
        )
    others = [
        name
        for name in names
        if Shard.of(name) is None and not is_record(name) and not name.endswith((".damaged", "pictures"))
    ]
    if others:
        raise OutputError(
            f"{place.address} is a folder of other things, such as {others[0]}, and no store. Name another folder."
        )
    return None


class Known(NamedTuple):
    """What a store has.

    Attributes:
        keys: The stamp of each image that it has.
        failures: Images that failed and that it does not have.
        damaged: Why files of it count for nothing, by name: they are damaged, or not of this store.
        generation: The highest one of its shards.
    """

    keys: dict[str, Stamp]
    failures: dict[str, Failure]
    damaged: dict[str, str]
    generation: int


def keys_in(path: Address, *, writer: int | None = None) -> Known:
    """Return what a store has, or one of its writers, read from keys and stamps alone."""
    place = Place.of(path)
    manifest = read_manifest(place)
    if manifest is None:
        return Known({}, {}, {}, 0)
    records = read_records(place)
    shards: list[ShardRows] = []
    damaged: dict[str, str] = {}
    for shard in shards_of(place, "part"):
        if writer is not None and shard.writer != writer:
            continue
        try:
            shards.append(read_shard(place, shard.name, manifest, records, stamps=True))
        except StoreError as error:
            damaged[shard.name] = str(error)
    keys: dict[str, Stamp] = {}
    for rows in sorted(shards, key=lambda rows: rows.generation):
        keys.update(zip(rows.keys, rows.stamps, strict=True))
    failed = read_failures(place, writer=writer)
    damaged |= {name: f"{place.address}/{name} is damaged." for name in failed.damaged}
    failures = {key: failure for key, failure in failed.by_key.items() if key not in keys}
    return Known(keys, failures, damaged, max((rows.generation for rows in shards), default=0))
