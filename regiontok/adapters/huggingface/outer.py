"""Outer region models, such as `RegionLlavaForConditionalGeneration`: prompts that were not written for regions.

They use the stock ``forward`` and ``generate``, since the inner model makes the region tokens (`inner`). This module
rewrites prompts of the stock processor for them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regiontok.adapters.huggingface._transformers import CACHES
from regiontok.adapters.huggingface.inner import RegionModelMixin
from regiontok.adapters.huggingface.layouts import PER_TOKEN, Expanded, RegionInputs, rewrite
from regiontok.adapters.huggingface.media import MEDIA, SIDE_INPUTS
from regiontok.adapters.huggingface.patches import Patches
from regiontok.adapters.huggingface.videos import VIDEO_SIDE_INPUTS
from regiontok.errors import ValueRangeError
from regiontok.placeholders import Layout, check_blocks, fits_blocks
from regiontok.regionizer import Regionizer
from regiontok.tokens import RegionTokens

_FIXED_COLUMNS = (
    "position_ids", "inputs_embeds", *CACHES, "output_hidden_states", "output_attentions", "cu_seq_lens_q",
    "cu_seq_lens_k", "seq_idx", "stopping_criteria", "logits_processor", "prefix_allowed_tokens_fn", "shift_labels",
)  # fmt: skip
"""Arguments with one entry per column of the caller's prompt, and requests for such results: they prevent rewriting."""


