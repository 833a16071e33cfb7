"""``regiontok masks``: make the masks of photos once, and keep them in a file."""

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from regiontok.cli.common import FAILURES, add_mask_options, explain, find_photos, load_generator
from regiontok.errors import RegiontokError
from regiontok.masks import write_masks
from regiontok.maskset import MaskSet
from regiontok.photos import read_photo


def add_commands(commands: Any) -> None:
    """Add ``masks`` to the parser."""
    masks = commands.add_parser(
        "masks",
        help="make masks of photos and keep them in a file",
        description="Write masks to a Parquet file, one row per photo: key (its path as given), height, width, COCO "
        "RLE, scores, stability. tokenize and count read it back with --masks FILE.",
    )
    masks.add_argument("photos", nargs="+", type=Path, metavar="PHOTO|FOLDER")
    masks.add_argument("--out", type=Path, required=True, metavar="FILE.parquet")
    masks.add_argument("--batch", type=int, default=4, metavar="N", help="photos per call of the generator; default: 4")
    add_mask_options(masks, name="--generator", files=False, default="sam2", shown="sam2")
    masks.add_argument(
        "--mosaic", type=int, metavar="N", help="N x N photos in one input of SAM: faster, with worse masks"
    )
    masks.add_argument("--device", default="cpu", help="such as cuda; default: cpu")
    masks.set_defaults(run=_masks)


def _masks(options: argparse.Namespace) -> int:
    if options.batch < 1:
        raise RegiontokError(f"--batch must be at least 1; got {options.batch}.")
    photos = list(dict.fromkeys(find_photos(options.photos)))  # each once, however often it is named
    if options.out.resolve() in {photo.resolve() for photo in photos}:
        raise RegiontokError(f"--out must not be one of the photos; got {options.out}. Name a file of its own.")
    generator = load_generator(options, **({} if options.mosaic is None else {"mosaic": options.mosaic}))
    failed: list[str] = []
    counts: list[int] = []

    def made() -> Iterator[tuple[str, MaskSet]]:
        for path, masks in _generate(generator, photos, options.batch, failed):
            counts.append(len(masks))
            yield path.as_posix(), masks
        if not counts:  # leave a file that is there as it is
            raise RegiontokError("; ".join([*failed, f"every photo failed, so {options.out} is not written"]))

    write_masks(options.out, made(), made_by=generator.describe())
    for message in failed:
        print(f"regiontok: {message}", file=sys.stderr)
    if counts:
        mean = sum(counts) / len(counts)
        print(f"{len(counts)} photos, {mean:.0f} masks each ({min(counts)} to {max(counts)}) -> {options.out}")
    if failed:
        print(f"regiontok: {len(failed)} of {len(photos)} photos failed and are named above.", file=sys.stderr)
    return 1 if failed else 0


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
