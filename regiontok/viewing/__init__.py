"""Pictures of regions, and of how many there are."""

from regiontok.viewing.histogram import draw_counts
from regiontok.viewing.picture import draw_regions

__all__ = ["draw_counts", "draw_regions"]
