"""CPU arrays of a batch for the compiled kernels, and conversion of their label maps to regions."""

from itertools import accumulate

import numpy as np
import torch

from regiontok._kernels.labels import collect
from regiontok.batch import Features, PatchBatch, Valid, flatten_valid
from regiontok.errors import DTypeError
from regiontok.masked import Groups, groups_of
from regiontok.regions import Regions


class HostBatch:
    """A batch as contiguous float32 arrays on the CPU, copied from the device once.

    Small values are Python lists: creating tensors would dominate the 0.3 ms of the kernel.

    Attributes:
        shapes: Rows and columns of each image, or frames, rows and columns of each clip.
        values: ``(N, D)`` float32.
        valid: ``(N,)`` bool.
        num_valid: Number of valid patches of each image.
        has_padding: Whether ``valid`` was passed.
    """

    def __init__(self, features: Features, valid: Valid | None) -> None:
        batch = PatchBatch.of(features)
        flat_valid = flatten_valid(valid, batch.shapes)
        self._batch = batch
        self.shapes = batch.shapes
        self.values = batch.values.detach().to("cpu", torch.float32).contiguous().numpy()
        self.has_padding = flat_valid is not None
        self._bounds = [0, *accumulate(batch.sizes)]
        if flat_valid is None:
            self.valid, self.num_valid = np.ones(len(self.values), np.bool_), batch.sizes
        else:
            self.valid = flat_valid.cpu().numpy()
            self.num_valid = self._count_valid()

    def part(self, image: int, array: np.ndarray) -> np.ndarray:
        """Return the part of one image of an array ``(N, ...)``."""
        return array[self._bounds[image] : self._bounds[image + 1]]

    def regions(self, labels: np.ndarray, counts: list[int]) -> Regions:
        """Convert labels ``(N,)`` that start at 0 in each image to regions; faster than `Regions.from_labels`."""
        patch, region = np.empty((2, sum(self.num_valid)), np.int64)
        scratch = np.empty(max(counts) + 1, np.int64)
        start = first = 0
        for image, (count, members) in enumerate(zip(counts, self.num_valid, strict=True)):
            part = slice(start, start + members)
            collect(self.part(image, labels), count, first, scratch[: count + 1], patch[part], region[part])
            start, first = part.stop, first + count
        regions = Regions(
            patch=torch.from_numpy(patch),
            region=torch.from_numpy(region),
            image=torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
            mask_index=torch.from_numpy(np.full(first, -1)),
            score=torch.from_numpy(np.full(first, np.nan, np.float32)),
            grids=self._batch.grids,
            fallback=torch.from_numpy(np.zeros(len(counts), np.bool_)),
        )
        return regions if self._batch.device.type == "cpu" else regions.to(self._batch.device)

    def restrict(self, masks: Regions) -> list[Groups]:
        """Mark the patches in no mask as invalid, and return the memberships of the valid patches in each image.

        Raises:
            DTypeError: ``masks`` are not `Regions`.
            ShapeError: The grids of ``masks`` are not the grids of the features.
        """
        if not isinstance(masks, Regions):
            raise DTypeError(
                f"masks must be Regions on the grid, as MaskDownsampler returns them; got {type(masks).__name__}."
            )
        self._batch.check_grids("masks", masks.grids)
        groups = groups_of(masks)
        in_mask = np.zeros(len(self.valid), np.bool_)
        for image, group in enumerate(groups):
            self.part(image, in_mask)[group.patch] = True
        self.valid = self.valid & in_mask
        self.num_valid = self._count_valid()
        is_member = [self.part(image, self.valid)[group.patch] for image, group in enumerate(groups)]
        return [
            Groups(group.patch[inside], group.group[inside], group.num_masks)
            for group, inside in zip(groups, is_member, strict=True)
        ]

    def _count_valid(self) -> list[int]:
        counts: list[int] = np.add.reduceat(self.valid, self._bounds[:-1], dtype=np.int64).tolist()
        return counts
