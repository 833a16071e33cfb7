import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regiontok.errors import ShapeError
from regiontok.placeholders import lay_out

IMAGE = 9


def pad(rows, *, left, fill=0):
    width = max(len(row) for row in rows)
    return torch.tensor(
        [[fill] * (width - len(row)) * left + row + [fill] * (width - len(row)) * (not left) for row in rows]
    )


@st.composite
def batches(draw):
    """Draw rows of words and images (None), with two numbers of placeholders for each image."""
    rows = draw(st.lists(st.lists(st.sampled_from([1, 2, 3, None]), min_size=1, max_size=6), min_size=1, max_size=4))
    images = sum(row.count(None) for row in rows)
    number = st.lists(st.integers(1, 5), min_size=images, max_size=images)
    return rows, draw(number), draw(number)


@given(batches(), st.booleans(), st.booleans(), st.booleans())
def test_each_block_gets_its_count_of_placeholders(batch, is_expanded, left_in, left_out):
    rows, counts, num_placeholders = batch

    def write(numbers):
        numbers = iter(numbers)
        return [[token for word in row for token in ([word] if word else [IMAGE] * next(numbers))] for row in rows]

    before = num_placeholders if is_expanded else [1] * len(counts)
    prompts, expected = write(before), write(counts)
    ids = pad(prompts, left=left_in)
    layout = lay_out(
        ids,
        pad([[1] * len(row) for row in prompts], left=left_in),
        image_token_id=IMAGE,
        counts=counts,
        num_placeholders=num_placeholders,
        num_images=[row.count(None) for row in rows],
        left=left_out,
    )
    assert torch.equal(layout.put(ids, 0), pad(expected, left=left_out))
    assert torch.equal(layout.mask, pad([[1] * len(row) for row in expected], left=left_out))
    back = layout.put_back(layout.put(ids, 0))
    assert torch.equal(back[ids != IMAGE], ids[ids != IMAGE])
    assert (back == IMAGE).sum() == sum(map(min, counts, before))
    assert torch.equal(layout.put(ids.masked_fill(ids == 0, -100), -100), pad(expected, left=left_out, fill=-100))


def lay(rows, counts, **options):
    ids = pad(rows, left=False)
    defaults = {"image_token_id": IMAGE, "counts": counts, "num_placeholders": [4] * len(counts)}
    return lay_out(ids, ids != 0, **(defaults | options))


@pytest.mark.parametrize(
    ("rows", "counts", "options", "message"),
    [
        ([[1, 9, 9, 5], [2]], [3], {}, r"blocks of \[2\] placeholders; the images have \[3\] tokens, and .* writes \[4\]"),
        ([[1, 9, 9], [2, 3]], [3, 3], {"num_images": [1, 1]}, "sample 0 has 2 placeholders and 1 images"),
        ([[1, 9], [2, 3]], [3], {"num_images": [1]}, r"num_images must be 2 numbers \(one per sample\) with sum 1; got \[1\]"),
        ([[1, 9], [2, 3]], [3], {"num_images": [1, 1]}, "num_images must be 2 numbers"),
        ([[9, 9, 1, 9, 9]], [2], {}, "the images in the order of the samples. Use the same budget for processor and model"),
        ([[9, 9], [7, 9]], [3, 3], {}, r"Sample 0 ends inside a block of 2. The prompt may be truncated. Increase max_length"),
    ],
)  # fmt: skip
def test_placeholders_that_do_not_match_the_images_are_rejected(rows, counts, options, message):
    with pytest.raises(ShapeError, match=message):
        lay(rows, counts, **options)


def test_a_mask_of_pairs_is_rejected():
    with pytest.raises(ShapeError, match=r"attention_mask must be \(1, 2\), like input_ids; got \(1, 1, 2, 2\)"):
        lay_out(
            torch.tensor([[1, IMAGE]]), torch.ones(1, 1, 2, 2), image_token_id=IMAGE, counts=[2], num_placeholders=[4]
        )
