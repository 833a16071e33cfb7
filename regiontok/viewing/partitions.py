"""How well regions of several sources stand for images, as a figure."""

from collections.abc import Mapping, Sequence
from typing import Any

from regiontok.errors import ShapeError
from regiontok.viewing._canvas import GREY, new_figure

_COLOURS = {"grid": GREY, "centroid": "#4c8bf5", "average": "#b05cc8", "ward": "#e8710a"}
_MORE = ("#2f9e6e", "#c8a415", "#d0475a")
_PANELS = (
    ("kept", "squared deviation kept, %"), ("single", "regions of one patch, %"),
    ("largest", "largest region, % of patches"),
    ("miou", "objects' mean IoU, %"), ("boundary_recall", "objects' boundaries met, %"),
)  # fmt: skip


def draw_partitions(scores: Mapping[str, Sequence[Any]]) -> Any:
    """Draw scores of regions against their number, a line per source and a panel per score.

    Args:
        scores: By source, `regiontok.evaluation.partition.PartitionScores` by rising number of regions. Scores that are
            None in all of them have no panel.

    Returns:
        A matplotlib ``Figure``.

    Raises:
        ShapeError: No source, or one without scores.
        MissingDependencyError: matplotlib is not installed.
    """
    if not scores or not all(scores.values()):
        raise ShapeError(f"scores must hold some for every source; got {dict(scores)}.")
    every = [one for some in scores.values() for one in some]
    panels = [(name, label) for name, label in _PANELS if any(getattr(one, name) is not None for one in every)]
    figure = new_figure(figsize=(3.2 * len(panels), 3.2))
    more = iter(_MORE * len(scores))
    colours = {source: _COLOURS.get(source) or next(more) for source in scores}
    for number, (axes, (name, label)) in enumerate(zip(figure.subplots(1, len(panels)), panels, strict=True)):
        for source, some in scores.items():
            places = [one.regions for one in some]
            values = [100 * getattr(one, name) for one in some]
            style = "o-" if len(some) > 1 else "D"
            axes.plot(places, values, style, color=colours[source], label=source, markersize=4)
        axes.set_xlabel("regions", color=GREY)
        axes.set_title(label, color=GREY, fontsize=9)
        axes.set_ylim(bottom=0)
        axes.tick_params(colors=GREY, labelsize=8)
        axes.set_facecolor("none")
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(GREY)
        if number == 0:
            axes.legend(frameon=False, labelcolor=GREY, fontsize=8)
    return figure
