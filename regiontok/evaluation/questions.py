"""Your own questions about your own images: read from a file, answered by a model, and compared with the answers.

    questions = read_questions("mine.json")
    result = answer_questions(assistant, questions)
    print(result.accuracy, result.tokens)

The file is a JSON list, or has one JSON object per line (``.jsonl``), with these keys:

    question    the question
    image       path of its image, relative to the folder of the file; or "images", a list of paths
    answer      the expected answer, or a list of accepted answers; optional
    options     options to choose from; the expected answer is one of them or its letter; optional
    id          a name in the results; optional, by default the number of the question

Questions with options, and those with an expected answer, are asked in the paper's two formats; see
`regiontok.evaluation.prompts`. Others are asked unchanged.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from PIL import Image
from tqdm import tqdm

from regiontok._files import split_lines
from regiontok._values import check_integer
from regiontok.downsample import Masks
from regiontok.errors import DataError, RegiontokError
from regiontok.evaluation.assistant import Answer, Assistant, Question
from regiontok.evaluation.prompts import short_answer, with_options
from regiontok.images import read_image

_KEYS = ("question", "image", "images", "answer", "options", "id")


@dataclass(frozen=True)
class FileQuestion:
    """A question of a file; see `read_questions`.

    Attributes:
        name: Its ``id``, or its number in the file.
        question: The text of the question.
        prompt: The text that the model receives.
        images: Paths of its images.
        expected: Accepted answers; empty if the answer is not known.
    """

    name: str
    question: str
    prompt: str
    images: tuple[str, ...]
    expected: tuple[str, ...]


@dataclass(frozen=True)
class AnsweredQuestion:
    """The answer to a `FileQuestion`.

    Attributes:
        name: Name of the question.
        question: The text of the question.
        answer: The answer of the model; None if the question failed.
        expected: Accepted answers.
        is_correct: Whether the answer is an accepted one; None without accepted answers, or if the question failed.
        tokens: Number of region tokens of each image.
        error: The reason why the question failed.
    """

    name: str
    question: str
    answer: str | None
    expected: tuple[str, ...]
    is_correct: bool | None
    tokens: tuple[int, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class QuestionsResult:
    """The answers to the questions of a file.

    Attributes:
        answers: One entry per question, in their order.
    """

    answers: list[AnsweredQuestion]

    @property
    def accuracy(self) -> float | None:
        """Fraction of correct answers among those with a known answer; None if there are none."""
        marks = [answer.is_correct for answer in self.answers if answer.is_correct is not None]
        return sum(marks) / len(marks) if marks else None

    @property
    def tokens(self) -> float | None:
        """Mean number of region tokens per image; None without images."""
        counts = [count for answer in self.answers for count in answer.tokens]
        return sum(counts) / len(counts) if counts else None

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        answers = [asdict(answer) for answer in self.answers]
        return {"accuracy": self.accuracy, "tokens": self.tokens, "answers": answers}


def read_questions(file: str | Path, images: str | Path | None = None) -> list[FileQuestion]:
    """Read questions from a JSON or JSON-lines file; see the module for its keys.

    Args:
        file: The file.
        images: The folder that paths of images are relative to; by default the folder of the file.

    Raises:
        DataError: The file is missing or damaged, or an entry has an unknown key, or a key with a wrong type.
    """
    file = Path(file)
    try:
        text = file.read_text(encoding="utf-8")
        lines = [line for line in split_lines(text) if line.strip()]
        entries = [json.loads(line) for line in lines] if file.suffix == ".jsonl" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as questions in JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{file} must be a list of questions; got {type(entries).__name__} {str(entries)[:60]}.")
    folder = file.parent if images is None else Path(images)
    return [_parse(f"{file}, question {number}", number, entry, folder) for number, entry in enumerate(entries)]


def _parse(place: str, number: int, entry: Any, folder: Path) -> FileQuestion:
    if not isinstance(entry, dict) or not isinstance(entry.get("question"), str):
        raise DataError(f"{place} must be an object with the key question; got {str(entry)[:80]}.")
    for key in sorted(entry.keys() - set(_KEYS)):
        raise DataError(f"{place} has the unknown key {key!r}. The keys are {', '.join(_KEYS)}.")
    if "image" in entry and "images" in entry:
        raise DataError(f"{place} has both image and images. Leave one of them out.")
    paths = _texts(place, "images", entry["images"] if "images" in entry else entry.get("image", []))
    options = _texts(place, "options", entry.get("options", []))
    expected = _texts(place, "answer", entry.get("answer", []))
    question = prompt = entry["question"]
    if options:
        try:
            prompt = with_options(question, options)
        except RegiontokError as error:
            raise DataError(f"{place}: {error}") from error
        expected = tuple(_letter(place, answer, options) for answer in expected)
    elif expected:
        prompt = short_answer(question)
    images = tuple(str(folder / path) for path in paths)
    return FileQuestion(str(entry.get("id", number)), question, prompt, images, expected)


def _texts(place: str, key: str, value: Any) -> tuple[str, ...]:
    """Return a text or number, or a list of them, as texts."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str | int | float) and not isinstance(text, bool) for text in values):
        raise DataError(f"{place}: {key} must be a text or a list of texts; got {str(value)[:60]}.")
    return tuple(map(str, values))


