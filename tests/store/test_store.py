"""Stores of any kind: keys, shards, damage, concurrent readers and writers, filesystems."""

import concurrent.futures
import errno
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from regiontok import MaskSet, Regionizer
from regiontok.errors import (
    MissingDependencyError,
    MissingKeyError,
    OutputError,
    RegiontokError,
    ShapeError,
    StoreError,
    ValueRangeError,
)
from regiontok.store import (
    Manifest,
    MaskStore,
    StoreWriter,
    TokenStore,
    check_key,
    collate,
    locks,
    write_masks,
    write_tokens,
)
from regiontok.store.masks import masks_table
from regiontok.store.storage import Storage
from regiontok.store.writer import read_contents
from tests.store.test_masks import random_masks, same

TOKENS = Regionizer(pool="mean", num_regions=4)(torch.rand(3, 5, 6, 8))
MASKS = Manifest(kind="masks", provenance={"generator": "test"})


def filled(folder, count=30, shard_size=10):
    write_masks(folder, ((f"{n}.jpg", random_masks(n)) for n in range(count)), shard_size=shard_size)
    return folder


def rows(numbers):
    return masks_table([f"{n}.jpg" for n in numbers], [random_masks(n) for n in numbers])


def write(folder, numbers, **options):
    with StoreWriter(folder, MASKS, **options) as writer:
        for number in numbers:
            writer.write(rows([number]))
    return writer


@given(
    st.lists(
        st.text(min_size=1, max_size=8).filter(lambda part: not {"/", "\0"} & set(part) and part not in (".", "..")),
        min_size=1,
        max_size=4,
    )
)
def test_relative_paths_in_utf_8_are_keys(parts):
    key = "/".join(parts)
    try:
        key.encode()
    except UnicodeEncodeError:
        with pytest.raises(ValueRangeError, match="a key must be valid UTF-8"):
            check_key(key)
    else:
        assert check_key(key) == key


def test_slices_of_shards(tmp_path):
    filled(tmp_path / "m")
    parts = [MaskStore(tmp_path / "m", shards=slice(rank, None, 2)) for rank in range(2)]
    assert [len(part) for part in parts] == [20, 10]
    assert sorted([*parts[0], *parts[1]]) == sorted(MaskStore(tmp_path / "m"))
    assert len(MaskStore(tmp_path / "m", shards=slice(0))) == 0


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "gone"])
def test_a_damaged_shard_is_named_and_other_shards_are_read(tmp_path, damage):
    filled(tmp_path / "m")
    shard = tmp_path / "m" / "part-00000-000001.parquet"
    data = {"cut": shard.read_bytes()[:-9], "empty": b"", "text": b"no shard"}.get(damage)
    if data is None:
        shard.unlink()
        shard.mkdir()
        store = MaskStore(tmp_path / "m")
    else:
        shard.write_bytes(data)
        with pytest.warns(
            UserWarning, match=r"a damaged shard is ignored: .*part-00000-000001.parquet (is not|cannot be read)"
        ):
            store = MaskStore(tmp_path / "m")
        assert list(store.damaged) == ["part-00000-000001.parquet"]
        assert list(read_contents(tmp_path / "m").damaged) == ["part-00000-000001.parquet"]
        assert "1 damaged" in repr(store)
    assert len(store) == 20
    assert same(store["29.jpg"], random_masks(29))
    with pytest.raises(MissingKeyError):
        store["12.jpg"]


def test_the_later_row_of_a_key_is_used(tmp_path):
    write(tmp_path / "m", [1])
    with StoreWriter(tmp_path / "m", MASKS) as writer:
        writer.write(masks_table(["1.jpg"], [random_masks(5)]))
    store = MaskStore(tmp_path / "m")
    assert (len(store), store.repeated) == (1, 1)
    assert same(store["1.jpg"], random_masks(5))


def test_failures_are_listed_until_the_image_has_a_row(tmp_path):
    with StoreWriter(tmp_path / "m", MASKS) as writer:
        writer.write(rows([1]))
        writer.add_failure("2.jpg", "no image")
        writer.add_failure("\udcff.jpg", "no text")
    assert MaskStore(tmp_path / "m").failures == {"2.jpg": "no image", "\\udcff.jpg": "no text"}
    with pytest.raises(MissingKeyError, match=r"has no masks of '2.jpg'\. It failed: no image"):
        MaskStore(tmp_path / "m")["2.jpg"]
    write(tmp_path / "m", [2])
    assert list(MaskStore(tmp_path / "m").failures) == ["\\udcff.jpg"]


