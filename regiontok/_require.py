"""The one place that imports optional packages."""

import contextlib
import importlib
import importlib.metadata
from types import ModuleType

from regiontok.errors import BrokenDependencyError, MissingDependencyError, RegiontokError


def install_command(package: str, extra: str) -> str:
    """Return the command that installs a package, which an extra of regiontok has."""
    if package == "sam2":  # it is built from source, against the torch that is installed
        return "SAM2_BUILD_CUDA=0 pip install --no-build-isolation sam2"
    return f"pip install 'regiontok[{extra}]'" if extra else f"pip install {package}"


def require(module: str, *, extra: str, distribution: str | None = None) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: Dotted name to import.
        extra: The extra of regiontok that installs the package.
        distribution: Name of the package on the package index, if it is not the module's.

    Raises:
        MissingDependencyError: The package is not installed.
        BrokenDependencyError: It is installed but cannot be imported, or a package that it needs cannot.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except RegiontokError:
        raise
    except ModuleNotFoundError as error:
        if error.name != package:
            raise explain_import(error, package) from error
        raise MissingDependencyError(
            f"{distribution or package} is needed here and is not installed. Run: {install_command(package, extra)}"
        ) from error
    except Exception as error:  # a package built for another version of torch or NumPy raises errors of any kind
        raise explain_import(error, package) from error


def check_importable(package: str) -> None:
    """Check that a package can be imported if it is installed.

    Call it before a library that imports the package lazily, and hides why that failed.

    Raises:
        BrokenDependencyError: It is installed but cannot be imported.
    """
    with contextlib.suppress(MissingDependencyError):
        require(package, extra="")


def explain_import(error: BaseException, package: str) -> BrokenDependencyError:
    """Return the error of a failed import, with the package at fault, the cause and the remedy.

    The package at fault is the innermost one on the way to the error that cannot be imported by itself either.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    for name in [*_packages_on_the_way(error), package]:
        try:
            importlib.import_module(name)
        except Exception as own:
            package, error = name, own
            break
    cause = (str(error).strip().splitlines() or [""])[0].rstrip(".") or "no reason given"
    distribution, version = _distribution(package)
    if missing is not None and missing.partition(".")[0] != package:
        remedy = f"Run: pip install {_distribution(missing.partition('.')[0])[0]}"
    elif package == "torchvision":
        torch = _distribution("torch")[1]
        remedy = (
            f"It must be built for the installed torch{torch}. Run: pip install --force-reinstall torch torchvision"
        )
    else:
        remedy = f"Run: pip install --force-reinstall {distribution}"
    return BrokenDependencyError(
        f"{distribution}{version} is installed but cannot be imported ({type(error).__name__}: {cause}). {remedy}"
    )


def _packages_on_the_way(error: BaseException) -> list[str]:
    """Return the top-level packages whose code led to an error, the innermost first."""
    names: dict[str, None] = {}
    step = error.__traceback__
    while step is not None:
        names[str(step.tb_frame.f_globals.get("__name__")).partition(".")[0]] = None
        step = step.tb_next
    return [name for name in reversed(names) if name not in ("importlib", "regiontok", "__main__", "None")]


def _distribution(package: str) -> tuple[str, str]:
    """Return the name of the distribution of a package, and its version with a blank before it if it is known."""
    names = importlib.metadata.packages_distributions().get(package, [package])
    name = package if package in names else names[0]
    try:
        return name, f" {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return name, ""
