"""Functions that ``torch.compile`` does not compile."""

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

_F = TypeVar("_F", bound=Callable[..., Any])


def uncompiled(function: _F) -> _F:
    """Exclude a function from ``torch.compile``, because grouping runs compiled loops with ragged results.

    ``torch.compiler.disable`` imports the compiler, which is slow, so it is called only once the compiler is loaded.
    """
    disabled: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal disabled
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if disabled is None:
            disabled = torch.compiler.disable(function)
        return disabled(*args, **kwargs)

    return cast(_F, call)
