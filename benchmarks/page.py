"""Size of the interactive page, and the time of a slider step in a browser.

The page has 36 x 36 patches of dimension 1024 and an image of 2000 x 3000. The browser is headless Chromium without a
GPU. The time of a step is the time of the main thread from a new slider value to the end of the frame: script, style,
layout and paint. It is compared with a frame of 1/60 s.
"""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from playwright.sync_api import sync_playwright
from sklearn.datasets import load_sample_image

from benchmarks.clustering import smooth_features
from benchmarks.timing import save
from regiontok import ImageGeometry, MaskSet
from regiontok.encoders import Encoder
from regiontok.viewing import write_page

FRAME = 1000 / 60
STEPS = 120
QUIET = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip
SLIDE = """async steps => {
  const slider = document.getElementById("tokens"), most = Number(slider.max);
  for (let step = 0; step < steps; step++) {
    slider.value = most - Math.floor(step * (most - 1) / steps);
    slider.dispatchEvent(new Event("input"));
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  }
}"""


def main() -> None:
    """Run the measurements, print and save the results."""
    features = smooth_features(36, 36, 1024, seed=0)[None]
    encoder = Encoder(lambda _: features, geometry=ImageGeometry.squash(576), patch_size=16, name="synthetic")
    image = Image.fromarray(load_sample_image("china.jpg")).resize((3000, 2000))
    full_mask = MaskSet.from_masks(torch.ones(1, 2000, 3000, dtype=torch.bool))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        start = time.perf_counter()
        write_page(file, image, encoder, masks=full_mask)
        figures: dict[str, Any] = {
            "megabytes": round(file.stat().st_size / 1e6, 2),
            "seconds to write": round(time.perf_counter() - start, 2),
            "frame_ms": round(FRAME, 2),
        }
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
            figures["browser"] = f"Chromium {browser.version}"
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(file.as_uri())
            protocol = page.context.new_cdp_session(page)
            protocol.send("Performance.enable")

            def spent() -> dict[str, float]:
                metrics = protocol.send("Performance.getMetrics")["metrics"]
                return {metric["name"]: metric["value"] for metric in metrics}

            for name in ("outlines", "a region held, with its heat map"):
                if name != "outlines":
                    page.locator("#image").click(position={"x": 300, "y": 300})
                page.evaluate(SLIDE, 10)
                before = spent()
                page.evaluate(SLIDE, STEPS)
                after = spent()
                cost = {
                    part: round(1000 * (after[f"{part}Duration"] - before[f"{part}Duration"]) / STEPS, 2)
                    for part in ("Task", "Script")
                }
                figures[name] = {
                    "step_ms": cost["Task"],
                    "of which script": cost["Script"],
                    "of a frame": round(cost["Task"] / FRAME, 2),
                }
            browser.close()
    for name, value in figures.items():
        print(name, value)
    print(save("page", figures))


if __name__ == "__main__":
    main()
