"""Train a LLaVA on region tokens, by LLaVA-1.5's two stages; the README beside this file has the commands."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import recipe
import torch
from building import STAGE_FILE, build, freeze_but, image_processor, load_stage, processor_of, widen_trained
from conversations import TEMPLATES, Collator, Conversations, GeneratedMasks, StoredMasks, VisualTokens
from peft import LoraConfig, get_peft_model
from stored import StoredFeatures
from trainer import RegionTrainer
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from regiontok import masks
from regiontok.choices import MASK_SOURCES
from regiontok.store import MaskStore, TokenStore

STAGES = {"align": recipe.ALIGN, "instruct": recipe.INSTRUCT}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = parser().parse_args(arguments)
    if options.rows:
        recipe.print_rows()
        return
    if options.tiny:
        import tiny  # noqa: PLC0415  it imports this module

        row = options.row or "pixels/clustering/rms/cross_attention/raster"
        print(tiny.table([tiny.train_one(row, Path(options.out or tiny.FOLDER), seed=options.seed)]))
        return
    for name in ("row", "stage", "language_model", "data", "images"):
        if getattr(options, name) is None:
            raise SystemExit(f"--{name.replace('_', '-')} is needed; see --help.")
    if options.lora and options.stage != "instruct":
        raise SystemExit("--lora is for --stage instruct: the first trains no language model.")
    row, stage, out = recipe.row(options.row), STAGES[options.stage], Path(options.out or "train-llava")
    from_stage = Path(options.from_stage or out / "align")
    if options.stage == "instruct" and not (from_stage / STAGE_FILE).is_file():
        raise SystemExit(
            f"there is no {from_stage / STAGE_FILE}. Train --stage align first, or name it by --from-stage."
        )
    mask_source = None
    if not (options.features and options.masks is None):
        mask_source = _masks(options.masks, row.options["source"], options.workers, options.missing)
    training = {"bf16": torch.cuda.is_available(), "activation_checkpointing": True}
    training |= {"dataloader_num_workers": options.workers, "save_steps": options.save_steps}
    training |= json.loads(Path(options.config).read_text(encoding="utf-8")) if options.config else {}
    narrow = torch.cuda.is_available() and "fsdp" not in training and (options.stage == "align" or options.lora)
    features = None
    if options.features:
        if options.stage != "align":
            raise SystemExit("--features is for --stage align: the second saves the whole model, with its encoder.")
        if isinstance(mask_source, GeneratedMasks) or options.missing:
            raise SystemExit("--features leaves images unread, and masks are to be made of them. Store the masks too.")
        features = StoredFeatures(TokenStore(options.features), row, stage.geometry)
        if features.tokens:
            mask_source = None
    model, tokenizer = build(
        row.encoder,
        options.language_model,
        dict(row.options),
        geometry=stage.geometry,
        dtype=torch.bfloat16 if narrow else None,  # of what is frozen; FSDP wants one dtype
        tower=None if features is None else features.tower(row.encoder),
    )
    if options.stage == "instruct":
        load_stage(model, from_stage)
    run_stage(
        model,
        tokenizer,
        stage if options.max_steps is None else stage.but(max_steps=options.max_steps),
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
    """Train one stage and save it: what it trained, and after the second the whole model.

    With ``features`` what a store has stands in the place of the images and the encoder.
    """
    out.mkdir(parents=True, exist_ok=True)
    skipped = out / "skipped.txt"
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if not resume and os.environ.get("RANK", "0") == "0":
        skipped.unlink(missing_ok=True)
    tower, source = model.model.vision_tower, model.regionizer.config.source
    if features is not None:
        features.attach(model)
        source = "stored" if features.tokens else source
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
    freeze_but(model, stage.trained)
    if lora:
        model = _with_lora(model, lora)
    widen_trained(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print(f"Stage {stage.name}: {len(dataset)} samples, {trained:,} weights trained, {out}")
    settings = stage.arguments(str(out), per_device=per_device, processes=processes, **(training or {}))
    trainer = RegionTrainer(
        model=model,
        args=TrainingArguments(**settings),
        train_dataset=dataset,
        data_collator=Collator(tokenizer.pad_token_id, by_masks=source in MASK_SOURCES),
        lengths=dataset.lengths() if group else None,
        max_length=stage.max_length,
        skipped=skipped if on_too_long == "skip" else None,
        callbacks=list(callbacks),
    )
    last = get_last_checkpoint(str(out)) if resume else None
    if resume and last is None:
        print(f"There is no checkpoint in {out} yet; training starts anew.")
    trainer.train(resume_from_checkpoint=last)
    if lora:
        trainer.save_model(str(out / "adapter"))
        trainer.model = trainer.model_wrapped = trainer.model.merge_and_unload()
    else:
        trainer.save_stage(out)
    if stage.name == "instruct":
        trainer.save_whole(out / "model")
        if trainer.args.should_save:
            template = TEMPLATES[stage.template].jinja(tokenizer.eos_token)
            processor_of(trainer.model, tokenizer, stage.geometry, template).save_pretrained(out / "model")
    if skipped.is_file():
        lines = sorted(set(skipped.read_text(encoding="utf-8").split("\n")))
        print(f"{len(lines)} samples were skipped or too long; {skipped} names them. The first: {lines[0]}")
    return trainer


def _with_lora(model: Any, rank: int) -> Any:
    """LoRA of the language model's layers; the projector and the region pool are trained whole, at the same rate."""
    pooled = model.regionizer.config.pool == "cross_attention"
    return get_peft_model(
        model,
        LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0.05,
            target_modules=r".*language_model.*_proj",
            modules_to_save=["multi_modal_projector", *["regionizer.pool"] * pooled],
        ),
    )


