"""Toy scenes: coloured shapes on a textured background, with masks, captions and questions."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from regiontok import MaskSet
from regiontok.store import write_masks

SIDE = 192
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (205, 50, 45), "green": (60, 165, 75), "blue": (55, 85, 205),
    "yellow": (225, 200, 50), "purple": (140, 60, 165), "orange": (235, 135, 40),
}  # fmt: skip
NUMBERS = ("zero", "one", "two", "three", "four")
KINDS = ("colour", "shape", "count", "position", "existence")
FILLER = ("the", "a", "of", "and", "with", "on", "near", "some", "then")


@dataclass(frozen=True)
class Thing:
    """A coloured shape. Its centre and radius are in pixels."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Question:
    """A question about a scene, its one-word answer, and the indices of the things that it is about."""

    kind: str
    text: str
    answer: str
    about: tuple[int, ...]


def draw_things(generator: np.random.Generator) -> list[Thing]:
    """Return one to four random things that do not touch each other."""
    things: list[Thing] = []
    count = int(generator.integers(1, 5))
    for _ in range(200):
        radius = generator.uniform(20, 36)
        x, y = generator.uniform(radius + 2, SIDE - radius - 2, 2)
        if all(np.hypot(x - thing.x, y - thing.y) > radius + thing.radius + 4 for thing in things):
            things.append(Thing(str(generator.choice(list(COLOURS))), str(generator.choice(SHAPES)), x, y, radius))
        if len(things) == count:
            break
    return things


def mask_of(thing: Thing) -> np.ndarray:
    """Return the mask of a thing, ``(192, 192)`` bool."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    x, y, r = x - thing.x, y - thing.y, thing.radius
    if thing.shape == "circle":
        return np.hypot(x, y) < r
    if thing.shape == "square":
        return np.maximum(abs(x), abs(y)) < 0.85 * r
    if thing.shape == "triangle":
        return (y < 0.7 * r) & (y > 1.7 * abs(x) - r)
    u, v = (x + y) / 2**0.5, (x - y) / 2**0.5  # a cross at 45 degrees, so that its edges differ from those of a square
    return (np.minimum(abs(u), abs(v)) < 0.32 * r) & (np.maximum(abs(u), abs(v)) < r)


def paint(things: list[Thing], generator: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """Return an image of a scene, and masks ``(things + 1, 192, 192)`` of its things and of the background."""
    background = generator.uniform(95, 160) + generator.uniform(-14, 14, 3)
    coarse = Image.fromarray(generator.normal(128, 30, (12, 12)).clip(0, 255).astype(np.uint8))
    texture = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float64)[..., None] - 128
    pixels = background + 0.5 * texture
    masks = np.stack([mask_of(thing) for thing in things])
    for thing, mask in zip(things, masks, strict=True):
        pixels[mask] = np.array(COLOURS[thing.colour]) + generator.uniform(-18, 18, 3) + 0.2 * texture[mask]
    pixels += generator.normal(0, 4, pixels.shape)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return image, np.concatenate([masks, ~masks.any(0, keepdims=True)])


def caption_of(things: list[Thing]) -> str:
    """Return a caption that lists all things from left to right."""
    names = [f"a {thing.colour} {thing.shape}" for thing in sorted(things, key=lambda thing: thing.x)]
    return " and ".join(names) + " ."


def questions_of(things: list[Thing], generator: np.random.Generator, limit: int = 6) -> list[Question]:
    """Return up to ``limit`` questions with a unique answer, in random order."""
    questions: list[Question] = []
    shapes, colours = [thing.shape for thing in things], [thing.colour for thing in things]
    for index, thing in enumerate(things):
        if shapes.count(thing.shape) == 1:
            questions.append(Question("colour", f"what colour is the {thing.shape}", thing.colour, (index,)))
        if colours.count(thing.colour) == 1:
            questions.append(Question("shape", f"what shape is the {thing.colour} thing", thing.shape, (index,)))
    shape = str(generator.choice(shapes)) if generator.random() < 0.5 else str(generator.choice(SHAPES))
    same_shape = tuple(index for index, other in enumerate(shapes) if other == shape)
    questions.append(Question("count", f"how many {shape}s", NUMBERS[len(same_shape)], same_shape))
    unique = [index for index, colour in enumerate(colours) if colours.count(colour) == 1]
    if len(unique) > 1:
        first, second = generator.choice(unique, 2, replace=False).tolist()
        is_left = "yes" if things[first].x < things[second].x else "no"
        text = f"is {colours[first]} left of {colours[second]}"
        questions.append(Question("position", text, is_left, (first, second)))
    chosen = int(generator.integers(len(things)))
    if generator.random() < 0.5:
        questions.append(Question("existence", f"is there a {colours[chosen]} {shapes[chosen]}", "yes", (chosen,)))
    else:  # a missing pair whose colour or shape is in the scene, so that the pair must be checked
        missing = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in set(zip(colours, shapes, strict=True))]
        similar = [(c, s) for c, s in missing if c in colours or s in shapes]
        colour, other = (similar or missing)[int(generator.integers(len(similar or missing)))]
        questions.append(Question("existence", f"is there a {colour} {other}", "no", ()))
    order = generator.permutation(len(questions))[:limit]
    return [questions[index] for index in order]


def words() -> list[str]:
    """Return the words of captions, questions and answers, and filler words."""
    text = " ".join(
        ["what colour is the shape thing how many left of there a and . yes no", *COLOURS, *SHAPES, *NUMBERS, *FILLER]
        + [f"{shape}s" for shape in SHAPES]
    )
    return list(dict.fromkeys(text.split()))


def write_scenes(folder: Path, *, train: int, test: int, seed: int = 0) -> None:
    """Write a dataset in the JSON format of LLaVA.

    The folder gets ``images/``, ``masks``, ``captions.json`` (stage 1), ``questions.json`` (stage 2) and ``test.json``
    (test questions, each with the indices of the masks that it is about).
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    captions, conversations, tests, mask_sets = [], [], [], []
    for number in tqdm(range(train + test), desc="scenes", unit="scene"):
        things = draw_things(generator)
        image, masks = paint(things, generator)
        file = f"{number:05d}.png"
        image.save(folder / "images" / file, compress_level=1)
        mask_sets.append((file, MaskSet.from_masks(masks)))
        questions = questions_of(things, generator)
        if number < train:
            captions.append(_entry(file, [("", caption_of(things))]))
            conversations.append(_entry(file, [(question.text, question.answer) for question in questions]))
        else:
            tests += [{"image": file, **vars(question)} for question in questions]
    write_masks(folder / "masks", mask_sets, provenance={"generator": "toy scenes", "seed": seed}, overwrite=True)
    for name, data in (("captions", captions), ("questions", conversations), ("test", tests)):
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")


def _entry(file: str, turns: list[tuple[str, str]]) -> dict[str, object]:
    conversation = []
    for number, (question, answer) in enumerate(turns):
        prompt = f"<image>\n{question}".strip() if number == 0 else question
        conversation += [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
    return {"id": file.removesuffix(".png"), "image": file, "conversations": conversation}
