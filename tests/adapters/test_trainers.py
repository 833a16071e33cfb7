"""Trainers of transformers and TRL train the pool on as many columns as an image has regions."""

import os
import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import Trainer, TrainingArguments

from regiontok.adapters.huggingface import load_model, region_processor
from tests.families import CASES, IMAGE, VIDEO
from tests.models import region_model
from tests.processors import PROCESSORS, TEMPLATE, placeholder
from tests.video_processors import PROCESSORS as VIDEO_PROCESSORS
from tests.video_processors import batch_of

pytest.importorskip("trl", reason="trl is not installed")
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

pytestmark = pytest.mark.filterwarnings("ignore")  # of other packages, which change with their versions
BUDGET = 3
ROWS = ("input_ids", "token_type_ids", "mm_token_type_ids")
THOROUGH = os.environ.get("REGIONTOK_TEST_PROFILE") == "thorough"
FAMILIES = ["LLaVA-1.5", "Qwen2.5-VL", "Qwen3-VL", "Gemma 3", "InternVL"] if THOROUGH else ["Qwen3-VL", "InternVL"]


@pytest.fixture(params=FAMILIES)
def name(request):
    return request.param


def trainable(name, **options):
    """A region model with a pool that is not the mean, and its processor."""
    model = region_model(CASES[name].make(), num_regions=BUDGET, **options).train()
    processor = PROCESSORS[name]()
    processor.chat_template = TEMPLATE.replace("IMAGE", placeholder(name, processor))
    processor.tokenizer.eos_token = "w2"
    return model, region_processor(processor, model)


def watch(model):
    """Widths of the language model's input, by whether gradients are computed."""
    widths = Counter()
    inner = model.model
    language = inner.language_model if hasattr(inner, "language_model") else inner.text_model
    language.register_forward_pre_hook(
        lambda module, args, kwargs: widths.update([(torch.is_grad_enabled(), kwargs["inputs_embeds"].shape[1])]),
        with_kwargs=True,
    )
    return widths


def images(count):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (56, 56, 3), dtype=np.uint8)) for _ in range(count)]


def say(role, text, image=False):
    return [{"role": role, "content": [{"type": "image"}] * image + [{"type": "text", "text": text}]}]


PROMPTS = [say("user", "w5 w6", image=True)] * 4
ANSWERS = [say("assistant", f"w7 w{8 + number}") for number in range(4)]


def settings(kind, folder, **more):
    common = {
        "output_dir": str(folder), "max_steps": 1, "per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True,
        "bf16": False, "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "learning_rate": 0.1,
    }  # fmt: skip
    return kind(**common | more)


def columns(processor):
    """Columns of a prompt: its words, what the processor writes around an image, and the regions."""
    text = processor.apply_chat_template(PROMPTS[0], tokenize=False)
    ids = processor(images=images(1), text=[text], return_tensors="pt")["input_ids"]
    assert int((ids == IMAGE).sum()) == BUDGET
    return ids.shape[1]


def is_trained(model, before):
    return not torch.equal(before, model.regionizer.pool.out.weight.detach())


def pool_of(model):
    return model.regionizer.pool.out.weight.detach().clone()


@pytest.mark.parametrize("name", ["LLaVA-1.5", "Qwen2.5-VL", "Qwen3-VL", "Gemma 3", "GLM-4.1V"])
def test_packed_samples_equal_separate_samples(name):
    """Two samples in one row, told apart by their positions, which packers compute before encoding.

    The stock Gemma 3 mixes packed samples if token types are given, which make images attend in both directions.
    """
    model, processor = trainable(name)
    model.config.regiontok_positions = "even"
    model.eval()
    token = placeholder(name, processor)
    apart = [
        processor(images=[one], text=[text], return_tensors="pt")
        for one, text in zip(images(2), (f"w5 {token} w6 w7", f"w8 w9 {token} w10"), strict=True)
    ]
    for sample in apart:
        sample.pop("token_type_ids", None)
    positions = []
    for sample in apart:
        length = sample["input_ids"].shape[1]
        text = torch.arange(length)[None]
        if "image_grid_thw" in sample:
            given = {key: sample[key] for key in ("mm_token_type_ids", "image_grid_thw") if key in sample}
            text = torch.cat([text[None], model.model.get_rope_index(sample["input_ids"], **given)[0]])
        positions.append(text)
    packed = {key: torch.cat([one[key] for one in apart], 1) for key in apart[0] if key in ROWS}
    packed |= {key: torch.cat([one[key] for one in apart]) for key in apart[0] if key not in (*ROWS, "attention_mask")}
    logits = model(**packed, position_ids=torch.cat(positions, -1), use_cache=False).logits[0]
    expected = torch.cat([model(**one).logits[0] for one in apart])
    assert (logits - expected).abs().max() < 1e-5