def _letter(place: str, answer: str, options: Sequence[str]) -> str:
    """Return the letter of an expected answer, which is an option or the letter of one."""
    letters = ascii_uppercase[: len(options)]
    if answer in options:
        return letters[options.index(answer)]
    if len(answer) == 1 and answer.upper() in letters:
        return answer.upper()
    raise DataError(f"{place}: the answer {answer!r} is neither one of the options nor a letter up to {letters[-1]}.")


def is_correct(text: str, expected: Sequence[str]) -> bool:
    """Return whether a text is one of the accepted answers.

    Case, surrounding spaces and a final full stop are ignored. A single letter also matches ``(B) two`` and ``b: two``.

    Example:
        >>> is_correct(" Red.", ["red"]), is_correct("(B) two", ["B"]), is_correct("Both", ["B"])
        (True, True, False)
    """
    return any(_matches(text, answer) for answer in expected)


def _matches(text: str, answer: str) -> bool:
    if len(answer) != 1:
        return text.strip().rstrip(".").casefold() == answer.strip().rstrip(".").casefold()
    match = re.match(r"\W*(\w)(?!\w)", text)
    return match is not None and match[1].upper() == answer.upper()


def answer_questions(
    assistant: Assistant,
    questions: Sequence[FileQuestion],
    *,
    masks: Callable[[str, Image.Image], Masks] | None = None,
    batch_size: int = 1,
    max_new_tokens: int = 128,
) -> QuestionsResult:
    """Answer questions, and compare the answers with the expected ones.

    A question that fails, for example because an image cannot be read, has the reason in its result.

    Args:
        assistant: The model.
        questions: Questions of `read_questions`.
        masks: A function from the path of an image and the image to its masks, for a model that needs masks.
        batch_size: Number of questions per batch.
        max_new_tokens: Maximum length of an answer.
    """
    check_integer("batch_size", batch_size)
    results: list[AnsweredQuestion] = []
    with tqdm(total=len(questions), unit="question", disable=None) as progress:
        for start in range(0, len(questions), batch_size):
            batch = questions[start : start + batch_size]
            results += _answer_batch(assistant, batch, masks, max_new_tokens)
            progress.update(len(batch))
    return QuestionsResult(results)


def _answer_batch(
    assistant: Assistant,
    questions: Sequence[FileQuestion],
    masks: Callable[[str, Image.Image], Masks] | None,
    max_new_tokens: int,
) -> list[AnsweredQuestion]:
    """Answer a batch. If it fails, answer each question separately, to find those that fail."""
    try:
        answers = assistant.answer([_prompt(question, masks) for question in questions], max_new_tokens=max_new_tokens)
    except (RegiontokError, OSError) as error:
        if len(questions) > 1:
            return [
                answer
                for question in questions
                for answer in _answer_batch(assistant, [question], masks, max_new_tokens)
            ]
        (question,) = questions
        return [AnsweredQuestion(question.name, question.question, None, question.expected, None, error=str(error))]
    return [_mark(question, answer) for question, answer in zip(questions, answers, strict=True)]


def _prompt(question: FileQuestion, masks: Callable[[str, Image.Image], Masks] | None) -> Question:
    images = [read_image(path) for path in question.images]
    if masks is None:
        return Question(question.prompt, images)
    image_masks = [masks(path, image) for path, image in zip(question.images, images, strict=True)]
    return Question(question.prompt, images, image_masks)


def _mark(question: FileQuestion, answer: Answer) -> AnsweredQuestion:
    correct = is_correct(answer.text, question.expected) if question.expected else None
    return AnsweredQuestion(
        question.name, question.question, answer.text, question.expected, correct, tuple(answer.counts)
    )
