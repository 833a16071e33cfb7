"""Stores of masks: what is written is read back, by us and by others."""

import json
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pycocotools import mask as coco

from regiontok import MaskSet
from regiontok.errors import MissingKeyError, OutputError, StoreError, ValueRangeError
from regiontok.store import MaskStore, write_masks


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


def test_what_is_written_is_read_back_in_any_order_over_shards_and_groups(tmp_path):
    written = {f"folder/{number}.jpg": random_masks(number, number % 4) for number in range(450)}
    made_by = {"generator": "test", "settings": [1]}
    assert write_masks(tmp_path / "m", iter(written.items()), made_by=made_by, shard_size=200) == 450
    store = MaskStore(tmp_path / "m")
    assert len(store) == 450
    assert list(store) == list(written)
    assert store.made_by == made_by
    assert repr(store).endswith("m', 450 images, 3 shards)")
    for number in (449, 0, 200, 199, 3, 401):
        assert same(store[f"folder/{number}.jpg"], written[f"folder/{number}.jpg"])
    assert [store.count(f"folder/{number}.jpg") for number in (0, 7, 449)] == [0, 3, 1]
    assert all(same(masks, written[key]) for key, masks in store.items())
    assert (store.repeated, store.damaged, store.failures) == (0, {}, {})


def test_a_key_matches_whole(tmp_path):
    write_masks(tmp_path / "m", [("x/a.jpg", random_masks(0)), ("y/a.jpg", random_masks(1))])
    store = MaskStore(tmp_path / "m")
    assert "y/a.jpg" in store
    assert store["y/a.jpg"].size == (6, 9)
    for key in ("a.jpg", "/elsewhere/x/a.jpg", "x/A.jpg", "x/a.jpg/"):
        assert key not in store
        assert store.get(key) is None
        for read in (store.__getitem__, store.count):
            with pytest.raises(MissingKeyError, match=r"m has no masks of '.*'\. Its keys are such as 'x/a.jpg'\."):
                read(key)
    assert isinstance(MissingKeyError("a"), KeyError)
    assert 3 not in store


def test_others_can_read_it(tmp_path):
    datasets, duckdb = pytest.importorskip("datasets"), pytest.importorskip("duckdb")
    masks = random_masks(1)
    write_masks(tmp_path / "m", [("a.jpg", masks), ("b.jpg", random_masks(2, 0))])
    table = pq.read_table(shard_of(tmp_path / "m"))
    of_masks = ["key", "height", "width", "counts", "scores", "stability", "ids", "categories"]
    assert table.column_names == [*of_masks, "image_bytes", "image_modified"]
    row = table.to_pylist()[0]
    decoded = coco.area([{"size": [row["height"], row["width"]], "counts": counts} for counts in row["counts"]])
    assert decoded.tolist() == masks.areas().tolist()
    assert json.loads(table.schema.metadata[b"masks"]) == {}
    assert b"regiontok" in table.schema.metadata
    files = str(tmp_path / "m" / "part-*.parquet")
    assert duckdb.sql(f"select key, len(counts) from '{files}' order by key").fetchall() == [("a.jpg", 3), ("b.jpg", 0)]
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded[0]["counts"] == row["counts"]


def test_a_store_can_be_sent_to_a_worker(tmp_path):
    masks = random_masks(1)
    write_masks(tmp_path / "m", [("a.jpg", masks)])
    assert same(pickle.loads(pickle.dumps(MaskStore(tmp_path / "m")))["a.jpg"], masks)


def test_scores_may_be_missing(tmp_path):
    masks = MaskSet.from_masks(np.ones((2, 3, 4), bool))
    write_masks(tmp_path / "m", [("a.jpg", masks)])
    assert same(MaskStore(tmp_path / "m")["a.jpg"], masks)


