"""Region tokens: one vector per region of a batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regiontok._html import label_maps
from regiontok._region_checks import choose_images
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.regions import Regions


@dataclass(frozen=True, eq=False)
class RegionTokens:
    """One token for each region of a batch of images.

    Attributes:
        values: ``(R, D)``, in the order of ``regions``.
        regions: The `Regions` of the batch.

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
                f"values must be ({len(self.regions)}, dim), one row per region; got {tuple(self.values.shape)}."
            )

    def __len__(self) -> int:
        """Return the number of tokens in the batch."""
        return len(self.values)

    def __repr__(self) -> str:
        return f"RegionTokens({tuple(self.values.shape)}, {self.regions!r})"

    def __getitem__(self, images: int | slice | Sequence[int] | Tensor) -> "RegionTokens":
        """Return the tokens of one image, or of several, as a batch of these images; see `Regions.__getitem__`."""
        chosen = choose_images(images, len(self.regions.grids))
        values = self.split()
        return RegionTokens(torch.cat([values[image] for image in chosen]), self.regions[chosen])

    def __iter__(self) -> Iterator["RegionTokens"]:
        """Iterate over the images of the batch; ``len`` is the number of tokens."""
        pairs = zip(self.split(), self.regions.split(), strict=True)
        return iter([RegionTokens(values, regions) for values, regions in pairs])

    @staticmethod
    def cat(batches: Sequence["RegionTokens"]) -> "RegionTokens":
        """Return the images of several batches as one batch.

        Raises:
            ShapeError: No batch.

        Example:
            >>> tokens = RegionTokens(torch.eye(2), Regions.from_labels(torch.tensor([[[0]], [[0]]])))
            >>> RegionTokens.cat([tokens, *tokens])
            RegionTokens((4, 2), Regions(4 regions in 4 images))
        """
        regions = Regions.cat([tokens.regions for tokens in batches])
        return RegionTokens(torch.cat([tokens.values for tokens in batches]), regions)

    def _repr_html_(self) -> str:
        """Return small label maps, for notebooks."""
        return label_maps(self.regions)

    @property
    def device(self) -> torch.device:
        """The device of the values."""
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the values."""
        return self.values.dtype

    def detach(self) -> "RegionTokens":
        """Return the same tokens without gradients."""
        return RegionTokens(self.values.detach(), self.regions)

    @property
    def counts(self) -> Tensor:
        """``(B,)`` int64: number of tokens of each image."""
        return self.regions.counts

    def split(self) -> list[Tensor]:
        """Return the values of each image, ``(tokens_i, D)``."""
        return list(self.values.split(self.counts.tolist()))

    def padded(self) -> tuple[Tensor, Tensor]:
        """Return the values padded with zeros, ``(B, longest, D)``, and a mask of the tokens, ``(B, longest)`` bool."""
        counts = self.counts
        longest = torch.arange(int(counts.max()), device=self.values.device)
        mask = longest < counts[:, None]
        values = self.values.new_zeros(*mask.shape, self.values.shape[1])
        return values.masked_scatter(mask[..., None], self.values), mask

    def check_finite(self) -> None:
        """Reject tokens that overflow their dtype, except under autocast, where a gradient scaler handles them.

        Raises:
            ValueRangeError: NaN or infinity.
        """
        values = self.values.detach()
        wide = torch.promote_types(values.dtype, torch.float32)
        if values.sum(dtype=wide).isfinite() or torch.is_autocast_enabled(values.device.type):  # one pass in most cases
            return
        wrong = (~values.isfinite().all(1)).nonzero()
        if len(wrong):
            raise ValueRangeError(
                f"{len(wrong)} of {len(values)} tokens are not finite, the first of image "
                f"{int(self.regions.image[wrong[0]])}, though the features are: their sums overflow {values.dtype}, or "
                "the weights of the pool are not finite. Use norm='rms' or a wider dtype."
            )

    def map(self, projector: Callable[[Tensor], Tensor]) -> "RegionTokens":
        """Apply a function from ``(R, D)`` to ``(R, D')`` to the values, such as the projector of a model."""
        return RegionTokens(projector(self.values), self.regions)

    def to(
        self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None
    ) -> "RegionTokens":
        """Return the tokens on another device or with another dtype; the first argument may be a dtype, as in torch.

        Example:
            >>> tokens = RegionTokens(torch.ones(1, 4), Regions.from_labels(torch.zeros(1, 2, 2, dtype=torch.int64)))
            >>> tokens.to(torch.bfloat16).regions.patch.dtype
            torch.int64
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        regions = self.regions if device is None else self.regions.to(device)
        return RegionTokens(self.values.to(device=device, dtype=dtype), regions)


torch.serialization.add_safe_globals([RegionTokens])  # it contains only tensors
