"""Region tokens in a ``*ForConditionalGeneration``: prompts of the stock processor, saving and loading.

The stock ``forward`` and ``generate`` run as they are: the inner model makes the region tokens (`inner`). This module
rewrites prompts that were not written for regions.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regiontok._require import require
from regiontok.adapters.huggingface.encoding import EncodedImages, Patches, per_image
from regiontok.adapters.huggingface.inner import CACHES, SIDE_INPUTS, RegionModelMixin, reject_other_media
from regiontok.adapters.huggingface.placeholders import Layout, check_blocks, fits_blocks, lay_out
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions
from regiontok.tokens import RegionTokens
from regiontok.views import View, count_images

transformers = require("transformers", extra="hf")

_PER_TOKEN = ("token_type_ids", "mm_token_type_ids")
_OF_COLUMNS = (
    "position_ids", "inputs_embeds", *CACHES, "output_hidden_states", "output_attentions", "cu_seq_lens_q",
    "cu_seq_lens_k", "seq_idx", "stopping_criteria", "logits_processor", "prefix_allowed_tokens_fn", "shift_labels",
)  # fmt: skip
"""Arguments and results that are of columns, so that a prompt with them cannot be rewritten."""


class RegionInputs(NamedTuple):
    """A batch whose prompts have one placeholder per token of an image.

    Attributes:
        inputs: Arguments of the stock ``forward``: ``input_ids``, ``attention_mask``, ``labels`` and more, all
            ``(B, length)``; and ``mm_encoder_outputs``.
        regions: The `Regions` of the batch, in the order of their placeholders. Their images are the views.
        layout: Which of the caller's columns each column comes from.
        columns: ``(B, length)`` bool: where region tokens are. Other placeholders are newlines.
        views: What each image of the regions shows.
        encoded: The images, to `RegionMixin.expand` further prompts about them without encoding them again.
    """

    inputs: dict[str, Any]
    regions: Regions
    layout: Layout
    columns: Tensor
    views: list[View]
    encoded: EncodedImages

    @property
    def counts(self) -> list[int]:
        """Number of region tokens of each image."""
        return per_image(self.views, self.regions.counts.tolist())


class RegionMixin:
    """Region tokens for a ``*ForConditionalGeneration`` of transformers, mixed in before it.

    ``forward`` and ``generate`` are those of the stock class, and take the side inputs of `RegionModelMixin` too. Write
    prompts with `region_processor`. For convenience a prompt of the stock processor is rewritten by `expand` in
    ``generate``, and in ``forward`` with labels, whose logits are returned in the caller's columns; elsewhere it is
    rejected, since its columns would move.
    """

    model: RegionModelMixin
    config: Any
    generation_config: Any

    _stock: type[Any]

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        adopt(self.model, self._inner)
        self.model.attach()
        self.post_init()  # type: ignore[attr-defined]

    _inner: type[Any]
    """The region class of the inner model."""

    @property
    def regionizer(self) -> Regionizer:
        """The Regionizer, part of the inner model."""
        return self.model.regionizer

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a Regionizer becomes part of the inner model."""
        if name == "regionizer":  # torch would register a module here before it looked for a setter
            if self.device.type != "meta":  # type: ignore[attr-defined]
                value = value.to(device=self.device, dtype=self.dtype)  # type: ignore[attr-defined]
            self.model.attach(value)
            self.config.regiontok = value.config.to_dict()
        else:
            super().__setattr__(name, value)

    @property
    def places_images(self) -> bool:
        """Whether the model knows which part of an image each grid shows, so that its Regionizer has no geometry."""
        return self.model.places_images

    @property
    def encoder_inputs(self) -> tuple[str, ...]:
        """Names of the encoder's inputs other than pixels."""
        return self.model.encoder_inputs

    @property
    def patch_dim(self) -> int:
        """Dimension of the patch features that regions are made of."""
        return self.model.patch_dim

    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Return the patch features of a batch's images."""
        return self.model.encode_patches(pixel_values, **inputs)

    def blank_image(self) -> dict[str, Any]:
        """Return the smallest input of `encode_patches`."""
        return self.model.blank_image()

    def encode_regions(self, pixel_values: Tensor, **inputs: Any) -> RegionTokens:
        """Return region tokens of images without a prompt; see `RegionEncoderMixin.encode_regions`."""
        return self.model.encode_regions(pixel_values, **inputs)

    def num_tokens(self, image_sizes: Any = None, **options: Any) -> list[int]:
        """Return how many tokens images will get, before they are encoded; see `RegionEncoderMixin.num_tokens`."""
        return self.model.num_tokens(image_sizes, **options)

    def expand(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        *,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_images: Sequence[int] | None = None,
        left: bool | None = None,
        encoded: EncodedImages | None = None,
        **inputs: Any,
    ) -> RegionInputs:
        """Encode the images of a batch and rewrite its prompts with one placeholder per token.

        Thresholds, ``explained_variance`` and masks make as many regions as the image asks for, which is known only
        then. The result can be passed to ``forward``, ``generate`` and any trainer.

        Args:
            input_ids: ``(B, columns)``: one placeholder per image, or the block that a processor writes.
            pixel_values: The images of all samples, in the order of their placeholders.
            attention_mask: ``(B, columns)``, 0 at padding.
            labels: ``(B, columns)``; region tokens get -100.
            num_images: Number of images of each sample, to check that its placeholders are its own.
            left: Pad on the left; by default on the side of the given padding.
            encoded: What an earlier call returned for the same images.
            inputs: The side inputs of `RegionModelMixin`, those of the family's encoder, and token type ids.

        Raises:
            ShapeError, DTypeError, ValueRangeError: Placeholders, masks or sizes that do not fit the images.
        """
        unknown = sorted(set(inputs) - {*SIDE_INPUTS, *self.encoder_inputs, *_PER_TOKEN})
        if unknown:
            raise ValueRangeError(f"expand takes no {unknown[0]}. Leave it out.")
        passed = {name: value for name, value in inputs.items() if value is not None and name not in _PER_TOKEN}
        if encoded is None:
            encoded, _ = self.model.encode_images(input_ids, attention_mask, pixel_values, **passed)
        prompt = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        prompt |= {name: inputs.get(name) for name in _PER_TOKEN}
        return self._rewrite(encoded, prompt, passed, num_images=num_images, left=left)

    def forward(self, **kwargs: Any) -> Any:
        """Run the stock model on region tokens; see `RegionMixin` and `RegionModelMixin`."""
        has_labels = kwargs.get("labels") is not None and kwargs.get("mm_encoder_outputs") is None
        if not has_labels or kwargs.get("pixel_values") is None:
            return super().forward(**kwargs)
        kept = kwargs.get("logits_to_keep")
        if kept is not None and not (isinstance(kept, int) and kept == 0):
            raise ValueRangeError("labels need all logits; logits_to_keep leaves some out. Pass one of them.")
        ids = self.model.ids_of(kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        kwargs, layout = self._encoded(kwargs, ids, left=None)
        if layout is None:
            return super().forward(**kwargs)
        as_tuple = kwargs.pop("return_dict", None) is False
        output = super().forward(**kwargs, return_dict=True)
        output.logits = layout.put_back(output.logits)
        output = _without_caches(output)
        return output.to_tuple() if as_tuple else output

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Generate as the stock class does, from region tokens.

        A prompt of the stock processor is rewritten, and the caller's prompt is returned before the new tokens:
        ``max_length`` and ``min_length`` count as if the prompt had its original length, and no cache is returned.
        """
        reject_other_media(kwargs)
        if self.model.training and self.regionizer.config.order == "random":
            raise ValueRangeError(
                "generate draws another order of tokens than a later forward would, with order='random' in training "
                "mode. Call model.eval() for generation alone, or take another order for a trainer that samples."
            )
        ids = kwargs.get("input_ids", inputs)
        if kwargs.get("pixel_values") is None:
            has_images = kwargs.get("mm_encoder_outputs") is not None
            if not has_images and not getattr(generation_config, "is_assistant", False):
                self.model.reject_missing_pixels(None if ids is None else ids[:, _past_length(kwargs) :], kwargs)
            for name in (*SIDE_INPUTS, "tiles"):
                kwargs.pop(name, None)
            return super().generate(inputs, generation_config, *args, **kwargs)
        prompt = self.model.ids_of(ids, kwargs.get("inputs_embeds"))
        kwargs, layout = self._encoded(kwargs, prompt, left=True)
        if layout is None:
            return super().generate(inputs, generation_config, *args, **kwargs)
        config = generation_config or self.generation_config
        length = layout.source.shape[1]
        adds = kwargs.get("max_new_tokens") or config.max_new_tokens  # takes precedence over max_length
        for name in ("max_length", "min_length"):
            limit = kwargs.get(name) or getattr(config, name)
            if limit and not (name == "max_length" and adds):
                kwargs[name] = limit + length - prompt.shape[1]
        output = super().generate(None, generation_config, *args, **kwargs)
        sequences = output if isinstance(output, Tensor) else output.sequences
        prompt = prompt.repeat_interleave(len(sequences) // len(prompt), 0)
        sequences = torch.cat([prompt.to(sequences.device), sequences[:, length:]], 1)
        if isinstance(output, Tensor):
            return sequences
        output.sequences = sequences
        return _without_caches(output)

    def _maybe_prepare_encoder_kwargs_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict[str, Any], *args: Any
    ) -> dict[str, Any]:
        """Position the tokens of images whose regions are known, before beams multiply them."""
        outputs = model_kwargs.get("mm_encoder_outputs") or {}
        image: Any = outputs.get("image")
        if getattr(image, "regions", None) is not None:
            past = _past_length(model_kwargs)
            ids = inputs_tensor
            if inputs_tensor.ndim == 3:
                given = model_kwargs.get("input_ids")
                ids = given if given is not None and given.shape[1] else self.model.ids_of(None, inputs_tensor)
            whole = model_kwargs.get("position_ids")
            if whole is not None:
                mask = model_kwargs.get("attention_mask")
                new = self.model.position(
                    whole[..., past:], ids[:, past:], mask if mask is None else mask[:, past:], image.regions
                )
                model_kwargs["position_ids"] = torch.cat([whole[..., :past].to(new.dtype), new], -1)
            without = type(image)(**image)  # its fields, without the regions
            model_kwargs["mm_encoder_outputs"] = outputs | {"image": without}
        return super()._maybe_prepare_encoder_kwargs_for_generation(inputs_tensor, model_kwargs, *args)

    def _encoded(
        self, kwargs: dict[str, Any], ids: Tensor, *, left: bool | None
    ) -> tuple[dict[str, Any], Layout | None]:
        """Return arguments with encoded images in place of pixels, and how a prompt for patches was rewritten."""
        kwargs = dict(kwargs)
        past, mask = _past_length(kwargs), kwargs.get("attention_mask")
        new_ids, new_mask = ids[:, past:], mask if mask is None or not past else mask[:, past:]
        pixel_values = kwargs.pop("pixel_values")
        given = self.model.take_inputs(kwargs)
        encoded, blocks = self.model.encode_images(new_ids, new_mask, pixel_values, **given)
        found, written = blocks[:, 2].tolist(), encoded.patches.num_placeholders
        if fits_blocks(found, encoded.lengths):
            kwargs["mm_encoder_outputs"] = {"image": self.model.as_output(encoded, blocks)}
            return kwargs, None
        fixed = [name for name in _OF_COLUMNS if kwargs.get(name) is not None and kwargs[name] is not False]
        is_stock = fits_blocks(found, written) or _is_one_each(blocks, written, new_ids, new_mask)
        if fixed or not is_stock:
            check_blocks(blocks, encoded.lengths, written, new_ids, new_mask)
        prompt = {"input_ids": ids, "attention_mask": mask, "labels": kwargs.get("labels")}
        prompt |= {name: kwargs.get(name) for name in _PER_TOKEN}
        laid = self._rewrite(encoded, prompt, given, left=left)
        return kwargs | laid.inputs, laid.layout

    def _rewrite(
        self,
        encoded: EncodedImages,
        prompt: Mapping[str, Tensor | None],
        given: Mapping[str, Any],
        *,
        num_images: Sequence[int] | None = None,
        left: bool | None = None,
    ) -> RegionInputs:
        """Write a placeholder for each token of encoded images into prompts."""
        if num_images is not None and not isinstance(num_images, Sequence | Tensor):
            raise DTypeError(f"num_images must have a number per sample; got {num_images!r}.")
        input_ids, attention_mask = prompt["input_ids"], prompt["attention_mask"]
        views, image_id = encoded.patches.views, self.config.image_token_id
        if left is None:
            left = attention_mask is not None and attention_mask.ndim == 2 and not bool(attention_mask[:, 0].all())
        layout = lay_out(
            input_ids,  # type: ignore[arg-type]
            attention_mask,
            image_token_id=image_id,
            counts=encoded.lengths,
            written=encoded.patches.num_placeholders,
            num_images=None if num_images is None else _blocks_per_sample(num_images, views),
            left=left,
        )
        ids = layout.put(input_ids, _padding_id(self.config))  # type: ignore[arg-type]
        is_placeholder = (ids == image_id) & layout.mask.bool()
        laid: dict[str, Any] = {"input_ids": ids, "attention_mask": layout.mask}
        if prompt.get("labels") is not None:
            laid["labels"] = layout.put(prompt["labels"], -100).masked_fill(ids == image_id, -100)  # type: ignore[arg-type]
        for name in _PER_TOKEN:
            if prompt.get(name) is not None:
                laid[name] = layout.put(prompt[name], 0)  # type: ignore[arg-type]
        if self.model.token_types is not None:
            laid.setdefault(self.model.token_types, is_placeholder.long())
        held = [count for count in is_placeholder.sum(1).tolist() if count]
        columns = is_placeholder.masked_scatter(is_placeholder, (encoded.region >= 0).to(ids.device))
        output = self.model._output(encoded, held)
        laid |= self.model.positions_of(ids, layout.mask, encoded.regions, **given)
        laid["mm_encoder_outputs"] = {"image": output}
        return RegionInputs(laid, encoded.regions, layout, columns, views, encoded)


def adopt(module: Any, kind: type[Any]) -> None:
    """Let a module be of a subclass of its class."""
    module.__class__ = kind


def _is_one_each(blocks: Tensor, written: Sequence[int], input_ids: Tensor, attention_mask: Any) -> bool:
    """Return whether a prompt has one placeholder per block, each followed by a token: it was not cut there."""
    if blocks[:, 2].tolist() != [1] * len(written):
        return False
    inside = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    last = (inside * torch.arange(1, inside.shape[1] + 1, device=inside.device)).amax(1) - 1
    return bool((blocks[:, 1] < last[blocks[:, 0]]).all())


def _past_length(kwargs: Mapping[str, Any]) -> int:
    """Return the number of columns that a cache holds."""
    caches = [kwargs[name] for name in CACHES if kwargs.get(name) is not None]
    return int(caches[0].get_seq_length()) if caches else 0


def _without_caches(output: Any) -> Any:
    """Return an output without the cache, whose columns are not those of the caller."""
    made = type(output)(**{name: value for name, value in output.items() if name not in CACHES})
    if hasattr(output, "image_outputs"):
        made.image_outputs = output.image_outputs
    return made


def _blocks_per_sample(num_images: Sequence[int], views: Sequence[View]) -> list[int]:
    """Return how many blocks of placeholders each sample has, whose images are counted."""
    blocks = [len({view.run for view in views if view.image == image}) for image in range(count_images(views))]
    ends = list(itertools.accumulate([int(one) for one in num_images], initial=0))
    if ends[-1] != len(blocks):
        raise ShapeError(f"num_images must add up to the {len(blocks)} images; got {list(num_images)}.")
    return [sum(blocks[start:end]) for start, end in itertools.pairwise(ends)]


def _padding_id(config: Any) -> int:
    padding = getattr(config.get_text_config(), "pad_token_id", None)
    return 0 if padding is None else int(padding)
