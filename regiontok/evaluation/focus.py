"""The focus metric: the attention of an answer's tokens to the object of the question.

    attention = answer_attention(model, answer, input_ids=..., pixel_values=...)
    targets = target_regions(attention.regions, objects, geometry=encoder.geometry)
    meter = FocusMeter()
    meter.add(attention, targets)
    meter.result().focus

The paper does not specify the threshold, the layers, the heads, and which row of attention belongs to an answer token.
These are options, and each result records them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regiontok._require import require
from regiontok._values import check_choice, check_integer, check_number
from regiontok.choices import QUERIES
from regiontok.downsample import MaskDownsampler, Masks
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from regiontok.geometry import ImageGeometry, Size
from regiontok.maskset import MaskSet
from regiontok.regions import Regions
from regiontok.tile_masks import cut_masks
from regiontok.tiles import Tile, count_images


class RegionAttention(NamedTuple):
    """Attention of answers to regions.

    Attributes:
        weights: Per sample, ``(layers, heads, regions of its images)`` float32: attention to each region, averaged over
            the tokens of the answer. Together with the attention to text it sums to 1.
        regions: The `Regions` of the batch.
        images: Per sample, the indices of its images in ``regions``.
        query: The rows of attention, ``answer`` or ``predicting``.
        tiles: The tile that each image of ``regions`` is; None if each image is one tile.
    """

    weights: list[Tensor]
    regions: Regions
    images: list[list[int]]
    query: str
    tiles: list[Tile] | None = None


@torch.no_grad()
def answer_attention(model: Any, answer: Tensor, *, query: str = "answer", **inputs: Any) -> RegionAttention:
    """Return the attention of answer tokens to region tokens.

    One forward pass over prompts and answers. The attention rows of the answers are computed a second time, and only
    the columns of region tokens are stored: memory grows linearly with the sequence length for sdpa, flash and eager
    attention. The values equal those of ``output_attentions=True``.

    Args:
        model: A region model of `regiontok.adapters.huggingface`.
        answer: ``(B, columns)`` bool, True for the tokens of ``input_ids`` that belong to the answer.
        query: The rows of attention: ``answer``, those of the answer tokens; or ``predicting``, those of the tokens
            before them, which predict them.
        inputs: Arguments of the model's ``expand``: ``input_ids``, ``pixel_values``, ``attention_mask``, ``masks`` ...

    Raises:
        ShapeError: ``answer`` and ``input_ids`` have different shapes.
        ValueRangeError: A sample has no answer token, ``query`` is unknown, or the attention of the language model
            cannot be captured.
        DTypeError: The model has no region tokens.

    Source:
        Supplement B.1: "the averaged total attention score of the answer tokens attending to target visual tokens".
    """
    check_choice("query", query, QUERIES)
    if not hasattr(model, "regionizer"):
        raise DTypeError(
            f"model must have region tokens; got {type(model).__name__}. Convert it with "
            "regiontok.adapters.huggingface.with_regions; Regionizer(source='patch', pool='mean', norm='none') keeps "
            "every patch token."
        )
    ids = inputs["input_ids"]
    if answer.shape != ids.shape or answer.dtype != torch.bool:
        raise ShapeError(
            f"answer must be {tuple(ids.shape)} bool, like input_ids; got {tuple(answer.shape)} of {answer.dtype}."
        )
    expanded = model.expand(**inputs)
    is_token = expanded.layout.mask.bool()
    is_query = expanded.layout.put(answer.long(), 0).bool() & is_token
    if query == "predicting":
        is_query = torch.cat([is_query[:, 1:], torch.zeros_like(is_query[:, :1])], 1) & is_token
    for sample, has_query in enumerate(is_query.any(1).tolist()):
        if not has_query:
            raise ValueRangeError(f"answer must have a token in every sample; sample {sample} has none.")
    capture = _Capture(is_query, expanded.columns, is_token)
    text_config = model.config.get_text_config()
    with _capturing(text_config, capture):
        model(**expanded.inputs, use_cache=False)
    if not capture.layers:
        raise ValueRangeError(
            f"cannot capture the attention of {type(model).__name__}: its language model ({text_config.model_type}) "
            "does not use the attention interface of transformers."
        )
    sample_ends = expanded.columns.sum(1).cumsum(0).tolist()
    image_ends = expanded.regions.counts.cumsum(0).tolist()
    images: list[list[int]] = []
    image = 0
    for sample_end in sample_ends:
        images.append([])
        while image < len(image_ends) and image_ends[image] <= sample_end:
            images[-1].append(image)
            image += 1
    return RegionAttention(capture.stacked(), expanded.regions, images, query, expanded.tiles)


def check_attention(config: Any, layers: Sequence[int] | None, heads: Sequence[int] | None) -> None:
    """Raise an error for layers and heads that a model does not have.

    Args:
        config: Config of the model.
        layers: Indices of attention layers, negative from the end; None for all.
        heads: Indices of heads, negative from the end; None for all.

    Raises:
        ValueRangeError: An index is out of range.
    """
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ["attention"] * text.num_hidden_layers
    num_layers = sum("linear" not in kind and "attention" in kind for kind in kinds)  # others have no attention rows
    for name, indices, count in (("layers", layers, num_layers), ("heads", heads, text.num_attention_heads)):
        for index in indices or ():
            if not -count <= check_integer(name, index, minimum=-count) < count:
                raise ValueRangeError(f"{name} must be from {-count} to {count - 1} for this model; got {index}.")


def target_regions(
    regions: Regions,
    objects: Sequence[Masks],
    *,
    threshold: float = 0.5,
    geometry: ImageGeometry | None = None,
    sizes: Sequence[Size] | None = None,
    tiles: Sequence[Tile] | None = None,
) -> Tensor:
    """Return which regions show the object: those with more than ``threshold`` of their area inside its masks.

    Args:
        regions: Regions of a batch.
        objects: Per image, the masks of the object in a format of `MaskDownsampler`; the union of its masks is used.
        threshold: A fraction in ``[0, 1]``.
        geometry: Geometry by which images are resized and padded; not needed for masks on the grid.
        sizes: Height and width of each image. Masks of other sizes are resized to them.
        tiles: The tile that each image of ``regions`` is, for a model that splits images into tiles. ``objects`` then
            has one entry per image, and masks are cropped like the tiles.

    Returns:
        A ``(R,)`` bool tensor.

    Raises:
        ShapeError, DTypeError, ValueRangeError: Invalid masks; the message names the image.

    Example:
        >>> regions = Regions.from_labels(torch.tensor([[[0, 0, 1, 1]]]))
        >>> left = torch.zeros(1, 10, 40, dtype=torch.bool)
        >>> left[:, :, :15] = True  # three quarters of region 0
        >>> target_regions(regions, [left], geometry=ImageGeometry.squash((10, 40)))
        tensor([ True, False])

    Source:
        Supplement B.1: "overlaps with the mask annotation by a certain threshold". The paper does not give its value.
    """
    check_number("threshold", threshold, low=0, high=1)
    if tiles is not None and (count_images(tiles) < len(tiles) or any(tile.layout is not None for tile in tiles)):
        objects, geometry, sizes = cut_masks(tiles, objects, sizes), None, None
    if len(objects) != len(regions.grids):
        raise ShapeError(f"objects must have one entry per image, {len(regions.grids)}; got {len(objects)}.")
    coverages = []
    for image, (masks, grid) in enumerate(zip(objects, regions.grids.tolist(), strict=True)):
        downsampler = MaskDownsampler((grid[0], grid[1]), geometry=geometry, rescale=sizes is not None)
        size = None if sizes is None else sizes[image]
        coverage = downsampler.coverage(_union(masks, size), size=size)
        coverages.append((coverage.amax(0) if len(coverage) else coverage.new_zeros(grid)).flatten())
    member_coverage = torch.cat(coverages).to(regions.device)[regions.flat_patch]
    area = member_coverage.new_zeros(len(regions)).index_add_(0, regions.region, member_coverage)
    return area > threshold * regions.areas()


def _union(masks: Masks, size: Size | None) -> Masks:
    """Return the union of the masks, so that area shared by two masks counts once."""
    masks = MaskSet.of(masks, size=size)
    if masks.coverage is not None or len(masks) < 2:
        return masks
    return masks.masks().any(0, keepdim=True)


@dataclass(frozen=True)
class FocusResult:
    """The focus metric over questions, and its options.

    Attributes:
        focus: Attention of answer tokens to target regions, averaged over heads, layers, tokens and questions. It is in
            ``[0, 1]``; the paper prints percent.
        share: The same as a fraction of the attention to all regions.
        chance: The ``share`` of uniform attention: the mean fraction of regions that are targets.
        questions: Number of questions that were counted.
        without_target: Number of questions that were skipped because no region is a target.
        query: The rows of attention, ``answer`` or ``predicting``.
        layers: Indices of the layers; None for all.
        heads: Indices of the heads; None for all.
        threshold: The threshold of `target_regions`.
    """

    focus: float
    share: float
    chance: float
    questions: int
    without_target: int
    query: str
    layers: tuple[int, ...] | None
    heads: tuple[int, ...] | None
    threshold: float

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return asdict(self)


@dataclass
class FocusMeter:
    """The focus metric, accumulated over batches of questions.

    Args:
        layers: Indices of the layers to average over; None for all.
        heads: Indices of the heads to average over; None for all.
        threshold: The threshold of `target_regions`, which is only recorded in the result.

    Example:
        >>> regions = Regions.from_labels(torch.tensor([[[0, 1]]]))
        >>> attention = RegionAttention([torch.tensor([[[0.3, 0.1]]])], regions, [[0]], "answer")
        >>> meter = FocusMeter()
        >>> meter.add(attention, torch.tensor([True, False]))
        >>> result = meter.result()
        >>> round(result.focus, 4), round(result.share, 4), result.chance
        (0.3, 0.75, 0.5)
    """

    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    threshold: float = 0.5
    _focus: list[float] = field(default_factory=list, init=False, repr=False)
    _share: list[float] = field(default_factory=list, init=False, repr=False)
    _chance: list[float] = field(default_factory=list, init=False, repr=False)
    _without_target: int = field(default=0, init=False, repr=False)
    _query: str | None = field(default=None, init=False, repr=False)

    def add(self, attention: RegionAttention, targets: Tensor) -> None:
        """Add the questions of a batch. Questions without a target region are skipped and counted separately.

        Args:
            attention: The result of `answer_attention`.
            targets: The result of `target_regions`, ``(R,)`` bool.

        Raises:
            ShapeError: ``targets`` does not have one entry per region.
            ValueRangeError: ``attention.query`` differs from earlier batches.
        """
        if targets.shape != (len(attention.regions),):
            raise ShapeError(
                f"targets must be ({len(attention.regions)},), one per region; got {tuple(targets.shape)}."
            )
        if self._query not in (None, attention.query):
            raise ValueRangeError(f"query must be {self._query!r}, as in earlier batches; got {attention.query!r}.")
        self._query = attention.query
        per_image = targets.split(attention.regions.counts.tolist())
        for weights, images in zip(attention.weights, attention.images, strict=True):
            is_target = torch.cat([per_image[image] for image in images]) if images else targets[:0]
            if not is_target.any():
                self._without_target += 1
                continue
            selected = weights if self.layers is None else weights[list(self.layers)]
            selected = selected if self.heads is None else selected[:, list(self.heads)]
            mean = selected.mean((0, 1))
            focus = mean[is_target.to(mean.device)].sum()
            self._focus.append(float(focus))
            self._share.append(float(focus / mean.sum().clamp(min=1e-12)))
            self._chance.append(float(is_target.float().mean()))

    def result(self) -> FocusResult:
        """Return the metric over all questions.

        Raises:
            ValueRangeError: No question was counted.
        """
        if not self._focus:
            raise ValueRangeError(f"no question has a target region; {self._without_target} were skipped.")
        count = len(self._focus)
        return FocusResult(
            focus=sum(self._focus) / count,
            share=sum(self._share) / count,
            chance=sum(self._chance) / count,
            questions=count,
            without_target=self._without_target,
            query=self._query or "answer",
            layers=None if self.layers is None else tuple(self.layers),
            heads=None if self.heads is None else tuple(self.heads),
            threshold=self.threshold,
        )


class _Capture:
    """The attention of query rows to region columns, collected layer by layer.

    Args:
        is_query: ``(B, L)`` bool, the rows.
        is_region: ``(B, L)`` bool, the columns.
        is_token: ``(B, L)`` bool, False for padding.
    """

    def __init__(self, is_query: Tensor, is_region: Tensor, is_token: Tensor) -> None:
        self.rows = [sample.nonzero().squeeze(1) for sample in is_query]
        self.columns = [sample.nonzero().squeeze(1) for sample in is_region]
        self.is_token = is_token
        self.layers: dict[int, list[Tensor]] = {}

    def add(self, module: Any, query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any]) -> None:
        """Compute the rows of a layer from ``query (B, heads, L, d)`` and ``key (B, key heads, L, d)``."""
        scaling = options.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        groups = query.shape[1] // key.shape[1]
        weights = []
        for sample, (rows, columns) in enumerate(zip(self.rows, self.columns, strict=True)):
            query_rows = query[sample, :, rows].unflatten(0, (key.shape[1], groups))
            scores = (query_rows @ key[sample, :, None].transpose(-1, -2) * scaling).float()
            if options.get("softcap"):
                scores = options["softcap"] * (scores / options["softcap"]).tanh()
            scores = scores.flatten(0, 1) + self._mask(sample, rows, mask, options.get("sliding_window"))
            weights.append(scores.softmax(-1)[..., columns].mean(1))
        self.layers[int(module.layer_idx)] = weights

    def stacked(self) -> list[Tensor]:
        """Return the weights ``(layers, heads, regions)`` of each sample."""
        in_order = [self.layers[layer] for layer in sorted(self.layers)]
        return [torch.stack(sample) for sample in zip(*in_order, strict=True)]

    def _mask(self, sample: int, rows: Tensor, mask: Tensor | None, window: int | None) -> Tensor:
        """Return the additive mask of rows: the model's, or the causal mask that its attention kernel applies."""
        if mask is not None and mask.ndim == 4:
            row_mask = mask[sample if len(mask) > 1 else 0, :, rows]
            return row_mask.float() if row_mask.is_floating_point() else torch.where(row_mask, 0.0, -torch.inf)
        column = torch.arange(self.is_token.shape[1], device=rows.device)
        allowed = (column <= rows[:, None]) & self.is_token[sample]
        if window is not None:
            allowed &= column > rows[:, None] - window
        return torch.where(allowed, 0.0, -torch.inf)


