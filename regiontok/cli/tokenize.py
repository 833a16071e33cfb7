"""``regiontok tokenize`` and ``demo``: cut photos into region tokens."""

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from regiontok import __version__, encoders, masks
from regiontok._files import make_folder, written
from regiontok.cli.common import (
    FAILURES,
    Found,
    Stopwatch,
    add_amount_options,
    add_annotation_options,
    add_encoder_options,
    add_mask_options,
    amount_of,
    annotated,
    annotations_of,
    find_clashes,
    find_photos,
    load_encoder,
    load_generator,
    load_masks,
    named_amounts,
    progress,
    roots_of,
    uses_masks,
)
from regiontok.cli.filling import FILLING, add_filling_options, add_listing_options, fill_store, lanes_on
from regiontok.cli.output import (
    add_details_options,
    as_path,
    as_text,
    check_outputs,
    explain,
    report,
    shown,
    warn,
    write_details,
)
from regiontok.clustering import UnionFindClusterer
from regiontok.downsample import METHODS, OVERLAPS, UNCOVERED
from regiontok.encoders import Encoder
from regiontok.errors import CheckpointError, OutputError, RegiontokError
from regiontok.geometry import ImageGeometry
from regiontok.maskset import MaskSet
from regiontok.options import MASK_SOURCES, NORMS, PADDINGS, SOURCES
from regiontok.ordering import ORDERS
from regiontok.photos import read_photo
from regiontok.pipeline import MakeTokens, Work
from regiontok.pipeline.roots import Roots, identity
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions, RegionTokens
from regiontok.splitting import NOISES
from regiontok.store import MaskStore
from regiontok.store.manifest import read_manifest
from regiontok.store.places import Place, is_remote
from regiontok.store.tokens import DTYPES
from regiontok.token_files import read_config, save_tokens
from regiontok.viewing import draw_regions

_OUT = "regiontok-out"
_BATCH = 4
_MOST_LINES = 10
"""Photos that are listed one by one; of more there is a summary."""
_STAGES = ("read", "encode", "masks", "normalize", "group", "pool", "write")


class Row(NamedTuple):
    """One line of the table: a photo, its counts, seconds per stage, and what became of its masks."""

    photo: str
    patches: int
    regions: int
    seconds: dict[str, float]
    notes: list[str]

    def details(self) -> dict[str, Any]:
        """As a row of a table of every photo."""
        times = {f"{stage}_ms": round(1000 * value, 3) for stage, value in self.seconds.items()}
        return {
            "photo": self.photo,
            "patches": self.patches,
            "tokens": self.regions,
            **times,
            "notes": "; ".join(self.notes),
        }


def add_commands(commands: Any) -> None:
    """Add ``tokenize`` and ``demo`` to the parser."""
    tokenize = commands.add_parser(
        "tokenize",
        help="cut photos into region tokens",
        description="Write, per photo, NAME.regions.png (its regions, outlined and filled) and "
        "NAME.regions.safetensors: tokens (K, dim), the options as JSON, and labels (rows, cols; -1 in no region), or "
        "for sources of masks, whose regions may overlap, masks (K, rows, cols), mask_index and scores (K). A token is "
        "its region's mean. regiontok.load_tokens reads it back.",
    )
    tokenize.add_argument(
        "photos", nargs="+", type=as_text, metavar="PHOTO|FOLDER", help="with --store also a pattern or a list"
    )
    add_encoder_options(tokenize)
    tokenize.add_argument("--source", default="clustering", choices=SOURCES, help="of regions; default: %(default)s")
    add_amount_options(tokenize)
    tokenize.add_argument("--connectivity", type=int, default=4, choices=(4, 8), help="neighbours; default: 4")
    tokenize.add_argument("--norm", default="rms", choices=NORMS, help="of patch features; default: %(default)s")
    tokenize.add_argument("--order", default="raster", choices=ORDERS, help="of the tokens; default: %(default)s")
    tokenize.add_argument("--padding", default="drop", choices=PADDINGS, help="letterbox padding; default: %(default)s")
    out = tokenize.add_mutually_exclusive_group()
    out.add_argument(
        "--out",
        type=as_path,
        metavar="DIR",
        help=f"for the files, each where its photo lies below the folder that was named; default: {_OUT}",
    )
    out.add_argument(
        "--store",
        type=as_text,
        metavar="DIR",
        help="write a store of tokens instead, for many photos: a folder of Parquet files, which goes on where it "
        "stopped; on a disk, or where fsspec reaches, such as s3://bucket/tokens",
    )
    tokenize.add_argument(
        "--pictures",
        action=argparse.BooleanOptionalAction,
        help="draw the regions; default: yes, but with --store, where they come into its folder pictures, no",
    )
    tokenize.add_argument("--dtype", choices=DTYPES, help="of the tokens in a store; default: float16")
    add_details_options(tokenize)
    add_mask_options(tokenize, files=True, shown="sam2")
    add_annotation_options(tokenize)
    regions = tokenize.add_argument_group("regions of masks")
    regions.add_argument("--coverage", type=float, metavar="C", help="of a patch that puts it in a mask; default: 0.07")
    regions.add_argument("--downsampling", choices=METHODS, help="how that is measured; default: exact")
    regions.add_argument("--uncovered", choices=UNCOVERED, help="patches in no mask; default: drop")
    regions.add_argument("--overlap", choices=OVERLAPS, help="patches in several masks; default: keep")
    regions.add_argument("--eps", type=float, help="of --source combined; default: 0.7")
    regions.add_argument("--min-samples", type=int, help="of --source combined; default: 3")
    regions.add_argument("--split-min-patches", type=int, help="of --source combined; default: 10")
    regions.add_argument("--noise", choices=NOISES, help="of --source combined; default: own_region")
    add_listing_options(tokenize, root=False, title="photos of a store")
    add_filling_options(tokenize, batch=_BATCH, of="the encoder")
    tokenize.set_defaults(run=_tokenize)

    demo = commands.add_parser("demo", help="cut scikit-learn's sample photo into region tokens, offline, in seconds")
    demo.add_argument("--out", type=as_path, default=Path("regiontok-demo"), metavar="DIR", help="default: %(default)s")
    demo.set_defaults(run=_demo)


