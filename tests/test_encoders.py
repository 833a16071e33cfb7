import builtins
import importlib
import sys

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from regiontok import ImageGeometry, UnionFindClusterer, encoders
from regiontok.encoders import ENCODERS, Encoder, load
from regiontok.errors import (
    BrokenDependencyError,
    CheckpointError,
    DTypeError,
    ImageError,
    MissingDependencyError,
    ShapeError,
    ValueRangeError,
)
from tests.conftest import for_each

# Warnings of the libraries themselves, on import or construction
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

wide = Image.new("RGB", (200, 100), (30, 90, 200))
tall = Image.new("RGB", (60, 120), (200, 90, 30))

GRIDS = {
    "clip-336": (24, 24, 1024),
    "siglip2-378": (27, 27, 1152),
    "radio-384": (24, 24, 1024),
    "radio-576": (36, 36, 1024),
    "dinov2": (37, 37, 1024),
    "dinov2-reg": (37, 37, 1024),
    "aimv2-448": (32, 32, 1024),
}


@for_each(name=ENCODERS)
def test_named_encoders_have_the_grids_of_the_paper(name):
    encoder = load(name, pretrained=False, device="meta")
    features, valid = encoder([wide, tall])
    assert features.shape == (2, *GRIDS[name])
    assert encoder.grid == GRIDS[name][:2]
    assert valid.shape == features.shape[:3]


SMALL = [
    ("timm:vit_tiny_patch16_224", {"img_size": 96}, (6, 6, 192)),
    ("timm:vit_tiny_patch16_224", {}, (14, 14, 192)),
    ("timm:vit_small_patch14_reg4_dinov2", {"img_size": 70}, (5, 5, 384)),
    ("timm:eva02_tiny_patch14_224", {}, (16, 16, 192)),
    ("timm:convnext_atto", {"img_size": 128}, (4, 4, 320)),
    ("timm:resnet18", {"img_size": 128, "layer": 3}, (8, 8, 256)),
    ("open_clip:ViT-B-32", {"layer": -2, "final_norm": False}, (7, 7, 768)),
]


@pytest.mark.parametrize(("name", "options", "shape"), SMALL)
def test_small_models_run(name, options, shape):
    encoder = load(name, pretrained=False, **options)
    features, valid = encoder([wide, tall, wide])
    assert features.shape == (3, *shape)
    assert features.isfinite().all()
    assert not features.requires_grad
    assert not encoder.training
    assert torch.equal(features[0], features[2])
    torch.testing.assert_close(encoder(tall).features[0], features[1], rtol=1e-4, atol=1e-4)
    assert torch.equal(valid[0], encoder.geometry.place((100, 200)).valid(encoder.grid))


def test_siglip_of_open_clip_has_the_grid_of_the_paper():
    with torch.device("meta"):  # without random weights, which take seconds
        encoder = load("open_clip:ViT-SO400M-14-SigLIP2-378", pretrained=False, device="meta")
    assert encoder(wide).features.shape == (1, 27, 27, 1152)


@for_each(layer=[-1, -2, 3], final_norm=[True, False])
def test_layer_and_final_norm_select_the_features(layer, final_norm):
    encoder = load("timm:vit_tiny_patch16_224", pretrained=False, img_size=64, layer=layer, final_norm=final_norm)
    model, seen = encoder.model.model, []
    model.blocks[layer].register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    features = encoder(wide).features
    expected = model.norm(seen[0]) if final_norm else seen[0]
    assert torch.equal(features, expected[:, 1:].reshape(1, 4, 4, 192))  # class token first, rows top to bottom


VISION = {
    "Dinov2": {"image_size": 56, "patch_size": 14}, "Dinov2WithRegisters": {"image_size": 56, "patch_size": 14},
    "DINOv3ViT": {"image_size": 64, "patch_size": 16}, "CLIPVision": {"image_size": 56, "patch_size": 14},
    "SiglipVision": {"image_size": 56, "patch_size": 14}, "Aimv2Vision": {"image_size": 56, "patch_size": 14},
    "ViT": {"image_size": 64, "patch_size": 16}, "CLIP": {"image_size": 56, "patch_size": 14},
}  # fmt: skip