def test_shards_are_bounded_by_rows_and_minutes(tmp_path, monkeypatch):
    write(tmp_path / "m", range(25), shard_size=10)
    sizes = [len(MaskStore(tmp_path / "m", shards=slice(n, n + 1))) for n in range(3)]
    assert sizes == [10, 10, 5]
    now = [0.0]
    monkeypatch.setattr("regiontok.store.writer.time.monotonic", lambda: now[0] + 1)
    with StoreWriter(tmp_path / "n", MASKS, shard_minutes=5) as writer:
        for number in range(10):
            now[0] += 120
            writer.write(rows([number]))
    assert [len(MaskStore(tmp_path / "n", shards=slice(n, n + 1))) for n in range(3)] == [4, 4, 2]


def test_shards_are_deterministic(tmp_path):
    for name in "ab":
        write(tmp_path / name, range(25), shard_size=10)
    for shard in MaskStore(tmp_path / "a").shards:
        assert (tmp_path / "a" / shard).read_bytes() == (tmp_path / "b" / shard).read_bytes()


def test_a_second_writer_is_rejected_but_slices_share_a_store(tmp_path):
    folder = tmp_path / "m"
    with StoreWriter(folder, MASKS):
        for options in ({}, {"writer": 1}, {"writer": 1, "shared": True}):
            with pytest.raises(OutputError, match=rf"m is being written by process {os.getpid()} on .*--slice"):
                StoreWriter(folder, MASKS, **options)
    with (
        StoreWriter(folder, MASKS, writer=1, shared=True) as first,
        StoreWriter(folder, MASKS, writer=2, shared=True) as second,
    ):
        with pytest.raises(OutputError, match="is being written"):
            StoreWriter(folder, MASKS, writer=2, shared=True)
        with pytest.raises(OutputError, match="is being written"):
            StoreWriter(folder, MASKS)
        first.write(rows([1]))
        second.write(rows([2]))
    assert MaskStore(folder).shards == ["part-00001-000000.parquet", "part-00002-000000.parquet"]


