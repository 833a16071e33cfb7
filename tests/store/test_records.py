"""Every shard is compared with the records of its store, and changed images are detected."""

import datetime
import json
import os
import shutil

import duckdb
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from regiontok import MaskSet, Regionizer
from regiontok.cli import main
from regiontok.errors import DTypeError, ImageError, StoreError, ValueRangeError, failure_kind
from regiontok.store import MaskStore, TokenStore, write_masks, write_tokens
from regiontok.store.stamps import Stamp, stamp_of
from regiontok.store.writer import read_contents
from tests.pipeline.test_listing import draw

SHARD = "part-00000-000000.parquet"
OTHER = "part-00000-000001.parquet"


def tokens(dim=8, count=3):
    return Regionizer(pool="mean", num_regions=count)(torch.randn(1, 6, 6, dim))


def rewrite(path, change):
    """Replace the table of a shard."""
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path, write_page_checksum=True)


def as_double(table):
    kind = pa.list_(pa.field("element", pa.list_(pa.float64(), 8)))
    return table.set_column(table.schema.get_field_index("tokens"), "tokens", table.column("tokens").cast(kind))


@pytest.fixture
def store(tmp_path):
    write_tokens(tmp_path / "s", [("1.jpg", tokens())], provenance={"encoder": "clip"})
    return tmp_path / "s"


@pytest.mark.parametrize(
    ("provenance", "dim", "reason"),
    [({"encoder": "dinov2"}, 8, "written with other options: encoder"), ({"encoder": "clip"}, 16, "tokens are dim 16")],
)
def test_readers_and_writers_ignore_a_shard_with_other_options(store, tmp_path, provenance, dim, reason):
    write_tokens(tmp_path / "t", [("2.jpg", tokens(dim))], provenance=provenance)
    shutil.copy(tmp_path / "t" / SHARD, store / OTHER)
    with pytest.warns(UserWarning, match=reason):
        opened = TokenStore(store)
    assert list(opened) == ["1.jpg"]
    assert list(opened.damaged) == list(read_contents(store).damaged) == [OTHER]
    assert main(["store", str(store), "--verify"]) == 1


def test_a_shard_with_the_same_options_can_be_copied_in(store, tmp_path):
    write_tokens(tmp_path / "t", [("2.jpg", tokens())], provenance={"encoder": "clip"})
    shutil.copy(tmp_path / "t" / SHARD, store / OTHER)
    assert list(TokenStore(store)) == ["1.jpg", "2.jpg"]


@pytest.mark.parametrize("change", [as_double, lambda table: table.drop_columns(["tokens"])])
def test_readers_and_writers_agree_on_complete_shards(store, change):
    write_tokens(store, [("2.jpg", tokens())], provenance={"encoder": "clip"})
    rewrite(store / OTHER, change)
    with pytest.warns(UserWarning, match="is not a complete shard"):
        assert list(TokenStore(store)) == ["1.jpg"]
    assert list(read_contents(store).keys) == ["1.jpg"]


def test_verify_finds_tokens_that_are_not_finite(store, capsys):
    def with_nan(table):
        values = table.column("tokens").combine_chunks()
        flat = np.array(values.flatten().flatten())
        flat[3] = np.nan
        index = table.schema.get_field_index("tokens")
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat), type=values.type.value_type)
        return table.set_column(
            index, table.schema.field(index), pa.ListArray.from_arrays(values.offsets, vectors, values.type)
        )

    rewrite(store / SHARD, with_nan)
    assert main(["store", str(store), "--verify"]) == 1
    assert "1.jpg in" in (output := capsys.readouterr().err)
    assert "NaN or infinity" in output
    assert main(["store", str(store), "--repair"]) == 0
    assert len(TokenStore(store)) == 0


