"""Data in LLaVA's JSON form: conversations about images, as samples and batches."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from stored import as_batch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from regiontok import MaskSet, masks, read_image
from regiontok.adapters.huggingface import EncoderImageProcessor
from regiontok.errors import RegiontokError
from regiontok.store import MaskStore

IMAGE = "<image>"


class DataError(ValueError):
    """A sample that cannot be trained on; the message names it."""


@dataclass(frozen=True)
class Template:
    """How the turns of a conversation become one text.

    Attributes:
        system: What stands first.
        question: A question, ``{}`` is it.
        answer: An answer, up to its end.
        end: What ends an answer, and is learnt with it; ``{eos}`` is the tokenizer's own end.
        only_image: Leave all of a question out but its image, as stage 1 does.
    """

    system: str
    question: str
    answer: str
    end: str
    only_image: bool = False

    def write(self, turns: Sequence[tuple[str, str]], eos: str) -> tuple[str, list[tuple[int, int]]]:
        """The text of questions and answers, and where its answers stand."""
        end = self.end.replace("{eos}", eos)
        text, spans = self.system, []
        for question, answer in turns:
            images = IMAGE * question.count(IMAGE)
            text += images if self.only_image else self.question.format(question)
            text += self.answer
            start = len(text)
            text += answer + end * bool(answer)
            if answer:
                spans.append((start, len(text)))
        return text, spans

    def jinja(self, eos: str) -> str:
        """The same as a chat template of transformers: a prompt ends before the space that an answer begins with."""
        before, after = (self.question.format("\0") + "\0").split("\0")[:2]
        opened = self.answer.rstrip()
        system, asked, ask, space, end = (
            json.dumps(text)
            for text in (
                self.system,
                before,
                after + opened,
                self.answer[len(opened) :],
                self.end.replace("{eos}", eos),
            )
        )
        parts = "{% if message['content'] is string %}{{ message['content'] }}{% else %}PARTS{% endif %}"
        words = "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
        images = "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
        said = parts.replace("PARTS", words)
        return (
            "{% if messages[0]['role'] != 'system' %}{{ " + system + " }}{% endif %}{% for message in messages %}"
            "{% if message['role'] == 'system' and loop.first %}" + said + "{{ ' ' }}"
            "{% elif message['role'] == 'user' %}{{ " + asked + " }}" + parts.replace("PARTS", images + words)
            + "{{ " + ask + " }}"
            "{% elif message['role'] == 'assistant' %}{{ " + space + " }}" + said + "{{ " + end + " }}"
            "{% else %}{{ raise_exception('roles must be system (first), user and assistant') }}{% endif %}{% endfor %}"
        )  # fmt: skip


TEMPLATES = {
    "plain": Template("", "{}", "", "\n", only_image=True),
    "vicuna_v1": Template(
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. ",
        "USER: {} ",
        "ASSISTANT: ",
        "{eos}",
    ),
    "bare": Template("<bos> ", "{} ", "", " "),
    "bare_caption": Template("<bos> ", "{} ", " ", " ", only_image=True),
}
"""``plain`` and ``vicuna_v1`` are LLaVA-1.5's; the others are for toy languages without roles."""


def read_turns(entry: dict[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
    """Questions with their answers, and the image files, of one entry; a question's images are put before its words.

    Raises:
        DataError: A role that is unknown or out of turn, no answer, or images that are not those of the questions.
    """
    name = name_of(entry)
    turns: list[tuple[str, str]] = []
    question: str | None = None
    conversations = entry.get("conversations") or []
    if not isinstance(conversations, list) or not all(isinstance(turn, dict) for turn in conversations):
        raise DataError(f"sample {name}: its conversations must be a list of objects with from and value.")
    for number, turn in enumerate(conversations):
        role, value = turn.get("from"), turn.get("value")
        if role not in ("human", "gpt"):
            raise DataError(f"sample {name}: turn {number} is from {role!r}; it must be from 'human' or 'gpt'.")
        if not isinstance(value, str) or not value:
            raise DataError(f"sample {name}: turn {number} has no text.")
        if (role == "human") == (question is not None):
            raise DataError(f"sample {name}: turn {number} is from {role!r}, out of turn.")
        if role == "human":
            question = value
        elif IMAGE in value:
            raise DataError(f"sample {name}: turn {number} is an answer and holds {IMAGE}, which stands for an image.")
        else:
            turns.append((str(question), value))
            question = None
    if not turns or question is not None:
        raise DataError(f"sample {name}: it must end with an answer, from 'gpt'.")
    files = files_of(entry)
    held = sum(asked.count(IMAGE) for asked, _ in turns)
    if held != len(files):
        raise DataError(f"sample {name}: its questions hold {held} {IMAGE} and it names {len(files)} images.")
    return [(_image_first(asked), told) for asked, told in turns], files


def name_of(entry: dict[str, Any]) -> str:
    """What to call an entry in messages."""
    return str(entry.get("id", "without an id"))


def files_of(entry: dict[str, Any]) -> list[str]:
    """The image files of an entry, which may name one, several or none."""
    files = entry.get("image") or []
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list) or not all(isinstance(file, str) and file for file in files):
        raise DataError(f"sample {name_of(entry)}: image must be a file name or a list of them; got {files!r}.")
    return files


def _image_first(question: str) -> str:
    """LLaVA's order: images before the words, whatever the file has."""
    count = question.count(IMAGE)
    words = question.replace(IMAGE, "").strip()
    return "\n".join([IMAGE] * count + [words] * bool(words)) if count else question


def read_entries(file: str | Path) -> list[dict[str, Any]]:
    """Return the entries of a LLaVA JSON file.

    Raises:
        DataError: It cannot be read, is no JSON, or holds something else than a list of objects.
    """
    try:
        entries = json.loads(Path(file).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}.") from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{file} must hold a list of samples.")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DataError(f"{file}: entry {number} must be an object; got {type(entry).__name__}.")
    return entries


