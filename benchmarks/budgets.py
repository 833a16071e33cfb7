"""What do a model's answers lose when its tokens are cut without training, by which rule, and what does it save?

    python -m benchmarks.budgets MODEL --questions test.json --images images --tokens 64 32 16 8
    python -m benchmarks.budgets MODEL --questions test.json --keep 0.25 0.1   # fractions of each image's patches
    python -m benchmarks.budgets MODEL --tasks pope mme --limit 200         # in an environment of regiontok[eval]

A model folder of any family, region model or stock; questions are a list of ``{"image", "text", "answer"}``, or tasks
of lmms-eval. The rules: a grid that ignores the image, random patches, ToMe's and VisionZip's, written here from their
papers, and clustering by its three linkages. Every rule gives regions whose means are the tokens, so that all else is
one code. The time is of a prefill of one question: encoding, grouping and the language model; VisionZip's attention is
had by a second pass of the encoder, which counts.
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
from regiontok.choices import LINKAGES
from regiontok.evaluation.assistant import Assistant, Question
from regiontok.evaluation.partition import grid_regions
from regiontok.images import read_image
from regiontok.views import uncut_images

_DOMINANT = 54 / 64
"""VisionZip's share of tokens that are patches as they are: 54 of its 64, 108 of 128."""
_TIMED = 5

Labels = Callable[[Tensor, int, Tensor | None], Tensor]
"""Features ``(rows, cols, D)``, a count and the class token's attention to each patch, to labels ``(rows, cols)``."""


def by_grid(features: Tensor, count: int, _: Tensor | None) -> Tensor:
    """Means of cells."""
    return grid_regions(torch.ones(features.shape[:2], dtype=torch.bool), count).labels()[0]


def by_chance(features: Tensor, count: int, _: Tensor | None) -> Tensor:
    """Some patches as they are, the rest left out; the same ones for every image of a size."""
    rows, cols, _ = features.shape
    generator = torch.Generator().manual_seed(count)
    kept = torch.randperm(rows * cols, generator=generator)[:count].sort().values
    labels = torch.full((rows * cols,), -1)
    labels[kept] = torch.arange(len(kept))
    return labels.reshape(rows, cols)


def by_tome(features: Tensor, count: int, _: Tensor | None) -> Tensor:
    """Bipartite matching until so many are left, after "Token Merging: Your ViT But Faster" (Bolya et al., 2023)."""
    return torch.from_numpy(tome(features.float().cpu(), count))


def by_visionzip(features: Tensor, count: int, looked_at: Tensor | None) -> Tensor:
    """The patches that the class token looks at most, and the rest merged to the nearest of some spread evenly.

    After "VisionZip: Longer is Better but Not Necessary in Vision Language Models" (Yang et al., 2024), with features
    in place of keys and plain means in place of sums.
    """
    if looked_at is None:
        raise SystemExit("budgets: VisionZip's rule needs an encoder with a class token.")
    flat = torch.nn.functional.normalize(features.flatten(0, 1).float(), dim=1)
    dominant = min(count, max(1, round(count * _DOMINANT)))
    order = looked_at.flatten().argsort(descending=True)
    labels = torch.empty(len(flat), dtype=torch.int64)
    labels[order[:dominant]] = torch.arange(dominant)
    rest = order[dominant:].sort().values
    merged = count - dominant
    if not merged:
        labels[rest] = -1
        return labels.reshape(features.shape[:2])
    targets = rest[torch.linspace(0, len(rest) - 1, merged).round().long()]
    labels[rest] = dominant + (flat[rest] @ flat[targets].T).argmax(1)
    labels[targets] = dominant + torch.arange(merged)
    return labels.reshape(features.shape[:2])


RULES: dict[str, Labels] = {"grid": by_grid, "random": by_chance, "tome": by_tome, "visionzip": by_visionzip}


