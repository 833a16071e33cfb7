"""Compiled loops. They do not check their arguments; the public functions do.

Arrays are separate arguments, and a row is passed as a matrix and an index: for tuples of arrays and views of rows
numba counts references atomically, which takes as long as the dot products. Comparisons with -1 are written ``< 0``, so
that the compiler can omit the handling of negative indices.
"""

from collections.abc import Callable
from functools import cached_property, update_wrapper
from typing import Any

_REASSOCIATE = {"reassoc", "contract", "nsz"}


class Loop:
    """A serial loop that numba compiles on the first call, without the GIL, and caches if a folder is writable.

    numba is imported on the first call too: it takes time, and some programs, such as the CPU worker of vLLM, cannot
    start if it was imported before.
    """

    def __init__(self, function: Callable[..., Any], *, reassociate: bool) -> None:
        update_wrapper(self, function)
        self._function = function
        self._options: dict[str, Any] = {"nogil": True, "fastmath": _REASSOCIATE if reassociate else False}

    def __call__(self, *args: Any) -> Any:
        """Return the results of the loop."""
        return self.kernel(*args)

    @property
    def signatures(self) -> list[Any]:
        """The types of arguments for which the loop is compiled."""
        return list(self.kernel.signatures) if "kernel" in vars(self) else []

    @cached_property
    def kernel(self) -> Any:
        """The loop as numba compiles it."""
        import numba  # noqa: PLC0415  see above

        names = self._function.__globals__
        for name in self._function.__code__.co_names:  # numba knows only its own functions
            loop = names.get(name)  # read once: another thread may replace it meanwhile
            if isinstance(loop, Loop):
                names[name] = loop.kernel
        try:
            kernel = numba.njit(cache=True, **self._options)(self._function)
        except RuntimeError:  # numba found no folder for its cache; compile in memory
            return numba.njit(**self._options)(self._function)
        cache = getattr(kernel, "_cache", None)  # missing with NUMBA_DISABLE_JIT
        if cache is not None:
            cache.load_overload = _or_none(cache.load_overload)
            cache.save_overload = _or_none(cache.save_overload)
        return kernel


def compiled(function: Callable[..., Any] | None = None, *, reassociate: bool = False) -> Any:
    """Return a `Loop`.

    Args:
        function: The loop.
        reassociate: Allow sums to be reordered, so that they use SIMD. Use it only for dot products, because it may
            change comparisons. Unlike numba's ``fastmath=True`` it preserves NaN and infinity.
    """
    if function is None:
        return lambda function: compiled(function, reassociate=reassociate)
    return Loop(function, reassociate=reassociate)


def cache_folder(loop: Loop) -> str | None:
    """Return the cache folder of a loop; None if it is compiled in memory."""
    cache = getattr(loop.kernel, "_cache", None)
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
