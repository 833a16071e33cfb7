"""Tables of images that failed: ``key``, ``reason``, and ``kind``, a stable word to group them by in SQL."""

from typing import NamedTuple

from regiontok.store.places import Place
from regiontok.store.shards import damage, open_shard, pyarrow, shards_of


class Failure(NamedTuple):
    """An image that failed: its key, why, and the kind of fault, as `regiontok.errors.failure_kind` names it."""

    key: str
    reason: str
    kind: str


class Failures(NamedTuple):
    """The failures in a store by key, and the names of damaged tables of failures."""

    by_key: dict[str, Failure]
    damaged: list[str]


def read_failures(place: Place, *, writer: int | None = None) -> Failures:
    """Read the tables of failures of a store, or those of one writer."""
    pa, _ = pyarrow()
    by_key: dict[str, Failure] = {}
    damaged: list[str] = []
    for shard in shards_of(place, "failed"):
        if writer is not None and shard.writer != writer:
            continue
        try:
            with open_shard(place, shard.name) as file:
                table = file.read(["key", "reason", "kind"], use_threads=False)
            columns = (table.column(name).to_pylist() for name in ("key", "reason", "kind"))
            for key, reason, kind in zip(*columns, strict=True):
                by_key[str(key)] = Failure(str(key), str(reason), str(kind))
        except damage(pa):
            damaged.append(shard.name)
    return Failures(by_key, damaged)


def failures_table(failures: list[Failure]) -> object:
    """Return failures as a table of pyarrow."""
    pa, _ = pyarrow()
    names = Failure._fields
    return pa.table({name: [getattr(failure, name) for failure in failures] for name in names})
