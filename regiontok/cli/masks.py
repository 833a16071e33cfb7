"""``regiontok masks``: make the masks of photos once, or bring annotated ones, and keep them in a store."""

import argparse

from regiontok.cli.arguments import DEFAULT_BATCH
from regiontok.cli.checks import annotated
from regiontok.cli.common import annotations_of, check_photo_size, find_clashes, load_annotations, load_generator
from regiontok.cli.filling import fill_store, lanes_on
from regiontok.geometry import Size
from regiontok.maskset import MaskSet
from regiontok.pipeline import GenerateMasks, Photo, TakeMasks, Work
from regiontok.pipeline.roots import Roots


def run_masks(options: argparse.Namespace) -> int:
    """Run ``masks``; return the exit code."""
    if not annotated(options):
        options.masks = options.masks or "sam2"
    return fill_store(options, options.out, _work, batch=DEFAULT_BATCH, prepare=find_clashes)


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
