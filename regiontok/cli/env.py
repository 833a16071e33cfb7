"""``regiontok env``: versions, packages that are missing or broken, caches, and what runs where.

Packages are imported in processes of their own, so that this command works beside a package that cannot be imported or
that ends the process.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regiontok._require import install_command

_IMPORTS = """
import importlib, json, sys, warnings
from regiontok._require import explain_import
warnings.simplefilter("ignore")
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        cause = None
    except BaseException as error:
        cause = str(explain_import(error, name))
    print("regiontok:" + json.dumps([name, cause]), flush=True)
"""
_SETUP = """
import json, os, torch
from regiontok import _kernels
from regiontok._kernels import merge
print("regiontok:" + json.dumps({
    "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    "threads": torch.get_num_threads(),
    "compiled": os.environ.get("NUMBA_DISABLE_JIT", "0") == "0",
    "cache": _kernels.cache_folder(merge.merge),
}))
"""
_TIMEOUT = 300
"""Seconds after which an import counts as failed."""


def run_env(_: argparse.Namespace) -> int:
    """Run ``env``; return 1 if a package is installed but cannot be imported."""
    print(f"regiontok      {importlib.metadata.version('regiontok')}")
    print(f"python         {platform.python_version()} on {platform.platform()}")
    extras = read_extras()
    modules = _modules_of(list(extras))
    causes = _import_all(list(modules.values()))
    broken = []
    for package, names in extras.items():
        cause = causes.get(modules.get(package, ""))
        state = _state(package, names, cause)
        print(f"{package:<16} {state:<10} {'' if '' in names else ', '.join(names)}".rstrip())
        broken += [package] * (cause is not None)
    _print_setup()
    for cause in dict.fromkeys(causes[modules[package]] for package in broken):
        print(cause)
    return 1 if broken else 0


def read_extras() -> dict[str, list[str]]:
    """Return, for each package that regiontok names in its metadata, the extras that install it.

    Packages of the core come first and have the extra ``""``; the others have the smallest extra first. An extra that
    names another one, such as ``regiontok[store]``, installs its packages too.
    """
    direct: dict[str, list[str]] = {"": []}
    for line in importlib.metadata.requires("regiontok") or ():
        requirement, _, marker = line.partition(";")
        match = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker)
        direct.setdefault(match[1] if match else "", []).append(requirement.strip())

    def expand(extra: str) -> list[str]:
        names: list[str] = []
        for requirement in direct.get(extra, ()):
            nested = re.match(r"regiontok\[([^\]]+)\]", requirement)
            name = re.match(r"[\w.-]+", requirement)
            if nested:
                names += [package for other in nested[1].split(",") for package in expand(other.strip())]
            elif name:
                names.append(name[0])
        return names

    extras: dict[str, list[str]] = {}
    for extra in direct:
        for package in dict.fromkeys(expand(extra)):
            extras.setdefault(package, []).append(extra)
    return {package: sorted(names, key=lambda extra: len(expand(extra))) for package, names in extras.items()}


def _modules_of(packages: Sequence[str]) -> dict[str, str]:
    """Return the module to import for each distribution that is installed."""
    modules: dict[str, list[str]] = {}
    for module, names in importlib.metadata.packages_distributions().items():
        for name in names:
            modules.setdefault(_normal(name), []).append(module)
    chosen: dict[str, str] = {}
    for package in packages:
        known = sorted(module for module in modules.get(_normal(package), ()) if not module.startswith("_"))
        if known:
            same = [module for module in known if _normal(module) == _normal(package)]
            chosen[package] = (same or known)[0]
    return chosen


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _import_all(modules: Sequence[str]) -> dict[str, str]:
    """Return the modules that cannot be imported, and why."""
    left, broken = list(dict.fromkeys(modules)), dict[str, str]()
    while left:
        printed, fault = _run(_IMPORTS, left)
        results = [json.loads(line) for line in printed]
        broken |= {name: cause for name, cause in results if cause is not None}
        left = left[len(results) :]
        if left:  # the process ended while it imported the next one
            name = left.pop(0)
            broken[name] = f"{name} is installed but cannot be imported: {fault}."
    return broken


def _run(program: str, arguments: Sequence[str] = ()) -> tuple[list[str], str]:
    """Run a program; return the lines that it printed for us, and how it ended."""
    try:
        process = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        return _ours(text), f"the import takes more than {_TIMEOUT} s"
    last = (process.stderr.strip().splitlines() or [""])[-1]
    fault = f"signal {-process.returncode} ends the process" if process.returncode < 0 else last
    return _ours(process.stdout), fault


def _ours(text: str) -> list[str]:
    """Return the lines of a program of ours, without what imported packages print."""
    return [line.removeprefix("regiontok:") for line in text.splitlines() if line.startswith("regiontok:")]


def _state(package: str, extras: Sequence[str], cause: str | None) -> str:
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"not installed ({install_command(package, extras[0])})"
    return version if cause is None else f"{version} (broken)"


def _print_setup() -> None:
    """Print devices, threads and caches."""
    printed, fault = _run(_SETUP)
    if not printed:
        print(f"regiontok cannot be imported: {fault}")
        return
    setup: dict[str, Any] = json.loads(printed[0])
    compiled = "compiled by numba" if setup["compiled"] else "uncompiled, since NUMBA_DISABLE_JIT is set"
    print(f"cuda device    {setup['cuda']}")
    print(f"loops          clustering, run lengths and DBSCAN on the CPU, {compiled}")
    print(f"threads        {setup['threads']}, which share the images of a batch when clustering")
    print("other steps    where the features are")
    print(f"numba cache    {setup['cache'] or 'none: no folder can be written, so each process compiles anew'}")
    print(f"weights        {_hub_cache()}")


def _hub_cache() -> Path:
    """Return the folder of weights from the Hugging Face hub, as huggingface_hub determines it."""
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE", Path(os.environ.get("HF_HOME", home)) / "hub")).expanduser()
