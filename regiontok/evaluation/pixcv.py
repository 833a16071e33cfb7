"""The focus metric on PixCV-Bench: CV-Bench's questions, with masks of the objects that they are about.

    objects = read_objects("pixcvbench")                  # ADE20K/ and COCO/FinalSegmentations.json, as they are
    questions = read_questions("CV-Bench/test_2d.parquet")
    result = measure_focus(assistant, questions, objects)
    print(result.focus.focus, result.skipped)

Nothing is left out in silence: what cannot be counted is named in ``skipped``, with the reason.
"""

import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from regiontok._checks import check_choice, check_integer
from regiontok._files import split_lines
from regiontok._require import require
from regiontok.choices import ANSWERS, QUERIES
from regiontok.downsample import Masks
from regiontok.errors import DataError, ImageError, RegiontokError, ValueRangeError
from regiontok.evaluation.assistant import Assistant, Question
from regiontok.evaluation.focus import FocusMeter, FocusResult, check_attention, target_regions
from regiontok.evaluation.prompts import OPTIONS, with_options
from regiontok.geometry import Size
from regiontok.images import as_rgb, read_image
from regiontok.masks import CocoMasks
from regiontok.maskset import MaskSet

_ANNOTATIONS = "FinalSegmentations.json"


class Skipped(NamedTuple):
    """Something that was not counted: which, and why."""

    name: str
    reason: str


@dataclass
class Objects:
    """The objects' masks of a benchmark, by source and image; see `read_objects`.

    Attributes:
        segmentations: Per source and file name, the annotations' segmentations: COCO RLE, or polygons.
        skipped: Annotations that cannot be used.
    """

    segmentations: dict[tuple[str, str], list[Any]]
    skipped: list[Skipped] = field(default_factory=list)

    def find(self, source: str, file: str) -> list[Any] | None:
        """The segmentations of an image, where it is annotated: of its source, or of no source at all."""
        return self.segmentations.get((source, file)) or self.segmentations.get(("", file))

    @staticmethod
    def mask(segmentations: Sequence[Any], size: Size) -> np.ndarray:
        """The union ``(height, width)`` bool of all objects on an image of ``size``; RLE of other sizes is stretched.

        Raises:
            ShapeError, DTypeError, ValueRangeError: A damaged RLE.
        """
        union = np.zeros(size, bool)
        for one in segmentations:
            mask = MaskSet.from_coco([one], size=None if isinstance(one, Mapping) else size).masks()[0].numpy()
            if mask.shape != tuple(size):
                picture = Image.fromarray(mask.view(np.uint8))
                mask = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.NEAREST)).astype(bool)
            union |= mask
        return union


def read_objects(path: str | Path) -> Objects:
    """Read PixCV-Bench's annotations, or any of COCO's form: ``images`` with ``file_name``, and ``annotations``.

    Args:
        path: A folder with a ``FinalSegmentations.json`` in a folder per source, ``ADE20K`` and ``COCO``; or one JSON
            file, whose annotations are then of whatever source.

    Raises:
        DataError: No such file, or not such JSON.
    """
    path = Path(path)
    files = {file.parent.name: file for file in sorted(path.glob(f"*/{_ANNOTATIONS}"))} if path.is_dir() else {"": path}
    if not files or not all(file.is_file() for file in files.values()):
        raise DataError(f"{path}: there is no {_ANNOTATIONS} in its folders, and it is no file of annotations.")
    objects = Objects({})
    for source, file in files.items():
        found = CocoMasks(file)
        told = source or file.name
        for name in found:
            image = PurePosixPath(name).name
            for number, annotation in found.annotations(name).items():
                segmentation = annotation["segmentation"]
                try:  # polygons are filled at the image's size, which the file need not tell
                    MaskSet.from_coco([segmentation], size=None if isinstance(segmentation, dict) else (1, 1))
                except RegiontokError as error:
                    objects.skipped.append(Skipped(f"{told}, annotation {number} of {image}", _reason(error)))
                else:
                    objects.segmentations.setdefault((source, image), []).append(segmentation)
        objects.skipped += [
            Skipped(f"{told}, annotation {number}", reason)
            for some, reason in (
                (found.bare, "it has no segmentation"),
                (found.unplaced, "it names no image of the file"),
            )
            for number in some
        ]
    return objects


def _reason(error: RegiontokError) -> str:
    """What is wrong, without the place of the mask, so that like faults are counted together."""
    return str(error).removeprefix("mask 0: ").removeprefix("mask 0 ")