def vision_folder(folder, family):
    """A tiny random model of a family, as ``save_pretrained`` writes it, and the model."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    options = VISION[family] | sizes
    config = getattr(transformers, f"{family}Config")
    config = config(vision_config=options, text_config=sizes) if family == "CLIP" else config(**options)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}Model")(config)
    for name, parameter in model.named_parameters():
        if "norm" in name.lower():
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    transformers.BitImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]).save_pretrained(folder)
    return getattr(model.eval(), "vision_model", model.eval())


@pytest.mark.parametrize("family", VISION)
def test_transformers_models_are_loaded_from_a_folder(tmp_path, family):
    model = vision_folder(tmp_path, family)
    encoder = load(f"hf:{tmp_path}")
    features, valid = encoder([wide, tall])
    assert features.shape == (2, 4, 4, 32)
    assert torch.equal(valid[0], encoder.geometry.place((100, 200)).valid((4, 4)))
    assert (encoder.mean, encoder.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    pixels, _ = encoder.preprocess([wide, tall])
    with torch.no_grad():
        expected = model(pixels).last_hidden_state
        if "CLIP" in family:  # which applies its last norm to the class token alone
            expected = model.post_layernorm(expected)
    assert torch.equal(features.flatten(1, 2), expected[:, -16:])
    for layer, index in ((0, 1), (1, 2), (-2, 2), (2, 3)):
        states = model(pixels, output_hidden_states=True).hidden_states
        bare = load(f"hf:{tmp_path}", layer=layer, final_norm=False).encode(pixels)
        assert torch.equal(bare.flatten(1, 2), states[index][:, -16:])


def test_transformers_models_support_other_sizes(tmp_path):
    vision_folder(tmp_path, "Dinov2")
    assert load(f"hf:{tmp_path}", img_size=84).grid == (6, 6)
    assert load(f"hf:{tmp_path}", img_size=84)(wide).features.shape == (1, 6, 6, 32)
    assert load(f"hf:{tmp_path}", pretrained=False)(wide).features.shape == (1, 4, 4, 32)


def test_invalid_transformers_folders_are_errors(tmp_path):
    with pytest.raises(CheckpointError, match="(?s)encoder 'hf:.*nothing'.*cannot load a vision model"):
        load(f"hf:{tmp_path / 'nothing'}")
    vision_folder(tmp_path, "Dinov2")
    for options, message in (
        ({"layer": 3}, "layer must be from -3 to 2 for this model; got 3"),
        ({"weights": "w.safetensors"}, "takes no weights; got w.safetensors"),
    ):
        with pytest.raises(ValueRangeError, match=message):
            load(f"hf:{tmp_path}", **options)
    with pytest.raises(ShapeError, match="patch_size must divide the input's sides; got 14 for 60 x 60"):
        load(f"hf:{tmp_path}", img_size=60)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {f"teacher.{name}": one for name, one in weights.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(
        CheckpointError, match="weights of the model are missing in .* or have another shape, such as '"
    ):
        load(f"hf:{tmp_path}")
    (tmp_path / "model.safetensors").write_bytes(b"12345678abc")
    with pytest.raises(CheckpointError, match="cannot load a vision model"):
        load(f"hf:{tmp_path}")
    assert load(f"hf:{tmp_path}", pretrained=False).grid == (4, 4)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="vision model and image processor"):
        load(f"hf:{tmp_path}")


def test_clip_uses_the_layer_of_llava():
    clip, dino = (load(name, pretrained=False, device="meta").model for name in ("clip-336", "dinov2"))
    assert (clip.layer, clip.final_norm) == (-2, False)
    assert (dino.layer, dino.final_norm) == (-1, True)


def test_pixels_are_normalised_and_padded_with_the_mean():
    encoder = load("timm:vit_tiny_patch16_224", pretrained=False, img_size=64)
    config = timm.data.resolve_model_data_config(encoder.model.model)
    pixels, _ = encoder.preprocess(wide)
    mean, std = (torch.tensor(config[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    shown = pixels[0] * std + mean
    torch.testing.assert_close(shown[:, 32, 32], torch.tensor([30, 90, 200]) / 255)
    torch.testing.assert_close(shown[:, 0, 0], torch.tensor([int(255 * value) for value in config["mean"]]) / 255)


def test_weights_come_from_a_safetensors_file(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", num_classes=5)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    encoder = load("timm:vit_tiny_patch16_224", weights=tmp_path / "weights.safetensors")
    state = encoder.model.model.state_dict()
    assert all(torch.equal(state[name], source.state_dict()[name]) for name in state)
    smaller = load("timm:vit_tiny_patch16_224", weights=tmp_path / "weights.safetensors", img_size=96)
    assert torch.equal(smaller.model.model.norm.weight, source.norm.weight)
    assert smaller(wide).features.shape == (1, 6, 6, 192)


def test_weights_of_open_clip_come_from_a_safetensors_file(tmp_path):
    open_clip = importlib.import_module("open_clip")
    source = open_clip.create_model("ViT-B-32", pretrained=None)
    save_file({name: tensor.contiguous() for name, tensor in source.state_dict().items()}, tmp_path / "w.safetensors")
    encoder = load("open_clip:ViT-B-32", weights=tmp_path / "w.safetensors")
    assert torch.equal(encoder.model.visual.proj, source.visual.proj)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b"not safetensors", "is not a valid safetensors file"),
        ({"other": torch.zeros(2)}, "150 of the model's 150 tensors are missing in .*, such as 'cls_token'"),
        ({"cls_token": torch.zeros(2, 2)}, "does not match the model.*size mismatch for cls_token"),
    ],
)
def test_invalid_weights_are_errors(tmp_path, content, message):
    file = tmp_path / "weights.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        save_file(content, file)
    with pytest.raises(CheckpointError, match=r"(?s)weights for encoder 'timm:vit_tiny_patch16_224'.*" + message):
        load("timm:vit_tiny_patch16_224", weights=file)


@pytest.mark.parametrize("name", ["clip-336", "timm:vit_tiny_patch16_224.augreg_in21k", "open_clip:ViT-B-32/openai"])
def test_missing_weights_suggest_alternatives(name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=f"(?s)encoder '{name}'.*weights='FILE.safetensors'.*'pixels'"):
        load(name)


@for_each(
    ("name", "options", "message"),
    [
        ("pixels", {"device": "abacus"}, "device abacus cannot be used here"),
        ("open_clip:ViT-B-32", {"pretrained": False, "layer": 99}, "ViT-B-32 does not support layer=99"),
        ("clip", {}, "there is no encoder 'clip'. Name one of clip-336, siglip2-378, .*pixels, timm:MODEL"),
        ("timm:", {}, "there is no encoder 'timm:'"),
        ("timm:vit_tiny_patch16_999", {}, "has no model 'vit_tiny_patch16_999'. Similar: vit_tiny"),
        ("timm:zzz", {}, "has no model 'zzz'. See timm.list_models"),
        ("open_clip:Nope/openai", {}, "has no model 'Nope'"),
        ("open_clip:ViT-B-32/nope", {}, "has no weights 'nope' for ViT-B-32. .*TAG one of openai"),
        ("open_clip:ViT-B-32", {}, "has no weights '' for ViT-B-32"),
        ("clip-336", {"img_size": 224}, "'clip-336' takes no img_size; got 224"),
        ("pixels", {"layer": -1}, "'pixels' takes no layer; got -1"),
        ("pixels", {"geometry": "zoom"}, "geometry must be one of 'letterbox', 'squash', 'center_crop'"),
        ("timm:vit_tiny_patch16_224", {"pretrained": False, "layer": 12}, "layer must be from -12 to 11"),
    ],
)
def test_invalid_names_and_options_are_errors(name, options, message):
    with pytest.raises(ValueRangeError, match=message):
        load(name, **options)


@pytest.mark.parametrize(("module", "name"), [("timm", "dinov2"), ("open_clip", "open_clip:ViT-B-32/openai")])
def test_a_missing_package_names_its_extra(module, name, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    real = importlib.import_module

    def missing(wanted, *arguments):
        if wanted == module:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return real(wanted, *arguments)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingDependencyError, match=r"is not installed. Run: pip install 'regiontok\[encoders\]'"):
        load(name)


def test_a_broken_package_shows_its_own_error(monkeypatch, tmp_path):
    (tmp_path / "timm.py").write_text("import a_thing_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm")
    with pytest.raises(BrokenDependencyError, match="No module named 'a_thing_that_is_not_there'.*Run: pip install"):
        load("dinov2")
    assert builtins.__import__  # the module is restored by monkeypatch


def test_unsupported_models_are_errors(monkeypatch):
    encoder = load("timm:hiera_tiny_224", pretrained=False)
    with pytest.raises(ValueRangeError, match="does not support layer=-1, final_norm=True: .*Use others"):
        encoder(wide)
    monkeypatch.delattr("timm.models.vision_transformer.VisionTransformer.forward_intermediates")
    with pytest.raises(ValueRangeError, match="'vit_tiny_patch16_224' has no forward_intermediates"):
        load("timm:vit_tiny_patch16_224", pretrained=False)


@pytest.mark.parametrize("content", [None, b"nonsense"])
def test_invalid_weights_for_open_clip_are_errors(tmp_path, content):
    if content:
        (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="weights for encoder 'open_clip:ViT-B-32'.*(no file|not a valid)"):
        load("open_clip:ViT-B-32", weights=tmp_path / "w.safetensors")


@for_each(geometry=["letterbox", "squash", "center_crop"], size=[(640, 480), (300, 1000), (384, 256)])
def test_a_plain_image_is_one_region_with_any_padding(geometry, size):
    features, valid = load("pixels", geometry=geometry)(Image.new("RGB", size, (255, 250, 240)))
    assert len(UnionFindClusterer()(features, valid)) == 1


def plain(output, **options):
    settings = {"geometry": ImageGeometry.letterbox(64), "patch_size": 16} | options
    return Encoder(lambda pixels: output(pixels), **settings)


def test_any_callable_is_an_encoder_and_prefix_tokens_are_removed():
    tokens = torch.arange(18.0).reshape(1, 18, 1)
    assert plain(lambda _: tokens)(wide).features.flatten().tolist() == list(range(2, 18))
    grid = torch.zeros(1, 4, 4, 3)
    assert plain(lambda _: grid)(wide).features is grid


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (lambda _: torch.zeros(1, 15, 3), r"\(1, 15, 3\)"),
        (lambda _: torch.zeros(1, 3, 4, 4), r"\(1, 3, 4, 4\)"),
        (lambda _: torch.zeros(2, 16, 3), r"\(2, 16, 3\)"),
        (lambda _: torch.zeros(1, 1024, 16), r"\(1, 1024, 16\)"),
        (lambda _: (1, 2), "tuple"),
    ],
)
def test_invalid_model_outputs_are_errors(output, got):
    with pytest.raises(
        ShapeError, match=rf"'mine' must return \(1, 16 \+ prefix tokens, dim\).* 4 x 4 patches; got {got}. Check"
    ):
        plain(output, name="mine")(wide)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"patch_size": 15}, ShapeError, "must divide the input's sides; got 15 for 64 x 64. Try 60 x 60"),
        ({"patch_size": 0}, ValueRangeError, "patch_size must be at least 1"),
        ({"std": (1.0, 0.0, 1.0)}, ValueRangeError, "and std no zero"),
        ({"mean": (0.5, 0.5)}, ValueRangeError, "mean and std must have 3 numbers each"),
        ({"fill": "black"}, ValueRangeError, "fill must be one of 'mean', 'edge'"),
        ({"geometry": "letterbox"}, DTypeError, "geometry must be an ImageGeometry; got 'letterbox'. Use one"),
    ],
)
def test_invalid_encoder_options_are_errors(options, error, message):
    with pytest.raises(error, match=message):
        plain(lambda pixels: pixels, **options)


@pytest.mark.parametrize(
    ("images", "error"), [([], ImageError), (["a.jpg"], ImageError), (np.zeros((3, 4, 4)), ImageError), (7, DTypeError)]
)
def test_invalid_images_are_errors(images, error):
    with pytest.raises(error, match=r"image|a\.jpg"):
        load("pixels")(images)


def test_paths_and_arrays_are_images(tmp_path, china):
    encoder = load("pixels")
    expected = encoder(china).features
    china.save(tmp_path / "china.png")
    array = np.asarray(china)
    for image in (tmp_path / "china.png", str(tmp_path / "china.png"), array, [array], array[None], array[::-1][::-1]):
        assert torch.equal(encoder(image).features, expected)
    mixed = encoder([tmp_path / "china.png", array, china]).features
    assert torch.equal(mixed, expected.expand(3, -1, -1, -1))
    grey = np.asarray(china.convert("L"))
    assert torch.equal(encoder(grey).features, encoder(china.convert("L")).features)


@pytest.mark.parametrize("name", ["pixels", "timm:vit_tiny_patch16_224", "timm:resnet18"])
def test_inputs_may_be_rectangular(name, china):
    encoder = load(name, pretrained=False, img_size=(96, 224))
    features, valid = encoder(china)
    patch = encoder.patch_size
    assert features.shape[1:3] == valid.shape[1:] == (96 // patch, 224 // patch) == encoder.grid
    assert encoder.options["img_size"] == [96, 224]
    square = load(name, pretrained=False, img_size=(96, 96))
    assert square.options["img_size"] == 96


def test_models_without_rectangular_inputs_are_errors():
    for name in ("efficientformer_l1", "mvitv2_tiny"):  # one when it is run, one when it is made
        with pytest.raises(ValueRangeError, match=f"timm model '{name}' does not support images of 256 x 448"):
            load(f"timm:{name}", pretrained=False, img_size=(256, 448), final_norm=False)


def test_pixel_descriptors_give_50_to_300_regions(china):
    data = importlib.import_module("skimage.data")
    images = [china, *(Image.fromarray(getattr(data, name)()) for name in ("astronaut", "coffee", "chelsea", "rocket"))]
    features, valid = load("pixels")(images)
    assert features.shape == (5, 24, 24, 48)
    counts = UnionFindClusterer()(features, valid).counts
    assert ((counts >= 50) & (counts <= 300)).all(), counts


def test_cosines_of_pixel_descriptors_measure_similarity():
    halves = Image.new("RGB", (384, 384), (40, 120, 40))
    halves.paste((60, 90, 220), (0, 0, 384, 192))
    features = load("pixels")(halves).features[0]
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(features[2, 3], features[8, 20], dim=0) > 0.9
    assert cosine(features[2, 3], features[20, 3], dim=0) < 0.5
    assert load("pixels")(Image.new("RGB", (9, 9))).features.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pixels_on_cuda_equal_those_on_the_cpu(china):
    features, valid = load("pixels", device="cuda")(china)
    torch.testing.assert_close(features.cpu(), load("pixels")(china).features, rtol=1e-3, atol=1e-3)
    assert valid.device.type == "cuda"


def test_all_public_names_exist():
    assert all(hasattr(encoders, name) for name in encoders.__all__)


def test_pixels_do_not_depend_on_the_dtype_of_the_weights(china):
    """Mean and deviation in half precision would shift every image."""
    encoder = encoders.load("timm:vit_tiny_patch16_224", pretrained=False, img_size=64)
    expected, _ = encoder.preprocess(china)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(encoder.to(dtype).preprocess(china)[0], expected)


def test_inputs_larger_than_memory_are_errors():
    with pytest.raises(ValueRangeError, match=r"img_size must fit into memory; got 100000 x 100000 pixels, which need"):
        encoders.load("pixels", img_size=100_000)


def test_registered_encoders_are_loaded_by_name(monkeypatch):
    monkeypatch.setattr(encoders, "_REGISTERED", {})
    asked = []

    def build(options):
        asked.append(options)
        model = encoders.load("pixels").model
        return Encoder(model, geometry=ImageGeometry(options.geometry, options.size), patch_size=16)

    encoders.register("ours", build)
    encoder = encoders.load("ours", img_size=96, layer=3, geometry="squash")
    assert (asked[0].size, asked[0].layer, encoder.geometry) == ((96, 96), 3, ImageGeometry.squash(96))
    assert encoder.describe()["encoder_options"]["layer"] == 3
    for name in ("ours", "pixels", "clip-336", "timm:ours"):
        with pytest.raises(ValueRangeError, match="is already registered, or the name contains a colon"):
            encoders.register(name, build)
