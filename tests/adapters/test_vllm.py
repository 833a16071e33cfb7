"""Region models inside vLLM. Answers must equal those of the region model in transformers, and bad requests are rejected.

Set REGIONTOK_VLLM to a Python that has vLLM and regiontok; see docs/serving.md.
"""

import importlib.metadata
import subprocess
import sys

import pytest
import torch

from regiontok import CrossAttnPool, Regionizer
from regiontok.adapters.huggingface import region_processor, with_regions
from tests.adapters.test_processors import IMAGES
from tests.adapters.vllm_tools import (
    COUNTS,
    expected_answers,
    prompts,
    request,
    serve,
    small_processor,
    vllm_python,
    wide_model,
)
from tests.processors import placeholder

STOCK = ("LLaVA-1.5", "LLaVA-NeXT", "InternVL", "Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL")


@pytest.fixture
def python():
    return vllm_python()


@pytest.mark.parametrize("title", STOCK)
def test_a_stock_checkpoint_is_served_with_budgets(python, title, tmp_path):
    """One batch with different counts, again with warm caches, one by one; and requests that are rejected."""
    processor, stock = small_processor(title), wide_model(title)
    folder = tmp_path / "model"
    stock.save_pretrained(folder)
    processor.save_pretrained(folder)
    samples = prompts(title, processor)
    order = "area" if title == "LLaVA-1.5" else "raster"
    expected = expected_answers(
        with_regions(stock, Regionizer(pool="mean", norm="none", order=order)), processor, samples
    )
    text, images, _ = samples[0]
    bad = [{"num_regions": 401}, {"num_regions": 0}, {"num_regions": "x"}, {"num_regions": 2.5}, {"keep": 2}]
    bad += [{"num_region": 5}, {"num_regions": [5]}, {"num_regions": 10**400}, {"order": "random"}, {"masks": [1]}]
    bad += [{"num_regions": 5, "video_num_regions": 0}]
    requests = {
        "answered": [request(text, images, num_regions=count) for text, images, count in samples],
        "rejected": [request(text, images, **kwargs) for kwargs in bad],
    }
    options = {"hf_overrides": {"architectures": [f"Region{type(stock).__name__}"]}}
    if title == "LLaVA-1.5":  # another way to give the budget; and embeddings are rejected
        options["hf_overrides"]["regiontok"] = {"num_regions": 400, "order": "area"}
        options["enable_mm_embeds"] = True
        requests["rejected"].append(request(text, [torch.randn(5, 128)]))
    else:
        options["mm_processor_kwargs"] = {"num_regions": 400}
    told = serve(python, folder, options | {"max_model_len": 512, "max_num_batched_tokens": 512}, requests, tmp_path)
    for name in ("batch", "cached", "single", "after"):
        assert told[name] == expected, name
    assert all("ValidationError" in error for error in told["rejected"]), told["rejected"]


@pytest.mark.parametrize("title", ["LLaVA-1.5", "LLaVA-NeXT", "InternVL", "Qwen2.5-VL"])
def test_a_saved_folder_is_served_without_options(python, title, tmp_path):
    """A trained pool, and a fraction of the patches; images may be cut over chunks of a prefill."""
    processor, stock = small_processor(title), wide_model(title)
    dim = stock.config.vision_config.hidden_size if "LLaVA" in title else 128
    newline = {"newline": "image"} if title == "LLaVA-NeXT" else {}
    model = with_regions(stock, Regionizer(keep=0.5, dim=dim), **newline)
    assert isinstance(model.regionizer.pool, CrossAttnPool)
    torch.nn.init.normal_(next(model.regionizer.parameters()), std=0.3)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    region_processor(processor, model).save_pretrained(folder)
    samples = prompts(title, processor, [None] * len(COUNTS))
    expected = expected_answers(model, processor, samples)
    requests = {"answered": [request(text, images) for text, images, _ in samples], "rejected": []}
    told = serve(python, folder, {"max_model_len": 256, "max_num_batched_tokens": 32}, requests, tmp_path)
    assert told["batch"] == told["cached"] == expected


