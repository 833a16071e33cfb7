"""``regiontok compare``: which regions stand best for the patches of an encoder, at equal counts."""

import argparse
from pathlib import Path
from typing import Any

from regiontok._files import write_json
from regiontok.cli.common import (
    FAILURES,
    add_annotation_options,
    add_encoder_options,
    add_mask_options,
    annotated,
    find_photos,
    has_masks,
    load_encoder,
    load_masks,
    progress,
    roots_of,
)
from regiontok.cli.output import as_path, check_outputs, explain, report
from regiontok.encoders import Encoder
from regiontok.errors import RegiontokError
from regiontok.evaluation.partition import COUNTS, PartitionResult, compare_partitions, mean_partitions
from regiontok.options import MASK_SOURCES, NORMS
from regiontok.photos import read_photo
from regiontok.regionizer import Regionizer
from regiontok.viewing import check_figure, draw_partitions, save_figure


def add_commands(commands: Any) -> None:
    """Add ``compare`` to the parser."""
    compare = commands.add_parser(
        "compare",
        help="compare regions at equal counts on an encoder's features",
        description="Print how well regions stand for the patches of photos: a grid and clustering by its three rules "
        "at equal counts, and with masks the sources of masks at counts of their own. With annotated masks, of --coco "
        "or --label-maps, also how well regions keep to objects. Means over photos; a figure, and JSON beside it.",
    )
    compare.add_argument("photos", nargs="+", type=as_path, metavar="PHOTO|FOLDER")
    compare.add_argument(
        "--tokens",
        nargs="+",
        type=int,
        default=list(COUNTS),
        metavar="K",
        help=f"default: {' '.join(map(str, COUNTS))}",
    )
    compare.add_argument(
        "--norm", default="rms", choices=NORMS, help="of patch features before clustering; default: %(default)s"
    )
    compare.add_argument("--connectivity", type=int, default=4, choices=(4, 8), help="neighbours; default: 4")
    compare.add_argument(
        "--out",
        type=as_path,
        default=Path("regiontok-compare.png"),
        metavar="FILE",
        help="the figure, and with .json after its name the scores of every photo; default: %(default)s",
    )
    add_encoder_options(compare)
    add_mask_options(compare, files=True)
    add_annotation_options(compare)
    compare.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    wrong = [count for count in options.tokens if count < 1]
    if wrong:
        raise RegiontokError(f"--tokens must be from 1; got {wrong[0]}.")
    with_masks = has_masks(options)
    check_figure(options.out)
    details = options.out.with_name(f"{options.out.name}.json")
    photos = [found.path for found in find_photos(options.photos, options.out)]
    check_outputs(options, options.out, details, photos=photos)
    encoder = load_encoder(options)
    masks_of = load_masks(options, encoder, roots=roots_of(options, options.photos)) if with_masks else None
    regionizers = {
        source: Regionizer(source=source, norm=options.norm, pool="mean", geometry=encoder.geometry)
        for source in ("patch", *(MASK_SOURCES if masks_of else ()))
    }
    counts = sorted(set(options.tokens))
    found: dict[str, list[PartitionResult]] = {}
    failed = []
    for path in progress(photos):
        try:
            photo = read_photo(path)
            features, valid = encoder(photo)
            features = regionizers["patch"].normalize(features)
            others, objects = {}, None
            if masks_of:
                masks = [masks_of(path, photo)]
                others = {name: regionizers[name].group(features, masks=masks, valid=valid) for name in MASK_SOURCES}
                objects = masks[0] if annotated(options) and len(masks[0]) else None
            found[str(path)] = compare_partitions(
                features[0],
                valid=valid[0],
                counts=counts,
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
            "masks": next((str(one) for one in (options.masks, options.coco, options.label_maps) if one), None),
            "mean": [_row(one) for one in means],
            "photos": {path: [_row(one) for one in rows] for path, rows in found.items()},
        }
        write_json(details, description)
        _print_table(means, len(found), encoder)
        print(f"Figure: {options.out}; every photo: {details}")
    return report(failed, len(photos))


def _row(one: PartitionResult) -> dict[str, Any]:
    return {"source": one.source, "tokens": one.tokens, **one.scores._asdict()}


def _print_table(rows: list[PartitionResult], photos: int, encoder: Encoder) -> None:
    options = "".join(f", {name} {value}" for name, value in encoder.options.items())
    print(f"{photos} photo{'s' * (photos != 1)}, {encoder.name}{options}")
    columns = [*_COLUMNS, *(_OBJECTS if any(row.scores.miou is not None for row in rows) else ())]
    print(f"{'':12}  {'regions':>7}  " + "  ".join(f"{head:>7}" for _, head, _ in columns))
    last: int | None = -1
    for one in sorted(rows, key=lambda row: (row.tokens is None, row.tokens or 0)):
        if one.tokens != last and last != -1:
            print()
        last = one.tokens
        values = [getattr(one.scores, name) for name, _, _ in columns]
        shares = "  ".join(f"{'-':>7}" if value is None else f"{100 * value:>5.1f} %" for value in values)
        print(f"{one.source:12}  {one.scores.regions:>7.0f}  {shares}")
    print("\n" + "; ".join(f"{head}: {told}" for _, head, told in columns))


_COLUMNS = (
    ("kept", "kept", "of the patches' squared deviation"),
    ("single", "single", "regions of one patch"),
    ("largest", "largest", "patches in the largest region"),
)
_OBJECTS = (
    ("miou", "mIoU", "of annotated objects with regions"),
    ("boundary_recall", "recall", "of the objects' boundaries, within half a patch"),
)
