"""The focus metric: how much attention the words of an answer pay to the object that the question is about.

    attention = answer_attention(model, answer, input_ids=..., pixel_values=...)
    targets = target_regions(attention.regions, objects, geometry=encoder.geometry)
    meter = FocusMeter()
    meter.add(attention, targets)
    meter.result().focus

The paper says how it is made but for the threshold, the layers, the heads, and which row of attention is an answer
token's. These are options, and a result tells them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regiontok._checks import check_choice, check_integer, check_number
from regiontok._require import require
from regiontok.choices import QUERIES
from regiontok.downsample import MaskDownsampler, Masks
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from regiontok.geometry import ImageGeometry, Size
from regiontok.maskset import MaskSet
from regiontok.regions import Regions
from regiontok.views import View, count_images, cut_masks


class RegionAttention(NamedTuple):
    """Attention that answers pay to regions.

    Attributes:
        weights: Per sample ``(layers, heads, regions of its images)`` float32: the attention that an answer token pays
            to each region, the mean over its answer's tokens. Text takes the rest of 1.
        regions: The batch's `Regions`.
        images: Per sample, its images among those of the regions.
        query: Whose rows they are, ``answer`` or ``predicting``.
        views: What each image of the regions shows; None for one view of every image.
    """

    weights: list[Tensor]
    regions: Regions
    images: list[list[int]]
    query: str
    views: list[View] | None = None


@torch.no_grad()
def answer_attention(model: Any, answer: Tensor, *, query: str = "answer", **inputs: Any) -> RegionAttention:
    """The attention that the tokens of answers pay to region tokens.

    One forward pass over prompts and answers, in which only the answers' rows are computed a second time, and only
    their columns of regions are kept: memory grows with the sequence, not with its square, on sdpa, flash and eager
    attention. Equal to what ``output_attentions=True`` gives there.

    Args:
        model: A region model of `regiontok.adapters.huggingface`.
        answer: ``(B, columns)`` bool: which of ``input_ids`` are the answer's.
        query: Which rows: ``answer``, those of the answer's tokens; or ``predicting``, those of the tokens before
            them, from which they are predicted.
        inputs: What the model's ``expand`` takes: ``input_ids``, ``pixel_values``, ``attention_mask``, ``masks`` ...

    Raises:
        ShapeError: An ``answer`` of another shape than ``input_ids``.
        ValueRangeError: A sample without an answer token, an unknown ``query``, or a language model whose attention
            cannot be looked at.
        DTypeError: A model that has no regions.

    Source:
        Supplement B.1: "the averaged total attention score of the answer tokens attending to target visual tokens".
    """
    check_choice("query", query, QUERIES)
    if not hasattr(model, "regionizer"):
        raise DTypeError(
            f"model must have region tokens; got {type(model).__name__}. Make it with "
            "regiontok.adapters.huggingface.with_regions; Regionizer(source='patch', pool='mean', norm='none') leaves "
            "patches as they are."
        )
    ids = inputs["input_ids"]
    if answer.shape != ids.shape or answer.dtype != torch.bool:
        raise ShapeError(
            f"answer must be {tuple(ids.shape)} bool, like input_ids; got {tuple(answer.shape)} of {answer.dtype}."
        )
    prepared = model.expand(**inputs)
    inside = prepared.layout.mask.bool()
    answers = prepared.layout.put(answer.long(), 0).bool() & inside
    if query == "predicting":
        answers = torch.cat([answers[:, 1:], torch.zeros_like(answers[:, :1])], 1) & inside
    visual = prepared.columns
    for sample, any_ in enumerate(answers.any(1).tolist()):
        if not any_:
            raise ValueRangeError(f"sample {sample} has no answer token. Leave it out, and count it.")
    capture = _Capture(answers, visual, inside)
    with _capturing(model.config.get_text_config(), capture):
        model(**prepared.inputs, use_cache=False)
    if not capture.layers:
        raise ValueRangeError(
            f"no attention of {type(model).__name__} could be looked at: its language model, "
            f"{model.config.get_text_config().model_type}, has none that goes through transformers' interface for it."
        )
    held = visual.sum(1).tolist()
    ends = prepared.regions.counts.cumsum(0).tolist()
    images: list[list[int]] = []
    seen = image = 0
    for number in held:
        seen += number
        own = []
        while image < len(ends) and ends[image] <= seen:
            own.append(image)
            image += 1
        images.append(own)
    return RegionAttention(capture.stacked(), prepared.regions, images, query, prepared.views)


def check_attention(config: Any, layers: Sequence[int] | None, heads: Sequence[int] | None) -> None:
    """Refuse layers and heads that a model has not, before it is asked.

    Args:
        config: Of the model, as transformers has it.
        layers: Which of its layers of attention, counted from 0 or negative from the end; None for all.
        heads: Which heads, likewise.

    Raises:
        ValueRangeError: One that is not there.
    """
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ["attention"] * text.num_hidden_layers
    attending = sum("linear" not in kind and "attention" in kind for kind in kinds)  # others have no rows to look at
    for name, given, count in (("layers", layers, attending), ("heads", heads, text.num_attention_heads)):
        for one in given or ():
            if not -count <= check_integer(name, one, minimum=-count) < count:
                raise ValueRangeError(f"{name} must be from {-count} to {count - 1} for this model; got {one}.")


def target_regions(
    regions: Regions,
    objects: Sequence[Masks],
    *,
    threshold: float = 0.5,
    geometry: ImageGeometry | None = None,
    sizes: Sequence[Size] | None = None,
    views: Sequence[View] | None = None,
) -> Tensor:
    """Which regions show the object: more than ``threshold`` of their patches' area lies inside its masks.

    Args:
        regions: The batch's.
        objects: Per image the object's masks, as `MaskDownsampler` takes them; several are taken together.
        threshold: A share in ``[0, 1]``.
        geometry: How the encoder places images; needed unless masks are on the grid.
        sizes: Each image's height and width, where masks may be of another size: they are stretched.
        views: What each image of the regions shows, of a model that cuts images into tiles: objects are per image then,
            and are cut with it.

    Returns:
        ``(R,)`` bool.

    Raises:
        ShapeError, DTypeError, ValueRangeError: Masks that cannot be; the message names the image.

    Example:
        >>> regions = Regions.from_labels(torch.tensor([[[0, 0, 1, 1]]]))
        >>> left = torch.zeros(1, 10, 40, dtype=torch.bool)
        >>> left[:, :, :15] = True  # three quarters of region 0
        >>> target_regions(regions, [left], geometry=ImageGeometry.squash((10, 40)))
        tensor([ True, False])

    Source:
        Supplement B.1: "overlaps with the mask annotation by a certain threshold"; which one it does not say.
    """
    check_number("threshold", threshold, low=0, high=1)
    if views is not None and (count_images(views) < len(views) or any(view.canvas is not None for view in views)):
        objects, geometry, sizes = cut_masks(views, objects, sizes), None, None
    if len(objects) != len(regions.grids):
        raise ShapeError(f"objects must have one entry per image, {len(regions.grids)}; got {len(objects)}.")
    shares = []
    for image, (masks, grid) in enumerate(zip(objects, regions.grids.tolist(), strict=True)):
        downsampler = MaskDownsampler((grid[0], grid[1]), geometry=geometry, rescale=sizes is not None)
        size = None if sizes is None else sizes[image]
        covered = downsampler.coverage(_together(masks, size), size=size)
        shares.append((covered.amax(0) if len(covered) else covered.new_zeros(grid)).flatten())
    share = torch.cat(shares).to(regions.device)[regions.flat_patch]
    total = share.new_zeros(len(regions)).index_add_(0, regions.region, share)
    return total > threshold * regions.areas()


def _together(masks: Masks, size: Size | None) -> Masks:
    """All of an object's masks as one, so that none of their area counts twice, and parts of it add up."""
    masks = MaskSet.of(masks, size=size)
    if masks.coverage is not None or len(masks) < 2:
        return masks
    return masks.masks().any(0, keepdim=True)


