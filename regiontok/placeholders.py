"""Image placeholders in prompts: find their blocks, and rewrite prompts for a different number of tokens per image.

A multimodal model marks an image in a prompt with placeholders: copies of one token id, which it replaces by the
features of the image. A stock processor writes one placeholder per patch; a model with region tokens needs one per
region. `lay_out` computes, for each new column, the index of the original column, and `Layout` applies this to ids,
labels, masks and logits.

The blocks of `find_blocks` are runs of consecutive placeholders. The blocks of `lay_out` are the placeholders of one
image, or of one tile if other tokens separate the tiles. The two differ if images are adjacent: they share a run.

This module needs only torch, so it can also be used with models that are not part of transformers.

Example:
    Two region tokens in place of four patch tokens, in a model that takes embeddings:

    >>> ids = torch.tensor([[5, 9, 9, 9, 9, 6]])  # 9 is the placeholder
    >>> labels = torch.tensor([[-100, -100, -100, -100, -100, 6]])
    >>> region_tokens = torch.ones(2, 16)
    >>> layout = lay_out(ids, None, image_token_id=9, counts=[2], num_placeholders=[4])
    >>> short_ids = layout.put(ids, fill=0)
    >>> short_ids
    tensor([[5, 9, 9, 6]])
    >>> layout.put(labels, fill=-100)
    tensor([[-100, -100, -100,    6]])
    >>> embeds = torch.nn.Embedding(10, 16)(short_ids)
    >>> is_placeholder = (short_ids == 9)[..., None]
    >>> embeds = embeds.masked_scatter(is_placeholder, region_tokens)  # and attention_mask=layout.mask
    >>> layout.put_back(embeds).shape  # outputs in the original columns
    torch.Size([1, 6, 16])
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from regiontok.errors import ShapeError

_REMEDY = "processor = region_processor(processor, model)"


@dataclass(frozen=True)
class Layout:
    """Map from the columns of rewritten prompts to the columns of the original prompts; see `lay_out`.

    Attributes:
        source: ``(B, length)`` int64: for each new column, the index of the original column; -1 at padding.
        spans: ``(B, columns)`` int64: length of the token or block that starts in this column; 0 if none starts here.

    Example:
        >>> ids = torch.tensor([[5, 9, 6], [7, 8, 0]])  # 9 is the placeholder, the last 0 is padding
        >>> inside = torch.tensor([[1, 1, 1], [1, 1, 0]])
        >>> layout = lay_out(ids, inside, image_token_id=9, counts=[3], num_placeholders=[4])
        >>> layout.put(ids, 0)
        tensor([[5, 9, 9, 9, 6],
                [7, 8, 0, 0, 0]])
    """

    source: Tensor
    spans: Tensor

    @property
    def mask(self) -> Tensor:
        """Attention mask of the rewritten prompts, ``(B, length)`` int64: 1 at tokens, 0 at padding."""
        return (self.source >= 0).long()

    def put(self, values: Tensor, fill: int) -> Tensor:
        """Move values to the columns of the rewritten prompts.

        Args:
            values: ``(B, columns)``, one value per column of the original prompts, such as ids or labels.
            fill: Value at padding.

        Returns:
            ``(B, length)``; for each new placeholder of a block, the value of the first placeholder is repeated.
        """
        return torch.where(self.source >= 0, values.gather(1, self.source.clamp(min=0)), fill)

    def put_back(self, values: Tensor) -> Tensor:
        """Move values back to the columns of the original prompts.

        Blocks are aligned at their last column, because the logits there predict the next text token. If a block is
        longer than before, its first values are dropped.

        Args:
            values: ``(B, length, ...)``, one entry per column of the rewritten prompts, such as logits.

        Returns:
            ``(B, columns, ...)``; 0 in columns without a value.
        """
        is_token, start = self.source >= 0, self.source.clamp(min=0)
        new_column = torch.arange(start.shape[1], device=start.device).expand_as(start)
        last_new_column = torch.full_like(self.spans, -1).scatter_reduce(
            1, start, new_column.masked_fill(~is_token, -1), "amax"
        )
        span = self.spans.gather(1, start)
        distance_to_end = last_new_column.gather(1, start) - new_column
        has_original = is_token & (distance_to_end < span)
        row, original_column = has_original.nonzero()[:, 0], (start + span - 1 - distance_to_end)[has_original]
        original = values.new_zeros(*self.spans.shape, *values.shape[2:])
        return original.index_put((row, original_column), values[has_original])


def lay_out(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    *,
    image_token_id: int,
    counts: Sequence[int],
    num_placeholders: Sequence[int],
    num_images: Sequence[int] | None = None,
    left: bool = False,
) -> Layout:
    """Rewrite each block to one placeholder per token of its image.

    Padding is removed, and added again for the new lengths.

    Args:
        input_ids: ``(B, columns)``. Each block ``i`` has 1, ``num_placeholders[i]`` or ``counts[i]`` placeholders,
            with the same choice for all blocks. Adjacent images are separated by these lengths.
        attention_mask: ``(B, columns)``, 0 at padding; None if there is no padding.
        image_token_id: Token id of the placeholder.
        counts: Number of tokens of each block of the batch, in the order of the placeholders.
        num_placeholders: Number of placeholders that the stock processor writes for each block.
        num_images: Number of blocks of each sample, to check the prompts; by default only the total is checked.
        left: Pad on the left, as generation requires.

    Returns:
        The `Layout` of the new prompts.

    Raises:
        ShapeError: The placeholders do not match the images, or ``attention_mask`` has a different shape than
            ``input_ids``.
    """
    is_token = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if is_token.shape != input_ids.shape:
        raise ShapeError(
            f"attention_mask must be {tuple(input_ids.shape)}, like input_ids; got {tuple(is_token.shape)}. 4-D "
            "attention masks are not supported."
        )
    is_placeholder = (input_ids == image_token_id) & is_token
    repeats = is_token.long().masked_fill(is_placeholder, 0)
    is_first = _first_of_each_block(is_placeholder, is_token, counts, num_placeholders, num_images)
    repeats[is_first] = torch.tensor(counts, dtype=torch.int64, device=input_ids.device)
    batch, columns = input_ids.shape
    lengths = repeats.sum(1)
    ends = lengths.cumsum(0)
    column = torch.arange(columns, device=input_ids.device).expand(batch, columns)
    original_column = torch.repeat_interleave(column.flatten(), repeats.flatten())
    row = torch.repeat_interleave(lengths)
    new_column = torch.arange(len(original_column), device=input_ids.device) - (ends - lengths)[row]
    width = int(lengths.max())
    if left:
        new_column = new_column + (width - lengths)[row]
    source = original_column.new_full((batch, width), -1)
    source[row, new_column] = original_column
    return Layout(source, _spans(is_placeholder, is_token, is_first))


def find_blocks(input_ids: Tensor, attention_mask: Tensor | None, image_token_id: int) -> Tensor:
    """Find the runs of consecutive placeholders.

    Args:
        input_ids: ``(B, columns)``.
        attention_mask: ``(B, columns)``, 0 at padding. None or 4-D: padding is not considered.
        image_token_id: Token id of the placeholder.

    Returns:
        ``(blocks, 3)`` int64: sample, first column and length of each run, in the order of the prompts.

    Example:
        >>> find_blocks(torch.tensor([[5, 9, 9, 6], [9, 7, 9, 0]]), None, 9).tolist()
        [[0, 1, 2], [1, 0, 1], [1, 2, 1]]
    """
    is_placeholder = input_ids == image_token_id
    if attention_mask is not None and attention_mask.ndim == 2:
        is_placeholder = is_placeholder & attention_mask.bool()
    return _blocks(is_placeholder)


def fits_blocks(block_lengths: Sequence[int], lengths: Sequence[int]) -> bool:
    """Return whether the placeholder runs can be split into these lengths.

    Adjacent images share a run.

    Args:
        block_lengths: Number of placeholders of each run, as in the last column of `find_blocks`.
        lengths: Expected number of placeholders of each image or tagged tile.

    Example:
        >>> fits_blocks([4, 6], [4, 6]), fits_blocks([10], [4, 6]), fits_blocks([6, 4], [4, 6])
        (True, True, False)
    """
    return sum(block_lengths) == sum(lengths) and set(accumulate(block_lengths)) <= set(accumulate(lengths))


def check_blocks(
    blocks: Tensor,
    lengths: Sequence[int],
    num_placeholders: Sequence[int],
    input_ids: Tensor,
    attention_mask: Tensor | None,
) -> None:
    """Check that the placeholder runs can be split into the lengths of the images.

    Args:
        blocks: ``(blocks, 3)``, as `find_blocks` returns them.
        lengths: Number of tokens of each image or tagged tile.
        num_placeholders: Number of placeholders that the stock processor writes for each image or tagged tile.
        input_ids: ``(B, columns)``.
        attention_mask: ``(B, columns)``, 0 at padding; None if there is no padding.

    Raises:
        ShapeError: The lengths differ; the message gives both and says how to write the prompts.
    """
    if not fits_blocks(blocks[:, 2].tolist(), lengths):
        is_token = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        raise ShapeError(_mismatch(blocks, lengths, num_placeholders, is_token))


def _mismatch(blocks: Tensor, lengths: Sequence[int], num_placeholders: Sequence[int], is_token: Tensor) -> str:
    """Return the error message for blocks that do not match the images."""
    block_lengths = blocks[:, 2].tolist()
    if not block_lengths:
        return (
            f"the prompts have no placeholder, but the images need {_short(lengths)} tokens. Write placeholders: "
            f"{_REMEDY}; or leave pixel_values out if the images are already in past_key_values."
        )
    facts = (
        f"the prompts have blocks of {_short(block_lengths)} placeholders; the images have {_short(lengths)} tokens, "
        f"and the processor of the stock model writes {_short(num_placeholders)} placeholders."
    )
    if fits_blocks(block_lengths, num_placeholders):
        return (
            f"{facts} Write one placeholder per region: {_REMEDY}; or rewrite the batch with model.expand(**inputs), "
            "which also supports Regionizers without a budget."
        )
    ends = list(accumulate(lengths))
    wrong = next((index for index, end in enumerate(accumulate(block_lengths)) if end not in ends), None)
    if wrong is not None:
        sample, first, length = blocks[wrong].tolist()
        last = int(is_token[sample].nonzero().max())
        if last == first + length - 1 and sum(block_lengths) < max(sum(lengths), sum(num_placeholders)):
            return (
                f"{facts} Sample {sample} ends inside a block of {length}. The prompt may be truncated. Increase "
                "max_length of the tokenizer, or do not truncate. If the prompt is complete, write one placeholder per "
                f"region: {_REMEDY}."
            )
    return (
        f"{facts} Write one placeholder per region: {_REMEDY}, with the images in the order of the samples. Use the "
        "same budget for processor and model. To take lengths from the prompt, pass num_regions='prompt'."
    )


def _spans(is_placeholder: Tensor, is_token: Tensor, is_first: Tensor) -> Tensor:
    """Return the length of the token or block that starts in each column; 0 if none starts there."""
    starts = (is_token & ~is_placeholder) | is_first
    index = torch.where(is_token, starts.long().cumsum(1) - 1, starts.shape[1])
    sizes = torch.zeros(len(starts), starts.shape[1] + 1, dtype=torch.int64, device=starts.device)
    sizes = sizes.scatter_add(1, index, is_token.long())
    return torch.where(starts, sizes.gather(1, index), 0)


def _short(counts: Sequence[int]) -> str:
    shown = ", ".join(map(str, counts[:8]))
    return f"[{shown}{', ...' if len(counts) > 8 else ''}]"


def _blocks(is_placeholder: Tensor) -> Tensor:
    before = torch.nn.functional.pad(is_placeholder, (1, 0))[:, :-1]
    after = torch.nn.functional.pad(is_placeholder, (0, 1))[:, 1:]
    row, first = (is_placeholder & ~before).nonzero().unbind(1)
    last = (is_placeholder & ~after).nonzero()[:, 1]
    return torch.stack([row, first, last - first + 1], 1)


def _first_of_each_block(
    is_placeholder: Tensor,
    is_token: Tensor,
    counts: Sequence[int],
    num_placeholders: Sequence[int],
    num_images: Sequence[int] | None,
) -> Tensor:
    """Return ``(B, columns)`` bool: True at the first placeholder of each block, including adjacent blocks."""
    blocks = _blocks(is_placeholder)
    block_lengths = blocks[:, 2].tolist()
    candidates = (num_placeholders, counts)
    lengths = next((lengths for lengths in candidates if fits_blocks(block_lengths, lengths)), num_placeholders)
    if num_images is not None:
        _check_samples(is_placeholder.sum(1).tolist(), [int(count) for count in num_images], lengths)
    if sum(block_lengths) == len(num_placeholders):
        return is_placeholder
    if not fits_blocks(block_lengths, lengths):
        raise ShapeError(_mismatch(blocks, counts, num_placeholders, is_token))
    row, column = is_placeholder.nonzero().unbind(1)
    is_first = torch.zeros_like(is_placeholder)
    start = torch.tensor(list(accumulate(lengths, initial=0))[:-1], dtype=torch.int64, device=row.device)
    is_first[row[start], column[start]] = True
    return is_first


def _check_samples(per_sample: list[int], num_images: list[int], lengths: Sequence[int]) -> None:
    """Raise an error if the placeholders of a sample do not match its images."""
    if len(num_images) != len(per_sample) or sum(num_images) != len(lengths):
        raise ShapeError(
            f"num_images must be {len(per_sample)} numbers (one per sample) with sum {len(lengths)}; got {num_images}."
        )
    start = 0
    for sample, (count, images) in enumerate(zip(per_sample, num_images, strict=True)):
        if count not in (images, sum(lengths[start : start + images])):
            raise ShapeError(
                f"sample {sample} has {count} placeholders and {images} images. Each image needs one placeholder, or "
                "the block that its processor writes."
            )
        start += images
