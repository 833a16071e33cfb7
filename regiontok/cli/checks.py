"""Checks of options that go together; none of them needs torch, so that a rejected command ends at once."""

import argparse
from collections.abc import Sequence
from typing import Any

from regiontok.choices import GENERATORS, MASK_SOURCES, SOURCES, Source
from regiontok.cli.arguments import AMOUNTS, ENCODER_NAMES, LIMITS
from regiontok.errors import RegiontokError
from regiontok.presets import ENCODERS

TABLE_ORDER: tuple[Source, ...] = ("patch", "segmentation", "clustering", "combined")
"""Sources as the paper's Table 1 lists them."""

FILLING = (
    "column",
    "key_column",
    "limit",
    "slice",
    "batch",
    "workers",
    "shard_size",
    "shard_minutes",
    "retry_failed",
    "remake_changed",
    "overwrite",
    "mixed",
    "engine",
    "cpus",
    "address",
)
"""Options that are for a store alone."""
_COMBINED_OPTIONS = ("eps", "min_samples", "split_min_patches", "noise")
REGION_OPTIONS = ("coverage", "downsampling", "uncovered", "overlap", "mask_weight", *_COMBINED_OPTIONS)


def amount_of(options: argparse.Namespace) -> dict[str, Any]:
    """Options of a `Regionizer` that say how many regions clustering makes; those that were given."""
    given = {"num_regions" if name == "tokens" else name: getattr(options, name) for name in AMOUNTS}
    budgeted = any(getattr(options, name) is not None for name in LIMITS)
    if options.tokens is not None and options.tokens < 1:
        raise RegiontokError(f"--tokens must be at least 1; got {options.tokens}.")
    for name, low in (("threshold", -1), ("keep", 0), ("explained_variance", 0)):
        value = getattr(options, name)
        if value is not None and not low <= value <= 1:
            raise RegiontokError(f"{_flag(name)} must be in [{low}, 1]; got {value}.")
    if options.keep == 0:
        raise RegiontokError("--keep must be above 0; got 0. For one token per image give --tokens 1.")
    if options.linkage == "ward" and not budgeted:
        raise RegiontokError(
            "--linkage ward has no threshold. Say how many by --tokens, --keep or --explained-variance."
        )
    if options.explained_variance is not None and options.linkage not in (None, "ward"):
        raise RegiontokError(f"--explained-variance is for --linkage ward; got {options.linkage}. Leave one out.")
    return {name: value for name, value in given.items() if value is not None}


def amount_of_source(options: argparse.Namespace, source: str) -> dict[str, Any]:
    """Return the options of `amount_of` that a source takes: budgets for masks, all for clustering."""
    amount = amount_of(options)
    if source in MASK_SOURCES:
        amount = {name: value for name, value in amount.items() if name in ("num_regions", "keep")}
        if amount and options.mask_weight is not None:
            amount["mask_weight"] = options.mask_weight
    return {} if source == "patch" else amount


def check_amounts(options: argparse.Namespace, sources: Sequence[str]) -> None:
    """Reject options of `amount_of` that no source takes."""
    check_mask_weight(options)
    names = named_amounts(options)
    budgets = [name for name in names if name in ("--tokens", "--keep")]
    by_masks = any(source in MASK_SOURCES for source in sources)
    unused = [] if "clustering" in sources else [name for name in names if not (by_masks and name in budgets)]
    if unused:
        raise RegiontokError(f"{unused[0]} is for the source clustering. Leave it out.")
    if options.mask_weight is not None and not (by_masks and budgets):
        raise RegiontokError("--mask-weight is for masks with --tokens or --keep. Leave it out.")


def check_mask_weight(options: argparse.Namespace) -> None:
    """Reject a weight below 0."""
    if options.mask_weight is not None and not options.mask_weight >= 0:
        raise RegiontokError(f"--mask-weight must be at least 0; got {options.mask_weight}.")


def named_amounts(options: argparse.Namespace) -> list[str]:
    """Which of these options were given, as they are written."""
    return [f"--{name.replace('_', '-')}" for name in AMOUNTS if getattr(options, name) is not None]


ANNOTATIONS = ("coco", "label_maps", "mask_files")
"""Options that name annotated masks."""