@dataclass(frozen=True)
class FocusResult:
    """The metric over some questions, and the choices behind it.

    Attributes:
        focus: Mean attention of an answer token to its targets, over heads, layers, answer tokens and questions; in
            ``[0, 1]``, the paper prints percent.
        share: The mean part of it in all attention to images.
        chance: What ``share`` would be if attention were even: the mean fraction of tokens that are targets.
        questions: How many were counted.
        without_target: How many were left out because no token of theirs is a target.
        query: Whose rows of attention, ``answer`` or ``predicting``.
        layers: Which layers, None for all.
        heads: Which heads, None for all.
        threshold: Of `target_regions`, as told to the meter.
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
        """As plain values, for JSON."""
        return asdict(self)


@dataclass
class FocusMeter:
    """Adds up the focus metric over batches of questions.

    Args:
        layers: Which layers to average over; None for all.
        heads: Which heads; None for all.
        threshold: That of the targets, to be told in the result.

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
    _without: int = field(default=0, init=False, repr=False)
    _query: str | None = field(default=None, init=False, repr=False)

    def add(self, attention: RegionAttention, targets: Tensor) -> None:
        """Count the questions of a batch; one none of whose tokens is a target is left out and counted apart.

        Args:
            attention: Of `answer_attention`.
            targets: ``(R,)`` bool of `target_regions`.

        Raises:
            ShapeError: Targets of other regions.
            ValueRangeError: Attention of other rows than before.
        """
        if targets.shape != (len(attention.regions),):
            raise ShapeError(
                f"targets must be ({len(attention.regions)},), one per region; got {tuple(targets.shape)}."
            )
        if self._query not in (None, attention.query):
            raise ValueRangeError(f"query must be {self._query!r} as before; got {attention.query!r}.")
        self._query = attention.query
        per_image = targets.split(attention.regions.counts.tolist())
        for weights, images in zip(attention.weights, attention.images, strict=True):
            wanted = torch.cat([per_image[image] for image in images]) if images else targets[:0]
            if not wanted.any():
                self._without += 1
                continue
            chosen = weights if self.layers is None else weights[list(self.layers)]
            chosen = chosen if self.heads is None else chosen[:, list(self.heads)]
            mean = chosen.mean((0, 1))
            self._focus.append(float(mean[wanted.to(mean.device)].sum()))
            self._share.append(float(mean[wanted.to(mean.device)].sum() / mean.sum().clamp(min=1e-12)))
            self._chance.append(float(wanted.float().mean()))

    def result(self) -> FocusResult:
        """The metric over all questions so far.

        Raises:
            ValueRangeError: No question was counted.
        """
        if not self._focus:
            raise ValueRangeError(f"no question has a target; {self._without} were left out.")
        count = len(self._focus)
        return FocusResult(
            focus=sum(self._focus) / count,
            share=sum(self._share) / count,
            chance=sum(self._chance) / count,
            questions=count,
            without_target=self._without,
            query=self._query or "answer",
            layers=None if self.layers is None else tuple(self.layers),
            heads=None if self.heads is None else tuple(self.heads),
            threshold=self.threshold,
        )


