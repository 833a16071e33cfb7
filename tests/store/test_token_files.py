import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from regiontok import MaskSet, Regionizer, load_tokens, save_tokens
from regiontok.errors import DataError, OutputError, ShapeError
from regiontok.store.token_files import read_config
from tests.conftest import for_each
from tests.contracts.subjects import GEOMETRY, batch, same


@for_each(
    source=["clustering", "patch", "segmentation", "combined"],
    order=["raster", "area"],
    dtype=[torch.float32, torch.bfloat16],
)
def test_tokens_are_read_back_unchanged(tmp_path, source, order, dtype):
    inputs = batch()[[1]]
    regionizer = Regionizer(source=source, pool="mean", order=order, geometry=GEOMETRY)
    masks = inputs.masks if source in ("segmentation", "combined") else None
    tokens = regionizer(inputs.features.to(dtype), valid=inputs.valid, masks=masks)
    save_tokens(
        tmp_path / "t.safetensors", tokens, config={"image": "a.jpg", "regionizer": regionizer.config.to_dict()}
    )
    same(load_tokens(tmp_path / "t.safetensors"), tokens)
    assert read_config(tmp_path / "t.safetensors")["image"] == "a.jpg"


def test_the_fallback_region_and_dropped_masks_are_stored(tmp_path):
    inputs = batch()[[0]]
    tiny = MaskSet.from_coco([{"size": list(inputs.masks[0].size), "counts": [0, 1, 40 * 56 - 1]}])
    tokens = Regionizer(source="segmentation", pool="mean", geometry=GEOMETRY)(inputs.features, masks=[tiny])
    assert tokens.regions.fallback.all()
    save_tokens(tmp_path / "t.safetensors", tokens)
    same(load_tokens(tmp_path / "t.safetensors"), tokens)


def test_tokens_of_several_images_are_rejected(tmp_path):
    tokens = Regionizer(pool="mean")(torch.rand(2, 3, 3, 4))
    with pytest.raises(ShapeError, match="tokens must contain exactly one image; got 2"):
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


@for_each(
    change=[
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
    ]
)
def test_a_damaged_file_is_named(tmp_path, change):
    file = damage(tmp_path, change)
    with pytest.raises(DataError, match="t.safetensors is not a complete token file"):
        load_tokens(file)


def test_other_files_are_rejected(tmp_path):
    (tmp_path / "a").write_bytes(b"12345678abc")
    save_file({"x": torch.ones(1)}, tmp_path / "b")
    for name in ("a", "b", "none"):
        with pytest.raises(DataError, match=f"{name} is not a complete token file"):
            load_tokens(tmp_path / name)


def test_dropped_masks_are_stored_without_regions_of_masks(tmp_path):
    inputs = batch()[[0]]
    tiny = MaskSet.from_coco([{"size": list(inputs.masks[0].size), "counts": [0, 1, 40 * 56 - 1]}])
    regionizer = Regionizer(source="segmentation", pool="mean", geometry=GEOMETRY, unassigned="background")
    tokens = regionizer(inputs.features, masks=[tiny])
    assert tokens.regions.dropped
    save_tokens(tmp_path / "t.safetensors", tokens)
    same(load_tokens(tmp_path / "t.safetensors"), tokens)