def _masks(
    named: str | None, source: str, workers: int, missing: str | None = None
) -> StoredMasks | GeneratedMasks | None:
    """Where masks come from: a store of them, or a generator."""
    if source not in MASK_SOURCES:
        if named:
            raise SystemExit(f"--masks is for rows of masks; this one is of {source}.")
        return None
    if named is None:
        raise SystemExit(f"a row of {source} needs --masks: a store that `regiontok masks` wrote, or a generator.")
    if named not in masks.GENERATORS:
        return StoredMasks(MaskStore(named), None if missing is None else _masks(missing, source, workers))
    if missing is not None:
        raise SystemExit("--missing is for --masks STORE, which may lack some.")
    if named != "felzenszwalb" and workers:
        raise SystemExit(f"--masks {named} makes masks on the training's device; that needs --workers 0.")
    return GeneratedMasks(named)


def parser() -> argparse.ArgumentParser:
    """All options."""
    own = argparse.ArgumentParser(
        prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    own.add_argument("--rows", action="store_true", help="list the rows of the paper's Table 1, and stop")
    own.add_argument("--row", help="which row: encoder/source/norm/pool/order")
    own.add_argument(
        "--stage", choices=STAGES, help="align trains projector and regions, instruct the language model too"
    )
    own.add_argument("--language-model", help="a causal language model of transformers, by name or folder")
    own.add_argument("--data", help="LLaVA's JSON")
    own.add_argument("--images", help="the folder its images are named from")
    own.add_argument("--masks", metavar="STORE|GENERATOR", help="for rows of masks")
    own.add_argument("--missing", metavar="GENERATOR", choices=masks.GENERATORS, help="masks that the store has not")
    own.add_argument(
        "--features",
        metavar="STORE",
        help="of stage align: features or tokens that `regiontok tokenize --store` wrote, in place of the encoder",
    )
    own.add_argument("--out", help="default: train-llava, or train-llava-tiny with --tiny")
    own.add_argument("--from-stage", help="the folder of stage align; default: the one in --out")
    own.add_argument("--per-device-batch", type=int, default=16, help="the rest is accumulated; default: %(default)s")
    own.add_argument("--config", help="a JSON file of further TrainingArguments, as those in configs/")
    own.add_argument("--lora", type=int, metavar="RANK", help="train the language model by LoRA of this rank")
    own.add_argument("--max-steps", type=int, help="stop there; default: one epoch")
    own.add_argument("--save-steps", type=int, default=1000, help="between checkpoints; default: %(default)s")
    own.add_argument("--workers", type=int, default=4, help="that read images; default: %(default)s")
    own.add_argument("--bad-image", default="error", choices=("error", "skip"), help="a file that cannot be read")
    own.add_argument("--too-long", default="error", choices=("error", "skip"), help="a sample beyond 2048 tokens")
    own.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    own.add_argument("--seed", type=int, default=42, help="of --tiny; default: %(default)s")
    own.add_argument("--tiny", action="store_true", help="train on toy scenes, with a toy language, in minutes")
    return own


if __name__ == "__main__":
    main()
