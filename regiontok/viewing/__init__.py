"""Drawings of images, regions, features and attention.

    picture     an image with its regions, without matplotlib
    clip        the regions of a clip, as a strip of frames or an animation
    counts      number of tokens per image of each source
    partitions  quality of the regions of several sources
    figures     the figures of the paper for any image and encoder
    attention   the attention of an answer to regions
    page        an interactive page with the regions of an image

Figures are matplotlib figures. Show them in a notebook, or write them with `save_figure`.
"""

from regiontok.viewing._canvas import check_figure, is_figure, save_figure
from regiontok.viewing.attention import Attention, draw_attention
from regiontok.viewing.clip import draw_clip, save_clip
from regiontok.viewing.counts import draw_counts
from regiontok.viewing.figures import (
    draw_encoders,
    draw_features,
    draw_norms,
    draw_sources,
)
from regiontok.viewing.page import make_page, write_page
from regiontok.viewing.partitions import draw_partitions
from regiontok.viewing.picture import draw_regions

__all__ = [
    "Attention",
    "check_figure",
    "draw_attention",
    "draw_clip",
    "draw_counts",
    "draw_encoders",
    "draw_features",
    "draw_norms",
    "draw_partitions",
    "draw_regions",
    "draw_sources",
    "is_figure",
    "make_page",
    "save_clip",
    "save_figure",
    "write_page",
]
