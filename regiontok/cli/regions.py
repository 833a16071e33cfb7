"""Options of a `Regionizer` for the sources that a command uses. `RegionizerConfig` checks their values."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from regiontok.choices import MASK_SOURCES, SOURCES, Norm, Source
from regiontok.cli.values import FrameChoice, MaskChoice, flag, given_options, mask_choice, masks_flag
from regiontok.config import RegionizerConfig
from regiontok.errors import RegiontokError
from regiontok.options import OPTIONS, check_option

_TABLE_ORDER: tuple[Source, ...] = ("patch", "segmentation", "clustering", "combined")
"""Sources in the order of the paper's Table 1."""


def _required(name: str, source: Source, options: Mapping[str, Any]) -> str | None:
    """Return what an option requires, in words; None if this source and these options fulfil it."""
    uses_masks, has_budget = source in MASK_SOURCES, "num_regions" in options or "keep" in options
    match name:
        case "threshold" | "linkage":
            applies = source == "clustering" or options.get("unassigned") == "cluster"
            words = "the source clustering or --unassigned cluster"
        case "num_regions" | "keep":
            applies, words = source != "patch", "the source clustering, segmentation or combined"
        case "explained_variance":
            applies, words = source == "clustering", "the source clustering"
        case "min_coverage" | "downsampling" | "unassigned" | "overlap":
            applies, words = uses_masks, "the source segmentation or combined"
        case "mask_weight":
            applies, words = uses_masks and has_budget, "masks with --num-regions or --keep"
        case "eps" | "min_samples" | "split_min_patches" | "noise":
            applies = source == "combined" and not has_budget
            words = "the source combined without --num-regions and --keep"
        case _:
            return None
    return None if applies else words


def default_norm(options: Namespace) -> dict[str, Norm]:
    """Return the default norm of a command as keyword arguments; stock models were trained without one."""
    return {"norm": "none"} if getattr(options, "model", None) else {}


def region_configs(options: Namespace, **defaults: Any) -> dict[Source, RegionizerConfig]:
    """Return the options of a `Regionizer` for each source; a source ignores options that only other sources use.

    Args:
        options: The options of a command. Without ``--source`` and ``--sources`` the source is clustering.
        defaults: Values of options that the command line does not give.

    Raises:
        RegiontokError: No source uses an option that the command line gives.
        ValueRangeError: An invalid value or combination of values; see `RegionizerConfig`.
    """
    sources: list[Source] = ["clustering"]
    if "sources" in options:
        sources = choose_sources(options)
    elif "source" in options:
        sources = [options.source]
    values = given_options(options, [name for name in OPTIONS if name not in ("source", "geometry")])
    for name in values:
        required = [_required(name, source, values) for source in sources]
        if all(required):
            raise RegiontokError(f"{flag(name)} requires {required[0]}. Leave it out.")
    if values.get("linkage") == "ward" and not {"num_regions", "keep", "explained_variance"} & values.keys():
        raise RegiontokError("--linkage ward needs --num-regions, --keep or --explained-variance. Add one of them.")
    configs = {}
    for source in sources:
        used = {name: value for name, value in values.items() if _required(name, source, values) is None}
        # the mean is what an untrained cross-attention pool computes
        configs[source] = RegionizerConfig(**{"source": source, "pool": "mean"} | defaults | used)
    return configs


def token_masks(options: Namespace) -> MaskChoice | None:
    """Return the masks of ``tokenize``. If its source needs masks and none are named, SAM 2 makes them."""
    if FrameChoice.of(options) is not None:
        if masks_flag(options) is not None:
            raise RegiontokError(f"{masks_flag(options)} is for images; videos have tracks. Use --tracks instead.")
        if (options.tracks is not None) != (options.source in MASK_SOURCES):
            raise RegiontokError("videos need --tracks DIR for --source segmentation or combined, and only for these.")
        return None
    if options.source in MASK_SOURCES:
        return mask_choice(options, default="sam2")
    name = masks_flag(options)
    if name is not None:
        raise RegiontokError(f"{name} requires --source segmentation or combined; got {options.source}. Leave it out.")
    return mask_choice(options)


def choose_sources(options: Namespace) -> list[Source]:
    """Return the sources of ``--sources`` in the order of Table 1: by default all, masks permitting."""
    name = masks_flag(options)
    sources = options.sources or [source for source in SOURCES if source not in MASK_SOURCES or name is not None]
    with_masks = [source for source in sources if source in MASK_SOURCES]
    if with_masks and name is None:
        raise RegiontokError(f"--sources {with_masks[0]} needs --masks, such as --masks felzenszwalb.")
    if name is not None and not with_masks:
        raise RegiontokError(f"{name} requires the source segmentation or combined. Leave it out.")
    return [source for source in _TABLE_ORDER if source in sources]


def check_budgets(options: Namespace) -> None:
    """Check the numbers and fractions of regions at which ``compare`` compares, and the weight of masks."""
    for name in ("num_regions", "keep"):
        for value in getattr(options, name) or ():
            check_option(name, value)
    if options.mask_weight is not None:
        check_option("mask_weight", options.mask_weight)
        if masks_flag(options) is None:
            raise RegiontokError("--mask-weight requires masks. Leave it out, or name masks.")
