"""Time per image of each source of regions, including mask generation.

The image is scikit-learn's ``china.jpg`` (427 x 640). Features are 24 x 24 x 1024; the encoder is excluded, since every
source needs it. Segmentation and combined use Felzenszwalb masks, which are about as many as those of SAM. SAM 2.1 tiny
has random weights, which do not change its time, and 24 points per side.
"""

import time
from typing import Any

import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from benchmarks.clustering import smooth_features
from benchmarks.timing import save, take_turns
from regiontok import ImageGeometry, Regionizer, masks

PAPER = "162 ms on an H100 (SAM 2 of unnamed size, 24 points per side)"


def main() -> None:
    """Run the measurements, print and save the results."""
    image = Image.fromarray(load_sample_image("china.jpg"))
    geometry = ImageGeometry.letterbox(336)
    valid = geometry.place((image.height, image.width)).valid((24, 24))[None]
    features = smooth_features(24, 24, 1024, seed=0)[None]
    felzenszwalb = masks.FelzenszwalbMasks()
    encoded = felzenszwalb(image)[0].to_coco()
    regionizers = {
        source: Regionizer(source=source, pool="mean", norm="none", geometry=geometry)
        for source in ("patch", "clustering", "segmentation", "combined")
    }

    def group(source: str) -> Any:
        image_masks = [encoded] if source in ("segmentation", "combined") else None
        return regionizers[source].group(features, masks=image_masks, valid=valid)

    grouping = take_turns(
        {
            "patch": lambda: group("patch"),
            "clustering": lambda: group("clustering"),
            "segmentation, masks from RLE": lambda: group("segmentation"),
            "combined, masks from RLE": lambda: group("combined"),
        },
        rounds=40,
    )
    generation = take_turns({"Felzenszwalb": lambda: felzenszwalb(image)}, rounds=5)
    torch.manual_seed(0)
    generator = masks.load("sam2", model="tiny", pretrained=False)
    start = time.perf_counter()
    generator.on_grid(image, geometry=geometry, grid=(24, 24))
    sam = 1000 * (time.perf_counter() - start)
    figures = {
        "masks": len(encoded),
        "regions": {source: len(group(source)) for source in regionizers},
        "grouping": grouping,
        "making masks": generation | {"SAM 2.1 tiny, 24 points per side": {"once_ms": round(sam)}},
        "clustering: times faster than Felzenszwalb and its grid": round(
            (generation["Felzenszwalb"]["median_ms"] + grouping["segmentation, masks from RLE"]["median_ms"])
            / grouping["clustering"]["median_ms"]
        ),
        "clustering: times faster than SAM 2.1 tiny": round(sam / grouping["clustering"]["median_ms"]),
        "the paper's mask generation": PAPER,
    }
    for name, value in figures.items():
        print(name, value)
    print(save("sources", figures))


if __name__ == "__main__":
    main()
