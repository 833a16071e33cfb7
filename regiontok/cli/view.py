"""``regiontok view``: a page to explore a photo's regions in a browser."""

import argparse
from pathlib import Path

from regiontok.cli.checks import has_masks
from regiontok.cli.common import load_encoder, roots_of
from regiontok.cli.console import one_line
from regiontok.cli.mask_sources import load_masks
from regiontok.cli.output import check_outputs
from regiontok.photos import read_photo
from regiontok.viewing.page import write_page


def run_view(options: argparse.Namespace) -> int:
    """Run ``view``; return the exit code."""
    out = options.out or Path(f"{options.photo.stem}.html")
    check_outputs(options, out)
    with_masks = has_masks(options)
    photo = read_photo(options.photo, bits=options.bits)
    encoder = load_encoder(options)
    masks = (
        load_masks(options, encoder, roots=roots_of(options, [options.photo]))(options.photo, photo)
        if with_masks
        else None
    )
    write_page(
        out,
        photo,
        encoder,
        title=one_line(options.photo.name),
        masks=masks,
        threshold=options.threshold,
        num_regions=options.tokens,
        keep=options.keep,
        norm=options.norm,
        connectivity=options.connectivity,
    )
    print(f"Open {one_line(out)} in a browser ({out.stat().st_size / 1e6:.1f} MB).")
    return 0
