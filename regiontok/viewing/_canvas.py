"""Figures of matplotlib that are read on a light page and on a dark one, and how they are saved."""

from pathlib import Path
from typing import Any

from regiontok._require import require
from regiontok.errors import PhotoError

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
        PhotoError: An unknown kind of picture, or a folder that is not there.
        MissingDependencyError: matplotlib is not installed.
    """
    kinds = new_figure().canvas.get_supported_filetypes()
    kind = Path(path).suffix.lower().removeprefix(".") or "png"
    if kind not in kinds:
        raise PhotoError(f"{path}: a figure must be one of {', '.join(sorted(kinds))}; got {kind}.")
    if not Path(path).parent.is_dir():
        raise PhotoError(f"{path}: the figure cannot be written (there is no such folder).")


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure, on a transparent ground, as PNG, SVG, PDF or whatever else the name says.

    Raises:
        PhotoError: It cannot be written.
    """
    try:
        figure.savefig(path, transparent=True, dpi=150)
    except (OSError, ValueError) as error:
        raise PhotoError(f"{path}: the figure cannot be written ({error}).") from error
