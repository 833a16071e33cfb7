import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco

from regiontok import MaskSet
from regiontok.errors import CheckpointError, OutputError, ShapeError, ValueRangeError
from regiontok.masks import MaskStore, write_masks


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


def test_what_is_written_is_read_back_in_any_order_over_row_groups(tmp_path):
    path = tmp_path / "m.parquet"
    written = {f"folder/{number}.jpg": random_masks(number, number % 4) for number in range(450)}
    assert write_masks(path, iter(written.items()), made_by={"generator": "test", "settings": [1]}) == 450
    store = MaskStore(path)
    assert len(store) == 450
    assert store.keys() == list(written)
    assert store.made_by == {"generator": "test", "settings": [1]}
    assert repr(store).endswith("m.parquet', 450 photos)")
    for number in (449, 0, 200, 199, 3, 401):
        assert same(store[f"folder/{number}.jpg"], written[f"folder/{number}.jpg"])
    assert same(store["7.jpg"], written["folder/7.jpg"])
    assert same(store["/elsewhere/folder/7.jpg"], written["folder/7.jpg"])
    assert [store.count(key) for key in ("folder/0.jpg", "7.jpg", "/elsewhere/folder/449.jpg")] == [0, 3, 1]
    for read in (store.__getitem__, store.count):
        with pytest.raises(CheckpointError, match="has no such photo"):
            read("/elsewhere/7.jpg")


def test_others_can_read_it(tmp_path):
    path = tmp_path / "m.parquet"
    masks = random_masks(1)
    write_masks(path, [("a.jpg", masks)])
    table = pq.read_table(path)
    assert table.column_names == ["key", "height", "width", "counts", "scores", "stability", "ids", "categories"]
    row = table.to_pylist()[0]
    decoded = coco.area([{"size": [row["height"], row["width"]], "counts": counts} for counts in row["counts"]])
    assert decoded.tolist() == masks.areas().tolist()
    assert json.loads(table.schema.metadata[b"masks"]) == {}
    assert b"regiontok" in table.schema.metadata


def test_a_store_can_be_sent_to_a_worker(tmp_path):
    path = tmp_path / "m.parquet"
    masks = random_masks(1)
    write_masks(path, [("a.jpg", masks)])
    assert same(pickle.loads(pickle.dumps(MaskStore(path)))["a.jpg"], masks)


def test_scores_may_be_missing(tmp_path):
    masks = MaskSet.from_masks(np.ones((2, 3, 4), bool))
    write_masks(tmp_path / "m.parquet", [("a.jpg", masks)])
    assert same(MaskStore(tmp_path / "m.parquet")["a.jpg"], masks)


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "m.parquet"
    write_masks(path, [("a.jpg", random_masks(0))])
    before = path.read_bytes()

    def broken():
        yield "b.jpg", random_masks(1)
        raise RuntimeError("the generator broke")

    with pytest.raises(RuntimeError, match="the generator broke"):
        write_masks(path, broken())
    with pytest.raises(ValueRangeError, match="masks of b.jpg come twice"):
        write_masks(path, [("b.jpg", random_masks(1))] * 2)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["m.parquet"]


def test_a_file_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(OutputError, match="m.parquet cannot be written .*No such file"):
        write_masks(tmp_path / "no" / "m.parquet", [("a.jpg", random_masks(0))])


def test_photos_that_are_not_there_or_not_alone(tmp_path):
    path = tmp_path / "m.parquet"
    write_masks(path, [("x/a.jpg", random_masks(0)), ("y/a.jpg", random_masks(1))])
    store = MaskStore(path)
    with pytest.raises(CheckpointError, match=r"masks of a.jpg: .* has 2 photos of that name: x/a.jpg, y/a.jpg"):
        store["a.jpg"]
    with pytest.raises(CheckpointError, match=r"masks of b.jpg: .* has no such photo"):
        store["b.jpg"]
    assert store["y/a.jpg"].size == (6, 9)


