"""Figures of matplotlib that are read on a light page and on a dark one, and how they are saved."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from regiontok._files import check_output, written
from regiontok._require import require
from regiontok.errors import OutputError

GREY, BAR, PAPER = "#808080", "#4c8bf5", "#e8710a"
"""Text and axes, bars, and what is the paper's: each is seen on a light page and on a dark one."""


def new_figure(**options: Any) -> Any:
    """An empty figure that no window knows of, so that a long run keeps none of them."""
    return require("matplotlib.figure", extra="viz", distribution="matplotlib").Figure(layout="constrained", **options)


def plain(axes: Any) -> None:
    """Axes that only hold a picture."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_facecolor("none")


def check_figure(path: str | Path) -> None:
    """Refuse a file that `save_figure` could not write, before the work that it is to show.

    Raises:
        OutputError: An unknown kind of picture, or a file that cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    kinds = new_figure().canvas.get_supported_filetypes()
    kind = _kind(path)
    if kind not in kinds:
        raise OutputError(f"{path}: a figure must be one of {', '.join(sorted(kinds))}; got {kind}.")
    check_output(path)


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure, on a transparent ground, as PNG, SVG, PDF or whatever else the name says.

    Raises:
        OutputError: It cannot be written.
    """
    kind = _kind(path)
    with written(path) as temporary:
        try:
            figure.savefig(temporary, format=kind, transparent=True, dpi=150, metadata=_metadata(kind))
        except ValueError as error:
            raise OutputError(f"{path}: the figure cannot be written ({error}).") from error


def is_figure(path: str | Path) -> bool:
    """Whether a picture is one that `save_figure` wrote."""
    try:
        with Image.open(path) as picture:
            return str(picture.info.get("Software", "")).startswith("regiontok")
    except Exception:  # Pillow's decoders raise all kinds of errors on damaged files
        return False


def _kind(path: str | Path) -> str:
    return Path(path).suffix.lower().removeprefix(".") or "png"


def _metadata(kind: str) -> dict[str, str] | None:
    """Who made a picture, for the only kind that is read again as an image."""
    return {"Software": f"regiontok {version('regiontok')}"} if kind == "png" else None
