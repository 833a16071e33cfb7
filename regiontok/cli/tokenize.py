"""``regiontok tokenize`` and ``demo``: cut images into region tokens."""

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

from regiontok import __version__, encoders
from regiontok._files import make_folder, written
from regiontok.choices import GENERATORS, MASK_SOURCES, Source
from regiontok.cli.arguments import DEFAULT_BATCH, DEFAULT_OUT
from regiontok.cli.checks import REGION_OPTIONS, amount_of, annotated
from regiontok.cli.common import (
    FAILURES,
    Found,
    Stopwatch,
    find_images,
    load_encoder,
    roots_of,
)
from regiontok.cli.console import one_line, progress, warn
from regiontok.cli.filling import fill_store, lanes_on
from regiontok.cli.mask_sources import annotations_of, check_annotations, load_generator, load_masks
from regiontok.cli.output import check_outputs, explain, report, write_details
from regiontok.clustering import UnionFindClusterer
from regiontok.encoders import Encoder
from regiontok.errors import DataError, OutputError, RegiontokError
from regiontok.geometry import ImageGeometry
from regiontok.images import read_image
from regiontok.maskset import MaskSet
from regiontok.pipeline import MakeTokens, Work
from regiontok.pipeline.roots import Roots, identity
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions
from regiontok.store import MaskStore
from regiontok.store.manifest import read_manifest
from regiontok.store.places import Place, is_remote
from regiontok.token_files import read_config, save_tokens
from regiontok.tokens import RegionTokens
from regiontok.viewing import draw_regions

_MOST_LINES = 10
"""Images that are listed one by one; of more there is a summary."""
_STAGES = ("read", "encode", "masks", "normalize", "group", "pool", "write")


class Row(NamedTuple):
    """One line of the table: an image, its counts, seconds per stage, and what became of its masks."""

    image: str
    patches: int
    regions: int
    seconds: dict[str, float]
    notes: list[str]

    def details(self) -> dict[str, Any]:
        """As a row of a table of every image."""
        times = {f"{stage}_ms": round(1000 * value, 3) for stage, value in self.seconds.items()}
        return {
            "image": self.image,
            "patches": self.patches,
            "tokens": self.regions,
            **times,
            "notes": "; ".join(self.notes),
        }


def run_tokenize(options: argparse.Namespace) -> int:
    """Run ``tokenize``; return the exit code."""
    if options.source in MASK_SOURCES and not annotated(options):
        options.masks = options.masks or "sam2"
    if options.store is not None:
        return _fill(options)
    named = [Path(one) for one in options.images]
    images = find_images(named)
    out = make_folder(options.out or DEFAULT_OUT)
    check_outputs(options, images=[found.path for found in images])
    targets = _targets(images, out)
    encoder = load_encoder(options)
    masks_of = load_masks(options, encoder, roots=roots_of(options, named)) if options.source in MASK_SOURCES else None
    regionizer = _regionizer(options, encoder)
    _warm_up(options.source)
    rows: list[Row] = []
    details: list[dict[str, Any]] = []
    failed = []
    for found, target in progress(list(zip(images, targets, strict=True))):
        path = found.path
        find = partial(masks_of, path) if masks_of else None
        try:
            make_folder(target.parent)
            read = partial(read_image, path, bits=options.bits)
            row = _tokenize_image(str(path), read, encoder, regionizer, target, find, options.pictures is not False)
            rows.append(row)
            details.append(rows[-1].details())
        except FAILURES as error:
            failed.append(explain(path, error))
            details.append({"image": str(path), "error": str(error)})
    write_details(options, details)
    if rows:
        _print_table(rows)
        what = "Tokens are" if options.pictures is False else "Pictures and tokens are"
        print(f"{what} in {one_line(out)}{os.sep}")
    return report(failed, len(images))


def _regionizer(options: argparse.Namespace, encoder: Encoder) -> Regionizer:
    given = {name: getattr(options, name) for name in REGION_OPTIONS if getattr(options, name) is not None}
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
    """Tokens of many images to a store."""
    if options.pictures and is_remote(options.store):
        raise RegiontokError("--pictures are files on a disk, and this store is none. Leave it out.")
    return fill_store(options, options.store, _work, batch=DEFAULT_BATCH, prepare=check_annotations)


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
        work.masks_told = _describe_masks(options)
        if options.masks in GENERATORS:  # beside the encoder, and not in the threads that read
            work.generator = lambda images: [masks_of("", image) for image in images]
            work.lanes = work.lanes if options.masks == "felzenszwalb" else 1  # SAM takes all cores by itself
        else:
            work.masks = lambda listed, image: masks_of(listed.path, image)
    return work


def _describe_masks(options: argparse.Namespace) -> dict[str, Any]:
    """Return where the masks of a store's tokens are from, as plain values."""
    missing = {} if options.missing is None else {"missing": load_generator(options, options.missing).describe()}
    if annotated(options):
        return annotations_of(options).describe() | missing
    if options.masks in GENERATORS:
        described: dict[str, Any] = load_generator(options, options.masks).describe()
        return described
    manifest = read_manifest(Place.of(options.masks))
    made_by = MaskStore(options.masks).made_by if manifest is None else manifest.made_by
    return made_by | missing


