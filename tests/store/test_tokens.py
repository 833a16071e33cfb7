"""Stores of tokens: rows are read back unchanged, except for rounding to float16."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from regiontok import MaskSet, Regionizer, Regions, RegionTokens
from regiontok.errors import ShapeError, StoreError, ValueRangeError
from regiontok.geometry import ImageGeometry
from regiontok.regions import Dropped
from regiontok.store import TokenStore, write_tokens
from regiontok.store.tokens import tokens_table
from tests.conftest import for_each, smooth_features


def clustered(batch=1, seed=0):
    return Regionizer(pool="mean")(smooth_features(6, 7, 16, batch=batch, seed=seed))


def of_masks(seed=0):
    generator = np.random.default_rng(seed)
    masks = MaskSet.from_masks(generator.random((4, 12, 14)) < 0.3, scores=generator.random(4))
    empty = MaskSet.from_masks(np.zeros((2, 12, 14), bool))
    regionizer = Regionizer(source="segmentation", pool="mean", geometry=ImageGeometry.squash((12, 14)))
    return regionizer(smooth_features(6, 7, 16, batch=2, seed=seed), masks=[masks, empty])


def tokens_of(tokens, image):
    """Return the tokens of one image of a batch."""
    is_region = tokens.regions.image == image
    member = is_region[tokens.regions.region]
    regions = tokens.regions
    return RegionTokens(
        tokens.values[is_region],
        Regions(
            patch=regions.patch[member],
            region=regions.region[member] - int(is_region.nonzero()[0]),
            image=torch.zeros(int(is_region.sum()), dtype=torch.int64),
            mask_index=regions.mask_index[is_region],
            score=regions.score[is_region],
            grids=regions.grids[image][None],
            fallback=regions.fallback[image][None],
            dropped=tuple(Dropped(0, *mask[1:]) for mask in regions.dropped if mask.image == image),
        ),
    )


def assert_same(actual, expected):
    assert torch.equal(actual.values, expected.values)
    for name in ("patch", "region", "image", "mask_index", "grids", "fallback"):
        assert torch.equal(getattr(actual.regions, name), getattr(expected.regions, name)), name
    assert torch.equal(actual.regions.score.nan_to_num(-1), expected.regions.score.nan_to_num(-1))
    assert actual.regions.dropped == expected.regions.dropped


@pytest.mark.parametrize("tokens", [clustered(3), of_masks()], ids=["labels", "masks"])
def test_a_batch_is_read_back_by_image(tmp_path, tokens):
    count = len(tokens.regions.grids)
    pairs = [(f"{image}.jpg", tokens_of(tokens, image)) for image in range(count)]
    assert write_tokens(tmp_path / "t", pairs, provenance={"of": "test"}, dtype="float32") == count
    store = TokenStore(tmp_path / "t")
    for key, expected in pairs:
        assert_same(store[key], expected)
        assert store.count(key) == len(expected)
        assert store.size(key) is None
    table = tokens_table(["0.jpg"] * count, tokens, sizes=[(12, 14)] * count, dtype="float32")
    assert table.column("tokens").to_pylist() == pq.read_table(tmp_path / "t" / store.shards[0])["tokens"].to_pylist()
    assert store.provenance == {"of": "test"}
    store["0.jpg"].values.add_(1)  # its own memory
    assert_same(store["0.jpg"], pairs[0][1])


def test_tokens_beyond_half_precision_are_rejected(tmp_path):
    tokens = clustered()
    write_tokens(tmp_path / "t", [("a.jpg", tokens)])
    assert torch.equal(TokenStore(tmp_path / "t")["a.jpg"].values, tokens.values.half())
    large = RegionTokens(tokens.values * 1e6, tokens.regions)
    with pytest.raises(ValueRangeError, match="tokens must be finite as float16. Store large values as float32"):
        write_tokens(tmp_path / "t", [("b.jpg", large)])
    with pytest.raises(ValueRangeError, match="dtype must be one of 'float16', 'float32'"):
        write_tokens(tmp_path / "t", [("b.jpg", tokens)], dtype="bfloat16")
    with pytest.raises(ShapeError, match="tokens of b.jpg must be of one image; got 2 images"):
        write_tokens(tmp_path / "t", [("b.jpg", clustered(2))])


def test_other_programs_can_read_shards(tmp_path):
    datasets, duckdb = pytest.importorskip("datasets"), pytest.importorskip("duckdb")
    tokens = clustered()
    write_tokens(tmp_path / "t", [("a.jpg", tokens)])
    files = str(tmp_path / "t" / "part-*.parquet")
    ((key, count, first),) = duckdb.sql(f"select key, len(tokens), tokens[1] from '{files}'").fetchall()
    assert (key, count) == ("a.jpg", len(tokens))
    assert torch.equal(torch.tensor(first), tokens.values[0].half().float())
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert torch.equal(loaded.with_format("torch")[0]["tokens"].half(), tokens.values.half())
    table = pq.read_table(tmp_path / "t" / TokenStore(tmp_path / "t").shards[0])
    assert [len(patches) for patches in table["patches"][0].as_py()] == tokens.regions.areas().tolist()


@for_each(
    change=[
        lambda row: row.update(patches=row["patches"][1:]),
        lambda row: row.update(patches=[[], *row["patches"][1:]]),
        lambda row: row.update(patches=[[99], *row["patches"][1:]]),
        lambda row: row.update(patches=[[-1], *row["patches"][1:]]),
        lambda row: row.update(tokens=[], patches=[]),
        lambda row: row.update(tokens=None),
        lambda row: row.update(rows=0),
        lambda row: row.update(rows=None),
        lambda row: row.update(fallback=None),
        lambda row: row.update(mask_index=[1]),
        lambda row: row.update(scores=[0.5]),
    ]
)
def test_damaged_rows_are_named(tmp_path, change):
    write_tokens(tmp_path / "t", [("a.jpg", clustered())])
    shard = tmp_path / "t" / TokenStore(tmp_path / "t").shards[0]
    table = pq.read_table(shard)
    rows = table.to_pylist()
    change(rows[0])
    names = {name: table.schema.field(name).type for name in table.column_names}
    names |= {"tokens": pa.list_(pa.list_(pa.float16(), 16)), "patches": pa.list_(pa.list_(pa.int32()))}
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(list(names.items()))), shard)
    with pytest.raises(StoreError, match=r"tokens of a.jpg in .* are damaged"):
        TokenStore(tmp_path / "t")["a.jpg"]


def test_a_shard_without_tokens_is_ignored(tmp_path):
    write_tokens(tmp_path / "t", [("a.jpg", clustered())])
    shard = tmp_path / "t" / TokenStore(tmp_path / "t").shards[0]
    pq.write_table(pq.read_table(shard, columns=["key", "rows", "cols"]), shard)
    with pytest.warns(UserWarning, match="is not a complete shard of this store of tokens"):
        TokenStore(tmp_path / "t")


def test_patch_features_are_stored_as_tokens(tmp_path):
    features = smooth_features(6, 7, 16)
    tokens = Regionizer(source="patch", norm="none", pool="mean")(features)
    write_tokens(tmp_path / "t", [("a.jpg", tokens)], dtype="float32")
    assert torch.equal(TokenStore(tmp_path / "t")["a.jpg"].values.reshape(1, 6, 7, 16), features)
