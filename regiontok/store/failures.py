"""Tables of failed images: ``key``, ``reason``, and ``kind``, a stable word to group failures by in SQL."""

from typing import NamedTuple

from regiontok.store.shards import damage_errors, list_shards, open_shard, pyarrow
from regiontok.store.storage import Storage


class Failure(NamedTuple):
    """A failed image: its key, the reason, and the kind of error as `regiontok.errors.failure_kind` returns it."""

    key: str
    reason: str
    kind: str


class Failures(NamedTuple):
    """The failures in a store by key, and the names of damaged failure tables."""

    by_key: dict[str, Failure]
    damaged: list[str]


def read_failures(storage: Storage, *, writer: int | None = None) -> Failures:
    """Read the failure tables of a store, or only those of one writer."""
    by_key: dict[str, Failure] = {}
    damaged: list[str] = []
    for shard in list_shards(storage, "failed", writer=writer):
        try:
            with open_shard(storage, shard.name) as file:
                table = file.read(list(Failure._fields), use_threads=False)
            columns = (table.column(name).to_pylist() for name in Failure._fields)
            for key, reason, kind in zip(*columns, strict=True):
                by_key[str(key)] = Failure(str(key), str(reason), str(kind))
        except damage_errors():
            damaged.append(shard.name)
    return Failures(by_key, damaged)


def failures_table(failures: list[Failure]) -> object:
    """Return failures as a table of pyarrow."""
    pa, _ = pyarrow()
    return pa.table({name: [getattr(failure, name) for failure in failures] for name in Failure._fields})