def test_more_masks_are_added_and_none_is_there_twice(tmp_path):
    write_masks(tmp_path / "m", [("a.jpg", random_masks(0))])
    write_masks(tmp_path / "m", [("b.jpg", random_masks(1))])
    with pytest.raises(ValueRangeError, match="masks of b.jpg are there already, or come twice"):
        write_masks(tmp_path / "m", [("b.jpg", random_masks(1))])
    with pytest.raises(ValueRangeError, match="masks of c.jpg are there already, or come twice"):
        write_masks(tmp_path / "m", [("c.jpg", random_masks(1))] * 2)
    assert list(MaskStore(tmp_path / "m")) == ["a.jpg", "b.jpg", "c.jpg"]
    with pytest.raises(ValueRangeError, match=r"made by other options:\n  seed: not set in the store, 1 now\n"):
        write_masks(tmp_path / "m", [("c.jpg", random_masks(1))], made_by={"seed": 1})
    write_masks(tmp_path / "m", [("c.jpg", random_masks(1))], made_by={"seed": 1}, overwrite=True)
    assert list(MaskStore(tmp_path / "m")) == ["c.jpg"]


def test_an_error_in_the_middle_loses_no_shard(tmp_path):
    def broken():
        yield "a.jpg", random_masks(0)
        yield "b.jpg", random_masks(1)
        raise RuntimeError("the generator broke")

    with pytest.raises(RuntimeError, match="the generator broke"):
        write_masks(tmp_path / "m", broken(), shard_size=1)
    assert list(MaskStore(tmp_path / "m")) == ["a.jpg", "b.jpg"]
    assert not [one for one in (tmp_path / "m").iterdir() if one.name.endswith(".tmp")]


def test_places_that_are_no_store(tmp_path):
    with pytest.raises(StoreError, match=r"there is no store of masks .*Make one with regiontok masks IMAGE"):
        MaskStore(tmp_path / "m")
    (tmp_path / "file").write_text("a file")
    with pytest.raises(OutputError, match="file is a file, and a store is a folder"):
        write_masks(tmp_path / "file", [])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match=r"full is a folder of other things, such as letter.txt"):
        write_masks(tmp_path / "full", [])
    write_masks(tmp_path / "m", [])
    assert len(MaskStore(tmp_path / "m")) == 0
    with pytest.raises(MissingKeyError, match="It is empty"):
        MaskStore(tmp_path / "m")["a.jpg"]
    for text in ("{", "[]", '{"format": 1}', '{"format": 1, "kind": 3, "made_by": {}, "images": []}'):
        (tmp_path / "m" / "store.json").write_text(text)
        with pytest.raises(StoreError, match=r"store.json is damaged"):
            MaskStore(tmp_path / "m")
    (tmp_path / "m" / "store.json").write_text('{"format": 2}')
    with pytest.raises(StoreError, match="is a store of format 2; this version of regiontok reads 1"):
        MaskStore(tmp_path / "m")


def test_the_single_file_of_before_is_read(tmp_path):
    masks = random_masks(1)
    row = {"key": "images/a.jpg", "height": masks.size[0], "width": masks.size[1]}
    row |= {"counts": [one["counts"] for one in masks.to_coco()], "scores": masks.scores, "stability": masks.stability}
    table = pa.Table.from_pylist([row])
    pq.write_table(table.replace_schema_metadata({"masks": '{"generator": "old"}'}), tmp_path / "m.parquet")
    store = MaskStore(tmp_path / "m.parquet")
    assert same(store["images/a.jpg"], masks)
    assert store.made_by == {"generator": "old"}
    assert store.count("images/a.jpg") == 3
    assert same(pickle.loads(pickle.dumps(store))["images/a.jpg"], masks)


def test_files_that_are_no_masks(tmp_path):
    (tmp_path / "text.parquet").write_text("no parquet at all")
    with pytest.raises(StoreError, match="is not a whole Parquet file"):
        MaskStore(tmp_path / "text.parquet")
    for columns in ({"key": ["a"]}, {"key": ["a"], "height": [1], "width": [1], "counts": [[b"1"]]}):
        pq.write_table(pa.table(columns), tmp_path / "other.parquet")
        with pytest.raises(StoreError, match="other.parquet is no complete shard of this store of masks"):
            MaskStore(tmp_path / "other.parquet")


def test_a_damaged_row_is_named(tmp_path):
    row = {"key": "a.jpg", "height": 3, "width": 3, "counts": [b"4"], "scores": [0.5], "stability": [0.5]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "m.parquet")
    with pytest.raises(StoreError, match="masks of a.jpg in .*: mask 0: the counts of an RLE must add up"):
        MaskStore(tmp_path / "m.parquet")["a.jpg"]


