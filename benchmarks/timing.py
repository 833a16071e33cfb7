"""Interleaved timing, and results with a record of the machine."""

import contextlib
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "regiontok", "torch", "numpy", "scipy", "scikit-learn", "scikit-image", "numba", "higra", "pycocotools",
    "transformers", "torchvision", "sam2", "pyarrow", "ray",
)  # fmt: skip


def take_turns(contestants: dict[str, Callable[[], Any]], *, rounds: int) -> dict[str, Any]:
    """Time contestants in turns, so that a busy machine slows all of them.

    In each turn a contestant is first called without timing, to warm its caches.

    Returns:
        For each contestant, the median and quartiles in milliseconds. Calls below 20 ms are timed in groups of five.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    calls = {}
    for name, run in contestants.items():
        run()
        calls[name] = 5 if _time(run, 1) < 20 else 1
    for _ in range(rounds):
        for name, run in contestants.items():
            if calls[name] > 1:
                run()
            times[name].append(_time(run, calls[name]))
    return {name: _summary(values) for name, values in times.items()}


def _time(run: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return 1000 * (time.perf_counter() - start) / calls


def ratio(measured: dict[str, Any], name: str, to: str) -> float:
    """Return the median time of a contestant divided by that of another."""
    return round(measured[name]["median_ms"] / measured[to]["median_ms"], 2)


def save_path(question: str) -> Path:
    """Return the file of the results of a benchmark on this machine."""
    slug = "".join(letter if letter.isalnum() else "-" for letter in f"{_machine()}--{_device()}".lower())
    return RESULTS / f"{question}--{slug}.json"


def save(question: str, figures: dict[str, Any]) -> Path:
    """Write the results of a benchmark with the machine, versions and commit; return the file."""
    result = {
        "question": question,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": _machine(),
        "device": _device(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": _versions(),
        "commit": _commit(),
        "figures": figures,
    }
    path = save_path(question)
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return path


def _machine() -> str:
    return os.environ.get("REGIONTOK_MACHINE") or f"{_processor()}-{os.cpu_count()}cores"


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _versions() -> dict[str, str]:
    installed = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


def _summary(values: list[float]) -> dict[str, Any]:
    if len(values) < 2:
        values = values * 2
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median_ms": round(median, 4), "quartiles_ms": [round(low, 4), round(high, 4)], "runs": len(values)}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0].replace(" ", "-") if names else platform.machine()


def _commit() -> str:
    completed = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return completed.stdout.strip() or "unknown"
