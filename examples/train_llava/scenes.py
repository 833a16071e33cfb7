"""Toy scenes: coloured shapes on textured grounds, with their masks, captions and questions."""

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
    """One shape: what it is, and where its middle lies in pixels."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Question:
    """A question about a scene, its answer of one word, and the things that it is about."""

    kind: str
    text: str
    answer: str
    about: tuple[int, ...]


def draw_things(generator: np.random.Generator) -> list[Thing]:
    """One to four things that do not touch."""
    things: list[Thing] = []
    wanted = int(generator.integers(1, 5))
    for _ in range(200):
        radius = generator.uniform(20, 36)
        x, y = generator.uniform(radius + 2, SIDE - radius - 2, 2)
        if all(np.hypot(x - one.x, y - one.y) > radius + one.radius + 4 for one in things):
            things.append(Thing(str(generator.choice(list(COLOURS))), str(generator.choice(SHAPES)), x, y, radius))
        if len(things) == wanted:
            break
    return things


def mask_of(thing: Thing) -> np.ndarray:
    """Where a thing lies, ``(192, 192)`` bool."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    x, y, r = x - thing.x, y - thing.y, thing.radius
    if thing.shape == "circle":
        return np.hypot(x, y) < r
    if thing.shape == "square":
        return np.maximum(abs(x), abs(y)) < 0.85 * r
    if thing.shape == "triangle":
        return (y < 0.7 * r) & (y > 1.7 * abs(x) - r)
    along, across = (x + y) / 2**0.5, (x - y) / 2**0.5  # stands on two feet, so that its edges are no square's
    return (np.minimum(abs(along), abs(across)) < 0.32 * r) & (np.maximum(abs(along), abs(across)) < r)


def paint(things: list[Thing], generator: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """An image of a scene, and masks ``(things + 1, 192, 192)``: of each thing, and of the ground."""
    ground = generator.uniform(95, 160) + generator.uniform(-14, 14, 3)
    coarse = Image.fromarray(generator.normal(128, 30, (12, 12)).clip(0, 255).astype(np.uint8))
    texture = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float64)[..., None] - 128
    pixels = ground + 0.5 * texture
    masks = np.stack([mask_of(thing) for thing in things])
    for thing, mask in zip(things, masks, strict=True):
        pixels[mask] = np.array(COLOURS[thing.colour]) + generator.uniform(-18, 18, 3) + 0.2 * texture[mask]
    pixels += generator.normal(0, 4, pixels.shape)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return image, np.concatenate([masks, ~masks.any(0, keepdims=True)])


def caption_of(things: list[Thing]) -> str:
    """All things from left to right."""
    told = [f"a {one.colour} {one.shape}" for one in sorted(things, key=lambda one: one.x)]
    return " and ".join(told) + " ."


def questions_of(things: list[Thing], generator: np.random.Generator, most: int = 6) -> list[Question]:
    """Questions that have one answer, of all kinds that the scene allows."""
    found: list[Question] = []
    shapes, colours = [one.shape for one in things], [one.colour for one in things]
    for index, thing in enumerate(things):
        if shapes.count(thing.shape) == 1:
            found.append(Question("colour", f"what colour is the {thing.shape}", thing.colour, (index,)))
        if colours.count(thing.colour) == 1:
            found.append(Question("shape", f"what shape is the {thing.colour} thing", thing.shape, (index,)))
    shape = str(generator.choice(shapes)) if generator.random() < 0.5 else str(generator.choice(SHAPES))
    same = tuple(index for index, one in enumerate(shapes) if one == shape)
    found.append(Question("count", f"how many {shape}s", NUMBERS[len(same)], same))
    single = [index for index, colour in enumerate(colours) if colours.count(colour) == 1]
    if len(single) > 1:
        first, second = generator.choice(single, 2, replace=False).tolist()
        left = "yes" if things[first].x < things[second].x else "no"
        text = f"is {colours[first]} left of {colours[second]}"
        found.append(Question("position", text, left, (first, second)))
    chosen = int(generator.integers(len(things)))
    if generator.random() < 0.5:
        found.append(Question("existence", f"is there a {colours[chosen]} {shapes[chosen]}", "yes", (chosen,)))
    else:  # something like what is there, so that colours and shapes alone do not tell
        missing = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in set(zip(colours, shapes, strict=True))]
        near = [(c, s) for c, s in missing if (c in colours) != (s in shapes) or (c in colours and s in shapes)]
        colour, other = (near or missing)[int(generator.integers(len(near or missing)))]
        found.append(Question("existence", f"is there a {colour} {other}", "no", ()))
    order = generator.permutation(len(found))[:most]
    return [found[one] for one in order]


def words() -> list[str]:
    """All words of the toy language, but for those that only stage 0 sees."""
    text = " ".join(
        ["what colour is the shape thing how many left of there a and . yes no", *COLOURS, *SHAPES, *NUMBERS, *FILLER]
        + [f"{shape}s" for shape in SHAPES]
    )
    return list(dict.fromkeys(text.split()))


def write_scenes(folder: Path, *, train: int, test: int, seed: int = 0) -> None:
    """A data set in LLaVA's form: images, masks, captions for stage 1, conversations for stage 2, and test questions.

    Writes ``images/``, ``masks``, ``captions.json``, ``questions.json`` and ``test.json`` (questions with the
    masks that they are about, by number).
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    captions, conversations, tests, kept = [], [], [], []
    for number in tqdm(range(train + test), desc="scenes", unit="scene"):
        things = draw_things(generator)
        image, masks = paint(things, generator)
        file = f"{number:05d}.png"
        image.save(folder / "images" / file, compress_level=1)
        kept.append((file, MaskSet.from_masks(masks)))
        questions = questions_of(things, generator)
        if number < train:
            captions.append(_entry(file, [("", caption_of(things))]))
            conversations.append(_entry(file, [(one.text, one.answer) for one in questions]))
        else:
            tests += [{"image": file, **vars(one)} for one in questions]
    write_masks(folder / "masks", kept, made_by={"generator": "toy scenes", "seed": seed}, overwrite=True)
    for name, data in (("captions", captions), ("questions", conversations), ("test", tests)):
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")


def _entry(file: str, turns: list[tuple[str, str]]) -> dict[str, object]:
    conversation = []
    for number, (question, answer) in enumerate(turns):
        asked = f"<image>\n{question}".strip() if number == 0 else question
        conversation += [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return {"id": file.removesuffix(".png"), "image": file, "conversations": conversation}
