"""Compiled loops. They do not check their arguments; the public functions do.

Arrays are separate arguments, and a row is passed as a matrix and an index: for tuples of arrays and views of rows
numba counts references atomically, which takes as long as the dot products. Comparisons with -1 are written ``< 0``, so
that the compiler can omit the handling of negative indices.
"""

from collections.abc import Callable
from typing import Any

import numba

_REASSOCIATE = {"reassoc", "contract", "nsz"}


def compiled(function: Callable[..., Any] | None = None, *, reassociate: bool = False) -> Any:
    """Compile a serial loop on its first call, without the GIL, and cache it on disk if a folder is writable.

    Args:
        function: The loop.
        reassociate: Allow sums to be reordered, so that they use SIMD. Use it only for dot products, because it may
            change comparisons. Unlike numba's ``fastmath=True`` it preserves NaN and infinity.
    """
    if function is None:
        return lambda function: compiled(function, reassociate=reassociate)
    options: dict[str, Any] = {"nogil": True, "fastmath": _REASSOCIATE if reassociate else False}
    try:
        kernel = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no folder for its cache; compile in memory
        return numba.njit(**options)(function)
    cache = getattr(kernel, "_cache", None)  # missing with NUMBA_DISABLE_JIT
    if cache is not None:
        cache.load_overload = _or_none(cache.load_overload)
        cache.save_overload = _or_none(cache.save_overload)
    return kernel


def cache_folder(kernel: Any) -> str | None:
    """Return the cache folder of a compiled loop; None if it is compiled in memory."""
    cache = getattr(kernel, "_cache", None)
    folder = getattr(cache, "cache_path", None)
    return None if folder is None else str(folder)


def _or_none(access: Callable[..., Any]) -> Callable[..., Any]:
    """Return a cache access that ignores errors, so that a full disk or a damaged file costs only time."""

    def attempt(*args: Any) -> Any:
        try:
            return access(*args)
        except Exception:  # unpickling damaged bytes raises many exception types
            return None

    return attempt
