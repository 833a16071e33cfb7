"""``regiontok masks``: make the masks of photos once, or bring annotated ones, and keep them in a store."""

import argparse
from typing import Any

from regiontok.cli.common import (
    add_annotation_options,
    add_mask_options,
    annotated,
    annotations_of,
    check_photo_size,
    find_clashes,
    load_annotations,
    load_generator,
)
from regiontok.cli.filling import PHOTOS, add_filling_options, add_listing_options, fill_store, lanes_on
from regiontok.cli.output import as_text
from regiontok.errors import RegiontokError
from regiontok.geometry import Size
from regiontok.maskset import MaskSet
from regiontok.pipeline import GenerateMasks, Photo, TakeMasks, Work
from regiontok.pipeline.roots import Roots

_BATCH = 4


def add_commands(commands: Any) -> None:
    """Add ``masks`` to the parser."""
    masks = commands.add_parser(
        "masks",
        help="make masks of photos, or take annotated ones, and keep them in a store",
        description="Write masks to a store, a folder of Parquet files with a row per photo: key (its path below the "
        "folder that was named), height, width, COCO RLE, scores, stability, ids, categories. What the store has is "
        "not made again, so that the same command goes on after any interruption. Other commands read it with --masks "
        "DIR. It may lie on a disk, or where fsspec reaches, such as s3://bucket/masks; so may photos.",
    )
    masks.add_argument("photos", nargs="+", type=as_text, metavar=PHOTOS)
    add_listing_options(masks)
    masks.add_argument("--out", type=as_text, required=True, metavar="DIR", help="the store")
    add_mask_options(masks, files=False, shown="sam2")
    masks.add_argument(
        "--mosaic", type=int, metavar="N", help="N x N photos in one input of SAM: faster, with worse masks"
    )
    masks.add_argument("--device", default="cpu", help="such as cuda; default: cpu")
    add_annotation_options(masks)
    add_filling_options(masks, batch=_BATCH, of="the generator")
    masks.set_defaults(run=_masks)


def _masks(options: argparse.Namespace) -> int:
    if annotated(options) and options.mosaic is not None:
        raise RegiontokError(f"--mosaic is for making masks, and {annotated(options)} has them. Leave it out.")
    if not annotated(options):
        options.masks = options.masks or "sam2"
    return fill_store(options, options.out, _work, batch=_BATCH, prepare=find_clashes)


def _work(options: argparse.Namespace, roots: Roots) -> Work:
    """What makes the masks, or takes them."""
    if annotated(options):
        read = load_annotations(options)

        def find(photo: Photo, size: Size, orientation: int) -> MaskSet:
            found = read(photo.address, orientation)
            return check_photo_size(found, photo.address, size, orientation, options)

        return TakeMasks(find, annotations_of(options))
    generator = load_generator(options, **({} if options.mosaic is None else {"mosaic": options.mosaic}))
    return GenerateMasks(generator, lanes=lanes_on(options.device) if options.masks == "felzenszwalb" else 1)
