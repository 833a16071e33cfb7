"""The whole recipe on a laptop: toy scenes, a toy language model, the real adapter and trainer."""

import argparse
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from building import build, image_processor
from conversations import TEMPLATES, StoredMasks
from language import TOY_TRAINING, learn_language
from recipe import ALIGN, INSTRUCT, Stage
from scenes import KINDS, SIDE, write_scenes
from torch import Tensor
from train import run_stage
from transformers import set_seed

from regiontok import ImageGeometry, read_photo
from regiontok.evaluation.focus import FocusMeter, answer_attention, target_regions
from regiontok.masks import MaskStore
from regiontok.options import MASK_SOURCES, SOURCES

GEOMETRY = ImageGeometry.squash(SIDE)
TRAIN, TEST = 2000, 300
BATCH = 16
STEPS = {"patch": (200, 800)}
"""Steps of both stages where they are not those of `OTHERS`: patches cost the most."""
OTHERS = (300, 800)
CONTROLS = ("blind", "no_position")
"""All features zero, so that only the number of tokens is left; the eight numbers of position zero."""
FOLDER = Path("train-llava-tiny")
RESULTS = Path(__file__).parent / "results"


def toy(stage: Stage, steps: int, template: str) -> Stage:
    """A stage of the recipe with the toy's numbers."""
    return stage.but(
        batch_size=BATCH,
        learning_rate=TOY_TRAINING["learning_rate"],
        warmup=TOY_TRAINING["warmup_steps"],
        max_steps=steps,
        geometry="squash",
        template=template,
        more=tuple(TOY_TRAINING.items()),
    )


def prepare(folder: Path, *, train: int = TRAIN, test: int = TEST, language_steps: int | None = None) -> None:
    """Scenes and language, made once."""
    if not (folder / "data" / "test.json").is_file():
        write_scenes(folder / "data", train=train, test=test)
    learn_language(folder / "language", **({} if language_steps is None else {"steps": language_steps}))


def train_one(
    row: str,
    folder: Path,
    *,
    seed: int = 42,
    control: str | None = None,
    steps: tuple[int, int] | None = None,
    most_questions: int | None = None,
) -> dict[str, Any]:
    """Train one row through both stages, and measure it."""
    parts = row.split("/")
    if len(parts) != 5 or parts[0] != "pixels" or parts[1] not in SOURCES:
        raise SystemExit(f"a toy row is pixels/SOURCE/NORM/POOL/ORDER; got {row!r}.")
    _, source, norm, pool, order = parts
    prepare(folder)
    set_seed(seed)
    regions = {"source": source, "norm": norm, "pool": pool, "order": order, "num_heads": 8, "geometry": GEOMETRY}
    model, tokenizer = build("pixels", folder / "language", regions, pretrained=False, img_size=SIDE)
    if control:
        add_control(model, control)
    standardize(model, folder / "data")
    data, masks = folder / "data", StoredMasks(MaskStore(folder / "data" / "masks.parquet"))
    steps = steps or STEPS.get(source, OTHERS)
    seconds = {}
    out = folder / "runs" / "-".join([*row.split("/"), str(seed), *([control] if control else [])])
    for base, count, file, template in (
        (ALIGN, steps[0], "captions.json", "bare_caption"),
        (INSTRUCT, steps[1], "questions.json", "bare"),
    ):
        start = time.perf_counter()
        run_stage(
            model,
            tokenizer,
            toy(base, count, template),
            data=data / file,
            images=data / "images",
            masks=masks,
            out=out / base.name,
            per_device=BATCH,
            training={"seed": seed},
            group=False,
        )
        seconds[base.name] = time.perf_counter() - start
    measured = measure(model, tokenizer, data, masks, most=most_questions)
    result = {"row": row, "seed": seed, "control": control, "steps": steps} | measured
    result["seconds_per_step"] = {
        name: round(seconds[name] / count, 4) for name, count in zip(seconds, steps, strict=True)
    }
    result["seconds"] = round(sum(seconds.values()), 1)
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


