"""Train a LLaVA on region tokens, in the two stages of LLaVA-1.5. The README in this folder shows the commands."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import recipe
import torch
from building import STAGE_FILE, build, cast_trained, freeze_except, image_processor, load_stage, processor_of
from conversations import Collator, Conversations, GeneratedMasks, StoredMasks, VisualTokens
from peft import LoraConfig, get_peft_model
from stored import StoredFeatures
from templates import TEMPLATES
from trainer import RegionTrainer
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from regiontok import masks
from regiontok.choices import MASK_SOURCES
from regiontok.store import MaskStore, TokenStore

STAGES = {"align": recipe.ALIGN, "instruct": recipe.INSTRUCT}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and train."""
    options = make_parser().parse_args(arguments)
    if options.rows:
        recipe.print_rows()
        return
    if options.tiny:
        import tiny  # noqa: PLC0415  tiny imports this module

        row = options.row or "pixels/clustering/rms/cross_attention/raster"
        print(tiny.table([tiny.train_one(row, Path(options.out or tiny.FOLDER), seed=options.seed)]))
        return
    for name in ("row", "stage", "language_model", "data", "images"):
        if getattr(options, name) is None:
            raise SystemExit(f"--{name.replace('_', '-')} is required; see --help.")
    if options.lora and options.stage != "instruct":
        raise SystemExit("--lora is for --stage instruct: --stage align does not train the language model.")
    row, stage, out = recipe.row(options.row), STAGES[options.stage], Path(options.out or "train-llava")
    from_stage = Path(options.from_stage or out / "align")
    if options.stage == "instruct" and not (from_stage / STAGE_FILE).is_file():
        raise SystemExit(
            f"there is no {from_stage / STAGE_FILE}. Train --stage align first, or pass its folder as --from-stage."
        )
    mask_source = None
    if not (options.features and options.masks is None):
        mask_source = _load_masks(options.masks, row.options["source"], options.workers, options.missing)
    training = {"bf16": torch.cuda.is_available(), "activation_checkpointing": True}
    training |= {"dataloader_num_workers": options.workers, "save_steps": options.save_steps}
    training |= json.loads(Path(options.config).read_text(encoding="utf-8")) if options.config else {}
    # FSDP needs one data type for all weights.
    use_bfloat16 = torch.cuda.is_available() and "fsdp" not in training and (options.stage == "align" or options.lora)
    features = None
    if options.features:
        if options.stage != "align":
            raise SystemExit(
                "--features is for --stage align: --stage instruct saves the whole model with its encoder."
            )
        if isinstance(mask_source, GeneratedMasks) or options.missing:
            raise SystemExit("--features does not read images, so masks cannot be generated. Pass a store as --masks.")
        features = StoredFeatures(TokenStore(options.features), row, stage.geometry)
        if features.is_tokens:
            mask_source = None
    model, tokenizer = build(
        row.encoder,
        options.language_model,
        dict(row.options),
        geometry=stage.geometry,
        dtype=torch.bfloat16 if use_bfloat16 else None,
        tower=None if features is None else features.tower(row.encoder),
    )
    if options.stage == "instruct":
        load_stage(model, from_stage)
    run_stage(
        model,
        tokenizer,
        stage if options.max_steps is None else stage.replace(max_steps=options.max_steps),
        data=options.data,
        images=options.images,
        masks=mask_source,
        out=out / stage.name,
        per_device=options.per_device_batch,
        on_bad_image=options.bad_image,
        on_too_long=options.too_long,
        resume=options.resume,
        lora=options.lora,
        training=training,
        features=features,
    )


def run_stage(
    model: Any,
    tokenizer: Any,
    stage: recipe.Stage,
    *,
    data: str | Path,
    images: str | Path,
    masks: StoredMasks | GeneratedMasks | None,
    out: Path,
    per_device: int,
    on_bad_image: str = "error",
    on_too_long: str = "error",
    resume: bool = False,
    lora: int | None = None,
    training: dict[str, Any] | None = None,
    group: bool = True,
    callbacks: Sequence[Any] = (),
    features: StoredFeatures | None = None,
) -> RegionTrainer:
    """Train one stage and save the trained weights. After stage ``instruct``, save the whole model too.

    ``features`` replace images and encoder by stored features.
    """
    out.mkdir(parents=True, exist_ok=True)
    skipped = out / "skipped.txt"
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if not resume and os.environ.get("RANK", "0") == "0":
        skipped.unlink(missing_ok=True)
    tower, source = model.model.vision_tower, model.regionizer.config.source
    if features is not None:
        features.attach(model)
        source = "stored" if features.is_tokens else source
    rows, cols = tower.encoder.grid if features is None else features.grid
    dataset = Conversations(
        data,
        images,
        tokenizer=tokenizer,
        template=TEMPLATES[stage.template],
        image_processor=image_processor(tower, stage.geometry) if features is None else None,
        features=features,
        masks=masks if source in MASK_SOURCES else None,
        visual_tokens=VisualTokens(source, rows * cols),
        max_length=stage.max_length,
        on_bad_image=on_bad_image,
        on_too_long=on_too_long,
        skipped=skipped,
    )
    freeze_except(model, stage.trained)
    if lora:
        model = _with_lora(model, lora)
    cast_trained(model)
    num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print(f"Stage {stage.name}: {len(dataset)} samples, {num_trained:,} trained weights, {out}")
    settings = stage.training_arguments(str(out), per_device=per_device, processes=processes, **(training or {}))
    trainer = RegionTrainer(
        model=model,
        args=TrainingArguments(**settings),
        train_dataset=dataset,
        data_collator=Collator(tokenizer.pad_token_id, needs_masks=source in MASK_SOURCES),
        lengths=dataset.lengths() if group else None,
        max_length=stage.max_length,
        skipped=skipped if on_too_long == "skip" else None,
        callbacks=list(callbacks),
    )
    last_checkpoint = get_last_checkpoint(str(out)) if resume else None
    if resume and last_checkpoint is None:
        print(f"There is no checkpoint in {out}; training starts from the beginning.")
    trainer.train(resume_from_checkpoint=last_checkpoint)
    if lora:
        trainer.save_model(str(out / "adapter"))
        trainer.model = trainer.model_wrapped = trainer.model.merge_and_unload()
    else:
        trainer.save_stage(out)
    if stage.name == "instruct":
        trainer.save_full_model(out / "model")
        if trainer.args.should_save:
            template = TEMPLATES[stage.template].jinja(tokenizer.eos_token)
            processor_of(trainer.model, tokenizer, stage.geometry, template).save_pretrained(out / "model")
    if skipped.is_file():
        lines = sorted(set(skipped.read_text(encoding="utf-8").splitlines()))
        print(f"{len(lines)} samples were skipped or too long; see {skipped}. The first: {lines[0]}")
    return trainer