@dataclass(frozen=True)
class BenchmarkQuestion:
    """A question of CV-Bench.

    Attributes:
        name: What to call it in messages.
        text: With its options, as the benchmark writes them, and the paper's words after.
        answer: The right letter, or what else is the right answer.
        source: Of the image, such as ``COCO``.
        file: The image's name in its source.
        image: Its bytes, or where it lies.
    """

    name: str
    text: str
    answer: str
    source: str
    file: str
    image: bytes | Path

    def read(self) -> Image.Image:
        """The image.

        Raises:
            ImageError: It cannot be read.
        """
        if isinstance(self.image, Path):
            return read_image(self.image)
        try:
            return as_rgb(Image.open(io.BytesIO(self.image)))
        except Exception as error:  # Pillow's decoders raise all kinds of errors on damaged files
            raise ImageError(f"{self.name}: its image is damaged ({error}).") from error


def read_questions(file: str | Path, images: str | Path | None = None) -> Iterator[BenchmarkQuestion]:
    """Read CV-Bench's questions, in its own columns.

    Args:
        file: ``test_2d.parquet``, which holds the images; or ``test_2d.jsonl`` with ``images``.
        images: The folder that a question's ``filename`` is named from.

    Raises:
        DataError: No such file, a column that is missing, or JSON lines without ``images``.
        MissingDependencyError: pyarrow is not installed.
    """
    file = Path(file)
    if not file.is_file():
        raise DataError(f"{file}: there is no such file of questions.")
    parquet = file.suffix == ".parquet"
    if not parquet and images is None:
        raise DataError(f"{file} holds no images. Name the folder that they are in, --images.")
    for number, row in enumerate(_parquet(file) if parquet else _json_lines(file)):
        try:
            name = f"question {row.get('idx', number)}"
            original = row.get("source_filename") or row["filename"]
            image = row["image"]["bytes"] if parquet and images is None else Path(images or "") / row["filename"]
            if row.get("prompt"):
                text = f"{row['prompt'].strip()}\n{OPTIONS}"
            else:
                text = with_options(row["question"], row["choices"])
            answer = str(row["answer"]).strip("()")
            yield BenchmarkQuestion(name, text, answer, row.get("source", ""), PurePosixPath(original).name, image)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file}, row {number}: a question of CV-Bench lacks {error}.") from error


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    parquet = require("pyarrow.parquet", extra="focus", distribution="pyarrow")
    try:
        with parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(batch_size=16):
                yield from batch.to_pylist()
    except require("pyarrow", extra="focus").ArrowException as error:
        raise DataError(f"{file} is not a whole Parquet file: {error}") from error


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(split_lines(file.read_text(encoding="utf-8"))):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise DataError(f"{file}, line {number + 1} is no JSON: {error}") from error


@dataclass(frozen=True)
class PixCVResult:
    """What `measure_focus` found.

    Attributes:
        focus: The metric and the choices behind it.
        by_source: The metric of each source alone, in ``[0, 1]``.
        accuracy: The fraction of the counted questions that the model answers rightly.
        tokens: The mean number of region tokens per image.
        answers: Whose attention it is: of the ``generated`` answers, or of the ``right`` ones.
        skipped: What was not counted, and why.
    """

    focus: FocusResult
    by_source: dict[str, float]
    accuracy: float
    tokens: float
    answers: str
    skipped: list[Skipped]

    def reasons(self) -> Counter[str]:
        """How many were skipped for which reason, without their names."""
        return Counter(one.reason for one in self.skipped)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {**vars(self), "focus": self.focus.to_dict(), "skipped": [one._asdict() for one in self.skipped]}