def test_masks_on_a_grid_are_not_kept(tmp_path):
    with pytest.raises(ValueRangeError, match="their pixels are not known"):
        write_masks(tmp_path / "m", [("a", MaskSet.on_grid(torch.ones(1, 2, 2)))])


def damaged(folder, change):
    """A store whose rows are changed before they are written again."""
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
        (lambda rows: rows[0].update(height=None), "masks of a.jpg"),
        (lambda rows: rows[0].update(scores=[0.5]), "masks of a.jpg"),
        (lambda rows: rows[0].update(ids=[1]), "masks of a.jpg.*as many ids"),
    ],
)
def test_rows_of_nulls_are_named_and_the_others_served(tmp_path, change, message):
    damaged(tmp_path / "m", change)
    store = MaskStore(tmp_path / "m")
    with pytest.raises(StoreError, match=message):
        store["a.jpg"]
    assert len(store["b.jpg"]) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[0].update(key=None), "rows without a key"),
        (lambda rows: rows[0].update(key="b.jpg"), "a key that comes twice"),
    ],
)
def test_a_shard_of_damaged_keys_is_named_and_left_out(tmp_path, change, message):
    damaged(tmp_path / "m", change)
    with pytest.warns(UserWarning, match=message):
        store = MaskStore(tmp_path / "m")
    assert len(store) == 0
    with pytest.raises(MissingKeyError, match="1 of its shards are damaged and may have it"):
        store["a.jpg"]


def test_damaged_bytes_are_named_and_take_no_memory(tmp_path):
    write_masks(tmp_path / "m", ((f"{number}.jpg", random_masks(number)) for number in range(30)))
    path = shard_of(tmp_path / "m")
    whole, generator, named = path.read_bytes(), np.random.default_rng(0), 0
    shutil.copy(path, tmp_path / "alone.parquet")
    for _ in range(60):
        raw = bytearray(whole)
        for place in generator.integers(4, len(raw), 5):
            raw[place] = generator.integers(0, 256)
        (tmp_path / "alone.parquet").write_bytes(raw)
        try:
            store = MaskStore(tmp_path / "alone.parquet")
            for key in store:
                store[key]
        except StoreError:
            named += 1
    assert named > 20


def test_a_bit_that_flips_in_a_page_is_found(tmp_path):
    write_masks(tmp_path / "m", ((f"{number}.jpg", random_masks(number)) for number in range(30)))
    path = shard_of(tmp_path / "m")
    whole, found = path.read_bytes(), 0
    for place in range(2000, len(whole) - 4000, 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            store = MaskStore(path)
            for key in store:
                store[key]
        except StoreError:
            found += 1
    assert found == len(range(2000, len(whole) - 4000, 97))


def test_a_file_that_is_cut_while_it_is_open_does_not_end_the_process(tmp_path):
    write_masks(tmp_path / "m", ((f"{number}.jpg", random_masks(number)) for number in range(300)))
    store, path = MaskStore(tmp_path / "m"), shard_of(tmp_path / "m")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"part-00000-000000.parquet"):
        store["299.jpg"]


def test_ids_and_categories_are_kept(tmp_path):
    runs = random_masks(2).to_coco()
    masks = MaskSet.from_coco([{"id": 2**40 + n, "category_id": n, "segmentation": one} for n, one in enumerate(runs)])
    write_masks(tmp_path / "m", [("a.jpg", masks), ("b.jpg", random_masks(3))])
    store = MaskStore(tmp_path / "m")
    assert store["a.jpg"].ids.tolist() == masks.ids.tolist()
    assert store["a.jpg"].categories.tolist() == [0, 1, 2]
    assert store["b.jpg"].ids is store["b.jpg"].categories is None


@pytest.mark.parametrize("key", ["/a.jpg", "../a.jpg", "a/../b.jpg", "./a.jpg", "a//b.jpg", "", "\udcff.jpg", 3])
def test_keys_that_are_no_path_below_a_folder_are_refused(tmp_path, key):
    with pytest.raises(ValueRangeError, match="a key must be|is not UTF-8, and keys are"):
        write_masks(tmp_path / "m", [(key, random_masks(0))], overwrite=True)
    assert not (tmp_path / "m").exists()
