"""From one placeholder per image to one per region: where every token of a batch goes once the counts are known."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regiontok.errors import ShapeError


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a batch come from.

    Attributes:
        source: ``(B, length)`` int64: the caller's column that stands there; -1 for padding.

    Example:
        >>> ids = torch.tensor([[5, 9, 6], [7, 8, 0]])  # 9 is the placeholder, the last 0 is padding
        >>> inside = torch.tensor([[1, 1, 1], [1, 1, 0]])
        >>> layout = lay_out(ids, inside, image_token_id=9, counts=torch.tensor([3]), written=torch.tensor([4]))
        >>> layout.put(ids, 0)
        tensor([[5, 9, 9, 9, 6],
                [7, 8, 0, 0, 0]])
    """

    source: Tensor

    @property
    def mask(self) -> Tensor:
        """``(B, length)`` int64: 1 where there is a token, 0 at padding."""
        return (self.source >= 0).long()

    def put(self, values: Tensor, fill: int) -> Tensor:
        """The caller's ``(B, columns)`` values where their tokens now stand, and ``fill`` at padding."""
        return torch.where(self.source >= 0, values.gather(1, self.source.clamp(min=0)), fill)


def lay_out(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    *,
    image_token_id: int,
    counts: Tensor,
    written: Tensor,
    num_images: Sequence[int] | None = None,
    left: bool = False,
) -> Layout:
    """Give every image as many placeholders as it has tokens.

    An image here is what has a run of placeholders of its own: a photo, or one of its tiles where these are tagged.

    Args:
        input_ids: ``(B, columns)``: prompts with one placeholder per image, or with the run that the processor wrote.
        attention_mask: ``(B, columns)``, 0 at padding, which is left out and made anew; None for no padding.
        image_token_id: The placeholder.
        counts: ``(images,)`` int64: tokens of each image of the batch, in the order of their placeholders.
        written: ``(images,)`` int64: the run of placeholders that a stock processor writes for each.
        num_images: How many images each sample has, to check; by default only their sum is known.
        left: Pad on the left, as generation needs it.

    Raises:
        ShapeError: Placeholders that are not those of the images.
    """
    inside = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if inside.shape != input_ids.shape:
        raise ShapeError(
            f"attention_mask must be {tuple(input_ids.shape)}, like input_ids; got {tuple(inside.shape)}. A mask of "
            "pairs cannot be laid out anew: the counts of regions are not known before."
        )
    counts, written = counts.to(input_ids.device), written.to(input_ids.device)
    placeholder = (input_ids == image_token_id) & inside
    repeats = inside.long().masked_fill(placeholder, 0)
    repeats[_first_of_each_image(placeholder, inside, written, num_images)] = counts
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
    return Layout(laid)


def find_runs(input_ids: Tensor, attention_mask: Tensor | None, image_token_id: int) -> Tensor:
    """Where placeholders stand together: ``(runs, 3)`` int64, of each its sample, first column and length.

    Example:
        >>> find_runs(torch.tensor([[5, 9, 9, 6], [9, 7, 9, 0]]), None, 9).tolist()
        [[0, 1, 2], [1, 0, 1], [1, 2, 1]]
    """
    placeholder = input_ids == image_token_id
    return _runs(placeholder if attention_mask is None else placeholder & attention_mask.bool())


def _runs(placeholder: Tensor) -> Tensor:
    before = torch.nn.functional.pad(placeholder, (1, 0))[:, :-1]
    after = torch.nn.functional.pad(placeholder, (0, 1))[:, 1:]
    row, first = (placeholder & ~before).nonzero().unbind(1)
    last = (placeholder & ~after).nonzero()[:, 1]
    return torch.stack([row, first, last - first + 1], 1)


def _first_of_each_image(
    placeholder: Tensor, inside: Tensor, written: Tensor, num_images: Sequence[int] | None
) -> Tensor:
    """``(B, columns)`` bool: the first placeholder of each image."""
    images, total = len(written), int(placeholder.sum())
    per_sample = placeholder.sum(1).tolist()
    if num_images is not None:
        _check_samples(per_sample, [int(one) for one in num_images], written.tolist())
    if total == images:
        return placeholder
    runs, ends = _runs(placeholder), written.cumsum(0)
    whole = torch.isin(runs[:, 2].cumsum(0), ends)  # images may follow each other without a word between
    if total != int(written.sum()) or not whole.all():
        raise ShapeError(_disagreement(runs, ends, whole, written, per_sample, inside))
    row, column = placeholder.nonzero().unbind(1)
    first = torch.zeros_like(placeholder)
    start = ends - written
    first[row[start], column[start]] = True
    return first


def _disagreement(
    runs: Tensor, ends: Tensor, whole: Tensor, written: Tensor, per_sample: list[int], inside: Tensor
) -> str:
    """What is wrong with placeholders that are not those of the images, and what it most likely comes from."""
    lengths = " or ".join(str(run) for run in sorted({1, *written.tolist()}))
    told = (
        f"placeholders and images disagree: the samples hold {per_sample} placeholders, and {len(written)} images came."
        f" Each image needs {lengths} of them, here the same for all."
    )
    if whole.all():
        return told
    wrong = int((~whole).nonzero()[0])
    sample, first, length = runs[wrong].tolist()
    image = int((ends <= int(runs[: wrong + 1, 2].sum())).sum())
    if length > 1 and inside[sample].nonzero().max() == first + length - 1:  # nothing after it
        return (
            f"{told} Sample {sample} ends inside a run of them, {length} long, as a prompt does that was truncated: "
            "raise the tokenizer's max_length, or leave truncation out."
        )
    if image < len(written) and per_sample and length > 1:
        told += (
            f" Sample {sample} has {length} together at column {first}, and image {image} needs {int(written[image])}:"
            " are the images in the order of the samples, and their placeholders together?"
        )
    return told


def _check_samples(per_sample: list[int], num_images: list[int], written: list[int]) -> None:
    if len(num_images) != len(per_sample) or sum(num_images) != len(written):
        raise ShapeError(
            f"num_images must have one number per sample, {len(per_sample)}, that add up to the {len(written)} images; "
            f"got {num_images}."
        )
    start = 0
    for sample, (held, images) in enumerate(zip(per_sample, num_images, strict=True)):
        if held not in (images, sum(written[start : start + images])):
            raise ShapeError(
                f"sample {sample}: it holds {held} placeholders and has {images} images. Each needs one placeholder, "
                "or the run that its processor writes."
            )
        start += images
