"""The one place that imports optional packages."""

import importlib
from types import ModuleType

from regiontok.errors import MissingDependencyError


def require(module: str, *, extra: str, distribution: str | None = None) -> ModuleType:
    """Import an optional package, or say how to get it.

    A package that is installed but broken raises its own error: calling it absent would send the user the wrong way.

    Args:
        module: Dotted name to import.
        extra: The extra of regiontok that brings it.
        distribution: Its name on the package index where that differs from the module's.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingDependencyError(
            f"{distribution or package} is needed here and is not installed. Run: pip install 'regiontok[{extra}]'"
        ) from error
