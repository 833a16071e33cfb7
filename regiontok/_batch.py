"""A batch of images as the clusterer works on it: float32 arrays, and label maps back to `Regions`."""

from itertools import accumulate

import numpy as np
import torch

from regiontok._checks import Features, Valid, flatten_features, flatten_valid
from regiontok._kernels.labels import collect
from regiontok.errors import DTypeError, ShapeError
from regiontok.masked import Groups, groups_of
from regiontok.regions import Regions


class Batch:
    """A batch on the host: contiguous float32, one copy from the device for all images.

    The kernel takes a third of a millisecond, of which every small tensor would be a part: small values are lists.
    """

    def __init__(self, features: Features, valid: Valid | None) -> None:
        flat = flatten_features(features)
        flat_valid = None if valid is None else flatten_valid(valid, flat.grids)
        self.device = flat.values.device
        self.grid_tensor = flat.grids
        self.grids = [(rows, cols) for rows, cols in flat.grids.tolist()]
        self.bounds = [0, *accumulate(rows * cols for rows, cols in self.grids)]
        self.values = flat.values.detach().to("cpu", torch.float32).contiguous().numpy()
        self.has_padding = flat_valid is not None
        if flat_valid is None:
            self.valid = np.ones(len(self.values), np.bool_)
            self.patches = [rows * cols for rows, cols in self.grids]
        else:
            self.valid = flat_valid.cpu().numpy()
            self.patches = np.add.reduceat(self.valid, self.bounds[:-1], dtype=np.int64).tolist()

    def regions(self, labels: np.ndarray, counts: list[int]) -> Regions:
        """What `Regions.from_labels` gives for labels numbered from 0 in each image, without its sorting."""
        patch, region = np.empty((2, sum(self.patches)), np.int64)
        scratch = np.empty(max(counts) + 1, np.int64)
        start = first = 0
        for image, (count, members) in enumerate(zip(counts, self.patches, strict=True)):
            part = slice(start, start + members)
            collect(self.of(image, labels), count, first, scratch[: count + 1], patch[part], region[part])
            start, first = part.stop, first + count
        regions = Regions(
            patch=torch.from_numpy(patch),
            region=torch.from_numpy(region),
            image=torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
            mask_index=torch.from_numpy(np.full(first, -1)),
            score=torch.from_numpy(np.full(first, np.nan, np.float32)),
            grids=self.grid_tensor,
            fallback=torch.from_numpy(np.zeros(len(counts), np.bool_)),
        )
        return regions if self.device.type == "cpu" else regions.to(self.device)

    def restrict(self, masks: Regions) -> list[Groups]:
        """Leave out the patches that are in no mask; return the memberships of the others."""
        if not isinstance(masks, Regions):
            raise DTypeError(
                f"masks must be Regions on the grid, as MaskDownsampler returns them; got {type(masks).__name__}."
            )
        if not torch.equal(masks.grids, self.grid_tensor):
            raise ShapeError(
                f"masks must have the features' grids, {self.grid_tensor.tolist()}; got {masks.grids.tolist()}."
            )
        groups = groups_of(masks)
        in_mask = np.zeros(len(self.valid), np.bool_)
        for image, group in enumerate(groups):
            self.of(image, in_mask)[group.patch] = True
        self.valid = self.valid & in_mask
        self.patches = np.add.reduceat(self.valid, self.bounds[:-1], dtype=np.int64).tolist()
        groups = [
            Groups(group.patch[inside], group.group[inside], group.masks)
            for image, group in enumerate(groups)
            for inside in [self.of(image, self.valid)[group.patch]]
        ]
        return groups

    def of(self, image: int, array: np.ndarray) -> np.ndarray:
        """One image's part of an array laid flat."""
        return array[self.bounds[image] : self.bounds[image + 1]]
