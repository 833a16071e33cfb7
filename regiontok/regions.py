"""Which patches belong to which region, for a batch of images with different numbers of regions and grids."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from regiontok._checks import flatten_valid
from regiontok._html import label_maps
from regiontok._region_checks import check_masks, check_selection, flatten_labels, image_numbers
from regiontok.errors import DTypeError, ShapeError, ValueRangeError


class Dropped(NamedTuple):
    """A mask that became no region: its image, its index among that image's masks, and why."""

    image: int
    mask_index: int
    reason: str


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of a batch of images: ragged, overlaps allowed, made of tensors only.

    Memberships (which patch is in which region) are stored in the manner of CSR matrices: sorted by region, and by
    patch within a region. Every region has at least one patch and every image at least one region. Make them with
    `from_labels` or `from_masks`; the constructor trusts its arguments.

    Attributes:
        patch: ``(M,)`` int64, per membership: the patch, counted row by row within its image.
        region: ``(M,)`` int64, per membership: the region, counted over the batch; sorted.
        image: ``(R,)`` int64, per region: its image; sorted.
        mask_index: ``(R,)`` int64, per region: which of its image's masks it came from, -1 for none.
        score: ``(R,)`` float32, per region: the score of its mask, NaN for none.
        grids: ``(B, 2)`` int64, per image: rows and columns of patches; always on the CPU.
        fallback: ``(B,)`` bool, per image: it had no region of its own and got one of all its valid patches.
        dropped: The masks that became no region.

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
        """Make regions from label maps: patches with the same label are one region, -1 is none.

        Args:
            labels: ``(B, rows, cols)`` of integers from -1, or a list of ``(rows, cols)``. Within an image, regions
                are numbered by ascending label; labels need not be consecutive.

        Raises:
            ShapeError: Not such a shape, or an image without any region.
            DTypeError: Not integers.
            ValueRangeError: A label below -1.
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
        """Make regions from masks on the patch grid, one region per mask; they may overlap.

        A mask without a (valid) patch becomes no region and is named in ``dropped``. An image left without a region
        gets one of all its valid patches and is marked in ``fallback``.

        Args:
            masks: One ``(masks_i, rows_i, cols_i)`` bool tensor per image; ``masks_i`` may be 0.
            scores: One ``(masks_i,)`` tensor per image.
            valid: Which patches may be in a region: ``(B, rows, cols)`` bool or a list of ``(rows, cols)``.
            mask_index: What to call each mask, one ``(masks_i,)`` int64 tensor per image; by default their numbers.

        Raises:
            ShapeError: No image, a wrong rank, an empty grid, or lists of different lengths.
            DTypeError: Masks that are not bool.
        """
        check_masks(masks, {"scores": scores, "mask_index": mask_index})
        device = masks[0].device
        grids = torch.tensor([mask.shape[1:] for mask in masks], device="cpu")
        flat_valid = flatten_valid(valid, grids)
        allowed = (
            torch.ones(int(grids.prod(1).sum()), dtype=torch.bool, device="cpu") if flat_valid is None else flat_valid
        )
        allowed_per_image = allowed.to(device).split(grids.prod(1).tolist())

        per_image = [mask.flatten(1) & ok for mask, ok in zip(masks, allowed_per_image, strict=True)]
        names = [torch.arange(len(mask), device=device) for mask in masks] if mask_index is None else mask_index
        fallback = torch.stack([~mask.any() for mask in per_image])
        kept = [mask.any(1).nonzero().squeeze(1) for mask in per_image]
        dropped = tuple(
            Dropped(image, index, "covers no patch" if flat_valid is None else "covers no valid patch")
            for image, mask in enumerate(per_image)
            for index in names[image][~mask.any(1)].tolist()
        )
        rows = [
            ok[None] if len(index) == 0 else mask[index]
            for mask, index, ok in zip(per_image, kept, allowed_per_image, strict=True)
        ]
        counts = torch.tensor([len(row) for row in rows], device="cpu")
        first_region = counts.cumsum(0) - counts
        members = [row.nonzero() for row in rows]
        none = torch.full((1,), -1, device=device)
        no_score = torch.full((1,), torch.nan, device=device)
        given = [no_score.expand(len(mask)) for mask in masks] if scores is None else scores
        return cls(
            patch=torch.cat([member[:, 1] for member in members]),
            region=torch.cat(
                [member[:, 0] + first for member, first in zip(members, first_region.tolist(), strict=True)]
            ),
            image=torch.repeat_interleave(counts).to(device),
            mask_index=torch.cat(
                [name.to(device)[index] if len(index) else none for name, index in zip(names, kept, strict=True)]
            ),
            score=torch.cat(
                [
                    score.to(device, torch.float32)[index] if len(index) else no_score
                    for score, index in zip(given, kept, strict=True)
                ]
            ),
            grids=grids,
            fallback=fallback,
            dropped=dropped,
        )

    def __len__(self) -> int:
        """The number of regions in the batch."""
        return len(self.image)

    def __repr__(self) -> str:
        images = f"{len(self.grids)} image" + "s" * (len(self.grids) != 1)
        noun = "region" + "s" * (len(self) != 1)
        return f"Regions({len(self)} {noun} in {images})"

    def __getitem__(self, images: int | slice | Sequence[int] | Tensor) -> "Regions":
        """Return the regions of one image, or of several, as a batch of these images.

        Args:
            images: Number of an image, a slice, or several numbers, in any order.

        Raises:
            IndexError: An image that the batch does not have; `ValueRangeError` for no image at all.

        Example:
            >>> regions = Regions.from_labels(torch.tensor([[[0, 1]], [[0, 0]], [[1, 0]]]))
            >>> regions[1], regions[1:], [len(image) for image in regions]
            (Regions(1 region in 1 image), Regions(3 regions in 2 images), [2, 1, 2])
        """
        chosen = image_numbers(images, len(self.grids))
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
            ShapeError: No batch.

        Example:
            >>> regions = Regions.from_labels(torch.tensor([[[0, 1]], [[0, 0]]]))
            >>> torch.equal(Regions.cat(regions.split()).region, regions.region)
            True
        """
        if not batches:
            raise ShapeError("cat needs at least one batch of regions; got none.")
        regions = list(accumulate((len(one) for one in batches), initial=0))
        images = list(accumulate((len(one.grids) for one in batches), initial=0))
        return Regions(
            patch=torch.cat([one.patch for one in batches]),
            region=torch.cat([one.region + first for one, first in zip(batches, regions, strict=False)]),
            image=torch.cat([one.image + first for one, first in zip(batches, images, strict=False)]),
            mask_index=torch.cat([one.mask_index for one in batches]),
            score=torch.cat([one.score for one in batches]),
            grids=torch.cat([one.grids for one in batches]),
            fallback=torch.cat([one.fallback for one in batches]),
            dropped=tuple(
                mask._replace(image=mask.image + first)
                for one, first in zip(batches, images, strict=False)
                for mask in one.dropped
            ),
        )

    def _repr_html_(self) -> str:
        """Return small label maps, for notebooks."""
        return label_maps(self)

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.patch.device

    @property
    def counts(self) -> Tensor:
        """``(B,)`` int64: regions per image."""
        return torch.bincount(self.image, minlength=len(self.grids))

    @property
    def starts(self) -> Tensor:
        """``(R,)`` int64: the first membership of each region, as in a CSR matrix's row pointers."""
        areas = self.areas()
        return areas.cumsum(0) - areas

    @property
    def flat_patch(self) -> Tensor:
        """``(M,)`` int64: per membership, its patch counted over the whole batch, to index features laid flat."""
        return self.patch + _offsets(self.grids, self.device)[self.image[self.region]]

    def areas(self) -> Tensor:
        """``(R,)`` int64: patches per region."""
        return torch.bincount(self.region, minlength=len(self))

    def centroids(self) -> Tensor:
        """``(R, 2)`` float32: mean row and column of each region's patches; a patch lies at whole numbers."""
        cols = self.grids[:, 1].to(self.device)[self.image[self.region]]
        position = torch.stack([self.patch // cols, self.patch % cols], 1).float()
        total = position.new_zeros(len(self), 2).index_add_(0, self.region, position)
        return total / self.areas()[:, None]

    def labels(self) -> Tensor | list[Tensor]:
        """Label maps: each patch's region counted within its image, -1 where it has none.

        Returns:
            ``(B, rows, cols)`` int64, or a list of ``(rows, cols)`` where grids differ.

        Raises:
            ValueRangeError: A patch lies in several regions; use `masks` instead.
        """
        flat_patch = self.flat_patch
        size = int(self.grids.prod(1).sum())
        if len(flat_patch) and torch.bincount(flat_patch, minlength=size).max() > 1:
            raise ValueRangeError("regions overlap, so one label per patch cannot tell them; use masks().")
        flat = flat_patch.new_full((size,), -1)
        flat[flat_patch] = self._region_in_image()[self.region]
        grids = self.grids.tolist()
        if all(grid == grids[0] for grid in grids):
            return flat.reshape(len(grids), *grids[0])
        parts = flat.split(self.grids.prod(1).tolist())
        return [part.reshape(*grid) for part, grid in zip(parts, grids, strict=True)]

    def masks(self) -> list[Tensor]:
        """One ``(regions_i, rows_i, cols_i)`` bool tensor per image."""
        counts = self.counts.tolist()
        members = torch.bincount(self.image[self.region], minlength=len(counts)).tolist()
        rows = self._region_in_image()[self.region].split(members)
        columns = self.patch.split(members)
        result = []
        for grid, count, row, column in zip(self.grids.tolist(), counts, rows, columns, strict=True):
            mask = torch.zeros(count, grid[0] * grid[1], dtype=torch.bool, device=self.device)
            mask[row, column] = True
            result.append(mask.reshape(count, *grid))
        return result

    def select(self, index: Tensor) -> "Regions":
        """Keep the regions of ``index``, in its order; images stay together and keep at least one region each.

        Args:
            index: ``(K,)`` integers into the batch's regions, or ``(R,)`` bool.

        Raises:
            ValueRangeError: An index out of range or twice, images out of order, or an image left without a region.
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
        """The same regions on another device."""
        if isinstance(device, torch.dtype):
            raise DTypeError(f"regions hold numbers of patches, which have one dtype; got {device}. Convert tokens.")
        moved = ("patch", "region", "image", "mask_index", "score", "fallback")
        return replace(self, **{name: getattr(self, name).to(device) for name in moved})

    def _region_in_image(self) -> Tensor:
        counts = self.counts
        first = counts.cumsum(0) - counts
        return torch.arange(len(self), device=self.device) - first[self.image]


torch.serialization.add_safe_globals([Regions, Dropped])  # torch.save writes only their tensors


def _offsets(grids: Tensor, device: torch.device) -> Tensor:
    """``(B,)``: where each image's patches begin when the batch is laid flat."""
    sizes = grids.prod(1)
    return (sizes.cumsum(0) - sizes).to(device)
