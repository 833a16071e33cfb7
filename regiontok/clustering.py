"""The clustering source: merge neighbouring patches until they differ too much or are few enough."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from regiontok._batch import Batch
from regiontok._checks import Features, Valid, check_choice, check_integer
from regiontok._kernels.labels import label
from regiontok._kernels.merge import AVERAGE, CENTROID, WARD
from regiontok._merging import Merges, merge_patches
from regiontok.budgets import Budget, Keep, resolve_budget
from regiontok.choices import LINKAGES, MASK_WEIGHT
from regiontok.errors import ValueRangeError
from regiontok.masked import Groups, check_weight, merge_in_masks
from regiontok.merge_tree import MergeTree, check_goes_with, check_reachable, check_stop
from regiontok.regions import Regions

_T = TypeVar("_T")

_THRESHOLD = 0.7
_NO_BUDGET = "linkage='ward' needs num_regions, keep or explained_variance, which say when to stop. Pass one of them."
_RULES = {"centroid": CENTROID, "average": AVERAGE, "ward": WARD}
_LOWEST = {"centroid": -1.0, "average": -1.0, "ward": -np.finfo(np.float64).max}
"""A score that every pair of a rule reaches."""


def default_linkage(budgeted: bool) -> str:
    """The rule where none is named: Ward's where a budget stops, the paper's elsewhere."""
    return "ward" if budgeted else "centroid"


class UnionFindClusterer:
    """Group neighbouring patches by merging the best pair of adjacent regions, again and again.

    Every patch starts as a region. Candidate pairs wait in a priority queue; disjoint sets tell each patch its region.
    What makes a pair the best is the ``linkage``, and when to stop is said by one of ``threshold``, ``num_regions``,
    ``keep`` and ``explained_variance``:

    =============  ============================================  ===============================================
    ``linkage``    the pair that merges next                     stops by
    =============  ============================================  ===============================================
    ``centroid``   highest cosine of the two mean features       ``threshold``, ``num_regions``, ``keep``
    ``average``    highest mean cosine over pairs of patches      ``threshold``, ``num_regions``, ``keep``
    ``ward``       least growth of the squared error             ``num_regions``, ``keep``, ``explained_variance``
    =============  ============================================  ===============================================

    ``centroid`` is the paper's rule, the default where a threshold stops. It does not weigh sizes, so at a small budget
    one region takes much of the image and many are single patches. ``ward`` does, and is the default where a budget
    stops. ``average`` and ``ward`` see features at unit length, whatever their own is.

    The result does not depend on batch size, device, strides or number of threads, and no gradient flows through it.
    Sums are in float32 and scores true to about 1e-6, so a threshold of 1 can part equal patches. A pair at exactly
    the threshold merges. Of equally good pairs the one created first merges first: pairs of patches in row-major
    order, then pairs by the merge that made them, then by the first patch of the other region. Two regions of zero
    vectors have cosine 1, and 0 with any other; Ward's rule takes zero vectors as points like any other. A patch whose
    square is below float32's range beside the largest one's counts as zero.

    Args:
        linkage: ``centroid``, ``average`` or ``ward``; None for ``ward`` where ``num_regions``, ``keep`` or
            ``explained_variance`` stops, and ``centroid`` elsewhere.
        threshold: Cosine in ``[-1, 1]`` below which no pair merges; 0.7 where nothing else stops. Which value gives how
            many regions depends on the encoder.
        num_regions: The number of regions per image instead: exactly ``min(num_regions, valid patches)``.
        keep: The fraction of each image's valid patches instead, in ``(0, 1]``: rounded up, at least 1.
        explained_variance: As few regions as keep this share, in ``(0, 1]``, of the squared deviation of the image's
            patches from their mean, to within 1e-4; counts then follow the image's complexity. For ``ward`` only.
        connectivity: 4, or 8 to let patches that touch at a corner be neighbours.
        mask_weight: How much masks count that are given with a call, from 0 (not at all) to ``inf``: no region crosses
            a mask as long as there are as many regions as connected parts of masks. See `regiontok.masked`.
        num_threads: Images of a batch are shared among so many threads; None for torch's own number.

    Raises:
        DTypeError, ValueRangeError: An option is not of its kind or out of its range, or does not go with another.

    Example:
        >>> features = torch.tensor([[[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]]])  # one image of 1 x 3 patches
        >>> UnionFindClusterer(threshold=0.9)(features).labels()
        tensor([[[0, 0, 1]]])
        >>> UnionFindClusterer(num_regions=1)(features).labels()  # by Ward's rule
        tensor([[[0, 0, 0]]])

    Source:
        Supplement A.1, "Generating regions from clustering": ``centroid``, the threshold, queues and disjoint sets.
        Adjacency (4 neighbours), ties and zero vectors are our choice; the other linkages, with scikit-learn's names,
        and budgets go beyond the paper.
    """

    def __init__(
        self,
        *,
        linkage: str | None = None,
        threshold: float | None = None,
        num_regions: int | None = None,
        keep: float | None = None,
        explained_variance: float | None = None,
        connectivity: int = 4,
        mask_weight: float = MASK_WEIGHT,
        num_threads: int | None = None,
    ) -> None:
        if linkage is not None:
            check_choice("linkage", linkage, LINKAGES)
        stop = check_stop(threshold, num_regions, keep, explained_variance)
        budgeted = stop.is_budget or stop.explained_variance is not None
        check_goes_with(linkage or default_linkage(budgeted), stop)
        check_choice("connectivity", connectivity, (4, 8))
        self.linkage = linkage
        self.threshold, self.num_regions, self.keep, self.explained_variance = stop
        self.connectivity = int(connectivity)
        self.mask_weight = check_weight(mask_weight)
        self.num_threads = None if num_threads is None else check_integer("num_threads", num_threads)

    def __repr__(self) -> str:
        return (
            f"UnionFindClusterer(linkage={self.linkage!r}, threshold={self.threshold}, "
            f"num_regions={self.num_regions}, keep={self.keep}, explained_variance={self.explained_variance}, "
            f"connectivity={self.connectivity}, mask_weight={self.mask_weight}, num_threads={self.num_threads})"
        )

    def __call__(
        self,
        features: Features,
        valid: Valid | None = None,
        *,
        num_regions: Budget | None = None,
        keep: Keep | None = None,
        masks: Regions | None = None,
    ) -> Regions:
        """Cluster the patches of a batch.

        Args:
            features: ``(B, rows, cols, D)`` floating point, or a list of ``(rows, cols, D)``; any device and strides.
            valid: ``(B, rows, cols)`` bool, or a list of ``(rows, cols)``: which patches may be in a region. What lies
                in the others is not looked at.
            num_regions: A budget for this batch, in place of what the clusterer was made with: one number, or one per
                image.
            keep: Likewise, a fraction of the valid patches.
            masks: Masks on the grid, from `MaskDownsampler`; for Ward's rule with a budget. Patches in none are in no
                region, and every number of regions is reached, also where patches do not connect.

        Returns:
            `Regions` on the features' device, numbered by first patch in row-major order.

        Raises:
            ShapeError: Wrong shape, an empty batch or grid, or not one budget per image.
            DTypeError: Not floating point, or a budget that is no whole number.
            ValueRangeError: NaN or infinity, fewer regions than islands of valid patches, or ``ward`` without a budget.
        """
        batch = Batch(features, valid)
        if masks is not None:
            return self._within(batch, masks, num_regions, keep)
        budgets = self._budgets(batch.patches, num_regions, keep)
        if budgets is not None:
            _check_islands(batch, budgets, self.connectivity)
        targets = [1] * len(batch.grids) if budgets is None else budgets
        kept = None if budgets is not None else self.explained_variance
        linkage = self.linkage or default_linkage(budgets is not None or kept is not None)
        if linkage == "ward" and budgets is None and kept is None:
            raise ValueRangeError(_NO_BUDGET)
        lowest = _LOWEST[linkage]
        if budgets is None and kept is None:
            lowest = _THRESHOLD if self.threshold is None else self.threshold
        least_kept = -1.0 if kept is None else kept
        labels = np.empty(len(batch.valid), np.int64)

        def cluster(image: int) -> int:
            pairs = self._merge(batch, image, linkage, lowest, targets[image], least_kept).pairs
            return label(batch.of(image, batch.valid), pairs, len(pairs), batch.of(image, labels))

        return batch.regions(labels, self._map(cluster, batch))

    def tree(
        self, features: Features, valid: Valid | None = None, *, masks: Regions | None = None
    ) -> list["MergeTree"]:
        """Merge the patches of each image as far as they connect and keep every merge, to cut at will.

        A tree is of one rule: ``linkage``, or by default that of the clusterer's own threshold or budget. For cuts that
        equal calls with a budget, grow it with ``linkage="ward"``. Shapes and errors are those of a call; a tree of
        ``masks`` is of Ward's rule.
        """
        batch = Batch(features, valid)
        if masks is not None:
            return self._trees_within(batch, masks)
        budgeted = any(one is not None for one in (self.num_regions, self.keep, self.explained_variance))
        linkage = self.linkage or default_linkage(budgeted)
        ward = linkage == "ward"

        def grow(image: int) -> MergeTree:
            pairs, score, deviation = self._merge(batch, image, linkage, _LOWEST[linkage], 1, 0.0 if ward else -1.0)
            return MergeTree(
                pairs=torch.from_numpy(pairs.copy()),
                score=torch.from_numpy(np.abs(score) if ward else score.copy()),
                valid=torch.from_numpy(batch.of(image, batch.valid).copy()).reshape(batch.grids[image]),
                linkage=linkage,
                deviation=deviation if ward else None,
            )

        return self._map(grow, batch)

    def counts(
        self, patches: Sequence[int] | Tensor, *, num_regions: Budget | None = None, keep: Keep | None = None
    ) -> list[int]:
        """How many regions images with so many valid patches have, before there are features.

        Args:
            patches: Per image, its number of valid patches.
            num_regions: As of a call.
            keep: As of a call.

        Raises:
            ValueRangeError: Without a budget, counts depend on the features.

        Example:
            >>> UnionFindClusterer(num_regions=64).counts([576, 288, 24])
            [64, 64, 24]
        """
        given = patches.tolist() if isinstance(patches, Tensor) else patches
        budgets = self._budgets([check_integer("patches", one) for one in given], num_regions, keep)
        if budgets is None:
            if self.linkage == "ward" and self.explained_variance is None:
                raise ValueRangeError(_NO_BUDGET)
            stop = "threshold" if self.explained_variance is None else "explained_variance"
            raise ValueRangeError(
                f"{stop} makes as many regions as the features ask for, so counts are known only after encoding. Set "
                "num_regions or keep."
            )
        return budgets

    def _budgets(self, patches: Sequence[int], num_regions: Budget | None, keep: Keep | None) -> list[int] | None:
        """Budgets of a call, or else the clusterer's own."""
        if num_regions is None and keep is None:
            num_regions, keep = self.num_regions, self.keep
        return resolve_budget(patches, num_regions, keep)

    def _within(self, batch: Batch, masks: Regions, num_regions: Budget | None, keep: Keep | None) -> Regions:
        """Cluster the patches that are in masks."""
        budgets = self._budgets(batch.patches, num_regions, keep)
        if budgets is None or self.linkage not in (None, "ward"):
            raise ValueRangeError(
                "masks are for linkage='ward' with a budget. Pass num_regions or keep, and leave linkage out."
            )
        groups = batch.restrict(masks)
        targets = [min(budget, patches) for budget, patches in zip(budgets, batch.patches, strict=True)]
        labels = np.empty(len(batch.valid), np.int64)

        def cluster(image: int) -> int:
            pairs, _ = self._merge_within(batch, image, groups[image], targets[image])
            return label(batch.of(image, batch.valid), pairs, len(pairs), batch.of(image, labels))

        return batch.regions(labels, self._map(cluster, batch))

    def _trees_within(self, batch: Batch, masks: Regions) -> list[MergeTree]:
        patches = batch.patches
        groups = batch.restrict(masks)

        def grow(image: int) -> MergeTree:
            pairs, score = self._merge_within(batch, image, groups[image], 1)
            return MergeTree(
                pairs=torch.from_numpy(pairs.copy()),
                score=torch.from_numpy(np.abs(score)),
                valid=torch.from_numpy(batch.of(image, batch.valid).copy()).reshape(batch.grids[image]),
                linkage="ward",
                patches=patches[image],
            )

        return self._map(grow, batch)

    def _merge_within(self, batch: Batch, image: int, groups: Groups, target: int) -> tuple[np.ndarray, np.ndarray]:
        values, valid = batch.of(image, batch.values), batch.of(image, batch.valid)
        diagonal = self.connectivity == 8
        return merge_in_masks(values, valid, batch.grids[image][1], diagonal, groups, self.mask_weight, target, image)

    def _merge(self, batch: Batch, image: int, linkage: str, lowest: float, target: int, kept: float) -> Merges:
        """Merge the patches of one image."""
        values, valid = batch.of(image, batch.values), batch.of(image, batch.valid)
        grid = batch.grids[image][1], self.connectivity == 8
        return merge_patches(values, valid, *grid, _RULES[linkage], lowest, target, kept, image=image)

    def _map(self, work: Callable[[int], _T], batch: Batch) -> list[_T]:
        """Results of ``work`` for every image of the batch, shared among threads."""
        images = range(len(batch.grids))
        threads = 1 if len(images) == 1 else min(self.num_threads or torch.get_num_threads(), len(images))
        if threads == 1:
            return [work(image) for image in images]
        with ThreadPoolExecutor(threads) as pool:  # one per call: kept for good it would be dead in a forked process
            return list(pool.map(work, images))


def _check_islands(batch: Batch, targets: Sequence[int], connectivity: int) -> None:
    if not batch.has_padding:
        return
    from scipy import ndimage  # noqa: PLC0415  takes as long to import as all the rest, and few batches need it

    neighbours = ndimage.generate_binary_structure(2, 2 if connectivity == 8 else 1)
    for image, (grid, target) in enumerate(zip(batch.grids, targets, strict=True)):
        check_reachable(
            f"image {image}", target, ndimage.label(batch.of(image, batch.valid).reshape(grid), neighbours)[1]
        )
