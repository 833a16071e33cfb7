"""The clustering source: merge the most similar neighbouring patches until they differ too much or are few enough."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from regiontok._checks import (
    Features,
    Valid,
    check_choice,
    check_finite,
    check_integer,
    check_number,
    flatten_features,
    flatten_valid,
)
from regiontok._kernels.merge import collect, label, merge
from regiontok.errors import ValueRangeError
from regiontok.regions import Regions

_T = TypeVar("_T")


class UnionFindClusterer:
    """Group neighbouring patches by merging the most similar pair of regions, again and again.

    Every patch starts as a region. A region's feature is the mean of its patches' features, and the pair of adjacent
    regions with the highest cosine similarity merges while that is at least ``threshold``, or while more than
    ``num_regions`` are left. Candidate pairs wait in a priority queue; disjoint sets tell each patch its region.

    The result does not depend on batch size, device, strides or number of threads, and no gradient flows through it.
    Sums are in float32 and cosines true to about 1e-6, so a threshold of 1 can part equal patches. A pair at exactly
    the threshold merges. Of equally similar pairs the one created first merges first: pairs of patches in row-major
    order, then pairs by the merge that made them, then by the first patch of the other region. Two zero vectors have
    cosine 1, a zero vector and another 0; a patch whose square is below float32's range beside the largest one's counts
    as zero.

    Args:
        threshold: Cosine similarity in ``[-1, 1]``. Which value gives how many regions depends on the encoder.
        num_regions: An exact number of regions per image instead; ``threshold`` is then not used.
        connectivity: 4, or 8 to let patches that touch at a corner be neighbours.
        num_threads: Images of a batch are shared among so many threads; None for torch's own number.

    Raises:
        DTypeError, ValueRangeError: An option is not of its kind or out of its range.

    Example:
        >>> features = torch.tensor([[[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]]])  # one image of 1 x 3 patches
        >>> UnionFindClusterer(threshold=0.9)(features).labels()
        tensor([[[0, 0, 1]]])

    Source:
        Supplement A.1, "Generating regions from clustering": the rule, the threshold, queues and disjoint sets.
        Adjacency (4 neighbours), ties and zero vectors are our choice; ``num_regions`` goes beyond the paper.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.7,
        num_regions: int | None = None,
        connectivity: int = 4,
        num_threads: int | None = None,
    ) -> None:
        check_number("threshold", threshold, low=-1, high=1)
        if num_regions is not None:
            check_integer("num_regions", num_regions)
        check_choice("connectivity", connectivity, (4, 8))
        if num_threads is not None:
            check_integer("num_threads", num_threads)
        self.threshold = threshold
        self.num_regions = num_regions
        self.connectivity = connectivity
        self.num_threads = num_threads

    def __repr__(self) -> str:
        return (
            f"UnionFindClusterer(threshold={self.threshold}, num_regions={self.num_regions}, "
            f"connectivity={self.connectivity}, num_threads={self.num_threads})"
        )

    def __call__(self, features: Features, valid: Valid | None = None) -> Regions:
        """Cluster the patches of a batch.

        Args:
            features: ``(B, rows, cols, D)`` floating point, or a list of ``(rows, cols, D)``; any device and strides.
            valid: ``(B, rows, cols)`` bool, or a list of ``(rows, cols)``: which patches may be in a region. What lies
                in the others is not looked at.

        Returns:
            `Regions` on the features' device, numbered by first patch in row-major order.

        Raises:
            ShapeError: Wrong shape, or an empty batch or grid.
            DTypeError: Not floating point.
            ValueRangeError: NaN or infinity, or a ``num_regions`` that an image's patches cannot give.
        """
        batch = _Batch(features, valid)
        if self.num_regions is not None:
            _check_budget(batch, self.num_regions, self.connectivity)
        threshold, target = (self.threshold, 1) if self.num_regions is None else (-1.0, self.num_regions)
        labels = np.empty(len(batch.valid), np.int64)

        def cluster(image: int) -> int:
            pairs, _ = self._merge(batch, image, threshold, target)
            return label(batch.of(image, batch.valid), pairs, len(pairs), batch.of(image, labels))

        counts = self._map(cluster, batch)
        return batch.regions(labels, np.array(counts))

    def tree(self, features: Features, valid: Valid | None = None) -> list["MergeTree"]:
        """Merge the patches of each image as far as they connect and keep every merge, to cut at will.

        ``threshold`` and ``num_regions`` of the clusterer are not used. Shapes and errors are those of a call.
        """
        batch = _Batch(features, valid)

        def grow(image: int) -> MergeTree:
            pairs, similarity = self._merge(batch, image, -1.0, 1)
            return MergeTree(
                pairs=torch.from_numpy(pairs.copy()),
                similarity=torch.from_numpy(similarity.copy()),
                valid=torch.from_numpy(batch.of(image, batch.valid).copy()).reshape(batch.grids[image]),
            )

        return self._map(grow, batch)

    def _merge(self, batch: "_Batch", image: int, threshold: float, target: int) -> tuple[np.ndarray, np.ndarray]:
        """Merges of one image: ``pairs (m, 2)`` and their cosines ``(m,)``."""
        values, valid = batch.of(image, batch.values), batch.of(image, batch.valid)
        cols = batch.grids[image][1]
        pairs = np.empty((len(valid), 2), np.int32)
        similarity = np.empty(len(valid), np.float64)
        diagonal = self.connectivity == 8
        done = merge(values, valid, cols, diagonal, threshold, target, False, pairs, similarity)
        if done < 0:
            values = _scale_to_safe_range(values, valid, image, cols)
            done = merge(values, valid, cols, diagonal, threshold, target, True, pairs, similarity)
        return pairs[:done], similarity[:done]

    def _map(self, work: Callable[[int], _T], batch: "_Batch") -> list[_T]:
        """Results of ``work`` for every image of the batch, shared among threads."""
        images = range(len(batch.grids))
        threads = min(self.num_threads or torch.get_num_threads(), len(images))
        if threads == 1:
            return [work(image) for image in images]
        with ThreadPoolExecutor(threads) as pool:  # one per call: kept for good it would be dead in a forked process
            return list(pool.map(work, images))


