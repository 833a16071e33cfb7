"""``regiontok masks``: make the masks of images once, or bring annotated ones, and keep them in a store."""

import argparse

from regiontok.cli.arguments import DEFAULT_BATCH
from regiontok.cli.checks import annotated
from regiontok.cli.filling import fill_store, lanes_on
from regiontok.cli.mask_sources import annotations_of, check_annotations, load_generator
from regiontok.pipeline import GenerateMasks, TakeMasks, Work
from regiontok.pipeline.roots import Roots


def run_masks(options: argparse.Namespace) -> int:
    """Run ``masks``; return the exit code."""
    options.masks = None if annotated(options) else options.masks or "sam2"
    return fill_store(options, options.out, _work, batch=DEFAULT_BATCH, prepare=check_annotations)


def _work(options: argparse.Namespace, _: Roots) -> Work:
    """Return what makes the masks, or looks them up."""
    if options.masks is None:
        annotations = annotations_of(options)
        return TakeMasks(
            lambda image, size, orientation: annotations.read(image.path, size, orientation),
            annotations.describe(),
            None if options.missing is None else load_generator(options, options.missing),
        )
    generator = load_generator(options, options.masks, **({} if options.mosaic is None else {"mosaic": options.mosaic}))
    return GenerateMasks(generator, lanes=lanes_on(options.device) if options.masks == "felzenszwalb" else 1)
