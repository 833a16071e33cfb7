"""The regions of a batch of images or clips, with different numbers of regions and grids."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from regiontok._html import label_maps
from regiontok._positions import first_and_last_frame, mean_positions, positions
from regiontok._region_checks import check_masks, check_selection, choose_images, flatten_labels
from regiontok.batch import flatten_valid
from regiontok.errors import DTypeError, ShapeError, ValueRangeError


class Dropped(NamedTuple):
    """A mask without a region: its image, its index among the masks of that image, and the reason."""

    image: int
    mask_index: int
    reason: str


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of a batch of images, as tensors. Regions may overlap, and images may have different numbers of them.

    A clip is an image with a further axis, its frames: grids, labels and masks have this axis first. In a batch with
    clips, an image is a clip of one frame.

    A membership is a pair of a patch and a region that contains it. Memberships are stored like CSR matrices: sorted by
    region, and by patch within a region. Every region has at least one patch and every image at least one region.
    Create regions with `from_labels` or `from_masks`; the constructor does not check its arguments.

    Attributes:
        patch: ``(M,)`` int64, for each membership: the patch, numbered row by row within its image, frame by frame.
        region: ``(M,)`` int64, for each membership: the region, numbered within the batch; sorted.
        image: ``(R,)`` int64, for each region: its image; sorted.
        mask_index: ``(R,)`` int64, for each region: the number of its mask within its image, -1 without a mask.
        score: ``(R,)`` float32, for each region: the score of its mask, NaN without a score.
        grids: ``(B, 2)`` int64, for each image: rows and columns of patches; ``(B, 3)`` for clips: frames, rows and
            columns; always on the CPU.
        fallback: ``(B,)`` bool, for each image: no mask became a region, so all valid patches are one region.
        dropped: Masks that did not become a region.

    Example:
        >>> regions = Regions.from_labels(torch.tensor([[[0, 0, 1], [2, 2, 1]]]))
        >>> regions
        Regions(3 regions in 1 image)
        >>> regions.areas()
        tensor([2, 2, 2])
        >>> regions.labels()
        tensor([[[0, 0, 1],
                 [2, 2, 1]]])
    """

    patch: Tensor
    region: Tensor
    image: Tensor
    mask_index: Tensor
    score: Tensor
    grids: Tensor
    fallback: Tensor
    dropped: tuple[Dropped, ...] = field(default=())

    @classmethod
    def from_labels(cls, labels: Tensor | Sequence[Tensor]) -> "Regions":
        """Create regions from label maps: patches with the same label are one region, and -1 is no region.

        Args:
            labels: ``(B, rows, cols)`` of integers from -1, or a list of ``(rows, cols)``; clips also have frames.
                Within an image, regions are numbered by ascending label; labels need not be consecutive.

        Raises:
            ShapeError: A label map has a wrong shape, or an image has no region.
            DTypeError: ``labels`` do not have an integer dtype.
            ValueRangeError: A label is below -1.
        """
        flat, grids = flatten_labels(labels)
        image_of_patch = torch.repeat_interleave(grids.prod(1)).to(flat.device)
        member = flat >= 0
        key = (image_of_patch * (flat.max() + 1) + flat)[member]
        regions, region = torch.unique(key, return_inverse=True)
        image = torch.empty_like(regions).index_put_((region,), image_of_patch[member])
        missing = torch.bincount(image, minlength=len(grids)) == 0
        if missing.any():
            raise ShapeError(
                f"every image needs at least one region; every label of image {int(missing.nonzero()[0])} is -1. "
                "Give it a label, or leave it out of the batch."
            )
        region, by_region = torch.sort(region, stable=True)
        flat_patch = member.nonzero().squeeze(1)[by_region]
        return cls(
            patch=flat_patch - _offsets(grids, flat.device)[image[region]],
            region=region,
            image=image,
            mask_index=torch.full_like(image, -1),
            score=torch.full(image.shape, torch.nan, device=flat.device),
            grids=grids,
            fallback=torch.zeros(len(grids), dtype=torch.bool, device=flat.device),
        )

    @classmethod
    def from_masks(
        cls,
        masks: Sequence[Tensor],
        *,
        scores: Sequence[Tensor] | None = None,
        valid: Tensor | Sequence[Tensor] | None = None,
        mask_index: Sequence[Tensor] | None = None,
    ) -> "Regions":
        """Create regions from masks on the patch grid, one region per mask. Masks may overlap.

        Masks without a valid patch are listed in ``dropped``. An image without a region gets one region that
        contains all its valid patches, and is marked in ``fallback``.

        Args:
            masks: One ``(masks_i, rows_i, cols_i)`` bool tensor per image; ``masks_i`` may be 0. Clips have frames.
            scores: One ``(masks_i,)`` tensor per image.
            valid: Patches that may be in a region: ``(B, rows, cols)`` bool or a list of ``(rows, cols)``.
            mask_index: Number of each mask, one ``(masks_i,)`` int64 tensor per image; by default its position.

        Raises:
            ShapeError: There is no image, a mask has a wrong rank or an empty grid, or lists have different lengths.
            DTypeError: ``masks`` are not bool tensors.
        """
        check_masks(masks, {"scores": scores, "mask_index": mask_index})
        device = masks[0].device
        grids = torch.tensor([mask.shape[1:] for mask in masks], device="cpu")
        flat_valid = flatten_valid(valid, [tuple(mask.shape[1:]) for mask in masks])
        if flat_valid is None:
            flat_valid = torch.ones(int(grids.prod(1).sum()), dtype=torch.bool, device="cpu")
        valid_per_image = flat_valid.to(device).split(grids.prod(1).tolist())

        per_image = [mask.flatten(1) & shown for mask, shown in zip(masks, valid_per_image, strict=True)]
        numbers = [torch.arange(len(mask), device=device) for mask in masks] if mask_index is None else mask_index
        fallback = torch.stack([~mask.any() for mask in per_image])
        chosen = [mask.any(1).nonzero().squeeze(1) for mask in per_image]
        dropped = tuple(
            Dropped(image, index, "covers no patch" if valid is None else "covers no valid patch")
            for image, mask in enumerate(per_image)
            for index in numbers[image][~mask.any(1)].tolist()
        )
        rows = [
            shown[None] if len(index) == 0 else mask[index]
            for mask, index, shown in zip(per_image, chosen, valid_per_image, strict=True)
        ]
        counts = torch.tensor([len(row) for row in rows], device="cpu")
        first_region = counts.cumsum(0) - counts
        members = [row.nonzero() for row in rows]
        no_mask = torch.full((1,), -1, device=device)
        no_score = torch.full((1,), torch.nan, device=device)
        if scores is None:
            scores = [no_score.expand(len(mask)) for mask in masks]
        return cls(
            patch=torch.cat([member[:, 1] for member in members]),
            region=torch.cat(
                [member[:, 0] + first for member, first in zip(members, first_region.tolist(), strict=True)]
            ),
            image=torch.repeat_interleave(counts).to(device),
            mask_index=torch.cat(
                [
                    number.to(device)[index] if len(index) else no_mask
                    for number, index in zip(numbers, chosen, strict=True)
                ]
            ),
            score=torch.cat(
                [
                    score.to(device, torch.float32)[index] if len(index) else no_score
                    for score, index in zip(scores, chosen, strict=True)
                ]
            ),
            grids=grids,
            fallback=fallback,
            dropped=dropped,
        )

    def __len__(self) -> int:
        """Return the number of regions in the batch."""
        return len(self.image)

    def __repr__(self) -> str:
        kind = "image" if self.grids.shape[1] == 2 else "clip"
        images = f"{len(self.grids)} {kind}" + "s" * (len(self.grids) != 1)
        noun = "region" + "s" * (len(self) != 1)
        return f"Regions({len(self)} {noun} in {images})"

    def __getitem__(self, images: int | slice | Sequence[int] | Tensor) -> "Regions":
        """Return the regions of one image, or of several, as a batch of these images.

        Args:
            images: Number of an image, a slice, or several numbers in any order.

        Raises:
            IndexError: The batch does not have an image with this number.
            ValueRangeError: The selection is empty.

        Example:
            >>> regions = Regions.from_labels(torch.tensor([[[0, 1]], [[0, 0]], [[1, 0]]]))
            >>> regions[1], regions[1:], [len(image) for image in regions]
            (Regions(1 region in 1 image), Regions(3 regions in 2 images), [2, 1, 2])
        """
        chosen = choose_images(images, len(self.grids))
        parts = self.split()
        return parts[chosen[0]] if len(chosen) == 1 else Regions.cat([parts[image] for image in chosen])

    def __iter__(self) -> Iterator["Regions"]:
        """Iterate over the images of the batch; ``len`` is the number of regions."""
        return iter(self.split())

    def split(self) -> list["Regions"]:
        """Return the regions of each image, as batches of one image."""
        regions = [0, *accumulate(self.counts.tolist())]
        members = [0, *accumulate(torch.bincount(self.image[self.region], minlength=len(self.grids)).tolist())]
        parts = []
        for image in range(len(self.grids)):
            of_regions = slice(regions[image], regions[image + 1])
            of_members = slice(members[image], members[image + 1])
            parts.append(
                Regions(
                    patch=self.patch[of_members],
                    region=self.region[of_members] - regions[image],
                    image=torch.zeros_like(self.image[of_regions]),
                    mask_index=self.mask_index[of_regions],
                    score=self.score[of_regions],
                    grids=self.grids[image : image + 1],
                    fallback=self.fallback[image : image + 1],
                    dropped=tuple(mask._replace(image=0) for mask in self.dropped if mask.image == image),
                )
            )
        return parts

    @staticmethod
    def cat(batches: Sequence["Regions"]) -> "Regions":
        """Return the images of several batches as one batch.

        Raises:
            ShapeError: ``batches`` is empty.

        Example:
            >>> regions = Regions.from_labels(torch.tensor([[[0, 1]], [[0, 0]]]))
            >>> torch.equal(Regions.cat(regions.split()).region, regions.region)
            True
        """
        if not batches:
            raise ShapeError("cat needs at least one batch of regions; got none.")
        regions = list(accumulate((len(batch) for batch in batches), initial=0))
        images = list(accumulate((len(batch.grids) for batch in batches), initial=0))
        return Regions(
            patch=torch.cat([batch.patch for batch in batches]),
            region=torch.cat([batch.region + first for batch, first in zip(batches, regions, strict=False)]),
            image=torch.cat([batch.image + first for batch, first in zip(batches, images, strict=False)]),
            mask_index=torch.cat([batch.mask_index for batch in batches]),
            score=torch.cat([batch.score for batch in batches]),
            grids=torch.cat([batch.grids for batch in batches]),
            fallback=torch.cat([batch.fallback for batch in batches]),
            dropped=tuple(
                mask._replace(image=mask.image + first)
                for batch, first in zip(batches, images, strict=False)
                for mask in batch.dropped
            ),
        )

    def _repr_html_(self) -> str:
        """Return small label maps, for notebooks."""
        return label_maps(self)

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.patch.device

    @property
    def counts(self) -> Tensor:
        """``(B,)`` int64: number of regions of each image."""
        return torch.bincount(self.image, minlength=len(self.grids))

    @property
    def starts(self) -> Tensor:
        """``(R,)`` int64: the first membership of each region, like the row pointers of a CSR matrix."""
        areas = self.areas()
        return areas.cumsum(0) - areas

    @property
    def flat_patch(self) -> Tensor:
        """``(M,)`` int64: the patch of each membership, numbered within the batch, to index flattened features."""
        return self.patch + _offsets(self.grids, self.device)[self.image[self.region]]

    def areas(self) -> Tensor:
        """Return the number of patches of each region, ``(R,)`` int64."""
        return torch.bincount(self.region, minlength=len(self))

    def centroids(self) -> Tensor:
        """Return the mean row and column of each region, ``(R, 2)`` float32; for clips frame, row and column."""
        return mean_positions(self, positions(self), None)

    def tracks(self) -> Tensor:
        """Return the centroids of each region of clips in its first and in its last frame, ``(R, 2, 3)`` float32.

        A centroid is a frame, a row and a column. It is the direction of motion that a single centroid does not show.

        Raises:
            ShapeError: The batch has no clips.

        Example:
            >>> regions = Regions.from_labels(torch.tensor([[[[0, 1, 1]], [[1, 0, 0]]]]))  # a clip of 2 frames
            >>> regions.tracks()[0]
            tensor([[0.0000, 0.0000, 0.0000],
                    [1.0000, 0.0000, 1.5000]])
        """
        position = positions(self)
        ends = first_and_last_frame(self, position)
        return torch.stack([mean_positions(self, position, position[:, 0] == end[self.region]) for end in ends], 1)

    def durations(self) -> Tensor:
        """Return the number of frames from the first to the last one of each region of clips, ``(R,)`` int64."""
        first, last = first_and_last_frame(self, positions(self))
        return last - first + 1

    def labels(self) -> Tensor | list[Tensor]:
        """Return label maps: the region of each patch, numbered within its image, or -1.

        Returns:
            ``(B, rows, cols)`` int64, or a list of ``(rows, cols)`` if grids differ; clips also have frames.

        Raises:
            ValueRangeError: A patch is in several regions; use `masks` instead.
        """
        flat_patch = self.flat_patch
        size = int(self.grids.prod(1).sum())
        if len(flat_patch) and torch.bincount(flat_patch, minlength=size).max() > 1:
            raise ValueRangeError("regions overlap, so a patch may have several labels. Use masks().")
        flat = flat_patch.new_full((size,), -1)
        flat[flat_patch] = self._region_in_image()[self.region]
        grids = self.grids.tolist()
        if all(grid == grids[0] for grid in grids):
            return flat.reshape(len(grids), *grids[0])
        parts = flat.split(self.grids.prod(1).tolist())
        return [part.reshape(*grid) for part, grid in zip(parts, grids, strict=True)]

    def masks(self) -> list[Tensor]:
        """Return the masks of the regions of each image, ``(regions_i, rows_i, cols_i)`` bool; clips have frames."""
        counts = self.counts.tolist()
        members = torch.bincount(self.image[self.region], minlength=len(counts)).tolist()
        rows = self._region_in_image()[self.region].split(members)
        columns = self.patch.split(members)
        result = []
        for grid, count, row, column in zip(self.grids.tolist(), counts, rows, columns, strict=True):
            mask = torch.zeros(count, math.prod(grid), dtype=torch.bool, device=self.device)
            mask[row, column] = True
            result.append(mask.reshape(count, *grid))
        return result

    def select(self, index: Tensor) -> "Regions":
        """Return selected regions, in the order of the index.

        Args:
            index: ``(K,)`` numbers of regions, or ``(R,)`` bool. The images must stay in order, with at least one
                region each.

        Raises:
            ValueRangeError: A number is out of range or appears twice, the images are not in order, or an image has no
                region.
        """
        index = check_selection(index, self.image, len(self.grids))
        areas = self.areas()[index]
        ends = areas.cumsum(0)
        region = torch.repeat_interleave(areas)
        within = torch.arange(len(region), device=self.device) - (ends - areas)[region]
        return replace(
            self,
            patch=self.patch[self.starts[index][region] + within],
            region=region,
            image=self.image[index],
            mask_index=self.mask_index[index],
            score=self.score[index],
        )

    def to(self, device: torch.device | str) -> "Regions":
        """Return the same regions on a different device."""
        if isinstance(device, torch.dtype):
            raise DTypeError(f"regions are integers and cannot be converted to {device}. Convert the tokens instead.")
        names = ("patch", "region", "image", "mask_index", "score", "fallback")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def _region_in_image(self) -> Tensor:
        counts = self.counts
        first = counts.cumsum(0) - counts
        return torch.arange(len(self), device=self.device) - first[self.image]


torch.serialization.add_safe_globals([Regions, Dropped])  # they contain only tensors


def _offsets(grids: Tensor, device: torch.device) -> Tensor:
    """Return the index of the first patch of each image within the batch, ``(B,)``."""
    sizes = grids.prod(1)
    return (sizes.cumsum(0) - sizes).to(device)
