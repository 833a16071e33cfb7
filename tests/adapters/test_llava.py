"""Test with a small model that has LLaVA's methods; the real checkout is not a package and was tried by hand."""

import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from regiontok import ImageGeometry, MaskSet, Regionizer
from regiontok.adapters.llava import RegionProjector, add_regions, load_regions, remove_regions
from regiontok.errors import CheckpointError, DTypeError, ShapeError, ValueRangeError
from tests.models import IDENTITY


class Tower(nn.Module):
    hidden_size, num_patches_per_side = 32, 4

    def forward(self, images):
        return torch.nn.functional.unfold(images, 14, stride=14).transpose(1, 2)[..., :32]


class Llava(nn.Module):
    """A model with the attributes and the ``encode_images`` of LLaVA's classes."""

    def __init__(self, **config):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Module()
        self.model.vision_tower = Tower()
        self.model.mm_projector = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64))
        self.config = types.SimpleNamespace(**config)

    def get_model(self):
        return self.model

    def get_vision_tower(self):
        return getattr(self.model, "vision_tower", None)

    def encode_images(self, images):
        return self.get_model().mm_projector(self.get_model().vision_tower(images))


IMAGES = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def test_one_region_per_patch_equals_the_stock_model_and_is_removable():
    model = Llava(image_aspect_ratio=None)
    expected, own = model.encode_images(IMAGES), model.model.mm_projector
    add_regions(model, Regionizer(**IDENTITY))
    assert torch.equal(torch.stack(model.encode_images(IMAGES)), expected)
    assert model.config.regiontok["source"] == "patch"
    regionizer = remove_regions(model)
    assert isinstance(regionizer, Regionizer)
    assert model.model.mm_projector is own
    assert torch.equal(model.encode_images(IMAGES), expected)
    assert not hasattr(model.config, "regiontok")


def test_side_inputs_apply_inside_the_with_block():
    model = Llava()
    regions = add_regions(model, Regionizer(source="segmentation", pool="mean", geometry=ImageGeometry.letterbox(56)))
    halves = np.zeros((2, 20, 40), bool)
    halves[0, :, :20], halves[1, :, 20:] = True, True
    with regions.side_inputs(masks=[halves, halves[:1]], image_sizes=[(20, 40), (20, 40)]):
        assert [len(one) for one in model.encode_images(IMAGES)] == [2, 1]
    with pytest.raises(ValueRangeError, match="needs masks"):
        model.encode_images(IMAGES)
    with (
        pytest.raises(ValueRangeError, match="masks of padded images need image_sizes"),
        regions.side_inputs(masks=[halves] * 2),
    ):
        pass
    on_grid = MaskSet.on_grid(torch.ones(1, 4, 4))
    with regions.side_inputs(masks=[on_grid] * 2):  # already on the patch grid
        assert [len(one) for one in model.encode_images(IMAGES)] == [1, 1]
    remove_regions(model)
    regions = add_regions(model, Regionizer(**IDENTITY | {"padding": "drop"}, geometry=ImageGeometry.letterbox(56)))
    with regions.side_inputs(image_sizes=[(20, 40), (30, 30)]):
        assert [len(one) for one in model.encode_images(IMAGES)] == [8, 16]


def test_budgets_per_image_and_num_tokens():
    model, sizes = Llava(), [(20, 40), (30, 30)]
    options = {"pool": "mean", "geometry": ImageGeometry.letterbox(56), "num_regions": 10}
    regions = add_regions(model, Regionizer(**options))
    for budget in (None, 5, [12, 3]):
        counts = regions.num_tokens(sizes, num_regions=budget)
        with regions.side_inputs(image_sizes=sizes, num_regions=budget):
            assert [len(one) for one in model.encode_images(IMAGES)] == counts
    assert counts == [8, 3]
    assert [len(one) for one in model.encode_images(IMAGES)] == [10, 10]


