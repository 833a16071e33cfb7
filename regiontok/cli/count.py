"""``regiontok count``: how many tokens images get from each source."""

import argparse
from typing import Any

import numpy as np

from regiontok.choices import MASK_SOURCES
from regiontok.cli.checks import amount_of_source, choose_sources
from regiontok.cli.common import FAILURES, find_images, load_encoder, roots_of
from regiontok.cli.console import progress
from regiontok.cli.mask_sources import load_masks
from regiontok.cli.output import check_outputs, explain, report, write_details
from regiontok.images import read_image
from regiontok.presets import paper_tokens
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions
from regiontok.viewing import check_figure, draw_counts, save_figure


def run_count(options: argparse.Namespace) -> int:
    """Run ``count``; return the exit code."""
    sources = choose_sources(options)
    with_masks = any(source in MASK_SOURCES for source in sources)
    check_figure(options.out)
    images = [found.path for found in find_images(options.images, options.out)]
    check_outputs(options, options.out, images=images)
    encoder = load_encoder(options)
    masks_of = load_masks(options, encoder, roots=roots_of(options, options.images)) if with_masks else None
    regionizers = {
        source: Regionizer(
            source=source,
            norm=options.norm,
            pool="mean",
            geometry=encoder.geometry,
            **amount_of_source(options, source),
        )
        for source in sources
    }
    counts: dict[str, list[int]] = {source: [] for source in sources}
    details: list[dict[str, Any]] = []
    dropped: dict[str, int] = dict.fromkeys(sources, 0)
    whole: dict[str, int] = dict.fromkeys(sources, 0)
    failed = []
    for path in progress(images):
        try:
            image = read_image(path, bits=options.bits)
            features, valid = encoder(image)
            masks = [masks_of(path, image)] if masks_of else None
            grouped: dict[str, Regions] = {}
            for source, regionizer in regionizers.items():
                its_masks = masks if source in MASK_SOURCES else None
                grouped[source] = regionizer.group(regionizer.normalize(features), masks=its_masks, valid=valid)
        except FAILURES as error:
            failed.append(explain(path, error))
            details.append({"image": str(path), "error": str(error)})
            continue
        details.append({"image": str(path), **{name: len(regions) for name, regions in grouped.items()}})
        for name, regions in grouped.items():
            counts[name].append(len(regions))
            dropped[name] += len(regions.dropped)
            whole[name] += int(regions.fallback.sum())
    done = len(images) - len(failed)
    write_details(options, details)
    if done:
        paper: dict[str, float | None] = {
            source: paper_tokens(options.encoder, source, options.norm) for source in sources
        }
        save_figure(draw_counts(counts, paper=paper), options.out)
        print(f"Tokens per image: {done} image{'s' * (done != 1)}, {options.encoder}, norm {options.norm}")
        _print_table(counts, paper)
        for source in sources:
            if dropped[source] or whole[source]:
                print(
                    f"{source}: {dropped[source]} masks became no region; {whole[source]} images were left without "
                    "any and got one of all their patches"
                )
        print(f"Histogram: {options.out}")
    return report(failed, len(images))


def _print_table(counts: dict[str, list[int]], paper: dict[str, float | None]) -> None:
    print(
        f"{'source':<12}  {'least':>6}  {'25 %':>6}  {'median':>6}  {'75 %':>6}  {'most':>6}  {'mean':>7}  {'paper':>6}"
    )
    for source, values in counts.items():
        quartiles = "  ".join(f"{value:>6.0f}" for value in np.quantile(values, (0, 0.25, 0.5, 0.75, 1)))
        published = paper[source]
        told = "-" if published is None else f"{published:g}"
        print(f"{source:<12}  {quartiles}  {np.mean(values):>7.1f}  {told:>6}")