def _with_lora(model: Any, rank: int) -> Any:
    """Add LoRA to the language model. Projector and pool are trained fully, at the same learning rate."""
    has_pool_weights = model.regionizer.config.pool == "cross_attention"
    return get_peft_model(
        model,
        LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0.05,
            target_modules=r".*language_model.*_proj",
            modules_to_save=["multi_modal_projector", *["regionizer.pool"] * has_pool_weights],
        ),
    )


def _load_masks(
    name: str | None, source: str, workers: int, missing: str | None = None
) -> StoredMasks | GeneratedMasks | None:
    """Return masks from a store or a generator; None for a source without masks."""
    if source not in MASK_SOURCES:
        if name:
            raise SystemExit(f"--masks is for sources that need masks; the source of this row is {source}.")
        return None
    if name is None:
        raise SystemExit(f"source {source} needs --masks: a store written by `regiontok masks`, or a generator.")
    if name not in masks.GENERATORS:
        return StoredMasks(MaskStore(name), None if missing is None else _load_masks(missing, source, workers))
    if missing is not None:
        raise SystemExit("--missing needs --masks STORE, a store that lacks the masks of some images.")
    if name != "felzenszwalb" and workers:
        raise SystemExit(f"--masks {name} generates masks on the device of the training, and needs --workers 0.")
    return GeneratedMasks(name)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", action="store_true", help="print the rows of Table 1 of the paper, and exit")
    parser.add_argument("--row", help="row of Table 1: encoder/source/norm/pool/order")
    parser.add_argument(
        "--stage", choices=STAGES, help="align trains projector and pool; instruct also trains the language model"
    )
    parser.add_argument("--language-model", help="name or folder of a causal language model of transformers")
    parser.add_argument("--data", help="conversations in the JSON format of LLaVA")
    parser.add_argument("--images", help="folder of the images of --data")
    parser.add_argument("--masks", metavar="STORE|GENERATOR", help="masks, for sources that need them")
    parser.add_argument(
        "--missing", metavar="GENERATOR", choices=masks.GENERATORS, help="generator for images without stored masks"
    )
    parser.add_argument(
        "--features",
        metavar="STORE",
        help="for stage align: features or tokens from `regiontok tokenize --store`, which replace the encoder",
    )
    parser.add_argument("--out", help="default: train-llava, or train-llava-tiny with --tiny")
    parser.add_argument("--from-stage", help="folder of stage align; default: align in --out")
    parser.add_argument(
        "--per-device-batch",
        type=int,
        default=16,
        help="batch size per device, without accumulation; default: %(default)s",
    )
    parser.add_argument("--config", help="JSON file with further TrainingArguments, such as those in configs/")
    parser.add_argument("--lora", type=int, metavar="RANK", help="train the language model with LoRA of this rank")
    parser.add_argument("--max-steps", type=int, help="maximum number of steps; default: one epoch")
    parser.add_argument("--save-steps", type=int, default=1000, help="steps between checkpoints; default: %(default)s")
    parser.add_argument("--workers", type=int, default=4, help="processes that read images; default: %(default)s")
    parser.add_argument("--bad-image", default="error", choices=("error", "skip"), help="action for unreadable images")
    parser.add_argument(
        "--too-long", default="error", choices=("error", "skip"), help="action for samples with more than 2048 tokens"
    )
    parser.add_argument("--resume", action="store_true", help="resume from the last checkpoint in --out")
    parser.add_argument("--seed", type=int, default=42, help="random seed of --tiny; default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="train on toy scenes with a toy language model, in minutes")
    return parser


if __name__ == "__main__":
    main()