def _draw(store: Path, geometry: ImageGeometry, key: str, image: Image.Image, regions: Regions) -> None:
    """Keep a picture of an image's regions in a store's folder."""
    target = store / "pictures" / f"{key}.regions.png"  # with its suffix: a.jpg and a.png are two images
    try:
        make_folder(target.parent)
        with written(target) as picture:
            draw_regions(image, regions, geometry.place((image.height, image.width))).save(picture, "PNG")
    except OutputError as error:
        warn(error)  # its tokens are made all the same


def run_demo(options: argparse.Namespace) -> int:
    """Run ``demo``; return the exit code."""
    start = time.perf_counter()
    encoder = encoders.load("pixels")
    regionizer = Regionizer(pool="mean")
    out = make_folder(options.out)
    compiling = _warm_up()
    row = _tokenize_image(
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


def _tokenize_image(
    name: str,
    read: Callable[[], Image.Image],
    encoder: Encoder,
    regionizer: Regionizer,
    target: Path,
    find_masks: Callable[[Image.Image], MaskSet] | None = None,
    picture: bool = True,
) -> Row:
    """Run one image through every stage and write its picture, if it is wanted, and tensors beside ``target``."""
    watch = Stopwatch(encoder.device)
    image = watch.time("read", read)
    features, valid = watch.time("encode", lambda: encoder(image))
    masks = None if find_masks is None else [watch.time("masks", lambda: find_masks(image))]
    features = watch.time("normalize", lambda: regionizer.normalize(features))
    regions = watch.time("group", lambda: regionizer.order(regionizer.group(features, masks=masks, valid=valid)))
    tokens = watch.time("pool", lambda: regionizer.pool(features, regions))
    watch.time("write", lambda: _write(name, image, encoder, regionizer, tokens, target, picture))
    patches = int(valid.sum()) if regionizer.config.padding == "drop" else valid.numel()
    return Row(name, patches, len(regions), watch.seconds, _notes(regions))


def _notes(regions: Regions) -> list[str]:
    """What became of masks that are no region."""
    reasons = Counter(dropped.reason for dropped in regions.dropped)
    notes = [f"{count} mask{'s' * (count != 1)} became no region: {reason}" for reason, count in reasons.items()]
    return notes + ["no mask is left; one region of the whole image"] * bool(regions.fallback.any())


def _write(
    name: str,
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
        "image": name,
        "image_id": identity(name),
        "image_size": [image.height, image.width],
        **encoder.describe(),
        "regionizer": regionizer.config.to_dict(),
    }
    save_tokens(_tensors(target), tokens, config=description)


def _warm_up(source: Source = "clustering") -> float:
    """Compile before the first image, whose times would else tell of compiling; returns the seconds it took."""
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


def _targets(images: Sequence[Found], out: Path) -> list[Path]:
    """Where each image's files go, but for their endings: as it lies below its folder.

    With a number where that is another image's of this run or of one before, or would write over an image.
    """
    kept = {os.path.realpath(found.path) for found in images}
    taken: set[str] = set()
    targets = []
    for found in images:
        target, number = out / found.name.with_suffix(""), 2
        while (
            str(target).lower() in taken
            or os.path.realpath(_picture(target)) in kept
            or _image_of(_tensors(target)) not in (None, identity(found.path))
        ):
            target, number = out / found.name.with_name(f"{found.name.stem}-{number}"), number + 1
        taken.add(str(target).lower())
        targets.append(target)
    return targets


def _image_of(file: Path) -> str | None:
    """The identity of a token file's image; None where there is no such file, empty where it does not tell."""
    if not os.path.isfile(file):  # noqa: PTH113  a name that is too long is none
        return None
    try:
        return str(read_config(file).get("image_id"))
    except DataError:
        return ""


def _print_table(rows: Sequence[Row]) -> None:
    """A line per image where these are few, and the mean where there are several."""
    lines = list(rows) if len(rows) <= _MOST_LINES else []
    width = min(40, max(5, *(len(one_line(row.image)) for row in rows)))
    stages = [stage for stage in _STAGES if stage in rows[0].seconds]
    print(f"{'image':<{width}}  patches  regions  " + "  ".join(f"{stage:>9}" for stage in stages) + "  ms")
    if len(rows) > 1:
        times = {stage: sum(row.seconds[stage] for row in rows) / len(rows) for stage in stages}
        patches = sum(row.patches for row in rows) / len(rows)
        regions = sum(row.regions for row in rows) / len(rows)
        lines.append(Row("mean", round(patches), round(regions), times, []))
    for row in lines:
        name = one_line(row.image)
        name = name if len(name) <= width else "..." + name[3 - width :]
        columns = "  ".join(f"{1000 * row.seconds[stage]:>9.1f}" for stage in stages)
        print(f"{name:<{width}}  {row.patches:>7}  {row.regions:>7}  {columns}")
    if len(rows) > 1:
        least, most = min(row.regions for row in rows), max(row.regions for row in rows)
        print(f"{len(rows)} images, {least if least == most else f'{least} to {most}'} regions each")
    if len(rows) <= _MOST_LINES:
        for row in rows:
            for note in row.notes:
                print(f"{one_line(row.image)}: {note}")
        return
    images = Counter(note.partition(": ")[2] or note for row in rows for note in row.notes)
    for note, count in images.items():
        print(f"{count} images: {note}")
    print("--csv FILE or --json FILE has every image.")
