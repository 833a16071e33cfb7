"""Accuracy and prefill time of a model whose tokens are reduced without training, by rule and budget.

    python -m benchmarks.budgets MODEL --questions test.json --images images --num-regions 64 32 16 8
    python -m benchmarks.budgets MODEL --questions test.json --keep 0.25 0.1   # fractions of each image's patches
    python -m benchmarks.budgets MODEL --tasks pope mme --limit 200         # in an environment of regiontok[eval]

MODEL is the folder of a region model or a stock model of any family. Questions are a list of ``{"image", "text",
"answer"}``, or tasks of lmms-eval. The rules are a grid, random patches, ToMe and VisionZip, implemented here from
their papers, and clustering with each linkage. Each rule returns regions, and tokens are their means. The time is that
of a prefill of one question: encoding, grouping and the language model. VisionZip needs attention weights, for which
the encoder runs a second time; this is included.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoProcessor, PreTrainedModel

from benchmarks.partition import tome
from benchmarks.timing import save, take_turns
from regiontok import Regionizer, Regions
from regiontok.adapters.huggingface import EncoderTower, Patches, load_model, process, with_regions
from regiontok.batch import PatchBatch
from regiontok.choices import LINKAGES
from regiontok.evaluation.assistant import Assistant, Question
from regiontok.evaluation.partition import grid_regions
from regiontok.images import read_image
from regiontok.tiles import uncut_images

_DOMINANT = 54 / 64
"""Fraction of VisionZip's tokens that are single patches: 54 of 64, 108 of 128."""
_TIMED = 5

Labels = Callable[[Tensor, int, Tensor | None], Tensor]
"""A function from features ``(rows, cols, D)``, a count and the class token's attention to labels ``(rows, cols)``."""


def by_grid(features: Tensor, count: int, _: Tensor | None) -> Tensor:
    """Return the cells of a regular grid."""
    return grid_regions(torch.ones(features.shape[:2], dtype=torch.bool), count).labels()[0]


def by_chance(features: Tensor, count: int, _: Tensor | None) -> Tensor:
    """Return ``count`` random single patches, the same for all images of a size; the others are dropped."""
    rows, cols, _ = features.shape
    generator = torch.Generator().manual_seed(count)
    selected = torch.randperm(rows * cols, generator=generator)[:count].sort().values
    labels = torch.full((rows * cols,), -1)
    labels[selected] = torch.arange(len(selected))
    return labels.reshape(rows, cols)


def by_tome(features: Tensor, count: int, _: Tensor | None) -> Tensor:
    """Merge by bipartite matching, after "Token Merging: Your ViT But Faster" (Bolya et al., 2023)."""
    return torch.from_numpy(tome(features.float().cpu(), count))


def by_visionzip(features: Tensor, count: int, attention: Tensor | None) -> Tensor:
    """Keep the patches with the most attention of the class token, and merge the others to evenly spaced patches.

    After "VisionZip: Longer is Better but Not Necessary in Vision Language Models" (Yang et al., 2024), with features
    instead of keys and means instead of sums.
    """
    if attention is None:
        raise SystemExit("budgets: VisionZip needs an encoder with a class token.")
    flat = torch.nn.functional.normalize(features.flatten(0, 1).float(), dim=1)
    dominant = min(count, max(1, round(count * _DOMINANT)))
    order = attention.flatten().argsort(descending=True)
    labels = torch.empty(len(flat), dtype=torch.int64)
    labels[order[:dominant]] = torch.arange(dominant)
    others = order[dominant:].sort().values
    merged = count - dominant
    if not merged:
        labels[others] = -1
        return labels.reshape(features.shape[:2])
    targets = others[torch.linspace(0, len(others) - 1, merged).round().long()]
    labels[others] = dominant + (flat[others] @ flat[targets].T).argmax(1)
    labels[targets] = dominant + torch.arange(merged)
    return labels.reshape(features.shape[:2])


RULES: dict[str, Labels] = {"grid": by_grid, "random": by_chance, "tome": by_tome, "visionzip": by_visionzip}


