"""Stage 2 of the recipe on stock checkpoints: a family of each mechanism, with real processors."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regiontok import MaskSet, Regionizer
from regiontok.adapters.huggingface import with_regions
from regiontok.evaluation.assistant import Assistant, Question
from regiontok.store import write_masks
from tests.families import CASES, IMAGE
from tests.processors import PROCESSORS, TEMPLATE, placeholder

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "train_llava"))

import checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft calls it
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),  # GLM's
]
MECHANISMS = ["LLaVA-1.5", "LLaVA-NeXT", "Gemma 3", "InternVL", "SmolVLM", "Qwen3-VL", "GLM-4.1V", "Gemma 4"]


def stock(name, folder):
    CASES[name].make().save_pretrained(folder)
    processor = PROCESSORS[name]()
    processor.chat_template = TEMPLATE.replace("IMAGE", placeholder(name, processor))
    processor.save_pretrained(folder)
    return processor


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    entries = []
    for number in range(4):
        image = generator.integers(0, 255, (100, 100, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{number}.png")
        turns = [("human", "<image>\nw5 w6"), ("gpt", f"w{7 + number} w9"), ("human", "w8"), ("gpt", "w10")]
        conversation = [{"from": role, "value": value} for role, value in turns]
        entries.append({"id": number, "image": f"{number}.png", "conversations": conversation[: 2 + 2 * (number % 2)]})
    (folder / "questions.json").write_text(json.dumps(entries))
    half = np.zeros((2, 100, 100), bool)
    half[0, :, :50], half[1, :, 50:] = True, True
    write_masks(folder / "masks", {f"{number}.png": MaskSet.from_masks(half) for number in range(4)})
    return folder


@pytest.mark.parametrize("name", MECHANISMS, ids=lambda name: name.replace(" ", "-"))
def test_a_stock_checkpoint_is_fine_tuned_and_answers(name, data, tmp_path):
    stock(name, tmp_path / "stock")
    arguments = [str(tmp_path / "stock"), "--data", str(data / "questions.json"), "--images", str(data), "--heads", "4"]
    arguments += ["--batch-size", "6", "--workers", "0", "--learning-rate", "0.01", "--max-steps", "3"]
    arguments += ["--num-regions", "9"] if name != "LLaVA-1.5" else ["--lora", "4", "--num-regions", "5"]
    trainer = checkpoint.main([*arguments, "--out", str(tmp_path / "out")])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assistant = Assistant.load(tmp_path / "out" / "model")
    assert assistant.model.regionizer.pool.out.weight.any()
    (answer,) = assistant.answer([Question("w5 w6", [Image.open(data / "0.png")])], max_new_tokens=2)
    assert 1 <= answer.counts[0] <= 9


@pytest.mark.parametrize("name", ["LLaVA-NeXT", "Qwen3-VL", "InternVL"])
def test_a_stock_checkpoint_is_fine_tuned_on_stored_masks(name, data, tmp_path):
    stock(name, tmp_path / "stock")
    arguments = [str(tmp_path / "stock"), "--data", str(data / "questions.json"), "--images", str(data), "--heads", "4"]
    arguments += ["--masks", str(data / "masks"), "--batch-size", "2", "--workers", "0", "--max-steps", "1"]
    checkpoint.main([*arguments, "--out", str(tmp_path / "out")])
    assert Assistant.load(tmp_path / "out" / "model").needs_masks


def test_only_answers_have_labels(data, tmp_path):
    processor = stock("LLaVA-1.5", tmp_path)
    answers = checkpoint.Answers(data / "questions.json", data)
    assert len(answers) == 6
    model = with_regions(CASES["LLaVA-1.5"].make(), Regionizer(pool="mean"))
    batch = checkpoint.ProcessorCollator(model, processor)([answers[0], answers[2]])
    for row, words in enumerate((["w7", "w9"], ["w10"])):
        labels = batch["labels"][row][batch["labels"][row] != -100].tolist()
        assert processor.tokenizer.convert_ids_to_tokens(labels) == words
    assert (batch["input_ids"] == IMAGE).sum() == 32
    assert torch.equal(batch["labels"] == IMAGE, torch.zeros_like(batch["labels"], dtype=torch.bool))


def test_processors_that_move_the_answer_are_rejected(data, tmp_path):
    processor = stock("PaliGemma", tmp_path)
    model = with_regions(CASES["PaliGemma"].make(), Regionizer(pool="mean"))
    answers = checkpoint.Answers(data / "questions.json", data)
    with pytest.raises(
        SystemExit, match="prompts must end with the answer; PaliGemmaProcessor writes them differently"
    ):
        checkpoint.ProcessorCollator(model, processor)([answers[0]])
