"""Masks of one image as runs, the form that all other forms are read into; and checks of what comes with masks."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regiontok._checks import check_readable
from regiontok.errors import DTypeError
from regiontok.geometry import Size

MOST_LABELS = 2**63 - 1


class Runs(NamedTuple):
    """Masks of one image as run-length encoding, with further values per mask.

    Attributes:
        size: Height and width in pixels.
        runs: ``(N,)`` uint32: run lengths of all masks, column by column, background first.
        offsets: ``(M + 1,)`` int64: index of the first run of each mask, and the number of runs.
        values: Arrays ``(M,)`` by name, as far as they are given: ``scores``, ``stability``, ``ids``, ``categories``.
    """

    size: Size
    runs: np.ndarray
    offsets: np.ndarray
    values: dict[str, np.ndarray]


def take(runs: np.ndarray, offsets: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the runs and offsets of some masks, in the order of ``index``."""
    lengths = np.diff(offsets)[index]
    ends = np.concatenate([[0], lengths.cumsum()])
    within = np.arange(ends[-1]) - np.repeat(ends[:-1], lengths)
    return runs[np.repeat(offsets[index], lengths) + within], ends


def to_numpy(name: str, value: Any, *, fill: int | None = None) -> np.ndarray:
    """Return an array or tensor as an array; masked entries become ``fill``.

    Raises:
        DTypeError: Another type, a tensor without readable values, or masked entries while ``fill`` is None.
    """
    if isinstance(value, Tensor):
        check_readable(name, value)
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.is_masked(value):
            if fill is None:
                raise DTypeError(f"{name} has masked entries, which have no value. Fill them first: array.filled(...).")
            value = value if fill == 0 else value.astype(np.int64)
            return value.filled(fill)
        return value.data
    if isinstance(value, np.ndarray):
        return value
    raise DTypeError(f"{name} must be an array or a tensor; got {type(value).__name__}.")


def to_numbers(name: str, values: Any) -> np.ndarray:
    """Return numbers as ``(M,)`` float32."""
    try:
        with np.errstate(over="ignore"):  # numbers beyond float32 become infinite
            array = np.asarray(to_numpy(name, values) if isinstance(values, Tensor) else values, np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise DTypeError(f"{name} must be numbers, one per mask; got {describe(values)}.") from error
    return array


def describe(value: Any) -> str:
    """Return a short description of a value, for errors."""
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, list(value)[:6]))}" if value else "an empty dict"
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}{'...' * (len(text) > 60)}"


def whole_number(value: Any) -> Any:
    """Return an id as an integer, also from a float such as 3.0; None for other values."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int | np.integer) and not isinstance(value, bool) else None


def to_int64(name: str, values: Sequence[Any]) -> np.ndarray:
    """Return integers as ``(M,)`` int64."""
    array = np.array(values) if len(values) else np.empty(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu" or (len(array) and int(array.max()) > MOST_LABELS):
        raise DTypeError(f"{name} must be whole numbers of 64 bits; got {describe(list(values))}.")
    return array.astype(np.int64)
