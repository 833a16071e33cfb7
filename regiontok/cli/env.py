"""``regiontok env``: versions, and what runs where."""

import argparse
import importlib.metadata
import os
import platform
from typing import Any

import torch

from regiontok import __version__

_NEEDED = ("torch", "numpy", "scipy", "scikit-learn", "einops", "numba", "pillow", "safetensors")
_OPTIONAL = {
    "timm": "encoders",
    "open_clip_torch": "encoders",
    "transformers": "masks",
    "torchvision": "masks",
    "pyarrow": "masks",
    "scikit-image": "masks",
    "sam2": "sam2",
    "matplotlib": "viz",
}
"""Packages, and the extra that brings each."""


def add_commands(commands: Any) -> None:
    """Add ``env`` to the parser."""
    env = commands.add_parser("env", help="print versions and what runs where")
    env.set_defaults(run=_env)


def _env(_: argparse.Namespace) -> int:
    print(f"regiontok      {__version__}")
    print(f"python         {platform.python_version()} on {platform.platform()}")
    for package in _NEEDED:
        print(f"{package:<14} {importlib.metadata.version(package)}")
    for package, extra in _OPTIONAL.items():
        try:
            print(f"{package:<14} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{package:<14} not installed (pip install 'regiontok[{extra}]')")
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(f"cuda device    {cuda}")
    compiled = (
        "uncompiled, since NUMBA_DISABLE_JIT is set"
        if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0"
        else "compiled by numba"
    )
    print(f"loops          clustering, run lengths and DBSCAN on the CPU, {compiled}")
    print(f"threads        {torch.get_num_threads()}, which share a batch's photos when clustering")
    print("other steps    where the features are")
    return 0
