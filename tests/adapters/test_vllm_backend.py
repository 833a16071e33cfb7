"""Region models in vLLM's Transformers backend. Answers must equal those of the region model in transformers.

Set REGIONTOK_VLLM to a Python that has vLLM and regiontok; see docs/serving.md.
"""

import subprocess

import pytest
import torch

from regiontok import Regionizer
from regiontok.adapters.huggingface import region_processor, with_regions
from regiontok.adapters.huggingface.families import FAMILIES
from regiontok.adapters.vllm import BACKEND, NATIVE, REJECTED
from tests.adapters.vllm_tools import expected_answers, prompts, request, serve, vllm_python, wide_model
from tests.processors import PROCESSORS

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of GLM's processor
SERVED = (
    "LLaVA-OneVision",
    "LLaVA-NeXT-Video",
    "GLM-4.1V",
    "GLM-4.5V",
    "GLM-4.6V",
    "Gemma 3",
    "VideoLlama3",
    "FastVLM",
)
LIMITS = {"max_model_len": 512, "max_num_batched_tokens": 512}


@pytest.fixture
def python():
    return vllm_python()


def samples_of(title, processor):
    """Return prompts without budgets of their own; LLaVA-OneVision is served with one image per prompt."""
    samples = prompts(title, processor, [None] * 5)
    return [sample for sample in samples if title != "LLaVA-OneVision" or len(sample[1]) == 1]


@pytest.mark.parametrize("title", SERVED)
def test_a_saved_folder_is_served_without_options(python, title, tmp_path):
    """A batch, again with warm caches, one by one; a budget of a request is rejected, and the next one is answered."""
    processor, stock = PROCESSORS[title](), wide_model(title)
    positions = {"positions": "even"} if title.startswith("GLM") else {}
    model = with_regions(stock, Regionizer(pool="mean", norm="none", num_regions=6), **positions)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    region_processor(processor, model).save_pretrained(folder)
    samples = samples_of(title, processor)
    expected = expected_answers(model, processor, samples)
    requests = {
        "answered": [request(text, images) for text, images, _ in samples],
        "rejected": [
            request(samples[0][0], samples[0][1], num_regions=4),
            request(samples[0][0], [torch.randn(6, 128)]),
        ],
    }
    told = serve(python, folder, LIMITS | {"enable_mm_embeds": True}, requests, tmp_path)
    for name in ("batch", "cached", "single", "after"):
        assert told[name] == expected, name
    assert "requests cannot change the budget of this model; got num_regions=4" in told["rejected"][0]
    assert "a region model computes its tokens from images" in told["rejected"][1]


@pytest.mark.parametrize("title", ["LLaVA-OneVision", "GLM-4.1V", "Gemma 3"])
def test_a_stock_checkpoint_is_served_with_a_budget(python, title, tmp_path):
    processor, stock = PROCESSORS[title](), wide_model(title)
    folder = tmp_path / "model"
    stock.save_pretrained(folder)
    processor.save_pretrained(folder)
    positions = {"positions": "even"} if title.startswith("GLM") else {}
    model = with_regions(stock, Regionizer(pool="mean", norm="none", keep=0.5), **positions)
    samples = samples_of(title, processor)
    expected = expected_answers(model, processor, samples)
    overrides = {"architectures": [f"Region{type(stock).__name__}"]}
    options = LIMITS | {"hf_overrides": overrides, "mm_processor_kwargs": {"keep": 0.5}}
    requests = {"answered": [request(text, images) for text, images, _ in samples], "rejected": []}
    assert serve(python, folder, options, requests, tmp_path)["batch"] == expected


REJECTED_MODELS = """
import transformers
from types import SimpleNamespace as Options
from regiontok.adapters.vllm import REJECTED, register
from regiontok.adapters.vllm.backend import to_regions

register()
for family, positions in [*((name, None) for name in REJECTED), ("Glm4v", "centroid")]:
    config = transformers.CONFIG_MAPPING[getattr(transformers, f"{family}Config").model_type]()
    if positions:
        config = transformers.CONFIG_MAPPING[f"region_{config.model_type}"]()
        config.regiontok = {"num_regions": 4, "pool": "mean", "norm": "none"}
    config.architectures = [f"Region{family}ForConditionalGeneration"]
    config.regiontok_positions = positions
    try:
        to_regions(Options(hf_config=config, get_multimodal_config=lambda: Options(mm_processor_kwargs=None)))
    except ValueError as error:
        print(error)
"""


def test_other_families_and_positions_are_rejected_by_name(python):
    done = subprocess.run([python, "-c", REJECTED_MODELS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    *families, positions = done.stdout.strip().splitlines()
    assert families == [f"vLLM cannot serve {name} with regions: {reason}." for name, reason in REJECTED.items()]
    assert "so it serves positions='even'; got 'centroid'" in positions


def test_every_family_has_a_way_or_a_reason():
    native = [name.removeprefix("Region").removesuffix("ForConditionalGeneration") for name in NATIVE]
    assert sorted([*native, *BACKEND, *REJECTED]) == sorted(family.name for family in FAMILIES)