def annotated(options: argparse.Namespace) -> str | None:
    """Return the option of annotated masks that is set; reject options that do not go together."""
    names = [_flag(name) for name in ANNOTATIONS if getattr(options, name, None)]
    names += ["--masks"] * bool(getattr(options, "masks", None))
    if len(names) > 1:
        raise RegiontokError(f"{names[0]} and {names[1]} both name masks. Leave one out.")
    source = names[0] if names and names[0] != "--masks" else None
    if source and uses_masks(options) and getattr(options, "missing", None) is None:
        raise RegiontokError(f"{uses_masks(options)[0]} is for making masks, and {source} has them. Leave it out.")
    for name, sources in (
        ("no_crowds", ["--coco"]),
        ("duplicates", ["--coco"]),
        ("match", ["--coco"]),
        ("ignore", ["--label-maps", "--mask-files"]),
        ("replace", ["--label-maps", "--mask-files"]),
        ("stored_pixels", ["--coco", "--label-maps", "--mask-files"]),
    ):
        if getattr(options, name, None) and source not in sources:
            raise RegiontokError(f"{_flag(name)} is for {' and '.join(sources)}. Leave it out.")
    return source


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def has_masks(options: argparse.Namespace) -> bool:
    """Whether any masks are named; refuses options of masks where none are."""
    named = bool(annotated(options) or options.masks)
    if not named and uses_masks(options):
        raise RegiontokError(f"{uses_masks(options)[0]} is for --masks. Leave it out, or name a generator.")
    return named


def uses_masks(options: argparse.Namespace) -> list[str]:
    """The mask options that were given."""
    names = ("sam_model", "points_per_side", "stability_score_thresh", "pred_iou_thresh", "box_nms_thresh")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None]
    return given + ["--ladder"] * options.ladder


def choose_sources(options: argparse.Namespace) -> list[Source]:
    """The sources that ``--sources`` names, or all that can be had, as Table 1 lists them; refuses masks that miss."""
    named = bool(annotated(options) or options.masks)
    wanted = options.sources or [source for source in SOURCES if source not in MASK_SOURCES or named]
    sources = [source for source in TABLE_ORDER if source in wanted]
    with_masks = [source for source in sources if source in MASK_SOURCES]
    if with_masks and not named:
        raise RegiontokError(f"--sources {with_masks[0]} needs --masks, such as --masks felzenszwalb.")
    if not with_masks and (named or uses_masks(options)):
        raise RegiontokError("--masks and its options are for the sources segmentation and combined. Leave them out.")
    return sources