class RegionMixin:
    """Mixin that adds region tokens to a ``*ForConditionalGeneration`` of transformers.

    ``forward`` and ``generate`` are those of the stock class and also take the side inputs of `RegionModelMixin`. Write
    prompts with `region_processor`. ``generate`` also accepts prompts of the stock processor, and so does ``forward``
    with labels: they are rewritten as by `expand`, and logits are returned in the caller's columns. ``forward`` without
    labels rejects them, since its output would have other columns than the prompt.
    """

    model: RegionModelMixin
    config: Any
    generation_config: Any

    _stock: type[Any]

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        self.model.__class__ = self._inner
        self.model.attach()
        self.post_init()  # type: ignore[attr-defined]

    _inner: type[Any]
    """The region class of the inner model."""

    @property
    def regionizer(self) -> Regionizer:
        """The Regionizer, which is part of the inner model."""
        return self.model.regionizer

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a Regionizer is added to the inner model."""
        if name == "regionizer":  # torch registers modules before it calls a property's setter
            if self.device.type != "meta":  # type: ignore[attr-defined]
                value = value.to(device=self.device, dtype=self.dtype)  # type: ignore[attr-defined]
            self.model.attach(value)
            self.config.regiontok = value.config.to_dict()
        else:
            super().__setattr__(name, value)

    @property
    def knows_tile_layout(self) -> bool:
        """Whether each `Tile` has the part of the image that it shows, so that the Regionizer needs no geometry."""
        return self.model.knows_tile_layout

    @property
    def encoder_inputs(self) -> tuple[str, ...]:
        """Names of the encoder's inputs other than pixels."""
        return self.model.encoder_inputs

    @property
    def patch_dim(self) -> int:
        """Dimension of the patch features that are pooled."""
        return self.model.patch_dim

    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Return the patch features of a batch's images."""
        return self.model.encode_patches(pixel_values, **inputs)

    def blank_image(self) -> dict[str, Any]:
        """Return the smallest valid input of `encode_patches`."""
        return self.model.blank_image()

    def encode_regions(self, pixel_values: Tensor, **inputs: Any) -> RegionTokens:
        """Return region tokens of images without a prompt; see `RegionEncoderMixin.encode_regions`."""
        return self.model.encode_regions(pixel_values, **inputs)

    def encode_video_regions(self, pixel_values_videos: Tensor, **inputs: Any) -> RegionTokens:
        """Return region tokens of videos without a prompt; see `VideoEncoderMixin.encode_video_regions`."""
        return self.model.encode_video_regions(pixel_values_videos, **inputs)

    def num_video_tokens(self, pixel_values_videos: Tensor | None = None, **options: Any) -> list[int]:
        """Return the number of tokens of each video; see `VideoEncoderMixin.num_video_tokens`."""
        return self.model.num_video_tokens(pixel_values_videos, **options)

    def num_tokens(self, image_sizes: Any = None, **options: Any) -> list[int]:
        """Return the number of tokens of each image before it is encoded; see `RegionEncoderMixin.num_tokens`."""
        return self.model.num_tokens(image_sizes, **options)

    def expand(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        *,
        pixel_values_videos: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_images: Sequence[int] | None = None,
        left: bool | None = None,
        encoded: Mapping[str, Expanded] | None = None,
        **inputs: Any,
    ) -> RegionInputs:
        """Encode the images and videos of a batch and rewrite its prompts with one placeholder per token.

        This also supports Regionizers without a budget, such as thresholds, ``explained_variance`` and masks, whose
        number of regions is known only after encoding. Pass ``inputs`` of the result to ``forward``, ``generate`` or a
        trainer.

        Args:
            input_ids: ``(B, columns)``: prompts with one placeholder per image, or with the blocks of a processor.
            pixel_values: Images of all samples, in the order of their placeholders.
            pixel_values_videos: Videos of all samples, in the order of their placeholders.
            attention_mask: ``(B, columns)``, 0 at padding.
            labels: ``(B, columns)``; labels of placeholders become -100.
            num_images: Number of images of each sample, to check its placeholders.
            left: Pad on the left; by default on the side on which ``attention_mask`` has padding.
            encoded: ``media`` of an earlier result for the same images and videos, which are then not encoded again.
            inputs: Side inputs of `RegionModelMixin`, inputs of the family's encoder, and token type ids.

        Raises:
            ShapeError, DTypeError, ValueRangeError: Placeholders, masks or sizes do not match the images.
        """
        side_inputs = {*SIDE_INPUTS, *VIDEO_SIDE_INPUTS, *self.encoder_inputs, *self.model.video_inputs, *PER_TOKEN}
        unknown = sorted(set(inputs) - side_inputs)
        if unknown:
            raise ValueRangeError(f"expand takes no {unknown[0]}. Leave it out.")
        passed = {name: value for name, value in inputs.items() if value is not None}
        if encoded is None:
            pixels = {"image": pixel_values, "video": pixel_values_videos}
            self.model.reject_other_media(pixels | {"pixel_values_videos": pixel_values_videos})
            media = self.model.encode_media(input_ids, attention_mask, pixels, passed)
            if not media:
                raise ValueRangeError("expand needs pixel_values or pixel_values_videos. Pass one of them.")
        else:
            media = {medium: part.encoded for medium, part in encoded.items()}
        prompt = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        prompt |= {name: inputs.get(name) for name in PER_TOKEN}
        return rewrite(self.model, media, prompt, passed, num_images=num_images, left=left)

    def forward(self, **kwargs: Any) -> Any:
        """Run the stock model on region tokens; see `RegionMixin` and `RegionModelMixin`."""
        has_labels = kwargs.get("labels") is not None and kwargs.get("mm_encoder_outputs") is None
        if not has_labels or not _has_pixels(kwargs):
            return super().forward(**kwargs)
        logits_to_keep = kwargs.get("logits_to_keep")
        if logits_to_keep is not None and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            raise ValueRangeError("labels need all logits, and logits_to_keep selects some. Pass one of them.")
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
        """Generate with the stock method, from region tokens.

        A prompt of the stock processor is rewritten as by `expand`. The result starts with the caller's prompt all the
        same: ``max_length`` and ``min_length`` count its length, and no cache is returned.
        """
        self.model.reject_other_media(kwargs)
        if self.model.training and self.regionizer.config.order == "random":
            raise ValueRangeError(
                "with order='random' in training mode, generate draws another order of tokens than a later forward. "
                "Call model.eval() to generate, or use another order for a trainer that samples."
            )
        ids = kwargs.get("input_ids", inputs)
        if not _has_pixels(kwargs):
            has_images = kwargs.get("mm_encoder_outputs") is not None
            if not has_images and not getattr(generation_config, "is_assistant", False):
                self.model.reject_missing_pixels(None if ids is None else ids[:, _past_length(kwargs) :], kwargs)
            for name in (*SIDE_INPUTS, *VIDEO_SIDE_INPUTS, "tilings"):
                kwargs.pop(name, None)
            return super().generate(inputs, generation_config, *args, **kwargs)
        prompt = self.model.ids_of(ids, kwargs.get("inputs_embeds"))
        kwargs, layout = self._encoded(kwargs, prompt, left=True)
        if layout is None:
            return super().generate(inputs, generation_config, *args, **kwargs)
        config = generation_config or self.generation_config
        length = layout.source.shape[1]
        max_new_tokens = kwargs.get("max_new_tokens") or config.max_new_tokens  # takes precedence over max_length
        for name in ("max_length", "min_length"):
            limit = kwargs.get(name) or getattr(config, name)
            if limit and not (name == "max_length" and max_new_tokens):
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
        """Compute positions from regions here, before beam search repeats the images without their regions."""
        outputs = model_kwargs.get("mm_encoder_outputs") or {}
        if any(getattr(output, "regions", None) is not None for output in outputs.values()):
            past = _past_length(model_kwargs)
            ids = inputs_tensor
            if inputs_tensor.ndim == 3:
                prompt = model_kwargs.get("input_ids")
                ids = prompt if prompt is not None and prompt.shape[1] else self.model.ids_of(None, inputs_tensor)
            positions = model_kwargs.get("position_ids")
            if positions is not None:
                mask = model_kwargs.get("attention_mask")
                new = self.model.position(
                    positions[..., past:], ids[:, past:], mask if mask is None else mask[:, past:], outputs
                )
                model_kwargs["position_ids"] = torch.cat([positions[..., :past].to(new.dtype), new], -1)
            # Copies have the fields of their class only, without regions.
            model_kwargs["mm_encoder_outputs"] = {
                medium: type(output)(**output) if hasattr(output, "regions") else output
                for medium, output in outputs.items()
            }
        return super()._maybe_prepare_encoder_kwargs_for_generation(inputs_tensor, model_kwargs, *args)

    def _encoded(
        self, kwargs: dict[str, Any], ids: Tensor, *, left: bool | None
    ) -> tuple[dict[str, Any], Layout | None]:
        """Return arguments with encoded images instead of pixels, and the layout if the prompt was rewritten."""
        kwargs = dict(kwargs)
        past, mask = _past_length(kwargs), kwargs.get("attention_mask")
        new_ids, new_mask = ids[:, past:], mask if mask is None or not past else mask[:, past:]
        pixels = {medium: kwargs.pop(name, None) for medium, name in MEDIA.items()}
        inputs = self.model.take_inputs(kwargs)
        types = _types_of(inputs, new_ids)
        inputs |= {} if types is None else {"mm_token_type_ids": types}
        media = self.model.encode_media(new_ids, new_mask, pixels, inputs)
        present = self.model.media_of(media | (kwargs.get("mm_encoder_outputs") or {}))
        self.model.reject_missing_pixels(new_ids, {"mm_token_type_ids": types}, present)
        blocks = {medium: self.model.find_blocks(new_ids, new_mask, medium, types) for medium in media}
        if all(fits_blocks(blocks[medium][:, 2].tolist(), encoded.lengths) for medium, encoded in media.items()):
            kwargs["mm_encoder_outputs"] = self.model.as_outputs(media, new_ids, new_mask, types)
            return kwargs, None
        is_fixed = any(kwargs.get(name) is not None and kwargs[name] is not False for name in _FIXED_COLUMNS)
        for medium, encoded in media.items():
            stock_lengths, lengths = encoded.patches.num_placeholders, blocks[medium][:, 2].tolist()
            is_writable = fits_blocks(lengths, stock_lengths) or fits_blocks(lengths, encoded.lengths)
            if is_fixed or not (is_writable or _has_one_per_block(blocks[medium], stock_lengths, new_ids, new_mask)):
                check_blocks(blocks[medium], encoded.lengths, stock_lengths, new_ids, new_mask)
        prompt = {"input_ids": ids, "attention_mask": mask, "labels": kwargs.get("labels")}
        prompt |= {name: kwargs.get(name) for name in PER_TOKEN}
        if types is not None and prompt["mm_token_type_ids"] is None and "mm_token_type_ids" in inputs:
            prompt["mm_token_type_ids"] = types
        expanded = rewrite(self.model, media, prompt, inputs, left=left)
        return kwargs | expanded.inputs, expanded.layout


