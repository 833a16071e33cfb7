"""Import optional packages, with errors that say how to install or repair them."""

import contextlib
import importlib
import importlib.metadata
from types import ModuleType

from regiontok.errors import BrokenDependencyError, MissingDependencyError, RegiontokError

TESTED_VERSIONS = {
    "torch": "2.14",
    "torchvision": "0.29",
    "numpy": "2.4",
    "scipy": "1.17",
    "scikit-learn": "1.9",
    "scikit-image": "0.26",
    "numba": "0.68",
    "timm": "1.0.31",
    "open_clip_torch": "3.3",
    "transformers": "5.24",
    "accelerate": "1.15",
    "peft": "0.21",
    "trl": "1.16",
    "bitsandbytes": "0.50",
    "sam2": "1.1",
    "pyarrow": "26.0",
    "datasets": "5.2",
    "ray": "2.60",
    "matplotlib": "3.11",
    "pycocotools": "2.0.11",
    "av": "18.1",
    "lmms-eval": "0.7.3",
    "vllm": "0.32",
    "sglang": "0.5.23",
}
"""The latest version of each package that the tests have run with. The lowest versions are in pyproject.toml."""


def install_command(package: str, extra: str) -> str:
    """Return the command that installs a package, by an extra of regiontok if there is one."""
    if package == "sam2":  # built from source against the installed torch
        return "SAM2_BUILD_CUDA=0 pip install --no-build-isolation sam2"
    return f"pip install 'regiontok[{extra}]'" if extra else f"pip install {package}"


def require(module: str, *, extra: str, distribution: str | None = None) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: Dotted name of the module.
        extra: The extra of regiontok that installs the package.
        distribution: Name of the package on the package index, if it differs from the top-level module.

    Raises:
        MissingDependencyError: The package is not installed.
        BrokenDependencyError: The package, or one of its dependencies, is installed but cannot be imported.
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
            f"{distribution or package} is needed here but is not installed. Run: {install_command(package, extra)}"
        ) from error
    except Exception as error:  # a package built for another version of torch or NumPy may raise any error
        raise explain_import(error, package) from error


def check_importable(package: str) -> None:
    """Check that a package can be imported if it is installed.

    Call it before a library that imports the package lazily and hides the cause of a failed import.

    Raises:
        BrokenDependencyError: The package is installed but cannot be imported.
    """
    with contextlib.suppress(MissingDependencyError):
        require(package, extra="")


def explain_import(error: BaseException, package: str) -> BrokenDependencyError:
    """Return an error that names the package that failed to import, the cause and the remedy.

    The package is the innermost one in the traceback that also fails when it is imported alone.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    for name in [*_packages_in_traceback(error), package]:
        try:
            importlib.import_module(name)
        except Exception as import_error:
            package, error = name, import_error
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


def _packages_in_traceback(error: BaseException) -> list[str]:
    """Return the top-level packages in the traceback of an error, innermost first."""
    names: dict[str, None] = {}
    traceback = error.__traceback__
    while traceback is not None:
        names[str(traceback.tb_frame.f_globals.get("__name__")).partition(".")[0]] = None
        traceback = traceback.tb_next
    return [name for name in reversed(names) if name not in ("importlib", "regiontok", "__main__", "None")]


def _distribution(package: str) -> tuple[str, str]:
    """Return the distribution of a package and its version with a leading space, or an empty version if unknown."""
    names = importlib.metadata.packages_distributions().get(package, [package])
    name = package if package in names else names[0]
    try:
        return name, f" {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return name, ""
