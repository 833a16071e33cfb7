"""Merge trees: all merges of one image, from which regions of any budget can be cut."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regiontok._kernels.labels import label
from regiontok._kernels.merge import allowance
from regiontok.budgets import resolve_budget
from regiontok.errors import ValueRangeError
from regiontok.regions import Regions
from regiontok.stopping import Stop, check_linkage, check_stop


@dataclass(frozen=True, eq=False)
class MergeTree:
    """All merges of one image in the order in which they happened.

    A cut returns the same regions as the clusterer with the same linkage. Scores are not monotone, because the mean of
    two regions can be closer to a third region than either of them. A cut stops before the first merge that its
    threshold or explained variance does not allow.

    Attributes:
        pairs: ``(M, 2)`` int32: the first patches of the two merged regions, in ascending order.
        score: ``(M,)`` float64: the cosine of the two means for ``centroid``, the mean cosine of their patches for
            ``average``, the growth of the squared error for ``ward``.
        valid: ``(rows, cols)`` bool: the patches that are in regions.
        linkage: The linkage of the merges.
        deviation: For ``ward``, the squared deviation of the patches, at unit length, from their mean. The growths of
            all merges add up to it if the valid patches are connected. None for ``centroid`` and ``average``, and with
            masks.
        patches: Number of patches of which ``keep`` is a fraction; None for the number of valid patches. With masks it
            includes the patches in no mask.

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
        """Return the regions of the image as a batch of one image on the CPU; see `UnionFindClusterer` for arguments.

        Raises:
            DTypeError, ValueRangeError: The number of arguments is not one, a value is invalid, or the linkage does
                not support the argument.
        """
        stop = check_stop(threshold, num_regions, keep, explained_variance)
        if stop == Stop():
            raise ValueRangeError(
                "cut needs one of threshold, num_regions, keep and explained_variance, as in cut(num_regions=64)."
            )
        check_linkage(self.linkage, stop)
        num_valid, num_merges = int(self.valid.sum()), len(self.pairs)
        budgets = resolve_budget([num_valid if self.patches is None else self.patches], stop.num_regions, stop.keep)
        if budgets is not None:
            target = min(budgets[0], num_valid)
            check_reachable("the image", target, num_valid - num_merges)
            count = num_valid - target
        elif stop.threshold is not None:
            count = _first_true(self.score.numpy() < stop.threshold)
        elif self.deviation is None:
            raise ValueRangeError(
                "explained_variance is not for a tree with masks, whose scores include the masks. Pass num_regions or "
                "keep."
            )
        else:
            allowed = allowance(stop.explained_variance, self.deviation)
            count = _first_true(np.cumsum(self.score.numpy()) > allowed)
        labels = np.empty(self.valid.numel(), np.int64)
        label(self.valid.reshape(-1).numpy(), self.pairs.numpy(), count, labels)
        return Regions.from_labels([torch.from_numpy(labels).reshape(self.valid.shape)])

    def curve(self) -> tuple[Tensor, Tensor]:
        """Return the explained variance of each number of regions.

        Returns:
            Numbers of regions ``(M + 1,)``, from all patches down, and explained variances in ``[0, 1]``; 1 if all
            patches are equal.

        Raises:
            ValueRangeError: The linkage of the tree is not ``ward``, or the tree has masks.

        Example:
            >>> tree = UnionFindClusterer(linkage="ward").tree(torch.eye(3).reshape(1, 1, 3, 3))[0]
            >>> counts, explained_variance = tree.curve()
            >>> counts.tolist(), [round(value, 2) for value in explained_variance.tolist()]
            ([3, 2, 1], [1.0, 0.5, 0.0])
        """
        if self.deviation is None:
            tree = "a tree with masks" if self.linkage == "ward" else repr(self.linkage)
            raise ValueRangeError(f"curve needs linkage='ward' without masks, whose scores add up; got {tree}.")
        num_valid = int(self.valid.sum())
        counts = torch.arange(num_valid, num_valid - len(self.pairs) - 1, -1)
        spent = torch.nn.functional.pad(self.score.cumsum(0), (1, 0))
        if self.deviation == 0:
            return counts, torch.ones_like(spent)
        return counts, (1 - spent / self.deviation).clamp(0, 1)


torch.serialization.add_safe_globals([MergeTree])  # it contains only tensors and numbers


def _first_true(mask: np.ndarray) -> int:
    """Return the index of the first true value, or the length if there is none."""
    return int(mask.argmax()) if mask.any() else len(mask)


def check_reachable(image: str, target: int, components: int) -> None:
    """Check that the number of regions is at least the number of connected components of valid patches.

    Raises:
        ValueRangeError: The number of regions is too small.
    """
    if target < components:
        raise ValueRangeError(
            "num_regions must be at least the number of connected components of valid patches, which cannot merge; got "
            f"{target}, {image} has {components}. Pass {components} or more."
        )
