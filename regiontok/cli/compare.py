"""``regiontok compare``: which regions stand best for the patches of an encoder, at equal counts."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from regiontok.cli.common import (
    FAILURES,
    add_encoder_options,
    add_mask_options,
    explain,
    find_photos,
    load_encoder,
    load_masks,
    progress,
    uses_masks,
)
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
        "at equal counts, and with --masks the sources of masks at counts of their own. Means over photos; a figure, "
        "and JSON beside it with every photo.",
    )
    compare.add_argument("photos", nargs="+", type=Path, metavar="PHOTO|FOLDER")
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
        type=Path,
        default=Path("regiontok-compare.png"),
        metavar="FILE",
        help="the figure, and by the same name with .json the figures of every photo; default: %(default)s",
    )
    add_encoder_options(compare)
    add_mask_options(compare, name="--masks", files=True)
    compare.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    wrong = [count for count in options.tokens if count < 1]
    if wrong:
        raise RegiontokError(f"--tokens must be from 1; got {wrong[0]}.")
    if uses_masks(options) and not options.masks:
        raise RegiontokError(f"{uses_masks(options)[0]} is for --masks. Leave it out, or name a generator.")
    check_figure(options.out)
    told = options.out.with_suffix(".json")
    outputs = {options.out.resolve(), told.resolve()}
    photos = [path for path in find_photos(options.photos) if path.resolve() not in outputs]
    if not photos:
        raise RegiontokError(f"{options.out} is the only photo named, and the figure would write over it.")
    encoder = load_encoder(options)
    masks_of = load_masks(options, encoder) if options.masks else None
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
            others = {}
            if masks_of:
                masks = [masks_of(path, photo)]
                others = {name: regionizers[name].group(features, masks=masks, valid=valid) for name in MASK_SOURCES}
            found[str(path)] = compare_partitions(
                features[0], valid=valid[0], counts=counts, others=others, connectivity=options.connectivity
            )
        except FAILURES as error:
            failed.append(explain(path, error))
    for message in failed:
        print(f"regiontok: {message}", file=sys.stderr)
    if found:
        means = mean_partitions(list(found.values()))
        _print_table(means, len(found), encoder)
        by_source: dict[str, list[Any]] = {}
        for row in means:
            by_source.setdefault(row.source, []).append(row.scores)
        save_figure(draw_partitions(by_source), options.out)
        description = {
            **encoder.describe(),
            "norm": options.norm,
            "connectivity": options.connectivity,
            "masks": options.masks,
            "mean": [_row(one) for one in means],
            "photos": {path: [_row(one) for one in rows] for path, rows in found.items()},
        }
        told.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        print(f"Figure: {options.out}; every photo: {told}")
    if failed:
        print(f"regiontok: {len(failed)} of {len(photos)} photos failed and are named above.", file=sys.stderr)
    return 1 if failed else 0


def _row(one: PartitionResult) -> dict[str, Any]:
    return {"source": one.source, "tokens": one.tokens, **one.scores._asdict()}


def _print_table(rows: list[PartitionResult], photos: int, encoder: Encoder) -> None:
    options = "".join(f", {name} {value}" for name, value in encoder.options.items())
    print(f"{photos} photo{'s' * (photos != 1)}, {encoder.name}{options}")
    print(f"{'':12}  {'regions':>7}  {'kept':>7}  {'single':>7}  {'largest':>7}")
    last: int | None = -1
    for one in sorted(rows, key=lambda row: (row.tokens is None, row.tokens or 0)):
        if one.tokens != last and last != -1:
            print()
        last = one.tokens
        shares = "  ".join(
            f"{100 * share:>5.1f} %" for share in (one.scores.kept, one.scores.single, one.scores.largest)
        )
        print(f"{one.source:12}  {one.scores.regions:>7.0f}  {shares}")
    print(
        "\nkept: of the patches' squared deviation; single: regions of one patch; largest: patches in the largest one"
    )