class _Capture:
    """Collects, layer by layer, what answers pay to regions."""

    def __init__(self, answers: Tensor, visual: Tensor, inside: Tensor) -> None:
        self.rows = [one.nonzero().squeeze(1) for one in answers]
        self.columns = [one.nonzero().squeeze(1) for one in visual]
        self.inside = inside
        self.layers: dict[int, list[Tensor]] = {}

    def add(self, module: Any, query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any]) -> None:
        """Compute one layer's rows again: query ``(B, heads, L, d)``, key ``(B, key heads, L, d)``."""
        scaling = options.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        groups = query.shape[1] // key.shape[1]
        found = []
        for sample, (rows, columns) in enumerate(zip(self.rows, self.columns, strict=True)):
            chosen = query[sample, :, rows].unflatten(0, (key.shape[1], groups))
            scores = (chosen @ key[sample, :, None].transpose(-1, -2) * scaling).float()
            if options.get("softcap"):
                scores = options["softcap"] * (scores / options["softcap"]).tanh()
            scores = scores.flatten(0, 1) + self._mask(sample, rows, mask, options.get("sliding_window"))
            found.append(scores.softmax(-1)[..., columns].mean(1))
        self.layers[int(module.layer_idx)] = found

    def stacked(self) -> list[Tensor]:
        """Per sample ``(layers, heads, regions)``."""
        in_order = [self.layers[layer] for layer in sorted(self.layers)]
        return [torch.stack(sample) for sample in zip(*in_order, strict=True)]

    def _mask(self, sample: int, rows: Tensor, mask: Tensor | None, window: int | None) -> Tensor:
        """What to add to scores of some rows: the model's own mask, or what it leaves to its kernel."""
        if mask is not None and mask.ndim == 4:
            own = mask[sample if len(mask) > 1 else 0, :, rows]
            return own.float() if own.is_floating_point() else torch.where(own, 0.0, -torch.inf)
        column = torch.arange(self.inside.shape[1], device=rows.device)
        allowed = (column <= rows[:, None]) & self.inside[sample]
        if window is not None:
            allowed &= column > rows[:, None] - window
        return torch.where(allowed, 0.0, -torch.inf)


_ACTIVE: ContextVar[_Capture | None] = ContextVar("regiontok_focus", default=None)


@contextmanager
def _capturing(config: Any, capture: _Capture) -> Iterator[None]:
    """Let a language model's attention layers hand over their queries and keys; its own attention does the work."""
    own = config._attn_implementation or "eager"
    if own == "flex_attention":
        raise ValueRangeError("focus cannot look into flex_attention. Load the model with attn_implementation='sdpa'.")
    config._attn_implementation = _register(own)
    token = _ACTIVE.set(capture)
    try:
        yield
    finally:
        _ACTIVE.reset(token)
        config._attn_implementation = own


def _register(own: str) -> str:
    """Make an attention of transformers known that does what ``own`` does, and lets a capture look on."""
    modeling = require("transformers.modeling_utils", extra="hf")
    masking = require("transformers.masking_utils", extra="hf")
    name = f"regiontok_{own}"

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
        capture = _ACTIVE.get()
        if capture is not None:
            capture.add(module, query, key, mask, options)
        default = getattr(require(type(module).__module__, extra="hf"), "eager_attention_forward", None)
        function = modeling.ALL_ATTENTION_FUNCTIONS.get_interface(own, default)
        module.config._attn_implementation = own  # kernels of flash look it up
        try:
            return function(module, query, key, value, mask, **options)
        finally:
            module.config._attn_implementation = name

    modeling.AttentionInterface.register(name, attend)
    masks = masking.AttentionMaskInterface._global_mapping
    if own in masks:
        masking.AttentionMaskInterface.register(name, masks[own])
    return name
