from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from regiontok import masks
from regiontok.errors import CheckpointError, MissingDependencyError, ValueRangeError
from regiontok.masks import MaskSettings, PipelineMasks, Sam2Masks
from regiontok.store import MaskStore
from tests.models import tiny_sam2, tiny_sam3

FEW = MaskSettings(2, 0, 0, 1)


@pytest.mark.parametrize(("name", "make"), [("sam2", tiny_sam2), ("sam3", tiny_sam3), ("sam2-pipeline", tiny_sam2)])
def test_saved_models_are_loaded_from_a_folder(tmp_path, name, make):
    model = make(2)
    model.save_pretrained(tmp_path)
    generate = masks.load(name, model=tmp_path, settings=FEW)
    assert isinstance(generate, PipelineMasks if "pipeline" in name else Sam2Masks)
    assert not generate.model.training
    assert generate.describe()["model"] == str(tmp_path)
    state = generate.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    image = Image.effect_noise((60, 40), 80).convert("RGB")
    assert generate([image])[0].to_coco() == type(generate)(model, settings=FEW)([image])[0].to_coco()


@pytest.mark.parametrize(("size", "millions"), [("tiny", 27), ("small", 34), ("base-plus", 69), ("large", 213)])
def test_sizes_have_the_published_number_of_weights(size, millions):
    with torch.device("meta"):
        model = masks._load_transformers(f"facebook/sam2.1-hiera-{size}", False, sam3=False)
    backbone = sum(parameter.numel() for parameter in model.vision_encoder.parameters())
    assert round(backbone / 1e6) == millions


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("/home/me/sam2_weights/sam2.1_hiera_large.pt", "configs/sam2.1/sam2.1_hiera_l.yaml"),
        ("sam2_hiera_small.pt", "configs/sam2/sam2_hiera_s.yaml"),
        ("facebook/sam2-hiera-tiny", "configs/sam2/sam2_hiera_t.yaml"),
        ("facebook/sam2.1-hiera-base-plus", "configs/sam2.1/sam2.1_hiera_b+.yaml"),
    ],
)
def test_the_package_config_follows_the_model_name(monkeypatch, model, config):
    built = []
    monkeypatch.setattr(
        masks, "require", lambda *_, **__: SimpleNamespace(build_sam2=lambda *given, **_: built.append(given))
    )
    masks._load_package(model, False, None)
    assert built == [(config, None)]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # in the package
def test_the_package_model_is_built_and_missing_weights_are_errors():
    pytest.importorskip("sam2", reason="the sam2 package is not installed")
    generate = masks.load("sam2-package", model="sam2.1_hiera_tiny.pt", pretrained=False, settings=FEW)
    assert generate.describe()["model"] == "random weights"
    with pytest.raises(
        CheckpointError,
        match="cannot load SAM weights 'no/sam2.1_hiera_tiny.pt': .*Pass model=a checkpoint",
    ):
        masks.load("sam2-package", model="no/sam2.1_hiera_tiny.pt")
    with pytest.raises(CheckpointError, match="cannot load SAM weights 'nobody/sam2.1-hiera-tiny'"):
        masks.load("sam2-package", model="nobody/sam2.1-hiera-tiny")
    with pytest.raises(CheckpointError, match="cannot load SAM weights 'facebook/sam2.1-hiera-tiny'"):
        masks.load("sam2-package", model="facebook/sam2.1-hiera-tiny")


@pytest.mark.parametrize("name", ["sam2", "sam3", "sam2-pipeline"])
def test_missing_weights_suggest_alternatives(name, tmp_path):
    with pytest.raises(
        CheckpointError,
        match="cannot load SAM weights .*Pass model=a folder.*use masks from a file, or use the generator 'felzenszwalb'",
    ):
        masks.load(name)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot load SAM weights"):
        masks.load(name, model=tmp_path)


def test_weights_of_another_model_are_errors(tmp_path):
    torch.manual_seed(0)
    model = tiny_sam2()
    del model.mask_decoder.conv_s0
    model.save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match="all weights of Sam2Model: 2 are missing, such as mask_decoder.conv_s0.bias"
    ):
        masks.load("sam2", model=tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sam", {}, "name must be one of 'sam2', 'sam3'"),
        ("felzenszwalb", {"model": "x"}, "generator 'felzenszwalb' takes no model"),
        ("sam2-pipeline", {"dtype": torch.bfloat16}, "generator 'sam2-pipeline' takes no dtype"),
        ("felzenszwalb", {"mosaic": 2}, "generator 'felzenszwalb': .*mosaic"),
        ("sam2", {"model": "a/b", "pretrained": False}, "the name of a SAM 2 model must contain its size"),
        ("sam2", {"device": "abacus"}, "device abacus cannot be used here"),
    ],
)
def test_invalid_arguments_are_errors(name, options, message):
    with pytest.raises(ValueRangeError, match=message):
        masks.load(name, **options)


def test_missing_packages_are_named(monkeypatch):
    def absent(module):
        raise ModuleNotFoundError(name=module.partition(".")[0])

    monkeypatch.setattr("importlib.import_module", absent)
    for name, package in (("sam2", "transformers"), ("sam2-package", "sam2")):
        with pytest.raises(MissingDependencyError, match=f"{package} is needed here"):
            masks.load(name)
    with pytest.raises(MissingDependencyError, match="scikit-image is needed here"):
        masks.load("felzenszwalb")([Image.new("RGB", (8, 8))])
    with pytest.raises(MissingDependencyError, match="pyarrow is needed here"):
        MaskStore("x.parquet")


def test_every_generator_name_has_a_table_row():
    assert tuple(masks._GENERATORS) == masks.GENERATORS


def test_registered_generators_are_loaded_by_name(monkeypatch):
    monkeypatch.setattr(masks, "_REGISTERED", {})
    masks.register("ours", lambda **options: options)
    assert masks.load("ours") == {}
    assert masks.load("ours", model="m", pretrained=False, points=3) == {"model": "m", "pretrained": False, "points": 3}
    with pytest.raises(ValueRangeError, match="a mask generator 'sam2' is already registered"):
        masks.register("sam2", dict)