def test_rows_of_another_dimension_or_dtype_are_rejected(store):
    with pytest.raises(StoreError, match="has tokens with dim 8, dtype float16, but the new tokens have dim 16"):
        write_tokens(store, [("2.jpg", tokens(16))], provenance={"encoder": "clip"})
    with pytest.raises(StoreError, match="dtype float32"):
        write_tokens(store, [("2.jpg", tokens())], provenance={"encoder": "clip"}, dtype="float32")
    assert list(TokenStore(store)) == ["1.jpg"]


def test_shards_are_selected_by_name(store):
    assert list(TokenStore(store, shards=[SHARD])) == ["1.jpg"]
    with pytest.raises(ValueRangeError, match="has no shard 'part-9'; it has 1, such as part-00000-000000"):
        TokenStore(store, shards=[SHARD, "part-9"])
    for shards in (SHARD, 3):
        with pytest.raises(DTypeError, match="shards must be a slice or a list of names"):
            TokenStore(store, shards=shards)


def test_a_shard_that_links_to_itself_is_ignored(store):
    (store / OTHER).symlink_to(OTHER)
    with pytest.warns(UserWarning, match=OTHER):
        assert list(TokenStore(store)) == ["1.jpg"]


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("abc"):
        draw(tmp_path / "images" / f"{name}.png", number, size=(40, 30))
    return tmp_path / "images"


COMMANDS = {
    "masks": ["masks", "images", "--masks", "felzenszwalb", "--out", "s"],
    "tokens": ["tokenize", "images", "--store", "s"],
}


def content(row):
    return row.to_coco() if isinstance(row, MaskSet) else row.values.tolist()


@pytest.mark.parametrize("kind", COMMANDS)
def test_changed_images_are_reported_and_remade_on_request(images, kind, capsys):
    command = COMMANDS[kind]
    opened = MaskStore if kind == "masks" else TokenStore
    assert main(command) == 0
    before = opened("s")["b.png"]
    assert main(["store", "s", "--verify", "--images", "images"]) == 0
    draw(images / "b.png", 9, size=(40, 30))
    os.utime(images / "b.png", (1, 1))
    capsys.readouterr()
    assert main(command) == 0
    assert "1 images, such as b.png, have changed since their rows were written" in capsys.readouterr().err
    assert main(["store", "s", "--verify", "--images", "images"]) == 1
    assert "b.png has changed since its row was written" in capsys.readouterr().err
    assert main([*command, "--remake-changed"]) == 0
    store = opened("s")
    assert (len(store), store.repeated) == (3, 1)
    assert store.stamp("b.png") == Stamp((images / "b.png").stat().st_size, 1_000_000)
    assert content(store["b.png"]) != content(before)
    assert main(["store", "s", "--verify", "--images", "images"]) == 0
    capsys.readouterr()
    assert main([*command, "--remake-changed"]) == 0
    assert "Nothing to do" in capsys.readouterr().out


def test_rows_of_the_highest_generation_are_used(images):
    """The row of a later generation is used even if its writer has a smaller number."""
    command = COMMANDS["tokens"]
    assert main([*command, "--slice", "1/2"]) == main([*command, "--slice", "0/2"]) == 0
    old = {key: TokenStore("s")[key].values for key in TokenStore("s")}
    for number, file in enumerate(sorted(images.iterdir())):
        draw(file, 20 + number, size=(40, 30))
        os.utime(file, (2, 2))
    assert main([*command, "--remake-changed"]) == 0  # by writer 0, whose shards come before writer 1's
    store = TokenStore("s")
    assert store.repeated == 3
    assert all(not torch.equal(store[key].values, old[key]) for key in store)


def test_tokenize_warns_of_masks_of_changed_images(images, capsys):
    assert main(COMMANDS["masks"]) == 0
    draw(images / "a.png", 9, size=(40, 30))
    os.utime(images / "a.png", (1, 1))
    capsys.readouterr()
    assert main(["tokenize", "images", "--source", "segmentation", "--masks", "s", "--out", "o"]) == 0
    assert "a.png has changed since its masks were made" in capsys.readouterr().err


