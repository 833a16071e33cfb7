"""Pictures of images, regions, features and attention.

    picture    an image with its regions, without matplotlib
    counts     tokens per image from each source
    partitions how well regions of several sources stand for images
    figures    the paper's figures, for any image, encoder and model
    page       a page to explore an image's regions in a browser

Figures are matplotlib's: show them in a notebook, or write them with `save_figure`.
"""

from regiontok.viewing._canvas import check_figure, is_figure, save_figure
from regiontok.viewing.counts import draw_counts
from regiontok.viewing.figures import (
    Attention,
    Seen,
    draw_attention,
    draw_encoders,
    draw_features,
    draw_norms,
    draw_sources,
    see,
)
from regiontok.viewing.page import make_page, write_page
from regiontok.viewing.partitions import draw_partitions
from regiontok.viewing.picture import draw_regions

__all__ = [
    "Attention",
    "Seen",
    "check_figure",
    "draw_attention",
    "draw_counts",
    "draw_encoders",
    "draw_features",
    "draw_norms",
    "draw_partitions",
    "draw_regions",
    "draw_sources",
    "is_figure",
    "make_page",
    "save_figure",
    "see",
    "write_page",
]
