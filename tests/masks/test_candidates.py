"""Non-maximum suppression after each decoder call gives the result of a single suppression at the end."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import nms

from regiontok.masks import MaskSettings, Sam2Masks, sam2
from regiontok.masks.candidates import CandidateBuffer, Candidates
from tests.models import tiny_sam2


def random_call(generator, count):
    corner = generator.integers(0, 12, (count, 2))
    boxes = np.concatenate([corner, corner + generator.integers(1, 9, (count, 2))], 1).astype(np.float32)
    scores = generator.permutation(count).astype(np.float32) / max(1, count) + generator.integers(0, 3)
    tensors = torch.from_numpy(boxes), torch.from_numpy(scores.astype(np.float32))
    return Candidates(torch.from_numpy(generator.random((count, 2, 2))), *tensors, torch.ones(count))


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 12), min_size=1, max_size=6),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
)
def test_repeated_suppression_does_not_change_the_result(seed, counts, threshold):
    generator = np.random.default_rng(seed)
    calls = [random_call(generator, count) for count in counts]
    buffer = CandidateBuffer(threshold)
    for call in calls:
        buffer.add(call)
        buffer.suppress()
    found = buffer.best(lambda call: calls[call])
    boxes, scores, values = (
        torch.cat([getattr(call, name) for call in calls]) for name in ("boxes", "scores", "values")
    )
    best = nms(boxes, scores, threshold)
    assert torch.equal(found.boxes, boxes[best])
    assert torch.equal(found.scores, scores[best])
    assert torch.equal(found.values, values[best])


def test_freed_values_are_decoded_again():
    """The second box overlaps the first, and the third overlaps the second but not the first."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])
    calls = [
        Candidates(torch.full((1, 2, 2), float(n)), boxes[n : n + 1], torch.tensor([0.1 * n]), torch.ones(1))
        for n in range(3)
    ]
    buffer, decoded = CandidateBuffer(0.4), []
    for call in calls:
        buffer.add(call)
        buffer.suppress()
    found = buffer.best(lambda call: decoded.append(call) or calls[call])
    assert decoded == [0]
    assert found.values[:, 0, 0].tolist() == [2, 0]


@pytest.mark.parametrize("mosaic", [1, 2])
def test_masks_do_not_depend_on_the_buffer_size(monkeypatch, china, mosaic):
    settings = MaskSettings(6, 0, 0, 0.6)
    images = [china.resize((64, 48)), china.resize((40, 60)), china.rotate(90).resize((50, 50))]
    generate = Sam2Masks(tiny_sam2(1), settings=settings, points_per_batch=8, mosaic=mosaic)
    expected = generate(images)
    calls = []
    suppress = CandidateBuffer.suppress
    monkeypatch.setattr(sam2, "_MAX_VALUE_BYTES", 1)
    monkeypatch.setattr(CandidateBuffer, "suppress", lambda self: calls.append(1) or suppress(self))
    for one, other in zip(generate(images), expected, strict=True):
        assert one.to_coco() == other.to_coco()
        assert np.array_equal(one.scores, other.scores)
    assert calls
