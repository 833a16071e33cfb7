"""The whole recipe on a laptop: toy scenes, a toy language model, the real adapter and trainer."""

import argparse
import json
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from hashlib import blake2b
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from building import build, image_processor
from conversations import TEMPLATES, StoredMasks
from language import TOY_TRAINING, learn_language
from recipe import ALIGN, INSTRUCT, Stage
from safetensors.torch import load_file, save_file
from scenes import KINDS, SIDE, write_scenes
from torch import Tensor
from tqdm import tqdm
from train import run_stage
from transformers import AutoConfig, set_seed

from regiontok import ImageGeometry, Regions, encoders, read_image
from regiontok.choices import MASK_SOURCES, SOURCES
from regiontok.evaluation.focus import FocusMeter, answer_attention, target_regions
from regiontok.evaluation.partition import grid_regions
from regiontok.store import MaskStore

TRAIN, TEST = 2000, 300
BATCH = 16
STEPS = {"patch": (200, 800)}
"""Steps of both stages where they are not those of `OTHERS`: patches cost the most."""
OTHERS = (300, 800)
CONTROLS = ("blind", "no_position")
"""All features zero, so that only the number of tokens is left; the eight numbers of position zero."""
FOLDER = Path("train-llava-tiny")
RESULTS = Path(__file__).parent / "results"


class ToyEncoder(NamedTuple):
    """An encoder of toy scenes: what its rows are called, what `regiontok.encoders.load` takes, and its input side."""

    label: str
    name: str
    options: dict[str, Any]

    @property
    def geometry(self) -> ImageGeometry:
        """How scenes, and their masks, are placed."""
        return ImageGeometry.squash(self.options["img_size"])


PIXELS = ToyEncoder("pixels", "pixels", {"img_size": SIDE})
GRID = 12
"""Patches per side of every encoder."""


def toy_encoder(name: str, layer: int | None = None) -> ToyEncoder:
    """``pixels``, ``dinov2-small``, or a folder of a vision transformer of transformers, on 12 x 12 patches."""
    if name == "pixels":
        return PIXELS
    folder, real_layer = Path(name), None
    if name == "dinov2-small":
        sys.path.append(str(Path(__file__).parent.parent))
        import real_features  # noqa: PLC0415  it wants packages that pixels does not

        folder, real_layer = real_features.dinov2_small(), real_features.LAYER
        layer = real_layer if layer is None else layer
    if not folder.is_dir():
        raise SystemExit(f"--encoder must be pixels, dinov2-small or a folder; got {name}.")
    patch = AutoConfig.from_pretrained(folder).patch_size
    options = {"img_size": GRID * patch} | ({} if layer is None else {"layer": layer})
    default = real_layer if name == "dinov2-small" else None
    label = folder.name if layer == default else f"{folder.name}-layer{layer}"
    return ToyEncoder(label, f"hf:{folder}", options)


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
    encoder: ToyEncoder = PIXELS,
    stored: bool = False,
    seed: int = 42,
    regions: dict[str, Any] | None = None,
    control: str | None = None,
    steps: tuple[int, int] | None = None,
    most_questions: int | None = None,
) -> dict[str, Any]:
    """Train one row through both stages, and measure it.

    The source may also be ``grid``, which ignores the image; ``regions`` are further options of the Regionizer, such as
    ``num_regions`` and ``linkage``. With ``stored`` features of scenes are looked up, and not computed at every step.
    """
    parts = row.split("/")
    if len(parts) != 5 or parts[0] != encoder.label or parts[1] not in (*SOURCES, "grid"):
        raise SystemExit(f"a toy row is {encoder.label}/SOURCE/NORM/POOL/ORDER; got {row!r}.")
    _, source, norm, pool, order = parts
    prepare(folder)
    set_seed(seed)
    more = dict(regions or {})
    options = {"norm": norm, "pool": pool, "order": order, "num_heads": 8, "geometry": encoder.geometry, **more}
    options["source"] = "clustering" if source == "grid" else source
    model, tokenizer = build(encoder.name, folder / "language", options, **encoder.options)
    if source == "grid":
        cells = grid_regions(torch.ones(GRID, GRID, dtype=torch.bool), more["num_regions"]).labels()
        model.regionizer.group = lambda features, **_: Regions.from_labels(cells.expand(len(features), -1, -1))
    if stored or encoder != PIXELS:
        use_stored_features(model.model.vision_tower.encoder, folder, encoder)
    if control:
        add_control(model, control)
    standardize(model, folder / "data")
    data, masks = folder / "data", StoredMasks(MaskStore(folder / "data" / "masks"))
    steps = steps or STEPS.get(source, OTHERS)
    seconds = {}
    out = folder / "runs" / "-".join([*row.split("/"), *map(str, more.values()), str(seed), *filter(None, [control])])
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
    measured = measure(model, tokenizer, data, masks, geometry=encoder.geometry, most=most_questions)
    result = {"row": row, "seed": seed, "control": control, "regions": more, "steps": steps} | measured
    result["seconds_per_step"] = {
        name: round(seconds[name] / count, 4) for name, count in zip(seconds, steps, strict=True)
    }
    result["seconds"] = round(sum(seconds.values()), 1)
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


