"""Encode the images and videos of prompts, in the format in which stock classes take encoded images."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from regiontok._require import require
from regiontok.adapters.huggingface._transformers import find_deepstack_output
from regiontok.adapters.huggingface.patches import EncodedImages, Patches, Prompt, per_image
from regiontok.adapters.huggingface.videos import VIDEO_SIDE_INPUTS, VideoEncoderMixin
from regiontok.budgets import Budget, Keep
from regiontok.choices import PROMPT
from regiontok.downsample import Masks
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from regiontok.placeholders import find_blocks, fits_blocks
from regiontok.pooling import MeanPool
from regiontok.tiles import count_images

transformers = require("transformers", extra="hf")

SIDE_INPUTS = ("masks", "image_sizes", "num_regions", "keep")
"""Arguments that every region model has in addition to those of its stock class."""
PLACEHOLDER = -2
"""Id that replaces the placeholders of one medium, since some families have one token for images and videos."""
MEDIA = {"image": "pixel_values", "video": "pixel_values_videos"}
"""Media, by the names that transformers gives to their encoded form, and the names of their pixels."""
_CONFIG_ONLY = ("vision_feature_layer", "vision_feature_select_strategy")
"""Arguments of stock classes that must agree with the config, since the Regionizer's dimension depends on them."""


