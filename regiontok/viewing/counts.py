"""A figure of the number of tokens per image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from regiontok.errors import ShapeError
from regiontok.viewing._canvas import BAR, GREY, PAPER, new_figure, style_plot


def draw_counts(counts: Mapping[str, Sequence[int]], *, paper: Mapping[str, float | None] | None = None) -> Any:
    """Draw one histogram of token counts per source, in rows with a shared axis.

    Args:
        counts: Number of tokens of each image, by source.
        paper: Mean number of tokens in the paper by source, drawn as a line.

    Returns:
        A matplotlib ``Figure``.

    Raises:
        ShapeError: There is no source, or a source has no images.
        MissingDependencyError: matplotlib is not installed.
    """
    if not counts or not all(counts.values()):
        raise ShapeError(f"counts must have one source or more with a number per image; got {dict(counts)}.")
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
        axis.yaxis.get_major_locator().set_params(integer=True, nbins=4)
        style_plot(axis)
    axes[-1].set_xlabel("tokens per image", color=GREY)
    figure.supylabel("images", color=GREY, fontsize=10)
    return figure
