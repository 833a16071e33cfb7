"""A figure of the quality of regions by their number."""

from collections.abc import Mapping, Sequence
from typing import Any

from regiontok.errors import ShapeError
from regiontok.viewing._canvas import GREY, new_figure, style_plot

_COLOURS = {"grid": GREY, "centroid": "#4c8bf5", "average": "#b05cc8", "ward": "#e8710a"}
_OTHER_COLOURS = ("#2f9e6e", "#c8a415", "#d0475a")
_PANELS = (
    ("explained_variance", "explained variance, %"), ("singleton_fraction", "regions of one patch, %"),
    ("largest_fraction", "largest region, % of patches"),
    ("miou", "mean IoU of objects, %"), ("boundary_recall", "boundary recall of objects, %"),
)  # fmt: skip


def draw_partitions(scores: Mapping[str, Sequence[Any]]) -> Any:
    """Draw scores of regions by the number of regions, with a line per source and a panel per score.

    Args:
        scores: `regiontok.evaluation.partition.PartitionScores` by source, in ascending order of the number of regions.
            A score that is None in all of them has no panel.

    Returns:
        A matplotlib ``Figure``.

    Raises:
        ShapeError: There is no source, or a source has no scores.
        MissingDependencyError: matplotlib is not installed.
    """
    if not scores or not all(scores.values()):
        raise ShapeError(f"scores must have one source or more with scores; got {dict(scores)}.")
    every_score = [score for source_scores in scores.values() for score in source_scores]
    panels = [
        (name, label) for name, label in _PANELS if any(getattr(score, name) is not None for score in every_score)
    ]
    figure = new_figure(figsize=(3.2 * len(panels), 3.2))
    all_axes = figure.subplots(1, len(panels))
    other_colours = iter(_OTHER_COLOURS * len(scores))
    colours = {source: _COLOURS.get(source) or next(other_colours) for source in scores}
    for axes, (name, label) in zip(all_axes, panels, strict=True):
        for source, source_scores in scores.items():
            counts = [score.num_regions for score in source_scores]
            values = [100 * getattr(score, name) for score in source_scores]
            style = "o-" if len(source_scores) > 1 else "D"
            axes.plot(counts, values, style, color=colours[source], label=source, markersize=4)
        axes.set_xlabel("regions", color=GREY)
        axes.set_title(label, color=GREY, fontsize=9)
        axes.set_ylim(bottom=0)
        style_plot(axes)
        axes.tick_params(labelsize=8)
    all_axes[0].legend(frameon=False, labelcolor=GREY, fontsize=8)
    return figure