class ClassAttention:
    """How much the class token looks at each patch in the block whose features a model takes, the mean over heads."""

    def __init__(self, model: Any) -> None:
        tower = getattr(model.model, "vision_tower", None)
        if isinstance(tower, EncoderTower):
            inner = next(
                (one for one in tower.modules() if isinstance(one, PreTrainedModel) and one is not tower), None
            )
            holder = next((one for one in tower.modules() if getattr(one, "model", None) is inner), None)
            self.block = getattr(holder, "layer", None)
        else:
            inner, layer = tower, getattr(model.config, "vision_feature_layer", None)
            self.block = layer if not isinstance(layer, int) or layer < 0 else layer - 1
        self.tower = inner

        grid = getattr(model.model, "tower_grid", None)
        if not isinstance(self.block, int) or grid is None or not hasattr(self.tower, "set_attn_implementation"):
            raise SystemExit(
                "budgets: VisionZip's rule needs a vision tower of one grid with a class token; see --rules."
            )

    @torch.no_grad()
    def __call__(self, pixels: Tensor, patches: int) -> Tensor | None:
        """``(images, patches)``, or None without a class token."""
        own = self.tower.config._attn_implementation
        self.tower.set_attn_implementation("eager")
        looked = self.tower(pixels.to(self.tower.dtype), output_attentions=True).attentions[self.block]
        self.tower.set_attn_implementation(own)
        prefix = looked.shape[-1] - patches
        return looked[:, :, 0, prefix:].mean(1) if prefix > 0 else None


def cut(model: Any, rule: str, count: float) -> Any:
    """Return the model with ``count`` tokens per image by a rule, or where it is below 1 with this share of patches."""
    norm = model.regionizer.config.norm
    if rule == "patches":
        return with_regions(model, Regionizer(source="patch", pool="mean", norm=norm, padding="keep"))
    linkage = rule if rule in LINKAGES else None
    budget = {"keep": count} if isinstance(count, float) else {"num_regions": count}
    small = with_regions(model, Regionizer(pool="mean", norm=norm, linkage=linkage, **budget))
    if linkage:
        return small
    attention = ClassAttention(model) if rule == "visionzip" else None
    looked: list[Tensor | None] = []
    encode = small.model.encode_patches

    def encode_patches(pixel_values: Tensor, **inputs: Any) -> Any:
        patches = encode(pixel_values, **inputs)
        seen = None if attention is None else attention(pixel_values, patches.views[0].patches)
        looked[:] = [None] * len(patches.views) if seen is None else list(seen)
        return patches

    def group(features: Any, *, num_regions: Sequence[int], **_: Any) -> Regions:
        given = zip(features, num_regions, looked, strict=True)
        return Regions.from_labels([RULES[rule](one, budget, seen) for one, budget, seen in given])

    small.model.encode_patches = encode_patches
    small.regionizer.group = group
    return small


def remember(model: Any) -> None:
    """Encode each image once: questions about it, and all rules, look its features up."""
    encode, known = model.model.encode_patches, {}

    def encode_patches(pixel_values: Tensor, **inputs: Any) -> Any:
        names = [one.numpy().tobytes() for one in pixel_values.cpu().float()]
        new = [number for number, name in enumerate(names) if name not in known]
        if new:
            patches = encode(pixel_values[new], **inputs)
            for number, feature, count in zip(new, patches.features, patches.num_placeholders, strict=True):
                known[names[number]] = feature, count
        features, counts = zip(*(known[name] for name in names), strict=True)
        return Patches(list(features), list(counts), uncut_images([(one.shape[0], one.shape[1]) for one in features]))

    model.model.encode_patches = encode_patches


def right_answers(assistant: Assistant, questions: Sequence[dict[str, Any]], images: Path, options: Any) -> float:
    """Percent of the questions whose answer is the wanted one, but for case."""
    right = 0
    for start in tqdm(range(0, len(questions), options.batch), leave=False, disable=None):
        batch = questions[start : start + options.batch]
        asked = [Question(one["text"], [read_image(images / one["image"])]) for one in batch]
        told = assistant.answer(asked, max_new_tokens=options.max_new_tokens)
        pairs = zip(batch, told, strict=True)
        right += sum(one["answer"].strip().lower() == answer.text.strip().lower() for one, answer in pairs)
    return round(100 * right / len(questions), 1)


