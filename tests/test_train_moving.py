"""Toy questions about moving scenes in examples/train_llava."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "train_llava"))

import moving
import moving_scenes
from scenes import COLOURS


@pytest.fixture(scope="module")
def samples():
    return moving.make_samples(0, 8)


def places(frame, colour):
    """Return the rows and columns of the pixels of a colour, ``(pixels, 2)``."""
    return np.argwhere(np.abs(frame.astype(int) - np.array(COLOURS[colour])).max(-1) < 8)


def test_answers_follow_from_the_frames():
    generator, seen = np.random.default_rng(0), set()
    for _ in range(60):
        clip = moving_scenes.make_clip(generator)
        seen.add(clip.kind)
        first, last = clip.frames[0], clip.frames[-1]
        if clip.kind == "motion":
            start, end = (places(frame, clip.question[1]).mean(0) for frame in (first, last))
            rows, cols = end - start
            way = ("right" if cols > 0 else "left") if abs(cols) > abs(rows) else "down" if rows > 0 else "up"
            assert clip.answer == way
        elif clip.kind == "order":
            is_there = [len(places(first, colour)) > 400 for colour in clip.question[1:]]
            assert clip.answer == clip.question[1:][is_there.index(True)]
        else:
            assert len(places(first, clip.answer)) < 100
            assert len(places(last, clip.answer)) > 400
    assert seen == set(moving_scenes.KINDS)


@pytest.mark.parametrize("method", moving.METHODS)
def test_tokens_of_every_method(samples, method):
    tokens = moving.group(samples.features, method, 16)
    assert tokens.values.shape == (8, 16, 40)
    assert tokens.positions.shape == (8, 16, 2, 3)
    times = tokens.positions[..., 0]
    if method == "sampled frames":
        assert set(times.unique().tolist()) == {2.0, 6.0}
    assert torch.equal(times[..., 0], times[..., 1]) == (method != "space-time, two positions")


def test_a_model_is_trained_and_measured(samples):
    result = moving.train(samples, samples, moving.METHODS[3], 16, seed=0, steps=60)
    assert result["all"] > 60, "it learns eight clips by heart"
    lines = moving.table([result, result | {"all": 0}]).splitlines()
    assert len(lines) == 3
    assert lines[2].endswith(f"{result['all'] / 2:.1f} |")


def test_positions_enter_by_the_rotary_embedding():
    positions = torch.zeros(1, 2, 2, 3)
    positions[0, 1, 1] = torch.tensor([1.0, 2.0, 3.0])
    cos, sin = moving.rotary(positions)
    assert (sin[0, 0, 1, ::2] == 0).all(), "pairs of the first position"
    assert (sin[0, 0, 1, 1::2] != 0).all()
    assert (cos[0, 0, 0] == 1).all()