def measure_focus(
    assistant: Assistant,
    questions: Iterable[BenchmarkQuestion],
    objects: Objects,
    *,
    masks: Callable[[str, Image.Image], Masks] | None = None,
    answers: str = "generated",
    query: str = "answer",
    threshold: float = 0.5,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    batch_size: int = 1,
    max_new_tokens: int = 16,
) -> PixCVResult:
    """Ask a model a benchmark's questions, and measure how much of its answers' attention goes to the objects.

    Args:
        assistant: The model.
        questions: Of `read_questions`; they are taken one batch at a time.
        objects: Of `read_objects`.
        masks: For a model of masks without a generator: a function of a question's file name and image.
        answers: ``generated``, what the model says, decoded greedily; or ``right``, the right answer.
        query: See `regiontok.evaluation.focus.answer_attention`.
        threshold: Of a target, see `regiontok.evaluation.focus.target_regions`.
        layers: Which layers to average over; None for all.
        heads: Which heads; None for all.
        batch_size: Questions at a time.
        max_new_tokens: The longest generated answer.

    Raises:
        ValueRangeError: No question could be counted; the message says why.

    Source:
        Supplement B.1. Which answer the paper takes, and what becomes of images without an annotation, it does not say.
    """
    check_choice("answers", answers, ANSWERS)
    check_choice("query", query, QUERIES)
    check_integer("batch_size", batch_size)
    check_attention(assistant.model.config, layers, heads)
    meters: defaultdict[str, FocusMeter] = defaultdict(lambda: FocusMeter(layers, heads, threshold))
    every = FocusMeter(layers, heads, threshold)
    skipped = list(objects.skipped)
    right: list[bool] = []
    counts: list[int] = []
    seen: set[tuple[str, str]] = set()
    if masks is None and assistant.by_masks and assistant.masks is not None:  # once, and not for each of two passes
        generate = assistant.masks

        def masks(_: str, image: Image.Image) -> Masks:
            return generate([image])[0]

    asked = _readable(tqdm(questions, unit="question", desc="focus", disable=None), objects, masks, skipped, seen)
    while batch := list(islice(asked, batch_size)):
        said = assistant.answer([one.question for one in batch], max_new_tokens=max_new_tokens)
        tokens = [
            answer.tokens if answers == "generated" else assistant.tokens(one.asked.answer)
            for one, answer in zip(batch, said, strict=True)
        ]
        told = [number for number, some in enumerate(tokens) if some]
        skipped += [
            Skipped(one.asked.name, "its answer has no token")
            for one, some in zip(batch, tokens, strict=True)
            if not some
        ]
        if not told:
            continue
        attention = assistant.attend(
            [batch[number].question for number in told], [tokens[number] for number in told], query=query
        )
        shown = [batch[number].target[None] for number in told]
        geometry = None if assistant.places_images else assistant.geometry
        targets = target_regions(
            attention.regions, shown, threshold=threshold, geometry=geometry, views=attention.views
        )
        every.add(attention, targets)
        per_image = targets.split(attention.regions.counts.tolist())
        for place, number in enumerate(told):
            one = batch[number]
            own = torch.cat([per_image[image] for image in attention.images[place]])
            counts.append(len(own))
            if not own.any():
                skipped.append(Skipped(one.asked.name, "no region token shows enough of the object"))
                continue
            part = attention._replace(weights=[attention.weights[place]], images=[attention.images[place]])
            meters[one.asked.source].add(part, targets)
            right.append(_is_right(said[number].text, one.asked.answer))
    skipped += [
        Skipped(f"{source + ', ' if source else ''}{file}", "annotated, and no question is about it")
        for source, file in sorted(objects.segmentations.keys() - seen)
    ]
    if not right:
        reasons = ", ".join(f"{count} because {why}" for why, count in Counter(one.reason for one in skipped).items())
        raise ValueRangeError(f"no question could be counted; skipped: {reasons or 'none, as there was no question'}.")
    return PixCVResult(
        focus=every.result(),
        by_source={source: meter.result().focus for source, meter in sorted(meters.items())},
        accuracy=float(np.mean(right)),
        tokens=float(np.mean(counts)),
        answers=answers,
        skipped=skipped,
    )


class _Ready(NamedTuple):
    """A question with its image and its object's mask ``(height, width)``."""

    asked: BenchmarkQuestion
    question: Question
    target: np.ndarray


def _readable(
    questions: Iterable[BenchmarkQuestion],
    objects: Objects,
    masks: Callable[[str, Image.Image], Masks] | None,
    skipped: list[Skipped],
    seen: set[Any],
) -> Iterator[_Ready]:
    """Questions that can be asked and measured; the others are named."""
    for one in questions:
        segmentations = objects.find(one.source, one.file)
        if segmentations is None:
            skipped.append(Skipped(f"{one.name} ({one.file})", "its image has no annotation"))
            continue
        seen.update([(one.source, one.file), ("", one.file)])
        try:
            image = one.read()
            target = Objects.mask(segmentations, (image.height, image.width))
            made = None if masks is None else [masks(one.file, image)]
        except RegiontokError as error:
            reason = "its image cannot be read" if isinstance(error, ImageError) else str(error)
            skipped.append(Skipped(f"{one.name} ({error})" if reason != str(error) else one.name, reason))
            continue
        yield _Ready(one, Question(one.text, [image], made), target)


def _is_right(text: str, answer: str) -> bool:
    """Whether a text says the answer; for a letter, whether it begins with it: ``B``, ``(B) two``, ``b: two``."""
    if len(answer) != 1:
        return text.strip().rstrip(".").casefold() == answer.strip().casefold()
    found = re.match(r"\W*([A-Za-z])(?![A-Za-z])", text)
    return found is not None and found[1].upper() == answer.upper()