@pytest.mark.parametrize("title", ["LLaVA-1.5", "LLaVA-NeXT", "InternVL", "Qwen2.5-VL", "Qwen3-VL"])
def test_a_cached_prefix_may_end_inside_an_image(python, title, tmp_path):
    """Blocks of 32 tokens, and prompts that differ only after their three images."""
    processor, stock = small_processor(title), wide_model(title)
    count = 10 if "Qwen" in title else 14  # so that a block ends inside the third image
    model = with_regions(stock, Regionizer(num_regions=count, pool="mean", norm="none"))
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    regions = region_processor(processor, model)
    regions.save_pretrained(folder)
    image = placeholder(title, processor).replace("><", "> <")
    samples = [(f"w5 {image} w6 {image} {image} w7 {end}", IMAGES, None) for end in ("w8", "w9 w10", "w11")]
    expected = expected_answers(model, processor, samples)
    requests = {"answered": [request(text, images) for text, images, _ in samples], "rejected": []}
    limits = {"max_model_len": 512, "max_num_batched_tokens": 512, "block_size": 32}
    told = serve(python, folder, limits, requests, tmp_path)
    assert told["batch"] == told["single"] == expected
    ids = regions(text=[samples[0][0]], images=[IMAGES], return_tensors="pt")["input_ids"][0].tolist()
    (hit,) = set(told["hits"])
    assert ids[hit - 1] == ids[hit] == regions.image_token_id


def test_the_plugin_is_found_and_imports_nothing_heavy():
    (entry,) = importlib.metadata.entry_points(group="vllm.general_plugins", name="regiontok")
    code = f"import {entry.module}, sys; print([name for name in ('numba', 'torch', 'vllm') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


REJECTED = """
from types import SimpleNamespace as Options
from regiontok.adapters.vllm.dynamic_resolution import DynamicResolution
from regiontok.adapters.vllm.options import check_options
from regiontok.adapters.vllm.processing import server_budget

def model(regiontok, **processor):
    config = Options(mm_processor_kwargs=processor, get_video_pruning_spec=lambda: None)
    return Options(hf_config=Options(regiontok=regiontok), get_multimodal_config=lambda: config)

def server(**options):
    values = {"speculative_config": None, "lora_config": None, "parallel_config": Options(pipeline_parallel_size=1)}
    return Options(**values | {"model_config": model({})} | options)

even, pruned = model({}), model({})
even.hf_config.regiontok_positions = "even"
pruned.get_multimodal_config().get_video_pruning_spec = lambda: ("evs", 0.5)

class Served(DynamicResolution):
    def __init__(self): pass

calls = [
    lambda: check_options({"source": "segmentation"}),
    lambda: check_options({"order": "random"}),
    lambda: check_options({"geometry": {"mode": "letterbox"}}),
    lambda: server_budget(model({"threshold": 0.7})),
    lambda: server_budget(model({"explained_variance": 0.9})),
    lambda: server_budget(model({})),
    lambda: server_budget(model({"num_regions": "prompt"})),
    lambda: server_budget(model({}, num_regions=0)),
    lambda: server_budget(model({}, keep=1.5)),
    lambda: Served().check_server(server(speculative_config=1)),
    lambda: Served().check_server(server(lora_config=Options(enable_tower_connector_lora=True))),
    lambda: Served().check_server(server(parallel_config=Options(pipeline_parallel_size=2))),
    lambda: Served().check_server(server(model_config=even)),
    lambda: Served().check_server(server(model_config=pruned)),
]
for call in calls:
    try:
        call()
    except ValueError as error:
        print(error)
    else:
        print("accepted")
Served().check_server(server())
check_options({"geometry": {"mode": "center_crop"}})
check_options({"geometry": {"mode": "letterbox"}, "padding": "keep"})
assert server_budget(model({"num_regions": 64}, keep=0.5)) == {"keep": 0.5}
assert server_budget(model({"num_regions": 64})) == {"num_regions": 64}
"""


def test_what_cannot_be_served_is_rejected_when_the_server_starts(python):
    done = subprocess.run([python, "-c", REJECTED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    starts = (
        "vLLM serves regions of clustering", "vLLM cannot serve order='random'", "vLLM cannot serve images with padding",
        "vLLM needs the number of tokens of an image before it is encoded. Its threshold",
        "vLLM needs the number of tokens of an image before it is encoded. Its explained_variance",
        "vLLM needs the number of tokens", "vLLM needs the number of tokens", "num_regions must", "keep must",
        "region models do not support speculative", "region models do not support LoRA", "the positions of regions reach",
        "this model serves positions='centroid'; got 'even'", "region models do not support the pruning of videos",
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start), line