def _tokenize(options: argparse.Namespace) -> int:
    _check(options)
    if options.source in MASK_SOURCES and not annotated(options):
        options.masks = options.masks or "sam2"
    if options.store is not None:
        return _fill(options)
    given = [name for name in (*FILLING, "dtype") if getattr(options, name) not in (None, False)]
    if given:
        raise RegiontokError(f"--{given[0].replace('_', '-')} is for --store. Leave it out, or name a store.")
    named = [Path(one) for one in options.photos]
    photos = find_photos(named)
    out = make_folder(options.out or _OUT)
    check_outputs(options, photos=[found.path for found in photos])
    targets = _targets(photos, out)
    encoder = load_encoder(options)
    masks_of = load_masks(options, encoder, roots=roots_of(options, named)) if options.source in MASK_SOURCES else None
    regionizer = _regionizer(options, encoder)
    _warm_up(options.source)
    rows: list[Row] = []
    details: list[dict[str, Any]] = []
    failed = []
    for found, target in progress(list(zip(photos, targets, strict=True))):
        path = found.path
        find = partial(masks_of, path) if masks_of else None
        try:
            make_folder(target.parent)
            row = _tokenize_photo(
                str(path), partial(read_photo, path), encoder, regionizer, target, find, options.pictures is not False
            )
            rows.append(row)
            details.append(rows[-1].details())
        except FAILURES as error:
            failed.append(explain(path, error))
            details.append({"photo": str(path), "error": str(error)})
    write_details(options, details)
    if rows:
        _print_table(rows)
        what = "Tokens are" if options.pictures is False else "Pictures and tokens are"
        print(f"{what} in {shown(out)}{os.sep}")
    return report(failed, len(photos))


def _regionizer(options: argparse.Namespace, encoder: Encoder) -> Regionizer:
    given = {name: getattr(options, name) for name in _REGION_OPTIONS if getattr(options, name) is not None}
    return Regionizer(
        source=options.source,
        norm=options.norm,
        pool="mean",  # what an untrained cross-attention pool gives
        order=options.order,
        **amount_of(options),
        connectivity=options.connectivity,
        padding=options.padding,
        geometry=encoder.geometry if options.source in MASK_SOURCES else None,
        **given,
    )


def _fill(options: argparse.Namespace) -> int:
    """Tokens of many photos to a store."""
    for name in ("csv", "json"):
        if getattr(options, name):
            raise RegiontokError(f"--{name} is for --out; a store tells by regiontok store {options.store} --stats.")
    if options.pictures and is_remote(options.store):
        raise RegiontokError("--pictures are files on a disk, and this store is none. Leave it out.")
    return fill_store(options, options.store, _work, batch=_BATCH, prepare=find_clashes)


