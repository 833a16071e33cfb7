"""Conversations about images in the JSON format of LLaVA, as samples and batches."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from stored import as_batch
from templates import IMAGE, Template
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from regiontok import MaskSet, masks, read_image
from regiontok.adapters.huggingface import EncoderImageProcessor
from regiontok.errors import RegiontokError
from regiontok.store import MaskStore


class DataError(ValueError):
    """An invalid sample or data file. The message names it."""


def read_turns(entry: dict[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return pairs of question and answer, and the image files of an entry. Images are moved before the question.

    Raises:
        DataError: A role is unknown or out of turn, an answer is missing, or images and placeholders differ in number.
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
            raise DataError(f"sample {name}: turn {number} is an answer; only questions may hold {IMAGE}.")
        else:
            turns.append((str(question), value))
            question = None
    if not turns or question is not None:
        raise DataError(f"sample {name}: it must end with an answer, from 'gpt'.")
    files = files_of(entry)
    num_images = sum(question.count(IMAGE) for question, _ in turns)
    if num_images != len(files):
        raise DataError(f"sample {name}: its questions hold {num_images} {IMAGE} and it names {len(files)} images.")
    return [(_image_first(question), answer) for question, answer in turns], files


def name_of(entry: dict[str, Any]) -> str:
    """Return the name of an entry for messages."""
    return str(entry.get("id", "without an id"))


def files_of(entry: dict[str, Any]) -> list[str]:
    """Return the image files of an entry: one, several or none."""
    files = entry.get("image") or []
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list) or not all(isinstance(file, str) and file for file in files):
        raise DataError(f"sample {name_of(entry)}: image must be a file name or a list of them; got {files!r}.")
    return files


def _image_first(question: str) -> str:
    """Move the images of a question before its text, like LLaVA."""
    count = question.count(IMAGE)
    text = question.replace(IMAGE, "").strip()
    return "\n".join([IMAGE] * count + [text] * bool(text)) if count else question


def read_entries(file: str | Path) -> list[dict[str, Any]]:
    """Return the entries of a LLaVA JSON file.

    Raises:
        DataError: The file is not readable, not JSON, or not a list of objects.
    """
    try:
        entries = json.loads(Path(file).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {file} as JSON: {error}.") from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{file} must hold a list of samples.")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DataError(f"{file}: entry {number} must be an object; got {type(entry).__name__}.")
    return entries


class Conversations(Dataset[dict[str, Any]]):
    """Samples of a LLaVA JSON file.

    Args:
        file: A list of entries with ``id``, ``image`` (one file, several files or none) and ``conversations``.
        images: Folder of the image files.
        tokenizer: Tokenizer with a placeholder token ``<image>``.
        template: Prompt template.
        image_processor: Image processor of the encoder.
        masks: `StoredMasks` or `GeneratedMasks`, for sources that need masks.
        features: `StoredFeatures` that replace pixels. Images are not read.
        visual_tokens: Minimum number of tokens of an image.
        max_length: Maximum number of tokens of a sample, including the ``visual_tokens`` of its images.
        on_bad_image: ``error``, or ``skip`` to use the next sample if an image cannot be read.
        on_too_long: ``error``, or ``skip`` to use the next sample if a sample is longer than ``max_length``.
        skipped: File to which the names of skipped samples are appended.
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
        raise DataError("all samples were skipped.")

    def sample(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Return token ids, labels, pixels, image sizes and masks of an entry."""
        turns, files = read_turns(entry)
        name = name_of(entry)
        pixels, sizes, mask_sets = [], [], []
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
                    mask_sets.append(self.masks(file, image))
            except RegiontokError as error:
                error_type = SkippedError if self.on_bad_image == "skip" else DataError
                raise error_type(f"sample {name}: {error}") from error
        text, spans = self.template.write(turns, self.tokenizer.eos_token)
        encoded = self.tokenizer(text, return_offsets_mapping=True)
        ids = torch.tensor(encoded["input_ids"])
        start, end = torch.tensor(encoded["offset_mapping"]).unbind(1)
        is_answer = torch.zeros(len(ids), dtype=torch.bool)
        for first, last in spans:
            is_answer |= (start < last) & (end > first) & (end > start)
        counts = [len(masks) for masks in mask_sets] or [self._count(file) for file in files]
        length = len(ids) + sum(self.visual_tokens(count) - 1 for count in counts)
        if length > self.max_length:
            error_type = SkippedError if self.on_too_long == "skip" else DataError
            raise error_type(
                f"sample {name}: it has {length} tokens including its images; at most {self.max_length} fit."
            )
        sample: dict[str, Any] = {"name": name, "input_ids": ids, "labels": torch.where(is_answer, ids, -100)}
        if pixels:
            sample["pixel_values"] = as_batch(pixels)
        sample["image_sizes"] = sizes
        sample["masks"] = mask_sets
        return sample

    def lengths(self) -> list[int]:
        """Return the approximate length of each sample: words plus `visual_tokens`; negative without images."""
        lengths = []
        for entry in self.entries:
            turns, files = read_turns(entry)
            words = sum(len(question.split()) + len(answer.split()) for question, answer in turns)
            lengths.append(words + sum(self.visual_tokens(self._count(file)) for file in files) if files else -words)
        return lengths

    def _count(self, file: str) -> int | None:
        """Return the number of masks or stored tokens of an image; None if it is unknown before encoding."""
        source = self.masks or self.features
        count: int | None = None if source is None else source.count(file)
        return count


@dataclass(frozen=True)
class VisualTokens:
    """Minimum number of tokens of an image, computed before encoding.

    Attributes:
        source: Source of the Regionizer, or ``stored`` for stored tokens.
        patches: Number of patches of an image.
    """

    source: str
    patches: int

    def __call__(self, count: int | None) -> int:
        """Return the number of tokens, from the number of masks or stored tokens if it is known."""
        return self.patches if self.source == "patch" else max(1, count or 1)


class SkippedError(Exception):
    """A sample is skipped, as selected by ``on_bad_image`` or ``on_too_long``."""


@dataclass
class Collator:
    """Join samples to a batch, padded on the right. Pixels, sizes and masks are lists over all images of the batch."""

    padding_id: int
    needs_masks: bool

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch of these samples."""
        pad = torch.nn.utils.rnn.pad_sequence
        ids = [sample["input_ids"] for sample in samples]
        batch: dict[str, Any] = {
            "names": [sample["name"] for sample in samples],
            "input_ids": pad(ids, batch_first=True, padding_value=self.padding_id),
            "attention_mask": pad([torch.ones_like(sample_ids) for sample_ids in ids], batch_first=True),
            "labels": pad([sample["labels"] for sample in samples], batch_first=True, padding_value=-100),
        }
        pixels = [sample["pixel_values"] for sample in samples if "pixel_values" in sample]
        if pixels:
            batch["pixel_values"] = as_batch(pixels)
            batch["image_sizes"] = [size for sample in samples for size in sample["image_sizes"]]
            batch["num_images"] = [len(sample["image_sizes"]) for sample in samples]
            if self.needs_masks:
                batch["masks"] = [masks for sample in samples for masks in sample["masks"]]
        return batch


class ByModalityAndLength(Sampler[int]):
    """Sampler for batches of similar length, either with images or of text only, in random order.

    The order depends only on the seed and the epoch.

    Args:
        lengths: Lengths from `Conversations.lengths`.
        batch_size: Samples per optimizer step, over all processes and accumulation steps.
        seed: Seed of the random order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = torch.tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which changes the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        batches: list[Tensor] = []
        incomplete: list[Tensor] = []
        for modality in ((self.lengths > 0).nonzero(), (self.lengths <= 0).nonzero()):
            samples = modality.flatten()[torch.randperm(len(modality), generator=generator)]
            for group in samples.split(50 * self.batch_size):  # sort within random groups, so that epochs differ
                ordered = group[self.lengths[group].abs().argsort(descending=True, stable=True)]
                for batch in ordered.split(self.batch_size):
                    (batches if len(batch) == self.batch_size else incomplete).append(batch)
        order = torch.randperm(len(batches), generator=generator).tolist()
        yield from torch.cat([*(batches[index] for index in order), *incomplete]).tolist()


@dataclass
class StoredMasks:
    """Masks of images from a store written by ``regiontok masks``.

    Attributes:
        store: Store whose keys are paths relative to the image folder.
        missing: Generator for images without stored masks; None to raise an error for them.
    """

    store: MaskStore
    missing: "GeneratedMasks | None" = None

    def __call__(self, file: str, image: Any) -> MaskSet:
        """Return the masks of an image by its file name."""
        if self.missing is not None and file not in self.store:
            return self.missing(file, image)
        return self.store[file]

    def count(self, file: str) -> int | None:
        """Return the number of masks of an image; None if it is not in the store."""
        return self.store.count(file) if file in self.store else None


class GeneratedMasks:
    """Masks generated while images are read, by a generator of `regiontok.masks` on the device of this process."""

    def __init__(self, name: str) -> None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
        self.generator = masks.load(name, **({} if name == "felzenszwalb" else {"device": device}))

    def __call__(self, file: str, image: Any) -> MaskSet:
        """Return the masks of an image."""
        return self.generator([image])[0]

    def count(self, file: str) -> int | None:
        """Return None, because the number of masks is unknown before they are generated."""
        return None
