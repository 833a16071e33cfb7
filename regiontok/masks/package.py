"""Automatic masks by the official ``sam2`` package, which the paper used; slower than `Sam2Masks`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from regiontok._require import require
from regiontok._values import check_integer
from regiontok.images import as_images
from regiontok.masks.granularity import (
    DEFAULT_SETTINGS,
    TARGET_MASK_COUNT,
    MaskSettings,
    as_steps,
    check_bound,
    describe,
    select_granularity,
)
from regiontok.maskset import MaskSet


class PackageMasks:
    """Masks of ``SAM2AutomaticMaskGenerator``, sorted by descending score.

    Args:
        model: A model of the package, from ``sam2.build_sam``.
        settings: `MaskSettings`, or a schedule such as ``GRANULARITY_SCHEDULE``; see `Sam2Masks`. Images are encoded
            only once.
        bound: Lowest and highest number of masks per image, used to select a setting of a schedule.
        points_per_batch: Number of points per decoder call.
        name: Name of the weights in the metadata of a store.

    Raises:
        DTypeError: An option has the wrong type.
        ValueRangeError: An option is out of range.
        MissingDependencyError: sam2 is not installed.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        settings: MaskSettings | Sequence[MaskSettings] = DEFAULT_SETTINGS,
        bound: tuple[int, int] = TARGET_MASK_COUNT,
        points_per_batch: int = 64,
        name: str = "unknown",
    ) -> None:
        package = require("sam2.automatic_mask_generator", extra="sam2")
        image_predictor = require("sam2.sam2_image_predictor", extra="sam2").SAM2ImagePredictor
        check_bound(bound)
        check_integer("points_per_batch", points_per_batch)
        self.steps = as_steps(settings)
        self.bound = bound
        self.name = name
        predictor = _caching(image_predictor)(model)
        self._generators = {}
        for step in self.steps:
            generator = package.SAM2AutomaticMaskGenerator(
                model,
                points_per_side=step.points_per_side,
                points_per_batch=points_per_batch,
                pred_iou_thresh=step.pred_iou_thresh,
                stability_score_thresh=step.stability_score_thresh,
                stability_score_offset=step.stability_score_offset,
                mask_threshold=0.0,
                box_nms_thresh=step.box_nms_thresh,
                crop_n_layers=0,
                min_mask_region_area=0,
                output_mode="uncompressed_rle",
                use_m2m=False,
                multimask_output=True,
            )
            generator.predictor = predictor
            self._generators[step] = generator

    def __repr__(self) -> str:
        return f"PackageMasks({self.describe()})"

    def describe(self) -> dict[str, Any]:
        """Return the name and settings of the generator as JSON-serializable values."""
        return describe(self.steps, self.bound, generator="sam2-package", model=self.name)

    def __call__(self, images: Image.Image | Sequence[Image.Image]) -> list[MaskSet]:
        """Generate the masks of one image or several, at the size of each image.

        Raises:
            DTypeError: An image is not a PIL image.
            ImageError: An image cannot be converted to one RGB image.
        """
        return [self._generate(np.array(image)) for image in as_images(images)]

    def _generate(self, image: np.ndarray) -> MaskSet:
        def run(step: MaskSettings) -> MaskSet:
            records = self._generators[step].generate(image)
            return MaskSet.from_sam(records, size=(image.shape[0], image.shape[1]))

        return select_granularity(run, self.steps, self.bound)


def _caching(predictor: type) -> type:
    """Return a subclass of a predictor that encodes an image only once if it is set repeatedly."""

    class CachingPredictor(predictor):  # type: ignore[misc]
        image: np.ndarray | None = None

        def set_image(self, image: np.ndarray) -> None:
            if self.image is None or image.shape != self.image.shape or not np.array_equal(image, self.image):
                self.image = None
                super().set_image(image)
                self.image = image

        def reset_predictor(self) -> None:
            """Keep the encoded image: the generator calls this method after every run."""
            if self.image is None:
                super().reset_predictor()

    return CachingPredictor
