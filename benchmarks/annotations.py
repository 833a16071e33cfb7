"""Reading COCO polygons and RLE, compared with pycocotools.

The input is 100 annotations of an image of 640 x 480: polygons of 20 to 60 corners, every fifth of two parts.
"""

from typing import Any

import numpy as np
from pycocotools import mask as coco

from benchmarks.timing import ratio, save, take_turns
from regiontok import MaskSet

ANNOTATIONS, HEIGHT, WIDTH = 100, 480, 640


def make_annotations(*, seed: int = 0) -> list[dict[str, Any]]:
    """Return polygon annotations with radii of 8 to 160 pixels."""
    generator = np.random.default_rng(seed)
    annotations = []
    for number in range(ANNOTATIONS):
        polygons = []
        for _ in range(1 + (number % 5 == 0)):
            corners = int(generator.integers(20, 61))
            angle = np.sort(generator.uniform(0, 2 * np.pi, corners))
            radius = generator.uniform(8, 160) * generator.uniform(0.7, 1, corners)
            x = generator.uniform(0, WIDTH) + radius * np.cos(angle)
            y = generator.uniform(0, HEIGHT) + radius * np.sin(angle)
            polygons.append(np.stack([x, y], 1).round(2).ravel().tolist())
        annotations.append({"id": number, "category_id": 1, "iscrowd": 0, "segmentation": polygons})
    return annotations


def encode_with_pycocotools(annotations: list[dict[str, Any]]) -> list[Any]:
    """Return the RLE of each annotation like ``COCO.annToRLE``."""
    return [coco.merge(coco.frPyObjects(annotation["segmentation"], HEIGHT, WIDTH)) for annotation in annotations]


def main() -> None:
    """Check, measure, print and save."""
    annotations = make_annotations()
    encoded = encode_with_pycocotools(annotations)
    masks = MaskSet.from_coco(annotations, size=(HEIGHT, WIDTH))
    if not np.array_equal(masks.masks().numpy(), coco.decode(encoded).transpose(2, 0, 1)):
        raise SystemExit("annotations: the masks of regiontok and pycocotools differ; nothing was timed.")
    measured = take_turns(
        {
            "polygons, regiontok": lambda: MaskSet.from_coco(annotations, size=(HEIGHT, WIDTH)),
            "polygons, pycocotools": lambda: encode_with_pycocotools(annotations),
            "RLE, regiontok": lambda: MaskSet.from_coco(encoded),
            "RLE, pycocotools to pixels": lambda: coco.decode(encoded),
        },
        rounds=60,
    )
    ratios = {
        "polygons: ours over pycocotools": ratio(measured, "polygons, regiontok", "polygons, pycocotools"),
        "RLE: pycocotools to pixels over ours to runs": ratio(measured, "RLE, pycocotools to pixels", "RLE, regiontok"),
    }
    for name, times in measured.items():
        print(f"{name:28} {times['median_ms']:8.2f} ms")
    for name, value in ratios.items():
        print(f"{name:46} {value}")
    print("saved in", save("annotations", {"measured": measured, "ratios": ratios}))
