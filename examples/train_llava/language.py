"""A toy language model, trained on text only. It replaces the pretrained language model of LLaVA.

Each text starts with the objects of a scene, in words that are used nowhere else (``red-circle-at-x3``), shuffled and
mixed with filler words. A caption or questions with answers follow. So the model can already answer questions about its
context before it is trained on images, like a pretrained language model.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scenes import COLOURS, FILLER, SHAPES, SIDE, caption_of, draw_things, questions_of, words
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments

STEPS, BATCH = 3000, 16


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word."""
    objects = [f"{colour}-{shape}-at-x{x}" for colour in COLOURS for shape in SHAPES for x in range(6)]
    vocabulary = ["<pad>", "<bos>", "<eos>", "<image>", *words(), *objects]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return fast


class ToyTexts(Dataset[dict[str, torch.Tensor]]):
    """Random texts, generated on access. The same index always gives the same text."""

    def __init__(self, tokenizer: Any, count: int, seed: int = 0) -> None:
        self.tokenizer, self.count, self.seed = tokenizer, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = np.random.default_rng([self.seed, index])
        things = draw_things(generator)
        context = [f"{thing.colour}-{thing.shape}-at-x{int(6 * thing.x / SIDE)}" for thing in things]
        context += generator.choice(FILLER, generator.integers(1, 10)).tolist()
        generator.shuffle(context)
        text = ["<bos>", *context]
        is_target = [False] * len(text)
        if generator.random() < 0.25:
            caption = caption_of(things).split()
            text += caption
            is_target += [True] * len(caption)
        else:
            for question in questions_of(things, generator):
                question_words = question.text.split()
                text += [*question_words, question.answer]
                is_target += [False] * len(question_words) + [True]
        ids = torch.tensor(self.tokenizer.convert_tokens_to_ids(text))
        return {"input_ids": ids, "labels": torch.where(torch.tensor(is_target), ids, -100)}


def learn_language(folder: Path, *, steps: int = STEPS, seed: int = 42) -> Path:
    """Train the toy language model on text (stage 0) and return its folder. Do nothing if the model exists."""
    if (folder / "model.safetensors").is_file():
        return folder
    tokenizer = toy_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )

    def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        padding = {"input_ids": tokenizer.pad_token_id, "labels": -100}
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            name: pad([sample[name] for sample in samples], batch_first=True, padding_value=value)
            for name, value in padding.items()
        }

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder), max_steps=steps, per_device_train_batch_size=BATCH, **TOY_TRAINING
        ),
        train_dataset=ToyTexts(tokenizer, steps * BATCH),
        data_collator=collate,
    )
    trainer.train()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


TOY_TRAINING: dict[str, Any] = {
    "learning_rate": 2e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "adam_beta2": 0.98,
    "max_grad_norm": 1.0,
    "weight_decay": 0.0,
    "seed": 42,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
}
"""Training arguments of all toy stages."""