def check_filling(options: argparse.Namespace) -> None:
    """Reject options of filling a store that are out of range or do not go together."""
    for name in ("batch", "shard_size", "workers", "limit", "cpus"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise RegiontokError(f"--{name.replace('_', '-')} must be at least 1; got {value}.")
    if options.shard_minutes is not None and not options.shard_minutes > 0:
        raise RegiontokError(f"--shard-minutes must be positive; got {options.shard_minutes}.")
    for name in ("address", "cpus"):
        if getattr(options, name) is not None and options.engine != "ray":
            raise RegiontokError(f"--{name} is for --engine ray. Leave it out, or give that.")
    if options.slice is not None and options.engine == "ray":
        raise RegiontokError("--slice is for processes beside each other, and --engine ray shares images itself.")
    if options.slice is not None and options.overwrite:
        raise RegiontokError("--overwrite would remove what the other slices write. Remove the folder first.")


def check_encoder(options: argparse.Namespace) -> None:
    """Reject an encoder that nobody knows, and an input without pixels."""
    library, _, model = options.encoder.partition(":")
    if options.encoder not in (*ENCODERS, "pixels") and (library not in ("timm", "open_clip", "hf") or not model):
        raise RegiontokError(f"there is no encoder {options.encoder!r}. Name one of {ENCODER_NAMES}.")
    if options.img_size is not None and min(options.img_size) < 1:
        raise RegiontokError(f"--img-size must be at least 1; got {min(options.img_size)}.")


def check_tokenize(options: argparse.Namespace) -> None:
    """Reject options of ``tokenize`` that its source or its output does not use."""
    _check_source(options)
    check_encoder(options)
    if options.store is not None:
        check_filling(options)
        for name in ("csv", "json"):
            if getattr(options, name):
                raise RegiontokError(
                    f"--{name} is for --out; a store tells by regiontok store {options.store} --stats."
                )
    else:
        given = [name for name in (*FILLING, "dtype") if getattr(options, name) not in (None, False)]
        if given:
            raise RegiontokError(f"--{given[0].replace('_', '-')} is for --store. Leave it out, or name a store.")


def _check_source(options: argparse.Namespace) -> None:
    given, of_combined = (
        [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None]
        for names in (REGION_OPTIONS, _COMBINED_OPTIONS)
    )
    clusters = options.source == "clustering" or options.uncovered == "cluster"
    budgets = [_flag(name) for name in ("tokens", "keep") if getattr(options, name) is not None]
    by_masks = options.source in MASK_SOURCES
    amounts = [name for name in named_amounts(options) if not by_masks or name not in budgets]
    if amounts and not clusters:
        raise RegiontokError(f"{amounts[0]} is for --source clustering, or for --uncovered cluster. Leave it out.")
    if options.mask_weight is not None and not (by_masks and budgets):
        raise RegiontokError("--mask-weight is for masks with --tokens or --keep. Leave it out.")
    check_mask_weight(options)
    if by_masks and budgets and of_combined:
        raise RegiontokError(f"{of_combined[0]} is for splitting masks without {budgets[0]}. Leave one of them out.")
    if options.source != "clustering" and options.linkage == "ward":
        raise RegiontokError("--linkage ward is for --source clustering, which can have a budget. Leave it out.")
    if options.source != "clustering" and amounts and any(getattr(options, name) is not None for name in LIMITS):
        raise RegiontokError(f"{amounts[0]} is for --source clustering. Leave it out.")
    of_masks = (
        given
        + uses_masks(options)
        + [name for name in (annotated(options), options.masks and "--masks", options.missing and "--missing") if name]
    )
    if options.source not in MASK_SOURCES and of_masks:
        name = of_masks[0]
        raise RegiontokError(f"{name} is for --source segmentation and combined. Leave it out.")
    if options.source != "combined" and of_combined:
        raise RegiontokError(f"{of_combined[0]} is for --source combined. Leave it out.")
    if options.source in MASK_SOURCES and not annotated(options):
        check_generator(options, options.masks or "sam2")
    check_generator(options, options.missing)
    amount_of(options)


def check_masks(options: argparse.Namespace) -> None:
    """Reject options of ``masks`` that its generator or its annotations do not use."""
    source = annotated(options)
    if source and options.mosaic is not None:
        raise RegiontokError(f"--mosaic is for making masks, and {source} has them. Leave it out.")
    if options.missing is not None and not source:
        raise RegiontokError("--missing is for annotated masks, such as --coco, which may lack some. Leave it out.")
    check_generator(options, options.missing if source else options.masks or "sam2")
    check_filling(options)


def check_generator(options: argparse.Namespace, generator: str | None) -> None:
    """Reject options of making masks that a generator does not use; None and a store have nothing to check."""
    if generator not in GENERATORS:
        return
    given = uses_masks(options)
    mosaic = getattr(options, "mosaic", None) is not None
    if generator == "felzenszwalb" and (given or mosaic):
        raise RegiontokError(f"{(given or ['--mosaic'])[0]} is for SAM's masks, not for felzenszwalb. Leave it out.")
    if mosaic and generator in ("sam2-pipeline", "sam2-package"):
        raise RegiontokError(f"--mosaic is for sam2 and sam3; got {generator}. Leave it out.")
    if options.ladder and generator == "sam2-pipeline":
        raise RegiontokError("--ladder is for sam2, sam3 and sam2-package: the pipeline would encode an image again.")
    clash = [name for name in given if name not in ("--ladder", "--sam-model", "--box-nms-thresh")]
    if options.ladder and clash:
        raise RegiontokError(f"{clash[0]} is set by every step of the ladder. Leave one of the two out.")


def check_count(options: argparse.Namespace) -> None:
    """Reject options of ``count`` and ``figures regions`` that no source uses."""
    check_encoder(options)
    amount_of(options)
    if named_amounts(options) or options.mask_weight is not None:
        check_amounts(options, choose_sources(options))
    check_generator(options, options.masks)


def check_compare(options: argparse.Namespace) -> None:
    """Reject budgets below one region, and options of masks without masks."""
    wrong = [count for count in options.tokens or () if count < 1]
    if wrong:
        raise RegiontokError(f"--tokens must be from 1; got {wrong[0]}.")
    _check_fractions(options.keep or ())
    check_mask_weight(options)
    if options.mask_weight is not None and not has_masks(options):
        raise RegiontokError("--mask-weight is for masks. Leave it out, or name masks.")
    _check_images(options)


def check_view(options: argparse.Namespace) -> None:
    """Reject options of masks without masks, and a fraction of patches that is none."""
    _check_fractions([] if options.keep is None else [options.keep])
    _check_images(options)


def _check_fractions(fractions: Sequence[float]) -> None:
    wrong = [one for one in fractions if not 0 < one <= 1]
    if wrong:
        raise RegiontokError(f"--keep must be above 0 and at most 1; got {wrong[0]}.")


def _check_images(options: argparse.Namespace) -> None:
    check_encoder(options)
    if has_masks(options):
        check_generator(options, options.masks)


def check_store(options: argparse.Namespace) -> None:
    """Reject ``--out`` without ``--export``, and the other way round."""
    if options.out is not None and options.export is None:
        raise RegiontokError("--out is for --export. Leave it out.")
    if options.images is not None and not options.verify:
        raise RegiontokError("--images is for --verify. Leave it out.")
    if options.export is not None and options.out is None:
        raise RegiontokError("--export needs --out DIR.")
