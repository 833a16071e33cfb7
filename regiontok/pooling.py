"""Pooling of the patches of each region into one token: their mean, or cross-attention."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from regiontok._values import check_integer
from regiontok.batch import Features, PatchBatch
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from regiontok.regions import Regions
from regiontok.tokens import RegionTokens

_BLOCK_ELEMENTS = 2**20
"""Number of elements of the folded queries of the regions that attention processes at a time (4 MiB in float32)."""


class MeanPool(nn.Module):
    """Pool each region into the mean of the features of its patches.

    Shape:
        features: ``(B, rows, cols, D)`` or a list of ``(rows, cols, D)``; regions: `Regions` on the same grids.

    Raises:
        ShapeError: Features and regions on different grids.

    Example:
        >>> regions = Regions.from_labels(torch.tensor([[[0, 0, 1]]]))
        >>> MeanPool()(torch.tensor([[[[1.0], [3.0], [5.0]]]]), regions).values
        tensor([[2.],
                [5.]])
    """

    def forward(self, features: Features, regions: Regions) -> RegionTokens:
        """Return the tokens of the regions, with values ``(R, D)`` in the dtype of the features."""
        flat = _match(features, regions)
        return RegionTokens(_mean(flat, regions), regions)


class CrossAttnPool(nn.Module):
    """Pool each region by cross-attention from its mean feature to its patches, added to the mean.

    Each region has one query and attends only to its own patches. The output projection is initialised with zeros, so
    an untrained pool returns the mean. Time and memory grow with the number of memberships (patches in regions), not
    with regions times patches. If there are fewer regions than patches, the key projection is folded into the queries,
    ``q·(W x) = (Wᵀ q)·x``, and the value projection is applied after the weighted sum. Both computations give the same
    result; the one with fewer multiplications is chosen.

    Args:
        dim: Feature dimension.
        num_heads: Number of heads; must divide ``dim``.

    Shape:
        features: ``(B, rows, cols, dim)`` or a list of ``(rows, cols, dim)``; regions: `Regions` on the same
            grids.

    Raises:
        ShapeError: Features of another dimension, or features and regions on different grids.
        DTypeError: Features and weights of different dtypes, except under autocast.
        ValueRangeError: ``num_heads`` does not divide ``dim``.

    Example:
        >>> regions = Regions.from_labels(torch.tensor([[[0, 0, 1]]]))
        >>> CrossAttnPool(dim=32)(torch.ones(1, 1, 3, 32), regions)
        RegionTokens((2, 32), Regions(2 regions in 1 image))

    Source:
        Supplement A.2, "Cross-Attention Aggregation": 16 heads and one query, the average-pooled patch feature. Keys
        and values from the patches of the region, the residual connection and the initialisation are our choice. There
        is no key bias, because it would shift all scores of a region equally, which softmax ignores.
    """

    def __init__(self, dim: int, num_heads: int = 16) -> None:
        super().__init__()
        check_integer("dim", dim)
        check_integer("num_heads", num_heads)
        if dim % num_heads:
            raise ValueRangeError(
                f"num_heads must divide dim; got num_heads={num_heads}, dim={dim}. "
                f"Try num_heads={max(n for n in range(1, min(dim, num_heads) + 1) if dim % n == 0)}."
            )
        self.dim = dim
        self.num_heads = num_heads
        self.query = _Projection(dim)
        self.key = _Projection(dim, bias=False)
        self.value = _Projection(dim)
        self.out = _Projection(dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the pool so that it returns the mean: Xavier projections, and a zero output projection."""
        for projection in (self.query, self.key, self.value, self.out):
            projection.reset_parameters()
        nn.init.zeros_(self.out.weight)

    def extra_repr(self) -> str:
        """Return the arguments, for ``repr``."""
        return f"dim={self.dim}, num_heads={self.num_heads}"

    def forward(self, features: Features, regions: Regions) -> RegionTokens:
        """Return the tokens of the regions, with values ``(R, dim)``."""
        flat = _match(features, regions)
        if flat.shape[1] != self.dim:
            raise ShapeError(f"features must have dim {self.dim} like this pool; got {flat.shape[1]}.")
        if flat.dtype != self.query.weight.dtype and not torch.is_autocast_enabled(flat.device.type):
            raise DTypeError(
                f"features are {flat.dtype} and this pool is {self.query.weight.dtype}. Convert one with .to(dtype), "
                "or run under torch.autocast."
            )
        mean = _mean(flat, regions)
        return RegionTokens(mean + self.out(self._attend(flat, mean, regions)), regions)

    def _attend(self, flat: Tensor, mean: Tensor, regions: Regions) -> Tensor:
        """Return the attention output of each region before the output projection, ``(R, dim)``."""
        queries = rearrange(self.query(mean), "r (h d) -> r h d", h=self.num_heads)
        queries = queries * (self.dim // self.num_heads) ** -0.5
        fold = self._folding_is_cheaper(len(flat), len(regions), len(regions.patch))
        if fold:
            keys = flat[:, None]  # shared by all heads
        else:
            flat = _zero_outside(flat, regions)
            keys = rearrange(self.key(flat), "n (h d) -> n h d", h=self.num_heads)
            values = rearrange(self.value(flat), "n (h d) -> n h d", h=self.num_heads)
        blocks = _blocks(regions, self.num_heads * self.dim)
        block_values = None if fold else _gather(values, blocks)
        contexts = []
        for block, key in zip(blocks, _gather(keys, blocks), strict=True):
            query = self.key(queries[block.regions], backwards=True) if fold else queries[block.regions]
            value = key if block_values is None else next(block_values)
            context = _attend_padded(query, key, value, block.inside)
            contexts.append(self.value(context) if fold else context)
        order = torch.cat([block.regions for block in blocks])
        return rearrange(torch.cat(contexts), "r h d -> r (h d)")[torch.argsort(order)]

    def _folding_is_cheaper(self, patches: int, regions: int, memberships: int) -> bool:
        """Return whether folding needs fewer multiplications; the query and output projections are the same."""
        folded = regions * self.dim**2 + memberships * self.num_heads * self.dim
        unfolded = patches * self.dim**2 + memberships * self.dim
        return folded < unfolded


class _Projection(nn.Module):
    """A linear projection ``dim -> dim`` that also projects each head, ``(r, h, c)`` to ``(r, h, d)``.

    Its weights have the names of ``nn.Linear``, but it is not a subclass: libraries that replace linear layers (LoRA
    with ``target_modules="all-linear"``, quantisers, inference engines) support only inputs ``(n, dim)``. All uses of
    the weights are inside this call, because DeepSpeed's ZeRO-3 gathers them there.
    """

    bias: nn.Parameter | None

    def __init__(self, dim: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, dim))
        self.register_parameter("bias", nn.Parameter(torch.empty(dim)) if bias else None)

    def reset_parameters(self) -> None:
        """Initialise the weight with Xavier initialisation and the bias with zeros."""
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, values: Tensor, backwards: bool = False) -> Tensor:
        """Project ``(n, dim)``, or each head; ``backwards`` applies the transpose, ``(r, h, d)`` to ``(r, h, c)``."""
        if values.ndim == 2:
            return F.linear(values, self.weight, self.bias)
        weight = rearrange(self.weight, "(h d) c -> h d c", h=values.shape[1])
        if backwards:
            return torch.einsum("rhd,hdc->rhc", values, weight)
        bias = 0 if self.bias is None else rearrange(self.bias, "(h d) -> h d", h=values.shape[1])
        return torch.einsum("rhc,hdc->rhd", values, weight) + bias