class Conversations(Dataset[dict[str, Any]]):
    """Samples of a LLaVA JSON file.

    Args:
        file: A list of entries with ``id``, ``image`` (a file or several, or none) and ``conversations``.
        images: The folder that image files are named from.
        tokenizer: One with a placeholder token ``<image>``.
        template: Writes the prompts.
        image_processor: Places the images.
        masks: `StoredMasks` or `GeneratedMasks`, for sources of masks.
        features: What a store has in the place of pixels; images are not read then.
        visual_tokens: How many tokens an image will have, as far as that is known from the number of its masks.
        max_length: Tokens of a sample, with those of its images as far as they are known.
        on_bad_image: ``error``, or ``skip``: the next sample is taken instead, and the file named in ``skipped``.
        on_too_long: The same for samples beyond ``max_length``.
        skipped: A file to which names of samples that were skipped are added.
    """

    def __init__(
        self,
        file: str | Path,
        images: str | Path,
        *,
        tokenizer: Any,
        template: Template,
        image_processor: EncoderImageProcessor,
        masks: Any = None,
        features: Any = None,
        visual_tokens: "VisualTokens",
        max_length: int = 2048,
        on_bad_image: str = "error",
        on_too_long: str = "error",
        skipped: str | Path | None = None,
    ) -> None:
        self.entries = read_entries(file)
        self.images = Path(images)
        self.tokenizer = tokenizer
        self.template = template
        self.image_processor = image_processor
        self.masks = masks
        self.features = features
        self.visual_tokens = visual_tokens
        self.max_length = max_length
        self.on_bad_image = on_bad_image
        self.on_too_long = on_too_long
        self.skipped = None if skipped is None else Path(skipped)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for step in range(len(self)):
            entry = self.entries[(index + step) % len(self)]
            try:
                return self.sample(entry)
            except SkippedError as error:
                if self.skipped is not None:
                    with self.skipped.open("a", encoding="utf-8") as file:
                        file.write(f"{error}\n")
        raise DataError("every sample was skipped.")

    def sample(self, entry: dict[str, Any]) -> dict[str, Any]:
        """One entry as ids, labels, and what its images need."""
        turns, files = read_turns(entry)
        name = name_of(entry)
        pixels, sizes, found = [], [], []
        for file in files:
            try:
                image = None
                if self.features is None:
                    image = read_image(self.images / file)
                    pixels.append(self.image_processor([image])["pixel_values"])
                    sizes.append((image.height, image.width))
                else:
                    features, size = self.features(file)
                    pixels.append(features[None])
                    sizes.append(size)
                if self.masks is not None:
                    found.append(self.masks(file, image))
            except RegiontokError as error:
                kind = SkippedError if self.on_bad_image == "skip" else DataError
                raise kind(f"sample {name}: {error}") from error
        text, spans = self.template.write(turns, self.tokenizer.eos_token)
        encoded = self.tokenizer(text, return_offsets_mapping=True)
        ids = torch.tensor(encoded["input_ids"])
        start, end = torch.tensor(encoded["offset_mapping"]).unbind(1)
        learnt = torch.zeros(len(ids), dtype=torch.bool)
        for first, last in spans:
            learnt |= (start < last) & (end > first) & (end > start)
        known = [len(one) for one in found] or [self._known(file) for file in files]
        length = len(ids) + sum(self.visual_tokens(one) - 1 for one in known)
        if length > self.max_length:
            kind = SkippedError if self.on_too_long == "skip" else DataError
            raise kind(
                f"sample {name}: it has {length} tokens with those of its images; at most {self.max_length} fit."
            )
        sample: dict[str, Any] = {"name": name, "input_ids": ids, "labels": torch.where(learnt, ids, -100)}
        if pixels:
            sample["pixel_values"] = as_batch(pixels)
        sample["image_sizes"] = sizes
        sample["masks"] = found
        return sample

    def lengths(self) -> list[int]:
        """About how long each sample is, with the tokens of its images as far as they are known; negative for text."""
        result = []
        for entry in self.entries:
            words = sum(len(asked.split()) + len(answer.split()) for asked, answer in read_turns(entry)[0])
            files = files_of(entry)
            known = [self._known(file) for file in files]
            result.append(words + sum(self.visual_tokens(one) for one in known) if files else -words)
        return result

    def _known(self, file: str) -> int | None:
        """How many tokens or masks an image has, where that is known before it is encoded."""
        source = self.masks or self.features
        count: int | None = None if source is None else source.count(file)
        return count


