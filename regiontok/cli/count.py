"""``regiontok count``: the number of tokens that images get from each source."""

from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from regiontok.cli.inputs import EncodedImages
from regiontok.cli.loading import group_by_source
from regiontok.cli.output import write_details
from regiontok.cli.regions import default_norm, region_configs
from regiontok.cli.values import EncoderChoice, ListingChoice, mask_choice
from regiontok.encoders import EncodedImage
from regiontok.maskset import MaskSet
from regiontok.presets import paper_tokens
from regiontok.viewing import draw_counts, save_figure


def run_count(options: Namespace) -> int:
    """Run ``count``, and return the exit code."""
    configs = region_configs(options, **default_norm(options))
    encoder, masks = EncoderChoice.of(options), mask_choice(options)
    images = EncodedImages(ListingChoice.of(options), encoder, masks, options.out, options.csv, options.json)
    dropped: Counter[str] = Counter()
    fallbacks: Counter[str] = Counter()

    def count(encoded: EncodedImage, masks: MaskSet | None) -> dict[str, int]:
        by_source = group_by_source(configs, encoded, masks)
        for source, regions in by_source.items():
            dropped[source] += len(regions.dropped)
            fallbacks[source] += int(regions.fallback.sum())
        return {source: len(regions) for source, regions in by_source.items()}

    rows = images.map(count)
    write_details(images.table(rows), options.csv, options.json)
    if rows:
        counts = {str(source): [row[source] for row in rows.values()] for source in configs}
        name, norm = images.encoder.name, next(iter(configs.values())).norm
        paper = {source: paper_tokens(name, source, norm) for source in counts}
        save_figure(draw_counts(counts, paper=paper), options.out)
        print(f"Tokens per image: {len(rows)} image{'s' * (len(rows) != 1)}, {name}, norm {norm}")
        _print_table(counts, paper)
        for source in configs:
            if dropped[source] or fallbacks[source]:
                print(
                    f"{source}: {dropped[source]} masks became no region; {fallbacks[source]} images had no mask left "
                    "and got one region of all patches"
                )
        print(f"Histogram: {options.out}")
    return images.report()


def _print_table(counts: Mapping[str, Sequence[int]], paper: Mapping[str, float | None]) -> None:
    headings = ("least", "25 %", "median", "75 %", "most")
    print(f"{'source':<12}  {'  '.join(f'{heading:>6}' for heading in headings)}  {'mean':>7}  {'paper':>6}")
    for source, values in counts.items():
        quartiles = "  ".join(f"{value:>6.0f}" for value in np.quantile(values, (0, 0.25, 0.5, 0.75, 1)))
        published = "-" if paper[source] is None else f"{paper[source]:g}"
        print(f"{source:<12}  {quartiles}  {np.mean(values):>7.1f}  {published:>6}")