def test_files_that_are_no_masks(tmp_path):
    with pytest.raises(CheckpointError, match="masks: there is no file .*Make one with regiontok masks"):
        MaskStore(tmp_path / "m.parquet")
    (tmp_path / "text.parquet").write_text("no parquet at all")
    with pytest.raises(CheckpointError, match="is not a whole Parquet file of masks"):
        MaskStore(tmp_path / "text.parquet")
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(CheckpointError, match="is not a whole Parquet file of masks"):
        MaskStore(tmp_path / "other.parquet")
    pq.write_table(
        pa.table({"key": ["a"], "height": [1], "width": [1], "counts": [[b"1"]]}), tmp_path / "other.parquet"
    )
    with pytest.raises(CheckpointError, match="is not a whole Parquet file of masks"):
        MaskStore(tmp_path / "other.parquet")
    whole = tmp_path / "whole.parquet"
    write_masks(whole, [("a.jpg", random_masks(0))])
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="is not a whole Parquet file of masks"):
        MaskStore(cut)


def test_a_damaged_row_is_named(tmp_path):
    path = tmp_path / "m.parquet"
    row = {"key": "a.jpg", "height": 3, "width": 3, "counts": [b"4"], "scores": [0.5], "stability": [0.5]}
    pq.write_table(pa.Table.from_pylist([row]), path)
    with pytest.raises(CheckpointError, match="masks of a.jpg in .*: mask 0: the counts of an RLE must add up"):
        MaskStore(path)["a.jpg"]


def test_masks_on_a_grid_are_not_kept(tmp_path):
    import torch  # noqa: PLC0415

    with pytest.raises((ValueRangeError, ShapeError), match="their pixels are not known"):
        write_masks(tmp_path / "m.parquet", [("a", MaskSet.on_grid(torch.ones(1, 2, 2)))])


def damaged(path, change):
    """A file of masks whose rows are changed before they are written again."""
    write_masks(path, [("a.jpg", random_masks(0)), ("b.jpg", random_masks(1))])
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[0].update(key=None), "rows without a key"),
        (lambda rows: rows[0].update(key="b.jpg"), "a key that comes twice"),
        (lambda rows: rows[0].update(counts=None), "masks of a.jpg"),
        (lambda rows: rows[0].update(counts=[None] * 3), "masks of a.jpg.*counts must be bytes"),
        (lambda rows: rows[0].update(height=None), "masks of a.jpg"),
        (lambda rows: rows[0].update(scores=[0.5]), "masks of a.jpg"),
        (lambda rows: rows[0].update(ids=[1]), "masks of a.jpg.*as many ids"),
    ],
)
def test_nulls_and_keys_that_are_not_alone_are_named(tmp_path, change, message):
    damaged(tmp_path / "m.parquet", change)
    with pytest.raises(CheckpointError, match=message):
        MaskStore(tmp_path / "m.parquet")["a.jpg"]


def test_damaged_bytes_are_named_and_take_no_memory(tmp_path):
    path = tmp_path / "m.parquet"
    write_masks(path, ((f"{number}.jpg", random_masks(number)) for number in range(30)))
    whole, generator, named = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(60):
        raw = bytearray(whole)
        for place in generator.integers(4, len(raw), 5):
            raw[place] = generator.integers(0, 256)
        path.write_bytes(raw)
        try:
            store = MaskStore(path)
            for key in store.keys():  # noqa: SIM118
                store[key]
        except CheckpointError:
            named += 1
    assert named > 20


def test_a_file_that_is_cut_while_it_is_open_does_not_end_the_process(tmp_path):
    path = tmp_path / "m.parquet"
    write_masks(path, ((f"{number}.jpg", random_masks(number)) for number in range(300)))
    store = MaskStore(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"m.parquet is damaged|m.parquet"):
        store["299.jpg"]


def test_ids_and_categories_are_kept(tmp_path):
    runs = random_masks(2).to_coco()
    masks = MaskSet.from_coco([{"id": 2**40 + n, "category_id": n, "segmentation": one} for n, one in enumerate(runs)])
    write_masks(tmp_path / "m.parquet", [("a.jpg", masks), ("b.jpg", random_masks(3))])
    store = MaskStore(tmp_path / "m.parquet")
    assert store["a.jpg"].ids.tolist() == masks.ids.tolist()
    assert store["a.jpg"].categories.tolist() == [0, 1, 2]
    assert store["b.jpg"].ids is store["b.jpg"].categories is None


def test_a_key_that_is_not_utf_8_is_refused(tmp_path):
    with pytest.raises(ValueRangeError, match="is not UTF-8, and keys of masks are. Rename the photo"):
        write_masks(tmp_path / "m.parquet", [("\udcff.jpg", random_masks(0))])
    assert not list(tmp_path.iterdir())
