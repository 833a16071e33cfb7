"""Automatic masks by the ``mask-generation`` pipeline of transformers, for comparison; slower than `Sam2Masks`."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn

from regiontok._require import require
from regiontok._values import check_integer
from regiontok.errors import DTypeError
from regiontok.images import as_images
from regiontok.masks.granularity import DEFAULT_SETTINGS, TARGET_MASK_COUNT, MaskSettings, describe
from regiontok.maskset import MaskSet

_PROCESSORS = {"sam2": "Sam2ImageProcessor", "sam3_tracker": "Sam3ImageProcessor"}


class PipelineMasks:
    """Masks of transformers' pipeline with a ``Sam2Model`` or ``Sam3TrackerModel``, sorted by descending score.

    The pipeline places points for padded inputs (SAM 1), but SAM 2 stretches images to a square. The points are
    therefore rescaled.

    Args:
        model: The model, in evaluation mode.
        settings: One `MaskSettings`. Schedules are not supported, because the pipeline re-encodes the image for every
            setting.
        points_per_batch: Number of points per decoder call.

    Raises:
        DTypeError: The model or an option has the wrong type.
        ValueRangeError: An option is out of range.
        MissingDependencyError: transformers or torchvision is not installed.
    """

    def __init__(
        self, model: nn.Module, *, settings: MaskSettings = DEFAULT_SETTINGS, points_per_batch: int = 64
    ) -> None:
        kind = getattr(getattr(model, "config", None), "model_type", None)
        if kind not in _PROCESSORS:
            raise DTypeError(
                f"model must be transformers' Sam2Model or Sam3TrackerModel; got {type(model).__name__}. Any other "
                "generator can be used directly: a callable that maps images to masks."
            )
        if not isinstance(settings, MaskSettings):
            raise DTypeError(f"settings must be one MaskSettings here; got {settings!r}. Use Sam2Masks for a schedule.")
        check_integer("points_per_batch", points_per_batch)
        require("torchvision", extra="masks")
        transformers = require("transformers", extra="masks")
        self.model: Any = model
        self.settings = settings
        self.points_per_batch = points_per_batch
        prompt_encoder: Any = model.prompt_encoder
        side = int(prompt_encoder.input_image_size)
        processor_class = _with_rescaled_points(getattr(transformers, _PROCESSORS[kind]))
        self.pipeline = transformers.MaskGenerationPipeline(
            model=model,
            image_processor=processor_class(size={"height": side, "width": side}),
            device=next(model.parameters()).device,
        )

    def __repr__(self) -> str:
        return f"PipelineMasks({type(self.model).__name__}, {self.describe()})"

    def describe(self) -> dict[str, Any]:
        """Return the name and settings of the generator as JSON-serializable values."""
        name = self.model.config._name_or_path or "random weights"
        return describe((self.settings,), TARGET_MASK_COUNT, generator="sam2-pipeline", model=name)

    def __call__(self, images: Image.Image | Sequence[Image.Image]) -> list[MaskSet]:
        """Generate the masks of one image or several, at the size of each image.

        Raises:
            DTypeError: An image is not a PIL image.
            ImageError: An image cannot be converted to one RGB image.
        """
        return [self._generate(image) for image in as_images(images)]

    def _generate(self, image: Image.Image) -> MaskSet:
        output = self.pipeline(
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
        return MaskSet.from_coco(output["rle_mask"], size=size, scores=torch.as_tensor(output["scores"]).float())


def _with_rescaled_points(processor: type) -> type:
    """Return a subclass of an image processor whose points cover the whole square input."""

    class RescaledPoints(processor):  # type: ignore[misc]
        def generate_crop_boxes(self, image: Any, target_size: int, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
            boxes, points, crops, labels = super().generate_crop_boxes(image, target_size, *args, **kwargs)
            # the points cover an image whose longer side is target_size; scale them to the square input
            crop_sizes = torch.tensor([crop.shape[-2:] for crop in crops], device=points.device)
            resized = crop_sizes * target_size / crop_sizes.amax(1, keepdim=True)
            return boxes, points * (target_size / (resized + 0.5).floor().flip(1)), crops, labels

    return RescaledPoints
