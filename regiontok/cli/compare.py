"""``regiontok compare``: which regions represent the patches of an encoder best, at equal counts."""

import argparse
from typing import Any

from regiontok._files import write_json
from regiontok.choices import BUDGETS, MASK_SOURCES, MASK_WEIGHT
from regiontok.cli.checks import annotated, has_masks
from regiontok.cli.common import FAILURES, find_images, load_encoder, roots_of
from regiontok.cli.console import progress
from regiontok.cli.mask_sources import load_masks
from regiontok.cli.output import check_outputs, explain, report
from regiontok.encoders import Encoder
from regiontok.evaluation.partition import PartitionResult, compare_partitions, mean_partitions
from regiontok.images import read_image
from regiontok.regionizer import Regionizer
from regiontok.viewing import check_figure, draw_partitions, save_figure


def run_compare(options: argparse.Namespace) -> int:
    """Run ``compare``; return the exit code."""
    with_masks = has_masks(options)
    check_figure(options.out)
    details = options.out.with_name(f"{options.out.name}.json")
    images = [found.path for found in find_images(options.images, options.out)]
    check_outputs(options, options.out, details, images=images)
    encoder = load_encoder(options)
    masks_of = load_masks(options, encoder, roots=roots_of(options, options.images)) if with_masks else None
    regionizers = {
        source: Regionizer(source=source, norm=options.norm, pool="mean", geometry=encoder.geometry)
        for source in ("patch", *(MASK_SOURCES if masks_of else ()))
    }
    counts = sorted(set(options.tokens or (() if options.keep else BUDGETS)))
    found: dict[str, list[PartitionResult]] = {}
    failed = []
    for path in progress(images):
        try:
            image = read_image(path, bits=options.bits)
            features, valid = encoder(image)
            features = regionizers["patch"].normalize(features)
            others, objects, on_grid = {}, None, None
            if masks_of:
                masks = [masks_of(path, image)]
                without = {name: regionizers[name].group(features, masks=masks, valid=valid) for name in MASK_SOURCES}
                on_grid = without["segmentation"]
                others = {f"{name}{_NO_BUDGET}": regions for name, regions in without.items()}
                objects = masks[0] if annotated(options) and len(masks[0]) else None
            found[str(path)] = compare_partitions(
                features[0],
                valid=valid[0],
                counts=counts,
                keep=sorted(set(options.keep or ())),
                masks=on_grid,
                mask_weight=MASK_WEIGHT if options.mask_weight is None else options.mask_weight,
                others=others,
                objects=objects,
                geometry=encoder.geometry,
                connectivity=options.connectivity,
            )
        except FAILURES as error:
            failed.append(explain(path, error))
    if found:
        means = mean_partitions(list(found.values()))
        by_source: dict[str, list[Any]] = {}
        for row in means:
            by_source.setdefault(row.source, []).append(row.scores)
        save_figure(draw_partitions(by_source), options.out)
        description = {
            **encoder.describe(),
            "norm": options.norm,
            "connectivity": options.connectivity,
            "mask_weight": options.mask_weight,
            "masks": next((str(one) for one in (options.masks, options.coco, options.label_maps) if one), None),
            "mean": [_row(one) for one in means],
            "images": {path: [_row(one) for one in rows] for path, rows in found.items()},
        }
        write_json(details, description)
        _print_table(means, len(found), encoder)
        print(f"Figure: {options.out}; every image: {details}")
    return report(failed, len(images))


def _row(one: PartitionResult) -> dict[str, Any]:
    return {"source": one.source, "tokens": one.tokens, "keep": one.keep, **one.scores._asdict()}


def _print_table(rows: list[PartitionResult], images: int, encoder: Encoder) -> None:
    options = "".join(f", {name} {value}" for name, value in encoder.options.items())
    print(f"{images} image{'s' * (images != 1)}, {encoder.name}{options}")
    columns = [*_COLUMNS, *(_OBJECTS if any(row.scores.miou is not None for row in rows) else ())]
    print(f"{'':{_WIDTH}}  {'regions':>7}  " + "  ".join(f"{head:>7}" for _, head, _ in columns))
    blocks = {(one.tokens, one.keep): None for one in rows}
    last: tuple[int | None, float | None] | None = None
    for one in sorted(rows, key=lambda row: list(blocks).index((row.tokens, row.keep))):
        if last not in (None, (one.tokens, one.keep)):
            print()
        last = one.tokens, one.keep
        values = [getattr(one.scores, name) for name, _, _ in columns]
        shares = "  ".join(f"{'-':>7}" if value is None else f"{100 * value:>5.1f} %" for value in values)
        print(f"{one.source:{_WIDTH}}  {one.scores.regions:>7.0f}  {shares}")
    print("\n" + "; ".join(f"{head}: {told}" for _, head, told in columns))


_NO_BUDGET = " (no budget)"
_WIDTH = len(f"segmentation{_NO_BUDGET}")
_COLUMNS = (
    ("kept", "kept", "of the patches' squared deviation"),
    ("single", "single", "regions of one patch"),
    ("largest", "largest", "patches in the largest region"),
)
_OBJECTS = (
    ("miou", "mIoU", "of annotated objects with regions"),
    ("boundary_recall", "recall", "of the objects' boundaries, within half a patch"),
)
