"""``regiontok view``: a page to explore an image's regions in a browser."""

import argparse
from pathlib import Path

from regiontok.cli.checks import has_masks
from regiontok.cli.common import load_encoder, roots_of
from regiontok.cli.console import one_line
from regiontok.cli.mask_sources import load_masks
from regiontok.cli.output import check_outputs
from regiontok.images import read_image
from regiontok.viewing.page import write_page


def run_view(options: argparse.Namespace) -> int:
    """Run ``view``; return the exit code."""
    out = options.out or Path(f"{options.image.stem}.html")
    check_outputs(options, out)
    with_masks = has_masks(options)
    image = read_image(options.image, bits=options.bits)
    encoder = load_encoder(options)
    masks = (
        load_masks(options, encoder, roots=roots_of(options, [options.image]))(options.image, image)
        if with_masks
        else None
    )
    write_page(
        out,
        image,
        encoder,
        title=one_line(options.image.name),
        masks=masks,
        threshold=options.threshold,
        num_regions=options.tokens,
        keep=options.keep,
        norm=options.norm,
        connectivity=options.connectivity,
    )
    print(f"Open {one_line(out)} in a browser ({out.stat().st_size / 1e6:.1f} MB).")
    return 0
