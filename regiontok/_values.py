"""Checks of single values. This module imports neither torch nor NumPy, so that the command line starts quickly."""

import math
from collections.abc import Iterable
from numbers import Integral, Number, Real
from typing import Any

from regiontok.errors import DTypeError, ValueRangeError


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Check that an option has one of its values.

    Raises:
        ValueRangeError: It has another value.
    """
    choices = list(choices)
    if not isinstance(value, str | Number | None) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueRangeError(f"{name} must be one of {listed}; got {value!r}.")


def check_integer(name: str, value: Any, *, minimum: int = 1) -> int:
    """Return a whole number as a Python integer, which cannot overflow.

    Raises:
        DTypeError: Not a whole number.
        ValueRangeError: Below ``minimum``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise DTypeError(f"{name} must be a whole number; got {value!r}.")
    if value < minimum:
        raise ValueRangeError(f"{name} must be at least {minimum}; got {value}.")
    return int(value)


def check_number(name: str, value: Any, *, low: float, high: float) -> float:
    """Return a number in ``[low, high]`` as a Python float.

    Raises:
        DTypeError: Not a number.
        ValueRangeError: Outside the range, or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise DTypeError(f"{name} must be a number; got {value!r}.")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond the range of floating point
        number = math.nan
    if not low <= number <= high:
        limits = f"in [{low:g}, {high:g}]" if high < math.inf else f"at least {low:g}"
        raise ValueRangeError(f"{name} must be {limits}; got {str(value)[:40]}.")
    return number