def _work(options: argparse.Namespace, roots: Roots) -> Work:
    """What makes the tokens."""
    encoder = load_encoder(options)
    work = MakeTokens(
        encoder,
        _regionizer(options, encoder),
        dtype=options.dtype or "float16",
        lanes=lanes_on(options.device, order=options.order),
        draw=partial(_draw, Path(options.store), encoder.geometry) if options.pictures else None,
    )
    _warm_up(options.source)
    if options.source in MASK_SOURCES:
        masks_of = load_masks(options, encoder, roots=roots)
        work.masks_told = _masks_told(options)
        if options.masks in masks.GENERATORS:  # beside the encoder, and not in the threads that read
            work.generator = lambda images: [masks_of("", image) for image in images]
            work.lanes = work.lanes if options.masks == "felzenszwalb" else 1  # SAM takes all cores by itself
        else:
            work.masks = lambda photo, image: masks_of(photo.address, image)
    return work


def _masks_told(options: argparse.Namespace) -> dict[str, Any]:
    """Where the masks of a store's tokens are from, as plain values."""
    if annotated(options):
        return annotations_of(options)
    if options.masks in masks.GENERATORS:
        told: dict[str, Any] = load_generator(options).describe()
        return told
    manifest = read_manifest(Place.of(options.masks))
    made_by = MaskStore(options.masks).made_by if manifest is None else manifest.made_by
    return made_by | ({"missing": options.missing} if options.missing else {})


def _draw(store: Path, geometry: ImageGeometry, key: str, image: Image.Image, regions: Regions) -> None:
    """Keep a picture of a photo's regions in a store's folder."""
    target = store / "pictures" / f"{key}.regions.png"  # with its suffix: a.jpg and a.png are two photos
    try:
        make_folder(target.parent)
        with written(target) as picture:
            draw_regions(image, regions, geometry.place((image.height, image.width))).save(picture, "PNG")
    except OutputError as error:
        warn(error)  # its tokens are made all the same


_COMBINED_OPTIONS = ("eps", "min_samples", "split_min_patches", "noise")
_REGION_OPTIONS = ("coverage", "downsampling", "uncovered", "overlap", *_COMBINED_OPTIONS)


def _check(options: argparse.Namespace) -> None:
    """Refuse options that the source has no use for."""
    given, of_combined = (
        [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None]
        for names in (_REGION_OPTIONS, _COMBINED_OPTIONS)
    )
    clusters = options.source == "clustering" or options.uncovered == "cluster"
    amounts = named_amounts(options)
    if amounts and not clusters:
        raise RegiontokError(f"{amounts[0]} is for --source clustering, or for --uncovered cluster. Leave it out.")
    if options.source != "clustering" and options.linkage == "ward":
        raise RegiontokError("--linkage ward is for --source clustering, which can have a budget. Leave it out.")
    if options.source != "clustering" and (options.tokens is not None or options.explained_variance is not None):
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