def task_scores(assistant: Assistant, options: Any) -> dict[str, Any]:
    """What lmms-eval says of its tasks, in an environment of ``regiontok[eval]``."""
    from lmms_eval.evaluator import simple_evaluate  # noqa: PLC0415  only in an environment of its own

    from regiontok.evaluation.lmms import RegiontokModel  # noqa: PLC0415

    asked = RegiontokModel(str(options.model), batch_size=options.batch, device=options.device)
    asked.assistant = assistant
    found = simple_evaluate(model=asked, tasks=options.tasks, limit=options.limit, batch_size=options.batch)
    numbers = {}
    for task, told in found["results"].items():
        numbers[task] = {name: value for name, value in told.items() if isinstance(value, float)}
    return numbers


def inputs_of(model: Any, processor: Any, question: dict[str, Any], images: Path) -> dict[str, Any]:
    """What a model takes of one question."""
    parts = [{"type": "image"}, {"type": "text", "text": question["text"]}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    return process(model, processor, [text], [[read_image(images / question["image"])]])


def count_tokens(model: Any, processor: Any, question: dict[str, Any], images: Path) -> int:
    """Patches of one image."""
    prepared = cut(model, "patches", 0).expand(**inputs_of(model, processor, question, images))
    return int(prepared.counts[0])


def prefills(models: dict[str, Any], processor: Any, question: dict[str, Any], images: Path) -> dict[str, Any]:
    """Medians of a prefill by each model, in turns."""
    inputs = inputs_of(next(iter(models.values())), processor, question, images)

    def prefill(model: Any) -> None:
        model(**model.expand(**inputs).inputs, logits_to_keep=1)

    runs = {name: lambda model=model: prefill(model) for name, model in models.items()}
    with torch.no_grad():
        return {name: round(one["median_ms"], 1) for name, one in take_turns(runs, rounds=_TIMED).items()}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Right answers and milliseconds of a prefill by rule and number of tokens."""
    counts = sorted({one["tokens"] for one in results if one["rule"] != "patches"}, reverse=True)
    lines = ["| rule | " + " | ".join(map(str, counts)) + " |", "| --- |" + " ---: |" * len(counts)]
    for rule in dict.fromkeys(one["rule"] for one in results):
        mine = {one["tokens"]: one for one in results if one["rule"] == rule}
        if rule == "patches":
            (one,) = mine.values()
            cells = [f"{one['right']} ({one['prefill_ms']} ms)", *[""] * (len(counts) - 1)]
            lines.append(f"| {one['tokens']} patches | " + " | ".join(cells) + " |")
        else:
            cells = [f"{mine[count]['right']} ({mine[count]['prefill_ms']} ms)" for count in counts]
            lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budgets", description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a folder, or a name on the hub")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--questions", type=Path, help="JSON: a list of objects with image, text and answer")
    asked.add_argument("--tasks", nargs="+", help="of lmms-eval")
    parser.add_argument("--images", type=Path, help="where the questions' images are; default: beside the questions")
    parser.add_argument("--tokens", nargs="+", type=int, help="default: 64 32 16 8")
    parser.add_argument("--keep", nargs="+", type=float, default=[], help="fractions of each image's patches")
    parser.add_argument("--rules", nargs="+", choices=[*RULES, *LINKAGES], help="default: all that the model allows")
    parser.add_argument("--limit", type=int, help="so many questions, or of each task")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", default="budgets", help="of the saved figures; default: %(default)s")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Ask every model, print the table and save it."""
    options = parse(arguments)
    budgets = [*(options.tokens or ([] if options.keep else [64, 32, 16, 8])), *options.keep]
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
        whole = count_tokens(loaded, processor, questions[0], images)
        names = [("patches", 0), *((rule, count) for rule in rules for count in budgets)]
        models = {f"{rule} {count}": cut(loaded, rule, count) for rule, count in names}
        times = prefills(models, processor, questions[0], images)
        if not loaded.encoder_inputs:  # images of one shape, each by itself
            remember(loaded)
        for rule, count in names:
            model = cut(loaded, rule, count)
            right = right_answers(Assistant(model, processor), questions, images, options)
            results.append(
                {"rule": rule, "tokens": count or whole, "right": right, "prefill_ms": times[f"{rule} {count}"]}
            )
            print(json.dumps(results[-1]), flush=True)
        print(table(results))
    figures = {"model": Path(options.model).name, "questions": options.limit, "results": results}
    print(save(options.name, figures))
    return results


if __name__ == "__main__":
    main()
