"""Stores of masks: rows are read back unchanged, also by other programs."""

import json
import pickle
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pycocotools import mask as coco

from regiontok import MaskSet
from regiontok.errors import MissingKeyError, OutputError, StoreError, ValueRangeError
from regiontok.store import MaskStore, write_masks
from tests.conftest import for_each


def random_masks(seed, count=3):
    generator = np.random.default_rng(seed)
    masks = generator.random((count, 5 + seed % 7, 9)) < 0.4
    return MaskSet.from_masks(masks, scores=generator.random(count), stability=generator.random(count))


def same(a, b):
    return (
        a.size == b.size
        and a.to_coco() == b.to_coco()
        and np.array_equal(a.scores, b.scores, equal_nan=True)
        and np.array_equal(a.stability, b.stability, equal_nan=True)
    )


def shard_of(store):
    (name,) = MaskStore(store).shards
    return store / name


def test_masks_are_read_back_in_any_order_across_shards_and_groups(tmp_path):
    written = {f"folder/{number}.jpg": random_masks(number, number % 4) for number in range(450)}
    provenance = {"generator": "test", "settings": [1]}
    assert write_masks(tmp_path / "m", iter(written.items()), provenance=provenance, shard_size=200) == 450
    store = MaskStore(tmp_path / "m")
    assert len(store) == 450
    assert list(store) == list(written)
    assert store.provenance == provenance
    assert repr(store).endswith("m', 450 images, 3 shards)")
    for number in (449, 0, 200, 199, 3, 401):
        assert same(store[f"folder/{number}.jpg"], written[f"folder/{number}.jpg"])
    assert [store.count(f"folder/{number}.jpg") for number in (0, 7, 449)] == [0, 3, 1]
    assert all(same(masks, written[key]) for key, masks in store.items())
    assert (store.repeated, store.damaged, store.failures) == (0, {}, {})


def test_lookup_uses_the_full_key(tmp_path):
    write_masks(tmp_path / "m", [("x/a.jpg", random_masks(0)), ("y/a.jpg", random_masks(1))])
    store = MaskStore(tmp_path / "m")
    assert "y/a.jpg" in store
    assert store["y/a.jpg"].size == (6, 9)
    for key in ("a.jpg", "/elsewhere/x/a.jpg", "x/A.jpg", "x/a.jpg/"):
        assert key not in store
        assert store.get(key) is None
        for read in (store.__getitem__, store.count):
            with pytest.raises(MissingKeyError, match=r"m has no masks of '.*'\. Its keys look like 'x/a.jpg'\."):
                read(key)
    assert isinstance(MissingKeyError("a"), KeyError)
    assert 3 not in store


def test_other_programs_can_read_shards(tmp_path):
    datasets, duckdb = pytest.importorskip("datasets"), pytest.importorskip("duckdb")
    masks = random_masks(1)
    write_masks(tmp_path / "m", [("a.jpg", masks), ("b.jpg", random_masks(2, 0))])
    table = pq.read_table(shard_of(tmp_path / "m"))
    columns = ["key", "height", "width", "counts", "scores", "stability", "ids", "categories"]
    assert table.column_names == [*columns, "image_bytes", "image_modified"]
    row = table.to_pylist()[0]
    decoded = coco.area([{"size": [row["height"], row["width"]], "counts": counts} for counts in row["counts"]])
    assert decoded.tolist() == masks.areas().tolist()
    assert json.loads(table.schema.metadata[b"masks"]) == {}
    assert b"regiontok" in table.schema.metadata
    files = str(tmp_path / "m" / "part-*.parquet")
    assert duckdb.sql(f"select key, len(counts) from '{files}' order by key").fetchall() == [("a.jpg", 3), ("b.jpg", 0)]
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded[0]["counts"] == row["counts"]


def test_a_store_can_be_pickled(tmp_path):
    masks = random_masks(1)
    write_masks(tmp_path / "m", [("a.jpg", masks)])
    assert same(pickle.loads(pickle.dumps(MaskStore(tmp_path / "m")))["a.jpg"], masks)


def test_scores_may_be_missing(tmp_path):
    masks = MaskSet.from_masks(np.ones((2, 3, 4), bool))
    write_masks(tmp_path / "m", [("a.jpg", masks)])
    assert same(MaskStore(tmp_path / "m")["a.jpg"], masks)


