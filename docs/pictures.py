"""Draw the pictures of README and documentation from trained features: ``python docs/pictures.py``.

It needs ``pip install -e '.[dev]'``, Debian's ``chromium`` for the page, and a network the first time, for weights.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from regiontok import Regionizer, encoders, masks, rms_normalize
from regiontok.choices import BUDGETS
from regiontok.evaluation.partition import compare_partitions, mean_partitions
from regiontok.viewing import draw_partitions, draw_sources, save_figure, write_page

DOCS = Path(__file__).parent
sys.path.append(str(DOCS.parent / "examples"))
import real_features  # noqa: E402

TOKENS = 64


def draw_rules(image: Image.Image, folder: Path) -> None:
    """Draw the regions of an image by Ward and by centroid linkage, with the same number of tokens."""
    encoder = encoders.load(f"hf:{real_features.dinov2_small()}", layer=real_features.LAYER, img_size=518)
    features, valid = encoder(image)
    regions = {}
    for linkage, name in (("ward", "Ward linkage"), ("centroid", "centroid linkage, the paper's")):
        regionizer = Regionizer(pool="mean", linkage=linkage, num_regions=TOKENS)
        regions[name] = regionizer(features, valid=valid).regions
    placement = encoder.geometry.place((image.height, image.width))
    save_figure(draw_sources(image, regions, placement), folder / "rules.png")


def draw_comparison(folder: Path) -> None:
    """Draw the scores of regions by number of tokens: means over six images, for two layers of the encoder."""
    for layer, name in ((real_features.LAYER, "block-10"), (-1, "last-block")):
        encoder = encoders.load(f"hf:{real_features.dinov2_small()}", layer=layer, img_size=336, geometry="squash")
        rows = []
        for image in real_features.images().values():
            features, valid = encoder(image)
            rows.append(compare_partitions(rms_normalize(features)[0], valid=valid[0], num_regions=BUDGETS))
        by_source: dict[str, list[Any]] = {}
        for row in mean_partitions(rows):
            by_source.setdefault(row.source, []).append(row.scores)
        save_figure(draw_partitions(by_source), folder / f"compare-{name}.png")


def draw_page(image: Image.Image, name: str, folder: Path) -> None:
    """Take a screenshot of the interactive page in Chromium."""
    encoder = encoders.load(f"hf:{real_features.dinov2_small()}", layer=real_features.LAYER, img_size=518)
    encoder.name = "dinov2-small, block 10"
    segments = masks.load("felzenszwalb")(image)[0]
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        file = Path(scratch) / "page.html"
        write_page(file, image, encoder, title=name, masks=segments, num_regions=TOKENS)
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1180, "height": 760})
        page.goto(file.as_uri())
        box = page.locator("#image").bounding_box()
        if box is not None:
            page.mouse.move(box["x"] + 0.45 * box["width"], box["y"] + 0.35 * box["height"])
        page.wait_for_timeout(500)
        page.screenshot(path=folder / "page.png")
        browser.close()


def main(folder: Path = DOCS) -> None:
    """Draw all pictures into a folder."""
    images = real_features.images()
    draw_rules(images["coffee"], folder)
    draw_comparison(folder)
    draw_page(images["astronaut"], "astronaut.png", folder)


if __name__ == "__main__":
    main()
