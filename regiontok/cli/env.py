"""``regiontok env``: versions, missing and broken packages, devices and caches.

Packages are imported in separate processes, so that this command works if a package cannot be imported or crashes.
"""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from regiontok._require import TESTED_VERSIONS, install_command

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


def run_env(_: Namespace) -> int:
    """Run ``env``, and return 1 if a package is installed but cannot be imported."""
    print(f"regiontok      {importlib.metadata.version('regiontok')}")
    print(f"python         {platform.python_version()} on {platform.platform()}")
    extras = _read_extras()
    modules = _modules_of(extras)
    causes = _import_all(modules.values())
    for package, names in extras.items():
        try:
            version = importlib.metadata.version(package)
            state = f"{version} (broken)" if modules.get(package) in causes else _compare_with_tested(package, version)
        except importlib.metadata.PackageNotFoundError:
            state = f"not installed ({install_command(package, names[0])})"
        print(f"{package:<16} {state:<10} {'' if '' in names else ', '.join(names)}".rstrip())
    _print_setup()
    for cause in causes.values():
        print(cause)
    return 1 if causes else 0


def _compare_with_tested(package: str, version: str) -> str:
    """Return a version, with the latest tested one if the installed one is newer."""
    tested = TESTED_VERSIONS.get(package)
    numbers = [[int(part) for part in re.findall(r"\d+", text)] for text in (version, tested or version)]
    return f"{version} (tested up to {tested})" if numbers[0][: len(numbers[1])] > numbers[1] else version


def _read_extras() -> dict[str, list[str]]:
    """Return, for each package that regiontok names in its metadata, the extras that install it.

    Packages of the core come first and have the extra ``""``; the others have the smallest extra first. An extra that
    names another one, such as ``regiontok[store]``, installs its packages too.
    """
    direct: dict[str, list[str]] = {"": []}
    for line in importlib.metadata.requires("regiontok") or ():
        requirement, _, marker = line.partition(";")
        match = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker)
        direct.setdefault(match[1] if match else "", []).append(requirement.strip())

    def expand(extra: str) -> Iterator[str]:
        for requirement in direct.get(extra, ()):
            nested = re.match(r"regiontok\[([^\]]+)\]", requirement)
            if nested:
                yield from (package for other in nested[1].split(",") for package in expand(other.strip()))
            else:
                yield re.split(r"[^\w.-]", requirement, maxsplit=1)[0]

    packages = {extra: list(dict.fromkeys(expand(extra))) for extra in direct}
    extras: dict[str, list[str]] = {}
    for extra, names in packages.items():
        for package in names:
            extras.setdefault(package, []).append(extra)
    return {package: sorted(names, key=lambda extra: len(packages[extra])) for package, names in extras.items()}


def _modules_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the module to import for each package that is installed."""
    by_package: dict[str, list[str]] = {}
    for module, names in importlib.metadata.packages_distributions().items():
        for name in names if not module.startswith("_") else ():
            by_package.setdefault(_normal(name), []).append(module)
    modules = {package: sorted(by_package.get(_normal(package), ())) for package in packages}
    return {
        package: next((name for name in names if _normal(name) == _normal(package)), names[0])
        for package, names in modules.items()
        if names
    }


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _import_all(modules: Iterable[str]) -> dict[str, str]:
    """Return the modules that fail to import, with the reason."""
    remaining, causes = list(dict.fromkeys(modules)), dict[str, str]()
    while remaining:
        printed, fault = _run(_IMPORTS, remaining)
        causes |= {name: cause for name, cause in map(json.loads, printed) if cause is not None}
        remaining = remaining[len(printed) :]
        if remaining:  # the process ended while it imported the next module
            name = remaining.pop(0)
            causes[name] = f"{name} is installed but cannot be imported: {fault}."
    return causes


def _run(program: str, arguments: Sequence[str] = ()) -> tuple[list[str], str]:
    """Run a program; return its lines that start with ``regiontok:``, and how it ended."""
    command = [sys.executable, "-c", program, *arguments]
    try:
        process = subprocess.run(command, capture_output=True, timeout=_TIMEOUT, check=False)
        output, errors, code = process.stdout, process.stderr.decode(errors="replace").strip(), process.returncode
        fault = f"signal {-code} ends the process" if code < 0 else (errors.splitlines() or [""])[-1]
    except subprocess.TimeoutExpired as error:
        output, fault = error.stdout or b"", f"the import takes more than {_TIMEOUT} s"
    lines = output.decode(errors="replace").splitlines()
    return [line.removeprefix("regiontok:") for line in lines if line.startswith("regiontok:")], fault


def _print_setup() -> None:
    """Print devices, threads and caches."""
    printed, fault = _run(_SETUP)
    if not printed:
        print(f"regiontok cannot be imported: {fault}")
        return
    setup: dict[str, Any] = json.loads(printed[0])
    compiled = "compiled by numba" if setup["compiled"] else "not compiled, since NUMBA_DISABLE_JIT is set"
    print(f"cuda device    {setup['cuda']}")
    print(f"loops          clustering, run lengths and DBSCAN on the CPU, {compiled}")
    print(f"threads        {setup['threads']}, which share the images of a batch when clustering")
    print("other steps    on the device of the features")
    print(f"numba cache    {setup['cache'] or 'none: no folder is writable, so each process compiles again'}")
    # as huggingface_hub finds it
    home = os.environ.get("HF_HOME", Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface")
    print(f"weights        {Path(os.environ.get('HF_HUB_CACHE', Path(home) / 'hub')).expanduser()}")
