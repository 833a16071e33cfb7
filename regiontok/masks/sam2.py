"""Automatic masks of SAM 2, fast: many images and points per decoder call, and no candidate enlarged before its time.

The model is transformers' ``Sam2Model``, or SAM 3's ``Sam3TrackerModel``, which has the same face. Tested with
transformers 5.23.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from regiontok._checks import check_integer
from regiontok.downsample import MaskDownsampler
from regiontok.errors import DTypeError, ValueRangeError
from regiontok.geometry import ImageGeometry, Size
from regiontok.images import as_images
from regiontok.masks.candidates import Candidates, Finish, Gathering, encode
from regiontok.masks.granularity import BOUND, CHEAP, MaskSettings, as_steps, beyond, check_bound, describe
from regiontok.maskset import MaskSet

_NORMALIZATION = {
    "sam2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "sam3_tracker": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and standard deviation that each kind of model was trained with."""

_MOST_BYTES = 2**28
"""Logits of candidates that are held before those that a better one overlaps are let go."""


class Sam2Masks:
    """Masks of everything in an image, by a grid of point prompts.

    An image is resized to the model's square input, as SAM 2 does, and prompted at the centre of every cell of a grid
    over the whole image. The decoder gives three candidates per point, which are filtered by predicted IoU, stability
    and the overlap of their boxes, all at the decoder's resolution. Masks are sorted by score.

    Args:
        model: A ``Sam2Model`` or ``Sam3TrackerModel`` in evaluation mode; `regiontok.masks.load` loads one.
        settings: `MaskSettings`, or several from coarse to fine such as ``LADDER``: each image gets the first step
            whose number of masks is within ``bound``, else the step nearest to it. An image is encoded once for all.
        bound: Lowest and highest number of masks that a ladder looks for.
        mosaic: Put ``mosaic x mosaic`` images side by side into one input; each image gets its share of the points,
            and the masks of these, cut at its border.
        points_per_batch: Prompts per decoder call over all images; by default 64 on a CPU, 1024 elsewhere.
        images_per_batch: Inputs that are encoded together.

    Raises:
        DTypeError, ValueRangeError: A model of another kind, or an option that cannot be.

    Source:
        Supplement A.1, and SAM 2's automatic mask generator for the rules; that these are applied to the decoder's
        logits, before they are enlarged, is our choice. The paper tried mosaics and dropped them: masks got worse.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        settings: MaskSettings | Sequence[MaskSettings] = CHEAP,
        bound: tuple[int, int] = BOUND,
        mosaic: int = 1,
        points_per_batch: int | None = None,
        images_per_batch: int = 4,
    ) -> None:
        kind = getattr(getattr(model, "config", None), "model_type", None)
        if kind not in _NORMALIZATION:
            raise DTypeError(
                f"model must be transformers' Sam2Model or Sam3TrackerModel; got {type(model).__name__}. Any other "
                "generator can be used as it is: a callable that maps images to masks."
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
        if min(step.points_per_side for step in self.steps) < mosaic:
            raise ValueRangeError(f"points_per_side must be at least mosaic, {mosaic}: each image needs a point.")
        self.bound = (int(bound[0]), int(bound[1]))
        self.mosaic = mosaic
        self.points_per_batch = points_per_batch
        self.images_per_batch = images_per_batch
        prompt: Any = model.prompt_encoder
        self.input_side = int(prompt.input_image_size)
        self.mask_side = int(prompt.mask_input_size[0])
        if self.input_side % mosaic or self.mask_side % mosaic:
            raise ValueRangeError(
                f"mosaic must divide the model's input {self.input_side} and masks {self.mask_side}; got {mosaic}."
            )
        mean, std = _NORMALIZATION[kind]
        self._mean = torch.tensor(mean, device=self.device).reshape(3, 1, 1)
        self._std = torch.tensor(std, device=self.device).reshape(3, 1, 1)

    def __repr__(self) -> str:
        return f"Sam2Masks({type(self.model).__name__}, {self.describe()})"

    def describe(self) -> dict[str, Any]:
        """What makes these masks, as plain values."""
        name = self.model.config._name_or_path or "random weights"
        return describe(self.steps, self.bound, generator="sam2", model=name, mosaic=self.mosaic)

    def __call__(self, images: Image.Image | Sequence[Image.Image]) -> list[MaskSet]:
        """Masks of one image or several, at the images' sizes.

        Raises:
            DTypeError, ImageError: Not Pillow images, or pictures that cannot be one RGB image.
        """
        images = as_images(images)
        found = self._generate(images, [_whole] * len(images))
        return [encode(one, (image.height, image.width)) for one, image in zip(found, images, strict=True)]

    def on_grid(
        self, images: Image.Image | Sequence[Image.Image], *, geometry: ImageGeometry, grid: Size
    ) -> list[MaskSet]:
        """Masks of images on an encoder's grid, straight from the decoder's logits: nothing is enlarged or encoded.

        A pixel of the decoder's is in a mask or not, as a whole; so a patch at a mask's rim can differ from what
        `MaskDownsampler` makes of the enlarged mask.

        Args:
            images: One or several.
            geometry: How the encoder places images: ``encoder.geometry``.
            grid: Its rows and columns: ``encoder.grid``.
        """
        images = as_images(images)
        downsampler = MaskDownsampler(grid, geometry=geometry, rescale=True)

        def cover(size: Size) -> Finish:
            return lambda logits: downsampler.coverage(logits > 0, size=size)

        found = self._generate(images, [cover((image.height, image.width)) for image in images])
        return [
            MaskSet.on_grid(
                one.kept,
                valid=geometry.place((image.height, image.width)).valid(grid),
                scores=one.scores,
                stability=one.stability,
            )
            for one, image in zip(found, images, strict=True)
        ]

    @torch.no_grad()
    def _generate(self, images: list[Image.Image], finish: list[Finish]) -> list[Candidates]:
        """Kept masks per image, each step for the images that no step before it has satisfied."""
        per_input = self.mosaic**2
        found: list[Candidates | None] = [None] * len(images)
        for start in range(0, len(images), self.images_per_batch * per_input):
            group = list(range(start, min(start + self.images_per_batch * per_input, len(images))))
            inputs = [group[i : i + per_input] for i in range(0, len(group), per_input)]
            embeddings = self._embed([[images[image] for image in tiles] for tiles in inputs])
            for step in self.steps:
                open_ = [i for i, tiles in enumerate(inputs) if any(self._unsettled(found[image]) for image in tiles)]
                if not open_:
                    break
                chosen = [level[open_] for level in embeddings]
                for tiles, masks in zip(
                    [inputs[i] for i in open_],
                    self._prompt(chosen, [[finish[image] for image in inputs[i]] for i in open_], step),
                    strict=True,
                ):
                    for image, new in zip(tiles, masks, strict=True):
                        old = found[image]
                        if old is None or self._miss(new) < self._miss(old):
                            found[image] = new
        return [one for one in found if one is not None]

    def _miss(self, masks: Candidates) -> int:
        return beyond(len(masks.scores), self.bound)

    def _unsettled(self, masks: Candidates | None) -> bool:
        return masks is None or self._miss(masks) > 0

    def _embed(self, inputs: list[list[Image.Image]]) -> list[Tensor]:
        """The vision encoder's features of some inputs, each made of one image or a mosaic of several."""
        side = self.input_side // self.mosaic
        pixels = torch.zeros(len(inputs), 3, self.input_side, self.input_side, device=self.device)
        for canvas, tiles in zip(pixels, inputs, strict=True):
            for tile, image in enumerate(tiles):
                row, col = (side * place for place in divmod(tile, self.mosaic))
                values = torch.from_numpy(np.array(image)).to(self.device).permute(2, 0, 1)[None].float() / 255
                placed = nn.functional.interpolate(values, (side, side), mode="bilinear", antialias=True)[0]
                canvas[:, row : row + side, col : col + side] = (placed - self._mean) / self._std
        return self.model.get_image_embeddings(pixels.to(self.model.dtype))

    def _prompt(
        self, embeddings: list[Tensor], finish: list[list[Finish]], step: MaskSettings
    ) -> list[list[Candidates]]:
        """Kept masks per input and tile, prompted at every point of a step."""
        inputs = len(embeddings[-1])
        found = [[Gathering(step.box_nms_thresh) for _ in tiles] for tiles in finish]
        calls: list[list[Tensor]] = []
        most = _MOST_BYTES
        middle = (torch.arange(step.points_per_side, device=self.device) + 0.5) / step.points_per_side
        tile_of = (middle * self.mosaic).long()
        row, col = torch.meshgrid(torch.arange(len(middle)), torch.arange(len(middle)), indexing="ij")
        row, col = row.flatten().to(self.device), col.flatten().to(self.device)
        points = torch.stack([middle[col], middle[row]], 1) * self.input_side
        tiles = tile_of[row] * self.mosaic + tile_of[col]

        def passing(logits: Tensor, scores: Tensor, one: int, tile: int) -> Candidates:
            return Candidates.passing(logits[one].flatten(0, 1), scores[one].flatten(), step, finish[one][tile])

        def again(one: int, tile: int, call: int) -> Candidates:
            logits, scores = self._decode(embeddings, calls[tile][call])
            return passing(self._crop(logits, tile), scores, one, tile)

        for tile in range(max(len(one) for one in finish)):
            calls.append(list(points[tiles == tile].split(max(1, self.points_per_batch // inputs))))
            for prompts in calls[tile]:
                logits, scores = self._decode(embeddings, prompts)
                logits = self._crop(logits, tile)
                for one, tiles_of_one in enumerate(finish):
                    if tile < len(tiles_of_one):
                        found[one][tile].add(passing(logits, scores, one, tile))
                held = [each for of_one in found for each in of_one[: tile + 1]]
                if sum(each.nbytes for each in held) > most:
                    for each in held:
                        each.thin()
                    most = max(_MOST_BYTES, 2 * sum(each.nbytes for each in held))
        return [
            [each.best(functools.partial(again, one, tile)) for tile, each in enumerate(of_one)]
            for one, of_one in enumerate(found)
        ]

    def _decode(self, embeddings: list[Tensor], prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(B, P, 3, h, w)`` and predicted IoU ``(B, P, 3)`` of the same prompts ``(P, 2)`` in every input."""
        inputs = len(embeddings[-1])
        points = prompts.expand(inputs, -1, -1)[:, :, None]  # the model rounds them only when they lie in [-1, 1]
        labels = torch.ones(points.shape[:3], dtype=torch.int64, device=self.device)
        output = self.model(
            image_embeddings=embeddings, input_points=points, input_labels=labels, multimask_output=True
        )
        return output.pred_masks.float(), output.iou_scores

    def _crop(self, logits: Tensor, tile: int) -> Tensor:
        """The part of an input's logits that shows one tile."""
        side = self.mask_side // self.mosaic
        row, col = (side * place for place in divmod(tile, self.mosaic))
        return logits[..., row : row + side, col : col + side]


def _whole(logits: Tensor) -> Tensor:
    """Logits to be enlarged later; in half precision, which moves a rim by less than a thousandth of a pixel."""
    return logits.clamp(-1e4, 1e4).half()
