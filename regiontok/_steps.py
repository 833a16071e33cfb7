"""The steps of a `Regionizer`, made from its options."""

from regiontok.choices import MASK_SOURCES, PROMPT
from regiontok.clustering import UnionFindClusterer
from regiontok.config import RegionizerConfig
from regiontok.downsample import MaskDownsampler


def make_clusterer(config: RegionizerConfig) -> UnionFindClusterer:
    """Return the clusterer of a Regionizer; with ``num_regions="prompt"`` every call provides its budget."""
    if config.num_regions == PROMPT:
        return UnionFindClusterer(
            linkage=config.linkage or "ward",
            connectivity=config.connectivity,
            mask_weight=config.mask_weight,
            motion=config.motion,
            max_frames=config.max_frames,
        )
    uses_masks = config.source in MASK_SOURCES and config.has_budget  # the other options are for unassigned patches
    return UnionFindClusterer(
        linkage=None if uses_masks else config.linkage,
        threshold=None if uses_masks else config.threshold,
        num_regions=config.num_regions,
        keep=config.keep,
        explained_variance=config.explained_variance,
        connectivity=config.connectivity,
        mask_weight=config.mask_weight,
        motion=config.motion,
        max_frames=config.max_frames,
    )


def make_downsampler(config: RegionizerConfig) -> MaskDownsampler:
    """Return the mask downsampler of a Regionizer."""
    clusterer = UnionFindClusterer()
    if config.source in MASK_SOURCES:
        clusterer = UnionFindClusterer(
            linkage=None if config.has_budget else config.linkage,
            threshold=config.threshold,
            connectivity=config.connectivity,
        )
    return MaskDownsampler(
        geometry=config.geometry,
        min_coverage=config.min_coverage,
        downsampling=config.downsampling,
        unassigned=config.unassigned,
        overlap=config.overlap,
        clusterer=clusterer,
    )
