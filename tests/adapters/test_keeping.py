"""Weights and options of the Regionizer after wrapping, saving and loading region models."""

import json

import pytest
import torch
from peft import LoHaConfig, LoraConfig, get_peft_model
from PIL import Image
from torch import nn
from transformers import AutoConfig

from regiontok import CrossAttnPool, Regionizer
from regiontok.adapters.huggingface import image_embeddings, load_model, region_processor, vllm_request, with_regions
from regiontok.adapters.llava import add_regions, load_regions
from regiontok.errors import CheckpointError, DTypeError, ShapeError
from regiontok.evaluation.assistant import Assistant, Question
from tests import models
from tests.adapters.test_llava import IMAGES, Llava
from tests.conftest import assert_close
from tests.families import CASES
from tests.processors import PROCESSORS, TEMPLATE, placeholder

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft calls it
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
NAMES = ["LLaVA-1.5", "Qwen3-VL", "InternVL", "Gemma 3"]


def region_model(name, **options):
    """Return a region model with a trained pool."""
    return models.region_model(CASES[name].make(), **options)


def logits(model, name):
    with torch.no_grad():
        expanded = (model.get_base_model() if hasattr(model, "get_base_model") else model).expand(
            **CASES[name].inputs()
        )
        return model(**expanded.inputs).logits


