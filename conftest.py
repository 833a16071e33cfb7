"""Names that the docstrings' examples may use without importing them."""

import importlib.util
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side, one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

os.environ.setdefault("PYTEST_TIMEOUT", "600")  # seconds for each test, if pytest-timeout is installed

import pytest
import torch
from PIL import Image

import regiontok
from regiontok import encoders

if importlib.util.find_spec("lmms_eval") is None:  # it has an environment of its own, where a test runs these
    collect_ignore_glob = ["regiontok/evaluation/lmms.py", "regiontok/evaluation/tasks/*.py"]
else:
    collect_ignore_glob = []
if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob += ["regiontok/adapters/vllm/[a-z]*.py"]


@pytest.fixture(autouse=True)
def _names(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace.update({name: getattr(regiontok, name) for name in regiontok.__all__})
    doctest_namespace.update(torch=torch, Image=Image, Encoder=encoders.Encoder)
