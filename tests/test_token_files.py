import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from regiontok import MaskSet, Regionizer, load_tokens, save_tokens
from regiontok.errors import DataError, OutputError, ShapeError
from regiontok.token_files import read_config
from tests.contracts.subjects import GEOMETRY, batch, same


@pytest.mark.parametrize("source", ["clustering", "patch", "segmentation", "combined"])
@pytest.mark.parametrize("order", ["raster", "area"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_written_is_read_back(tmp_path, source, order, dtype):
    given = batch()[[1]]
    regionizer = Regionizer(source=source, pool="mean", order=order, geometry=GEOMETRY)
    masks = given.masks if source in ("segmentation", "combined") else None
    tokens = regionizer(given.features.to(dtype), valid=given.valid, masks=masks)
    save_tokens(
        tmp_path / "t.safetensors", tokens, config={"image": "a.jpg", "regionizer": regionizer.config.to_dict()}
    )
    same(load_tokens(tmp_path / "t.safetensors"), tokens)
    assert read_config(tmp_path / "t.safetensors")["image"] == "a.jpg"


def test_a_image_without_a_mask_keeps_its_one_region_and_what_was_dropped(tmp_path):
    given = batch()[[0]]
    tiny = MaskSet.from_coco([{"size": list(given.masks[0].size), "counts": [0, 1, 40 * 56 - 1]}])
    tokens = Regionizer(source="segmentation", pool="mean", geometry=GEOMETRY)(given.features, masks=[tiny])
    assert tokens.regions.fallback.all()
    save_tokens(tmp_path / "t.safetensors", tokens)
    same(load_tokens(tmp_path / "t.safetensors"), tokens)


def test_tokens_of_several_images_are_refused(tmp_path):
    tokens = Regionizer(pool="mean")(torch.rand(2, 3, 3, 4))
    with pytest.raises(ShapeError, match="the tokens of one image; got 2"):
        save_tokens(tmp_path / "t", tokens)
    with pytest.raises(OutputError, match="cannot be written"):
        save_tokens(tmp_path / "none" / "t", Regionizer(pool="mean")(torch.rand(1, 3, 3, 4)))


def damage(folder, change):
    file = folder / "t.safetensors"
    masks = batch()[[0]].masks
    save_tokens(
        file, Regionizer(source="segmentation", pool="mean", geometry=GEOMETRY)(batch()[[0]].features, masks=masks)
    )
    tensors, config = load_file(file), read_config(file)
    change(tensors, config)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"config": json.dumps(config)})
    return file


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, config: tensors.pop("tokens"),
        lambda tensors, config: tensors.pop("masks"),
        lambda tensors, config: tensors.update(masks=tensors["masks"].float()),
        lambda tensors, config: tensors.update(mask_index=tensors["mask_index"][1:]),
        lambda tensors, config: tensors.update(tokens=tensors["tokens"][1:]),
        lambda tensors, config: tensors.update(masks=torch.zeros_like(tensors["masks"])),
        lambda tensors, config: config.pop("fallback"),
        lambda tensors, config: config.update(dropped=3),
        lambda tensors, config: config.update(dropped=[{"mask_index": float("inf"), "reason": "x"}]),
        lambda tensors, config: tensors.update(tokens=tensors["tokens"].long()),
        lambda tensors, config: tensors.update(labels=torch.zeros(2)),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, change):
    file = damage(tmp_path, change)
    with pytest.raises(DataError, match="t.safetensors is no whole file of tokens"):
        load_tokens(file)


def test_what_is_no_file_of_tokens_is_named(tmp_path):
    (tmp_path / "a").write_bytes(b"12345678abc")
    save_file({"x": torch.ones(1)}, tmp_path / "b")
    for name in ("a", "b", "none"):
        with pytest.raises(DataError, match=f"{name} is no whole file of tokens"):
            load_tokens(tmp_path / name)


def test_what_was_dropped_is_kept_where_no_region_has_a_mask(tmp_path):
    given = batch()[[0]]
    tiny = MaskSet.from_coco([{"size": list(given.masks[0].size), "counts": [0, 1, 40 * 56 - 1]}])
    regionizer = Regionizer(source="segmentation", pool="mean", geometry=GEOMETRY, uncovered="background")
    tokens = regionizer(given.features, masks=[tiny])
    assert tokens.regions.dropped
    save_tokens(tmp_path / "t.safetensors", tokens)
    same(load_tokens(tmp_path / "t.safetensors"), tokens)
