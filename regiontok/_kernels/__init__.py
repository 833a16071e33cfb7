"""Compiled loops. Private and trusting: the public functions check their arguments before they call in here.

Arrays are passed one by one, and rows as a matrix and a number: tuples of arrays and views of rows cost numba atomic
counts of references, about as much as the dot products themselves. Tests for -1 are written ``< 0``, which also tells
the compiler that an index needs no wrapping around.
"""

from collections.abc import Callable
from typing import Any

import numba

_REASSOCIATE = {"reassoc", "contract", "nsz"}


def compiled(function: Callable[..., Any] | None = None, *, reassociate: bool = False) -> Any:
    """Compile a serial loop on its first call, without the GIL, and keep it on disk where a folder can be written.

    Args:
        function: The loop.
        reassociate: Let sums be reordered so that they use SIMD. Only for dot products: it must not touch a
            comparison, and (unlike numba's ``fastmath=True``) it keeps NaN and infinity as they are.
    """
    if function is None:
        return lambda function: compiled(function, reassociate=reassociate)
    options: dict[str, Any] = {"nogil": True, "fastmath": _REASSOCIATE if reassociate else False}
    try:
        kernel = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no folder for its cache; compile in memory
        return numba.njit(**options)(function)
    cache = getattr(kernel, "_cache", None)  # none where NUMBA_DISABLE_JIT leaves the loop as it is
    if cache is not None:
        cache.load_overload = _or_none(cache.load_overload)
        cache.save_overload = _or_none(cache.save_overload)
    return kernel


def cache_folder(kernel: Any) -> str | None:
    """Return the folder of a compiled loop's cache; None if there is none, and the loop is compiled in memory."""
    cache = getattr(kernel, "_cache", None)
    folder = getattr(cache, "cache_path", None)
    return None if folder is None else str(folder)


def _or_none(access: Callable[..., Any]) -> Callable[..., Any]:
    """An access to the cache that fails as if nothing were there: a full disk or a damaged file costs only time."""

    def attempt(*args: Any) -> Any:
        try:
            return access(*args)
        except Exception:  # unpickling damaged bytes raises all kinds
            return None

    return attempt
