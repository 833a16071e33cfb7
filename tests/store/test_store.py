"""What stores of any kind promise: keys, shards, damage, many readers and writers, filesystems."""

import concurrent.futures
import errno
import json
import multiprocessing
import os
import subprocess
import sys
import threading

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
    write_masks,
    write_tokens,
)
from regiontok.store.masks import masks_table
from regiontok.store.places import Place
from regiontok.store.writer import keys_in
from tests.store.test_masks import random_masks, same

TOKENS = Regionizer(pool="mean", num_regions=4)(torch.rand(3, 5, 6, 8))
MASKS = Manifest(kind="masks", made_by={"generator": "test"})


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
def test_a_path_below_a_folder_is_a_key_if_it_is_utf_8(parts):
    key = "/".join(parts)
    try:
        key.encode()
    except UnicodeEncodeError:
        with pytest.raises(ValueRangeError, match="not UTF-8"):
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
def test_a_damaged_shard_is_named_and_the_rest_served(tmp_path, damage):
    filled(tmp_path / "m")
    shard = tmp_path / "m" / "part-00000-000001.parquet"
    data = {"cut": shard.read_bytes()[:-9], "empty": b"", "text": b"no shard"}.get(damage)
    if data is None:
        shard.unlink()
        shard.mkdir()  # a name that is no file
        store = MaskStore(tmp_path / "m")
    else:
        shard.write_bytes(data)
        with pytest.warns(UserWarning, match=r"a shard is damaged and left out: .*part-00000-000001.parquet is not"):
            store = MaskStore(tmp_path / "m")
        assert list(store.damaged) == ["part-00000-000001.parquet"]
        assert list(keys_in(tmp_path / "m").damaged) == ["part-00000-000001.parquet"]
        assert "1 damaged" in repr(store)
    assert len(store) == 20
    assert same(store["29.jpg"], random_masks(29))
    with pytest.raises(MissingKeyError):
        store["12.jpg"]


def test_of_two_rows_of_a_key_the_later_counts(tmp_path):
    write(tmp_path / "m", [1])
    with StoreWriter(tmp_path / "m", MASKS) as writer:
        writer.write(masks_table(["1.jpg"], [random_masks(5)]))
    store = MaskStore(tmp_path / "m")
    assert (len(store), store.repeated) == (1, 1)
    assert same(store["1.jpg"], random_masks(5))


def test_failures_are_rows_of_a_table_until_they_are_made(tmp_path):
    with StoreWriter(tmp_path / "m", MASKS) as writer:
        writer.write(rows([1]))
        writer.fail("2.jpg", "no image")
        writer.fail("\udcff.jpg", "not UTF-8")
    assert MaskStore(tmp_path / "m").failures == {"2.jpg": "no image", "\\udcff.jpg": "not UTF-8"}
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


def test_the_same_rows_make_the_same_bytes(tmp_path):
    for name in "ab":
        write(tmp_path / name, range(25), shard_size=10)
    for shard in MaskStore(tmp_path / "a").shards:
        assert (tmp_path / "a" / shard).read_bytes() == (tmp_path / "b" / shard).read_bytes()


def test_a_second_writer_is_refused_and_slices_share(tmp_path):
    folder = tmp_path / "m"
    with StoreWriter(folder, MASKS):
        for options in ({}, {"writer": 1}, {"writer": 1, "shared": True}):
            with pytest.raises(OutputError, match=rf"m is being written by process {os.getpid()} on .*--slice"):
                StoreWriter(folder, MASKS, **options)
    with (
        StoreWriter(folder, MASKS, writer=1, shared=True) as one,
        StoreWriter(folder, MASKS, writer=2, shared=True) as two,
    ):
        with pytest.raises(OutputError, match="is being written"):
            StoreWriter(folder, MASKS, writer=2, shared=True)
        with pytest.raises(OutputError, match="is being written"):
            StoreWriter(folder, MASKS)
        one.write(rows([1]))
        two.write(rows([2]))
    assert MaskStore(folder).shards == ["part-00001-000000.parquet", "part-00002-000000.parquet"]


