"""Models for vLLM's attention on CPUs, and requests with their answers in transformers."""

import json
import os
import subprocess
from pathlib import Path
from unittest import mock

import pytest
import torch

from regiontok.adapters.huggingface import region_processor
from tests import families
from tests.adapters.test_processors import IMAGES
from tests.families import CASES, CLIP, IMAGE
from tests.processors import PROCESSORS, placeholder

COUNTS = (5, 9, 12, 7, 400)
_WIDE = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.3}
_SIZES = {
    "TEXT": families.TEXT | _WIDE,
    "ROPE": families.ROPE | {"mrope_section": [8, 12, 12]},
    "VISUAL": families.VISUAL | {"out_hidden_size": 128},
}


def wide_model(title):
    """Return the stock model of a family with heads of 64, which vLLM's attention on CPUs needs."""
    if title == "LLaVA-1.5":
        text = _SIZES["TEXT"] | {"model_type": "llama"}
        return families.build("Llava", vision_config=CLIP, text_config=text, image_token_index=IMAGE)
    build = families.build
    untied = {"tie_word_embeddings": False} if title == "Gemma 3" else {}  # or it repeats the last word of the prompt

    def build_wide(name, **options):
        wide = _widened(options)
        return build(name, **wide | {"text_config": wide["text_config"] | untied}, **untied)

    with mock.patch.multiple(families, **_SIZES, build=build_wide):
        return CASES[title].make()


def _widened(options):
    if not isinstance(options, dict):
        return options
    wide = {name: _widened(value) for name, value in options.items()}
    if "patch_size" not in wide:
        wide |= {name: 64 for name in ("head_dim", "global_head_dim") if name in wide}
    if "embed_dim" in wide and "hidden_size" in wide:  # of Qwen2-VL's vision encoder, the size of its output
        wide["hidden_size"] = 128
    return wide


def small_processor(title):
    """Return the processor of a small model. vLLM also makes dummy videos, so their patches have the size of images'."""
    processor = PROCESSORS[title]()
    if title.startswith("Qwen"):
        processor.video_processor.patch_size = processor.image_processor.patch_size
    return processor


def vllm_python():
    """Return the Python that has vLLM, or skip the test."""
    found = os.environ.get("REGIONTOK_VLLM")
    if found is None:
        pytest.skip("REGIONTOK_VLLM names no Python with vLLM")
    return found


def serve(python, folder, options, requests, root):
    """Return what the engine answers."""
    torch.save(requests, root / "requests.pt")
    program = Path(__file__).with_name("vllm_regions.py")
    command = [python, program, folder, json.dumps(options), root / "requests.pt", root / "answers.pt"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, cwd=root)
    assert done.returncode == 0, done.stderr[-6000:]
    return torch.load(root / "answers.pt")


def prompts(title, processor, counts=COUNTS):
    """Return texts with their images and budgets: single images, two images, and an image with all of its patches."""
    image = placeholder(title, processor).replace("><", "> <")
    samples = [IMAGES[:1], IMAGES[1:2], IMAGES[2:], IMAGES[:2], IMAGES[1:2]]
    return [
        ("w5 w6 " + " w7 ".join([image] * len(images)) + " w8 w9", images, count)
        for images, count in zip(samples, counts, strict=True)
    ]


def expected_answers(model, processor, samples):
    answers = []
    regions = region_processor(processor, model)
    for text, images, count in samples:
        budget = {} if count is None else {"num_regions": count}
        given = regions(text=[text], images=[images], return_tensors="pt", **budget)
        made = model.generate(**given, max_new_tokens=6, min_new_tokens=6, do_sample=False, eos_token_id=None)
        answers.append(made[0, given["input_ids"].shape[1] :].tolist())
    assert len({tuple(answer) for answer in answers}) > 1
    return answers


def request(text, images, **kwargs):
    return {"prompt": text, "multi_modal_data": {"image": images}} | ({"mm_processor_kwargs": kwargs} if kwargs else {})
