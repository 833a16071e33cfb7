"""How many tokens images get from each source, as a figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from regiontok.errors import ShapeError
from regiontok.viewing._canvas import BAR, GREY, PAPER, new_figure


def draw_counts(counts: Mapping[str, Sequence[int]], *, paper: Mapping[str, float | None] | None = None) -> Any:
    """Draw a histogram of token counts per source, one above the other on one axis.

    Args:
        counts: Tokens of every image, by source.
        paper: The paper's mean number by source, drawn as a line.

    Returns:
        A matplotlib ``Figure``.

    Raises:
        ShapeError: No source, or one without images.
        MissingDependencyError: matplotlib is not installed.
    """
    if not counts or not all(counts.values()):
        raise ShapeError(f"counts must have a number per image for some sources; got {dict(counts)}.")
    figure = new_figure(figsize=(7, 0.6 + 1.3 * len(counts)))
    axes = figure.subplots(len(counts), 1, sharex=True, squeeze=False)[:, 0]
    largest = max(*(max(values) for values in counts.values()), *(value or 0 for value in (paper or {}).values()), 1)
    edges = np.linspace(0, largest * 1.05, 43)
    for axis, (source, values) in zip(axes, counts.items(), strict=True):
        axis.hist(values, bins=edges, color=BAR)
        published = (paper or {}).get(source)
        if published is not None:
            axis.axvline(published, color=PAPER, linewidth=2)
            axis.annotate(
                f"paper {published:g}",
                (published, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(4, -12),
                textcoords="offset points",
                color=PAPER,
            )
        axis.set_title(f"{source}: {np.mean(values):.0f} on average", loc="left", color=GREY, fontsize=10)
        axis.tick_params(colors=GREY)
        axis.yaxis.get_major_locator().set_params(integer=True, nbins=4)
        for side, spine in axis.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(GREY)
        axis.set_facecolor("none")
    axes[-1].set_xlabel("tokens per image", color=GREY)
    figure.supylabel("images", color=GREY, fontsize=10)
    return figure
