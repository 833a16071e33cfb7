"""The focus metric on PixCV-Bench: the questions of CV-Bench with masks of the objects that they ask about.

    objects = read_objects("pixcvbench")                  # has ADE20K/ and COCO/FinalSegmentations.json
    questions = read_questions("CV-Bench/test_2d.parquet")
    result = measure_focus(assistant, questions, objects)
    print(result.focus.focus, result.skipped)

Unusable questions and annotations are listed in ``skipped``, with the reason.
"""

import io
import json
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

from regiontok._files import split_lines
from regiontok._require import require
from regiontok._values import check_choice, check_integer
from regiontok.choices import ANSWERS, QUERIES
from regiontok.downsample import Masks
from regiontok.errors import DataError, ImageError, RegiontokError, ValueRangeError
from regiontok.evaluation.assistant import Assistant, Question
from regiontok.evaluation.focus import FocusMeter, FocusResult, check_attention, target_regions
from regiontok.evaluation.prompts import option_letter, with_options
from regiontok.evaluation.questions import is_correct
from regiontok.geometry import Size
from regiontok.images import as_rgb, read_image
from regiontok.masks import CocoMasks
from regiontok.maskset import MaskSet

_ANNOTATIONS = "FinalSegmentations.json"


class Skipped(NamedTuple):
    """A question or annotation that was not counted, and the reason."""

    name: str
    reason: str


@dataclass
class Objects:
    """The object masks of a benchmark, by source and image; see `read_objects`.

    Attributes:
        segmentations: Segmentations by source and file name, as COCO RLE or polygons.
        skipped: Unusable annotations.
    """

    segmentations: dict[tuple[str, str], list[Any]]
    skipped: list[Skipped] = field(default_factory=list)

    def find(self, source: str, file: str) -> list[Any] | None:
        """Return the segmentations of an image, from its source or an unnamed one; None without annotation."""
        return self.segmentations.get((source, file)) or self.segmentations.get(("", file))

    @staticmethod
    def mask(segmentations: Sequence[Any], size: Size) -> np.ndarray:
        """Return the union of all objects, ``(height, width)`` bool. RLE of another size is resized to ``size``.

        Raises:
            ShapeError, DTypeError, ValueRangeError: An RLE is damaged.
        """
        union = np.zeros(size, bool)
        for segmentation in segmentations:
            rle_size = None if isinstance(segmentation, Mapping) else size  # an RLE has its own size
            mask = MaskSet.from_coco([segmentation], size=rle_size).masks()[0].numpy()
            if mask.shape != tuple(size):
                resized = Image.fromarray(mask.view(np.uint8)).resize((size[1], size[0]), Image.Resampling.NEAREST)
                mask = np.asarray(resized).astype(bool)
            union |= mask
        return union


def read_objects(path: str | Path) -> Objects:
    """Read annotations of PixCV-Bench, or others in COCO format.

    Args:
        path: A folder with a subfolder per source, ``ADE20K`` and ``COCO``, each with a ``FinalSegmentations.json``; or
            a single JSON file, whose annotations are used for all sources.

    Raises:
        DataError: There is no such file, or it is not in COCO format.
    """
    path = Path(path)
    files = {file.parent.name: file for file in sorted(path.glob(f"*/{_ANNOTATIONS}"))} if path.is_dir() else {"": path}
    if not files or not all(file.is_file() for file in files.values()):
        raise DataError(f"{path} must be a file of annotations, or a folder with */{_ANNOTATIONS}.")
    objects = Objects({})
    for source, file in files.items():
        masks = CocoMasks(file)
        source_name = source or file.name
        for name in masks:
            image = PurePosixPath(name).name
            for number, annotation in masks.annotations(name).items():
                segmentation = annotation["segmentation"]
                try:  # the file may lack the image size, so polygons are only checked here
                    MaskSet.from_coco([segmentation], size=None if isinstance(segmentation, dict) else (1, 1))
                except RegiontokError as error:
                    objects.skipped.append(Skipped(f"{source_name}, annotation {number} of {image}", _reason(error)))
                else:
                    objects.segmentations.setdefault((source, image), []).append(segmentation)
        for numbers, reason in (
            (masks.without_segmentation, "no segmentation"),
            (masks.without_image, "unknown image id"),
        ):
            objects.skipped += [Skipped(f"{source_name}, annotation {number}", reason) for number in numbers]
    return objects


