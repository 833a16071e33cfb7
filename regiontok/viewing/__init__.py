"""Pictures of regions."""

from regiontok.viewing.picture import draw_regions

__all__ = ["draw_regions"]
