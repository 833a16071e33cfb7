"""``regiontok tokenize`` and ``demo``: turn images into region tokens, as files or as a store."""

import os
import time
from argparse import Namespace
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_image

from regiontok import encoders
from regiontok._files import atomic_write, make_folder
from regiontok.cli.console import one_line, progress_bar, warn
from regiontok.cli.inputs import open_listing
from regiontok.cli.loading import load_encoder, make_regionizer
from regiontok.cli.mask_sources import Annotations, GeneratedMasks, load_masks
from regiontok.cli.output import check_outputs, report, write_details
from regiontok.cli.regions import region_configs, token_masks
from regiontok.cli.tracks import TrackFiles
from regiontok.cli.values import AnnotationChoice, EncoderChoice, FrameChoice, ListingChoice, MaskChoice, RunChoice
from regiontok.cli.write_files import Stopwatch, TimedJob, TokenFiles, draw_any, print_table, warm_up
from regiontok.cli.write_store import num_cores, num_workers_on, write_store
from regiontok.config import RegionizerConfig
from regiontok.errors import OutputError, RegiontokError
from regiontok.geometry import ImageGeometry
from regiontok.pipeline import Job, ListedImage, TokenizeJob, run_job
from regiontok.pipeline.roots import Roots
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions
from regiontok.store.storage import is_remote


@dataclass(frozen=True)
class TokenJobMaker:
    """Make the job that tokenizes images for a store, here and in the actors of Ray."""

    encoder: EncoderChoice
    config: RegionizerConfig
    masks: MaskChoice | Annotations | None
    dtype: str
    pictures: Path | None
    tracks: TrackFiles | None = None

    def __call__(self, roots: Roots, device: str) -> Job:
        """Return the job, with models on a device."""
        encoder = load_encoder(replace(self.encoder, device=device))
        masks = None if self.masks is None else load_masks(self.masks, encoder=encoder, roots=roots)
        described = self.tracks or masks
        job = TokenizeJob(
            encoder,
            make_regionizer(self.config, encoder.geometry),
            tracks=self.tracks,
            mask_provenance=None if described is None else described.describe(),
            dtype=self.dtype,
            draw=None if self.pictures is None else partial(_draw, self.pictures, encoder.geometry),
            num_workers=num_workers_on(device, order=self.config.order),
        )
        if isinstance(masks, GeneratedMasks):  # generated with the batch, not in the threads that read images
            job.generator = masks.generate
            job.num_workers = job.num_workers if masks.name == "felzenszwalb" else 1  # SAM uses all cores
        elif masks is not None:
            job.masks = lambda image, pixels: masks(image.path, pixels)
        warm_up(self.config.source)
        return job


def _draw(
    folder: Path, geometry: ImageGeometry, key: str, image: Image.Image | list[Image.Image], regions: Regions
) -> None:
    """Draw the regions of an image or video of a store. A failure to write the drawing does not affect the tokens."""
    target = folder / f"{key}.regions.png"  # with the suffix of the image: a.jpg and a.png are two images
    try:
        make_folder(target.parent)
        with atomic_write(target) as picture:
            draw_any(image, regions, geometry).save(picture, "PNG")
    except OutputError as error:
        warn(error)


def run_tokenize(options: Namespace) -> int:
    """Run ``tokenize``, and return the exit code."""
    encoder_choice, choice = EncoderChoice.of(options), token_masks(options)
    (config,) = region_configs(options).values()
    tracks = None if options.tracks is None else TrackFiles(options.tracks)
    if options.store is not None and options.pictures and is_remote(options.store):
        raise RegiontokError("--pictures needs a store in a local folder. Leave it out.")
    frames = FrameChoice.of(options)
    if frames is None and options.tracks is not None:
        raise RegiontokError("--tracks requires videos. Add --num-frames, --fps or --every.")
    listing = open_listing(ListingChoice.of(options), frames=frames, for_store=options.store is not None)
    masks = Annotations(choice, listing) if isinstance(choice, AnnotationChoice) else choice
    if options.store is not None:
        pictures = Path(options.store) / "_pictures" if options.pictures else None
        maker = TokenJobMaker(encoder_choice, config, masks, options.dtype or "float16", pictures, tracks)
        return write_store(options.store, listing, maker, RunChoice.of(options))
    images = list(listing)
    folder = make_folder(options.out or "regiontok-out")
    check_outputs([options.csv, options.json], [image.address for image in images], encoder_choice, choice)
    encoder = load_encoder(encoder_choice)
    source = None if masks is None else load_masks(masks, encoder=encoder, roots=listing.roots)
    job = TimedJob(encoder, make_regionizer(config, encoder.geometry), source, tracks)
    files = TokenFiles(folder, images, job, pictures=options.pictures is not False)
    warm_up(config.source)
    with progress_bar(len(images)) as bar:
        run_job(
            files, files.images, listing, job, batch_size=1, num_readers=num_cores(), on_batch=lambda _: bar.update()
        )
    write_details(files.rows, options.csv, options.json)
    if len(files.errors) < len(images):
        print_table(files.rows, files.notes)
        contents = "Tokens" if options.pictures is False else "Pictures and tokens"
        print(f"{contents} are in {one_line(folder)}{os.sep}")
    return report(files.errors, len(images))


def run_demo(options: Namespace) -> int:
    """Run ``demo``, and return the exit code."""
    start = time.perf_counter()
    encoder = encoders.load("pixels")
    job = TimedJob(encoder, Regionizer(pool="mean"))
    listed = ListedImage("china.jpg", "china.jpg")
    files = TokenFiles(options.out, [listed], job)
    compiling = warm_up("clustering")
    watch = Stopwatch(encoder.device)
    image = watch.measure("read", lambda: Image.fromarray(load_sample_image("china.jpg")))
    result = job.tokenize(listed, image, watch)
    files.write([result])
    if files.errors:
        return report(files.errors, 1)
    print_table(files.rows, files.notes)
    total = time.perf_counter() - start
    num_regions = len(result.tokens.regions)
    print(f"\n{result.num_patches} patches -> {num_regions} regions; see {options.out / 'china.regions.png'}")
    print(
        f"Clustering took {1000 * watch.seconds['group']:.1f} ms of {total:.1f} s "
        f"({compiling:.1f} s of that to load or compile it)."
    )
    return 0
