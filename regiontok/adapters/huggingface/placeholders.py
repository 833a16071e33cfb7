"""Blocks of placeholders in prompts: their lengths, and prompts rewritten for other lengths.

A block belongs to one image, or to one of its tiles where tiles have tags of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from regiontok.errors import ShapeError

REMEDY = "processor = region_processor(processor, model)"


@dataclass(frozen=True)
class Layout:
    """Which column of the caller's prompt each column of a rewritten prompt comes from.

    Attributes:
        source: ``(B, length)`` int64: the caller's column; -1 for padding.
        spans: ``(B, columns)`` int64: how many of the caller's columns a token or block takes that starts there.

    Example:
        >>> ids = torch.tensor([[5, 9, 6], [7, 8, 0]])  # 9 is the placeholder, the last 0 is padding
        >>> inside = torch.tensor([[1, 1, 1], [1, 1, 0]])
        >>> layout = lay_out(ids, inside, image_token_id=9, counts=[3], written=[4])
        >>> layout.put(ids, 0)
        tensor([[5, 9, 9, 9, 6],
                [7, 8, 0, 0, 0]])
    """

    source: Tensor
    spans: Tensor

    @property
    def mask(self) -> Tensor:
        """``(B, length)`` int64: 1 where there is a token, 0 at padding."""
        return (self.source >= 0).long()

    def put(self, values: Tensor, fill: int) -> Tensor:
        """Return ``(B, columns)`` values of the caller in the rewritten prompt, and ``fill`` at padding."""
        return torch.where(self.source >= 0, values.gather(1, self.source.clamp(min=0)), fill)

    def put_back(self, values: Tensor) -> Tensor:
        """Return ``(B, length, ...)`` values of the rewritten prompt in the caller's columns, and 0 in others.

        A block that became shorter is at the end of the caller's block, so that the column before a text token is the
        one that predicts it.
        """
        inside, start = self.source >= 0, self.source.clamp(min=0)
        place = torch.arange(start.shape[1], device=start.device).expand_as(start)
        last = torch.full_like(self.spans, -1).scatter_reduce(1, start, place.masked_fill(~inside, -1), "amax")
        span = self.spans.gather(1, start)
        from_end = last.gather(1, start) - place
        has_column = inside & (from_end < span)
        row, column = has_column.nonzero()[:, 0], (start + span - 1 - from_end)[has_column]
        back = values.new_zeros(*self.spans.shape, *values.shape[2:])
        return back.index_put((row, column), values[has_column])


def lay_out(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    *,
    image_token_id: int,
    counts: Sequence[int],
    written: Sequence[int],
    num_images: Sequence[int] | None = None,
    left: bool = False,
) -> Layout:
    """Rewrite prompts so that every block has as many placeholders as it has tokens.

    Args:
        input_ids: ``(B, columns)``: prompts with one placeholder per block, with the stock processor's number of them,
            or with ``counts``.
        attention_mask: ``(B, columns)``, 0 at padding, which is removed and added again; None for no padding.
        image_token_id: The placeholder.
        counts: Number of tokens of each block of the batch, in the order of the placeholders.
        written: Number of placeholders that the stock processor writes for each.
        num_images: Number of blocks of each sample, to check; by default only their sum is known.
        left: Pad on the left, as generation needs it.

    Raises:
        ShapeError: Placeholders that do not belong to the images.
    """
    inside = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if inside.shape != input_ids.shape:
        raise ShapeError(
            f"attention_mask must be {tuple(input_ids.shape)}, like input_ids; got {tuple(inside.shape)}. A mask of "
            "pairs cannot be rewritten."
        )
    placeholder = (input_ids == image_token_id) & inside
    repeats = inside.long().masked_fill(placeholder, 0)
    firsts = _first_of_each_block(placeholder, inside, counts, written, num_images)
    repeats[firsts] = torch.tensor(counts, dtype=torch.int64, device=input_ids.device)
    batch, columns = input_ids.shape
    lengths = repeats.sum(1)
    ends = lengths.cumsum(0)
    column = torch.arange(columns, device=input_ids.device).expand(batch, columns)
    source = torch.repeat_interleave(column.flatten(), repeats.flatten())
    row = torch.repeat_interleave(lengths)
    place = torch.arange(len(source), device=input_ids.device) - (ends - lengths)[row]
    width = int(lengths.max())
    if left:
        place = place + (width - lengths)[row]
    laid = source.new_full((batch, width), -1)
    laid[row, place] = source
    return Layout(laid, _spans(placeholder, inside, firsts))


def find_blocks(input_ids: Tensor, attention_mask: Tensor | None, image_token_id: int) -> Tensor:
    """Return where placeholders follow each other: ``(blocks, 3)`` int64, the sample, first column and length of each.

    Example:
        >>> find_blocks(torch.tensor([[5, 9, 9, 6], [9, 7, 9, 0]]), None, 9).tolist()
        [[0, 1, 2], [1, 0, 1], [1, 2, 1]]
    """
    placeholder = input_ids == image_token_id
    if attention_mask is not None and attention_mask.ndim == 2:
        placeholder = placeholder & attention_mask.bool()
    return _blocks(placeholder)


def fits_blocks(found: Sequence[int], lengths: Sequence[int]) -> bool:
    """Return whether blocks of ``found`` placeholders are those of images with ``lengths`` tokens.

    Images that follow each other without another token between share a block.

    Example:
        >>> fits_blocks([4, 6], [4, 6]), fits_blocks([10], [4, 6]), fits_blocks([6, 4], [4, 6])
        (True, True, False)
    """
    return sum(found) == sum(lengths) and set(accumulate(found)) <= set(accumulate(lengths))


def check_blocks(
    blocks: Tensor, lengths: Sequence[int], written: Sequence[int], input_ids: Tensor, attention_mask: Tensor | None
) -> None:
    """Reject prompts whose blocks do not have the lengths of their images.

    Args:
        blocks: As `find_blocks` returns them.
        lengths: Number of tokens of each block.
        written: Number of placeholders that the stock processor writes for each.
        input_ids: ``(B, columns)``.
        attention_mask: ``(B, columns)``.

    Raises:
        ShapeError: Other lengths; the message names the remedy.
    """
    if not fits_blocks(blocks[:, 2].tolist(), lengths):
        inside = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        raise ShapeError(_disagreement(blocks, lengths, written, inside))


def _disagreement(blocks: Tensor, lengths: Sequence[int], written: Sequence[int], inside: Tensor) -> str:
    """Return the message for blocks that are not those of the images."""
    found = blocks[:, 2].tolist()
    if not found:
        return (
            f"the prompts hold no placeholder, and pixel_values has images of {_short(lengths)} tokens. Write "
            f"placeholders: {REMEDY}; or leave pixel_values out where a cache holds the images already."
        )
    told = (
        f"the prompts hold blocks of {_short(found)} placeholders; the images have {_short(lengths)} tokens, and the "
        f"processor of the stock model writes {_short(written)} placeholders."
    )
    if fits_blocks(found, written):
        return (
            f"{told} Write one placeholder per region: {REMEDY}; or rewrite the batch with model.expand(**inputs), "
            "which also serves Regionizers without a budget."
        )
    ends = list(accumulate(lengths))
    wrong = next((number for number, end in enumerate(accumulate(found)) if end not in ends), None)
    if wrong is not None:
        sample, first, length = blocks[wrong].tolist()
        last = int(inside[sample].nonzero().max())
        if last == first + length - 1 and sum(found) < max(sum(lengths), sum(written)):
            return (
                f"{told} Sample {sample} ends inside a block of {length}, as a truncated prompt does: raise the "
                "tokenizer's max_length, or do not truncate. If it was not truncated, write one placeholder per "
                f"region: {REMEDY}."
            )
    return (
        f"{told} Write one placeholder per region: {REMEDY}, with the budget of the model or of the call, and the "
        "images in the order of the samples. Only num_regions='prompt' takes other lengths."
    )


def _spans(placeholder: Tensor, inside: Tensor, firsts: Tensor) -> Tensor:
    """Return how many columns the token or block takes that starts in each column; 0 where none starts."""
    starts = (inside & ~placeholder) | firsts
    number = torch.where(inside, starts.long().cumsum(1) - 1, starts.shape[1])
    sizes = torch.zeros(len(starts), starts.shape[1] + 1, dtype=torch.int64, device=starts.device)
    sizes = sizes.scatter_add(1, number, inside.long())
    return torch.where(starts, sizes.gather(1, number), 0)


def _short(counts: Sequence[int]) -> str:
    shown = ", ".join(map(str, counts[:8]))
    return f"[{shown}{', ...' if len(counts) > 8 else ''}]"


def _blocks(placeholder: Tensor) -> Tensor:
    before = torch.nn.functional.pad(placeholder, (1, 0))[:, :-1]
    after = torch.nn.functional.pad(placeholder, (0, 1))[:, 1:]
    row, first = (placeholder & ~before).nonzero().unbind(1)
    last = (placeholder & ~after).nonzero()[:, 1]
    return torch.stack([row, first, last - first + 1], 1)


def _first_of_each_block(
    placeholder: Tensor,
    inside: Tensor,
    counts: Sequence[int],
    written: Sequence[int],
    num_images: Sequence[int] | None,
) -> Tensor:
    """Return ``(B, columns)`` bool: the first placeholder of each block."""
    images, total = len(written), int(placeholder.sum())
    per_sample = placeholder.sum(1).tolist()
    blocks = _blocks(placeholder)
    found = blocks[:, 2].tolist()
    lengths = next((one for one in (written, counts) if fits_blocks(found, one)), written)
    if num_images is not None:
        _check_samples(per_sample, [int(one) for one in num_images], lengths)
    if total == images:
        return placeholder
    if not fits_blocks(found, lengths):
        raise ShapeError(_disagreement(blocks, counts, written, inside))
    row, column = placeholder.nonzero().unbind(1)
    first = torch.zeros_like(placeholder)
    start = torch.tensor(list(accumulate(lengths, initial=0))[:-1], dtype=torch.int64, device=row.device)
    first[row[start], column[start]] = True
    return first


def _check_samples(per_sample: list[int], num_images: list[int], lengths: Sequence[int]) -> None:
    if len(num_images) != len(per_sample) or sum(num_images) != len(lengths):
        raise ShapeError(
            f"num_images must have one number per sample, {len(per_sample)}, that add up to the {len(lengths)} images; "
            f"got {num_images}."
        )
    start = 0
    for sample, (held, images) in enumerate(zip(per_sample, num_images, strict=True)):
        if held not in (images, sum(lengths[start : start + images])):
            raise ShapeError(
                f"sample {sample}: it holds {held} placeholders and has {images} images. Each needs one placeholder, "
                "or the block that its processor writes."
            )
        start += images
