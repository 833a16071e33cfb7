"""Train and measure a grid of toy models on a laptop: the adapter and trainer of the recipe, on toy scenes.

Run ``python tiny.py`` for all models in the README. It writes a table and a figure to ``results``.
"""

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
from conversations import StoredMasks
from language import TOY_TRAINING, learn_language
from recipe import ALIGN, INSTRUCT, Stage
from scenes import KINDS, write_scenes
from templates import TEMPLATES
from torch import Tensor
from toy_encoder import GRID, PIXELS, ToyEncoder, find_encoder, store_features, use_stored_features
from train import run_stage
from transformers import set_seed

from regiontok import ImageGeometry, Regions, read_image
from regiontok.choices import MASK_SOURCES, SOURCES
from regiontok.evaluation.focus import FocusMeter, answer_attention, target_regions
from regiontok.evaluation.partition import grid_regions
from regiontok.store import MaskStore

TRAIN, TEST = 2000, 300
BATCH = 16
STEPS = (300, 800)
"""Steps of the two stages."""
PATCH_STEPS = (200, 800)
"""Steps for the source ``patch``, whose steps take the most time."""
CONTROLS = ("blind", "no_position")
"""Ablations: all features are zero, or the eight position features are zero."""
FOLDER = Path("train-llava-tiny")
RESULTS = Path(__file__).parent / "results"


def toy_stage(stage: Stage, steps: int, template: str) -> Stage:
    """Return a stage of the recipe with the hyperparameters of the toy models."""
    return stage.replace(
        batch_size=BATCH,
        learning_rate=TOY_TRAINING["learning_rate"],
        warmup=TOY_TRAINING["warmup_steps"],
        max_steps=steps,
        geometry="squash",
        template=template,
        extra_arguments=tuple(TOY_TRAINING.items()),
    )


def prepare(folder: Path, *, train: int = TRAIN, test: int = TEST, language_steps: int | None = None) -> None:
    """Write the scenes and train the language model, unless they exist."""
    if not (folder / "data" / "test.json").is_file():
        write_scenes(folder / "data", train=train, test=test)
    learn_language(folder / "language", **({} if language_steps is None else {"steps": language_steps}))


def train_one(
    row: str,
    folder: Path,
    *,
    encoder: ToyEncoder = PIXELS,
    stored: bool = False,
    seed: int = 42,
    regions: dict[str, Any] | None = None,
    control: str | None = None,
    steps: tuple[int, int] | None = None,
    max_questions: int | None = None,
) -> dict[str, Any]:
    """Train a row in both stages, and return its results.

    Args:
        row: Encoder, source, norm, pool and order, joined by ``/``. The source ``grid`` makes rectangular regions.
        folder: Folder for scenes, language model and runs.
        encoder: The encoder of ``row``.
        stored: Use features that are computed once, not at every step.
        seed: Seed of weights and training.
        regions: Further options of the Regionizer, such as ``num_regions`` and ``linkage``.
        control: One of `CONTROLS`; None for the unchanged features.
        steps: Steps of the two stages; by default `STEPS` or `PATCH_STEPS`.
        max_questions: Number of test questions; None for all.
    """
    parts = row.split("/")
    if len(parts) != 5 or parts[0] != encoder.label or parts[1] not in (*SOURCES, "grid"):
        raise SystemExit(f"a toy row must be {encoder.label}/SOURCE/NORM/POOL/ORDER; got {row!r}.")
    _, source, norm, pool, order = parts
    prepare(folder)
    set_seed(seed)
    regions = dict(regions or {})
    options = {"norm": norm, "pool": pool, "order": order, "num_heads": 8, "geometry": encoder.geometry, **regions}
    options["source"] = "clustering" if source == "grid" else source
    model, tokenizer = build(encoder.name, folder / "language", options, **encoder.options)
    if source == "grid":
        cells = grid_regions(torch.ones(GRID, GRID, dtype=torch.bool), regions["num_regions"]).labels()
        model.regionizer.group = lambda features, **_: Regions.from_labels(cells.expand(len(features), -1, -1))
    if stored or encoder != PIXELS:
        use_stored_features(model.model.vision_tower.encoder, folder, encoder)
    if control:
        add_control(model, control)
    standardize(model, folder / "data")
    data, masks = folder / "data", StoredMasks(MaskStore(folder / "data" / "masks"))
    steps = steps or (PATCH_STEPS if source == "patch" else STEPS)
    seconds = {}
    out = (
        folder / "runs" / "-".join([*row.split("/"), *map(str, regions.values()), str(seed), *filter(None, [control])])
    )
    for base, count, file, template in (
        (ALIGN, steps[0], "captions.json", "bare_caption"),
        (INSTRUCT, steps[1], "questions.json", "bare"),
    ):
        start = time.perf_counter()
        run_stage(
            model,
            tokenizer,
            toy_stage(base, count, template),
            data=data / file,
            images=data / "images",
            masks=masks,
            out=out / base.name,
            per_device=BATCH,
            training={"seed": seed},
            group=False,
        )
        seconds[base.name] = time.perf_counter() - start
    measured = measure(model, tokenizer, data, masks, geometry=encoder.geometry, max_questions=max_questions)
    result = {"row": row, "seed": seed, "control": control, "regions": regions, "steps": steps} | measured
    result["seconds_per_step"] = {
        name: round(seconds[name] / count, 4) for name, count in zip(seconds, steps, strict=True)
    }
    result["seconds"] = round(sum(seconds.values()), 1)
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