WRAPPERS = {
    "LoRA": LoraConfig(target_modules="all-linear", r=4, init_lora_weights=False),
    "DoRA": LoraConfig(target_modules="all-linear", r=4, use_dora=True),
    "LoHa": LoHaConfig(target_modules="all-linear", r=4, init_weights=False),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", NAMES)
def test_peft_adapters_of_all_linear_layers_exclude_the_pool(name, wrapper):
    model = region_model(name)
    wrapped = get_peft_model(model, WRAPPERS[wrapper]).eval()
    assert not [
        key for key, _ in wrapped.named_parameters() if "regionizer" in key and ("lora" in key or "hada" in key)
    ]
    before = logits(wrapped, name)
    assert_close(logits(wrapped.merge_and_unload(), name), before)


def test_a_pool_works_with_replaced_linear_layers():
    model = region_model("LLaVA-1.5")
    before = logits(model, "LLaVA-1.5")

    class Replaced(nn.Module):
        """A layer that only accepts ``(n, dim)``, like those of quantizers and engines."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, values):
            return self.inner(values)

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Replaced(child))
    assert torch.equal(logits(model, "LLaVA-1.5"), before)


def test_names_of_the_pool_weights():
    names = set(CrossAttnPool(8, 2).state_dict())
    assert names == {f"{part}.{kind}" for part in ("query", "key", "value", "out") for kind in ("weight", "bias")} - {
        "key.bias"
    }


@pytest.mark.parametrize("name", NAMES[:3])
def test_a_folder_without_the_pool_is_rejected(name, tmp_path):
    region_model(name).save_pretrained(tmp_path / "a")
    stock = type(CASES[name].make())
    lost = stock.from_pretrained(tmp_path / "a")  # as in merges with the stock class
    lost.config = AutoConfig.from_pretrained(tmp_path / "a")
    lost.save_pretrained(tmp_path / "b")
    for load in (load_model, type(region_model(name)).from_pretrained):
        with pytest.raises(CheckpointError, match="lacks 7 weights of the Regionizer in its config"):
            load(tmp_path / "b")
    model, report = type(region_model(name)).from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not report["missing_keys"]
    assert model.regionizer.pool.out.weight.any()


def test_a_folder_with_an_unexpected_pool_is_rejected(tmp_path):
    region_model("LLaVA-1.5").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["regiontok"] |= {"pool": "mean"}
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="has 7 unexpected weights of the Regionizer"):
        load_model(tmp_path)


@pytest.mark.parametrize("options", [{"pool": "mean", "norm": "none"}, {"dim": 32, "num_heads": 2}])
def test_a_replaced_regionizer_is_saved(tmp_path, options):
    model = region_model("LLaVA-1.5", num_regions=3)
    model.regionizer = Regionizer(num_regions=8, **options)
    for parameter in model.regionizer.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.regionizer.config == model.regionizer.config
    assert torch.equal(logits(loaded, "LLaVA-1.5"), logits(model, "LLaVA-1.5"))


def test_hub_options_apply_to_the_config(tmp_path):
    region_model("LLaVA-1.5").save_pretrained(tmp_path / "deep")
    assert load_model(tmp_path, subfolder="deep").regionizer.pool.out.weight.any()


@pytest.mark.parametrize("damage", ["junk", "cut", "heads", "list", "config"])
def test_damaged_folders_are_rejected(tmp_path, damage):
    region_model("LLaVA-1.5").save_pretrained(tmp_path)
    weights, file = tmp_path / "model.safetensors", tmp_path / "config.json"
    config = json.loads(file.read_text())
    if damage == "junk":
        weights.write_bytes(b"junk")
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif damage == "heads":
        file.write_text(json.dumps(config | {"regiontok": config["regiontok"] | {"num_heads": 5}}))
    elif damage == "list":
        file.write_text(json.dumps(config | {"regiontok": [1]}))
    else:
        file.write_text("{broken")
    with pytest.raises(CheckpointError):
        load_model(tmp_path)


@pytest.mark.parametrize("file", ["mm_projector.bin", "model.safetensors"])
def test_damaged_weights_of_llava_are_rejected(tmp_path, file):
    model = Llava()
    add_regions(model, Regionizer(pool="mean"))
    (tmp_path / file).write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=f"{file} is damaged or has no weights"):
        load_regions(model, tmp_path)


def test_side_inputs_of_llava_are_restored_after_a_nested_block():
    model = Llava()
    projector = add_regions(model, Regionizer(pool="mean", num_regions=5))
    with projector.side_inputs(num_regions=3):
        with projector.side_inputs(num_regions=2):
            assert len(model.encode_images(IMAGES)[0]) == 2
        assert len(model.encode_images(IMAGES)[0]) == 3
    assert len(model.encode_images(IMAGES)[0]) == 5


def test_attention_of_paligemma_is_finite():
    processor = PROCESSORS["PaliGemma"]()
    processor.chat_template = TEMPLATE.replace("IMAGE", placeholder("PaliGemma", processor))
    assistant = Assistant(region_model("PaliGemma", pool="mean", dim=None), processor)
    image = Image.new("RGB", (64, 64))
    questions = [Question("w5", [image]), Question("w5 w6 w7", [image])]
    attention = assistant.attend(questions, [[7, 8], [9]])
    assert all(weights.isfinite().all() for weights in attention.weights)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"pixel_values": [1]}, "pixel_values must be a tensor, as the processor returns it; got list"),
    ],
)
def test_inputs_of_wrong_types_are_rejected(more, message):
    with pytest.raises(DTypeError, match=message):
        region_model("LLaVA-1.5")(**CASES["LLaVA-1.5"].inputs() | more)
    with pytest.raises(DTypeError, match="num_images must have a number per sample; got 3"):
        region_model("LLaVA-1.5").expand(**CASES["LLaVA-1.5"].inputs(), num_images=3)


@pytest.mark.parametrize(("name", "refused"), [("LLaVA-1.5", True), ("InternVL", True), ("LLaVA-NeXT", False)])
def test_vllm_requests_with_different_numbers_of_tokens(name, refused):
    model = region_model(name, pool="mean", dim=None)
    processor = PROCESSORS[name]()
    images = [torch.full((56, 56, 3), value, dtype=torch.uint8).numpy() for value in (10, 200)]
    embeddings = image_embeddings(model, processor, images, num_regions=[2, 4])
    text = embeddings[0].placeholder[0]
    if not refused:
        assert len(vllm_request(f"{text} {text}", embeddings)["multi_modal_data"]["image"]) == 2
        return
    with pytest.raises(ShapeError, match=r"the same number of tokens for all images of a prompt .*; got \[2, 4\]"):
        vllm_request(f"{text} {text}", embeddings)


@pytest.mark.parametrize("name", ["LLaVA-NeXT", "LLaVA-OneVision"])
def test_a_very_narrow_image_has_the_newlines_of_the_stock_class(name):
    stock = CASES[name].make()
    model = with_regions(stock, Regionizer(source="patch", pool="mean", norm="none", padding="keep"))
    given = dict(
        PROCESSORS[name]()(images=[[Image.new("RGB", (30, 4000))]], text=["w5 <image> w6"], return_tensors="pt")
    )
    with torch.no_grad():
        assert torch.equal(model(**given).logits, stock(**given).logits)
    assert model.num_tokens(given["image_sizes"]) == [int((given["input_ids"] == model.config.image_token_id).sum())]
    small = with_regions(stock, Regionizer(keep=0.001, pool="mean", norm="none", padding="keep"))
    given = region_processor(PROCESSORS[name](), small)(
        images=[[Image.new("RGB", (30, 4000))]], text=["w5 <image> w6"], return_tensors="pt"
    )
    assert int((given["input_ids"] == small.config.image_token_id).sum()) == 1  # its only grid is the thumbnail
    with torch.no_grad():
        small(**given)