@torch.no_grad()
def standardize(model: Any, data: Path, images: int = 64) -> None:
    """Start the new projector as if features had mean 0 and deviation 1, so that the faint ones, position, are seen.

    ``pixels`` weighs its numbers for likeness; what a projector needs is all of them.
    """
    entries = json.loads((data / "captions.json").read_text(encoding="utf-8"))[:images]
    some = [read_image(data / "images" / entry["image"]) for entry in entries]
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
def store_features(folder: Path, encoder: ToyEncoder) -> Path:
    """Features of all scenes, computed once, by the digest of their pixels."""
    made_of = blake2b(repr(encoder).encode(), digest_size=4).hexdigest()  # two folders may have one name
    file = folder / f"{encoder.label}-{made_of}.safetensors"
    if file.is_file():
        return file
    loaded = encoders.load(encoder.name, geometry="squash", **encoder.options)
    digests, features = [], []
    told = [json.loads((folder / "data" / f"{name}.json").read_text(encoding="utf-8")) for name in ("captions", "test")]
    images = [folder / "data" / "images" / name for name in sorted({one["image"] for some in told for one in some})]
    for start in tqdm(range(0, len(images), 32), desc=encoder.label):
        pixels, _ = loaded.preprocess([read_image(image) for image in images[start : start + 32]])
        digests += [_digest(one) for one in pixels]
        features.append(loaded.encode(pixels))
    part = file.with_suffix(".part")
    save_file({"digests": torch.stack(digests), "features": torch.cat(features)}, part)
    part.replace(file)
    return file


def use_stored_features(encoder: Any, folder: Path, toy: ToyEncoder) -> None:
    """Let an encoder look the features of scenes up; an image that is none of them is encoded."""
    stored = load_file(store_features(folder, toy))
    place = {digest.numpy().tobytes(): number for number, digest in enumerate(stored["digests"])}
    encode = encoder.encode

    def look_up(pixels: Tensor) -> Tensor:
        numbers = [place.get(_digest(one).numpy().tobytes()) for one in pixels]
        return encode(pixels) if None in numbers else stored["features"][numbers]

    encoder.encode = look_up


def _digest(pixels: Tensor) -> Tensor:
    return torch.frombuffer(bytearray(blake2b(pixels.numpy().tobytes(), digest_size=16).digest()), dtype=torch.uint8)


@torch.no_grad()
def measure(
    model: Any,
    tokenizer: Any,
    data: Path,
    masks: Any,
    *,
    geometry: ImageGeometry = PIXELS.geometry,
    most: int | None = None,
) -> dict[str, Any]:
    """Accuracy per kind of question beside the most frequent answer's, tokens per image, and focus."""
    model.eval()
    questions = json.loads((data / "test.json").read_text(encoding="utf-8"))[:most]
    place = image_processor(model.model.vision_tower, "squash")
    right: dict[str, list[bool]] = defaultdict(list)
    counts: list[int] = []
    meter = FocusMeter()
    tokenizer.padding_side = "left"
    by_masks = model.regionizer.config.source in MASK_SOURCES
    for start in range(0, len(questions), 64):
        batch = questions[start : start + 64]
        images = [read_image(data / "images" / one["image"]) for one in batch]
        found = [masks(one["image"], image) for one, image in zip(batch, images, strict=True)]
        given: dict[str, Any] = {"pixel_values": place(images)["pixel_values"]}
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
        meter.add(attention, target_regions(attention.regions, objects, geometry=geometry))
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
    right.plot(KINDS, majority, "x:", color=GREY, label="most frequent answer")
    left.set(
        xscale="log", xlabel="tokens per image\n(circle: mean, triangle: cross-attention)", ylabel="right answers, %"
    )
    right.set(ylabel="right answers, %", ylim=(0, 102))
    for axes in (left, right):
        colour_axes(axes)
    figure.savefig(file, transparent=True, dpi=150)


GREY = "#808080"
"""Is seen on a light page and on a dark one."""


def colour_axes(axes: Any) -> None:
    """Axes, text and legend in grey on no ground."""
    axes.tick_params(which="both", colors=GREY)
    axes.xaxis.label.set_color(GREY)
    axes.yaxis.label.set_color(GREY)
    axes.set_facecolor("none")
    for spine in axes.spines.values():
        spine.set_color(GREY)
    axes.legend(frameon=False, labelcolor=GREY)


def share_cores(jobs: int) -> None:
    """Give each of so many processes its part of the cores."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the grid."""
    own = argparse.ArgumentParser(
        prog="tiny.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    own.add_argument("--encoder", default="pixels", help="pixels, dinov2-small, or a folder of transformers")
    own.add_argument("--layer", type=int, help="of such an encoder, counted from 0; default: the last")
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
    encoder = toy_encoder(options.encoder, options.layer)
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
        waiting = [
            pool.submit(train_one, row, options.out, encoder=encoder, seed=seed, control=control)
            for row, seed, control in runs
        ]
        for one in waiting:
            results.append(one.result())
            print(table(results[-1:]).splitlines()[2], flush=True)
    name = "tiny" if encoder == PIXELS else f"tiny-{encoder.label}"
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (options.results / f"{name}.md").write_text(table(results), encoding="utf-8")
    picture(results, options.results / f"{name}.png")
    print(f"\n{table(results)}\nSaved in {options.results}")


if __name__ == "__main__":
    main()
