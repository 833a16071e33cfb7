"""Names that the docstrings' examples may use without importing them."""

import pytest
import torch
from PIL import Image

import regiontok
from regiontok import encoders


@pytest.fixture(autouse=True)
def _names(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace.update({name: getattr(regiontok, name) for name in regiontok.__all__})
    doctest_namespace.update(torch=torch, Image=Image, Encoder=encoders.Encoder)
