import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regiontok.adapters.huggingface.placeholders import lay_out
from regiontok.errors import ShapeError

IMAGE = 9


def pad(rows, *, left, fill=0):
    width = max(len(row) for row in rows)
    return torch.tensor(
        [[fill] * (width - len(row)) * left + row + [fill] * (width - len(row)) * (not left) for row in rows]
    )


@st.composite
def batches(draw):
    """Rows of words and images: ``(rows, counts, written)``, an image as None."""
    rows = draw(st.lists(st.lists(st.sampled_from([1, 2, 3, None]), min_size=1, max_size=6), min_size=1, max_size=4))
    images = sum(row.count(None) for row in rows)
    number = st.lists(st.integers(1, 5), min_size=images, max_size=images)
    return rows, draw(number), draw(number)


@given(batches(), st.booleans(), st.booleans(), st.booleans())
def test_every_image_gets_its_count_of_placeholders_whatever_was_written(batch, run, left_in, left_out):
    rows, counts, written = batch

    def write(numbers):
        numbers = iter(numbers)
        return [[one for word in row for one in ([word] if word else [IMAGE] * next(numbers))] for row in rows]

    came = write(written if run else [1] * len(counts))
    layout = lay_out(
        pad(came, left=left_in),
        pad([[1] * len(row) for row in came], left=left_in),
        image_token_id=IMAGE,
        counts=counts,
        written=written,
        num_images=[row.count(None) for row in rows],
        left=left_out,
    )
    wanted = write(counts)
    assert torch.equal(layout.put(pad(came, left=left_in), 0), pad(wanted, left=left_out))
    assert torch.equal(layout.mask, pad([[1] * len(row) for row in wanted], left=left_out))
    back = layout.put_back(layout.put(pad(came, left=left_in), 0))
    assert torch.equal(
        back[pad(came, left=left_in) != IMAGE], pad(came, left=left_in)[pad(came, left=left_in) != IMAGE]
    )
    in_blocks = (back == IMAGE).sum()
    assert in_blocks == sum(
        min(count, one) for count, one in zip(counts, written if run else [1] * len(counts), strict=True)
    )
    labels = pad(came, left=left_in).masked_fill(pad(came, left=left_in) == 0, -100)
    assert torch.equal(layout.put(labels, -100), pad(wanted, left=left_out, fill=-100))


def lay(rows, counts, **options):
    ids = pad(rows, left=False)
    given = {"image_token_id": IMAGE, "counts": counts, "written": [4] * len(counts)}
    return lay_out(ids, ids != 0, **(given | options))


@pytest.mark.parametrize(
    ("rows", "counts", "options", "message"),
    [
        ([[1, 9, 9, 5], [2]], [3], {}, r"blocks of \[2\] placeholders; the images have \[3\] tokens, and .* writes \[4\]"),
        ([[1, 9, 9], [2, 3]], [3, 3], {"num_images": [1, 1]}, "sample 0: it holds 2 placeholders and has 1 images"),
        ([[1, 9], [2, 3]], [3], {"num_images": [1]}, r"num_images must have one number per sample, 2, that add up to the 1 images; got \[1\]"),
        ([[1, 9], [2, 3]], [3], {"num_images": [1, 1]}, "num_images must have one number per sample"),
        ([[9, 9, 1, 9, 9]], [2], {}, "the budget of the model or of the call, and the images in the order of the samples"),
        ([[9, 9], [7, 9]], [3, 3], {}, r"Sample 0 ends inside a block of 2, as a truncated prompt does: raise the tokenizer's max_length"),
        ([[1, 9]], [2], {"mask": torch.ones(1, 1, 2, 2)}, r"attention_mask must be \(1, 2\), like input_ids; got \(1, 1, 2, 2\)"),
    ],
)  # fmt: skip
def test_placeholders_that_are_not_those_of_the_images_are_refused_and_named(rows, counts, options, message):
    if "mask" in options:
        with pytest.raises(ShapeError, match=message):
            lay_out(
                torch.tensor(rows),
                options["mask"],
                image_token_id=IMAGE,
                counts=counts,
                written=[4],
            )
        return
    with pytest.raises(ShapeError, match=message):
        lay(rows, counts, **options)