def _reason(error: RegiontokError) -> str:
    """Return the message without the number of the mask, so that equal reasons are counted together."""
    return str(error).removeprefix("mask 0: ").removeprefix("mask 0 ")


@dataclass(frozen=True)
class BenchmarkQuestion:
    """A question of CV-Bench.

    Attributes:
        name: Name of the question in messages.
        text: The question with its options and the paper's instruction.
        answer: The correct letter or text.
        source: Source of the image, such as ``COCO``.
        file: File name of the image in its source.
        image: The encoded image or its path.
    """

    name: str
    text: str
    answer: str
    source: str
    file: str
    image: bytes | Path

    def read(self) -> Image.Image:
        """Return the decoded image.

        Raises:
            ImageError: The image cannot be read.
        """
        if isinstance(self.image, Path):
            return read_image(self.image)
        try:
            return as_rgb(Image.open(io.BytesIO(self.image)))
        except Exception as error:  # Pillow raises many types for damaged files
            raise ImageError(f"{self.name}: its image is damaged ({error}).") from error


def read_questions(file: str | Path, images: str | Path | None = None) -> Iterator[BenchmarkQuestion]:
    """Read the questions of CV-Bench.

    Args:
        file: ``test_2d.parquet``, which contains the images, or ``test_2d.jsonl``.
        images: Folder of the images, to which the ``filename`` of a question is relative; required for JSON lines.

    Raises:
        DataError: The file or one of its columns is missing, or JSON lines are used without ``images``.
        MissingDependencyError: pyarrow is not installed.
    """
    file = Path(file)
    if not file.is_file():
        raise DataError(f"there is no file of questions {file}.")
    is_parquet = file.suffix == ".parquet"
    if not is_parquet and images is None:
        raise DataError(f"{file} does not contain images. Name their folder with --images.")
    for number, row in enumerate(_parquet_rows(file) if is_parquet else _json_rows(file)):
        try:
            name = f"question {row.get('idx', number)}"
            original = row.get("source_filename") or row["filename"]
            image = row["image"]["bytes"] if is_parquet and images is None else Path(images or "") / row["filename"]
            prompt = row.get("prompt")
            text = option_letter(prompt) if prompt else with_options(row["question"], row["choices"])
            answer = str(row["answer"]).strip("()")
            yield BenchmarkQuestion(name, text, answer, row.get("source", ""), PurePosixPath(original).name, image)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file}, row {number} must have the columns of CV-Bench; got error {error}.") from error


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    parquet = require("pyarrow.parquet", extra="focus", distribution="pyarrow")
    try:
        with parquet.ParquetFile(file) as reader:
            for batch in reader.iter_batches(batch_size=16):
                yield from batch.to_pylist()
    except require("pyarrow", extra="focus").ArrowException as error:
        raise DataError(f"{file} is not a Parquet file or is damaged: {error}") from error