def test_a_lock_ends_with_its_process(tmp_path):
    code = (
        "import sys; from regiontok.store import Manifest, StoreWriter; "
        f"w = StoreWriter({str(tmp_path / 'm')!r}, Manifest(kind='masks', made_by={{'generator': 'test'}})); "
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as one:
        assert one.stdout.readline() == "ready\n"
        with pytest.raises(OutputError, match=f"is being written by process {one.pid} on"):
            StoreWriter(tmp_path / "m", MASKS)
        one.kill()
        one.wait()
    write(tmp_path / "m", [1])
    assert len(MaskStore(tmp_path / "m")) == 1


def test_what_a_dead_writer_left_is_written_over(tmp_path):
    write(tmp_path / "m", [1])
    (tmp_path / "m" / ".part-00000-000001.parquet.tmp").write_bytes(b"half a shard")
    write(tmp_path / "m", [2])
    assert sorted(MaskStore(tmp_path / "m")) == ["1.jpg", "2.jpg"]
    assert not list((tmp_path / "m").glob(".*.tmp"))


def test_a_full_disk_costs_the_shard_in_hand(tmp_path, monkeypatch):
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
def test_a_disk_that_is_really_full(tmp_path, generator):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], check=False, stderr=subprocess.PIPE
    ).returncode:
        pytest.skip("this machine lets nobody mount")
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


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(OutputError, match="m must be a folder that can be written to"):
        StoreWriter(tmp_path / "m", MASKS)


def test_options_that_differ_are_named_and_may_be_mixed(tmp_path):
    write(tmp_path / "m", [1])
    other = Manifest(kind="masks", made_by={"generator": "test", "settings": {"points": 3, "deep": {"er": None}}})
    with pytest.raises(ValueRangeError, match=r"settings.points: not set in the store, 3 now") as told:
        StoreWriter(tmp_path / "m", other)
    assert "deep" not in str(told.value)
    with pytest.raises(ValueRangeError, match="m is a store of masks, and these are tokens"):
        StoreWriter(tmp_path / "m", Manifest(kind="tokens"), mixed=True)
    with StoreWriter(tmp_path / "m", other, mixed=True) as writer:
        writer.write(rows([2]))
    store = MaskStore(tmp_path / "m")
    assert (store.made_by, len(store)) == (MASKS.made_by, 2)
    with pytest.raises(StoreError, match="m is a store of masks, and one of tokens is wanted here"):
        TokenStore(tmp_path / "m")


def test_overwriting_removes_rows_and_failures_and_nothing_else(tmp_path):
    with StoreWriter(tmp_path / "m", MASKS) as writer:
        writer.write(rows([1]))
        writer.fail("2.jpg", "no image")
    (tmp_path / "m" / "pictures").mkdir()
    with StoreWriter(tmp_path / "m", Manifest(kind="masks", made_by={"a": 1}), overwrite=True):
        pass
    store = MaskStore(tmp_path / "m")
    assert (len(store), store.failures, store.made_by) == (0, {}, {"a": 1})
    assert (tmp_path / "m" / "pictures").is_dir()
    with pytest.raises(ValueRangeError, match="a store of masks, and these are tokens"):
        StoreWriter(tmp_path / "m", Manifest(kind="tokens"), overwrite=True)


def _areas(args):
    store, keys = args
    return [int(store[key].areas().sum()) for key in keys]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_and_threads_read_the_same(tmp_path, method):
    store = MaskStore(filled(tmp_path / "m", 60))
    keys = list(store)
    expected = _areas((store, keys))  # opened here, before the fork
    with multiprocessing.get_context(method).Pool(2) as pool:
        parts = pool.map(_areas, [(store, keys[::2]), (store, keys[1::2])])
    assert parts == [expected[::2], expected[1::2]]


def test_a_fork_while_another_thread_reads_does_not_hang(tmp_path):
    store = MaskStore(filled(tmp_path / "m", 60))
    with store._alone():
        context = multiprocessing.get_context("fork")
        with context.Pool(1) as pool:
            assert pool.apply_async(_areas, ((store, ["5.jpg"]),)).get(30) == _areas_of(5)


def _areas_of(number):
    return [int(random_masks(number).areas().sum())]


def test_threads_read_at_the_same_time(tmp_path):
    store = MaskStore(filled(tmp_path / "m", 60))
    keys = list(store) * 5
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda key: int(store[key].areas().sum()), keys))
    assert found == _areas((store, keys))