_ACTIVE: ContextVar[_Capture | None] = ContextVar("regiontok_focus", default=None)


@contextmanager
def _capturing(config: Any, capture: _Capture) -> Iterator[None]:
    """Pass queries and keys of the attention layers of a language model to ``capture`` while the context is active."""
    implementation = config._attn_implementation or "eager"
    if implementation == "flex_attention":
        raise ValueRangeError("focus does not support flex_attention. Load the model with attn_implementation='sdpa'.")
    config._attn_implementation = _register(implementation)
    token = _ACTIVE.set(capture)
    try:
        yield
    finally:
        _ACTIVE.reset(token)
        config._attn_implementation = implementation


def _register(implementation: str) -> str:
    """Register an attention of transformers that wraps ``implementation`` and calls the active capture."""
    modeling = require("transformers.modeling_utils", extra="hf")
    masking = require("transformers.masking_utils", extra="hf")
    name = f"regiontok_{implementation}"

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
        capture = _ACTIVE.get()
        if capture is not None:
            capture.add(module, query, key, mask, options)
        default = getattr(require(type(module).__module__, extra="hf"), "eager_attention_forward", None)
        function = modeling.ALL_ATTENTION_FUNCTIONS.get_interface(implementation, default)
        module.config._attn_implementation = implementation  # flash attention reads it
        try:
            return function(module, query, key, value, mask, **options)
        finally:
            module.config._attn_implementation = name

    modeling.AttentionInterface.register(name, attend)
    masks = masking.AttentionMaskInterface._global_mapping
    if implementation in masks:
        masking.AttentionMaskInterface.register(name, masks[implementation])
    return name