@torch.no_grad()
def standardize(model: Any, data: Path, num_images: int = 64) -> None:
    """Initialise the projector for features with mean 0 and standard deviation 1.

    Without this, it would learn slowly from features of small scale, such as the position features of ``pixels``.
    """
    entries = json.loads((data / "captions.json").read_text(encoding="utf-8"))[:num_images]
    images = [read_image(data / "images" / entry["image"]) for entry in entries]
    pixels = image_processor(model.model.vision_tower, "squash")(images)["pixel_values"]
    features = model.regionizer.normalize(model.encode_patches(pixels).features).flatten(0, 2)
    deviation = features.std(0)
    layer = model.model.multi_modal_projector.linear_1
    layer.weight /= torch.where(deviation > 1e-6, deviation, 1)
    layer.bias -= layer.weight @ features.mean(0)


def add_control(model: Any, name: str) -> None:
    """Set features to zero, to check that answers depend on them; see `CONTROLS`."""

    def hook(_: Any, __: Any, output: Any) -> Any:
        features = output.last_hidden_state.clone()
        features[..., slice(None) if name == "blind" else slice(-8, None)] = 0
        output.last_hidden_state, output.hidden_states = features, (features,)
        return output

    model.model.vision_tower.register_forward_hook(hook)


@torch.no_grad()
def measure(
    model: Any,
    tokenizer: Any,
    data: Path,
    masks: Any,
    *,
    geometry: ImageGeometry = PIXELS.geometry,
    max_questions: int | None = None,
) -> dict[str, Any]:
    """Return accuracies of the model and of the most frequent answer, tokens per image, and focus."""
    model.eval()
    questions = json.loads((data / "test.json").read_text(encoding="utf-8"))[:max_questions]
    preprocess = image_processor(model.model.vision_tower, "squash")
    is_right: dict[str, list[bool]] = defaultdict(list)
    counts: list[int] = []
    meter = FocusMeter()
    tokenizer.padding_side = "left"
    needs_masks = model.regionizer.config.source in MASK_SOURCES
    for start in range(0, len(questions), 64):
        batch = questions[start : start + 64]
        images = [read_image(data / "images" / question["image"]) for question in batch]
        mask_sets = [masks(question["image"], image) for question, image in zip(batch, images, strict=True)]
        image_inputs: dict[str, Any] = {"pixel_values": preprocess(images)["pixel_values"]}
        if needs_masks:
            image_inputs["masks"] = mask_sets
        turns = [(f"<image>\n{question['text']}", "") for question in batch]
        texts = [TEMPLATES["bare"].write([turn], "")[0].strip() for turn in turns]
        prompts = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
        answers = model.generate(**prompts, **image_inputs, max_new_tokens=1, do_sample=False)[:, -1]
        for question, token in zip(batch, answers.tolist(), strict=True):
            is_right[question["kind"]].append(tokenizer.convert_ids_to_tokens(token) == question["answer"])
        answered = {name: _append(value, answers if name == "input_ids" else None) for name, value in prompts.items()}
        is_answer = torch.zeros_like(answered["input_ids"], dtype=torch.bool)
        is_answer[:, -1] = True
        attention = answer_attention(model, is_answer, **answered, **image_inputs)
        objects = [
            mask_set.select(list(question["about"])) for mask_set, question in zip(mask_sets, batch, strict=True)
        ]
        meter.add(attention, target_regions(attention.regions, objects, geometry=geometry))
        counts += attention.regions.counts.tolist()
    is_right["all"] = [right for kind in KINDS for right in is_right[kind]]
    return {
        "questions": len(questions),
        "tokens_per_image": round(float(np.mean(counts)), 1),
        "accuracy": {
            kind: round(100 * float(np.mean(is_right[kind])), 1) for kind in (*KINDS, "all") if is_right[kind]
        },
        "majority": _majority_accuracy(questions),
        "focus": meter.result().to_dict(),
    }


