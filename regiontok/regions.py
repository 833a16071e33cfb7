"""Which patches belong to which region, and the tokens made of them, for a batch with different counts and grids."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from regiontok._checks import flatten_valid
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
        flat, grids = _flatten_labels(labels)
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
        _check_masks(masks, {"scores": scores, "mask_index": mask_index})
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

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
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
        index = _check_selection(index, self.image, len(self.grids))
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


@dataclass(frozen=True, eq=False)
class RegionTokens:
    """One token per region of a batch, and the regions they stand for.

    Attributes:
        values: ``(R, D)``, in the order of ``regions``.
        regions: The batch's `Regions`.

    Example:
        >>> regions = Regions.from_labels([torch.tensor([[0, 1]]), torch.tensor([[0], [0]])])
        >>> tokens = RegionTokens(torch.eye(3), regions)
        >>> [image.shape for image in tokens.split()]
        [torch.Size([2, 3]), torch.Size([1, 3])]
        >>> values, mask = tokens.padded()
        >>> mask
        tensor([[ True,  True],
                [ True, False]])
    """

    values: Tensor
    regions: Regions

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or len(self.values) != len(self.regions):
            raise ShapeError(
                f"values must be ({len(self.regions)}, dim), a row per region; got {tuple(self.values.shape)}."
            )

    def __len__(self) -> int:
        """The number of tokens in the batch."""
        return len(self.values)

    def __repr__(self) -> str:
        return f"RegionTokens({tuple(self.values.shape)}, {self.regions!r})"

    @property
    def counts(self) -> Tensor:
        """``(B,)`` int64: tokens per image."""
        return self.regions.counts

    def split(self) -> list[Tensor]:
        """One ``(tokens_i, D)`` tensor per image."""
        return list(self.values.split(self.counts.tolist()))

    def padded(self) -> tuple[Tensor, Tensor]:
        """Values ``(B, longest, D)``, zero where an image has fewer tokens; mask ``(B, longest)``, true at tokens."""
        counts = self.counts
        longest = torch.arange(int(counts.max()), device=self.values.device)
        mask = longest < counts[:, None]
        values = self.values.new_zeros(*mask.shape, self.values.shape[1])
        return values.masked_scatter(mask[..., None], self.values), mask

    def map(self, projector: Callable[[Tensor], Tensor]) -> "RegionTokens":
        """Tokens with ``projector`` applied to their values, ``(R, D)`` to ``(R, D')``: an MLLM's projector, say."""
        return RegionTokens(projector(self.values), self.regions)

    def to(
        self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None
    ) -> "RegionTokens":
        """The same tokens on another device, or with values of another dtype; a dtype may come first, as in torch.

        Example:
            >>> tokens = RegionTokens(torch.ones(1, 4), Regions.from_labels(torch.zeros(1, 2, 2, dtype=torch.int64)))
            >>> tokens.to(torch.bfloat16).regions.patch.dtype
            torch.int64
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        regions = self.regions if device is None else self.regions.to(device)
        return RegionTokens(self.values.to(device=device, dtype=dtype), regions)


torch.serialization.add_safe_globals([Regions, RegionTokens, Dropped])  # what torch.save wrote of them is only tensors


def _offsets(grids: Tensor, device: torch.device) -> Tensor:
    """``(B,)``: where each image's patches begin when the batch is laid flat."""
    sizes = grids.prod(1)
    return (sizes.cumsum(0) - sizes).to(device)


def _flatten_labels(labels: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    maps = list(labels) if isinstance(labels, Sequence) or (isinstance(labels, Tensor) and labels.ndim) else [labels]
    if not maps:
        raise ShapeError("labels must hold at least one image; got none.")
    for image, one in enumerate(maps):
        if not isinstance(one, Tensor):
            raise DTypeError(
                f"labels must be a torch tensor or a list of tensors; got {type(one).__name__} for image {image}. "
                "Arrays go through torch.from_numpy."
            )
        if one.ndim != 2 or one.numel() == 0:
            raise ShapeError(
                f"labels must be (batch, rows, cols), or a list of (rows, cols); image {image} has {tuple(one.shape)}."
            )
        if one.is_floating_point() or one.is_complex() or one.dtype == torch.bool:
            raise DTypeError(f"labels must be integers; image {image} has {one.dtype}. Masks go to Regions.from_masks.")
    flat = torch.cat([one.reshape(-1) for one in maps]).long()
    lowest, highest = int(flat.min()), int(flat.max())
    if lowest < -1 or highest >= 2**31:
        raise ValueRangeError(
            f"labels must be -1 (no region) or from 0 to 2**31 - 1; got {lowest if lowest < -1 else highest}."
        )
    return flat, torch.tensor([one.shape for one in maps], device="cpu")


def _check_masks(masks: Sequence[Tensor], per_mask: dict[str, Sequence[Tensor] | None]) -> None:
    if isinstance(masks, Tensor) or not isinstance(masks, Sequence):
        raise DTypeError(
            f"masks must be a list with one (masks, rows, cols) tensor per image; got {type(masks).__name__}."
        )
    if not masks:
        raise ShapeError("masks must hold at least one image; got an empty list.")
    for name, given in per_mask.items():
        if given is not None and len(given) != len(masks):
            raise ShapeError(f"{name} must have one tensor per image, {len(masks)}; got {len(given)}.")
    for image, mask in enumerate(masks):
        if not isinstance(mask, Tensor) or mask.ndim != 3 or 0 in mask.shape[1:]:
            got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise ShapeError(f"masks[{image}] must be (masks, rows, cols) with a grid that is not empty; got {got}.")
        if mask.dtype != torch.bool:
            raise DTypeError(f"masks[{image}] must be bool; got {mask.dtype}. Compare it first, as in masks > 0.")
        for name, given in per_mask.items():
            one = torch.empty(len(mask), device="meta") if given is None else given[image]
            if not isinstance(one, Tensor) or one.shape != (len(mask),):
                got = tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__
                raise ShapeError(f"{name}[{image}] must be a ({len(mask)},) tensor, one per mask; got {got}.")


def _check_selection(index: Tensor, image: Tensor, batch: int) -> Tensor:
    if not isinstance(index, Tensor):
        raise DTypeError(f"index must be a torch tensor; got {type(index).__name__}. Make one with torch.tensor.")
    if index.dtype == torch.bool:
        if index.shape != image.shape:
            raise ShapeError(f"a bool index must be ({len(image)},), one per region; got {tuple(index.shape)}.")
        index = index.nonzero().squeeze(1)
    if index.ndim != 1 or index.is_floating_point():
        raise ShapeError(f"index must be (K,) integers or bool; got {tuple(index.shape)} of {index.dtype}.")
    if len(index) and (index.min() < 0 or index.max() >= len(image)):
        raise ValueRangeError(f"index must lie in 0 to {len(image) - 1}; got {int(index.min())} to {int(index.max())}.")
    if len(index.unique()) != len(index):
        raise ValueRangeError("index names a region twice; each may be kept once.")
    index = index.long()  # uint8 would be taken for a mask
    chosen = image[index]
    if (chosen.diff() < 0).any():
        raise ValueRangeError("index must keep the images in order; sort it by regions.image[index] first.")
    missing = torch.bincount(chosen, minlength=batch) == 0
    if missing.any():
        raise ValueRangeError(f"index leaves image {int(missing.nonzero()[0])} without a region; keep at least one.")
    return index
