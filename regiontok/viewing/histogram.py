"""How many tokens photos get from each source, as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from regiontok._require import require
from regiontok.errors import PhotoError, ShapeError

_GREY, _BAR, _PAPER = "#808080", "#4c8bf5", "#e8710a"  # each is seen on a light page and on a dark one


def check_histogram(path: str | Path) -> None:
    """Refuse a picture that `draw_counts` could not write, before the work that it is to show.

    Raises:
        PhotoError: An unknown kind of picture, or a folder that is not there.
        MissingDependencyError: matplotlib is not installed.
    """
    figure = require("matplotlib.figure", extra="viz", distribution="matplotlib").Figure()
    kinds = figure.canvas.get_supported_filetypes()
    kind = Path(path).suffix.lower().removeprefix(".") or "png"
    if kind not in kinds:
        raise PhotoError(f"{path}: a histogram must be one of {', '.join(sorted(kinds))}; got {kind}.")
    if not Path(path).parent.is_dir():
        raise PhotoError(f"{path}: the histogram cannot be written (there is no such folder).")


def draw_counts(
    counts: Mapping[str, Sequence[int]], path: str | Path, *, paper: Mapping[str, float | None] | None = None
) -> None:
    """Draw a histogram of token counts per source, one above the other on one axis, on a transparent ground.

    Args:
        counts: Tokens of every photo, by source.
        path: The picture's file, of a kind that matplotlib writes, such as PNG or SVG.
        paper: The paper's mean number by source, drawn as a line.

    Raises:
        ShapeError: No source, or one without photos.
        PhotoError: A picture that cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    if not counts or not all(counts.values()):
        raise ShapeError(f"counts must have a number per photo for some sources; got {dict(counts)}.")
    figure_of = require("matplotlib.figure", extra="viz", distribution="matplotlib").Figure
    figure = figure_of(figsize=(7, 0.6 + 1.3 * len(counts)), layout="constrained")
    axes = figure.subplots(len(counts), 1, sharex=True, squeeze=False)[:, 0]
    largest = max(*(max(values) for values in counts.values()), *(value or 0 for value in (paper or {}).values()), 1)
    edges = np.linspace(0, largest * 1.05, 43)
    for axis, (source, values) in zip(axes, counts.items(), strict=True):
        axis.hist(values, bins=edges, color=_BAR)
        published = (paper or {}).get(source)
        if published is not None:
            axis.axvline(published, color=_PAPER, linewidth=2)
            axis.annotate(
                f"paper {published:g}",
                (published, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(4, -12),
                textcoords="offset points",
                color=_PAPER,
            )
        axis.set_title(f"{source}: {np.mean(values):.0f} on average", loc="left", color=_GREY, fontsize=10)
        axis.tick_params(colors=_GREY)
        axis.yaxis.get_major_locator().set_params(integer=True, nbins=4)
        for side, spine in axis.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_GREY)
        axis.set_facecolor("none")
    axes[-1].set_xlabel("tokens per photo", color=_GREY)
    figure.supylabel("photos", color=_GREY, fontsize=10)
    try:
        figure.savefig(path, transparent=True, dpi=120)
    except (OSError, ValueError) as error:
        raise PhotoError(f"{path}: the histogram cannot be written ({error}).") from error