def test_a_torch_dataset(tmp_path):
    data = MaskStore(filled(tmp_path / "m")).rows()
    loader = DataLoader(data, batch_size=4, num_workers=2, collate_fn=list, multiprocessing_context="fork")
    keys = [one["key"] for batch in loader for one in batch]
    assert keys == [f"{n}.jpg" for n in range(30)]
    assert same(data[3]["masks"], random_masks(3))


def test_batches_of_a_torch_dataset(tmp_path):
    write_tokens(tmp_path / "t", zip(["a", "b", "c"], TOKENS, strict=True), dtype="float32")
    data = MaskStore(filled(tmp_path / "m", 3)).rows()
    rows = [row | {"pixels": torch.ones(2), **data[n]} for n, row in enumerate(TokenStore(tmp_path / "t").rows())]
    batch = collate(rows)
    assert torch.equal(batch["tokens"].values, TOKENS.values)
    assert torch.equal(batch["tokens"].regions.labels(), TOKENS.regions.labels())
    assert batch["pixels"].shape == (3, 2)
    assert all(same(masks, random_masks(number)) for number, masks in enumerate(batch["masks"]))
    with pytest.raises(ShapeError, match="one or more with the same names"):
        collate([rows[0], {"key": "a"}])


def test_writers_of_many_threads_and_a_reader(tmp_path):
    """Each has a number of its own, and what is there is always whole."""
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


def test_memory_as_a_filesystem():
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


def test_addresses_that_cannot_be(monkeypatch):
    with pytest.raises(StoreError, match="nowhere://a cannot be reached"):
        MaskStore("nowhere://a")
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # fsspec keeps classes that it has found, and no test uses this one
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
        parts = pool.map(_areas, [(store, list(store)[::2]), (store, list(store)[1::2])])
    assert parts == [expected[::2], expected[1::2]]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_areas, ((store, list(store)),)).get(60) == expected
    with pytest.raises(OutputError, match="s3://nobody/m must be a place that can be written to"):
        write_masks("s3://nobody/m", [("a.jpg", random_masks(0))])
    assert json.loads(store._place.read("store.json"))["kind"] == "masks"


def test_a_folder_that_changes_meanwhile_is_never_taken_for_empty(tmp_path):
    place, ended = Place.of(tmp_path), threading.Event()
    (tmp_path / "stays").touch()

    def churn():
        while not ended.is_set():
            (tmp_path / "comes").touch()
            (tmp_path / "comes").rename(tmp_path / "goes")
            (tmp_path / "goes").unlink()

    thread = threading.Thread(target=churn)
    thread.start()
    assert all("stays" in place.names() for _ in range(2000))
    ended.set()
    thread.join()


def test_slices_that_begin_together_make_one_store(tmp_path):
    for number in range(20):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            made = [pool.submit(write, tmp_path / str(number), [rank], writer=rank, shared=True) for rank in range(8)]
            for one in made:
                one.result()
        assert len(MaskStore(tmp_path / str(number))) == 8


def test_no_shard_is_written_over(tmp_path):
    writer = StoreWriter(tmp_path / "m", MASKS)
    (tmp_path / "m" / "part-00000-000000.parquet").write_bytes(b"another's")
    writer.write(rows([1]))
    with pytest.raises(OutputError, match="part-00000-000000.parquet is there already, by another writer"):
        writer.cut()
    assert (tmp_path / "m" / "part-00000-000000.parquet").read_bytes() == b"another's"
    writer.__exit__(None)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([3], "masks must come in pairs of a key and its masks; got int"),
        (["ab"], "masks must come in pairs of a key and its masks; got str"),
        ([("a.jpg", MaskSet.on_grid(torch.ones(1, 2, 2)))], "their pixels are not known"),
    ],
)
def test_what_is_wrong_from_the_start_is_told(tmp_path, pairs, message):
    with pytest.raises(RegiontokError, match=message):
        write_masks(tmp_path / "m", pairs)


def test_arrays_and_mappings_are_masks_and_pairs_too(tmp_path):
    assert write_masks(tmp_path / "m", {"a.jpg": np.ones((2, 3, 4), bool)}) == 1
    assert len(MaskStore(tmp_path / "m")["a.jpg"]) == 2
    with pytest.raises(ValueRangeError, match="made_by must be plain values, as JSON holds them"):
        write_masks(tmp_path / "n", {"a.jpg": np.ones((2, 3, 4), bool)}, made_by={"a": {1}})
