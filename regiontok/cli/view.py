"""``regiontok view``: a page to explore a photo's regions in a browser."""

import argparse
from pathlib import Path
from typing import Any

from regiontok.cli.common import (
    add_annotation_options,
    add_encoder_options,
    add_mask_options,
    has_masks,
    load_encoder,
    load_masks,
    roots_of,
)
from regiontok.cli.output import as_path, check_outputs, shown
from regiontok.options import NORMS
from regiontok.photos import read_photo
from regiontok.viewing.page import write_page


def add_commands(commands: Any) -> None:
    """Add ``view`` to the parser."""
    view = commands.add_parser(
        "view",
        help="explore a photo's regions in a browser",
        description="Write one HTML file, which needs no network: the photo with its regions, sliders over threshold "
        "and number of tokens, switches of rule and source, and similarities of regions. Sources of masks are there "
        "with --masks.",
    )
    view.add_argument("photo", type=as_path, metavar="PHOTO")
    view.add_argument("--out", type=as_path, metavar="FILE.html", help="default: the photo's name in this folder")
    start = view.add_mutually_exclusive_group()
    start.add_argument(
        "--threshold",
        type=float,
        default=0.7,
        metavar="T",
        help="where the page starts, by the paper's rule; default: 0.7",
    )
    start.add_argument("--tokens", type=int, metavar="K", help="start with K tokens by Ward's rule instead")
    view.add_argument("--norm", default="rms", choices=NORMS, help="of patch features; default: %(default)s")
    view.add_argument("--connectivity", type=int, default=4, choices=(4, 8), help="neighbours; default: 4")
    add_encoder_options(view)
    add_mask_options(view, files=True)
    add_annotation_options(view)
    view.set_defaults(run=_view)


def _view(options: argparse.Namespace) -> int:
    out = options.out or Path(f"{options.photo.stem}.html")
    check_outputs(options, out)
    with_masks = has_masks(options)
    photo = read_photo(options.photo)
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
        title=shown(options.photo.name),
        masks=masks,
        threshold=options.threshold,
        num_regions=options.tokens,
        norm=options.norm,
        connectivity=options.connectivity,
    )
    print(f"Open {shown(out)} in a browser ({out.stat().st_size / 1e6:.1f} MB).")
    return 0
