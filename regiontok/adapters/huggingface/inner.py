"""Region models inside ``*ForConditionalGeneration``: as many region tokens as the prompt has placeholders.

The number of regions is known before an image is encoded wherever there is a budget, so the prompt can be written with
one placeholder per region (`region_processor`). The inner model then never changes the length of a sequence: trainers,
engines and caches that call it, with or without the outer class around it, see the columns of their own prompt.
Tested with transformers 5.24.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regiontok._require import require
from regiontok.adapters.huggingface.encoding import EncodedImages, Patches, Prompt, RegionEncoderMixin, per_image
from regiontok.adapters.huggingface.placeholders import check_blocks, find_blocks, fits_blocks
from regiontok.budgets import Budget, Keep
from regiontok.choices import PROMPT
from regiontok.downsample import Masks
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from regiontok.pooling import MeanPool
from regiontok.regions import Regions
from regiontok.views import count_images

transformers = require("transformers", extra="hf")

SIDE_INPUTS = ("masks", "image_sizes", "num_regions", "keep")
"""Arguments of every region model that its stock class does not have."""
CACHES = ("cache", "past_key_values")
_OF_TEXT = ("language_model", "text_model", "lm_head")
_OTHER_MEDIA = {"pixel_values_videos": "videos", "input_features": "sounds"}
_OF_CONFIG = ("vision_feature_layer", "vision_feature_select_strategy")


class RegionModelMixin(RegionEncoderMixin):
    """Region tokens for an inner model of transformers, such as ``LlavaModel``, mixed in before it.

    ``forward`` takes the arguments of the stock class and those below; other arguments are rejected. Each block of
    placeholders must have the length of its image's budget. A prompt with a placeholder for every patch gives the
    result of the stock model, to the bit. ``output.image_outputs.regions`` are the `Regions`.

    Shape:
        masks: For sources that take masks: a list with the masks of each image of the batch; see `Regionizer`.
        image_sizes: Height and width of each image before preprocessing, ``(images, 2)``, so that masks of another size
            are rejected, and padding is in no region; by default masks give it, or all patches show the image.
        num_regions: Budget of tokens instead of the Regionizer's own, one number or one per image.
        keep: The same budget as a fraction of the valid patches.
    """

    def pack_features(self, output: Any) -> Any:
        """Return encoded features, a list of ``(tokens, text_dim)``, as the stock class takes them."""
        return output

    def position(
        self, position_ids: Any, input_ids: Tensor, attention_mask: Any, regions: Regions, **inputs: Any
    ) -> Any:
        """Return the positions of a prompt whose regions are known; as they are by default."""
        return position_ids

    def positions_of(self, input_ids: Tensor, mask: Tensor, regions: Regions, **inputs: Any) -> dict[str, Any]:
        """Return the positions that a rewritten prompt needs; none by default."""
        return {}

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mm_encoder_outputs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the stock model on region tokens; see `RegionModelMixin` for further arguments."""
        reject_other_media(kwargs)
        outputs = dict(mm_encoder_outputs or {})
        inputs = self.take_inputs(kwargs)
        if pixel_values is not None:
            if outputs.get("image") is not None:
                raise ValueRangeError("pixel_values and mm_encoder_outputs both hold images. Pass one of them.")
            ids = self.ids_of(input_ids, inputs_embeds)
            outputs["image"] = self.encode_prompt(ids, attention_mask, pixel_values, **inputs)
        image: Any = outputs.get("image")
        if image is None and not any(kwargs.get(name) is not None for name in CACHES):
            self.reject_missing_pixels(input_ids, inputs)
        if getattr(image, "regions", None) is not None:
            ids = self.ids_of(input_ids, inputs_embeds)
            position_ids = self.position(position_ids, ids, attention_mask, image.regions, **kwargs)
        if image is not None:
            outputs["image"] = self.pack_features(image)
        return_dict = kwargs.pop("return_dict", None)
        output = self._inner.forward(
            self,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=outputs or None,
            return_dict=True,
            **kwargs,
        )
        if image is not None:
            output.image_outputs = image
        elif self.training and torch.is_grad_enabled():
            output.last_hidden_state = output.last_hidden_state + self._nothing().to(output.last_hidden_state)
        as_tuple = return_dict is False or (return_dict is None and not getattr(self.config, "return_dict", True))
        return output.to_tuple() if as_tuple else output

    def encode_prompt(self, input_ids: Tensor, attention_mask: Any, pixel_values: Tensor, **inputs: Any) -> Any:
        """Encode the images of a batch as the region tokens that its prompts have placeholders for.

        Args:
            input_ids: ``(B, columns)``.
            attention_mask: ``(B, columns)``, 0 at padding; None for no padding.
            pixel_values: The images of all samples, in the order of their placeholders.
            inputs: The side inputs of `RegionModelMixin` and what `encode_patches` takes.

        Returns:
            What ``forward`` and ``generate`` take as ``mm_encoder_outputs["image"]``, with the `Regions` as
            ``regions`` and their views as ``views``.

        Raises:
            ShapeError: Blocks of placeholders that do not have the lengths of the budgets.
        """
        encoded, blocks = self.encode_images(input_ids, attention_mask, pixel_values, **inputs)
        check_blocks(blocks, encoded.lengths, encoded.patches.num_placeholders, input_ids, attention_mask)
        return self.as_output(encoded, blocks)

    def encode_images(
        self,
        input_ids: Tensor,
        attention_mask: Any,
        pixel_values: Tensor,
        *,
        masks: Sequence[Masks] | None = None,
        image_sizes: Any = None,
        num_regions: Budget | None = None,
        keep: Keep | None = None,
        **inputs: Any,
    ) -> tuple[EncodedImages, Tensor]:
        """Encode images, whatever the lengths of the blocks of placeholders; return these blocks too."""
        if not isinstance(pixel_values, Tensor):
            raise DTypeError(
                f"pixel_values must be a tensor, as the processor returns it; got {type(pixel_values).__name__}."
            )
        blocks = find_blocks(input_ids, attention_mask, self.config.image_token_id)
        prompt = Prompt(input_ids, blocks, num_regions, keep)
        patches, sizes, valid = self._encode(pixel_values, image_sizes, inputs, prompt)
        whole: list[bool] | None = None
        if num_regions is None and keep is None and self.regionizer.config.num_regions == PROMPT:
            num_regions, whole = self._read_budgets(blocks, patches)
            valid = [None if whole[view.image] else mask for view, mask in zip(patches.views, valid, strict=True)]
        return self._encode_regions(patches, masks, sizes, valid, num_regions, keep, whole=whole), blocks

    def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        """Return region tokens of images without a prompt, a tensor per image, by the Regionizer's own budget."""
        bound = inspect.signature(self._inner.get_image_features).bind_partial(self, *args, **kwargs).arguments
        bound.pop("self")
        inputs = {**bound.pop("kwargs", {}), **bound}
        pixel_values = inputs.pop("pixel_values")
        names = (*SIDE_INPUTS, *self.encoder_inputs)
        inputs = {name: inputs[name] for name in names if inputs.get(name) is not None}
        masks = inputs.pop("masks", None)
        budget = {name: inputs.pop(name, None) for name in ("num_regions", "keep")}
        patches, sizes, valid = self._encode(pixel_values, inputs.pop("image_sizes", None), inputs)
        encoded = self._encode_regions(patches, masks, sizes, valid, budget["num_regions"], budget["keep"])
        blocks_of = [0] * count_images(patches.views)
        for block, image in sorted({(view.run, view.image) for view in patches.views}):
            blocks_of[image] += encoded.lengths[block]
        return self._output(encoded, blocks_of)

    def ids_of(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Return the ids of a prompt, or of its embeddings those of placeholders and -1 elsewhere."""
        if input_ids is not None:
            return input_ids
        if inputs_embeds is None:
            raise ValueRangeError("pixel_values need input_ids, whose placeholders they fill. Pass both.")
        token = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
        is_placeholder = (inputs_embeds == self.get_input_embeddings()(token)).all(-1)
        return torch.where(is_placeholder, self.config.image_token_id, -1)

    def take_inputs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of `encode_images` among those of ``forward``; remove those that only it takes."""
        for name in _OF_CONFIG:
            if kwargs.get(name) not in (None, getattr(self.config, name, None)):
                raise ValueRangeError(f"{name} is the config's, for which the regions are made; got {kwargs[name]}.")
        stock = _parameters(self._inner.forward)
        taken = {}
        for name in (*SIDE_INPUTS, *self.encoder_inputs):
            value = kwargs.get(name) if name in stock else kwargs.pop(name, None)
            if value is not None:
                taken[name] = value
        return taken

    def reject_missing_pixels(self, input_ids: Tensor | None, inputs: Mapping[str, Any]) -> None:
        """Reject what belongs to images where none came."""
        if inputs.get("masks"):
            count = len(inputs["masks"])
            raise ValueRangeError(f"there are masks of {count} images and no pixel_values. Pass both or neither.")
        if inputs.get("num_regions") is not None or inputs.get("keep") is not None:
            raise ValueRangeError("there is a budget of tokens for images and no pixel_values. Pass both or neither.")
        count = 0 if input_ids is None else int((input_ids == self.config.image_token_id).sum())
        if count:
            raise ShapeError(f"the samples hold {count} placeholders of images, and no pixel_values came. Pass both.")

    def as_output(self, encoded: EncodedImages, blocks: Tensor) -> Any:
        """Return encoded images as the stock class and ``generate`` take them: a tensor per sample with images."""
        lengths = blocks[:, 2].tolist()
        samples = blocks[:, 0].tolist()
        per_sample = [0] * (1 + max(samples, default=-1))
        for sample, length in zip(samples, lengths, strict=True):
            per_sample[sample] += length
        return self._output(encoded, [count for count in per_sample if count])

    def _output(self, encoded: EncodedImages, sizes: list[int]) -> Any:
        outputs = transformers.modeling_outputs
        parts = list(encoded.values.split(sizes))
        layers = encoded.patches.layers
        if layers:
            pool = MeanPool()
            deep = [list(pool(layer, encoded.regions).values.split(sizes)) for layer in layers]
            made = require(self._inner.__module__, extra="hf").BaseModelOutputWithDeepstackFeatures(
                pooler_output=parts, deepstack_features=deep
            )
        else:
            made = outputs.BaseModelOutputWithPooling(pooler_output=parts)
        made.regions, made.views = encoded.regions, encoded.patches.views
        return made

    def _read_budgets(self, blocks: Tensor, patches: Patches) -> tuple[list[int], list[bool]]:
        """Return the budget of each image that its placeholders ask for, and whether they are the stock processor's."""
        lengths, written, views = blocks[:, 2].tolist(), patches.num_placeholders, patches.views
        if fits_blocks(lengths, written):
            lengths = written
        if len(lengths) != len(written):
            raise ShapeError(
                f"the prompts hold {len(lengths)} blocks of placeholders, {lengths} long, and the images need "
                f"{len(written)}. Write a block for each, with other tokens between them, or pass num_regions."
            )
        image_of = {view.run: view.image for view in views}
        stock = [True] * count_images(views)
        for block, (count, whole) in enumerate(zip(lengths, written, strict=True)):
            stock[image_of[block]] &= count == whole
        budgets = [0] * len(stock)
        for block, count in enumerate(lengths):
            budgets[image_of[block]] += count
        newlines = self.count_newlines(views, stock)
        for image, (count, most) in enumerate(
            zip(budgets, per_image(views, [view.patches for view in views]), strict=True)
        ):
            if count - newlines[image] > most and not stock[image]:
                raise ShapeError(
                    f"image {image} has {count} placeholders and {most} patches. Write at most as many placeholders as "
                    "patches."
                )
        return [max(1, count - more) for count, more in zip(budgets, newlines, strict=True)], stock

    def _nothing(self) -> Tensor:
        """Return 0 with a gradient path to the Regionizer and the projector, by a blank image.

        Ranks that train together wait for the same gradients: a rank without an image would stop the others forever.
        """
        named: Any = self.named_parameters()
        if not any(weight.requires_grad for name, weight in named if not any(part in name for part in _OF_TEXT)):
            return torch.zeros(())
        patches = self.encode_patches(**self.blank_image())
        features = self.regionizer.normalize(patches.features)
        single = Regions.from_labels([torch.zeros_like(grid[..., 0], dtype=torch.int64) for grid in features])
        tokens = self.regionizer.pool(features, single).map(self.projector)
        values, _ = self.arrange(tokens, patches.views, [False] * count_images(patches.views))
        return 0.0 * (values.sum() + sum(grid.sum() for layer in patches.layers for grid in layer))

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the Regionizer as it does itself; transformers skips weights that were loaded."""
        regionizer = self._modules.get("regionizer")
        if regionizer is not None and any(module is part for part in regionizer.modules()):
            regionizer.reset_parameters()
        else:
            super()._init_weights(module)


@functools.cache
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    """Return the names of a method's arguments; read once, since generation calls it for every token."""
    return frozenset(inspect.signature(forward).parameters)


def reject_other_media(kwargs: Mapping[str, Any]) -> None:
    """Raise ValueRangeError for videos and sounds, which are not supported."""
    for name, media in _OTHER_MEDIA.items():
        if kwargs.get(name) is not None:
            raise ValueRangeError(f"{media} are not cut into regions. Leave {name} out.")