@dataclass(frozen=True, eq=False)
class MergeTree:
    """Every merge of one image in the order in which they happened, to be cut by similarity or by count.

    A cut equals a direct run of the clusterer to the last label. Similarity may rise from one merge to the next (the
    mean of two regions can be closer to a third than either was), so a threshold cuts before the first merge below it.

    Attributes:
        pairs: ``(M, 2)`` int32: the two regions of each merge, named by first patch, the smaller first.
        similarity: ``(M,)`` float64: their cosine.
        valid: ``(rows, cols)`` bool: the patches that take part.

    Example:
        >>> features = torch.tensor([[[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]]])
        >>> tree = UnionFindClusterer().tree(features)[0]
        >>> tree.cut(threshold=0.9).labels()
        tensor([[[0, 0, 1]]])
        >>> len(tree.cut(num_regions=1))
        1
    """

    pairs: Tensor
    similarity: Tensor
    valid: Tensor

    def __repr__(self) -> str:
        rows, cols = self.valid.shape
        return f"MergeTree({len(self.pairs)} merges on a {rows} x {cols} grid)"

    def cut(self, *, threshold: float | None = None, num_regions: int | None = None) -> Regions:
        """The regions of the image, a batch of one on the CPU, at a similarity or at a count.

        Raises:
            ValueRangeError: Not exactly one of the two, or out of range.
        """
        patches = int(self.valid.sum())
        if (threshold is None) == (num_regions is None):
            raise ValueRangeError("cut needs exactly one of threshold and num_regions, as in cut(threshold=0.7).")
        if threshold is not None:
            check_number("threshold", threshold, low=-1, high=1)
            below = (self.similarity < threshold).nonzero()
            count = int(below[0]) if len(below) else len(self.pairs)
        elif num_regions is not None:
            check_integer("num_regions", num_regions)
            _check_reachable("the image", num_regions, patches, patches - len(self.pairs))
            count = patches - num_regions
        labels = np.empty(self.valid.numel(), np.int64)
        label(self.valid.reshape(-1).numpy(), self.pairs.numpy(), count, labels)
        return Regions.from_labels([torch.from_numpy(labels).reshape(self.valid.shape)])


