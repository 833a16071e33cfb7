"""Automatic masks by the official ``sam2`` package, as the paper made them: slower than `Sam2Masks`.

Tested with sam2 1.1.0.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from regiontok._checks import check_integer
from regiontok._require import require
from regiontok.images import as_images
from regiontok.masks.granularity import BOUND, CHEAP, MaskSettings, as_steps, check_bound, climb, describe
from regiontok.maskset import MaskSet


class PackageMasks:
    """Masks of ``SAM2AutomaticMaskGenerator``, best first.

    Args:
        model: A model of the package, from ``sam2.build_sam``.
        settings: `MaskSettings`, or several as in ``LADDER``; an image is encoded once for all of them.
        bound: Lowest and highest number of masks that a ladder looks for.
        points_per_batch: Prompts per decoder call.
        name: What to call the model's weights in a file's metadata.

    Raises:
        DTypeError, ValueRangeError: An option that cannot be.
        MissingDependencyError: sam2 is not installed.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        settings: MaskSettings | Sequence[MaskSettings] = CHEAP,
        bound: tuple[int, int] = BOUND,
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
        predictor = _remembering(image_predictor)(model)
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
        """What makes these masks, as plain values."""
        return describe(self.steps, self.bound, generator="sam2-package", model=self.name)

    def __call__(self, images: Image.Image | Sequence[Image.Image]) -> list[MaskSet]:
        """Masks of one image or several, at the images' sizes.

        Raises:
            DTypeError, ImageError: Not Pillow images, or pictures that cannot be one RGB image.
        """
        return [self._climb(np.array(image)) for image in as_images(images)]

    def _climb(self, image: np.ndarray) -> MaskSet:
        def run(step: MaskSettings) -> MaskSet:
            records = self._generators[step].generate(image)
            return MaskSet.from_sam(records, size=(image.shape[0], image.shape[1]))

        return climb(run, self.steps, self.bound)


def _remembering(predictor: type) -> type:
    """A predictor that encodes an image once, however often it is set."""

    class RememberingPredictor(predictor):  # type: ignore[misc]
        image: np.ndarray | None = None

        def set_image(self, image: np.ndarray) -> None:
            if self.image is None or image.shape != self.image.shape or not np.array_equal(image, self.image):
                self.image = None
                super().set_image(image)
                self.image = image

        def reset_predictor(self) -> None:
            """Called after every step; what is known of the image stays."""
            if self.image is None:
                super().reset_predictor()

    return RememberingPredictor
