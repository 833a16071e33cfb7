"""From the patches of a region to its one token: their mean, or attention from that mean to them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from regiontok._checks import Features, check_integer, flatten_features
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from regiontok.regions import Regions
from regiontok.tokens import RegionTokens

_BLOCK_ELEMENTS = 2**20
"""Attention runs over blocks of regions whose folded queries hold about so many numbers (4 MiB in float32)."""


class MeanPool(nn.Module):
    """A region's token is the mean of its patches' features.

    Shape:
        features: ``(B, rows, cols, D)`` or a list of ``(rows, cols, D)``; regions: of the same grids.

    Raises:
        ShapeError: Features and regions of different grids.

    Example:
        >>> regions = Regions.from_labels(torch.tensor([[[0, 0, 1]]]))
        >>> MeanPool()(torch.tensor([[[[1.0], [3.0], [5.0]]]]), regions).values
        tensor([[2.],
                [5.]])
    """

    def forward(self, features: Features, regions: Regions) -> RegionTokens:
        """Pool features over regions, ``(R, D)`` in the features' dtype."""
        flat = _match(features, regions)
        return RegionTokens(_mean(flat, regions), regions)


class CrossAttnPool(nn.Module):
    """A region's token is its mean feature plus what that mean, as the only query, gathers from the region's patches.

    Multi-head attention in which each region attends to its own patches alone. The output projection starts at zero,
    so an untrained pool is the mean and never noise. Time and memory grow with memberships (a patch in a region), not
    with regions times patches. Where regions are fewer than patches the projections run on regions: the key projection
    is folded into the queries, ``q·(W x) = (Wᵀ q)·x``, and the value projection follows the weighted sum. Both ways
    give the same numbers; the cheaper by count is taken.

    Args:
        dim: Feature dimension.
        num_heads: Heads; must divide ``dim``.

    Shape:
        features: ``(B, rows, cols, dim)`` or a list of ``(rows, cols, dim)``; regions: of the same grids.

    Raises:
        ShapeError: Features of another dimension, or of other grids than the regions.
        DTypeError: Features of another dtype than the weights, but for autocast.
        ValueRangeError: ``dim`` that ``num_heads`` does not divide.

    Example:
        >>> regions = Regions.from_labels(torch.tensor([[[0, 0, 1]]]))
        >>> CrossAttnPool(dim=32)(torch.ones(1, 1, 3, 32), regions)
        RegionTokens((2, 32), Regions(2 regions in 1 image))

    Source:
        Supplement A.2, "Cross-Attention Aggregation": 16 heads, one query, the average-pooled patch feature. That keys
        and values are the region's own patches, the sum with the query, and the zero start are our choice. There is no
        key bias: it adds the same to all scores of a region, and softmax takes that away.
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
        """Start as the mean: Xavier projections in, zero out."""
        for projection in (self.query, self.key, self.value, self.out):
            projection.reset_parameters()
        nn.init.zeros_(self.out.weight)

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return f"dim={self.dim}, num_heads={self.num_heads}"

    def forward(self, features: Features, regions: Regions) -> RegionTokens:
        """Pool features over regions, ``(R, dim)``."""
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
        """What each region gathers, ``(R, dim)``, before the output projection."""
        queries = rearrange(self.query(mean), "r (h d) -> r h d", h=self.num_heads)
        queries = queries * (self.dim // self.num_heads) ** -0.5
        fold = self._folding_is_cheaper(len(flat), len(regions), len(regions.patch))
        if fold:
            keys = flat[:, None]  # one set of keys and values for all heads
        else:
            flat = _zero_outside(flat, regions)
            keys = rearrange(self.key(flat), "n (h d) -> n h d", h=self.num_heads)
            values = rearrange(self.value(flat), "n (h d) -> n h d", h=self.num_heads)
        blocks = _blocks(regions, self.num_heads * self.dim)
        block_values = None if fold else _gather(values, blocks)
        gathered = []
        for block, key in zip(blocks, _gather(keys, blocks), strict=True):
            query = self.key(queries[block.regions], backwards=True) if fold else queries[block.regions]
            value = key if block_values is None else next(block_values)
            context = _attend_padded(query, key, value, block.inside)
            gathered.append(self.value(context) if fold else context)
        order = torch.cat([block.regions for block in blocks])
        return rearrange(torch.cat(gathered), "r h d -> r (h d)")[torch.argsort(order)]

    def _folding_is_cheaper(self, patches: int, regions: int, memberships: int) -> bool:
        """Compare multiplications of the two ways; the query and output projections are common to both."""
        folded = regions * self.dim**2 + memberships * self.num_heads * self.dim
        unfolded = patches * self.dim**2 + memberships * self.dim
        return folded < unfolded


class _Projection(nn.Module):
    """A linear projection ``dim -> dim`` that also works head by head, ``(r, h, c)`` to ``(r, h, d)``.

    It has the weights of ``nn.Linear`` under the same names, but is no ``nn.Linear``: libraries that wrap or replace
    those (LoRA with ``target_modules="all-linear"``, quantisers, inference engines) call their replacement with
    ``(n, dim)`` alone. All uses of the weights go through this call, where DeepSpeed's ZeRO-3 gathers them.
    """

    bias: nn.Parameter | None

    def __init__(self, dim: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, dim))
        self.register_parameter("bias", nn.Parameter(torch.empty(dim)) if bias else None)

    def reset_parameters(self) -> None:
        """Initialise the weight by Xavier's rule and the bias with zero."""
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, values: Tensor, backwards: bool = False) -> Tensor:
        """Project ``(n, dim)``, or each head; ``backwards`` from ``(r, h, d)`` to ``(r, h, c)``, by the transpose."""
        if values.ndim == 2:
            return F.linear(values, self.weight, self.bias)
        weight = rearrange(self.weight, "(h d) c -> h d c", h=values.shape[1])
        if backwards:
            return torch.einsum("rhd,hdc->rhc", values, weight)
        bias = 0 if self.bias is None else rearrange(self.bias, "(h d) -> h d", h=values.shape[1])
        return torch.einsum("rhc,hdc->rhd", values, weight) + bias


