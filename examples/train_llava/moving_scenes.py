"""Toy clips of moving shapes, with questions whose answers need several frames."""

from dataclasses import dataclass

import numpy as np
from scenes import COLOURS, SHAPES, Thing, mask_of

FRAMES, SIDE = 8, 192
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
KINDS = ("motion", "order", "cut")
MARGIN, RADIUS, PATH = 34, 26, 90
"""Distance of a path from the edges, radius of a shape, and length of a path, in pixels."""
WORDS = (*COLOURS, *SHAPES, *WAYS, "way", "first", "after")


@dataclass(frozen=True)
class Clip:
    """A clip ``(8, 192, 192, 3)`` uint8, with a question of a kind and its answer."""

    frames: np.ndarray
    kind: str
    question: tuple[str, ...]
    answer: str


def make_clip(generator: np.random.Generator) -> Clip:
    """Return a random clip of two shapes with one question.

    ``motion``: which way does a shape move? ``order``: which of two colours appears first? ``cut``: which colour does a
    shape have after a cut, at which colours and background change?
    """
    kind = str(generator.choice(KINDS))
    colours = generator.choice(list(COLOURS), 4, replace=False).tolist()
    shapes = generator.choice(SHAPES, 2, replace=False).tolist()
    ways = generator.choice(list(WAYS), 2).tolist()
    starts = [0, 0]
    cut = FRAMES
    if kind == "order":
        starts = generator.permutation([0, int(generator.integers(2, 6))]).tolist()
    elif kind == "cut":
        cut = int(generator.integers(3, 6))
    paths = [_path(ways[index], index, generator) for index in range(2)]
    backgrounds = [generator.uniform(95, 160) + generator.uniform(-14, 14, 3) for _ in range(2)]
    texture = generator.normal(0, 6, (SIDE, SIDE, 1))
    frames = []
    for number in range(FRAMES):
        after = number >= cut
        pixels = backgrounds[after] + texture + generator.normal(0, 3, (SIDE, SIDE, 3))
        for index in range(2):
            if number < starts[index]:
                continue
            x, y = paths[index][number]
            colour = colours[index + 2 * after]
            pixels[mask_of(Thing(colour, shapes[index], x, y, RADIUS))] = COLOURS[colour]
        frames.append(pixels.clip(0, 255).astype(np.uint8))
    asked = int(generator.integers(2))
    question, answer = {
        "motion": (("way", colours[asked]), ways[asked]),
        "order": (("first", colours[asked], colours[1 - asked]), colours[int(starts[1] < starts[0])]),
        "cut": (("after", shapes[asked]), colours[asked + 2]),
    }[kind]
    return Clip(np.stack(frames), kind, question, answer)


def _path(way: str, half: int, generator: np.random.Generator) -> np.ndarray:
    """Return the centres ``(8, 2)`` of a shape that moves within the left or right half, or the upper or lower one."""
    across = np.array([MARGIN, SIDE - MARGIN])[half] + generator.uniform(0, 14) * (1 - 2 * half)
    start = generator.uniform(MARGIN, SIDE - MARGIN - PATH)
    along = start + PATH * np.arange(FRAMES) / (FRAMES - 1)
    if way in ("left", "up"):
        along = along[::-1]
    # Shapes that move horizontally stay in the upper or lower half, others in the left or right one.
    still = np.full(FRAMES, across)
    return np.stack([along, still] if way in ("left", "right") else [still, along], 1)