class PromptEncoderMixin(VideoEncoderMixin):
    """Encode images and videos of prompts, whose placeholders may give the budgets."""

    shares_placeholders: ClassVar[bool] = False
    """Whether frames of videos have the placeholders of images in prompts."""
    consumed_inputs: ClassVar[tuple[str, ...]] = ()
    """Names of inputs of the stock ``forward`` that it must not get with region tokens."""

    def encode_media(
        self, input_ids: Tensor, attention_mask: Any, pixels: Mapping[str, Tensor | None], inputs: Mapping[str, Any]
    ) -> dict[str, EncodedImages]:
        """Encode the images and videos of a batch without checking its prompts.

        Args:
            input_ids: ``(B, columns)``.
            attention_mask: ``(B, columns)``, 0 at padding; None if there is no padding.
            pixels: ``image`` and ``video`` with their pixels or None.
            inputs: Inputs of both, by name.
        """
        types, encoded = inputs.get("mm_token_type_ids"), {}
        for medium, value in pixels.items():
            if value is None:
                continue
            if not isinstance(value, Tensor):
                raise DTypeError(
                    f"{MEDIA[medium]} must be a tensor, as the processor returns it; got {type(value).__name__}."
                )
            blocks = self.find_blocks(input_ids, attention_mask, medium, types)
            names = {
                "image": (*SIDE_INPUTS, *self.encoder_inputs),
                "video": ("num_regions", "keep", *VIDEO_SIDE_INPUTS, *self.video_inputs),
            }[medium]
            chosen = {name: inputs[name] for name in names if inputs.get(name) is not None}
            if medium == "image":
                encoded[medium] = self._encode_images(input_ids, blocks, value, **chosen)
            else:
                encoded[medium] = self._encode_videos(blocks, value, **chosen)
        return encoded

    def _encode_images(
        self,
        input_ids: Tensor,
        blocks: Tensor,
        pixel_values: Tensor,
        *,
        masks: Sequence[Masks] | None = None,
        image_sizes: Any = None,
        num_regions: Budget | None = None,
        keep: Keep | None = None,
        **inputs: Any,
    ) -> EncodedImages:
        """Encode images; ``blocks`` are those of their placeholders."""
        prompt = Prompt(input_ids, blocks, num_regions, keep)
        patches, sizes, valid = self._encode(pixel_values, image_sizes, inputs, prompt)
        unmerged: list[bool] | None = None
        if num_regions is None and keep is None and self.regionizer.config.num_regions == PROMPT:
            num_regions, unmerged = self._read_budgets(blocks, patches)
            valid = [None if unmerged[tile.image] else mask for tile, mask in zip(patches.tiles, valid, strict=True)]
        return self._encode_regions(patches, masks, sizes, valid, num_regions, keep, unmerged=unmerged)

    def _encode_videos(
        self,
        blocks: Tensor,
        pixel_values_videos: Tensor,
        *,
        num_regions: Budget | None = None,
        keep: Keep | None = None,
        video_num_regions: Budget | None = None,
        video_keep: Keep | None = None,
        **inputs: Any,
    ) -> EncodedImages:
        """Encode videos; ``blocks`` are those of their placeholders."""
        patches = self.encode_videos(pixel_values_videos, **inputs)
        budget = self.video_budget(num_regions, keep, video_num_regions, video_keep)
        unmerged: list[bool] | None = None
        if budget == (None, None) and self.regionizer.config.num_regions == PROMPT:
            counts, unmerged = self.read_video_budgets(blocks[:, 2].tolist(), patches)
            budget = counts, None
        valid = self._valid_of_videos(patches)
        return self._encode_regions(patches, None, None, valid, *budget, unmerged=unmerged)

    def find_placeholders(self, input_ids: Tensor, medium: str, types: Tensor | None = None) -> Tensor:
        """Return the columns of the placeholders of images or videos, ``(B, columns)`` bool.

        Args:
            input_ids: ``(B, columns)``.
            medium: ``image`` or ``video``.
            types: ``mm_token_type_ids (B, columns)``, which some families need: 1 at images, 2 at videos.
        """
        return input_ids == self.config.image_token_id if medium == "image" else input_ids == self.config.video_token_id

    def mark(self, input_ids: Tensor, medium: str, types: Tensor | None = None) -> Tensor:
        """Return ``input_ids`` with `PLACEHOLDER` at the placeholders of one medium."""
        return input_ids.masked_fill(self.find_placeholders(input_ids, medium, types), PLACEHOLDER)

    def find_blocks(self, input_ids: Tensor, attention_mask: Any, medium: str, types: Tensor | None = None) -> Tensor:
        """Return the blocks of placeholders of a medium; see `regiontok.placeholders.find_blocks`."""
        return find_blocks(self.mark(input_ids, medium, types), attention_mask, PLACEHOLDER)

    def ids_of(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Return the ids of a prompt; of embeddings return the ids of placeholders, and -1 elsewhere."""
        if input_ids is not None:
            return input_ids
        if inputs_embeds is None:
            raise ValueRangeError("pixel_values need input_ids with their placeholders. Pass both.")
        tokens = [self.config.image_token_id, *([self.config.video_token_id] if self.accepts_videos else [])]
        ids = torch.full(inputs_embeds.shape[:2], -1, device=inputs_embeds.device)
        for token in tokens:
            embedding = self.get_input_embeddings()(torch.tensor(token, device=inputs_embeds.device))
            ids[(inputs_embeds == embedding).all(-1)] = token
        return ids

    def take_inputs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of `encode_media` from ``kwargs``; remove those that the stock class does not take."""
        for name in _CONFIG_ONLY:
            if kwargs.get(name) not in (None, getattr(self.config, name, None)):
                raise ValueRangeError(f"{name} must equal the value in the config; got {kwargs[name]}.")
        stock_names = _parameters(self._inner.forward)
        inputs = {}
        for name in dict.fromkeys((*SIDE_INPUTS, *self.encoder_inputs, *VIDEO_SIDE_INPUTS, *self.video_inputs)):
            is_kept = name in stock_names and name not in self.consumed_inputs
            value = kwargs.get(name) if is_kept else kwargs.pop(name, None)
            if value is not None:
                inputs[name] = value
        return inputs

    def reject_missing_pixels(
        self, input_ids: Tensor | None, inputs: Mapping[str, Any], present: Collection[str] = ()
    ) -> None:
        """Raise an error for placeholders, masks or a budget without pixels.

        Args:
            input_ids: ``(B, columns)``, or None.
            inputs: Inputs of the call.
            present: The media, of ``image`` and ``video``, whose pixels or encoded form the call has.
        """
        if inputs.get("masks") and "image" not in present:
            count = len(inputs["masks"])
            raise ValueRangeError(f"there are masks of {count} images and no pixel_values. Pass both or neither.")
        if not present and (inputs.get("num_regions") is not None or inputs.get("keep") is not None):
            raise ValueRangeError("there is a budget of tokens for images and no pixel_values. Pass both or neither.")
        if "video" not in present and any(inputs.get(name) is not None for name in VIDEO_SIDE_INPUTS):
            raise ValueRangeError(
                "there is a budget of tokens for videos and no pixel_values_videos. Pass both or neither."
            )
        for medium, name in MEDIA.items():
            if input_ids is None or medium in present:
                continue
            if medium == "video" and (present or not self.accepts_videos):  # an answer about images may contain it
                continue
            count = int(self.find_placeholders(input_ids, medium, inputs.get("mm_token_type_ids")).sum())
            if count:
                raise ShapeError(f"the prompts have {count} {medium} placeholders, and there are no {name}. Pass both.")

    def reject_other_media(self, kwargs: dict[str, Any]) -> None:
        """Raise ValueRangeError for sounds, and for videos if the stock class does not accept them."""
        if kwargs.get("input_features") is not None:
            raise ValueRangeError("sounds are not supported by region models. Leave input_features out.")
        if kwargs.get("pixel_values_videos") is not None and not self.accepts_videos:
            raise self._no_videos()

    def media_of(self, outputs: Mapping[str, Any]) -> Collection[str]:
        """Return the media of encoded images and videos. An output of families that share placeholders has both."""
        return tuple(MEDIA) if self.shares_placeholders and "image" in outputs else tuple(outputs)

    def as_outputs(
        self, encoded: Mapping[str, EncodedImages], input_ids: Tensor, attention_mask: Any, types: Tensor | None = None
    ) -> dict[str, Any]:
        """Return encoded images and videos in the format of ``generate``: one tensor per sample with images."""
        outputs, columns = {}, {}
        for medium, batch in encoded.items():
            columns[medium] = self.find_placeholders(input_ids, medium, types)
            if attention_mask is not None and attention_mask.ndim == 2:
                columns[medium] &= attention_mask.bool()
            per_sample = columns[medium].sum(1).tolist()
            outputs[medium] = self._output(batch, [count for count in per_sample if count])
        if self.shares_placeholders and "video" in outputs:
            return {"image": self._join(outputs, columns)}
        return outputs

    def _join(self, outputs: Mapping[str, Any], columns: Mapping[str, Tensor]) -> Any:
        """Return images and videos as one output, in the order of their placeholders."""
        if len(outputs) == 1:
            joined = outputs["video"]
            parts, offsets = joined.pooler_output, joined.offsets
        else:
            either = columns["image"] | columns["video"]
            is_video = columns["video"][either]

            def merge(image: Tensor, video: Tensor) -> Tensor:
                merged = image.new_empty(len(is_video), image.shape[1])
                return merged.index_put((~is_video,), image).index_put((is_video,), video)

            image, video = outputs["image"], outputs["video"]
            values = merge(torch.cat(image.pooler_output), torch.cat(video.pooler_output))
            parts = list(values.split([count for count in either.sum(1).tolist() if count]))
            offsets = None if video.offsets is None else merge(image.offsets, video.offsets)
        joined = transformers.modeling_outputs.BaseModelOutputWithPooling(pooler_output=parts)
        first = next(iter(outputs.values()))
        joined.regions, joined.tiles, joined.offsets, joined.media = first.regions, first.tiles, offsets, dict(outputs)
        return joined

    def _output(self, encoded: EncodedImages, sizes: list[int]) -> Any:
        """Return an output of transformers with the tokens in parts of ``sizes``, and the regions."""
        parts = list(encoded.values.split(sizes))
        if encoded.patches.layers:
            pool = MeanPool()
            layers = [list(pool(layer, encoded.regions).values.split(sizes)) for layer in encoded.patches.layers]
            output = find_deepstack_output(self._inner)(pooler_output=parts, deepstack_features=layers)
        else:
            output = transformers.modeling_outputs.BaseModelOutputWithPooling(pooler_output=parts)
        output.regions, output.tiles, output.offsets = encoded.regions, encoded.patches.tiles, encoded.offsets
        return output

    def _read_budgets(self, blocks: Tensor, patches: Patches) -> tuple[list[int], list[bool]]:
        """Return the budget of each image from its placeholders, and whether these are the stock processor's."""
        lengths, num_placeholders, tiles = blocks[:, 2].tolist(), patches.num_placeholders, patches.tiles
        if fits_blocks(lengths, num_placeholders):
            lengths = num_placeholders
        if len(lengths) != len(num_placeholders):
            raise ShapeError(
                f"the prompts have {len(lengths)} blocks of placeholders of lengths {lengths}, and the images need "
                f"{len(num_placeholders)}. Write a block for each, with other tokens between them, or pass num_regions."
            )
        image_of_block = {tile.block: tile.image for tile in tiles}
        unmerged = [True] * count_images(tiles)
        budgets = [0] * len(unmerged)
        for block, (length, stock_length) in enumerate(zip(lengths, num_placeholders, strict=True)):
            unmerged[image_of_block[block]] &= length == stock_length
            budgets[image_of_block[block]] += length
        newlines = self.count_newlines(tiles, unmerged)
        limits = per_image(tiles, [tile.patches for tile in tiles])
        for image, (count, limit) in enumerate(zip(budgets, limits, strict=True)):
            if count - newlines[image] > limit and not unmerged[image]:
                raise ShapeError(
                    f"image {image} has {count} placeholders and {limit} patches. Write at most one placeholder per "
                    "patch."
                )
        return [max(1, count - newline) for count, newline in zip(budgets, newlines, strict=True)], unmerged


@functools.cache
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    """Return the names of a method's arguments; cached, since generation calls it for every token."""
    return frozenset(inspect.signature(forward).parameters)