class _Batch:
    """A batch on the host as the kernel wants it: contiguous float32, one copy from the device for all images."""

    def __init__(self, features: Features, valid: Valid | None) -> None:
        flat = flatten_features(features)
        flat_valid = flatten_valid(valid, flat.grids)
        self.device = flat.values.device
        self.grid_tensor = flat.grids
        self.grids = [(rows, cols) for rows, cols in flat.grids.tolist()]
        self.bounds = np.concatenate([[0], flat.grids.prod(1).cumsum(0).numpy()]).tolist()
        self.values = flat.values.detach().to("cpu", torch.float32).contiguous().numpy()
        self.has_padding = flat_valid is not None
        self.valid = np.ones(len(self.values), np.bool_) if flat_valid is None else flat_valid.cpu().numpy()

    def regions(self, labels: np.ndarray, counts: np.ndarray) -> Regions:
        """What `Regions.from_labels` gives for labels numbered from 0 in each image, without its sorting."""
        members = np.add.reduceat(self.valid, self.bounds[:-1], dtype=np.int64)
        patch, region = np.empty((2, members.sum()), np.int64)
        ends, first = members.cumsum(), counts.cumsum() - counts
        scratch = np.empty(counts.max() + 1, np.int64)
        for image, end in enumerate(ends):
            part = slice(end - members[image], end)
            count = counts[image]
            collect(self.of(image, labels), count, first[image], scratch[: count + 1], patch[part], region[part])
        image_of_region = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
        regions = Regions(
            patch=torch.from_numpy(patch),
            region=torch.from_numpy(region),
            image=image_of_region,
            mask_index=torch.full_like(image_of_region, -1),
            score=torch.full(image_of_region.shape, torch.nan, device="cpu"),
            grids=self.grid_tensor,
            fallback=torch.zeros(len(counts), dtype=torch.bool, device="cpu"),
        )
        return regions if self.device.type == "cpu" else regions.to(self.device)

    def of(self, image: int, array: np.ndarray) -> np.ndarray:
        """One image's part of an array laid flat."""
        return array[self.bounds[image] : self.bounds[image + 1]]


def _scale_to_safe_range(values: np.ndarray, valid: np.ndarray, image: int, cols: int) -> np.ndarray:
    """Scale by a power of two, which changes no cosine, so that squares fit float32; refuse NaN and infinity."""
    values = np.where(valid[:, None], values, np.float32(0))
    check_finite(torch.from_numpy(values), image, cols)
    largest = np.abs(values).max()
    if largest == 0:
        return np.ones_like(values[:, :1])  # zero vectors are all alike, and so are these
    return np.ldexp(values, -int(np.frexp(largest)[1]))


def _check_budget(batch: _Batch, num_regions: int, connectivity: int) -> None:
    for image, grid in enumerate(batch.grids):
        valid = batch.of(image, batch.valid)
        islands = 1
        if batch.has_padding:
            neighbours = ndimage.generate_binary_structure(2, 2 if connectivity == 8 else 1)
            islands = ndimage.label(valid.reshape(grid), neighbours)[1]
        _check_reachable(f"image {image}", num_regions, int(valid.sum()), islands)


def _check_reachable(image: str, num_regions: int, patches: int, islands: int) -> None:
    if num_regions > patches:
        raise ValueRangeError(
            f"num_regions must be at most the number of patches; got {num_regions}, {image} has {patches} "
            f"(valid) patches. Ask for {patches} or fewer."
        )
    if num_regions < islands:
        raise ValueRangeError(
            f"num_regions must be at least the number of islands of valid patches, which cannot merge; got "
            f"{num_regions}, {image} has {islands}. Ask for {islands} or more."
        )
