"""Automatic masks by transformers' own ``mask-generation`` pipeline: slower than `Sam2Masks`, to compare with.

Tested with transformers 5.23.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn

from regiontok._checks import check_integer
from regiontok._require import require
from regiontok.errors import DTypeError
from regiontok.images import as_images
from regiontok.masks.granularity import BOUND, CHEAP, MaskSettings, describe
from regiontok.maskset import MaskSet

_PROCESSORS = {"sam2": "Sam2ImageProcessor", "sam3_tracker": "Sam3ImageProcessor"}


class PipelineMasks:
    """Masks of transformers' pipeline over a ``Sam2Model`` or ``Sam3TrackerModel``, best first.

    The pipeline places its points as SAM 1 needs them, whose input is padded; on the squashed input of SAM 2 they would
    miss the right or lower part of every image that is not square. They are spread over the whole input here.

    Args:
        model: The model, in evaluation mode.
        settings: One `MaskSettings`; the pipeline cannot climb a ladder without encoding the image at every step.
        points_per_batch: Prompts per decoder call.

    Raises:
        DTypeError, ValueRangeError: A model of another kind, or an option that cannot be.
        MissingDependencyError: transformers or torchvision is not installed.
    """

    def __init__(self, model: nn.Module, *, settings: MaskSettings = CHEAP, points_per_batch: int = 64) -> None:
        kind = getattr(getattr(model, "config", None), "model_type", None)
        if kind not in _PROCESSORS:
            raise DTypeError(f"model must be transformers' Sam2Model or Sam3TrackerModel; got {type(model).__name__}.")
        if not isinstance(settings, MaskSettings):
            raise DTypeError(f"settings must be one MaskSettings here; got {settings!r}. Sam2Masks climbs ladders.")
        check_integer("points_per_batch", points_per_batch)
        require("torchvision", extra="masks")
        transformers = require("transformers", extra="masks")
        self.model: Any = model
        self.settings = settings
        self.points_per_batch = points_per_batch
        prompt: Any = model.prompt_encoder
        side = int(prompt.input_image_size)
        processor = _spreading(getattr(transformers, _PROCESSORS[kind]))(size={"height": side, "width": side})
        self.pipeline = transformers.MaskGenerationPipeline(
            model=model, image_processor=processor, device=next(model.parameters()).device
        )

    def __repr__(self) -> str:
        return f"PipelineMasks({type(self.model).__name__}, {self.describe()})"

    def describe(self) -> dict[str, Any]:
        """What makes these masks, as plain values."""
        name = self.model.config._name_or_path or "random weights"
        return describe((self.settings,), BOUND, generator="sam2-pipeline", model=name)

    def __call__(self, images: Image.Image | Sequence[Image.Image]) -> list[MaskSet]:
        """Masks of one image or several, at the images' sizes.

        Raises:
            DTypeError, ImageError: Not Pillow images, or pictures that cannot be one RGB image.
        """
        return [self._generate(image) for image in as_images(images)]

    def _generate(self, image: Image.Image) -> MaskSet:
        made = self.pipeline(
            image,
            points_per_batch=self.points_per_batch,
            points_per_crop=self.settings.points_per_side,
            crops_n_layers=0,
            pred_iou_thresh=self.settings.pred_iou_thresh,
            stability_score_thresh=self.settings.stability_score_thresh,
            stability_score_offset=self.settings.stability_score_offset,
            mask_threshold=0.0,
            crops_nms_thresh=self.settings.box_nms_thresh,
            output_rle_mask=True,
        )
        size = (image.height, image.width)
        return MaskSet.from_coco(made["rle_mask"], size=size, scores=torch.as_tensor(made["scores"]).float())


def _spreading(processor: type) -> type:
    """An image processor whose points cover all of a squashed input."""

    class SpreadPoints(processor):  # type: ignore[misc]
        def generate_crop_boxes(self, image: Any, target_size: int, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
            boxes, points, crops, labels = super().generate_crop_boxes(image, target_size, *args, **kwargs)
            sizes = torch.tensor([crop.shape[-2:] for crop in crops], device=points.device)
            sides = sizes * target_size / sizes.amax(1, keepdim=True)
            return boxes, points * (target_size / (sides + 0.5).floor().flip(1)), crops, labels

    return SpreadPoints