def test_a_lock_ends_with_its_process(tmp_path):
    code = (
        "import sys; from regiontok.store import Manifest, StoreWriter; "
        f"w = StoreWriter({str(tmp_path / 'm')!r}, Manifest(kind='masks', provenance={{'generator': 'test'}})); "
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(OutputError, match=f"is being written by process {process.pid} on"):
            StoreWriter(tmp_path / "m", MASKS)
        process.kill()
        process.wait()
    write(tmp_path / "m", [1])
    assert len(MaskStore(tmp_path / "m")) == 1


@pytest.mark.parametrize("system", ["Windows", "a network filesystem"])
def test_a_writer_without_locks_warns(tmp_path, monkeypatch, system):
    if system == "Windows":
        monkeypatch.setattr(locks, "fcntl", None)
    else:
        monkeypatch.setattr(locks.fcntl, "flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    with pytest.warns(UserWarning, match="m cannot be locked on this system: make sure that no other process"):
        write(tmp_path / "m", [1])
    assert len(MaskStore(tmp_path / "m")) == 1


def test_temporary_files_of_a_killed_writer_are_removed(tmp_path):
    write(tmp_path / "m", [1])
    (tmp_path / "m" / ".part-00000-000001.parquet.tmp").write_bytes(b"half a shard")
    write(tmp_path / "m", [2])
    assert sorted(MaskStore(tmp_path / "m")) == ["1.jpg", "2.jpg"]
    assert not list((tmp_path / "m").glob(".*.tmp"))


def test_a_full_disk_loses_only_the_open_shard(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with StoreWriter(tmp_path / "m", MASKS, shard_size=2) as writer:
        writer.write(rows([1, 2]))
        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OutputError, match=r"part-00000-000001.parquet cannot be written \(No space left"):
            writer.write(rows([3, 4]))
    assert list(MaskStore(tmp_path / "m")) == ["1.jpg", "2.jpg"]
    assert not list((tmp_path / "m").glob(".*.tmp"))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a filesystem")
def test_a_full_filesystem_loses_only_the_open_shard(tmp_path, generator):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], check=False, stderr=subprocess.PIPE
    ).returncode:
        pytest.skip("this machine does not allow mounts")
    try:
        noise = MaskSet.from_masks(torch.rand(20, 40, 40, generator=generator) < 0.5)
        with pytest.raises(OutputError, match="cannot be written"):
            write_masks(disk / "m", ((f"{number}.jpg", noise) for number in range(4000)), shard_size=5)
        store = MaskStore(disk / "m")
        assert 5 <= len(store) < 4000
        assert len(store) % 5 == 0
        assert all(len(masks) == 20 for masks in store.values())
        del store
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_is_not_writable(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(OutputError, match="m must be a writable folder"):
        StoreWriter(tmp_path / "m", MASKS)


def test_different_options_are_named_and_can_be_mixed(tmp_path):
    write(tmp_path / "m", [1])
    other = Manifest(kind="masks", provenance={"generator": "test", "settings": {"points": 3, "deep": {"er": None}}})
    with pytest.raises(StoreError, match=r"settings.points: not set in the store, 3 now") as error:
        StoreWriter(tmp_path / "m", other)
    assert "deep" not in str(error.value)
    with pytest.raises(StoreError, match="m is a store of masks, but the new rows are tokens"):
        StoreWriter(tmp_path / "m", Manifest(kind="tokens"), mixed=True)
    with StoreWriter(tmp_path / "m", other, mixed=True) as writer:
        writer.write(rows([2]))
    store = MaskStore(tmp_path / "m")
    assert (store.provenance, len(store)) == (MASKS.provenance, 2)
    with pytest.raises(StoreError, match="m must be a store of tokens; it is a store of masks"):
        TokenStore(tmp_path / "m")


def test_overwriting_removes_only_rows_and_failures(tmp_path):
    with StoreWriter(tmp_path / "m", MASKS) as writer:
        writer.write(rows([1]))
        writer.add_failure("2.jpg", "no image")
    (tmp_path / "m" / "pictures").mkdir()
    with StoreWriter(tmp_path / "m", Manifest(kind="masks", provenance={"a": 1}), overwrite=True):
        pass
    store = MaskStore(tmp_path / "m")
    assert (len(store), store.failures, store.provenance) == (0, {}, {"a": 1})
    assert (tmp_path / "m" / "pictures").is_dir()
    with pytest.raises(StoreError, match="a store of masks, but the new rows are tokens"):
        StoreWriter(tmp_path / "m", Manifest(kind="tokens"), overwrite=True)


def _areas(args):
    store, keys = args
    return [int(store[key].areas().sum()) for key in keys]


@pytest.mark.parametrize(("method", "processes"), [("fork", 2), ("forkserver", 1), ("spawn", 1)])
def test_worker_processes_read_the_same_values(tmp_path, method, processes):
    store = MaskStore(filled(tmp_path / "m", 60))
    keys = list(store)
    expected = _areas((store, keys))  # opened here, before the fork
    with multiprocessing.get_context(method).Pool(processes) as pool:
        parts = pool.map_async(_areas, [(store, keys[::2]), (store, keys[1::2])]).get(120)
    assert parts == [expected[::2], expected[1::2]]


def test_a_fork_while_another_thread_reads_does_not_hang(tmp_path):
    store = MaskStore(filled(tmp_path / "m", 60))
    with store._file_lock():
        context = multiprocessing.get_context("fork")
        with context.Pool(1) as pool:
            assert pool.apply_async(_areas, ((store, ["5.jpg"]),)).get(30) == _areas_of(5)


def _areas_of(number):
    return [int(random_masks(number).areas().sum())]


def test_threads_read_the_same_values(tmp_path):
    store = MaskStore(filled(tmp_path / "m", 60))
    keys = list(store) * 5
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        areas = list(pool.map(lambda key: int(store[key].areas().sum()), keys))
    assert areas == _areas((store, keys))


def test_a_torch_dataset(tmp_path):
    data = MaskStore(filled(tmp_path / "m")).as_dataset()
    loader = DataLoader(data, batch_size=4, num_workers=2, collate_fn=list, multiprocessing_context="fork")
    keys = [item["key"] for batch in loader for item in batch]
    assert keys == [f"{n}.jpg" for n in range(30)]
    assert same(data[3]["masks"], random_masks(3))


def test_batches_of_a_torch_dataset(tmp_path):
    write_tokens(tmp_path / "t", zip(["a", "b", "c"], TOKENS, strict=True), dtype="float32")
    data = MaskStore(filled(tmp_path / "m", 3)).as_dataset()
    rows = [row | {"pixels": torch.ones(2), **data[n]} for n, row in enumerate(TokenStore(tmp_path / "t").as_dataset())]
    batch = collate(rows)
    assert torch.equal(batch["tokens"].values, TOKENS.values)
    assert torch.equal(batch["tokens"].regions.labels(), TOKENS.regions.labels())
    assert batch["pixels"].shape == (3, 2)
    assert all(same(masks, random_masks(number)) for number, masks in enumerate(batch["masks"]))
    with pytest.raises(ShapeError, match="one or more mappings with the same keys"):
        collate([rows[0], {"key": "a"}])


def test_concurrent_writers_and_a_reader(tmp_path):
    """Every writer has its own number, and the reader sees only complete shards."""
    folder = tmp_path / "m"
    write(folder, [])

    def work(rank):
        write(folder, range(100 * rank, 100 * rank + 20), writer=rank, shared=True, shard_size=4)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(1, 5)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        store = MaskStore(folder)
        assert len(store) % 4 == 0
        assert all(len(masks) == 3 for masks in store.values())
    assert len(MaskStore(folder)) == 80


def test_a_store_on_a_memory_filesystem():
    address = "memory://somewhere/masks"
    assert write_masks(address, ((f"a/{n}.jpg", random_masks(n)) for n in range(25)), shard_size=10) == 25
    store = MaskStore(address)
    assert len(store.shards) == 3
    assert same(store["a/24.jpg"], random_masks(24))
    assert write_masks(address, [("b.jpg", random_masks(1))]) == 1
    assert len(MaskStore(address)) == 26
    with pytest.raises(StoreError, match="there is no store of masks in memory://else"):
        MaskStore("memory://else")
    write_masks(address, [], overwrite=True)
    assert len(MaskStore(address)) == 0


def test_invalid_addresses(monkeypatch):
    with pytest.raises(StoreError, match="nowhere://a cannot be reached"):
        MaskStore("nowhere://a")
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # fsspec caches classes; no other test uses this one
    with pytest.raises(MissingDependencyError, match="gs://bucket/a needs a package that is not installed"):
        MaskStore("gs://bucket/a")


def test_a_store_on_s3(s3):
    address = f"{s3}/masks"
    assert write_masks(address, ((f"a/{n}.jpg", random_masks(n)) for n in range(25)), shard_size=10) == 25
    store = MaskStore(address)
    assert same(store["a/24.jpg"], random_masks(24))
    assert [store.count(f"a/{n}.jpg") for n in range(3)] == [3, 3, 3]
    expected = _areas((store, list(store)))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        parts = pool.map_async(_areas, [(store, list(store)[::2]), (store, list(store)[1::2])]).get(120)
    assert parts == [expected[::2], expected[1::2]]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_areas, ((store, list(store)),)).get(60) == expected
    with pytest.raises(OutputError, match="s3://nobody/m must be a writable folder"):
        write_masks("s3://nobody/m", [("a.jpg", random_masks(0))])
    assert json.loads(store._storage.read("_store.json"))["kind"] == "masks"


