"""Fine-tune a stock checkpoint of any supported family on instructions (stage 2), with region tokens.

Examples:
    python checkpoint.py Qwen/Qwen2.5-VL-3B-Instruct --data questions.json --images images --num-regions 128 --lora 16
    python checkpoint.py llava-hf/llava-v1.6-mistral-7b-hf --data questions.json --images images --masks masks
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from conversations import StoredMasks, read_turns
from peft import LoraConfig, get_peft_model
from templates import IMAGE
from torch.utils.data import Dataset
from transformers import AutoProcessor, Trainer, TrainingArguments

from regiontok import Regionizer
from regiontok.adapters.huggingface import geometry_of, load_model, process, region_processor, with_regions
from regiontok.images import read_image
from regiontok.store import MaskStore

_FROZEN = ("vision_tower", "visual.", "vision_model")
"""Weights with one of these strings in their name are not trained."""


class Answers(Dataset[dict[str, Any]]):
    """Answers of a LLaVA JSON file: each sample is a conversation up to one answer, and only this answer is learnt."""

    def __init__(self, file: str | Path, images: str | Path) -> None:
        self.images = Path(images)
        self.samples: list[tuple[list[tuple[str, str]], list[str]]] = []
        for entry in json.loads(Path(file).read_text(encoding="utf-8")):
            turns, files = read_turns(entry)
            for last in range(1, len(turns) + 1):
                num_images = sum(question.count(IMAGE) for question, _ in turns[:last])
                self.samples.append((turns[:last], files[:num_images]))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        turns, files = self.samples[index]
        return {"turns": turns, "files": files, "images": [read_image(self.images / file) for file in files]}


class ProcessorCollator:
    """Join samples to a batch. The processor writes prompts with its chat template, and only answers have labels.

    Args:
        model: The region model.
        processor: The processor of the checkpoint.
        masks: Masks of images by file name, for a model that needs masks.
    """

    def __init__(self, model: Any, processor: Any, masks: StoredMasks | None = None) -> None:
        self.model = model
        self.processor = processor
        self.masks = masks
        processor.tokenizer.padding_side = "right"

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return inputs for ``forward`` of the model."""
        tokenizer = self.processor.tokenizer
        texts, answers = [], []
        for sample in samples:
            messages: list[dict[str, Any]] = []
            for question, answer in sample["turns"]:
                image_parts = [{"type": "image"}] * question.count(IMAGE)
                text_part = {"type": "text", "text": question.replace(IMAGE, "").strip()}
                messages.append({"role": "user", "content": [*image_parts, text_part]})
                messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
            prompt = self.processor.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
            texts.append(f"{prompt}{sample['turns'][-1][1]}{tokenizer.eos_token or ''}")
            prompt_length = len(tokenizer(prompt)["input_ids"])
            answers.append(tokenizer(texts[-1])["input_ids"][prompt_length:])
        images = [sample["images"] for sample in samples]
        batch = process(self.model, self.processor, texts, images)
        labels = torch.full_like(batch["input_ids"], -100)
        for row, answer in enumerate(answers):
            end = int(batch["attention_mask"][row].nonzero().max()) + 1
            last_ids = batch["input_ids"][row, end - len(answer) : end]
            if last_ids.tolist() != answer:
                raise SystemExit(
                    f"prompts must end with the answer; {type(self.processor).__name__} writes them differently. This "
                    "script does not support it."
                )
            labels[row, end - len(answer) : end] = last_ids
        batch["labels"] = labels
        if self.masks is not None and any(images):
            batch["masks"] = [
                self.masks(file, image)
                for sample in samples
                for file, image in zip(sample["files"], sample["images"], strict=True)
            ]
        return batch


def with_trainable_regions(model: Any, processor: Any, options: argparse.Namespace) -> Any:
    """Return the model with a trainable Regionizer: clustering to a budget, or masks of a store."""
    regions: dict[str, Any] = {"dim": model.patch_dim, "norm": options.norm, "num_heads": options.heads}
    if not options.masks:
        regions["num_regions"] = options.num_regions
    else:
        regions["source"] = "segmentation"
        if not model.knows_tile_layout:
            regions["geometry"] = geometry_of(processor)
    return with_regions(model, Regionizer(**regions)).train()


def main(arguments: Sequence[str] | None = None) -> Trainer:
    """Train the model, and save it with its processor."""
    options = make_parser().parse_args(arguments)
    processor = AutoProcessor.from_pretrained(options.checkpoint)
    region_model = with_trainable_regions(load_model(options.checkpoint, dtype=options.dtype), processor, options)
    model = region_model
    if not options.masks:
        processor = region_processor(processor, model)
    for name, weight in model.named_parameters():
        weight.requires_grad_(not any(part in name for part in _FROZEN) and weight.is_floating_point())
    if options.lora:
        has_projector = hasattr(model.model, "multi_modal_projector")
        config = LoraConfig(
            r=options.lora,
            lora_alpha=2 * options.lora,
            target_modules=r".*(language_model|text_model).*\.(q|k|v|o|gate|up|down)_proj",
            modules_to_save=["regionizer.pool", *["multi_modal_projector"] * has_projector],
        )
        model = get_peft_model(model, config)
    dataset = Answers(options.data, options.images)
    masks = StoredMasks(MaskStore(options.masks)) if options.masks else None
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(options.out),
            per_device_train_batch_size=options.batch_size,
            gradient_accumulation_steps=options.accumulate,
            learning_rate=options.learning_rate,
            max_steps=options.max_steps,
            num_train_epochs=1,
            lr_scheduler_type="cosine",
            warmup_steps=0.03,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            dataloader_num_workers=options.workers,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=dataset,
        data_collator=ProcessorCollator(region_model, processor, masks),
    )
    print(f"{len(dataset)} answers, {trainer.get_num_trainable_parameters():,} weights trained, {options.out}")
    trainer.train()
    full_model = trainer.model.merge_and_unload() if options.lora else trainer.model
    if trainer.args.should_save:
        full_model.save_pretrained(options.out / "model")
        processor.save_pretrained(options.out / "model")
    return trainer


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="checkpoint.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="folder or hub name of a stock model")
    parser.add_argument("--data", required=True, help="conversations in the JSON format of LLaVA")
    parser.add_argument("--images", required=True, help="folder of the images of --data")
    parser.add_argument(
        "--num-regions", type=int, default=128, help="regions per image, from clustering; default: %(default)s"
    )
    parser.add_argument("--masks", metavar="STORE", help="use the masks of this store instead of clustering")
    parser.add_argument(
        "--norm", choices=("none", "rms"), default="none", help="default: none, as in the training of stock checkpoints"
    )
    parser.add_argument("--heads", type=int, default=16, help="attention heads of the pool; default: %(default)s")
    parser.add_argument("--lora", type=int, metavar="RANK", help="train the language model with LoRA of this rank")
    parser.add_argument("--batch-size", type=int, default=8, help="batch size per device; default: %(default)s")
    parser.add_argument("--accumulate", type=int, default=1, help="gradient accumulation steps; default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=2e-5, help="peak learning rate; default: %(default)s")
    parser.add_argument("--max-steps", type=int, default=-1, help="maximum number of steps; default: one epoch")
    parser.add_argument("--workers", type=int, default=4, help="processes that read images; default: %(default)s")
    parser.add_argument("--dtype", default="auto", help="data type of the model; default: that of the checkpoint")
    parser.add_argument("--out", type=Path, default=Path("train-checkpoint"), help="default: %(default)s")
    return parser


if __name__ == "__main__":
    main()