@pytest.mark.parametrize("lora", [False, True])
def test_sft(name, lora, tmp_path):
    model, processor = trainable(name)
    widths, before = watch(model), pool_of(model)
    rows = Dataset.from_dict({"images": [[one] for one in images(4)], "prompt": PROMPTS, "completion": ANSWERS})
    options = LoraConfig(target_modules="all-linear", modules_to_save=["regionizer"], r=2) if lora else None
    trainer = SFTTrainer(
        model=model,
        processing_class=processor,
        train_dataset=rows,
        peft_config=options,
        args=settings(SFTConfig, tmp_path, max_length=None, gradient_checkpointing=lora),
    )
    trainer.train()
    assert {width for _, width in widths} == {columns(processor) + 2}
    if lora:
        regionizer = trainer.model.base_model.model.model.regionizer
        assert not torch.equal(regionizer.modules_to_save["default"].pool.out.weight, before)
    else:
        assert is_trained(model, before)


def test_dpo(name, tmp_path):
    model, processor = trainable(name)
    reference = trainable(name)[0]
    widths, before = watch(model), pool_of(model)
    rows = Dataset.from_dict(
        {"images": [[one] for one in images(4)], "prompt": PROMPTS, "chosen": ANSWERS, "rejected": ANSWERS[::-1]}
    )
    DPOTrainer(
        model=model,
        ref_model=reference,
        processing_class=processor,
        train_dataset=rows,
        args=settings(DPOConfig, tmp_path, max_length=None, gradient_checkpointing=False),
    ).train()
    assert {width for with_gradients, width in widths if with_gradients} == {columns(processor) + 2}
    assert is_trained(model, before)


def test_grpo_generates_and_trains_on_the_same_columns(name, tmp_path):
    model, processor = trainable(name)
    widths, before = watch(model), pool_of(model)
    rows = Dataset.from_dict({"image": images(4), "prompt": PROMPTS})
    GRPOTrainer(
        model=model,
        processing_class=processor,
        train_dataset=rows,
        reward_funcs=lambda completions, **_: [float(number % 3) for number in range(len(completions))],
        args=settings(
            GRPOConfig, tmp_path, num_generations=4, max_completion_length=4, beta=0.0, gradient_checkpointing=False
        ),
    ).train()
    prompt = columns(processor)
    generated = {width for with_gradients, width in widths if not with_gradients and width > 1}
    trained = {width for with_gradients, width in widths if with_gradients}
    assert prompt in generated
    assert trained <= {prompt + length for length in range(1, 5)}
    assert trained
    assert is_trained(model, before)


@pytest.mark.parametrize("more", [{}, {"label_smoothing_factor": 0.1}])
def test_the_trainer_of_transformers(name, more, tmp_path):
    """Its own loss of label smoothing is computed beside the model, on the caller's columns."""
    model, processor = trainable(name)
    widths, before = watch(model), pool_of(model)
    text = processor.apply_chat_template(PROMPTS[0] + ANSWERS[0], tokenize=False)
    rows = [dict(processor(images=[one], text=[text], return_tensors="pt")) for one in images(4)]

    def collate(samples):
        batch = {key: torch.cat([one[key] for one in samples]) for key in samples[0]}
        batch["labels"] = batch["input_ids"].masked_fill(batch["input_ids"] == IMAGE, -100)
        return batch

    trainer = Trainer(
        model=model, args=settings(TrainingArguments, tmp_path, **more), train_dataset=rows, data_collator=collate
    )
    trainer.train()
    assert {width for _, width in widths} == {rows[0]["input_ids"].shape[1]}
    assert is_trained(model, before)