def _json_rows(file: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(split_lines(file.read_text(encoding="utf-8"))):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise DataError(f"{file}, line {number + 1} is not valid JSON: {error}") from error


@dataclass(frozen=True)
class PixCVResult:
    """The result of `measure_focus`.

    Attributes:
        focus: The metric over all questions, and its options.
        by_source: The metric of each source, in ``[0, 1]``.
        accuracy: Fraction of the counted questions that the model answers correctly.
        tokens: Mean number of region tokens per image.
        answers: The answers whose attention is measured: ``generated`` or ``right``.
        skipped: Questions and annotations that were not counted.
    """

    focus: FocusResult
    by_source: dict[str, float]
    accuracy: float
    tokens: float
    answers: str
    skipped: list[Skipped]

    def reasons(self) -> Counter[str]:
        """Return the number of skipped entries by reason."""
        return Counter(entry.reason for entry in self.skipped)

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return {**vars(self), "focus": self.focus.to_dict(), "skipped": [entry._asdict() for entry in self.skipped]}


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
    """Measure the attention of a model's answers to the objects of the questions.

    Args:
        assistant: The model.
        questions: Questions from `read_questions`; they are read batch by batch.
        objects: Objects from `read_objects`.
        masks: A function from the file name and image of a question to masks, for a model that needs masks and whose
            assistant has no generator.
        answers: ``generated``, the answers of the model, decoded greedily; or ``right``, the correct answers.
        query: See `regiontok.evaluation.focus.answer_attention`.
        threshold: See `regiontok.evaluation.focus.target_regions`.
        layers: Indices of the layers to average over; None for all.
        heads: Indices of the heads to average over; None for all.
        batch_size: Number of questions per batch.
        max_new_tokens: Maximum length of a generated answer.

    Raises:
        ValueRangeError: No question could be counted; the message gives the reasons.

    Source:
        Supplement B.1. The paper does not specify the answer, nor the treatment of images without annotation.
    """
    check_choice("answers", answers, ANSWERS)
    check_choice("query", query, QUERIES)
    check_integer("batch_size", batch_size)
    check_attention(assistant.model.config, layers, heads)
    meters: defaultdict[str, FocusMeter] = defaultdict(lambda: FocusMeter(layers, heads, threshold))
    total_meter = FocusMeter(layers, heads, threshold)
    skipped = list(objects.skipped)
    correct: list[bool] = []
    counts: list[int] = []
    used: set[tuple[str, str]] = set()
    if masks is None and assistant.needs_masks and assistant.masks is not None:
        generate = assistant.masks

        def masks(_: str, image: Image.Image) -> Masks:  # masks are needed twice, and generated once
            return generate([image])[0]

    samples = _load(tqdm(questions, unit="question", desc="focus", disable=None), objects, masks, skipped, used)
    while batch := list(islice(samples, batch_size)):
        generated = assistant.answer([sample.prompt for sample in batch], max_new_tokens=max_new_tokens)
        answered = []
        for sample, answer in zip(batch, generated, strict=True):
            tokens = answer.tokens if answers == "generated" else assistant.tokenize(sample.question.answer)
            if tokens:
                answered.append((sample, answer.text, tokens))
            else:
                skipped.append(Skipped(sample.question.name, "empty answer"))
        if not answered:
            continue
        attention = assistant.attend(
            [sample.prompt for sample, _, _ in answered], [tokens for _, _, tokens in answered], query=query
        )
        targets = target_regions(
            attention.regions,
            [sample.target[None] for sample, _, _ in answered],
            threshold=threshold,
            geometry=None if assistant.knows_tile_layout else assistant.geometry,
            tiles=attention.tiles,
        )
        total_meter.add(attention, targets)
        per_image = targets.split(attention.regions.counts.tolist())
        for number, (sample, text, _) in enumerate(answered):
            is_target = torch.cat([per_image[image] for image in attention.images[number]])
            counts.append(len(is_target))
            if not is_target.any():
                skipped.append(Skipped(sample.question.name, "no region shows enough of the object"))
                continue
            part = attention._replace(weights=[attention.weights[number]], images=[attention.images[number]])
            meters[sample.question.source].add(part, targets)
            correct.append(is_correct(text, [sample.question.answer]))
    skipped += [
        Skipped(f"{source + ', ' if source else ''}{file}", "annotated image without question")
        for source, file in sorted(objects.segmentations.keys() - used)
    ]
    if not correct:
        reasons = ", ".join(f"{count} ({reason})" for reason, count in Counter(reason for _, reason in skipped).items())
        raise ValueRangeError(f"no question could be counted; skipped: {reasons or 'none, there was no question'}.")
    return PixCVResult(
        focus=total_meter.result(),
        by_source={source: meter.result().focus for source, meter in sorted(meters.items())},
        accuracy=float(np.mean(correct)),
        tokens=float(np.mean(counts)),
        answers=answers,
        skipped=skipped,
    )


class _Sample(NamedTuple):
    """A question, its prompt with the image, and the mask ``(height, width)`` of its object."""

    question: BenchmarkQuestion
    prompt: Question
    target: np.ndarray


def _load(
    questions: Iterable[BenchmarkQuestion],
    objects: Objects,
    masks: Callable[[str, Image.Image], Masks] | None,
    skipped: list[Skipped],
    used: set[tuple[str, str]],
) -> Iterator[_Sample]:
    """Yield the samples of questions; add unusable questions to ``skipped`` and annotated images to ``used``."""
    for question in questions:
        segmentations = objects.find(question.source, question.file)
        if segmentations is None:
            skipped.append(Skipped(f"{question.name} ({question.file})", "image without annotation"))
            continue
        used.update([(question.source, question.file), ("", question.file)])
        try:
            image = question.read()
            target = Objects.mask(segmentations, (image.height, image.width))
            image_masks = None if masks is None else [masks(question.file, image)]
        except ImageError as error:
            skipped.append(Skipped(f"{question.name} ({error})", "image cannot be read"))
            continue
        except RegiontokError as error:
            skipped.append(Skipped(question.name, str(error)))
            continue
        yield _Sample(question, Question(question.text, [image], image_masks), target)
