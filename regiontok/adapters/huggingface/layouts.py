"""Rewrite prompts that were not written for regions: one placeholder per region token.

`regiontok.placeholders` computes the new columns for one kind of placeholder. Here images and videos are combined, and
the text of video frames without a token is removed.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regiontok.adapters.huggingface.inner import RegionModelMixin
from regiontok.adapters.huggingface.media import MEDIA, PLACEHOLDER
from regiontok.adapters.huggingface.patches import EncodedImages, per_image
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from regiontok.placeholders import Layout, fits_blocks, lay_out
from regiontok.regions import Regions
from regiontok.tiles import Tile, count_images

PER_TOKEN = ("token_type_ids", "mm_token_type_ids")
"""Further inputs with one entry per column of a prompt."""


class Expanded(NamedTuple):
    """The images or the videos of a batch whose prompts were rewritten, as part of `RegionInputs`.

    Attributes:
        regions: The `Regions` of the batch, in the order of their placeholders, with one image per tile.
        tiles: The `Tile` of each image of ``regions``: the part of an image that it shows, or a chunk of a video.
        columns: ``(B, length)`` bool: columns of region tokens. Other placeholders are newlines and frame tokens.
        encoded: The encoded images or videos.
    """

    regions: Regions
    tiles: list[Tile]
    columns: Tensor
    encoded: EncodedImages

    @property
    def counts(self) -> list[int]:
        """Number of region tokens of each image or video of the batch."""
        return per_image(self.tiles, self.regions.counts.tolist())


class RegionInputs(NamedTuple):
    """A batch whose prompts have one placeholder per region token, as `RegionMixin.expand` returns it.

    Attributes:
        inputs: Arguments of the stock ``forward``: ``input_ids``, ``attention_mask``, ``labels`` and further inputs per
            token, all ``(B, length)``; and ``mm_encoder_outputs``.
        layout: The column of the caller's prompts for each new column.
        media: `Expanded` images as ``image`` and videos as ``video``, if the batch has any. Pass it to
            `RegionMixin.expand` with other prompts about the same images and videos.
    """

    inputs: dict[str, Any]
    layout: Layout
    media: dict[str, Expanded]

    @property
    def images(self) -> Expanded:
        """The images of the batch.

        Raises:
            ValueRangeError: There are none.
        """
        return self._medium("image")

    @property
    def videos(self) -> Expanded:
        """The videos of the batch.

        Raises:
            ValueRangeError: There are none.
        """
        return self._medium("video")

    @property
    def regions(self) -> Regions:
        """The `Regions` of the images."""
        return self.images.regions

    @property
    def tiles(self) -> list[Tile]:
        """The tiles of the images."""
        return self.images.tiles

    @property
    def columns(self) -> Tensor:
        """Columns of the region tokens of images, ``(B, length)`` bool."""
        return self.images.columns

    @property
    def counts(self) -> list[int]:
        """Number of region tokens of each image of the batch."""
        return self.images.counts

    def _medium(self, name: str) -> Expanded:
        if name not in self.media:
            raise ValueRangeError(f"the batch has no {name}s. Pass {MEDIA[name]} to expand.")
        return self.media[name]


def rewrite(
    model: RegionModelMixin,
    media: Mapping[str, EncodedImages],
    prompt: Mapping[str, Tensor | None],
    inputs: Mapping[str, Any],
    *,
    num_images: Sequence[int] | None = None,
    left: bool | None = None,
) -> RegionInputs:
    """Return prompts with one placeholder per token of the encoded images and videos.

    Args:
        model: Inner region model.
        media: Encoded images and videos.
        prompt: ``input_ids``, and ``attention_mask``, ``labels`` and token type ids, each ``(B, columns)`` or None.
        inputs: Inputs of the position ids.
        num_images: Number of images of each sample, to check its placeholders.
        left: Pad on the left; by default on the side on which ``attention_mask`` has padding.

    Raises:
        ShapeError, DTypeError: Placeholders do not match the images.
    """
    if num_images is not None and not isinstance(num_images, Sequence | Tensor):
        raise DTypeError(f"num_images must have a number per sample; got {num_images!r}.")
    input_ids, attention_mask = prompt["input_ids"], prompt["attention_mask"]
    if left is None:
        left = attention_mask is not None and attention_mask.ndim == 2 and not bool(attention_mask[:, 0].all())
    layout = lay_out_media(
        model,
        media,
        input_ids,  # type: ignore[arg-type]
        attention_mask,
        types=prompt.get("mm_token_type_ids"),
        num_images=num_images,
        left=left,
    )
    ids = layout.put(input_ids, _padding_id(model.config))  # type: ignore[arg-type]
    rewritten: dict[str, Any] = {"input_ids": ids, "attention_mask": layout.mask}
    for name in PER_TOKEN:
        if prompt.get(name) is not None:
            rewritten[name] = layout.put(prompt[name], 0)  # type: ignore[arg-type]
    types, is_token = rewritten.get("mm_token_type_ids"), layout.mask.bool()
    columns = {
        medium: model.find_placeholders(ids, medium, types) & is_token
        for medium in (MEDIA if model.accepts_videos else ("image",))
    }
    is_placeholder = torch.stack(list(columns.values())).any(0)
    if prompt.get("labels") is not None:
        labels = layout.put(prompt["labels"], -100)  # type: ignore[arg-type]
        rewritten["labels"] = labels.masked_fill(is_placeholder, -100)
    if model.token_types is not None:
        numbers = [(1 + number) * column.long() for number, column in enumerate(columns.values())]
        rewritten.setdefault(model.token_types, torch.stack(numbers).sum(0))
    expanded = {
        medium: Expanded(
            encoded.regions,
            encoded.patches.tiles,
            columns[medium].masked_scatter(columns[medium], (encoded.region >= 0).to(ids.device)),
            encoded,
        )
        for medium, encoded in media.items()
    }
    outputs = model.as_outputs(media, ids, layout.mask, types)
    of_rope = {name: value for name, value in inputs.items() if name not in PER_TOKEN}
    rewritten |= model.positions_of(ids, layout.mask, outputs, **of_rope)
    rewritten["mm_encoder_outputs"] = outputs
    return RegionInputs(rewritten, layout, expanded)


def lay_out_media(
    model: RegionModelMixin,
    media: Mapping[str, EncodedImages],
    input_ids: Tensor,
    attention_mask: Tensor | None,
    *,
    types: Tensor | None = None,
    num_images: Sequence[int] | None = None,
    left: bool = False,
) -> Layout:
    """Return the columns of prompts with one placeholder per token of the encoded images and videos.

    Args:
        model: Inner region model.
        media: Encoded images and videos.
        input_ids: ``(B, columns)``.
        attention_mask: ``(B, columns)``, 0 at padding; None if there is no padding.
        types: ``mm_token_type_ids (B, columns)``, if the prompts have them.
        num_images: Number of images of each sample, to check its placeholders.
        left: Pad on the left.

    Raises:
        ShapeError: Placeholders do not match the images or videos.
    """
    layout: Layout | None = None
    for medium, encoded in media.items():
        ids, mask = (input_ids, attention_mask) if layout is None else (layout.put(input_ids, 0), layout.mask)
        new_types = types if layout is None or types is None else layout.put(types, 0)
        marked = model.mark(ids, medium, new_types)
        lengths, stock_lengths = encoded.lengths, encoded.patches.num_placeholders
        blocks_per_sample = None
        if medium == "image" and num_images is not None:
            blocks_per_sample = _blocks_per_sample(num_images, encoded.patches.tiles)
        if medium == "video" and model.has_frame_blocks:
            blocks = model.find_blocks(ids, mask, medium, new_types)
            if fits_blocks(blocks[:, 2].tolist(), lengths):
                lengths = stock_lengths = [length for length in lengths if length]
            elif len(blocks) == len(lengths) and model.empty_frames == "drop":
                mask = _without_empty_frames(model, ids, mask, blocks, lengths)
                stock_lengths = [stock for stock, length in zip(stock_lengths, lengths, strict=True) if length]
                lengths = [length for length in lengths if length]
        new_layout = lay_out(
            marked,
            mask,
            image_token_id=PLACEHOLDER,
            counts=lengths,
            num_placeholders=stock_lengths,
            num_images=blocks_per_sample,
            left=left,
        )
        layout = new_layout if layout is None else _compose(layout, new_layout, marked == PLACEHOLDER)
    if layout is None:
        raise ValueRangeError("there are no images or videos. Pass pixel_values or pixel_values_videos.")
    return layout


def _without_empty_frames(
    model: RegionModelMixin, input_ids: Tensor, mask: Tensor | None, blocks: Tensor, lengths: Sequence[int]
) -> Tensor:
    """Return a mask without the text and the placeholders of frames that have no token."""
    rows, starts, widths = blocks.unbind(1)
    ends = model.frame_ends(input_ids, rows, starts + widths)
    column = torch.arange(input_ids.shape[1], device=input_ids.device)
    is_token = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()
    empty = (torch.tensor(lengths, device=input_ids.device) == 0).nonzero()[:, 0]  # never the first frame of a video
    is_removed = (column >= ends[empty - 1, None]) & (column < ends[empty, None])
    removed = torch.zeros_like(input_ids).index_add_(0, rows[empty], is_removed.to(input_ids.dtype))
    return is_token & (removed == 0)


def _compose(first: Layout, second: Layout, is_second: Tensor) -> Layout:
    """Return the layout of ``second`` after ``first``, whose columns ``is_second`` are the blocks of ``second``."""
    source = first.source.gather(1, second.source.clamp(min=0))
    spans = first.spans.clone()
    row, column = is_second.nonzero().unbind(1)
    spans[row, first.source[row, column]] = second.spans[row, column]
    return Layout(source.masked_fill(second.source < 0, -1), spans)


def _blocks_per_sample(num_images: Sequence[int], tiles: Sequence[Tile]) -> list[int]:
    """Return the number of blocks of placeholders of each sample from its number of images."""
    blocks = [len({tile.block for tile in tiles if tile.image == image}) for image in range(count_images(tiles))]
    ends = list(itertools.accumulate([int(count) for count in num_images], initial=0))
    if ends[-1] != len(blocks):
        raise ShapeError(f"num_images must add up to the {len(blocks)} images; got {list(num_images)}.")
    return [sum(blocks[start:end]) for start, end in itertools.pairwise(ends)]


def _padding_id(config: Any) -> int:
    padding = getattr(config.get_text_config(), "pad_token_id", None)
    return 0 if padding is None else int(padding)