class ClassAttention:
    """Attention of the class token to patches, averaged over heads, in the encoder block whose features are used."""

    def __init__(self, model: Any) -> None:
        tower = getattr(model.model, "vision_tower", None)
        if isinstance(tower, EncoderTower):
            modules = list(tower.modules())[1:]
            inner = next((module for module in modules if isinstance(module, PreTrainedModel)), None)
            holder = next((module for module in tower.modules() if getattr(module, "model", None) is inner), None)
            self.block = getattr(holder, "layer", None)
        else:
            inner, layer = tower, getattr(model.config, "vision_feature_layer", None)
            self.block = layer if not isinstance(layer, int) or layer < 0 else layer - 1
        self.tower = inner

        grid = getattr(model.model, "tower_grid", None)
        if not isinstance(self.block, int) or grid is None or not hasattr(self.tower, "set_attn_implementation"):
            raise SystemExit(
                "budgets: VisionZip needs a vision tower with one grid and a class token. Select other --rules."
            )

    @torch.no_grad()
    def __call__(self, pixels: Tensor, patches: int) -> Tensor | None:
        """Return attention ``(images, patches)``, or None without a class token."""
        implementation = self.tower.config._attn_implementation
        self.tower.set_attn_implementation("eager")
        weights = self.tower(pixels.to(self.tower.dtype), output_attentions=True).attentions[self.block]
        self.tower.set_attn_implementation(implementation)
        prefix = weights.shape[-1] - patches
        return weights[:, :, 0, prefix:].mean(1) if prefix > 0 else None


def cut(model: Any, rule: str, count: float) -> Any:
    """Return the model with a budget of ``count`` regions (int) or of a fraction of the patches (float), by a rule."""
    norm = model.regionizer.config.norm
    if rule == "patches":
        return with_regions(model, Regionizer(source="patch", pool="mean", norm=norm, padding="keep"))
    linkage = rule if rule in LINKAGES else None
    budget = {"keep": count} if isinstance(count, float) else {"num_regions": count}
    small = with_regions(model, Regionizer(pool="mean", norm=norm, linkage=linkage, **budget))
    if linkage:
        return small
    attention = ClassAttention(model) if rule == "visionzip" else None
    weights: list[Tensor | None] = []
    encode = small.model.encode_patches

    def encode_patches(pixel_values: Tensor, **inputs: Any) -> Any:
        patches = encode(pixel_values, **inputs)
        batch = None if attention is None else attention(pixel_values, patches.tiles[0].patches)
        weights[:] = [None] * len(patches.tiles) if batch is None else list(batch)
        return patches

    def group(features: Any, *, num_regions: Sequence[int], **_: Any) -> Regions:
        tiles = zip(PatchBatch.of(features).unflatten(), num_regions, weights, strict=True)
        return Regions.from_labels([RULES[rule](*tile) for tile in tiles])

    small.model.encode_patches = encode_patches
    small.regionizer.group = group
    return small


def cache_features(model: Any) -> None:
    """Make a model encode each image once and reuse its features for all questions and rules."""
    encode, cache = model.model.encode_patches, {}

    def encode_patches(pixel_values: Tensor, **inputs: Any) -> Any:
        keys = [image.numpy().tobytes() for image in pixel_values.cpu().float()]
        missing = [number for number, key in enumerate(keys) if key not in cache]
        if missing:
            patches = encode(pixel_values[missing], **inputs)
            for number, *entry in zip(missing, patches.features, patches.num_placeholders, strict=True):
                cache[keys[number]] = entry
        features, counts = zip(*(cache[key] for key in keys), strict=True)
        grids = [(image.shape[0], image.shape[1]) for image in features]
        return Patches(list(features), list(counts), uncut_images(grids))

    model.model.encode_patches = encode_patches


def right_answers(assistant: Assistant, questions: Sequence[dict[str, Any]], images: Path, options: Any) -> float:
    """Return the percentage of correct answers, ignoring case."""
    right = 0
    for start in tqdm(range(0, len(questions), options.batch_size), leave=False, disable=None):
        batch = questions[start : start + options.batch_size]
        prompts = [Question(question["text"], [read_image(images / question["image"])]) for question in batch]
        answers = assistant.answer(prompts, max_new_tokens=options.max_new_tokens)
        pairs = zip(batch, answers, strict=True)
        right += sum(question["answer"].strip().lower() == answer.text.strip().lower() for question, answer in pairs)
    return round(100 * right / len(questions), 1)


def task_scores(assistant: Assistant, options: Any) -> dict[str, Any]:
    """Return the scores of lmms-eval tasks. Needs an environment with ``regiontok[eval]``."""
    from lmms_eval.evaluator import simple_evaluate  # noqa: PLC0415  not in the dev environment

    from regiontok.evaluation.lmms import RegiontokModel  # noqa: PLC0415

    plugin = RegiontokModel(str(options.model), batch_size=options.batch_size, device=options.device)
    plugin.assistant = assistant
    output = simple_evaluate(model=plugin, tasks=options.tasks, limit=options.limit, batch_size=options.batch_size)
    return {
        task: {name: value for name, value in metrics.items() if isinstance(value, float)}
        for task, metrics in output["results"].items()
    }


