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
    """Give every image as many placeholders as it has regions.

    Args:
        input_ids: ``(B, columns)``: prompts with one placeholder per image, or with the run that the processor wrote.
        attention_mask: ``(B, columns)``, 0 at padding, which is left out and made anew; None for no padding.
        image_token_id: The placeholder.
        counts: ``(images,)`` int64: regions of each image of the batch, in the order of their placeholders.
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
    repeats[_first_of_each_image(placeholder, written, num_images)] = counts
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


def _first_of_each_image(placeholder: Tensor, written: Tensor, num_images: Sequence[int] | None) -> Tensor:
    """``(B, columns)`` bool: the first placeholder of each image."""
    images, total = len(written), int(placeholder.sum())
    per_sample = placeholder.sum(1).tolist()
    if num_images is not None:
        _check_samples(per_sample, [int(one) for one in num_images], written.tolist())
    if total == images:
        return placeholder
    if total != int(written.sum()):
        runs = " or ".join(str(run) for run in sorted({1, *written.tolist()}))
        raise ShapeError(
            f"placeholders and images disagree: the samples hold {per_sample} placeholders, and {images} images came. "
            f"Each image needs {runs} of them, here the same for all."
        )
    start = written.cumsum(0) - written
    image = torch.repeat_interleave(written)
    row, column = placeholder.nonzero().unbind(1)
    within = torch.arange(total, device=written.device) - start[image]
    broken = (row != row[start][image]) | (column - column[start][image] != within)
    if broken.any():
        wrong = int(broken.nonzero()[0])
        raise ShapeError(
            f"sample {int(row[wrong])}: the {int(written[image[wrong]])} placeholders of an image must stand together; "
            f"these are apart at column {int(column[wrong])}. Write one placeholder per image."
        )
    first = torch.zeros_like(placeholder)
    first[row[start], column[start]] = True
    return first


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
