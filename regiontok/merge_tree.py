"""Merge trees: every merge of one image, to be cut at will; and what stops merging."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regiontok._checks import check_integer, check_number
from regiontok._kernels.labels import label
from regiontok._kernels.merge import allowance
from regiontok.budgets import check_keep, resolve_budget
from regiontok.errors import ValueRangeError
from regiontok.regions import Regions


@dataclass(frozen=True, eq=False)
class MergeTree:
    """Every merge of one image in the order in which they happened, to be cut at will.

    A cut equals a direct run of the clusterer with the same linkage to the last label. Scores are not monotone along
    the merges (the mean of two regions can be closer to a third than either was), so a cut stops before the first
    merge that its threshold or share does not allow.

    Attributes:
        pairs: ``(M, 2)`` int32: the two regions of each merge, named by first patch, the smaller first.
        score: ``(M,)`` float64: the cosine of the two means for ``centroid``, the mean cosine of their patches for
            ``average``, the growth of the squared error for ``ward``.
        valid: ``(rows, cols)`` bool: the patches that take part.
        linkage: The rule of the merges.
        patches: Number of patches of the image that ``keep`` is a fraction of; by default those that take part. With
            masks, the patches in no mask count too.
        deviation: For ``ward``, the squared deviation of the patches, at unit length, from their mean. The growths of
            all merges add up to it where the valid patches connect. None for the other rules.

    Example:
        >>> features = torch.tensor([[[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]]])
        >>> tree = UnionFindClusterer().tree(features)[0]
        >>> tree.cut(threshold=0.9).labels()
        tensor([[[0, 0, 1]]])
        >>> len(tree.cut(num_regions=1))
        1
        >>> UnionFindClusterer(linkage="ward").tree(features)[0].cut(explained_variance=0.9).labels()
        tensor([[[0, 0, 1]]])
    """

    pairs: Tensor
    score: Tensor
    valid: Tensor
    linkage: str = "centroid"
    deviation: float | None = None
    patches: int | None = None

    def __repr__(self) -> str:
        rows, cols = self.valid.shape
        return f"MergeTree({len(self.pairs)} merges on a {rows} x {cols} grid, linkage={self.linkage!r})"

    def cut(
        self,
        *,
        threshold: float | None = None,
        num_regions: int | None = None,
        keep: float | None = None,
        explained_variance: float | None = None,
    ) -> Regions:
        """The regions of the image, a batch of one on the CPU; the arguments are those of `UnionFindClusterer`.

        Raises:
            DTypeError, ValueRangeError: Not exactly one of the four, one out of range, or not for this linkage.
        """
        stop = check_stop(threshold, num_regions, keep, explained_variance)
        if stop == Stop():
            raise ValueRangeError(
                "cut needs one of threshold, num_regions, keep and explained_variance, as in cut(num_regions=64)."
            )
        check_goes_with(self.linkage, stop)
        patches, done = int(self.valid.sum()), len(self.pairs)
        of_image = patches if self.patches is None else self.patches
        budgets = resolve_budget([of_image], stop.num_regions, stop.keep)
        if budgets is not None:
            target = min(budgets[0], patches)
            check_reachable("the image", target, patches - done)
            count = patches - target
        elif stop.threshold is not None:
            count = _first(self.score.numpy() < stop.threshold, done)
        elif self.deviation is None:
            raise ValueRangeError(
                "explained_variance is not for a tree with masks, whose scores count masks too. Pass num_regions or "
                "keep."
            )
        else:
            allowed = allowance(stop.explained_variance, self.deviation)
            count = _first(np.cumsum(self.score.numpy()) > allowed, done)
        labels = np.empty(self.valid.numel(), np.int64)
        label(self.valid.reshape(-1).numpy(), self.pairs.numpy(), count, labels)
        return Regions.from_labels([torch.from_numpy(labels).reshape(self.valid.shape)])

    def curve(self) -> tuple[Tensor, Tensor]:
        """What each number of regions keeps: counts ``(M + 1,)`` from all patches down, and shares in ``[0, 1]``.

        A share is of the squared deviation, as ``explained_variance`` means it; 1 where patches do not differ at all.

        Raises:
            ValueRangeError: Not a tree of ``ward``.

        Example:
            >>> counts, kept = UnionFindClusterer(linkage="ward").tree(torch.eye(3).reshape(1, 1, 3, 3))[0].curve()
            >>> counts.tolist(), [round(share, 2) for share in kept.tolist()]
            ([3, 2, 1], [1.0, 0.5, 0.0])
        """
        if self.deviation is None:
            raise ValueRangeError(f"curve is for linkage='ward', whose scores add up; got {self.linkage!r}.")
        patches = int(self.valid.sum())
        counts = torch.arange(patches, patches - len(self.pairs) - 1, -1)
        spent = torch.nn.functional.pad(self.score.cumsum(0), (1, 0))
        if self.deviation == 0:
            return counts, torch.ones_like(spent)
        return counts, (1 - spent / self.deviation).clamp(0, 1)


class Stop(NamedTuple):
    """When merging stops: one of the four, or none."""

    threshold: float | None = None
    num_regions: int | None = None
    keep: float | None = None
    explained_variance: float | None = None

    @property
    def is_budget(self) -> bool:
        """Whether the number of regions is known from the number of patches."""
        return self.num_regions is not None or self.keep is not None


torch.serialization.add_safe_globals([MergeTree])  # what torch.save wrote of it is tensors and numbers


def check_stop(threshold: Any, num_regions: Any, keep: Any, explained_variance: Any) -> Stop:
    """Check each of the four, and that there is at most one."""
    given = {
        "threshold": threshold,
        "num_regions": num_regions,
        "keep": keep,
        "explained_variance": explained_variance,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        named = " and ".join(f"{name}={value}" for name, value in given.items())
        raise ValueRangeError(f"{named} are several ways to say when to stop. Leave all but one out.")
    if threshold is not None:
        threshold = check_number("threshold", threshold, low=-1, high=1)
    if num_regions is not None:
        num_regions = check_integer("num_regions", num_regions)
    if keep is not None:
        keep = check_keep(keep)
    if explained_variance is not None:
        explained_variance = check_number("explained_variance", explained_variance, low=0, high=1)
        if explained_variance == 0:
            raise ValueRangeError("explained_variance must be above 0; got 0. For one region pass num_regions=1.")
    return Stop(threshold, num_regions, keep, explained_variance)


def check_goes_with(linkage: str, stop: Stop) -> None:
    """Refuse a way to stop that a linkage does not have."""
    if linkage == "ward" and stop.threshold is not None:
        raise ValueRangeError(
            f"threshold={stop.threshold} is a cosine, which linkage='ward' does not look at. Pass num_regions, keep "
            "or explained_variance, or take linkage='centroid' or 'average'."
        )
    if linkage != "ward" and stop.explained_variance is not None:
        raise ValueRangeError(
            f"explained_variance is for linkage='ward', whose scores add up to the variance; got linkage={linkage!r}. "
            "Leave one of them out."
        )


def _first(true: np.ndarray, otherwise: int) -> int:
    """Where an array is true for the first time."""
    return int(true.argmax()) if true.any() else otherwise


def check_reachable(image: str, target: int, islands: int) -> None:
    """Reject fewer regions than there are parts that cannot merge."""
    if target < islands:
        raise ValueRangeError(
            f"num_regions must be at least the number of islands of valid patches, which cannot merge; got {target}, "
            f"{image} has {islands}. Ask for {islands} or more."
        )