@torch.no_grad()
def standardize(model: Any, data: Path, photos: int = 64) -> None:
    """Start the new projector as if features had mean 0 and deviation 1, so that the faint ones, position, are seen.

    ``pixels`` weighs its numbers for likeness; what a projector needs is all of them.
    """
    entries = json.loads((data / "captions.json").read_text(encoding="utf-8"))[:photos]
    some = [read_photo(data / "images" / entry["image"]) for entry in entries]
    pixels = image_processor(model.model.vision_tower, "squash")(some)["pixel_values"]
    features = model.regionizer.normalize(model.encode_patches(pixels).features).flatten(0, 2)
    deviation = features.std(0)
    layer = model.model.multi_modal_projector.linear_1
    layer.weight /= torch.where(deviation > 1e-6, deviation, 1)
    layer.bias -= layer.weight @ features.mean(0)


def add_control(model: Any, name: str) -> None:
    """Take features away, as a check of what the answers rest on."""

    def hook(_: Any, __: Any, output: Any) -> Any:
        features = output.last_hidden_state.clone()
        features[..., slice(None) if name == "blind" else slice(-8, None)] = 0
        output.last_hidden_state, output.hidden_states = features, (features,)
        return output

    model.model.vision_tower.register_forward_hook(hook)


@torch.no_grad()
def measure(model: Any, tokenizer: Any, data: Path, masks: Any, *, most: int | None = None) -> dict[str, Any]:
    """Accuracy per kind of question beside the most frequent answer's, tokens per image, and focus."""
    model.eval()
    questions = json.loads((data / "test.json").read_text(encoding="utf-8"))[:most]
    place = image_processor(model.model.vision_tower, "squash")
    right: dict[str, list[bool]] = defaultdict(list)
    counts: list[int] = []
    meter = FocusMeter()
    tokenizer.padding_side = "left"
    by_masks = model.regionizer.config["source"] in MASK_SOURCES
    for start in range(0, len(questions), 64):
        batch = questions[start : start + 64]
        photos = [read_photo(data / "images" / one["image"]) for one in batch]
        found = [masks(one["image"], photo) for one, photo in zip(batch, photos, strict=True)]
        given: dict[str, Any] = {"pixel_values": place(photos)["pixel_values"]}
        if by_masks:
            given["masks"] = found
        texts = [TEMPLATES["bare"].write([(f"<image>\n{one['text']}", "")], "")[0].strip() for one in batch]
        prompts = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
        made = model.generate(**prompts, **given, max_new_tokens=1, do_sample=False)[:, -1]
        for one, token in zip(batch, made.tolist(), strict=True):
            right[one["kind"]].append(tokenizer.convert_ids_to_tokens(token) == one["answer"])
        answered = {name: _append(value, made if name == "input_ids" else None) for name, value in prompts.items()}
        answer = torch.zeros_like(answered["input_ids"], dtype=torch.bool)
        answer[:, -1] = True
        attention = answer_attention(model, answer, **answered, **given)
        objects = [one.select(list(question["about"])) for one, question in zip(found, batch, strict=True)]
        meter.add(attention, target_regions(attention.regions, objects, geometry=GEOMETRY))
        counts += attention.regions.counts.tolist()
    answers = {kind: Counter(one["answer"] for one in questions if one["kind"] == kind) for kind in KINDS}
    every = [one for kind in right.values() for one in kind]
    majority = {kind: round(100 * max(some.values()) / some.total(), 1) for kind, some in answers.items() if some}
    overall = sum(max(some.values()) for some in answers.values() if some) / len(questions)
    return {
        "questions": len(questions),
        "tokens_per_image": round(float(np.mean(counts)), 1),
        "accuracy": {kind: round(100 * float(np.mean(right[kind])), 1) for kind in KINDS if right[kind]}
        | {"all": round(100 * float(np.mean(every)), 1)},
        "majority": majority | {"all": round(100 * overall, 1)},
        "focus": meter.result().to_dict(),
    }


