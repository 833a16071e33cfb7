"""Clustering of a video that arrives in chunks of frames: finished regions never change, and memory is bounded.

    stream = UnionFindClusterer(num_regions=64).stream()
    for frames in chunks:                 # features (frames, rows, cols, dim)
        chunk = stream.push(frames)
        chunk.finished.values             # tokens of the regions that ended in this chunk
    stream.close()                        # the regions that reach the last frame

Regions that reach the last frame of a chunk stay open: they enter the next chunk as weighted nodes, with the sum and
the number of their patches. All other regions are finished. Each chunk adds its budget to the number of regions, so the
total is the budget times the number of chunks.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from regiontok._kernels.labels import label
from regiontok._kernels.neighbours import find_next
from regiontok._merging import merge_graph
from regiontok.batch import PatchBatch, flatten_valid
from regiontok.budgets import resolve_budget
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.merge_tree import check_reachable
from regiontok.stopping import DEFAULT_THRESHOLD

if TYPE_CHECKING:
    from regiontok.clustering import UnionFindClusterer


@dataclass(frozen=True)
class FinishedRegions:
    """Regions of a video that do not change any more.

    Attributes:
        ids: ``(K,)`` int64: numbers of the regions, ascending and unique in the video.
        values: ``(K, dim)`` float32: the mean features of their patches.
        areas: ``(K,)`` int64: numbers of patches.
        tracks: ``(K, 2, 3)`` float32: frame, row and column of the centroid in the first and in the last frame.
    """

    ids: Tensor
    values: Tensor
    areas: Tensor
    tracks: Tensor

    def __len__(self) -> int:
        """Return the number of regions."""
        return len(self.ids)


@dataclass(frozen=True)
class StreamedChunk:
    """The result of a chunk of frames.

    Attributes:
        labels: ``(frames, rows, cols)`` int64: the region of each patch, -1 for patches that are not valid.
        finished: The regions that do not reach the last frame of the chunk.
        merged: Open regions of former chunks that became part of an older one: the number of the older one, by number.
    """

    labels: Tensor
    finished: FinishedRegions
    merged: dict[int, int]


@dataclass(frozen=True)
class _Parts:
    """Sums over parts of regions: single patches, or all patches of a region.

    Attributes:
        areas: ``(K,)`` int64: numbers of patches.
        nodes: ``(K, D)`` float64: sums of the features, scaled as the linkage requires.
        sums: ``(K, D)`` float64: sums of the features.
        first: ``(K,)`` int64: first frame.
        first_places: ``(K, 3)`` float64: number, sum of rows and sum of columns of the patches in the first frame.
        last: ``(K,)`` int64: last frame.
        last_places: ``(K, 3)`` float64: the same for the last frame.
    """

    areas: np.ndarray
    nodes: np.ndarray
    sums: np.ndarray
    first: np.ndarray
    first_places: np.ndarray
    last: np.ndarray
    last_places: np.ndarray

    def select(self, index: np.ndarray) -> "_Parts":
        """Return some of the parts."""
        return _Parts(*(getattr(self, field.name)[index] for field in fields(self)))

    @staticmethod
    def cat(parts: list["_Parts"]) -> "_Parts":
        """Return several parts one after another."""
        return _Parts(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(_Parts)))

    def group(self, labels: np.ndarray, count: int) -> "_Parts":
        """Return the parts that are added up by label."""

        def add_up(values: np.ndarray, chosen: np.ndarray | slice = slice(None)) -> np.ndarray:
            total = np.zeros((count, *values.shape[1:]), values.dtype)
            np.add.at(total, labels[chosen], values[chosen])
            return total

        first, last = np.full(count, np.iinfo(np.int64).max), np.full(count, -1)
        np.minimum.at(first, labels, self.first)
        np.maximum.at(last, labels, self.last)
        return _Parts(
            add_up(self.areas),
            add_up(self.nodes),
            add_up(self.sums),
            first,
            add_up(self.first_places, self.first == first[labels]),
            last,
            add_up(self.last_places, self.last == last[labels]),
        )

    def finish(self, ids: np.ndarray) -> FinishedRegions:
        """Return the parts as finished regions with these numbers, in ascending order."""
        parts, order = self.select(np.argsort(ids)), np.sort(ids)
        ends = [
            np.column_stack([frame, places[:, 1:] / places[:, :1]])
            for frame, places in ((parts.first, parts.first_places), (parts.last, parts.last_places))
        ]
        return FinishedRegions(
            torch.from_numpy(order),
            torch.from_numpy((parts.sums / parts.areas[:, None]).astype(np.float32)),
            torch.from_numpy(parts.areas),
            torch.from_numpy(np.stack(ends, 1).astype(np.float32)),
        )


@dataclass(frozen=True)
class _Open:
    """The open regions, and the last frame: its open region (-1 for none), features and valid patches."""

    ids: np.ndarray
    parts: _Parts
    labels: np.ndarray
    features: np.ndarray
    valid: np.ndarray


class ClipStream:
    """Clusters a video chunk by chunk; see `UnionFindClusterer.stream`."""

    def __init__(self, clusterer: "UnionFindClusterer") -> None:
        if clusterer.explained_variance is not None:
            raise ValueRangeError(
                "explained_variance depends on the whole video, so it cannot be used in a stream. Pass num_regions or "
                "keep, which apply to each chunk, or threshold."
            )
        self._clusterer = clusterer
        self._has_budget = clusterer.num_regions is not None or clusterer.keep is not None
        self._linkage = clusterer.linkage or ("ward" if self._has_budget else "centroid")
        self._open: _Open | None = None
        self._grid: tuple[int, int, int] | None = None
        self._num_frames = self._next_id = 0

    def push(self, frames: Tensor, valid: Tensor | None = None) -> StreamedChunk:
        """Cluster the next frames.

        Args:
            frames: ``(frames, rows, cols, dim)`` floating point; rows, columns and dimension as in the chunks before.
            valid: ``(frames, rows, cols)`` bool: patches that may be in a region.

        Raises:
            ShapeError, DTypeError: Wrong shapes or types.
            ValueRangeError: NaN or infinity, or fewer regions than connected components.
        """
        batch = PatchBatch.of([frames])
        if frames.ndim != 4:
            raise ShapeError(f"frames must be (frames, rows, cols, dim); got {tuple(frames.shape)}.")
        _, rows, cols = batch.shapes[0]
        grid = rows, cols, batch.values.shape[1]
        if self._grid not in (None, grid):
            raise ShapeError(f"frames must have rows, cols and dim as before, {self._grid}; got {grid}.")
        flat_valid = flatten_valid(None if valid is None else [valid], batch.shapes)
        batch.check_finite(flat_valid)
        values = np.ascontiguousarray(batch.values.detach().to("cpu", torch.float32).numpy())
        inside = np.ones(len(values), np.bool_) if flat_valid is None else flat_valid.cpu().numpy()
        values[~inside] = 0
        chunk = self._cluster(values, inside, rows, cols)
        self._grid = grid
        self._num_frames += len(frames)
        return chunk

    def close(self) -> FinishedRegions | None:
        """Finish the open regions, and return them; None if there are none. The stream can then be used again."""
        open_regions, self._open, self._grid, self._num_frames = self._open, None, None, 0
        return None if open_regions is None else open_regions.parts.finish(open_regions.ids)

    def _cluster(self, values: np.ndarray, valid: np.ndarray, rows: int, cols: int) -> StreamedChunk:
        before, start, frame = self._open, self._num_frames, rows * cols
        num_open = 0 if before is None else len(before.ids)
        patches = np.flatnonzero(valid)
        parts = _parts_of_patches(values[patches], patches, rows, cols, start, scale=self._linkage != "centroid")
        if before is not None:
            parts = _Parts.cat([before.parts, parts])
        node = np.full(len(values), -1)
        node[patches] = num_open + np.arange(len(patches))
        threshold = self._clusterer.threshold
        target, lowest = 1, DEFAULT_THRESHOLD if threshold is None else threshold
        if self._has_budget:
            budgets = resolve_budget([len(patches)], self._clusterer.num_regions, self._clusterer.keep) or [1]
            target, lowest = min(budgets[0] + num_open, len(parts.areas)), -np.finfo(np.float64).max
        graph = self._neighbours(values, valid, node, rows, cols, start)
        pairs = merge_graph(parts.nodes, graph, parts.areas, self._linkage, lowest, target)
        if self._has_budget:
            check_reachable("the chunk", target, len(parts.areas) - len(pairs))
        labels = np.empty(len(parts.areas), np.int64)
        count = label(np.ones(len(labels), np.bool_), pairs, len(pairs), labels)
        regions = parts.group(labels, count)
        ids, merged = self._number(labels[:num_open], count)
        shown = np.full(len(values), -1)
        shown[patches] = ids[labels[num_open:]]
        last = np.where(valid[-frame:], labels[node[-frame:]], -1)
        is_open = np.zeros(count, np.bool_)
        is_open[last[last >= 0]] = True
        still_open = np.flatnonzero(is_open)
        position = np.full(count + 1, -1)
        position[still_open] = np.arange(len(still_open))
        self._open = _Open(
            ids[still_open], regions.select(still_open), position[last], values[-frame:].copy(), valid[-frame:].copy()
        )
        finished = regions.select(~is_open).finish(ids[~is_open])
        return StreamedChunk(torch.from_numpy(shown.reshape(-1, rows, cols)), finished, merged)

    def _number(self, of_open: np.ndarray, count: int) -> tuple[np.ndarray, dict[int, int]]:
        """Return the number of each region, the least one of its open regions, and the numbers that this replaces."""
        ids, merged = np.full(count, -1), {}
        open_ids = np.empty(0, np.int64) if self._open is None else self._open.ids
        for region, number in sorted(zip(of_open.tolist(), open_ids.tolist(), strict=True), key=lambda pair: pair[1]):
            if ids[region] < 0:
                ids[region] = number
            else:
                merged[number] = int(ids[region])
        new = np.flatnonzero(ids < 0)
        ids[new] = self._next_id + np.arange(len(new))
        self._next_id += len(new)
        return ids, merged

    def _neighbours(
        self, values: np.ndarray, valid: np.ndarray, node: np.ndarray, rows: int, cols: int, start: int
    ) -> np.ndarray:
        """Return the pairs of neighbouring nodes ``(E, 2)``, the smaller one first."""
        clusterer, before, frame = self._clusterer, self._open, rows * cols
        of_patch = node
        if before is not None:  # the last frame of before is frame -1
            of_patch = np.concatenate([before.labels, node])
            values, valid = np.concatenate([before.features, values]), np.concatenate([before.valid, valid])
            start -= 1
        following = np.full(len(values), -1, np.int32)
        if len(values) > frame:
            max_frames = clusterer.max_frames or 0
            find_next(values, valid, cols, frame, clusterer.motion, max_frames, start, following)
        grid = np.arange(len(values)).reshape(-1, rows, cols)
        pairs = [np.stack([grid[:, :, :-1], grid[:, :, 1:]], -1), np.stack([grid[:, :-1], grid[:, 1:]], -1)]
        if clusterer.connectivity == 8:
            pairs.append(np.stack([grid[:, :-1, 1:], grid[:, 1:, :-1]], -1))
            pairs.append(np.stack([grid[:, :-1, :-1], grid[:, 1:, 1:]], -1))
        pairs.append(np.stack([np.arange(len(values)), following], 1)[following >= 0])
        nodes = of_patch[np.concatenate([pair.reshape(-1, 2) for pair in pairs])]
        nodes = np.sort(nodes[(nodes >= 0).all(1) & (nodes[:, 0] != nodes[:, 1])], 1)
        return np.unique(nodes, axis=0).astype(np.int32)


def _parts_of_patches(
    values: np.ndarray, patches: np.ndarray, rows: int, cols: int, start: int, *, scale: bool
) -> _Parts:
    """Return a part for each of the patches ``(K,)`` with features ``(K, D)``."""
    frame, place = np.divmod(patches, rows * cols)
    places = np.column_stack([np.ones(len(patches)), *np.divmod(place, cols)])
    sums = values.astype(np.float64)
    length = np.sqrt((sums * sums).sum(1, keepdims=True))
    nodes = sums / np.where(length == 0, 1, length) if scale else sums
    return _Parts(np.ones(len(patches), np.int64), nodes, sums, start + frame, places, start + frame, places)
