"""Filtering of SAM's candidate masks on the low-resolution logits of the mask decoder.

The usual generators resize every candidate to the image and run-length encode it before they compare boxes. Here the
filters and the non-maximum suppression read the logits of the decoder, and only the remaining masks are resized.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regiontok._kernels.logits import measure
from regiontok._require import require
from regiontok.geometry import Size
from regiontok.masks.granularity import MaskSettings
from regiontok.maskset import MaskSet, join

Convert = Callable[[Tensor], Tensor]
"""Convert logits ``(N, h, w)`` of candidates into the values ``(N, ...)`` to store for them."""

_MAX_RESIZED_PIXELS = 2**23
"""Maximum number of pixels of resized masks in memory at a time."""


@dataclass
class Candidates:
    """Candidate masks of one image that passed the filters.

    Attributes:
        values: ``(N, ...)``: converted logits.
        boxes: ``(N, 4)`` float32: left, top, right, bottom.
        scores: ``(N,)`` float32: predicted IoU.
        stability: ``(N,)`` float32: stability scores.
    """

    values: Tensor
    boxes: Tensor
    scores: Tensor
    stability: Tensor

    @classmethod
    def from_logits(cls, logits: Tensor, scores: Tensor, settings: MaskSettings, convert: Convert) -> "Candidates":
        """Filter candidates ``(N, h, w)`` by predicted IoU ``(N,)`` and stability, and drop empty masks."""
        promising = (scores > settings.pred_iou_thresh).nonzero().squeeze(1)
        logits, scores = logits[promising], scores[promising].float()
        areas, boxes = _measure(logits, settings.stability_score_offset)
        stability = areas[:, 0] / areas[:, 1]  # 0 / 0 is NaN, which passes no threshold
        stable = (stability >= settings.stability_score_thresh) & (boxes[:, 2] > 0)
        return cls(convert(logits[stable]), boxes[stable], scores[stable], stability[stable])


class CandidateBuffer:
    """Candidates of one image from successive decoder calls, for non-maximum suppression of their boxes.

    The buffer stores the boxes and scores of all candidates. `suppress` frees the values of candidates that are
    suppressed by those added so far. Their suppression is not final: a later candidate can suppress the box that
    suppressed them. `best` selects among all candidates, and repeats the decoder calls whose values it needs again.

    Args:
        box_nms_thresh: IoU of boxes above which the candidate of lower score is suppressed.
    """

    def __init__(self, box_nms_thresh: float) -> None:
        self.box_nms_thresh = box_nms_thresh
        self._values = _GrowingTensor()
        self._positions = _GrowingTensor()
        """Row in ``_values`` of each candidate, -1 if its values are freed."""
        self._measures = {name: _GrowingTensor() for name in _MEASURES}
        self._ends: list[int] = []
        """Number of candidates up to the end of each call."""

    @property
    def nbytes(self) -> int:
        """Number of bytes of the stored values."""
        return self._values.all().nbytes

    def add(self, candidates: Candidates) -> None:
        """Add the candidates of the next decoder call."""
        start, count = len(self._values), len(candidates.values)
        self._positions.append(torch.arange(start, start + count, device=candidates.scores.device))
        self._values.append(candidates.values)
        for name, measures in self._measures.items():
            measures.append(getattr(candidates, name))
        self._ends.append(len(self._positions))

    def suppress(self) -> None:
        """Free the values of candidates that are currently suppressed."""
        positions = self._positions.all()
        is_best = torch.zeros_like(positions, dtype=torch.bool)
        is_best[self._best()] = True
        remains = is_best & (positions >= 0)
        self._values.keep(positions[remains])
        positions.copy_(torch.where(remains, remains.cumsum(0) - 1, -1))

    def best(self, decode: Callable[[int], Candidates]) -> Candidates:
        """Return the candidates that non-maximum suppression keeps, by descending score.

        Args:
            decode: Recomputes the candidates of a decoder call from the index of the call.
        """
        best = self._best()
        positions = self._positions.all()[best]
        values = self._values.all()[positions.clamp(min=0)]
        ends = torch.tensor(self._ends, device=best.device)
        calls = torch.searchsorted(ends, best, right=True)
        for call in calls[positions < 0].unique().tolist():
            freed = (positions < 0) & (calls == call)
            values[freed] = decode(call).values[best[freed] - (self._ends[call - 1] if call else 0)]
        return Candidates(values, *(self._measures[name].all()[best] for name in _MEASURES))

    def _best(self) -> Tensor:
        nms = require("torchvision.ops", extra="masks", distribution="torchvision").nms
        best: Tensor = nms(self._measures["boxes"].all(), self._measures["scores"].all(), self.box_nms_thresh)
        return best


class _GrowingTensor:
    """Rows of a tensor with spare capacity. A list of small tensors between large temporary ones fragments memory."""

    def __init__(self) -> None:
        self._rows = torch.empty(0)
        self._used = 0
        self._is_allocated = False

    def __len__(self) -> int:
        return self._used

    def all(self) -> Tensor:
        """Return a view of all rows."""
        return self._rows[: self._used]

    def append(self, rows: Tensor) -> None:
        """Append rows; the first ones determine the shape and the data type."""
        end = self._used + len(rows)
        if not self._is_allocated or end > len(self._rows):
            grown = rows.new_empty(max(end, 2 * len(self._rows)), *rows.shape[1:])
            if self._is_allocated:
                grown[: self._used] = self.all()
            self._rows, self._is_allocated = grown, True
        self._rows[self._used : end] = rows
        self._used = end

    def keep(self, index: Tensor) -> None:
        """Keep the rows at these ascending indices, and drop the others."""
        self._rows[: len(index)] = self._rows[index]
        self._used = len(index)


_MEASURES = ("boxes", "scores", "stability")


def _measure(logits: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    """Return the areas ``(N, 2)`` above ``offset`` and ``-offset``, and the boxes ``(N, 4)``, on any device."""
    if logits.device.type == "cpu":
        counts, corners = np.empty((len(logits), 2), np.int64), np.empty((len(logits), 4), np.int64)
        measure(logits.float().contiguous().numpy(), np.float32(offset), counts, corners)
        return torch.from_numpy(counts).float(), torch.from_numpy(corners).float()
    areas = torch.stack([(logits > offset).sum((1, 2)), (logits > -offset).sum((1, 2))], 1)
    inside = logits > 0
    ends = []
    for axis in (1, 2):  # columns, then rows
        line = inside.any(axis)
        first, last = line.byte().argmax(1), line.shape[1] - line.flip(1).byte().argmax(1)
        ends.append((torch.where(line.any(1), first, 0), torch.where(line.any(1), last, 0)))
    (left, right), (top, bottom) = ends
    return areas.float(), torch.stack([left, top, right, bottom], 1).float()


def encode(candidates: Candidates, size: Size) -> MaskSet:
    """Resize the logits of candidates to an image of ``size``, a few at a time, and run-length encode the masks."""
    step = max(1, _MAX_RESIZED_PIXELS // (size[0] * size[1]))
    parts = [
        MaskSet.from_masks(torch.nn.functional.interpolate(part[:, None].float(), size, mode="bilinear")[:, 0] > 0)
        for part in candidates.values.split(step)
        if len(part)
    ]
    return join(parts, size, scores=candidates.scores, stability=candidates.stability)
