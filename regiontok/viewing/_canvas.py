"""Matplotlib figures for light and dark pages: panels of images, colour bars, and saving."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regiontok._files import atomic_write, check_output
from regiontok._require import require
from regiontok.errors import OutputError

GREY, BAR, PAPER = "#808080", "#4c8bf5", "#e8710a"
"""Colours of text and axes, of bars, and of the paper's results. All are legible on light and on dark pages."""
HEAT = "inferno"
"""Colour map of norms and attention."""
LONGEST_SIDE = 512
"""Maximum length of the longer side of an image in a panel, in pixels."""
_PANEL_INCHES = 2.4
"""Length of the longer side of a panel."""


def new_figure(**options: Any) -> Any:
    """Create an empty figure outside of pyplot, which would keep all figures in memory."""
    return require("matplotlib.figure", extra="viz", distribution="matplotlib").Figure(layout="constrained", **options)


def new_panels(rows: int, cols: int, image: Image.Image) -> tuple[Any, np.ndarray]:
    """Create a figure of ``rows x cols`` panels with the aspect ratio of an image, and return it with its axes."""
    longest = max(image.size)
    width, height = _PANEL_INCHES * image.width / longest, _PANEL_INCHES * image.height / longest
    figure = new_figure(figsize=(cols * (width + 0.1) + 0.4, rows * (height + 0.15) + 0.3))
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    grid = figure.subplots(rows, cols, squeeze=False)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_facecolor("none")
    return figure, grid


def show(axes: Any, pixels: np.ndarray, **options: Any) -> Any:
    """Show pixels ``(height, width)`` or ``(height, width, 3)`` in a panel."""
    return axes.imshow(pixels, interpolation="antialiased", **options)


def style_plot(axes: Any) -> None:
    """Show only the left and bottom axes of a plot, on a transparent background."""
    axes.tick_params(colors=GREY)
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)


def add_colour_bar(figure: Any, mappable: Any, axes: Any, label: str, *, font_size: int, **options: Any) -> None:
    """Add a labelled colour bar to one or several axes of a figure."""
    bar = figure.colorbar(mappable, ax=axes, pad=0.02, **options)
    bar.set_label(label, color=GREY, fontsize=font_size)
    bar.ax.tick_params(colors=GREY, labelsize=font_size - 1)
    bar.outline.set_visible(False)


def check_figure(path: str | Path) -> None:
    """Check that `save_figure` can write a file, before the figure is computed.

    Raises:
        OutputError: The format is unknown, or the file cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    formats = new_figure().canvas.get_supported_filetypes()
    file_format = _format(path)
    if file_format not in formats:
        raise OutputError(f"{path}: a figure must be one of {', '.join(sorted(formats))}; got {file_format}.")
    check_output(path)


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure with a transparent background, in the format of the file extension such as PNG, SVG or PDF.

    Raises:
        OutputError: The file cannot be written.
    """
    file_format = _format(path)
    with atomic_write(path) as temporary:
        try:
            figure.savefig(temporary, format=file_format, transparent=True, dpi=150, metadata=_metadata(file_format))
        except ValueError as error:
            raise OutputError(f"{path}: the figure cannot be written ({error}).") from error


def is_figure(path: str | Path) -> bool:
    """Return whether a file is a PNG that `save_figure` wrote."""
    try:
        with Image.open(path) as image:
            return str(image.info.get("Software", "")).startswith("regiontok")
    except Exception:  # Pillow's decoders raise errors of any type for damaged files
        return False


def _format(path: str | Path) -> str:
    return Path(path).suffix.lower().removeprefix(".") or "png"


def _metadata(file_format: str) -> dict[str, str] | None:
    """Return metadata that mark a PNG as a figure, because only PNG files could be read as input images."""
    return {"Software": f"regiontok {version('regiontok')}"} if file_format == "png" else None
