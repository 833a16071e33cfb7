"""From a mask decoder's logits to kept masks, at the decoder's own resolution: filter, box, suppress, cover, encode.

The generators we know enlarge every candidate to the image and run-length encode it before they compare boxes. Here a
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
    """One image's candidates that passed the filters.

    Attributes:
        kept: What is kept of their logits, ``(N, ...)``.
        boxes: ``(N, 4)`` float32: left, top, right, bottom.
        scores: ``(N,)`` float32: predicted IoU.
        stability: ``(N,)`` float32.
    """

    kept: Tensor
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
        return cls(finish(logits[stable]), boxes[stable], scores[stable], stability[stable])


class Gathering:
    """One image's candidates as decoder calls bring them, to be thinned by the overlap of their boxes.

    Boxes and scores of all are held, and logits of those that no better one overlaps so far. Which are best is known
    only at the end, and is decided by all boxes at once. Then one may be wanted that was let go, since what overlapped
    it is itself overlapped by a later one: the call that brought it is made again.
    """

    def __init__(self, box_nms_thresh: float) -> None:
        self.box_nms_thresh = box_nms_thresh
        self._kept = _Buffer()
        self._place = _Buffer()
        """Where in ``_kept`` each candidate is, -1 for those that were let go."""
        self._measures = {name: _Buffer() for name in _MEASURES}
        self._ends: list[int] = []

    @property
    def nbytes(self) -> int:
        """Of the logits that are held."""
        return self._kept.all().nbytes

    def add(self, some: Candidates) -> None:
        """Those of the next call."""
        held = len(self._kept)
        self._place.add(torch.arange(held, held + len(some.kept), device=some.scores.device))
        self._kept.add(some.kept)
        for name, buffer in self._measures.items():
            buffer.add(getattr(some, name))
        self._ends.append(len(self._place))

    def thin(self) -> None:
        """Let go of the logits of those that a better one overlaps."""
        place = self._place.all()
        best = torch.zeros_like(place, dtype=torch.bool)
        best[self._best()] = True
        stays = best & (place >= 0)
        self._kept.keep(place[stays])
        place.copy_(torch.where(stays, stays.cumsum(0) - 1, -1))

    def best(self, again: Callable[[int], Candidates]) -> Candidates:
        """The best of those whose boxes overlap by more than the threshold, the best first.

        Args:
            again: The candidates of a call, by its number.
        """
        best = self._best()
        place = self._place.all()[best]
        kept = self._kept.all()[place.clamp(min=0)]
        ends = torch.tensor(self._ends, device=best.device)
        call = torch.searchsorted(ends, best, right=True)
        for number in call[place < 0].unique().tolist():
            mine = (place < 0) & (call == number)
            kept[mine] = again(number).kept[best[mine] - (self._ends[number - 1] if number else 0)]
        return Candidates(kept, *(self._measures[name].all()[best] for name in _MEASURES))

    def _best(self) -> Tensor:
        nms = require("torchvision.ops", extra="masks", distribution="torchvision").nms
        best: Tensor = nms(self._measures["boxes"].all(), self._measures["scores"].all(), self.box_nms_thresh)
        return best


class _Buffer:
    """Rows in one piece of memory that grows: many small tensors among large passing ones would scatter the heap."""

    def __init__(self) -> None:
        self._rows = torch.empty(0)
        self._used = 0
        self._fresh = True

    def __len__(self) -> int:
        return self._used

    def all(self) -> Tensor:
        """The rows, to be changed in place."""
        return self._rows[: self._used]

    def add(self, rows: Tensor) -> None:
        """More rows."""
        wanted = self._used + len(rows)
        if self._fresh or wanted > len(self._rows):
            grown = rows.new_empty(max(wanted, 2 * len(self._rows)), *rows.shape[1:])
            if not self._fresh:
                grown[: self._used] = self.all()
            self._rows, self._fresh = grown, False
        self._rows[self._used : wanted] = rows
        self._used = wanted

    def keep(self, index: Tensor) -> None:
        """These rows alone, ascending."""
        self._rows[: len(index)] = self._rows[index]
        self._used = len(index)


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
    """Kept logits, enlarged to an image of ``size`` a few at a time and run-length encoded."""
    step = max(1, _ENLARGED // (size[0] * size[1]))
    parts = [
        MaskSet.from_masks(torch.nn.functional.interpolate(part[:, None].float(), size, mode="bilinear")[:, 0] > 0)
        for part in candidates.kept.split(step)
        if len(part)
    ]
    return join(parts, size, scores=candidates.scores, stability=candidates.stability)