def test_provenance_has_all_options_that_masks_depend_on(images, capsys):
    square = {"id": 1, "image_id": 1, "segmentation": [[0, 0, 20, 0, 20, 20]]}
    file = {"images": [{"id": 1, "file_name": "a.png", "height": 30, "width": 40}], "annotations": [square]}
    images.with_name("c.json").write_text(json.dumps(file))
    command = ["masks", "images", "--coco", "c.json", "--out", "s"]
    assert main(command) == 0
    provenance = MaskStore("s").provenance
    assert provenance["stored_pixels"] is False
    assert len(provenance["digest"]) == 32
    assert main([*command, "--stored-pixels"]) == 2
    assert "stored_pixels: false in the store, true now" in capsys.readouterr().err
    images.with_name("c.json").write_text(json.dumps(file) + " ")
    assert main(command) == 2
    assert "digest" in capsys.readouterr().err


def test_failures_can_be_grouped_by_kind_in_sql(images, capsys):
    (images / "bad.png").write_bytes(b"no image")
    (images / "cut.png").write_bytes((images / "a.png").read_bytes()[:200])
    os.mkfifo(images / "p.png")
    assert (
        main(
            [
                "tokenize",
                "images/a.png",
                "images/bad.png",
                "images/cut.png",
                "images/p.png",
                "none.png",
                "--root",
                ".",
                "--store",
                "s",
            ]
        )
        == 1
    )
    found = duckdb.sql("select kind, count(*) from 's/_failed-*.parquet' group by kind order by kind").fetchall()
    assert found == [("damaged", 1), ("missing", 1), ("not_an_image", 1), ("unreadable", 1)]
    assert TokenStore("s").failure_kinds == dict(found)
    assert pandas.read_parquet("s").key.tolist() == list(TokenStore("s"))  # skips failures and JSON files
    capsys.readouterr()
    assert main(["store", "s", "--stats"]) == 0
    assert json.loads(capsys.readouterr().out)["failure_kinds"] == dict(found)


def test_failure_kinds_are_stable_words():
    assert failure_kind(ImageError("x", "damaged")) == "damaged"
    assert failure_kind(StoreError("x")) == "data"
    assert failure_kind(RuntimeError("CUDA out of memory")) == failure_kind(MemoryError()) == "memory"
    assert failure_kind(OSError("x")) == "io"
    assert failure_kind(RuntimeError("x")) == "internal"


def test_stamps_of_remote_files():
    when = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    assert stamp_of({"size": 3, "LastModified": when}) == Stamp(3, 1577836800_000000)
    assert stamp_of({"size": 3, "mtime": 2.5}) == Stamp(3, 2500000)
    assert stamp_of({"size": 3}) == Stamp(3)
    assert Stamp(3).differs(Stamp(4, 1))
    assert not Stamp(3).differs(Stamp(3, 1))


def test_masks_from_a_program_have_no_stamps(tmp_path):
    write_masks(tmp_path / "m", [("a.jpg", MaskSet.from_masks(np.ones((1, 4, 6), bool)))])
    assert MaskStore(tmp_path / "m").stamp("a.jpg") == Stamp()


def test_the_layout_is_checked_without_a_record(store):
    for file in store.glob("_options-*.json"):
        file.unlink()
    with pytest.raises(StoreError, match="has tokens with dim 8"):
        write_tokens(store, [("2.jpg", tokens(16))], provenance={"encoder": "clip"})
    assert list(TokenStore(store)) == ["1.jpg"]


@pytest.mark.parametrize("column", ["tokens", "patches"])
def test_columns_of_other_types_are_damaged(store, column):
    write_tokens(store, [("2.jpg", tokens())], provenance={"encoder": "clip"})
    rewrite(store / OTHER, lambda table: table.set_column(table.schema.get_field_index(column), column, pa.array([1])))
    with pytest.warns(UserWarning, match="is not a complete shard"):
        assert list(TokenStore(store)) == ["1.jpg"]
    assert list(read_contents(store).damaged) == [OTHER]
    assert list(TokenStore(store, shards=(name for name in [SHARD]))) == ["1.jpg"]