def _attend_padded(query: Tensor, keys: Tensor, values: Tensor, inside: Tensor) -> Tensor:
    """Return softmax attention of one query per region and head over its members, which are padded.

    Shapes: query ``(r, h, c)``, keys and values ``(r, w, h or 1, c)``, inside ``(r, w)``; returns ``(r, h, c)``.
    """
    is_shared = keys.shape[2] == 1  # folded projections
    scores = query @ keys[:, :, 0].transpose(1, 2) if is_shared else torch.einsum("rhc,rwhc->rhw", query, keys)
    weights = scores.masked_fill(~inside[:, None], -torch.inf).softmax(-1).to(values.dtype)
    return weights @ values[:, :, 0] if is_shared else torch.einsum("rhw,rwhc->rhc", weights, values)


class _Block(NamedTuple):
    """Regions of similar size ``(r,)``, their patches padded to the largest region ``(r, w)``, and a mask of these."""

    regions: Tensor
    member: Tensor
    inside: Tensor


def _blocks(regions: Regions, elements_per_region: int) -> list[_Block]:
    """Split regions by size into blocks with less than half padding, and large blocks further to limit memory."""
    areas, starts, flat_patch = regions.areas(), regions.starts, regions.flat_patch
    by_area = torch.argsort(areas, stable=True)
    areas = areas[by_area]
    doublings = torch.ceil(torch.log2(areas.double())).long()  # sizes 1, 2, 3-4, 5-8, 9-16, ...
    max_regions = max(1, _BLOCK_ELEMENTS // elements_per_region)
    ends, begin = [], 0
    for count in torch.bincount(doublings).tolist():
        ends += [*range(begin + max_regions, begin + count, max_regions)] + [begin + count] * (count > 0)
        begin += count
    widths = areas[torch.tensor(ends, device=areas.device) - 1].tolist()
    blocks = []
    for begin, end, width in zip([0, *ends], ends, widths, strict=False):
        index = by_area[begin:end]
        within = torch.arange(width, device=areas.device)
        inside = within < areas[begin:end, None]
        member = flat_patch[starts[index][:, None] + torch.where(inside, within, 0)]
        blocks.append(_Block(index, member, inside))
    return blocks


def _gather(rows: Tensor, blocks: list[_Block]) -> Iterator[Tensor]:
    """Yield the rows of the members of each block, ``(r, w, ...)``.

    With gradients all rows are gathered at once, because the backward pass of each gather allocates a gradient for all
    rows. Otherwise one block is gathered at a time.
    """
    if rows.requires_grad:
        members = torch.cat([block.member.flatten() for block in blocks])
        parts = rows.index_select(0, members).split([block.member.numel() for block in blocks])
        yield from (part.unflatten(0, block.member.shape) for part, block in zip(parts, blocks, strict=True))
    else:
        yield from (rows.index_select(0, block.member.flatten()).unflatten(0, block.member.shape) for block in blocks)


def _mean(flat: Tensor, regions: Regions) -> Tensor:
    """Return the mean feature of each region, ``(R, D)``, summed in float32 or wider."""
    wide = flat.to(torch.promote_types(flat.dtype, torch.float32))
    return _Mean.apply(wide, regions.flat_patch, regions.region, regions.starts, regions.areas()).to(flat.dtype)


class _Mean(torch.autograd.Function):
    """``embedding_bag`` in mode ``mean``, whose gradient sums over the regions of each patch.

    The gradient also uses ``embedding_bag``, so that it has a second derivative, unlike torch's own.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, patch: Tensor, region: Tensor, starts: Tensor, areas: Tensor) -> Tensor:
        ctx.save_for_backward(patch, region, areas)
        ctx.patches = len(features)
        return F.embedding_bag(patch, features, starts, mode="mean")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        patch, region, areas = ctx.saved_tensors
        by_patch = region[torch.argsort(patch, stable=True)]
        counts = torch.bincount(patch, minlength=ctx.patches)
        share = gradients[0] / areas[:, None]
        return F.embedding_bag(by_patch, share, counts.cumsum(0) - counts, mode="sum"), None, None, None, None


def _zero_outside(flat: Tensor, regions: Regions) -> Tensor:
    """Set patches in no region to zero, because NaN would propagate to the gradients of the projections."""
    inside = torch.zeros(len(flat), 1, dtype=torch.bool, device=flat.device)
    inside[regions.flat_patch] = True
    return torch.where(inside, flat, 0)


def _match(features: Features, regions: Regions) -> Tensor:
    """Return the features ``(N, D)`` after checking that the regions match their grids and device."""
    batch = PatchBatch.of(features)
    if not isinstance(regions, Regions):
        raise DTypeError(f"regions must be Regions; got {type(regions).__name__}. Make them with Regions.from_labels.")
    if batch.device != regions.device:
        raise DTypeError(
            f"features are on {batch.device} and regions on {regions.device}. Move them: regions.to(device)."
        )
    batch.check_grids("regions", regions.grids)
    return batch.values