def _attend_padded(query: Tensor, keys: Tensor, values: Tensor, inside: Tensor) -> Tensor:
    """Softmax attention of one query per region and head over its (padded) members.

    Shapes: query ``(r, h, c)``, keys and values ``(r, w, h or 1, c)``, inside ``(r, w)``; returns ``(r, h, c)``.
    """
    shared = keys.shape[2] == 1  # by all heads, as where the projections are folded
    scores = query @ keys[:, :, 0].transpose(1, 2) if shared else torch.einsum("rhc,rwhc->rhw", query, keys)
    weights = scores.masked_fill(~inside[:, None], -torch.inf).softmax(-1).to(values.dtype)
    return weights @ values[:, :, 0] if shared else torch.einsum("rhw,rwhc->rhc", weights, values)


class _Block(NamedTuple):
    """Regions of like size ``(r,)``, members as flat patches ``(r, w)`` padded to the longest, and which are real."""

    regions: Tensor
    member: Tensor
    inside: Tensor


def _blocks(regions: Regions, elements_per_region: int) -> list[_Block]:
    """Split regions by size into blocks in which less than half is padding, and large ones again by memory."""
    areas, starts, flat_patch = regions.areas(), regions.starts, regions.flat_patch
    by_area = torch.argsort(areas, stable=True)
    areas = areas[by_area]
    doublings = torch.ceil(torch.log2(areas.double())).long()  # sizes 1, 2, 3-4, 5-8, 9-16, ...
    most = max(1, _BLOCK_ELEMENTS // elements_per_region)
    ends, begin = [], 0
    for count in torch.bincount(doublings).tolist():
        ends += [*range(begin + most, begin + count, most)] + [begin + count] * (count > 0)
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
    """Rows of every block's members, ``(r, w, ...)`` each.

    Where a gradient goes back to the rows they are gathered in one piece, so that the way back is one too: each piece
    costs a gradient as large as all rows. Elsewhere one block at a time is held.
    """
    if rows.requires_grad:
        members = torch.cat([block.member.flatten() for block in blocks])
        parts = rows.index_select(0, members).split([block.member.numel() for block in blocks])
        yield from (part.unflatten(0, block.member.shape) for part, block in zip(parts, blocks, strict=True))
    else:
        yield from (rows.index_select(0, block.member.flatten()).unflatten(0, block.member.shape) for block in blocks)


def _mean(flat: Tensor, regions: Regions) -> Tensor:
    """Mean feature of each region, ``(R, D)``, summed in float32 at least."""
    wide = flat.to(torch.promote_types(flat.dtype, torch.float32))
    return _Mean.apply(wide, regions.flat_patch, regions.region, regions.starts, regions.areas()).to(flat.dtype)


class _Mean(torch.autograd.Function):
    """``embedding_bag`` in mode ``mean``, and as its gradient a sum over the regions of each patch.

    The gradient is an ``embedding_bag`` too, so that there is a second derivative, which torch's own lacks.
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
    """Zero the patches in no region: a NaN there would reach the gradient of projections that run over all patches."""
    inside = torch.zeros(len(flat), 1, dtype=torch.bool, device=flat.device)
    inside[regions.flat_patch] = True
    return torch.where(inside, flat, 0)


def _match(features: Features, regions: Regions) -> Tensor:
    flat, grids = flatten_features(features)
    if not isinstance(regions, Regions):
        raise DTypeError(f"regions must be Regions; got {type(regions).__name__}. Make them with Regions.from_labels.")
    if flat.device != regions.device:
        raise DTypeError(
            f"features are on {flat.device} and regions on {regions.device}. Move them: regions.to(device)."
        )
    if not torch.equal(grids, regions.grids):
        raise ShapeError(
            f"features and regions must have the same grids; got {_first_difference(grids, regions.grids)}. "
            "Pool the features that the regions were made from."
        )
    return flat


def _first_difference(grids: Tensor, others: Tensor) -> str:
    if len(grids) != len(others):
        return f"{len(grids)} and {len(others)} images"
    image = int((grids != others).any(1).nonzero()[0])
    return f"{tuple(grids[image].tolist())} and {tuple(others[image].tolist())} for image {image}"
