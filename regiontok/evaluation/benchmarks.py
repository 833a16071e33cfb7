"""The paper's seven benchmarks: their lmms-eval tasks and the metrics that the paper reports."""

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
"""Folder of our tasks, for benchmarks whose prompt in lmms-eval differs from the paper's."""


class Benchmark(NamedTuple):
    """A benchmark.

    Attributes:
        task: Name of the task, in lmms-eval or `TASKS`.
        figures: For each figure of the paper, the metric of the task and the factor from its unit to the paper's.
        details: Further metrics, in the same form.
        needs_judge: Whether a language model, reached over the network, marks the answers.
    """

    task: str
    figures: Mapping[str, tuple[str, float]]
    details: Mapping[str, tuple[str, float]] = {}
    needs_judge: bool = False


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
    "mm_vet": Benchmark("regiontok_mmvet", {"mm_vet": ("gpt_eval_score", 1)}, needs_judge=True),
}
"""Benchmarks by name, in the paper's order.

The paper does not name the metrics of POPE and CV-Bench; we report F1 and the mean of CV-Bench's authors. MMBench is
its English development split, scored without a judge.
"""


def has_judge() -> bool:
    """Return whether the environment variables configure a judge for lmms-eval."""
    return bool(os.environ.get("OPENAI_API_KEY")) or os.environ.get("API_TYPE", "openai") != "openai"


class BenchmarkScores(NamedTuple):
    """Scores of a model on one or more benchmarks.

    Attributes:
        figures: The paper's figures, in its units.
        details: Further metrics.
        tokens: Mean number of region tokens per image.
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
) -> BenchmarkScores:
    """Run benchmarks with lmms-eval in a separate process.

    Args:
        names: Names of `BENCHMARKS`. If one benchmark fails, the results of all are lost.
        model_args: Arguments of ``regiontok.evaluation.lmms.RegiontokModel``.
        out: Folder for the results, samples and logs of lmms-eval.
        batch_size: Number of questions per batch.
        limit: Number of questions per benchmark, for a trial; None for all.
        processes: Number of processes that share the questions. With device ``cuda`` each uses one GPU.

    Raises:
        MissingDependencyError: lmms-eval is not installed.
        DataError: lmms-eval failed or wrote no results; it prints the cause.
    """
    if importlib.util.find_spec("lmms_eval") is None:
        raise MissingDependencyError(
            "lmms-eval is not installed. Its pinned versions conflict with sam2, so install it in a separate "
            "environment: python3 -m venv .venv-eval && .venv-eval/bin/pip install 'regiontok[eval]'"
        )
    make_folder(out)
    for old_file in [*out.rglob("*_results.json"), *out.glob("counts-*.json")]:
        old_file.unlink()
    launch = ["-m", "lmms_eval"]
    if processes > 1:
        launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), *launch]
    arguments = ",".join(f"{key}={value}" for key, value in {**model_args, "counts": out}.items())
    tasks = ",".join(BENCHMARKS[name].task for name in names)
    command = [sys.executable, *launch, "--model", "regiontok", "--model_args", arguments, "--tasks", tasks]
    command += ["--include_path", str(TASKS), "--output_path", str(out), "--log_samples"]
    command += ["--batch_size", str(batch_size), *(() if limit is None else ("--limit", str(limit)))]
    environment = os.environ | ({"ACCELERATE_USE_CPU": "1"} if str(model_args.get("device")) == "cpu" else {})
    completed = subprocess.run(command, env=environment, check=False)
    results = _read_results(out)
    if completed.returncode or results is None:  # lmms-eval may fail with exit code 0
        raise DataError(f"{', '.join(names)}: lmms-eval failed; see its output above.")
    figures: dict[str, float] = {}
    details: dict[str, float] = {}
    for name in names:
        benchmark = BENCHMARKS[name]
        for metrics, scores in ((benchmark.figures, figures), (benchmark.details, details)):
            for figure, (metric, factor) in metrics.items():
                scores[figure] = factor * _metric(results[benchmark.task], name, metric)
    counts = [read_json(file) for file in out.glob("counts-*.json")]
    num_images = sum(count["images"] for count in counts)
    return BenchmarkScores(figures, details, sum(count["tokens"] for count in counts) / max(num_images, 1))


def _read_results(out: Path) -> dict[str, Any] | None:
    """Return the results of lmms-eval by task; tasks write other files with similar names."""
    for file in out.rglob("*_results.json"):
        content = read_json(file)
        if "results" in content and "configs" in content:
            return dict(content["results"])
    return None


def _metric(results: Mapping[str, Any], name: str, metric: str) -> float:
    value = results.get(f"{metric},none")
    if not isinstance(value, int | float):
        raise DataError(f"{name}: lmms-eval must report {metric}; got {dict(results)}.")
    return float(value)