@dataclass(frozen=True)
class VisualTokens:
    """How many tokens an image will have, as far as that is known before it is encoded.

    Attributes:
        source: Of the Regionizer.
        patches: Patches of an image.
    """

    source: str
    patches: int

    def __call__(self, masks: int | None) -> int:
        """All patches; the masks, where there are so many; or at least one."""
        if self.source == "patch":
            return self.patches
        return max(1, masks or 1)


class SkippedError(Exception):
    """A sample that is left out, by option."""


@dataclass
class Collator:
    """Samples to one batch, padded on the right; what is of images is in the order of the images."""

    padding_id: int
    by_masks: bool

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Join samples."""
        pad = torch.nn.utils.rnn.pad_sequence
        ids = [sample["input_ids"] for sample in samples]
        batch: dict[str, Any] = {
            "names": [sample["name"] for sample in samples],
            "input_ids": pad(ids, batch_first=True, padding_value=self.padding_id),
            "attention_mask": pad([torch.ones_like(one) for one in ids], batch_first=True),
            "labels": pad([sample["labels"] for sample in samples], batch_first=True, padding_value=-100),
        }
        pixels = [sample["pixel_values"] for sample in samples if "pixel_values" in sample]
        if pixels:
            batch["pixel_values"] = as_batch(pixels)
            batch["image_sizes"] = [size for sample in samples for size in sample["image_sizes"]]
            batch["num_images"] = [len(sample["image_sizes"]) for sample in samples]
            if self.by_masks:
                batch["masks"] = [one for sample in samples for one in sample["masks"]]
        return batch


class ByModalityAndLength(Sampler[int]):
    """Batches of like length, of images or of text alone, in random order; the same for the same seed and epoch.

    Args:
        lengths: Of `Conversations.lengths`.
        batch_size: Samples of a step over all processes.
        seed: Of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = torch.tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw another order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        batches: list[Tensor] = []
        rest: list[Tensor] = []
        for kind in ((self.lengths > 0).nonzero(), (self.lengths <= 0).nonzero()):
            index = kind.flatten()[torch.randperm(len(kind), generator=generator)]
            for group in index.split(50 * self.batch_size):  # sorted in groups, so that batches differ between epochs
                ordered = group[self.lengths[group].abs().argsort(descending=True, stable=True)]
                for batch in ordered.split(self.batch_size):
                    (batches if len(batch) == self.batch_size else rest).append(batch)
        order = torch.randperm(len(batches), generator=generator).tolist()
        yield from torch.cat([*(batches[one] for one in order), *rest]).tolist()


@dataclass
class StoredMasks:
    """Masks of images from a store that ``regiontok masks`` wrote.

    Attributes:
        store: With keys below the folder of images.
        missing: Makes masks of images that the store has not; without it they are an error.
    """

    store: MaskStore
    missing: "GeneratedMasks | None" = None

    def __call__(self, file: str, image: Any) -> MaskSet:
        """Those of one image by its file's name."""
        if self.missing is not None and file not in self.store:
            return self.missing(file, image)
        return self.store[file]

    def count(self, file: str) -> int | None:
        """How many it has; None where it has none, which is told when it is read."""
        return self.store.count(file) if file in self.store else None


class GeneratedMasks:
    """Masks of images made as they are read, by a generator of `regiontok.masks` on this process's device."""

    def __init__(self, name: str) -> None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
        self.generator = masks.load(name, **({} if name == "felzenszwalb" else {"device": device}))

    def __call__(self, file: str, image: Any) -> MaskSet:
        """Those of one image."""
        return self.generator([image])[0]

    def count(self, file: str) -> int | None:
        """Not known before they are made."""
        return None