def _has_pixels(kwargs: Mapping[str, Any]) -> bool:
    return any(kwargs.get(name) is not None for name in MEDIA.values())


def _types_of(inputs: Mapping[str, Any], input_ids: Tensor) -> Tensor | None:
    """Return ``mm_token_type_ids`` of the last columns, those of ``input_ids``."""
    types: Tensor | None = inputs.get("mm_token_type_ids")
    return types if types is None else types[:, types.shape[1] - input_ids.shape[1] :]


def _has_one_per_block(blocks: Tensor, num_placeholders: Sequence[int], input_ids: Tensor, attention_mask: Any) -> bool:
    """Return whether a prompt has one placeholder per block, none of them last, where a block may be truncated."""
    if blocks[:, 2].tolist() != [1] * len(num_placeholders):
        return False
    is_token = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    last = (is_token * torch.arange(1, is_token.shape[1] + 1, device=is_token.device)).amax(1) - 1
    return bool((blocks[:, 1] < last[blocks[:, 0]]).all())


def _past_length(kwargs: Mapping[str, Any]) -> int:
    """Return the number of columns in the cache."""
    caches = [kwargs[name] for name in CACHES if kwargs.get(name) is not None]
    return int(caches[0].get_seq_length()) if caches else 0


def _without_caches(output: Any) -> Any:
    """Return an output without the cache, whose columns differ from the caller's."""
    copied = type(output)(**{name: value for name, value in output.items() if name not in CACHES})
    for name in ("image_outputs", "video_outputs"):
        if hasattr(output, name):
            setattr(copied, name, getattr(output, name))
    return copied
