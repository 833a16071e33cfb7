"""Inner region models, such as `RegionLlavaModel`: region tokens replace the placeholders of a prompt.

With a budget the number of regions is known before an image is encoded, so a prompt can be written with one placeholder
per region (`region_processor`). The inner model then never changes the length of a sequence. Trainers, engines and
caches rely on this, whether they call it directly or through the outer class.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regiontok.adapters.huggingface._transformers import CACHES
from regiontok.adapters.huggingface.media import MEDIA, SIDE_INPUTS, PromptEncoderMixin
from regiontok.adapters.huggingface.videos import VIDEO_SIDE_INPUTS
from regiontok.errors import ValueRangeError
from regiontok.placeholders import check_blocks
from regiontok.regions import Regions
from regiontok.tiles import count_images

_TEXT_MODULES = ("language_model", "text_model", "lm_head")


class RegionModelMixin(PromptEncoderMixin):
    """Mixin that adds region tokens to an inner model of transformers, such as ``LlavaModel``.

    ``forward`` takes the arguments of the stock class and those below; other arguments are rejected. Each block of
    placeholders must have one placeholder per region token of its image or video. If every patch is a region, the
    result equals that of the stock model bit for bit. ``output.image_outputs.regions`` are the `Regions` of the images
    of the batch, and ``output.video_outputs.regions`` those of the chunks of its videos.

    Shape:
        masks: One entry per image of the batch, for sources that use masks; see `Regionizer`.
        image_sizes: ``(images, 2)``: height and width of each image before preprocessing. Padding is then excluded from
            regions, and masks of another size are rejected. By default masks give the sizes, or all patches are valid.
        num_regions: Budget of tokens instead of the Regionizer's, one number or one per image.
        keep: The same budget as a fraction of the valid patches.
        video_num_regions: Budget of tokens of videos, one number or one per video, for families that accept videos. By
            default the budget for videos in the config; without one, the budget for images.
        video_keep: The same budget as a fraction of the patches.
    """

    def pack_features(self, output: Any) -> Any:
        """Return encoded images in the format of the stock class; by default a tensor per sample or image.

        Args:
            output: Output with ``pooler_output``, a list of ``(tokens, text_dim)``.
        """
        return output

    def pack_videos(self, output: Any) -> Any:
        """Return encoded videos in the format of the stock class; see `pack_features`."""
        return output

    def position(
        self, position_ids: Any, input_ids: Tensor, attention_mask: Any, outputs: Mapping[str, Any], **inputs: Any
    ) -> Any:
        """Return position ids that depend on regions; by default ``position_ids`` unchanged.

        Args:
            position_ids: Position ids of the caller, or None.
            input_ids: ``(B, columns)``.
            attention_mask: ``(B, columns)``, 0 at padding; None if there is no padding.
            outputs: Encoded images and videos, as `encode_prompt` returns them.
            inputs: Inputs of the stock ``get_rope_index``.
        """
        return position_ids

    def positions_of(
        self, input_ids: Tensor, mask: Tensor, outputs: Mapping[str, Any], **inputs: Any
    ) -> dict[str, Any]:
        """Return the position inputs of a rewritten prompt, for families that need them; by default none."""
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
        self.reject_other_media(kwargs)
        outputs = dict(mm_encoder_outputs or {})
        inputs = self.take_inputs(kwargs)
        pixels = {"image": pixel_values, "video": kwargs.pop("pixel_values_videos", None)}
        if any(value is not None for value in pixels.values()):
            for medium, value in pixels.items():
                if value is not None and outputs.get(medium) is not None:
                    raise ValueRangeError(f"{MEDIA[medium]} and mm_encoder_outputs both have {medium}s. Pass one.")
            ids = self.ids_of(input_ids, inputs_embeds)
            outputs |= self.encode_prompt(
                ids, attention_mask, pixel_values, pixel_values_videos=pixels["video"], **inputs
            )
        if not any(kwargs.get(name) is not None for name in CACHES):
            self.reject_missing_pixels(input_ids, inputs, self.media_of(outputs))
        if any(getattr(output, "regions", None) is not None for output in outputs.values()):
            ids = self.ids_of(input_ids, inputs_embeds)
            position_ids = self.position(position_ids, ids, attention_mask, outputs, **kwargs)
        pack = {"image": self.pack_features, "video": self.pack_videos}
        return_dict = kwargs.pop("return_dict", None)
        output = self._inner.forward(
            self,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs={medium: pack[medium](output) for medium, output in outputs.items()} or None,
            return_dict=True,
            **kwargs,
        )
        for medium, encoded in outputs.items():
            for name, part in (getattr(encoded, "media", None) or {medium: encoded}).items():
                setattr(output, f"{name}_outputs", part)
        if not outputs and self.training and torch.is_grad_enabled():
            output.last_hidden_state = output.last_hidden_state + self._zero().to(output.last_hidden_state)
        as_tuple = return_dict is False or (return_dict is None and not getattr(self.config, "return_dict", True))
        return output.to_tuple() if as_tuple else output

    def encode_prompt(
        self,
        input_ids: Tensor,
        attention_mask: Any,
        pixel_values: Tensor | None = None,
        *,
        pixel_values_videos: Tensor | None = None,
        **inputs: Any,
    ) -> dict[str, Any]:
        """Encode the images and videos of a batch, and check that its prompts have one placeholder per region token.

        Args:
            input_ids: ``(B, columns)``.
            attention_mask: ``(B, columns)``, 0 at padding; None if there is no padding.
            pixel_values: Images of all samples, in the order of their placeholders.
            pixel_values_videos: Videos of all samples, in the order of their placeholders.
            inputs: Side inputs of `RegionModelMixin` and inputs of `encode_patches` and `encode_clips`.

        Returns:
            Outputs to pass to ``forward`` or ``generate`` as ``mm_encoder_outputs``. The ``regions`` of an output are
            the `Regions` of the batch, and its ``tiles`` the `Tile` of each of their images.

        Raises:
            ShapeError: A block of placeholders does not have the length of its image or video.
        """
        pixels = {"image": pixel_values, "video": pixel_values_videos}
        encoded = self.encode_media(input_ids, attention_mask, pixels, inputs)
        types = inputs.get("mm_token_type_ids")
        for medium, batch in encoded.items():
            blocks = self.find_blocks(input_ids, attention_mask, medium, types)
            check_blocks(blocks, batch.lengths, batch.patches.num_placeholders, input_ids, attention_mask)
        return self.as_outputs(encoded, input_ids, attention_mask, types)

    def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        """Return region tokens of images without a prompt, one tensor per image, as servers call the stock method."""
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
        blocks_of = [0] * count_images(patches.tiles)
        for block, image in sorted({(tile.block, tile.image) for tile in patches.tiles}):
            blocks_of[image] += encoded.lengths[block]
        return self._output(encoded, blocks_of)

    def get_video_features(self, *args: Any, **kwargs: Any) -> Any:
        """Return region tokens of videos without a prompt, one tensor per video, as servers call the stock method."""
        bound = inspect.signature(self._inner.get_video_features).bind_partial(self, *args, **kwargs).arguments
        bound.pop("self")
        inputs = {**bound.pop("kwargs", {}), **bound}
        names = ("num_regions", "keep", *VIDEO_SIDE_INPUTS, *self.video_inputs)
        chosen = {name: inputs[name] for name in names if inputs.get(name) is not None}
        patches = self.encode_videos(inputs["pixel_values_videos"], **chosen)
        budget = self.video_budget(*(chosen.pop(name, None) for name in ("num_regions", "keep", *VIDEO_SIDE_INPUTS)))
        encoded = self._encode_regions(patches, None, None, self._valid_of_videos(patches), *budget)
        tiles, lengths = patches.tiles, encoded.lengths
        firsts = [next(tile.block for tile in tiles if tile.image == video) for video in range(count_images(tiles))]
        ends = [*firsts[1:], len(lengths)]
        return self._output(encoded, [sum(lengths[start:end]) for start, end in zip(firsts, ends, strict=True)])

    def _zero(self) -> Tensor:
        """Return 0 with a gradient path to the Regionizer and the projector, through a blank image.

        In distributed training all ranks wait for the same gradients, so a rank without images would block the others.
        """
        parameters: Any = self.named_parameters()
        outside_text = (weight for name, weight in parameters if not any(part in name for part in _TEXT_MODULES))
        if not any(weight.requires_grad for weight in outside_text):
            return torch.zeros(())
        patches = self.encode_patches(**self.blank_image())
        features = self.regionizer.normalize(patches.features)
        one_region = Regions.from_labels([torch.zeros_like(grid[..., 0], dtype=torch.int64) for grid in features])
        tokens = self._project(self.regionizer.pool(features, one_region), patches)
        values, _ = self.arrange(tokens, patches.tiles, [False] * count_images(patches.tiles))
        return 0.0 * (values.sum() + sum(grid.sum() for layer in patches.layers for grid in layer))

    def _init_weights(self, module: nn.Module) -> None:
        """Initialize the Regionizer with its own method; transformers does not call this for loaded weights."""
        regionizer = self._modules.get("regionizer")
        if regionizer is not None and any(module is part for part in regionizer.modules()):
            regionizer.reset_parameters()
        else:
            super()._init_weights(module)
