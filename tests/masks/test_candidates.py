"""Candidates that are thinned as they come are those that are thinned at once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import nms

from regiontok.masks import MaskSettings, Sam2Masks, sam2
from regiontok.masks.candidates import Candidates, Gathering
from tests.models import tiny_sam2


def random_call(generator, count):
    corner = generator.integers(0, 12, (count, 2))
    boxes = np.concatenate([corner, corner + generator.integers(1, 9, (count, 2))], 1).astype(np.float32)
    scores = generator.permutation(count).astype(np.float32) / max(1, count) + generator.integers(0, 3)
    some = torch.from_numpy(boxes), torch.from_numpy(scores.astype(np.float32))
    return Candidates(torch.from_numpy(generator.random((count, 2, 2))), *some, torch.ones(count))


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 12), min_size=1, max_size=6),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
)
def test_thinning_as_they_come_changes_nothing(seed, counts, threshold):
    generator = np.random.default_rng(seed)
    calls = [random_call(generator, count) for count in counts]
    gathering = Gathering(threshold)
    for call in calls:
        gathering.add(call)
        gathering.thin()
    found = gathering.best(lambda call: calls[call])
    boxes, scores, kept = (torch.cat([getattr(call, name) for call in calls]) for name in ("boxes", "scores", "kept"))
    best = nms(boxes, scores, threshold)
    assert torch.equal(found.boxes, boxes[best])
    assert torch.equal(found.scores, scores[best])
    assert torch.equal(found.kept, kept[best])


def test_what_was_let_go_and_is_wanted_comes_from_its_call_again():
    """The first is overlapped by the second, and the second by the third, which does not reach the first."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])
    calls = [
        Candidates(torch.full((1, 2, 2), float(n)), boxes[n : n + 1], torch.tensor([0.1 * n]), torch.ones(1))
        for n in range(3)
    ]
    gathering, again = Gathering(0.4), []
    for call in calls:
        gathering.add(call)
        gathering.thin()
    found = gathering.best(lambda call: again.append(call) or calls[call])
    assert again == [0]
    assert found.kept[:, 0, 0].tolist() == [2, 0]


@pytest.mark.parametrize("mosaic", [1, 2])
def test_masks_are_the_same_however_few_are_held(monkeypatch, china, mosaic):
    settings = MaskSettings(6, 0, 0, 0.6)
    images = [china.resize((64, 48)), china.resize((40, 60)), china.rotate(90).resize((50, 50))]
    generate = Sam2Masks(tiny_sam2(1), settings=settings, points_per_batch=8, mosaic=mosaic)
    expected = generate(images)
    calls = []
    thin = Gathering.thin
    monkeypatch.setattr(sam2, "_MOST_BYTES", 1)
    monkeypatch.setattr(Gathering, "thin", lambda self: calls.append(1) or thin(self))
    for one, other in zip(generate(images), expected, strict=True):
        assert one.to_coco() == other.to_coco()
        assert np.array_equal(one.scores, other.scores)
    assert calls