def _append(ids: Tensor, new: Tensor | None) -> Tensor:
    return torch.cat([ids, torch.ones_like(ids[:, :1]) if new is None else new[:, None]], 1)


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    head = [
        "source",
        "norm",
        "pool",
        "order",
        "control",
        "seed",
        "tokens",
        *KINDS,
        "all",
        "focus",
        "chance",
        "s/step 1",
        "s/step 2",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for one in results:
        _, source, norm, pool, order = one["row"].split("/")
        share = f"{100 * one['focus']['focus']:.1f} (share {100 * one['focus']['share']:.0f})"
        cells = [source, norm, pool, order, one["control"] or "", one["seed"], one["tokens_per_image"]]
        cells += [one["accuracy"].get(kind, "-") for kind in (*KINDS, "all")]
        cells += [share, f"{100 * one['focus']['chance']:.0f}", *one["seconds_per_step"].values()]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    majority = results[0]["majority"]
    cells = ["*most frequent answer*", *[""] * 6, *(majority.get(kind, "-") for kind in (*KINDS, "all")), *[""] * 4]
    lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def picture(results: Sequence[dict[str, Any]], file: Path) -> None:
    """Accuracy against tokens per image, and per kind of question."""
    from matplotlib.figure import Figure  # noqa: PLC0415  only the grid draws

    grey = "#808080"  # is seen on a light page and on a dark one
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    colours = dict(zip(SOURCES, ("#4c8bf5", "#e8710a", "#2f9e6e", "#b05cc8"), strict=True))
    plain = [one for one in results if not one["control"]] or list(results)
    for one in plain:
        source = one["row"].split("/")[1]
        marker = "o" if "/mean/" in one["row"] else "^"
        left.plot(one["tokens_per_image"], one["accuracy"]["all"], marker, color=colours[source])
    for source in dict.fromkeys(one["row"].split("/")[1] for one in plain):
        left.plot([], [], "s", color=colours[source], label=source)
        mine = [one for one in plain if one["row"].split("/")[1] == source]
        means = [np.mean([one["accuracy"].get(kind, np.nan) for one in mine]) for kind in KINDS]
        right.plot(KINDS, means, "o-", color=colours[source])
    majority = [results[0]["majority"].get(kind, np.nan) for kind in KINDS]
    right.plot(KINDS, majority, "x:", color=grey, label="most frequent answer")
    left.set(
        xscale="log", xlabel="tokens per image\n(circle: mean, triangle: cross-attention)", ylabel="right answers, %"
    )
    right.set(ylabel="right answers, %", ylim=(0, 102))
    for axes in (left, right):
        axes.tick_params(which="both", colors=grey)
        axes.xaxis.label.set_color(grey)
        axes.yaxis.label.set_color(grey)
        axes.set_facecolor("none")
        for spine in axes.spines.values():
            spine.set_color(grey)
        axes.legend(frameon=False, labelcolor=grey)
    figure.savefig(file, transparent=True, dpi=150)


def _share(jobs: int) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the grid."""
    own = argparse.ArgumentParser(
        prog="tiny.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    own.add_argument("--out", type=Path, default=FOLDER, help="default: %(default)s")
    own.add_argument(
        "--sources", nargs="*", default=["patch", "segmentation", "clustering", "combined"], choices=SOURCES
    )
    own.add_argument("--pools", nargs="*", default=["mean", "cross_attention"], choices=["mean", "cross_attention"])
    own.add_argument("--orders", nargs="*", default=["raster", "random"], choices=["raster", "random"])
    own.add_argument("--norms", nargs="*", default=["rms"], choices=["rms", "none"])
    own.add_argument("--seeds", nargs="*", type=int, default=[42])
    own.add_argument("--controls", nargs="*", default=list(CONTROLS), choices=CONTROLS, help="on segmentation")
    own.add_argument("--jobs", type=int, default=2, help="runs at a time, which share the cores; default: %(default)s")
    own.add_argument("--results", type=Path, default=RESULTS, help="where the table goes; default: %(default)s")
    options = own.parse_args(arguments)
    prepare(options.out)
    runs: list[tuple[str, int, str | None]] = [
        (f"pixels/{source}/{norm}/{pool}/{order}", seed, None)
        for source, norm, pool, order, seed in product(
            options.sources, options.norms, options.pools, options.orders, options.seeds
        )
    ]
    runs += [("pixels/segmentation/rms/mean/raster", options.seeds[0], control) for control in options.controls]
    results = []
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), initializer=_share, initargs=(options.jobs,)) as pool:
        waiting = [pool.submit(train_one, row, options.out, seed=seed, control=control) for row, seed, control in runs]
        for one in waiting:
            results.append(one.result())
            print(table(results[-1:]).splitlines()[2], flush=True)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "tiny.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (options.results / "tiny.md").write_text(table(results), encoding="utf-8")
    picture(results, options.results / "tiny.png")
    print(f"\n{table(results)}\nSaved in {options.results}")


if __name__ == "__main__":
    main()
