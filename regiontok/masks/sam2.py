"""Fast automatic masks of SAM 2: batched over images and points, and filtered before masks are resized.

The model is ``Sam2Model`` of transformers, or ``Sam3TrackerModel`` of SAM 3, which has the same interface.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from regiontok._values import check_integer
from regiontok.downsample import MaskDownsampler
from regiontok.errors import DTypeError, ValueRangeError
from regiontok.geometry import ImageGeometry, Size
from regiontok.images import as_images
from regiontok.masks.candidates import CandidateBuffer, Candidates, Convert, encode
from regiontok.masks.granularity import (
    DEFAULT_SETTINGS,
    TARGET_MASK_COUNT,
    MaskSettings,
    as_steps,
    check_bound,
    describe,
    distance_to_bound,
)
from regiontok.maskset import MaskSet

NORMALIZATION = {
    "sam2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "sam3_tracker": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and standard deviation of the training images by model type."""

_MAX_VALUE_BYTES = 2**28
"""Limit in bytes for stored candidates. Above it, suppressed masks are freed and decoded again if needed."""


class Sam2Masks:
    """Automatic masks of all objects in an image, from a grid of point prompts.

    Images are resized to the square input of the model, as in SAM 2. The prompts are the centres of the cells of a grid
    over the whole image. The decoder returns three candidates per point. They are filtered by predicted IoU,
    stability and the overlap of their boxes, all at the resolution of the decoder. Masks are sorted by score.

    Args:
        model: A ``Sam2Model`` or ``Sam3TrackerModel`` in evaluation mode; `regiontok.masks.load` loads one.
        settings: `MaskSettings`, or a schedule from coarse to fine such as ``GRANULARITY_SCHEDULE``. Settings are tried
            in order until the mask count is in the range ``bound``; otherwise the result with the closest count is
            used. Images are encoded only once.
        bound: Lowest and highest number of masks per image, used to select a setting of a schedule.
        mosaic: Combine ``mosaic x mosaic`` images into one input. Each image receives a share of the points, and masks
            are cropped to their cell of the mosaic.
        points_per_batch: Number of points per decoder call, summed over its inputs; by default 64 on a CPU, 1024
            elsewhere.
        images_per_batch: Number of inputs that are encoded together.

    Raises:
        DTypeError: The model or an option has the wrong type.
        ValueRangeError: An option is out of range, or ``mosaic`` does not divide the input side or mask side of the
            model, or exceeds ``points_per_side``.

    Source:
        Supplement A.1, and the rules of SAM 2's automatic mask generator. The rules are applied to the logits of the
        decoder before they are resized; this is our choice. The paper rejected mosaics because the masks were worse.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        settings: MaskSettings | Sequence[MaskSettings] = DEFAULT_SETTINGS,
        bound: tuple[int, int] = TARGET_MASK_COUNT,
        mosaic: int = 1,
        points_per_batch: int | None = None,
        images_per_batch: int = 4,
    ) -> None:
        kind = getattr(getattr(model, "config", None), "model_type", None)
        if kind not in NORMALIZATION:
            raise DTypeError(
                f"model must be transformers' Sam2Model or Sam3TrackerModel; got {type(model).__name__}. Any other "
                "generator can be used directly: a callable that maps images to masks."
            )
        check_integer("mosaic", mosaic)
        check_integer("images_per_batch", images_per_batch)
        check_bound(bound)
        self.model: Any = model
        self.device = next(model.parameters()).device
        if points_per_batch is None:
            points_per_batch = 64 if self.device.type == "cpu" else 1024
        check_integer("points_per_batch", points_per_batch)
        self.steps = as_steps(settings)
        points_per_side = min(step.points_per_side for step in self.steps)
        if points_per_side < mosaic:
            raise ValueRangeError(
                f"points_per_side must be at least mosaic={mosaic}, so that each image gets a point; got "
                f"{points_per_side}."
            )
        self.bound = (int(bound[0]), int(bound[1]))
        self.mosaic = mosaic
        self.points_per_batch = points_per_batch
        self.images_per_batch = images_per_batch
        prompt_encoder: Any = model.prompt_encoder
        self.input_side = int(prompt_encoder.input_image_size)
        self.mask_side = int(prompt_encoder.mask_input_size[0])
        if self.input_side % mosaic or self.mask_side % mosaic:
            raise ValueRangeError(
                f"mosaic must divide the input side ({self.input_side}) and mask side ({self.mask_side}) of the model; "
                f"got {mosaic}."
            )
        mean, std = NORMALIZATION[kind]
        self._mean = torch.tensor(mean, device=self.device).reshape(3, 1, 1)
        self._std = torch.tensor(std, device=self.device).reshape(3, 1, 1)

    def __repr__(self) -> str:
        return f"Sam2Masks({type(self.model).__name__}, {self.describe()})"

    def describe(self) -> dict[str, Any]:
        """Return the name and settings of the generator as JSON-serializable values."""
        name = self.model.config._name_or_path or "random weights"
        return describe(self.steps, self.bound, generator="sam2", model=name, mosaic=self.mosaic)

    def __call__(self, images: Image.Image | Sequence[Image.Image]) -> list[MaskSet]:
        """Generate the masks of one image or several, at the size of each image.

        Raises:
            DTypeError: An image is not a PIL image.
            ImageError: An image cannot be converted to one RGB image.
        """
        images = as_images(images)
        candidates = self._generate(images, [_to_half] * len(images))
        return [encode(masks, (image.height, image.width)) for masks, image in zip(candidates, images, strict=True)]

    def on_grid(
        self, images: Image.Image | Sequence[Image.Image], *, geometry: ImageGeometry, grid: Size
    ) -> list[MaskSet]:
        """Generate masks on the patch grid of an encoder, without resizing or encoding them at image size.

        Masks are binarized at decoder resolution, so boundary patches can differ from those that `MaskDownsampler`
        computes from the resized masks.

        Args:
            images: One image or several.
            geometry: How the encoder resizes and pads images: ``encoder.geometry``.
            grid: Rows and columns of the encoder: ``encoder.grid``.
        """
        images = as_images(images)
        downsampler = MaskDownsampler(grid, geometry=geometry, rescale=True)

        def to_coverage(size: Size) -> Convert:
            return lambda logits: downsampler.coverage(logits > 0, size=size)

        candidates = self._generate(images, [to_coverage((image.height, image.width)) for image in images])
        return [
            MaskSet.on_grid(
                masks.values,
                valid=geometry.place((image.height, image.width)).valid(grid),
                scores=masks.scores,
                stability=masks.stability,
            )
            for masks, image in zip(candidates, images, strict=True)
        ]

    @torch.no_grad()
    def _generate(self, images: list[Image.Image], converters: list[Convert]) -> list[Candidates]:
        """Return the candidates of each image whose count is closest to the bound.

        Later settings run on inputs with an image whose mask count is outside the range.
        """
        per_input = self.mosaic**2
        closest: list[Candidates | None] = [None] * len(images)
        for start in range(0, len(images), self.images_per_batch * per_input):
            batch = list(range(start, min(start + self.images_per_batch * per_input, len(images))))
            inputs = [batch[i : i + per_input] for i in range(0, len(batch), per_input)]
            embeddings = self._embed([[images[image_index] for image_index in indices] for indices in inputs])
            for settings in self.steps:
                input_indices = [
                    i
                    for i, indices in enumerate(inputs)
                    if any(self._distance(closest[image_index]) > 0 for image_index in indices)
                ]
                if not input_indices:
                    break
                after_nms = self._prompt(
                    [level[input_indices] for level in embeddings],
                    [[converters[image_index] for image_index in inputs[i]] for i in input_indices],
                    settings,
                )
                for i, candidates_per_cell in zip(input_indices, after_nms, strict=True):
                    for image_index, candidates in zip(inputs[i], candidates_per_cell, strict=True):
                        if self._distance(candidates) < self._distance(closest[image_index]):
                            closest[image_index] = candidates
        return [candidates for candidates in closest if candidates is not None]

    def _distance(self, candidates: Candidates | None) -> float:
        """Return the distance of the number of candidates to the bound; infinity without candidates."""
        return math.inf if candidates is None else distance_to_bound(len(candidates.scores), self.bound)

    def _embed(self, inputs: list[list[Image.Image]]) -> list[Tensor]:
        """Return the features of the vision encoder. Each input is one image or a mosaic."""
        side = self.input_side // self.mosaic
        pixels = torch.zeros(len(inputs), 3, self.input_side, self.input_side, device=self.device)
        for canvas, images in zip(pixels, inputs, strict=True):
            for cell, image in enumerate(images):
                row, col = (side * index for index in divmod(cell, self.mosaic))
                values = torch.from_numpy(np.array(image)).to(self.device).permute(2, 0, 1)[None].float() / 255
                resized = nn.functional.interpolate(values, (side, side), mode="bilinear", antialias=True)[0]
                canvas[:, row : row + side, col : col + side] = (resized - self._mean) / self._std
        return self.model.get_image_embeddings(pixels.to(self.model.dtype))

    def _prompt(
        self, embeddings: list[Tensor], converters: list[list[Convert]], settings: MaskSettings
    ) -> list[list[Candidates]]:
        """Return the best candidates for each mosaic cell of each input, using all points of one setting."""
        num_inputs = len(embeddings[-1])
        buffers = [[CandidateBuffer(settings.box_nms_thresh) for _ in cells] for cells in converters]
        prompts: list[list[Tensor]] = []  # by cell and decoder call
        max_bytes = _MAX_VALUE_BYTES
        centers = (torch.arange(settings.points_per_side, device=self.device) + 0.5) / settings.points_per_side
        cell_index = (centers * self.mosaic).long()
        row, col = torch.meshgrid(torch.arange(len(centers)), torch.arange(len(centers)), indexing="ij")
        row, col = row.flatten().to(self.device), col.flatten().to(self.device)
        points = torch.stack([centers[col], centers[row]], 1) * self.input_side
        cells = cell_index[row] * self.mosaic + cell_index[col]

        def filter_candidates(logits: Tensor, scores: Tensor, i: int, cell: int) -> Candidates:
            return Candidates.from_logits(logits[i].flatten(0, 1), scores[i].flatten(), settings, converters[i][cell])

        def decode_again(i: int, cell: int, call: int) -> Candidates:
            logits, scores = self._decode(embeddings, prompts[cell][call])
            return filter_candidates(self._crop(logits, cell), scores, i, cell)

        for cell in range(max(len(input_buffers) for input_buffers in buffers)):
            prompts.append(list(points[cells == cell].split(max(1, self.points_per_batch // num_inputs))))
            for batch in prompts[cell]:
                logits, scores = self._decode(embeddings, batch)
                logits = self._crop(logits, cell)
                for i, input_buffers in enumerate(buffers):
                    if cell < len(input_buffers):
                        input_buffers[cell].add(filter_candidates(logits, scores, i, cell))
                filled = [buffer for input_buffers in buffers for buffer in input_buffers[: cell + 1]]
                if sum(buffer.nbytes for buffer in filled) > max_bytes:
                    for buffer in filled:
                        buffer.suppress()
                    max_bytes = max(_MAX_VALUE_BYTES, 2 * sum(buffer.nbytes for buffer in filled))
        return [
            [buffer.best(functools.partial(decode_again, i, cell)) for cell, buffer in enumerate(input_buffers)]
            for i, input_buffers in enumerate(buffers)
        ]

    def _decode(self, embeddings: list[Tensor], prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(B, P, 3, h, w)`` and predicted IoU ``(B, P, 3)`` of the points ``(P, 2)`` for each input."""
        num_inputs = len(embeddings[-1])
        points = prompts.expand(num_inputs, -1, -1)[:, :, None]  # the model rounds points only if they are in [-1, 1]
        labels = torch.ones(points.shape[:3], dtype=torch.int64, device=self.device)
        output = self.model(
            image_embeddings=embeddings, input_points=points, input_labels=labels, multimask_output=True
        )
        return output.pred_masks.float(), output.iou_scores

    def _crop(self, logits: Tensor, cell: int) -> Tensor:
        """Return the part of the logits of an input that shows one cell of its mosaic."""
        side = self.mask_side // self.mosaic
        row, col = (side * index for index in divmod(cell, self.mosaic))
        return logits[..., row : row + side, col : col + side]


def _to_half(logits: Tensor) -> Tensor:
    """Convert logits to half precision, which shifts the boundary of a mask by less than a thousandth of a pixel."""
    return logits.clamp(-1e4, 1e4).half()
