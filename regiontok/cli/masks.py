"""``regiontok masks``: make the masks of photos once, or bring annotated ones, and keep them in a file."""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from regiontok.cli.common import (
    FAILURES,
    add_annotation_options,
    add_mask_options,
    annotated,
    check_photo_size,
    find_photos,
    load_annotations,
    load_generator,
    progress,
)
from regiontok.cli.output import as_path, check_outputs, explain, report
from regiontok.errors import RegiontokError
from regiontok.masks import check_key, write_masks
from regiontok.maskset import MaskSet
from regiontok.photos import read_photo, read_size


def add_commands(commands: Any) -> None:
    """Add ``masks`` to the parser."""
    masks = commands.add_parser(
        "masks",
        help="make masks of photos, or take annotated ones, and keep them in a file",
        description="Write masks to a Parquet file, one row per photo: key (its path as given), height, width, COCO "
        "RLE, scores, stability, ids, categories. Other commands read it back with --masks FILE.",
    )
    masks.add_argument("photos", nargs="+", type=as_path, metavar="PHOTO|FOLDER")
    masks.add_argument("--out", type=as_path, required=True, metavar="FILE.parquet")
    masks.add_argument("--batch", type=int, default=4, metavar="N", help="photos per call of the generator; default: 4")
    add_mask_options(masks, files=False, shown="sam2")
    masks.add_argument(
        "--mosaic", type=int, metavar="N", help="N x N photos in one input of SAM: faster, with worse masks"
    )
    masks.add_argument("--device", default="cpu", help="such as cuda; default: cpu")
    add_annotation_options(masks)
    masks.set_defaults(run=_masks)


def _masks(options: argparse.Namespace) -> int:
    if options.batch < 1:
        raise RegiontokError(f"--batch must be at least 1; got {options.batch}.")
    every = list(dict.fromkeys(found.path for found in find_photos(options.photos)))  # each once, however often named
    check_outputs(options, options.out, photos=every)
    failed: list[str] = []
    photos = []
    for path in every:
        try:
            check_key(path.as_posix())
            photos.append(path)
        except RegiontokError as error:
            failed.append(explain(path, error))
    if annotated(options):
        if options.mosaic is not None:
            raise RegiontokError(f"--mosaic is for making masks, and {annotated(options)} has them. Leave it out.")
        made_by = _annotations_of(options)
        pairs = _read(options, photos, failed)
    else:
        options.masks = options.masks or "sam2"
        generator = load_generator(options, **({} if options.mosaic is None else {"mosaic": options.mosaic}))
        made_by = generator.describe()
        pairs = _generate(generator, photos, options.batch, failed)
    counts: list[int] = []

    def made() -> Iterator[tuple[str, MaskSet]]:
        for path, masks in pairs:
            counts.append(len(masks))
            yield path.as_posix(), masks
        if not counts:  # leave a file that is there as it is
            raise RegiontokError("\n".join([*failed, f"every photo failed, so {options.out} is not written."]))

    write_masks(options.out, made(), made_by=made_by)
    mean = sum(counts) / len(counts)
    print(f"{len(counts)} photos, {mean:.0f} masks each ({min(counts)} to {max(counts)}) -> {options.out}")
    return report(failed, len(every))


def _annotations_of(options: argparse.Namespace) -> dict[str, Any]:
    """Where annotated masks come from, as plain values."""
    if options.coco:
        return {"annotations": "coco", "file": options.coco.name, "iscrowd": "drop" if options.no_crowds else "keep"}
    return {"annotations": "label maps", "folder": options.label_maps.name, "ignore": options.ignore or []}


def _read(options: argparse.Namespace, photos: list[Path], failed: list[str]) -> Iterator[tuple[Path, MaskSet]]:
    """Annotated masks of every photo, whose pixels are not read."""
    read = load_annotations(options)
    for path in progress(photos):
        try:
            yield path, check_photo_size(read(path), path, read_size(path)[0], options)
        except FAILURES as error:
            failed.append(explain(path, error))


def _generate(generator: Any, photos: list[Path], batch: int, failed: list[str]) -> Iterator[tuple[Path, MaskSet]]:
    """Masks of every photo, some photos at a time; where these fail, one by one to find the one that does."""
    bar = tqdm(total=len(photos), unit="photo", disable=len(photos) == 1)
    rest = iter(photos)
    while paths := list(islice(rest, batch)):
        read: list[tuple[Path, Image.Image]] = []
        for path in paths:
            try:
                read.append((path, read_photo(path)))
            except FAILURES as error:
                failed.append(explain(path, error))
        try:
            masks = generator([photo for _, photo in read]) if read else []
            yield from zip([path for path, _ in read], masks, strict=True)
        except FAILURES:
            for path, photo in read:
                try:
                    yield path, generator([photo])[0]
                except FAILURES as error:
                    failed.append(explain(path, error))
        bar.update(len(paths))
    bar.close()