def _demo(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    encoder = encoders.load("pixels")
    regionizer = Regionizer(pool="mean")
    out = make_folder(options.out)
    compiling = _warm_up()
    row = _tokenize_photo(
        "china.jpg", lambda: Image.fromarray(load_sample_image("china.jpg")), encoder, regionizer, out / "china"
    )
    _print_table([row])
    whole = time.perf_counter() - start
    print(f"\n{row.patches} patches -> {row.regions} regions; see {out / 'china.regions.png'}")
    print(
        f"Clustering took {1000 * row.seconds['group']:.1f} ms of {whole:.1f} s "
        f"({compiling:.1f} s of that to load or compile it)."
    )
    return 0


def _tokenize_photo(
    photo: str,
    read: Callable[[], Image.Image],
    encoder: Encoder,
    regionizer: Regionizer,
    target: Path,
    find_masks: Callable[[Image.Image], MaskSet] | None = None,
    picture: bool = True,
) -> Row:
    """Run one photo through every stage and write its picture, if it is wanted, and tensors beside ``target``."""
    watch = Stopwatch(encoder.device)
    image = watch.time("read", read)
    features, valid = watch.time("encode", lambda: encoder(image))
    masks = None if find_masks is None else [watch.time("masks", lambda: find_masks(image))]
    features = watch.time("normalize", lambda: regionizer.normalize(features))
    regions = watch.time("group", lambda: regionizer.order(regionizer.group(features, masks=masks, valid=valid)))
    tokens = watch.time("pool", lambda: regionizer.pool(features, regions))
    watch.time("write", lambda: _write(photo, image, encoder, regionizer, tokens, target, picture))
    patches = int(valid.sum()) if regionizer.config["padding"] == "drop" else valid.numel()
    return Row(photo, patches, len(regions), watch.seconds, _notes(regions))


def _notes(regions: Regions) -> list[str]:
    """What became of masks that are no region."""
    reasons = Counter(dropped.reason for dropped in regions.dropped)
    notes = [f"{count} mask{'s' * (count != 1)} became no region: {reason}" for reason, count in reasons.items()]
    return notes + ["no mask is left; one region of the whole photo"] * bool(regions.fallback.any())


def _write(
    photo: str,
    image: Image.Image,
    encoder: Encoder,
    regionizer: Regionizer,
    tokens: RegionTokens,
    target: Path,
    picture: bool,
) -> None:
    if picture:
        placement = encoder.geometry.place((image.height, image.width))
        with written(_picture(target)) as file:
            draw_regions(image, tokens.regions, placement).save(file, "PNG")
    description = {
        "regiontok": __version__,
        "photo": photo,
        "photo_id": identity(photo),
        "photo_size": [image.height, image.width],
        **encoder.describe(),
        "regionizer": regionizer.config,
    }
    save_tokens(_tensors(target), tokens, config=description)


def _warm_up(source: str = "clustering") -> float:
    """Compile before the first photo, whose times would else tell of compiling; returns the seconds it took."""
    start = time.perf_counter()
    UnionFindClusterer()(torch.ones(1, 1, 2, 1))
    if source in MASK_SOURCES:
        regionizer = Regionizer(source=source, pool="mean", geometry=ImageGeometry.squash(2), split_min_patches=1)
        regionizer.group(torch.ones(1, 1, 2, 1), masks=[MaskSet.from_labels(torch.tensor([[0, 1]]))])
    return time.perf_counter() - start


def _picture(target: Path) -> Path:
    return target.with_name(target.name + ".regions.png")


def _tensors(target: Path) -> Path:
    return target.with_name(target.name + ".regions.safetensors")


def _targets(photos: Sequence[Found], out: Path) -> list[Path]:
    """Where each photo's files go, but for their endings: as it lies below its folder.

    With a number where that is another photo's of this run or of one before, or would write over a photo.
    """
    kept = {found.path.resolve() for found in photos}
    taken: set[str] = set()
    targets = []
    for found in photos:
        target, number = out / found.name.with_suffix(""), 2
        while (
            str(target).lower() in taken
            or _picture(target).resolve() in kept
            or _photo_of(_tensors(target)) not in (None, identity(found.path))
        ):
            target, number = out / found.name.with_name(f"{found.name.stem}-{number}"), number + 1
        taken.add(str(target).lower())
        targets.append(target)
    return targets


def _photo_of(file: Path) -> str | None:
    """The identity of a token file's photo; None where there is no such file, empty where it does not tell."""
    if not os.path.isfile(file):  # noqa: PTH113  a name that is too long is none
        return None
    try:
        return str(read_config(file).get("photo_id"))
    except CheckpointError:
        return ""


def _print_table(rows: Sequence[Row]) -> None:
    """A line per photo where these are few, and the mean where there are several."""
    lines = list(rows) if len(rows) <= _MOST_LINES else []
    width = min(40, max(5, *(len(shown(row.photo)) for row in rows)))
    stages = [stage for stage in _STAGES if stage in rows[0].seconds]
    print(f"{'photo':<{width}}  patches  regions  " + "  ".join(f"{stage:>9}" for stage in stages) + "  ms")
    if len(rows) > 1:
        times = {stage: sum(row.seconds[stage] for row in rows) / len(rows) for stage in stages}
        patches = sum(row.patches for row in rows) / len(rows)
        regions = sum(row.regions for row in rows) / len(rows)
        lines.append(Row("mean", round(patches), round(regions), times, []))
    for row in lines:
        name = shown(row.photo)
        name = name if len(name) <= width else "..." + name[3 - width :]
        columns = "  ".join(f"{1000 * row.seconds[stage]:>9.1f}" for stage in stages)
        print(f"{name:<{width}}  {row.patches:>7}  {row.regions:>7}  {columns}")
    if len(rows) > 1:
        least, most = min(row.regions for row in rows), max(row.regions for row in rows)
        print(f"{len(rows)} photos, {least if least == most else f'{least} to {most}'} regions each")
    if len(rows) <= _MOST_LINES:
        for row in rows:
            for note in row.notes:
                print(f"{shown(row.photo)}: {note}")
        return
    photos = Counter(note.partition(": ")[2] or note for row in rows for note in row.notes)
    for note, count in photos.items():
        print(f"{count} photos: {note}")
    print("--csv FILE or --json FILE has every photo.")
