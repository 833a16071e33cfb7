"""How fast are COCO's polygons and RLE read, beside pycocotools?

100 annotations of an image of 640 x 480, as people draw them: polygons of 20 to 60 corners, some of two parts.
"""

from typing import Any

import numpy as np
from pycocotools import mask as coco

from benchmarks.timing import ratio, save, take_turns
from regiontok import MaskSet

ANNOTATIONS, HEIGHT, WIDTH = 100, 480, 640


def make_annotations(*, seed: int = 0) -> list[dict[str, Any]]:
    """Annotations of objects from specks to half the image, every fifth of two polygons."""
    generator = np.random.default_rng(seed)
    made = []
    for number in range(ANNOTATIONS):
        polygons = []
        for _ in range(1 + (number % 5 == 0)):
            corners = int(generator.integers(20, 61))
            angle = np.sort(generator.uniform(0, 2 * np.pi, corners))
            radius = generator.uniform(8, 160) * generator.uniform(0.7, 1, corners)
            x = generator.uniform(0, WIDTH) + radius * np.cos(angle)
            y = generator.uniform(0, HEIGHT) + radius * np.sin(angle)
            polygons.append(np.stack([x, y], 1).round(2).ravel().tolist())
        made.append({"id": number, "category_id": 1, "iscrowd": 0, "segmentation": polygons})
    return made


def pycocotools_of(annotations: list[dict[str, Any]]) -> list[Any]:
    """RLE of each annotation, as ``COCO.annToRLE`` makes it."""
    return [coco.merge(coco.frPyObjects(one["segmentation"], HEIGHT, WIDTH)) for one in annotations]


def main() -> None:
    """Measure and save."""
    annotations = make_annotations()
    encoded = pycocotools_of(annotations)
    found = MaskSet.from_coco(annotations, size=(HEIGHT, WIDTH))
    assert np.array_equal(found.areas(), coco.area(encoded))  # noqa: S101
    assert np.array_equal(found.masks().numpy(), coco.decode(encoded).transpose(2, 0, 1))  # noqa: S101
    measured = take_turns(
        {
            "polygons, regiontok": lambda: MaskSet.from_coco(annotations, size=(HEIGHT, WIDTH)),
            "polygons, pycocotools": lambda: pycocotools_of(annotations),
            "RLE, regiontok": lambda: MaskSet.from_coco(encoded),
            "RLE, pycocotools to pixels": lambda: coco.decode(encoded),
        },
        rounds=60,
    )
    ratios = {
        "polygons: ours over pycocotools": ratio(measured, "polygons, regiontok", "polygons, pycocotools"),
        "RLE: pycocotools to pixels over ours to runs": ratio(measured, "RLE, pycocotools to pixels", "RLE, regiontok"),
    }
    for name, one in measured.items():
        print(f"{name:28} {one['median_ms']:8.2f} ms")
    for name, value in ratios.items():
        print(f"{name:46} {value}")
    print("saved in", save("annotations", {"measured": measured, "ratios": ratios}))