def test_masks_are_added_and_keys_are_unique(tmp_path):
    write_masks(tmp_path / "m", [("a.jpg", random_masks(0))])
    write_masks(tmp_path / "m", [("b.jpg", random_masks(1))])
    with pytest.raises(ValueRangeError, match="masks of b.jpg are already in the store; every key must be unique"):
        write_masks(tmp_path / "m", [("b.jpg", random_masks(1))])
    with pytest.raises(ValueRangeError, match="masks of c.jpg are already in the store"):
        write_masks(tmp_path / "m", [("c.jpg", random_masks(1))] * 2)
    assert list(MaskStore(tmp_path / "m")) == ["a.jpg", "b.jpg", "c.jpg"]
    with pytest.raises(StoreError, match=r"written with other options:\n  seed: not set in the store, 1 now\n"):
        write_masks(tmp_path / "m", [("c.jpg", random_masks(1))], provenance={"seed": 1})
    write_masks(tmp_path / "m", [("c.jpg", random_masks(1))], provenance={"seed": 1}, overwrite=True)
    assert list(MaskStore(tmp_path / "m")) == ["c.jpg"]


def test_rows_before_an_error_are_written(tmp_path):
    def broken():
        yield "a.jpg", random_masks(0)
        yield "b.jpg", random_masks(1)
        raise RuntimeError("the generator broke")

    with pytest.raises(RuntimeError, match="the generator broke"):
        write_masks(tmp_path / "m", broken(), shard_size=1)
    assert list(MaskStore(tmp_path / "m")) == ["a.jpg", "b.jpg"]
    assert not [file for file in (tmp_path / "m").iterdir() if file.name.endswith(".tmp")]


def test_locations_without_a_store(tmp_path):
    with pytest.raises(StoreError, match=r"there is no store of masks .*Create one with regiontok masks IMAGE"):
        MaskStore(tmp_path / "m")
    (tmp_path / "file").write_text("a file")
    with pytest.raises(OutputError, match="file is a file, but a store is a folder"):
        write_masks(tmp_path / "file", [])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="full is not a store: it has other files, such as letter.txt"):
        write_masks(tmp_path / "full", [])
    write_masks(tmp_path / "m", [])
    assert len(MaskStore(tmp_path / "m")) == 0
    with pytest.raises(MissingKeyError, match="It is empty"):
        MaskStore(tmp_path / "m")["a.jpg"]
    for text in ("{", "[]", '{"format": 1}', '{"format": 1, "kind": 3, "provenance": {}, "images": []}'):
        (tmp_path / "m" / "_store.json").write_text(text)
        with pytest.raises(StoreError, match=r"_store.json is damaged"):
            MaskStore(tmp_path / "m")
    (tmp_path / "m" / "_store.json").write_text('{"format": 2}')
    with pytest.raises(StoreError, match="is a store of format 2; this version of regiontok reads 1"):
        MaskStore(tmp_path / "m")


def test_shards_without_masks_are_ignored(tmp_path):
    write_masks(tmp_path / "m", [("a.jpg", random_masks(0))])
    path, table = shard_of(tmp_path / "m"), pq.read_table(shard_of(tmp_path / "m"))
    path.write_text("not a Parquet file")
    with pytest.warns(UserWarning, match="cannot be read as a Parquet file"):
        MaskStore(tmp_path / "m")
    for column in table.column_names:
        pq.write_table(table.drop_columns([column]), path)
        with pytest.warns(UserWarning, match="is not a complete shard of this store of masks"):
            MaskStore(tmp_path / "m")
    pq.write_table(table.set_column(3, "counts", pa.array([b"1"])), path)
    with pytest.warns(UserWarning, match="column counts must have type list; got binary"):
        MaskStore(tmp_path / "m")


def test_a_single_shard_is_not_a_store(tmp_path):
    write_masks(tmp_path / "m", [("a.jpg", random_masks(0))])
    with pytest.raises(StoreError, match="there is no store of masks"):
        MaskStore(shard_of(tmp_path / "m"))


def test_masks_on_a_grid_are_rejected(tmp_path):
    with pytest.raises(ValueRangeError, match="are on the patch grid and have no pixels"):
        write_masks(tmp_path / "m", [("a", MaskSet.on_grid(torch.ones(1, 2, 2)))])