def test_trl_and_pipelines_load_a_folder(name, tmp_path):
    model, processor = trainable(name)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    rows = Dataset.from_dict({"images": [[one] for one in images(4)], "prompt": PROMPTS, "completion": ANSWERS})
    trainer = SFTTrainer(
        model=str(tmp_path / "model"),
        train_dataset=rows,
        args=settings(SFTConfig, tmp_path, max_length=None, model_init_kwargs={"dtype": "float32"}),
    )
    widths = watch(trainer.model)
    trainer.train()
    assert {width for _, width in widths} == {columns(processor) + 2}
    assert is_trained(trainer.model, pool_of(model))


PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"
BLOCKS = re.findall(r"```py\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
PROGRAMS = [block for block in BLOCKS if "Trainer(" in block]
(PACKING,) = [block for block in BLOCKS if "use_cache=False" in block]
(MERGING,) = [block for block in BLOCKS if "merge_and_unload" in block]


def test_packing_of_the_documentation():
    model, processor = trainable("Qwen3-VL")
    model.eval()
    names = {"model": model, "processor": processor, "images": images(2)}
    names["texts"] = [f"w5 {placeholder('Qwen3-VL', processor)} w6", f"{placeholder('Qwen3-VL', processor)} w8 w9"]
    exec(PACKING, names)
    expected = torch.cat([model(**sample).logits[0] for sample in names["samples"]])
    assert (names["output"].logits[0] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda code: re.findall(r"(\w+Trainer|Trainer)\(", code)[0])
def test_programs_of_the_documentation(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    for module in ("trl", "transformers"):
        for name in ("SFTConfig", "DPOConfig", "GRPOConfig", "TrainingArguments"):
            kind = getattr(sys.modules[module], name, None)
            if kind is not None:
                more = {} if name == "TrainingArguments" else {"bf16": False}
                monkeypatch.setattr(sys.modules[module], name, partial(kind, **small, **more))
    model, processor = trainable("Qwen3-VL")
    widths, before = watch(model), pool_of(model)
    pictures = [[one] for one in images(4)]
    columns_of = {"images": pictures, "prompt": PROMPTS}
    names = {
        "model": model,
        "reference": trainable("Qwen3-VL")[0],
        "processor": processor,
        "conversations": Dataset.from_dict(columns_of | {"completion": ANSWERS}),
        "preferences": Dataset.from_dict(columns_of | {"chosen": ANSWERS, "rejected": ANSWERS[::-1]}),
        "prompts": Dataset.from_dict({"image": images(4), "prompt": PROMPTS}),
        "reward": lambda completions, **_: [float(number % 3) for number in range(len(completions))],
    }
    exec(program, names)
    assert max(width for _, width in widths) <= columns(processor) + 8
    trained = names["trainer"].model
    pools = [one for name, one in trained.named_parameters() if name.endswith("pool.out.weight") and one.requires_grad]
    if "peft_config" in program:
        pools = [
            one for name, one in trained.named_parameters() if "modules_to_save" in name and "pool.out.weight" in name
        ]
    assert len(pools) == 1
    if "LoraConfig" not in program:
        assert (pools[0].detach() - before).abs().max() > 0
    else:
        exec(MERGING, names)
        loaded = load_model("out/merged").state_dict()
        merged = names["merged"].state_dict()
        assert loaded.keys() == merged.keys()
        assert all(torch.equal(loaded[name], value) for name, value in merged.items())


def test_sft_with_videos(tmp_path):
    """As in TRL's example for videos: a collator calls the processor, whose prompts have a token per region."""
    stock = CASES["Qwen3-VL"].make()
    model = region_model(stock, num_regions=BUDGET).train()
    model.config.regiontok_videos = {"num_regions": 5}
    processor = region_processor(VIDEO_PROCESSORS["Qwen3-VL"](), model)
    widths, before = watch(model), pool_of(model)

    def collate(samples):
        given = batch_of("Qwen3-VL", processor, frames=[sample["frames"] for sample in samples])
        batch = processor(**given)
        return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

    SFTTrainer(
        model=model,
        processing_class=processor,
        train_dataset=Dataset.from_dict({"frames": [6, 8, 6, 8]}),
        data_collator=collate,
        args=settings(
            SFTConfig,
            tmp_path,
            max_length=None,
            per_device_train_batch_size=2,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
    ).train()
    expected = collate([{"frames": 6}, {"frames": 8}])["input_ids"]
    assert ((expected == VIDEO).sum(1) == 5).all()
    assert {width for _, width in widths} == {expected.shape[1]}
    assert is_trained(model, before)
