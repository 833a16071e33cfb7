"""The paper's seven benchmarks: which task of lmms-eval each is, and which of its results is the paper's figure."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from regiontok._files import make_folder, read_json
from regiontok.errors import DataError, MissingDependencyError

TASKS = Path(__file__).parent / "tasks"
"""Tasks of ours, where lmms-eval's ask otherwise than the paper does."""


class Benchmark(NamedTuple):
    """One benchmark.

    Attributes:
        task: Of lmms-eval, or of `TASKS`.
        figures: The paper's figures of it: which metric, and what one of it is in the paper's unit.
        details: Further metrics worth telling, in the same way.
        judge: Whether a language model on the network marks the answers.
    """

    task: str
    figures: Mapping[str, tuple[str, float]]
    details: Mapping[str, tuple[str, float]] = {}
    judge: bool = False


BENCHMARKS = {
    "pope": Benchmark("pope", {"pope": ("pope_f1_score", 100)}, {"pope_accuracy": ("pope_accuracy", 100)}),
    "ocrbench": Benchmark("regiontok_ocrbench", {"ocrbench": ("ocrbench_accuracy", 1000)}),
    "cv_bench": Benchmark(
        "regiontok_cv_bench", {"cv_bench": ("cv_bench", 100)}, {"cv_bench_plain": ("cv_bench_acc", 100)}
    ),
    "mmstar": Benchmark("regiontok_mmstar", {"mmstar": ("average", 100)}),
    "mme": Benchmark(
        "mme", {"mme_perception": ("mme_perception_score", 1), "mme_cognition": ("mme_cognition_score", 1)}
    ),
    "mmbench": Benchmark("regiontok_mmbench", {"mmbench": ("gpt_eval_score", 1)}),
    "mm_vet": Benchmark("regiontok_mmvet", {"mm_vet": ("gpt_eval_score", 1)}, judge=True),
}
"""By the paper's order. POPE's figure is F1, and CV-Bench's its authors' mean over sources: which ones the paper prints
it does not say. MMBench is its English development split, matched without a judge."""


def has_judge() -> bool:
    """Whether lmms-eval can reach a judge, as far as the environment tells."""
    return bool(os.environ.get("OPENAI_API_KEY")) or os.environ.get("API_TYPE", "openai") != "openai"


class Measured(NamedTuple):
    """What a run gave.

    Attributes:
        figures: The paper's figures, in its units.
        details: Further metrics.
        tokens: The mean number of region tokens per image.
    """

    figures: dict[str, float]
    details: dict[str, float]
    tokens: float


def run(
    names: Sequence[str],
    model_args: Mapping[str, Any],
    out: Path,
    *,
    batch_size: int = 1,
    limit: int | None = None,
    processes: int = 1,
) -> Measured:
    """Run benchmarks through lmms-eval, in a process of its own.

    Args:
        names: Of `BENCHMARKS`; if one of them fails, all are lost.
        model_args: Of ``regiontok.evaluation.lmms.RegiontokModel``.
        out: The folder for lmms-eval's own results, samples and logs.
        batch_size: Questions at a time.
        limit: Only so many questions of each, to try things out.
        processes: How many share the questions, one GPU each where the device is ``cuda``.

    Raises:
        MissingDependencyError: lmms-eval is not installed here.
        DataError: It failed, or left no results; its own words are above.
    """
    if importlib.util.find_spec("lmms_eval") is None:
        raise MissingDependencyError(
            "lmms-eval is needed here and is not installed. It pins what sam2 needs otherwise, so give it an "
            "environment of its own: python3 -m venv .venv-eval && .venv-eval/bin/pip install 'regiontok[eval]'"
        )
    make_folder(out)
    for old in [*out.rglob("*_results.json"), *out.glob("counts-*.json")]:
        old.unlink()
    launch = ["-m", "lmms_eval"]
    if processes > 1:
        launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), *launch]
    arguments = ",".join(f"{key}={value}" for key, value in {**model_args, "counts": out}.items())
    tasks = ",".join(BENCHMARKS[name].task for name in names)
    command = [sys.executable, *launch, "--model", "regiontok", "--model_args", arguments, "--tasks", tasks]
    command += ["--include_path", str(TASKS), "--output_path", str(out), "--log_samples"]
    command += ["--batch_size", str(batch_size), *(() if limit is None else ("--limit", str(limit)))]
    on_cpu = {"ACCELERATE_USE_CPU": "1"} if str(model_args.get("device")) == "cpu" else {}
    done = subprocess.run(command, env=os.environ | on_cpu, check=False)
    results = _results(out)
    if done.returncode or results is None:  # it ends with 0 where it failed
        raise DataError(f"{', '.join(names)}: lmms-eval failed, and its words are above.")
    figures: dict[str, float] = {}
    details: dict[str, float] = {}
    for name in names:
        benchmark = BENCHMARKS[name]
        for wanted, found in ((benchmark.figures, figures), (benchmark.details, details)):
            for figure, (metric, unit) in wanted.items():
                found[figure] = unit * _metric(results[benchmark.task], name, metric)
    counts = [read_json(file) for file in out.glob("counts-*.json")]
    images = sum(one["images"] for one in counts)
    return Measured(figures, details, sum(one["tokens"] for one in counts) / max(images, 1))


def _results(out: Path) -> dict[str, Any] | None:
    """Those of lmms-eval itself: tasks write files of like names beside them."""
    for file in out.rglob("*_results.json"):
        written = read_json(file)
        if "results" in written and "configs" in written:
            return dict(written["results"])
    return None


def _metric(results: Mapping[str, Any], name: str, metric: str) -> float:
    value = results.get(f"{metric},none")
    if not isinstance(value, int | float):
        raise DataError(f"{name}: lmms-eval gave no {metric}; its results are {dict(results)}.")
    return float(value)