def test_a_folder_that_changes_while_it_is_listed_is_not_empty(tmp_path):
    storage, ended = Storage.of(tmp_path), threading.Event()
    (tmp_path / "permanent").touch()

    def churn():
        while not ended.is_set():
            (tmp_path / "created").touch()
            (tmp_path / "created").rename(tmp_path / "renamed")
            (tmp_path / "renamed").unlink()

    thread = threading.Thread(target=churn)
    thread.start()
    assert all("permanent" in storage.names() for _ in range(2000))
    ended.set()
    thread.join()


def test_slices_that_start_together_create_one_store(tmp_path):
    for number in range(20):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            futures = [
                pool.submit(write, tmp_path / str(number), [rank], writer=rank, shared=True) for rank in range(8)
            ]
            for future in futures:
                future.result()
        assert len(MaskStore(tmp_path / str(number))) == 8


def test_existing_shards_are_not_overwritten(tmp_path):
    writer = StoreWriter(tmp_path / "m", MASKS)
    (tmp_path / "m" / "part-00000-000000.parquet").write_bytes(b"another's")
    writer.write(rows([1]))
    with pytest.raises(OutputError, match="part-00000-000000.parquet was already written by another writer"):
        writer.flush()
    assert (tmp_path / "m" / "part-00000-000000.parquet").read_bytes() == b"another's"
    writer.__exit__(None)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([3], "masks must be pairs of a key and its masks; got int"),
        (["ab"], "masks must be pairs of a key and its masks; got str"),
        ([("a.jpg", MaskSet.on_grid(torch.ones(1, 2, 2)))], "are on the patch grid and have no pixels"),
    ],
)
def test_invalid_pairs_are_rejected(tmp_path, pairs, message):
    with pytest.raises(RegiontokError, match=message):
        write_masks(tmp_path / "m", pairs)


def test_mappings_of_arrays_are_accepted(tmp_path):
    assert write_masks(tmp_path / "m", {"a.jpg": np.ones((2, 3, 4), bool)}) == 1
    assert len(MaskStore(tmp_path / "m")["a.jpg"]) == 2
    with pytest.raises(ValueRangeError, match="provenance must be JSON values"):
        write_masks(tmp_path / "n", {"a.jpg": np.ones((2, 3, 4), bool)}, provenance={"a": {1}})
