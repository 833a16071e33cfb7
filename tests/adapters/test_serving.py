"""Requests for servers; with a Python that has vLLM, a stock engine must answer as the region model does."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from regiontok import ImageGeometry, Regionizer
from regiontok.adapters.huggingface import (
    FAMILIES,
    image_embeddings,
    sglang_request,
    tilings_of,
    vllm_request,
    with_regions,
)
from regiontok.adapters.huggingface.serving import SGLANG, VLLM, _closest_grid
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from tests.adapters.test_processors import IMAGES
from tests.conftest import assert_close
from tests.families import CASES, CLIP, IMAGE, TEXT, build
from tests.processors import PROCESSORS

SERVED = [
    "LLaVA-1.5",
    "LLaVA-NeXT",
    "LLaVA-OneVision",
    "InternVL",
    "Qwen2-VL",
    "Qwen2.5-VL",
    "Qwen3-VL",
    "Qwen3-VL MoE",
]
WITH_GRID = [name for name in SERVED if name.startswith("Qwen")]


ONE_COUNT = ("LLaVA-1.5", "InternVL")


def made(name, **options):
    model = with_regions(CASES[name].make(), Regionizer(pool="mean", norm="none", num_regions=8))
    return model, image_embeddings(model, PROCESSORS[name](), IMAGES, **options)


@pytest.mark.parametrize("name", SERVED)
def test_embeddings_equal_the_tokens_of_the_model(name):
    model, embeddings = made(name, num_regions=[4, 12, 10])
    assert [len(one) for one in embeddings] == [4, 12, 10]
    processor = PROCESSORS[name]()
    token = getattr(processor, "image_token", "<image>")
    for number, (image, one) in enumerate(zip(IMAGES, embeddings, strict=True)):
        given = processor(text=[token], images=[[image]], return_tensors="pt")
        if name == "InternVL":
            given["tilings"] = tilings_of(processor, [image])
        prepared = model.expand(**given, num_regions=[4, 12, 10][number])
        output = prepared.inputs["mm_encoder_outputs"]["image"]
        deep = [layer[0] for layer in getattr(output, "deepstack_features", [])]
        assert_close(one.values, torch.cat([output.pooler_output[0], *deep], 1))  # encoded in another batch
        assert not one.values.requires_grad
        assert one.values.is_contiguous()


@pytest.mark.parametrize("name", SERVED)
def test_vllm_requests_have_one_placeholder_per_image(name):
    counts = [4, 4, 4] if name in ONE_COUNT else [4, 12, 10]
    _, embeddings = made(name, num_regions=counts)
    ids = [5, IMAGE, 6, *[IMAGE] * 9, 7, IMAGE]
    request = vllm_request(ids, embeddings)
    assert request["prompt_token_ids"] == [5, IMAGE, 6, IMAGE, 7, IMAGE]
    image = request["multi_modal_data"]["image"]
    if name in WITH_GRID:
        grid = image["image_grid_thw"]
        assert (grid.prod(1) // 4).tolist() == counts
        assert len(image["image_embeds"]) == 26
        assert image["image_embeds"].shape[1] % 64 == 0
    else:
        assert [tuple(one.shape) for one in image] == [(count, 64) for count in counts]
    text = embeddings[0].placeholder[0]
    assert vllm_request(f"w5 {text} w6 {text} {text}", embeddings)["prompt"] == f"w5 {text} w6 {text} {text}"
    for prompt in (f"w5 {text}", [5, IMAGE, 6]):
        with pytest.raises(ShapeError, match="the prompt must hold"):
            vllm_request(prompt, embeddings)


def test_embeddings_of_two_models_are_rejected():
    _, llava = made("LLaVA-1.5")
    _, qwen = made("Qwen2-VL")
    with pytest.raises(ShapeError, match="embeddings of one prompt must be of one model"):
        vllm_request([IMAGE, IMAGE], [llava[0], qwen[0]])


def test_vllm_requests_have_no_tags_around_images():
    _, embeddings = made("InternVL")
    processor = PROCESSORS["InternVL"]()
    given = processor(text=["w5 <IMG_CONTEXT> w6"], images=[[IMAGES[1]]], return_tensors="pt")
    assert vllm_request(given["input_ids"][0], embeddings[1:2])["prompt_token_ids"] == [5, IMAGE, 6]
    assert vllm_request("w5 <img><IMG_CONTEXT></img> w6", embeddings[1:2])["prompt"] == "w5 <IMG_CONTEXT> w6"


@pytest.mark.parametrize("name", WITH_GRID)
def test_sglang_requests_have_one_placeholder_per_token(name):
    _, embeddings = made(name)
    for prompt in ([5, IMAGE, 6], [5, *[IMAGE] * 9, 6], torch.tensor([5, IMAGE, 6])):
        request = sglang_request(prompt, embeddings[:1])
        assert request["input_ids"] == [5, *[IMAGE] * 8, 6]
    (image,) = request["image_data"]
    assert len(image["precomputed_embeddings"]) == 8
    assert image["image_grid_thw"].prod() // 4 == 8
    with pytest.raises(ValueRangeError, match="SGLang takes embeddings of one image per request; got 3"):
        sglang_request([5, IMAGE, 6, IMAGE, IMAGE], embeddings)
    with pytest.raises(ShapeError, match="got 0 of them"):
        sglang_request([5, 6], embeddings[:1])


@pytest.mark.parametrize(("count", "shape", "grid"), [(12, (3, 4), (3, 4)), (12, (4, 1), (6, 2)), (7, (2, 3), (1, 7)), (64, (20, 30), (8, 8)), (1, (5, 5), (1, 1))])  # fmt: skip
def test_the_closest_grid_has_the_count_of_cells(count, shape, grid):
    assert _closest_grid(count, shape) == grid


def test_embeddings_with_masks():
    geometry = ImageGeometry.center_crop(56)
    regionizer = Regionizer(source="segmentation", pool="mean", norm="none", geometry=geometry)
    model = with_regions(CASES["LLaVA-1.5"].make(), regionizer)
    masks = [np.ones((1, image.height, image.width), bool) for image in IMAGES]
    assert [len(one) for one in image_embeddings(model, PROCESSORS["LLaVA-1.5"](), IMAGES, masks)] == [1, 1, 1]


def test_invalid_requests_are_rejected():
    stock, processor = CASES["Gemma 3"].make(), PROCESSORS["Gemma 3"]()
    with pytest.raises(DTypeError, match="model must have region tokens; got Gemma3ForConditionalGeneration"):
        image_embeddings(stock, processor, IMAGES)
    embeddings = image_embeddings(with_regions(stock, Regionizer(pool="mean")), processor, IMAGES)
    for request, engine in ((vllm_request, "vLLM"), (sglang_request, "SGLang")):
        with pytest.raises(ValueRangeError, match=f"{engine} accepts no image embeddings for Gemma3ForConditional"):
            request([IMAGE] * 3, embeddings)
        with pytest.raises(ShapeError, match="embeddings must be of at least one image"):
            request([5], [])
    model, _ = made("LLaVA-1.5")
    torch.nn.init.constant_(model.model.multi_modal_projector.linear_2.bias, torch.inf)
    with pytest.raises(ValueError, match="not finite"):
        image_embeddings(model, PROCESSORS["LLaVA-1.5"](), IMAGES)


def _for_vllm(name, folder):
    """Save a stock model with the head size that vLLM needs, and the names of weights of the hub."""
    text = TEXT | {
        "hidden_size": 128,
        "num_attention_heads": 2,
        "head_dim": 64,
        "model_type": "llama",
        "initializer_range": 0.3,
    }
    more = {"image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]]} if name == "LlavaNext" else {}
    stock = build(name, vision_config=CLIP, text_config=text, image_token_index=IMAGE, **more)
    stock.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    hub = {
        one.replace("vision_tower.", "vision_tower.vision_model.") if "vision_tower" in one and "vision_model" not in one else one: weight
        for one, weight in weights.items()
    }  # fmt: skip
    save_file(hub, folder / "model.safetensors", {"format": "pt"})
    return stock


@pytest.mark.parametrize(("name", "title"), [("Llava", "LLaVA-1.5"), ("LlavaNext", "LLaVA-NeXT")])
def test_stock_vllm_answers_as_the_region_model(name, title, tmp_path):
    """Set REGIONTOK_VLLM to a Python that has vLLM; see docs/serving.md."""
    engine = os.environ.get("REGIONTOK_VLLM")
    if engine is None:
        pytest.skip("REGIONTOK_VLLM names no Python with vLLM")
    processor = PROCESSORS[title]()
    processor.save_pretrained(tmp_path / "model")
    stock = _for_vllm(name, tmp_path / "model")
    model = with_regions(stock, Regionizer(pool="mean", norm="none"))
    requests, expected = [], []
    for count, images in ((5, IMAGES[:1]), (9, IMAGES[1:2]), (12, IMAGES[2:]), (7, IMAGES[:2])):
        text = "w5 w6 " + " w7 ".join(["<image>"] * len(images)) + " w8 w9"
        given = processor(text=[text], images=[images], return_tensors="pt")
        made = model.generate(
            **given, num_regions=count, max_new_tokens=6, min_new_tokens=6, do_sample=False, eos_token_id=None
        )
        expected.append(made[0, given["input_ids"].shape[1] :].tolist())
        embeddings = image_embeddings(model, processor, images, num_regions=count)
        assert [len(one) for one in embeddings] == [count] * len(images)
        requests.append(vllm_request(given["input_ids"][0], embeddings))
    assert len({tuple(one) for one in expected}) > 1
    torch.save(requests, tmp_path / "requests.pt")
    program = Path(__file__).with_name("vllm_engine.py")
    command = [engine, program, tmp_path / "model", tmp_path / "requests.pt", tmp_path / "answers.pt"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert torch.load(tmp_path / "answers.pt") == expected


def test_served_families_are_supported():
    assert {*SGLANG, *VLLM} <= {family.stock for family in FAMILIES}
    assert all(hasattr(transformers, one) for one in VLLM)
