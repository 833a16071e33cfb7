"""``regiontok compare``: how well kinds of regions represent the patches of an encoder, at equal numbers of tokens."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regiontok._files import write_json
from regiontok.choices import BUDGETS, MASK_SOURCES, MASK_WEIGHT, VIDEO_BUDGETS, Norm
from regiontok.cli.console import progress
from regiontok.cli.inputs import EncodedImages, open_listing
from regiontok.cli.loading import group_by_source, load_encoder
from regiontok.cli.output import check_outputs, report
from regiontok.cli.regions import default_norm
from regiontok.cli.values import AnnotationChoice, EncoderChoice, FrameChoice, ListingChoice, mask_choice
from regiontok.config import RegionizerConfig
from regiontok.encoders import EncodedImage, ImageEncoder
from regiontok.errors import RegiontokError
from regiontok.evaluation.partition import (
    PartitionResult,
    compare_clip_partitions,
    compare_partitions,
    mean_partitions,
)
from regiontok.maskset import MaskSet
from regiontok.normalize import rms_normalize
from regiontok.pipeline.run import IMAGE_ERRORS
from regiontok.sampling import FrameSampling
from regiontok.viewing import check_figure, draw_partitions, save_figure

_NO_BUDGET = " (no budget)"
_WIDTH = len(f"segmentation{_NO_BUDGET}")
_COLUMNS = (
    ("explained_variance", "variance", "squared deviation of the patches that region means preserve"),
    ("singleton_fraction", "singletons", "regions of one patch"),
    ("largest_fraction", "largest", "patches in the largest region"),
)
_OBJECT_COLUMNS = (
    ("miou", "mIoU", "intersection over union of annotated objects and regions"),
    ("boundary_recall", "recall", "boundaries of objects that are within half a patch of a boundary of regions"),
)
"""Scores, their headings and their meaning."""


def run_compare(options: Namespace) -> int:
    """Run ``compare``, and return the exit code."""
    details = options.out.with_name(f"{options.out.name}.json")
    choice, frames = mask_choice(options), FrameChoice.of(options)
    if frames is not None:
        return _compare_videos(options, frames, details)
    images = EncodedImages(ListingChoice.of(options), EncoderChoice.of(options), choice, options.out, details)
    norm: Norm = options.norm or default_norm(options).get("norm", RegionizerConfig.norm)
    configs = {source: RegionizerConfig(source=source, norm=norm, pool="mean") for source in MASK_SOURCES}
    settings: dict[str, Any] = {
        "num_regions": sorted(set(options.num_regions or (() if options.keep else BUDGETS))),
        "keep": sorted(set(options.keep or ())),
        "mask_weight": MASK_WEIGHT if options.mask_weight is None else options.mask_weight,
        "connectivity": options.connectivity or RegionizerConfig.connectivity,
    }

    def measure(encoded: EncodedImage, masks: MaskSet | None) -> list[PartitionResult]:
        by_source = group_by_source(configs if masks is not None else {}, encoded, masks)
        features = encoded.features[None]
        return compare_partitions(
            (rms_normalize(features) if norm == "rms" else features)[0],
            valid=encoded.valid,
            geometry=encoded.geometry,
            masks=by_source.get("segmentation"),
            others={f"{source}{_NO_BUDGET}": regions for source, regions in by_source.items()},
            objects=masks if isinstance(choice, AnnotationChoice) and masks is not None and len(masks) else None,
            **settings,
        )

    results = images.map(measure)
    if results:
        description = {
            "norm": norm,
            "connectivity": settings["connectivity"],
            "mask_weight": options.mask_weight,
            "masks": None if choice is None else str(getattr(choice, "path", None) or options.masks),
        }
        _write(results, images.encoder, options.out, details, description, medium="image")
    return images.report()


def _compare_videos(options: Namespace, frames: FrameSampling, details: Path) -> int:
    """Compare regions of single frames with regions of whole clips."""
    if mask_choice(options) is not None or options.model is not None or options.mask_weight is not None:
        raise RegiontokError("videos are compared with an encoder and without masks. Leave masks and --model out.")
    check_figure(options.out)
    listing = open_listing(ListingChoice.of(options), frames=frames)
    videos, choice = list(listing), EncoderChoice.of(options)
    check_outputs([options.out, details], [video.address for video in videos], choice)
    encoder = load_encoder(choice)
    settings: dict[str, Any] = {
        "num_regions": sorted(set(options.num_regions or (() if options.keep else VIDEO_BUDGETS))),
        "keep": sorted(set(options.keep or ())),
        "connectivity": options.connectivity or RegionizerConfig.connectivity,
    }
    norm: Norm = options.norm or RegionizerConfig.norm
    results: dict[str, list[PartitionResult]] = {}
    errors: dict[str, str] = {}
    for video in progress(videos):
        try:
            features, valid = encoder(listing.read_video(video).frames)
            features = rms_normalize(features) if norm == "rms" else features
            results[video.path] = compare_clip_partitions(features, valid=valid, **settings)
        except IMAGE_ERRORS as error:
            errors[video.path] = str(error) or "not enough memory"
    if results:
        description = {"norm": norm, "connectivity": settings["connectivity"], "frames": frames.describe()}
        _write(results, encoder, options.out, details, description, medium="video")
    return report(errors, len(videos), "videos")


def _write(
    results: Mapping[str, list[PartitionResult]],
    encoder: ImageEncoder,
    figure: Path,
    details: Path,
    description: dict[str, Any],
    *,
    medium: str,
) -> None:
    """Draw and print the means over images or videos, and write all results with a description of the settings."""
    means = mean_partitions(list(results.values()))
    scores: dict[str, list[Any]] = {}
    for row in means:
        scores.setdefault(row.source, []).append(row.scores)
    save_figure(draw_partitions(scores), figure)
    rows = {path: [_as_dict(row) for row in image_rows] for path, image_rows in results.items()}
    all_results = {"mean": [_as_dict(row) for row in means], f"{medium}s": rows}
    write_json(details, encoder.describe() | description | all_results)
    _print_table(means, len(results), encoder, medium)
    print(f"Figure: {figure}; every {medium}: {details}")


def _as_dict(row: PartitionResult) -> dict[str, Any]:
    return {"source": row.source, "budget": row.num_regions, "keep": row.keep, **row.scores._asdict()}


def _print_table(rows: Sequence[PartitionResult], num_images: int, encoder: ImageEncoder, medium: str) -> None:
    """Print the scores, budget by budget."""
    settings = "".join(f", {name} {value}" for name, value in encoder.describe().get("encoder_options", {}).items())
    print(f"{num_images} {medium}{'s' * (num_images != 1)}, {encoder.name}{settings}")
    columns = [*_COLUMNS, *(_OBJECT_COLUMNS if any(row.scores.miou is not None for row in rows) else ())]
    print(f"{'':{_WIDTH}}  {'regions':>7}  " + "  ".join(f"{heading:>10}" for _, heading, _ in columns))
    budgets = list(dict.fromkeys((row.num_regions, row.keep) for row in rows))
    for number, budget in enumerate(budgets):
        if number:
            print()
        for row in rows:
            if (row.num_regions, row.keep) == budget:
                values = [getattr(row.scores, name) for name, _, _ in columns]
                cells = "  ".join(f"{'-':>10}" if value is None else f"{100 * value:>8.1f} %" for value in values)
                print(f"{row.source:{_WIDTH}}  {row.scores.num_regions:>7.0f}  {cells}")
    print("\n" + "; ".join(f"{heading}: {meaning}" for _, heading, meaning in columns))
