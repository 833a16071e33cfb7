"""The clustering source: merge neighbouring patches until they differ too much or few enough regions are left."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from regiontok._host import HostBatch
from regiontok._kernels.labels import label
from regiontok._merging import LINKAGES, Merges, merge_patches
from regiontok._values import check_integer
from regiontok.batch import Features, Valid
from regiontok.budgets import Budget, Keep, resolve_budget
from regiontok.choices import MASK_WEIGHT, MOTION
from regiontok.errors import ValueRangeError
from regiontok.masked import Groups, merge_in_masks
from regiontok.merge_tree import MergeTree, check_reachable
from regiontok.options import check_option
from regiontok.regions import Regions
from regiontok.stopping import DEFAULT_THRESHOLD, Stop, check_linkage, check_stop
from regiontok.streaming import ClipStream

_T = TypeVar("_T")

_NO_BUDGET = "linkage='ward' needs num_regions, keep or explained_variance, which say when to stop. Pass one of them."
_LOWEST_SCORE = {"centroid": -1.0, "average": -1.0, "ward": -np.finfo(np.float64).max}


class UnionFindClusterer:
    """Group patches by repeatedly merging the best pair of neighbouring regions.

    Every patch starts as a region. Candidate pairs are kept in a priority queue, and disjoint sets map patches to
    regions. ``linkage`` defines the best pair, and one of ``threshold``, ``num_regions``, ``keep`` and
    ``explained_variance`` defines when to stop:

    =============  ============================================  ===============================================
    ``linkage``    the pair that merges next                     stops by
    =============  ============================================  ===============================================
    ``centroid``   highest cosine of the two mean features       ``threshold``, ``num_regions``, ``keep``
    ``average``    highest mean cosine over pairs of patches      ``threshold``, ``num_regions``, ``keep``
    ``ward``       least growth of the squared error             ``num_regions``, ``keep``, ``explained_variance``
    =============  ============================================  ===============================================

    ``centroid`` is the paper's criterion and the default with a threshold. It ignores the sizes of regions, so at a
    small budget one region covers much of the image and many are single patches. ``ward`` accounts for sizes and is the
    default with a budget. ``average`` and ``ward`` scale features to unit length.

    The result does not depend on batch size, device, strides or number of threads, and no gradient flows through it.
    Sums are computed in float32, and scores are accurate to about 1e-6, so a threshold of 1 may separate equal patches.
    A pair whose score equals the threshold merges. Ties are broken in favour of the pair that was created first: pairs
    of patches in row-major order, then pairs by the merge that created them, then by the first patch of the other
    region. The cosine of two zero vectors is 1, and of a zero vector with any other 0; Ward's criterion treats zero
    vectors as ordinary points. A patch whose square is below float32's normal range counts as a zero vector.

    Args:
        linkage: ``centroid``, ``average`` or ``ward``; None is ``ward`` with ``num_regions``, ``keep`` or
            ``explained_variance``, and ``centroid`` otherwise.
        threshold: Cosine in ``[-1, 1]`` below which no pair merges; 0.7 if no other option stops the merging. How many
            regions a value gives depends on the encoder.
        num_regions: Number of regions per image: exactly ``min(num_regions, valid patches)``.
        keep: Number of regions as a fraction of the valid patches, in ``(0, 1]``; rounded up, at least 1.
        explained_variance: As few regions as preserve this fraction, in ``(0, 1]``, of the squared deviation of the
            patches from their mean, to within 1e-4; complex images get more regions. For ``ward`` only.
        connectivity: 4 neighbours, or 8 to include patches that share only a corner.
        mask_weight: Weight of the masks of a call relative to the features, from 0 (ignored) to ``inf``: no region
            crosses a mask if there are at least as many regions as connected parts of masks. See `regiontok.masked`.
        motion: For clips: a patch and the most similar patch within so many rows and columns of the next frame are
            neighbours; with 0, the patch in the same place.
        max_frames: For clips: regions do not extend over multiples of this number of frames; None for no limit.
        num_threads: Number of threads that process the images of a batch; None for torch's number.

    Raises:
        DTypeError, ValueRangeError: An invalid option or combination of options.

    Example:
        >>> features = torch.tensor([[[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]]])  # one image of 1 x 3 patches
        >>> UnionFindClusterer(threshold=0.9)(features).labels()
        tensor([[[0, 0, 1]]])
        >>> UnionFindClusterer(num_regions=1)(features).labels()  # Ward's criterion
        tensor([[[0, 0, 0]]])

    Source:
        Supplement A.1, "Generating regions from clustering": ``centroid``, the threshold, priority queues and disjoint
        sets. Adjacency (4 neighbours), ties and zero vectors are our choice. The other linkages, named as in
        scikit-learn, and budgets are our extension.
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
        motion: int = MOTION,
        max_frames: int | None = None,
        num_threads: int | None = None,
    ) -> None:
        stop = check_stop(threshold, num_regions, keep, explained_variance)
        self.linkage = check_option("linkage", linkage)
        check_linkage(linkage or stop.default_linkage, stop)
        self.threshold, self.num_regions, self.keep, self.explained_variance = stop
        self.connectivity = check_option("connectivity", connectivity)
        self.mask_weight = check_option("mask_weight", mask_weight)
        self.motion = check_option("motion", motion)
        self.max_frames = check_option("max_frames", max_frames)
        self.num_threads = None if num_threads is None else check_integer("num_threads", num_threads)

    def __repr__(self) -> str:
        return f"UnionFindClusterer({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

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
                Clips are ``(B, frames, rows, cols, D)``, or entries ``(frames, rows, cols, D)`` of a list.
            valid: ``(B, rows, cols)`` bool, or a list of ``(rows, cols)``: patches that may be in a region. The
                features of other patches are ignored. Clips also have frames.
            num_regions: Budget of this batch, one number or one per image, which overrides the options.
            keep: The same as a fraction of the valid patches.
            masks: Masks on the grid, from `MaskDownsampler`; requires Ward's criterion and a budget. Patches in no mask
                are in no region. Every budget is reached, even if patches are not connected.

        Returns:
            `Regions` on the device of the features, numbered by first patch in row-major order.

        Raises:
            ShapeError: Wrong shape, an empty batch or grid, or not one budget per image.
            DTypeError: Not floating point, or a budget that is not a whole number.
            ValueRangeError: NaN or infinity, fewer regions than connected components of valid patches, or ``ward``
                without a budget.
        """
        batch = HostBatch(features, valid)
        budgets = self._budgets(batch.num_valid, num_regions, keep)
        if masks is not None:
            return self._cluster_masks(batch, masks, budgets)
        if budgets is not None:
            _check_connected(batch, budgets, self.connectivity)
        stop = self._stop if budgets is None else Stop()
        linkage = self.linkage or ("ward" if budgets is not None else stop.default_linkage)
        if linkage == "ward" and budgets is None and stop.explained_variance is None:
            raise ValueRangeError(_NO_BUDGET)
        lowest = _LOWEST_SCORE[linkage]
        if budgets is None and stop.explained_variance is None:
            lowest = DEFAULT_THRESHOLD if stop.threshold is None else stop.threshold
        targets = budgets or [1] * len(batch.shapes)
        labels = np.empty(len(batch.valid), np.int64)

        def cluster(image: int) -> int:
            pairs = self._merge(batch, image, linkage, lowest, targets[image], stop.explained_variance).pairs
            if budgets is not None and len(batch.shapes[image]) == 3:
                check_reachable(f"clip {image}", targets[image], batch.num_valid[image] - len(pairs))
            return label(batch.part(image, batch.valid), pairs, len(pairs), batch.part(image, labels))

        return batch.regions(labels, self._map(cluster, batch))

    def tree(
        self, features: Features, valid: Valid | None = None, *, masks: Regions | None = None
    ) -> list["MergeTree"]:
        """Merge the patches of each image as far as possible and return all merges, from which any budget can be cut.

        The tree uses ``linkage``, or the default of the clusterer's own threshold or budget. For cuts that equal calls
        with a budget, use ``linkage="ward"``. Shapes and errors are those of a call; trees with ``masks`` use Ward's
        criterion.
        """
        batch = HostBatch(features, valid)
        if masks is not None:
            return self._mask_trees(batch, masks)
        linkage = self.linkage or self._stop.default_linkage
        is_ward = linkage == "ward"

        def grow(image: int) -> MergeTree:
            variance = 0.0 if is_ward else None  # computes the deviation
            merges = self._merge(batch, image, linkage, _LOWEST_SCORE[linkage], 1, variance)
            return MergeTree(
                pairs=torch.from_numpy(merges.pairs.copy()),
                score=torch.from_numpy(np.abs(merges.scores) if is_ward else merges.scores.copy()),
                valid=torch.from_numpy(batch.part(image, batch.valid).copy()).reshape(batch.shapes[image]),
                linkage=linkage,
                deviation=merges.deviation if is_ward else None,
            )

        return self._map(grow, batch)

    def counts(
        self, patches: Sequence[int] | Tensor, *, num_regions: Budget | None = None, keep: Keep | None = None
    ) -> list[int]:
        """Return the number of regions of images, before their features are known.

        Args:
            patches: Number of valid patches of each image.
            num_regions: Budget, as in a call.
            keep: Relative budget, as in a call.

        Raises:
            ValueRangeError: There is no budget, so the counts depend on the features.

        Example:
            >>> UnionFindClusterer(num_regions=64).counts([576, 288, 24])
            [64, 64, 24]
        """
        numbers = patches.tolist() if isinstance(patches, Tensor) else patches
        budgets = self._budgets([check_integer("patches", number) for number in numbers], num_regions, keep)
        if budgets is None:
            if self.linkage == "ward" and self.explained_variance is None:
                raise ValueRangeError(_NO_BUDGET)
            stop = "threshold" if self.explained_variance is None else "explained_variance"
            raise ValueRangeError(
                f"the number of regions by {stop} depends on the features, so it is known only after encoding. Set "
                "num_regions or keep."
            )
        return budgets

    def stream(self) -> ClipStream:
        """Return a stream that clusters a video chunk by chunk; see `regiontok.streaming`.

        The budget applies to each chunk of frames. A single chunk gives the same regions as a call.

        Raises:
            ValueRangeError: ``explained_variance``, which depends on the whole video.

        Example:
            >>> stream = UnionFindClusterer(num_regions=2).stream()
            >>> chunk = stream.push(torch.rand(3, 2, 2, 8))
            >>> chunk.labels.shape, len(chunk.finished) + len(stream.close())
            (torch.Size([3, 2, 2]), 2)
        """
        return ClipStream(self)

    @property
    def _stop(self) -> Stop:
        return Stop(self.threshold, self.num_regions, self.keep, self.explained_variance)

    def _budgets(self, patches: Sequence[int], num_regions: Budget | None, keep: Keep | None) -> list[int] | None:
        """Return the budgets of a call, or the clusterer's own; None without a budget."""
        if num_regions is None and keep is None:
            num_regions, keep = self.num_regions, self.keep
        return resolve_budget(patches, num_regions, keep)

    def _cluster_masks(self, batch: HostBatch, masks: Regions, budgets: list[int] | None) -> Regions:
        """Cluster the patches that are in masks."""
        if budgets is None or self.linkage not in (None, "ward"):
            raise ValueRangeError(
                "masks require linkage='ward' and a budget. Pass num_regions or keep, and leave linkage out."
            )
        groups = batch.restrict(masks)
        targets = [min(budget, patches) for budget, patches in zip(budgets, batch.num_valid, strict=True)]
        labels = np.empty(len(batch.valid), np.int64)

        def cluster(image: int) -> int:
            pairs = self._merge_in_masks(batch, image, groups[image], targets[image]).pairs
            return label(batch.part(image, batch.valid), pairs, len(pairs), batch.part(image, labels))

        return batch.regions(labels, self._map(cluster, batch))

    def _mask_trees(self, batch: HostBatch, masks: Regions) -> list[MergeTree]:
        num_valid = batch.num_valid
        groups = batch.restrict(masks)

        def grow(image: int) -> MergeTree:
            merges = self._merge_in_masks(batch, image, groups[image], 1)
            return MergeTree(
                pairs=torch.from_numpy(merges.pairs.copy()),
                score=torch.from_numpy(np.abs(merges.scores)),
                valid=torch.from_numpy(batch.part(image, batch.valid).copy()).reshape(batch.shapes[image]),
                linkage="ward",
                patches=num_valid[image],
            )

        return self._map(grow, batch)

    def _merge_in_masks(self, batch: HostBatch, image: int, groups: Groups, target: int) -> Merges:
        *frames, rows, cols = batch.shapes[image]
        return merge_in_masks(
            batch.part(image, batch.values),
            batch.part(image, batch.valid),
            cols,
            self.connectivity == 8,
            groups,
            self.mask_weight,
            target,
            image,
            frame=rows * cols if frames else None,
            motion=self.motion,
            max_frames=self.max_frames,
        )

    def _merge(
        self, batch: HostBatch, image: int, linkage: str, lowest: float, target: int, explained_variance: float | None
    ) -> Merges:
        """Merge the patches of one image."""
        *frames, rows, cols = batch.shapes[image]
        return merge_patches(
            batch.part(image, batch.values),
            batch.part(image, batch.valid),
            cols,
            self.connectivity == 8,
            LINKAGES[linkage],
            lowest,
            target,
            -1.0 if explained_variance is None else explained_variance,
            image=image,
            frame=rows * cols if frames else None,
            motion=self.motion,
            max_frames=self.max_frames,
        )

    def _map(self, function: Callable[[int], _T], batch: HostBatch) -> list[_T]:
        """Return the results of ``function`` for each image of the batch; threads share the images."""
        images = range(len(batch.shapes))
        threads = 1 if len(images) == 1 else min(self.num_threads or torch.get_num_threads(), len(images))
        if threads == 1:
            return [function(image) for image in images]
        with ThreadPoolExecutor(threads) as pool:  # one per call, because threads do not survive a fork
            return list(pool.map(function, images))


def _check_connected(batch: HostBatch, targets: Sequence[int], connectivity: int) -> None:
    """Check that no image has more connected components of valid patches than regions."""
    if not batch.has_padding or len(batch.shapes[0]) == 3:  # clips are checked after merging
        return
    from scipy import ndimage  # noqa: PLC0415  its import takes as long as the rest, and few batches need it

    neighbours = ndimage.generate_binary_structure(2, 2 if connectivity == 8 else 1)
    for image, (shape, target) in enumerate(zip(batch.shapes, targets, strict=True)):
        components = ndimage.label(batch.part(image, batch.valid).reshape(shape), neighbours)[1]
        check_reachable(f"image {image}", target, components)
