"""``regiontok evaluate``: the paper's seven benchmarks for a model."""

import argparse
from typing import Any

from regiontok._files import make_folder
from regiontok._require import require
from regiontok.choices import GENERATORS
from regiontok.cli.checks import amount_of, uses_masks
from regiontok.cli.common import told_apart
from regiontok.cli.console import warn
from regiontok.errors import RegiontokError
from regiontok.evaluation.assistant import stock_regions
from regiontok.evaluation.benchmarks import BENCHMARKS, has_judge, run
from regiontok.evaluation.table import beside_the_paper, read_scores, row_name, write_scores


def run_evaluate(options: argparse.Namespace) -> int:
    """Run ``evaluate``; return the exit code."""
    given = [name for name in uses_masks(options) if name != "--sam-model"]
    if given:
        raise RegiontokError(f"{given[0]} is not for evaluate, which makes masks at the paper's cheap setting.")
    if options.missing is not None and options.masks in (None, *GENERATORS):
        raise RegiontokError("--missing is for --masks STORE, which may lack some. Leave it out.")
    wanted = options.benchmarks or list(BENCHMARKS)
    unjudged = [name for name in wanted if BENCHMARKS[name].judge and not has_judge()]
    if unjudged and options.benchmarks:
        raise RegiontokError(f"{unjudged[0]} needs a judge, and there is no OPENAI_API_KEY. Set it, or leave it out.")
    amount = amount_of(options)
    regionizer = stock_regions(norm=options.norm, **amount)
    row = options.row or _own_row(options.model, None if regionizer is None else regionizer.config.to_dict())
    arguments = {
        "pretrained": options.model,
        **amount,
        "norm": options.norm,
        "masks": options.masks,
        "missing": options.missing,
        "sam_model": options.sam_model,
        "dtype": options.dtype,
        "device": options.device,
    }
    arguments = {name: value for name, value in arguments.items() if value is not None}
    for value in arguments.values():
        if "," in str(value) or "=" in str(value):
            raise RegiontokError(f"lmms-eval takes no comma and no equals sign in {value}. Rename it.")
    make_folder(options.out)
    of = told_apart(options)
    kept = read_scores(options.out, of)
    setting = {"limit": options.limit, "masks": options.masks, "sam_model": options.sam_model}
    for name, value in kept.get("benchmarks", setting).items():  # the focus beside them may have masks from a file
        if value != setting[name]:
            raise RegiontokError(
                f"{options.out} has benchmarks of {name} {value}, and this is {setting[name]}. Give another --out."
            )
    kept |= {"benchmarks": setting, "row": row}
    failed = []
    for name in wanted:
        if name in unjudged or all(figure in kept["figures"] for figure in BENCHMARKS[name].figures):
            continue
        try:
            measured = run(
                [name],
                arguments,
                options.out / name,
                batch_size=options.batch_size,
                limit=options.limit,
                processes=options.processes,
            )
        except RegiontokError as error:
            if isinstance(error, ImportError):
                raise
            failed.append(str(error))
            continue
        kept["figures"] |= measured.figures
        kept["details"] |= measured.details
        kept["tokens"] = kept.get("tokens", {}) | {name: measured.tokens}
        kept["figures"]["tokens"] = sum(kept["tokens"].values()) / len(kept["tokens"])
        write_scores(options.out, kept)
    print(beside_the_paper(options.model, kept["figures"], row))
    for name, value in kept["details"].items():
        print(f"{name}: {value:.2f}")
    if options.limit is not None:
        print(f"These are {options.limit} questions of each benchmark, and no figures to compare.")
    for name in unjudged:
        print(f"{name} was left out: it needs a judge, and there is no OPENAI_API_KEY.")
    for message in failed:
        warn(message)
    return 1 if failed else 0


def _own_row(model: str, regions: dict[str, Any] | None) -> str | None:
    transformers = require("transformers", extra="eval")
    try:
        config = transformers.AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise RegiontokError(f"{model} holds no model of transformers: {error}") from error
    if regions is None:
        regions = {"source": "patch", "norm": "none", "pool": "mean", "order": "raster"}
    return row_name(config, regions)
