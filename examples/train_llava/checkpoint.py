"""Stage 2 on a stock checkpoint of any family: instruction tuning with region tokens, through its own processor.

python checkpoint.py Qwen/Qwen2.5-VL-3B-Instruct --data questions.json --images images --tokens 128 --lora 16 --out out
python checkpoint.py llava-hf/llava-v1.6-mistral-7b-hf --data questions.json --images images --masks masks --out out
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from conversations import IMAGE, StoredMasks, read_turns
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import AutoProcessor, Trainer, TrainingArguments

from regiontok import Regionizer
from regiontok.adapters.huggingface import geometry_of, load_model, process, region_processor, with_regions
from regiontok.images import read_image
from regiontok.store import MaskStore

_VISION = ("vision_tower", "visual.", "vision_model")
"""In names of weights that stay as they are."""


class Answers(Dataset[dict[str, Any]]):
    """One sample per answer of LLaVA's JSON: the conversation up to it, of which only this answer is learnt."""

    def __init__(self, file: str | Path, images: str | Path) -> None:
        self.images = Path(images)
        self.samples: list[tuple[list[tuple[str, str]], list[str]]] = []
        for entry in json.loads(Path(file).read_text(encoding="utf-8")):
            turns, files = read_turns(entry)
            for last in range(1, len(turns) + 1):
                held = sum(asked.count(IMAGE) for asked, _ in turns[:last])
                self.samples.append((turns[:last], files[:held]))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        turns, files = self.samples[index]
        return {"turns": turns, "files": files, "images": [read_image(self.images / file) for file in files]}


class ProcessorCollator:
    """Samples as a batch: the processor writes prompts by its chat template, and answers get their labels.

    Args:
        model: The region model, which says what it takes.
        processor: The checkpoint's.
        masks: Of images by their files' names, for a model of masks.
    """

    def __init__(self, model: Any, processor: Any, masks: StoredMasks | None = None) -> None:
        self.model = model
        self.processor = processor
        self.masks = masks
        processor.tokenizer.padding_side = "right"

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """What the model's ``forward`` takes."""
        tokenizer = self.processor.tokenizer
        texts, answers = [], []
        for sample in samples:
            messages: list[dict[str, Any]] = []
            for asked, told in sample["turns"]:
                parts = [{"type": "image"}] * asked.count(IMAGE)
                words = {"type": "text", "text": asked.replace(IMAGE, "").strip()}
                messages.append({"role": "user", "content": [*parts, words]})
                messages.append({"role": "assistant", "content": [{"type": "text", "text": told}]})
            prompt = self.processor.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
            texts.append(f"{prompt}{sample['turns'][-1][1]}{tokenizer.eos_token or ''}")
            before = len(tokenizer(prompt)["input_ids"])
            answers.append(tokenizer(texts[-1])["input_ids"][before:])
        images = [sample["images"] for sample in samples]
        batch = process(self.model, self.processor, texts, images)
        labels = torch.full_like(batch["input_ids"], -100)
        for row, answer in enumerate(answers):
            end = int(batch["attention_mask"][row].nonzero().max()) + 1
            found = batch["input_ids"][row, end - len(answer) : end]
            if found.tolist() != answer:
                raise SystemExit(
                    f"{type(self.processor).__name__} writes prompts in a way of its own, that do not end with "
                    "the answer; this script cannot train on them."
                )
            labels[row, end - len(answer) : end] = found
        batch["labels"] = labels
        if self.masks is not None and any(images):
            files = [(file, image) for one in samples for file, image in zip(one["files"], one["images"], strict=True)]
            batch["masks"] = [self.masks(file, image) for file, image in files]
        return batch


def with_learning_regions(model: Any, processor: Any, options: argparse.Namespace) -> Any:
    """The model with regions that are trained on: clusters to a budget, or a store's masks; its pool learns."""
    given: dict[str, Any] = {"dim": model.patch_dim, "norm": options.norm, "num_heads": options.heads}
    if not options.masks:
        given["num_regions"] = options.tokens
    else:
        given["source"] = "segmentation"
        if not model.places_images:
            given["geometry"] = geometry_of(processor)
    return with_regions(model, Regionizer(**given)).train()


def main(arguments: Sequence[str] | None = None) -> Trainer:
    """Train, and save the model with its processor."""
    options = parser().parse_args(arguments)
    processor = AutoProcessor.from_pretrained(options.checkpoint)
    model = regional = with_learning_regions(load_model(options.checkpoint, dtype=options.dtype), processor, options)
    if not options.masks:
        processor = region_processor(processor, model)
    for name, weight in model.named_parameters():
        weight.requires_grad_(not any(part in name for part in _VISION) and weight.is_floating_point())
    if options.lora:
        kept = [
            "regionizer.pool",
            *(["multi_modal_projector"] if hasattr(model.model, "multi_modal_projector") else []),
        ]
        targets = r".*(language_model|text_model).*\.(q|k|v|o|gate|up|down)_proj"
        settings = LoraConfig(r=options.lora, lora_alpha=2 * options.lora, target_modules=targets, modules_to_save=kept)
        model = get_peft_model(model, settings)
    dataset = Answers(options.data, options.images)
    masks = StoredMasks(MaskStore(options.masks)) if options.masks else None
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(options.out),
            per_device_train_batch_size=options.batch,
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
        data_collator=ProcessorCollator(regional, processor, masks),
    )
    print(f"{len(dataset)} answers, {trainer.get_num_trainable_parameters():,} weights trained, {options.out}")
    trainer.train()
    whole = trainer.model.merge_and_unload() if options.lora else trainer.model
    if trainer.args.should_save:
        whole.save_pretrained(options.out / "model")
        processor.save_pretrained(options.out / "model")
    return trainer


def parser() -> argparse.ArgumentParser:
    """All options."""
    own = argparse.ArgumentParser(
        prog="checkpoint.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    own.add_argument("checkpoint", help="a stock model, by folder or name on the hub")
    own.add_argument("--data", required=True, help="LLaVA's JSON")
    own.add_argument("--images", required=True, help="the folder its images are named from")
    own.add_argument("--tokens", type=int, default=128, help="per image, by clustering; default: %(default)s")
    own.add_argument("--masks", metavar="STORE", help="regions of a store's masks instead")
    own.add_argument("--norm", choices=("none", "rms"), default="none", help="default: as the checkpoint was trained")
    own.add_argument("--heads", type=int, default=16, help="of the pool; default: %(default)s")
    own.add_argument("--lora", type=int, metavar="RANK", help="train the language model by LoRA of this rank")
    own.add_argument("--batch", type=int, default=8, help="per device; default: %(default)s")
    own.add_argument("--accumulate", type=int, default=1)
    own.add_argument("--learning-rate", type=float, default=2e-5)
    own.add_argument("--max-steps", type=int, default=-1, help="default: one epoch")
    own.add_argument("--workers", type=int, default=4)
    own.add_argument("--dtype", default="auto")
    own.add_argument("--out", type=Path, default=Path("train-checkpoint"))
    return own


if __name__ == "__main__":
    main()