def inputs_of(model: Any, processor: Any, question: dict[str, Any], images: Path) -> dict[str, Any]:
    """Return the inputs of a model for one question."""
    parts = [{"type": "image"}, {"type": "text", "text": question["text"]}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    return process(model, processor, [text], [[read_image(images / question["image"])]])


def count_tokens(model: Any, processor: Any, question: dict[str, Any], images: Path) -> int:
    """Return the number of patch tokens of an image."""
    expanded = cut(model, "patches", 0).expand(**inputs_of(model, processor, question, images))
    return int(expanded.counts[0])


def prefills(models: dict[str, Any], processor: Any, question: dict[str, Any], images: Path) -> dict[str, Any]:
    """Return the median time of a prefill by each model, in milliseconds."""
    inputs = inputs_of(next(iter(models.values())), processor, question, images)

    def prefill(model: Any) -> None:
        model(**model.expand(**inputs).inputs, logits_to_keep=1)

    runs = {name: lambda model=model: prefill(model) for name, model in models.items()}
    with torch.no_grad():
        return {name: round(run["median_ms"], 1) for name, run in take_turns(runs, rounds=_TIMED).items()}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table of accuracy and prefill time by rule and number of tokens."""
    counts = sorted({row["tokens"] for row in results if row["rule"] != "patches"}, reverse=True)
    lines = ["| rule | " + " | ".join(map(str, counts)) + " |", "| --- |" + " ---: |" * len(counts)]
    for rule in dict.fromkeys(row["rule"] for row in results):
        by_count = {row["tokens"]: f"{row['right']} ({row['prefill_ms']} ms)" for row in results if row["rule"] == rule}
        if rule == "patches":
            ((patches, cell),) = by_count.items()
            rule, by_count = f"{patches} patches", {counts[0]: cell}
        lines.append(f"| {rule} | " + " | ".join(by_count.get(count, "") for count in counts) + " |")
    return "\n".join(lines) + "\n"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options of the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budgets", description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a folder, or a name on the hub")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--questions", type=Path, help="JSON: a list of objects with image, text and answer")
    source.add_argument("--tasks", nargs="+", help="tasks of lmms-eval")
    parser.add_argument("--images", type=Path, help="folder of the images; default: that of the questions")
    parser.add_argument("--num-regions", nargs="+", type=int, help="default: 64 32 16 8")
    parser.add_argument("--keep", nargs="+", type=float, default=[], help="fractions of each image's patches")
    parser.add_argument("--rules", nargs="+", choices=[*RULES, *LINKAGES], help="default: all that the model supports")
    parser.add_argument("--limit", type=int, help="number of questions, or of questions per task")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", default="budgets", help="name of the results file; default: %(default)s")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure each rule and budget, print the table and save it."""
    options = parse(arguments)
    budgets = [*(options.num_regions or ([] if options.keep else [64, 32, 16, 8])), *options.keep]
    loaded = load_model(options.model).to(options.device)
    processor = AutoProcessor.from_pretrained(options.model)
    rules = options.rules or [*([] if loaded.encoder_inputs else ["visionzip"]), "grid", "random", "tome", *LINKAGES]
    results: list[dict[str, Any]] = []
    if options.tasks:
        for rule, count in [("patches", 0), *((rule, count) for rule in rules for count in budgets)]:
            scores = task_scores(Assistant(cut(loaded, rule, count), processor), options)
            results.append({"rule": rule, "tokens": count, "scores": scores})
            print(json.dumps(results[-1]), flush=True)
    else:
        questions = json.loads(options.questions.read_text(encoding="utf-8"))[: options.limit]
        images = options.images or options.questions.parent
        num_patches = count_tokens(loaded, processor, questions[0], images)
        names = [("patches", 0), *((rule, count) for rule in rules for count in budgets)]
        models = {f"{rule} {count}": cut(loaded, rule, count) for rule, count in names}
        times = prefills(models, processor, questions[0], images)
        if not loaded.encoder_inputs:  # all images have one shape and are encoded independently
            cache_features(loaded)
        for rule, count in names:
            model = cut(loaded, rule, count)
            right = right_answers(Assistant(model, processor), questions, images, options)
            results.append(
                {"rule": rule, "tokens": count or num_patches, "right": right, "prefill_ms": times[f"{rule} {count}"]}
            )
            print(json.dumps(results[-1]), flush=True)
        print(table(results))
    figures = {"model": Path(options.model).name, "questions": options.limit, "results": results}
    print(save(options.name, figures))
    return results


if __name__ == "__main__":
    main()
