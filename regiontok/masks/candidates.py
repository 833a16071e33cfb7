"""From a mask decoder's logits to kept masks, at the decoder's own resolution: filter, box, suppress, cover, encode.

The generators we know enlarge every candidate to the photo and run-length encode it before they compare boxes. Here a
candidate is read once as it comes, and only what is kept is ever enlarged.
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

Finish = Callable[[Tensor], Tensor]
"""What to keep of the candidates' logits ``(N, h, w)``."""

_ENLARGED = 2**23
"""Pixels of enlarged masks held at a time."""


@dataclass
class Candidates:
    """One photo's candidates that passed the filters.

    Attributes:
        kept: What is kept of their logits, ``(n, ...)`` per decoder call; joined only when few are left.
        boxes: ``(N, 4)`` float32: left, top, right, bottom.
        scores: ``(N,)`` float32: predicted IoU.
        stability: ``(N,)`` float32.
    """

    kept: list[Tensor]
    boxes: Tensor
    scores: Tensor
    stability: Tensor

    @classmethod
    def passing(cls, logits: Tensor, scores: Tensor, settings: MaskSettings, finish: Finish) -> "Candidates":
        """Those of the candidates ``(N, h, w)`` whose predicted IoU and stability suffice and that are not empty."""
        promising = (scores > settings.pred_iou_thresh).nonzero().squeeze(1)
        logits, scores = logits[promising], scores[promising].float()
        areas, boxes = _measure(logits, settings.stability_score_offset)
        stability = areas[:, 0] / areas[:, 1]  # nan where both are 0, which passes no threshold
        stable = (stability >= settings.stability_score_thresh) & (boxes[:, 2] > 0)
        return cls([finish(logits[stable])], boxes[stable], scores[stable], stability[stable])

    @classmethod
    def join(cls, parts: list["Candidates"]) -> "Candidates":
        """All parts, in their order."""
        boxes, scores, stability = (torch.cat([getattr(part, name) for part in parts]) for name in _MEASURES)
        return cls([kept for part in parts for kept in part.kept], boxes, scores, stability)

    def suppress(self, box_nms_thresh: float) -> "Candidates":
        """The best of those whose boxes overlap by more than the threshold, the best first."""
        nms = require("torchvision.ops", extra="masks", distribution="torchvision").nms
        best = nms(self.boxes, self.scores, box_nms_thresh)
        in_order, rank = best.sort()
        ends = torch.tensor([len(part) for part in self.kept], device=best.device).cumsum(0)
        counts = torch.searchsorted(in_order, ends).diff(prepend=ends.new_zeros(1)).tolist()
        starts = ends - torch.tensor([len(part) for part in self.kept], device=best.device)
        some = [
            part[index - start] for part, index, start in zip(self.kept, in_order.split(counts), starts, strict=True)
        ]
        return Candidates([torch.cat(some)[rank.argsort()]], self.boxes[best], self.scores[best], self.stability[best])


_MEASURES = ("boxes", "scores", "stability")


def _measure(logits: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    """Areas ``(N, 2)`` above and below the offset, and boxes ``(N, 4)``, of candidates on any device."""
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
    """Kept logits, enlarged to a photo of ``size`` a few at a time and run-length encoded."""
    step = max(1, _ENLARGED // (size[0] * size[1]))
    parts = [
        MaskSet.from_masks(torch.nn.functional.interpolate(part[:, None].float(), size, mode="bilinear")[:, 0] > 0)
        for part in candidates.kept[0].split(step)
        if len(part)
    ]
    return join(parts, size, scores=candidates.scores, stability=candidates.stability)
