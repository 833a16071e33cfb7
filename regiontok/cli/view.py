"""``regiontok view``: a page to explore the regions of an image in a browser."""

from argparse import Namespace
from pathlib import Path

from regiontok.cli.console import one_line
from regiontok.cli.loading import load_image_encoder
from regiontok.cli.mask_sources import masks_of_file
from regiontok.cli.output import check_outputs
from regiontok.cli.regions import default_norm, region_configs
from regiontok.cli.values import EncoderChoice, mask_choice
from regiontok.images import read_image
from regiontok.viewing.page import write_page


def run_view(options: Namespace) -> int:
    """Run ``view``, and return the exit code."""
    encoder_choice, choice = EncoderChoice.of(options), mask_choice(options)
    (config,) = region_configs(options, **default_norm(options)).values()
    out = options.out or Path(f"{options.image.stem}.html")
    check_outputs([out], [options.image], encoder_choice, choice)
    image = read_image(options.image, bits=options.bits)
    encoder = load_image_encoder(encoder_choice)
    write_page(
        out,
        image,
        encoder,
        title=one_line(options.image.name),
        masks=masks_of_file(choice, options.image, image, encoder=encoder),
        threshold=0.7 if config.threshold is None else config.threshold,
        num_regions=config.num_regions,
        keep=config.keep,
        norm=config.norm,
        connectivity=config.connectivity,
    )
    print(f"Open {one_line(out)} in a browser ({out.stat().st_size / 1e6:.1f} MB).")
    return 0