def damaged(folder, change):
    """Write a store, and replace its rows by changed rows."""
    write_masks(folder, [("a.jpg", random_masks(0)), ("b.jpg", random_masks(1))])
    table = pq.read_table(shard_of(folder))
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), shard_of(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[0].update(counts=None), "masks of a.jpg"),
        (lambda rows: rows[0].update(counts=[None] * 3), "masks of a.jpg.*counts must be bytes"),
        (lambda rows: rows[0].update(counts=[b"4"] * 3), "masks of a.jpg.*the counts of an RLE must add up"),
        (lambda rows: rows[0].update(height=None), "masks of a.jpg"),
        (lambda rows: rows[0].update(scores=[0.5]), "masks of a.jpg"),
        (lambda rows: rows[0].update(ids=[1]), "masks of a.jpg.*as many ids"),
    ],
)
def test_damaged_rows_are_named_and_other_rows_are_read(tmp_path, change, message):
    damaged(tmp_path / "m", change)
    store = MaskStore(tmp_path / "m")
    with pytest.raises(StoreError, match=message):
        store["a.jpg"]
    assert len(store["b.jpg"]) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[0].update(key=None), "rows without a key"),
        (lambda rows: rows[0].update(key="b.jpg"), "two rows with the same key"),
    ],
)
def test_a_shard_with_damaged_keys_is_named_and_ignored(tmp_path, change, message):
    damaged(tmp_path / "m", change)
    with pytest.warns(UserWarning, match=message):
        store = MaskStore(tmp_path / "m")
    assert len(store) == 0
    with pytest.raises(MissingKeyError, match="The key may be in one of its 1 damaged shards"):
        store["a.jpg"]


def is_damaged(folder):
    with warnings.catch_warnings(action="ignore"):
        store = MaskStore(folder)
    try:
        for key in store:
            store[key]
    except StoreError:
        return True
    return bool(store.damaged)


def test_damaged_bytes_raise_errors_and_allocate_no_memory(tmp_path):
    write_masks(tmp_path / "m", ((f"{number}.jpg", random_masks(number)) for number in range(30)))
    path = shard_of(tmp_path / "m")
    original, generator, num_damaged = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(60):
        data = bytearray(original)
        for position in generator.integers(4, len(data), 5):
            data[position] = generator.integers(0, 256)
        path.write_bytes(data)
        num_damaged += is_damaged(tmp_path / "m")
    assert num_damaged > 20


def test_a_flipped_bit_in_a_page_is_detected(tmp_path):
    write_masks(tmp_path / "m", ((f"{number}.jpg", random_masks(number)) for number in range(30)))
    path = shard_of(tmp_path / "m")
    original = path.read_bytes()
    for position in range(2000, len(original) - 4000, 97):
        path.write_bytes(original[:position] + bytes([original[position] ^ 4]) + original[position + 1 :])
        assert is_damaged(tmp_path / "m")


def test_a_truncated_open_file_does_not_kill_the_process(tmp_path):
    write_masks(tmp_path / "m", ((f"{number}.jpg", random_masks(number)) for number in range(300)))
    store, path = MaskStore(tmp_path / "m"), shard_of(tmp_path / "m")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"part-00000-000000.parquet"):
        store["299.jpg"]


def test_ids_and_categories_are_stored(tmp_path):
    runs = random_masks(2).to_coco()
    masks = MaskSet.from_coco([{"id": 2**40 + n, "category_id": n, "segmentation": rle} for n, rle in enumerate(runs)])
    write_masks(tmp_path / "m", [("a.jpg", masks), ("b.jpg", random_masks(3))])
    store = MaskStore(tmp_path / "m")
    assert store["a.jpg"].ids.tolist() == masks.ids.tolist()
    assert store["a.jpg"].categories.tolist() == [0, 1, 2]
    assert store["b.jpg"].ids is store["b.jpg"].categories is None


@for_each(key=["/a.jpg", "../a.jpg", "a/../b.jpg", "./a.jpg", "a//b.jpg", "", "\udcff.jpg", 3])
def test_keys_that_are_not_relative_paths_are_rejected(tmp_path, key):
    with pytest.raises(ValueRangeError, match="a key must be"):
        write_masks(tmp_path / "m", [(key, random_masks(0))], overwrite=True)
    assert not (tmp_path / "m").exists()