def test_weights_of_stage_1_are_loaded_in_stage_2(tmp_path):
    model = Llava()
    add_regions(model, Regionizer(dim=32, num_heads=4))
    nn.init.normal_(model.model.mm_projector.regionizer.pool.out.weight)
    saved = {name: one for name, one in model.named_parameters() if "mm_projector" in name}  # as LLaVA's trainer does
    torch.save(saved, tmp_path / "mm_projector.bin")
    second = Llava()
    add_regions(second, Regionizer(dim=32, num_heads=4))
    load_regions(second, tmp_path / "mm_projector.bin")
    third = Llava()
    add_regions(third, Regionizer(dim=32, num_heads=4))
    load_regions(third, tmp_path)  # the folder that stage 1 leaves
    expected = model.encode_images(IMAGES)
    for loaded in (second, third):
        for mine, theirs in zip(loaded.encode_images(IMAGES), expected, strict=True):
            assert torch.equal(mine, theirs)
    torch.save(
        {f"model.mm_projector.{name}": one for name, one in Llava().model.mm_projector.state_dict().items()},
        tmp_path / "stock.bin",
    )
    with pytest.raises(
        CheckpointError, match="stock.bin does not match this model's projector and regions; they differ in"
    ):
        load_regions(second, tmp_path / "stock.bin")
    with pytest.raises(CheckpointError, match="none.bin is neither a file nor a folder"):
        load_regions(second, tmp_path / "none.bin")


@pytest.mark.parametrize("order", ["raster", "random"])
def test_weights_are_loaded_from_the_folder_of_a_whole_model(tmp_path, order):
    model = Llava()
    add_regions(model, Regionizer(dim=32, num_heads=4, order=order))
    nn.init.normal_(model.model.mm_projector.regionizer.pool.out.weight)
    state = {name: one.detach() for name, one in model.named_parameters()}
    save_file({name: one for name, one in state.items() if "0." not in name}, tmp_path / "model-1.safetensors")
    save_file({name: one for name, one in state.items() if "0." in name}, tmp_path / "model-2.safetensors")
    second = Llava()
    add_regions(second, Regionizer(dim=32, num_heads=4, order=order))
    load_regions(second, tmp_path)
    for name, one in second.named_parameters():
        assert torch.equal(one, state[name]), name
    third = Llava()
    third.model.mm_projector = nn.Sequential(nn.Linear(32, 16))
    add_regions(third, Regionizer(dim=32, num_heads=4, order=order))
    with pytest.raises(CheckpointError, match="does not have the shapes of this model"):
        load_regions(third, tmp_path)


def test_gradients_reach_regions_and_projector():
    model = Llava()
    regions = add_regions(model, Regionizer(dim=32, num_heads=4))
    nn.init.normal_(regions.regionizer.pool.out.weight)
    torch.cat(model.encode_images(IMAGES)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in regions.parameters())


def without_tower():
    model = Llava()
    del model.model.vision_tower
    return model


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (nn.Linear(1, 1), IDENTITY, DTypeError, "model must be a LLaVA with a vision tower and an mm_projector; got Linear"),
        (without_tower(), IDENTITY, DTypeError, "Build them with initialize_vision_modules first"),
        (Llava(image_aspect_ratio="anyres_max_9"), IDENTITY, ValueRangeError, "images that are cut into tiles"),
        (Llava(mm_patch_merge_type="spatial_unpad"), IDENTITY, ValueRangeError, "images that are cut into tiles"),
        (Llava(mm_vision_select_feature="cls_patch"), IDENTITY, ValueRangeError, "regions are made of patches only"),
        (Llava(), {"dim": 16}, ShapeError, "the Regionizer has dim=16, and the features of this vision tower have dimension 32"),
    ],
)  # fmt: skip
def test_unsupported_models_are_rejected(model, options, error, message):
    with pytest.raises(error, match=message):
        add_regions(model, Regionizer(**options))


def test_invalid_calls_are_rejected():
    model = Llava()
    regions = add_regions(model, Regionizer(**IDENTITY))
    with pytest.raises(ValueRangeError, match="has regions already"):
        add_regions(model, Regionizer(**IDENTITY))
    with pytest.raises(
        ShapeError, match=r"features must be \(images, 16, dim\), the tower's patches; got \(1, 17, 32\)"
    ):
        regions(torch.ones(1, 17, 32))
    with pytest.raises(DTypeError, match="model must be a LLaVA with regions; got Linear"):
        remove_regions(nn.Linear(1, 1))
    assert isinstance(regions, RegionProjector)