def _majority_accuracy(questions: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the accuracy of the most frequent answer to each kind of question, in percent."""
    counters: dict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        counters[question["kind"]][question["answer"]] += 1
    majority = {kind: max(counters[kind].values()) / counters[kind].total() for kind in KINDS if kind in counters}
    majority["all"] = sum(max(counter.values()) for counter in counters.values()) / len(questions)
    return {kind: round(100 * accuracy, 1) for kind, accuracy in majority.items()}


def _append(ids: Tensor, new: Tensor | None) -> Tensor:
    return torch.cat([ids, torch.ones_like(ids[:, :1]) if new is None else new[:, None]], 1)


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
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
    for result in results:
        _, source, norm, pool, order = result["row"].split("/")
        focus = f"{100 * result['focus']['focus']:.1f} (share {100 * result['focus']['share']:.0f})"
        cells = [source, norm, pool, order, result["control"] or "", result["seed"], result["tokens_per_image"]]
        cells += [result["accuracy"].get(kind, "-") for kind in (*KINDS, "all")]
        cells += [focus, f"{100 * result['focus']['chance']:.0f}", *result["seconds_per_step"].values()]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    majority = results[0]["majority"]
    cells = ["*most frequent answer*", *[""] * 6, *(majority.get(kind, "-") for kind in (*KINDS, "all")), *[""] * 4]
    lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def plot(results: Sequence[dict[str, Any]], file: Path) -> None:
    """Plot accuracy against tokens per image, and per kind of question."""
    from matplotlib.figure import Figure  # noqa: PLC0415  training does not need matplotlib

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    colours = dict(zip(SOURCES, ("#4c8bf5", "#e8710a", "#2f9e6e", "#b05cc8"), strict=True))
    results_of: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in [result for result in results if not result["control"]] or results:
        source = result["row"].split("/")[1]
        results_of[source].append(result)
        marker = "o" if "/mean/" in result["row"] else "^"
        left.plot(result["tokens_per_image"], result["accuracy"]["all"], marker, color=colours[source])
    for source, source_results in results_of.items():
        left.plot([], [], "s", color=colours[source], label=source)
        means = [np.mean([result["accuracy"].get(kind, np.nan) for result in source_results]) for kind in KINDS]
        right.plot(KINDS, means, "o-", color=colours[source])
    majority = [results[0]["majority"].get(kind, np.nan) for kind in KINDS]
    right.plot(KINDS, majority, "x:", color=GREY, label="most frequent answer")
    left.set(
        xscale="log", xlabel="tokens per image\n(circle: mean, triangle: cross-attention)", ylabel="right answers, %"
    )
    right.set(ylabel="right answers, %", ylim=(0, 102))
    for axes in (left, right):
        style_axes(axes)
    figure.savefig(file, transparent=True, dpi=150)


GREY = "#808080"
"""Colour that is visible on light and dark pages."""


def style_axes(axes: Any) -> None:
    """Make axes, text and legend grey on a transparent background."""
    axes.tick_params(which="both", colors=GREY)
    axes.xaxis.label.set_color(GREY)
    axes.yaxis.label.set_color(GREY)
    axes.set_facecolor("none")
    for spine in axes.spines.values():
        spine.set_color(GREY)
    axes.legend(frameon=False, labelcolor=GREY)


def share_cores(jobs: int) -> None:
    """Limit the threads of this process, one of ``jobs`` processes, to its share of the cores."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the grid, and write its table and figure."""
    parser = argparse.ArgumentParser(
        prog="tiny.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="pixels", help="pixels, dinov2-small, or a folder of transformers")
    parser.add_argument("--layer", type=int, help="layer index of an encoder folder; default: the last")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for data and runs; default: %(default)s")
    parser.add_argument(
        "--sources", nargs="*", default=["patch", "segmentation", "clustering", "combined"], choices=SOURCES
    )
    parser.add_argument("--pools", nargs="*", default=["mean", "cross_attention"], choices=["mean", "cross_attention"])
    parser.add_argument("--orders", nargs="*", default=["raster", "random"], choices=["raster", "random"])
    parser.add_argument("--norms", nargs="*", default=["rms"], choices=["rms", "none"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[42])
    parser.add_argument("--controls", nargs="*", default=list(CONTROLS), choices=CONTROLS, help="ablations")
    parser.add_argument(
        "--jobs", type=int, default=2, help="parallel runs, which share the cores; default: %(default)s"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for results; default: %(default)s")
    options = parser.parse_args(arguments)
    prepare(options.out)
    encoder = find_encoder(options.encoder, options.layer)
    if encoder != PIXELS:
        store_features(options.out, encoder)
    runs: list[tuple[str, int, str | None]] = [
        (f"{encoder.label}/{source}/{norm}/{pool}/{order}", seed, None)
        for source, norm, pool, order, seed in product(
            options.sources, options.norms, options.pools, options.orders, options.seeds
        )
    ]
    runs += [
        (f"{encoder.label}/segmentation/rms/mean/raster", options.seeds[0], control) for control in options.controls
    ]
    results = []
    with ProcessPoolExecutor(
        options.jobs, get_context("spawn"), initializer=share_cores, initargs=(options.jobs,)
    ) as pool:
        futures = [
            pool.submit(train_one, row, options.out, encoder=encoder, seed=seed, control=control)
            for row, seed, control in runs
        ]
        for future in futures:
            results.append(future.result())
            print(table(results[-1:]).splitlines()[2], flush=True)
    name = "tiny" if encoder == PIXELS else f"tiny-{encoder.label}"
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (options.results / f"{name}.md").write_text(table(results), encoding="utf-8")
    plot(results, options.results / f"{name}.png")
    print(f"\n{table(results)}\nSaved in {options.results}")


if __name__ == "__main__":
    main()
