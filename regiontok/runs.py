"""Masks of one image as run-length encoding, to which all mask formats are converted, and checks of mask values."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regiontok.batch import check_readable
from regiontok.errors import DTypeError, ShapeError
from regiontok.geometry import Size

MAX_LABEL = 2**63 - 1
Scores = Sequence[float] | np.ndarray | Tensor


class Runs(NamedTuple):
    """Masks of one image as run-length encoding, with optional values per mask.

    Attributes:
        size: Height and width in pixels.
        runs: ``(N,)`` uint32: run lengths of all masks, column by column, background first.
        offsets: ``(M + 1,)`` int64: index of the first run of each mask, and the number of runs.
        values: Optional arrays ``(M,)`` by name: ``scores``, ``stability``, ``ids``, ``categories``.
    """

    size: Size
    runs: np.ndarray
    offsets: np.ndarray
    values: dict[str, np.ndarray]


def select_masks(runs: np.ndarray, offsets: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the runs and offsets of the masks ``index``, in this order."""
    lengths = np.diff(offsets)[index]
    ends = np.concatenate([[0], lengths.cumsum()])
    within = np.arange(ends[-1]) - np.repeat(ends[:-1], lengths)
    return runs[np.repeat(offsets[index], lengths) + within], ends


def to_numpy(name: str, value: Any, *, fill: int | None = None) -> np.ndarray:
    """Return an array or tensor as an array; masked entries become ``fill``.

    Raises:
        DTypeError: ``value`` is not an array or tensor, its values cannot be read, or it has masked entries and
            ``fill`` is None.
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
    """Return a short description of a value for error messages."""
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, list(value)[:6]))}" if value else "an empty dict"
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}{'...' * (len(text) > 60)}"


def whole_number(value: Any) -> Any:
    """Return an integer, also for a float such as 3.0; None if the value is not a whole number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int | np.integer) and not isinstance(value, bool) else None


def to_int64(name: str, values: Sequence[Any]) -> np.ndarray:
    """Return integers as ``(M,)`` int64."""
    array = np.array(values) if len(values) else np.empty(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu" or (len(array) and int(array.max()) > MAX_LABEL):
        raise DTypeError(f"{name} must be whole numbers of 64 bits; got {describe(list(values))}.")
    return array.astype(np.int64)


def to_tensor(name: str, value: Any) -> Tensor:
    """Convert an array with any strides and byte order to a tensor; tensors are returned unchanged."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        kinds = {"b": np.bool_, "f": np.float32}
        if value.dtype.kind not in "biuf":
            raise DTypeError(f"{name} must be numbers; got an array of {value.dtype}.")
        return torch.from_numpy(value.astype(kinds.get(value.dtype.kind, np.int64)))
    raise DTypeError(f"{name} must be an array or a tensor; got {type(value).__name__}.")


def check_scores(count: int, scores: Scores | None, stability: Scores | None) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and stability scores as ``(count,)`` float32; NaN without scores.

    Raises:
        DTypeError, ShapeError: ``scores`` or ``stability`` does not have one number per mask.
    """
    checked = []
    for name, values in (("scores", scores), ("stability", stability)):
        array = np.full(count, np.nan, np.float32) if values is None else to_numbers(name, values)
        if array.shape != (count,):
            raise ShapeError(f"{name} must be ({count},), one value per mask; got {array.shape}.")
        checked.append(array)
    return checked[0], checked[1]
