"""``regiontok view``: a page to explore the regions of an image or video in a browser."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from regiontok.cli.console import one_line
from regiontok.cli.loading import load_image_encoder
from regiontok.cli.mask_sources import masks_of_file
from regiontok.cli.output import check_outputs
from regiontok.cli.regions import default_norm, region_configs
from regiontok.cli.values import EncoderChoice, FrameChoice, mask_choice
from regiontok.errors import RegiontokError
from regiontok.images import read_image
from regiontok.videos import read_video
from regiontok.viewing.page import write_page


def run_view(options: Namespace) -> int:
    """Run ``view``, and return the exit code."""
    encoder_choice, choice, frames = EncoderChoice.of(options), mask_choice(options), FrameChoice.of(options)
    if frames is not None and choice is not None:
        raise RegiontokError("the page of a video has no masks. Leave masks out.")
    (config,) = region_configs(options, **default_norm(options)).values()
    out = options.out or Path(f"{options.image.stem}.html")
    check_outputs([out], [options.image], encoder_choice, choice)
    if frames is None:
        image = read_image(options.image, bits=options.bits)
    else:
        sampling: dict[str, Any] = frames.describe()
        video = read_video(options.image, **sampling)
    encoder = load_image_encoder(encoder_choice)
    write_page(
        out,
        image if frames is None else video,
        encoder,
        title=one_line(options.image.name),
        masks=masks_of_file(choice, options.image, image, encoder=encoder) if frames is None else None,
        threshold=0.7 if config.threshold is None else config.threshold,
        num_regions=config.num_regions,
        keep=config.keep,
        norm=config.norm,
        connectivity=config.connectivity,
        motion=config.motion,
        max_frames=config.max_frames,
    )
    print(f"Open {one_line(out)} in a browser ({out.stat().st_size / 1e6:.1f} MB).")
    return 0
