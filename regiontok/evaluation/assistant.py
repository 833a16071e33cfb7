"""`Assistant`: a region model that answers questions about images and returns the attention of its answers.

    assistant = Assistant.load("out/instruct/model")
    assistant.answer([Question(short_answer("What colour is the bus?"), [image])])[0].text

`regiontok.evaluation.prompts` has the paper's prompt formats.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from regiontok._require import check_importable, require
from regiontok._values import check_integer
from regiontok.choices import MASK_SOURCES
from regiontok.downsample import Masks
from regiontok.errors import CheckpointError, DTypeError, ValueRangeError
from regiontok.evaluation.focus import RegionAttention, answer_attention
from regiontok.geometry import ImageGeometry
from regiontok.images import as_images
from regiontok.regionizer import Regionizer

MaskGenerator = Callable[[list[Image.Image]], Sequence[Masks]]
"""A function from images to their masks, like the generators of `regiontok.masks`."""

GREEDY = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
"""Arguments of ``generate`` for greedy decoding."""


class Question(NamedTuple):
    """A question of one user turn.

    Attributes:
        text: The prompt text.
        images: The images of the question, which are placed before the text.
        masks: The masks of each image, if the model needs masks and its assistant has no generator.
    """

    text: str
    images: Sequence[Image.Image] = ()
    masks: Sequence[Masks] | None = None


class Answer(NamedTuple):
    """An answer of the model.

    Attributes:
        text: The text without special tokens.
        tokens: Token ids before the end token.
        counts: Number of region tokens of each image of the question.
    """

    text: str
    tokens: list[int]
    counts: list[int]


class Assistant:
    """A region model with its processor. Decoding is greedy; images of a batch may have different token counts.

    Args:
        model: A region model of `regiontok.adapters.huggingface`.
        processor: Its ``AutoProcessor``, with a chat template. Its tokenizer is set to pad on the left.
        masks: A mask generator, for a model that needs masks.

    Raises:
        DTypeError: The model has no region tokens.
        CheckpointError: The processor has no chat template, or its tokenizer no padding token.
    """

    def __init__(self, model: Any, processor: Any, *, masks: MaskGenerator | None = None) -> None:
        if not hasattr(model, "regionizer"):
            raise DTypeError(
                f"model must have region tokens; got {type(model).__name__}. Convert it with "
                "regiontok.adapters.huggingface.with_regions, or load it with Assistant.load."
            )
        if getattr(processor, "chat_template", None) is None:
            raise CheckpointError(
                "the processor must have a chat template, which formats questions. Set processor.chat_template, or "
                "use a checkpoint that has one."
            )
        if processor.tokenizer.pad_token_id is None:
            raise CheckpointError(
                "the tokenizer must have a padding token. Set tokenizer.pad_token, e.g. to eos_token."
            )
        self.model = model
        self.processor = processor
        self.masks = masks
        processor.tokenizer.padding_side = "left"

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        regionizer: Regionizer | None = None,
        masks: MaskGenerator | None = None,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> "Assistant":
        """Load a model folder and its processor.

        Args:
            folder: Folder of a region model, as written by the training recipe; or folder or hub name of a stock model.
            regionizer: The `Regionizer` of a stock model; by default every patch is a token.
            masks: A mask generator; see the class.
            device: Device of the model; the CPU by default.
            options: Further arguments of ``from_pretrained``, such as ``dtype``.

        Raises:
            CheckpointError, ValueRangeError: The folder has no supported model, or no processor.
        """
        huggingface = require("regiontok.adapters.huggingface", extra="hf")
        transformers = require("transformers", extra="hf")
        check_importable("torchvision")
        model = huggingface.load_model(folder, regionizer=regionizer, **options)
        try:
            processor = transformers.AutoProcessor.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder} has a model but no processor: {error}") from error
        return cls(model.to(device or "cpu"), processor, masks=masks)

    @property
    def needs_masks(self) -> bool:
        """Whether the regions of the model are made from masks."""
        return self.model.regionizer.config.source in MASK_SOURCES

    @property
    def knows_tile_layout(self) -> bool:
        """Whether the model knows where its tiles are in the image."""
        return bool(self.model.knows_tile_layout)

    @property
    def geometry(self) -> ImageGeometry:
        """Geometry by which images are resized and padded: the Regionizer's if set, otherwise the processor's.

        Raises:
            ValueRangeError: The processor is not supported; see `geometry_of`.
        """
        geometry: ImageGeometry | None = self.model.regionizer.config.geometry
        if geometry is None:
            geometry = require("regiontok.adapters.huggingface", extra="hf").geometry_of(self.processor)
        return geometry

    def answer(
        self, questions: Sequence[Question], *, max_new_tokens: int = 128, stop: Sequence[str] = ()
    ) -> list[Answer]:
        """Answer a batch of questions.

        Args:
            questions: The questions; the whole batch must fit into memory.
            max_new_tokens: Maximum length of an answer.
            stop: Strings at which the text of an answer is cut; its tokens are not cut.

        Raises:
            ValueRangeError: There is no question, a question contains an image placeholder, or masks are missing.
            ImageError: An image cannot be read.
        """
        check_integer("max_new_tokens", max_new_tokens)
        inputs, num_images = self._batch_inputs(questions)
        counts: list[int] = []
        with torch.no_grad():
            if "pixel_values" in inputs:
                expanded = self.model.expand(**inputs, left=True)
                inputs, counts = expanded.inputs, expanded.counts
            placeholder = [self.model.config.image_token_id]
            sequences = self.model.generate(
                **inputs, **GREEDY, max_new_tokens=max_new_tokens, suppress_tokens=placeholder
            )
        generated = sequences[:, inputs["input_ids"].shape[1] :].tolist()
        next_count = iter(counts)
        return [
            self.decode_answer(tokens, [next(next_count) for _ in range(number)], stop)
            for tokens, number in zip(generated, num_images, strict=True)
        ]

    def decode_answer(self, tokens: list[int], counts: list[int], stop: Sequence[str]) -> Answer:
        """Return the answer that generated tokens encode."""
        tokens = self._before_end(tokens)
        text = self.processor.tokenizer.decode(tokens, skip_special_tokens=True)
        for end in filter(None, stop):
            text = text.split(end)[0]
        return Answer(text.strip(), tokens, counts)

    def attend(
        self, questions: Sequence[Question], answers: Sequence[Sequence[int]], *, query: str = "answer"
    ) -> RegionAttention:
        """Return the attention of answers to the regions of their images; see `answer_attention`.

        Args:
            questions: The questions of a batch.
            answers: Token ids of each answer, from ``Answer.tokens`` or `tokenize`.
            query: See `answer_attention`.

        Raises:
            ValueRangeError: An answer has no token. See also `answer`.
        """
        for number, tokens in enumerate(answers):
            if not len(tokens):
                raise ValueRangeError(f"answers must have at least one token each; answer {number} has none.")
        inputs, _ = self._batch_inputs(questions)
        prompt_ids, prompt_mask = inputs.pop("input_ids"), inputs.pop("attention_mask").bool()
        sequences = [
            torch.cat([ids[is_prompt], ids.new_tensor(list(tokens))])
            for ids, is_prompt, tokens in zip(prompt_ids, prompt_mask, answers, strict=True)
        ]
        shape = len(sequences), max(map(len, sequences))
        input_ids = prompt_ids.new_full(shape, self.processor.tokenizer.pad_token_id)
        mask = prompt_ids.new_zeros(shape)
        is_answer = torch.zeros_like(mask, dtype=torch.bool)
        for row, (sequence, tokens) in enumerate(zip(sequences, answers, strict=True)):
            input_ids[row, -len(sequence) :] = sequence
            mask[row, -len(sequence) :] = 1
            is_answer[row, -len(tokens) :] = True
        for name, answer_type in (("token_type_ids", self.model.model.answer_type), ("mm_token_type_ids", 0)):
            if name in inputs:
                types = torch.zeros_like(mask).masked_fill(is_answer, answer_type)
                types[mask.bool() & ~is_answer] = inputs[name][prompt_mask]
                inputs[name] = types
        return answer_attention(self.model, is_answer, query=query, input_ids=input_ids, attention_mask=mask, **inputs)

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of the text of an answer."""
        return list(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _batch_inputs(self, questions: Sequence[Question]) -> tuple[dict[str, Any], list[int]]:
        """Return the inputs of the model for a batch, and the number of images of each question."""
        if not questions:
            raise ValueRangeError("there must be at least one question; got none.")
        chats: list[list[dict[str, Any]]] = []
        images: list[list[Image.Image]] = []
        masks: list[Masks] = []
        for number, question in enumerate(questions):
            question_images, content, question_masks = self.build_content(number, question)
            chats.append([{"role": "user", "content": content}])
            images.append(question_images)
            masks += question_masks
        return self.build_inputs(chats, images, masks), [len(question_images) for question_images in images]

    def build_content(
        self, number: int, question: Question
    ) -> tuple[list[Image.Image], list[dict[str, Any]], Sequence[Masks]]:
        """Return the images of a question, its content of a chat message, and the masks of its images."""
        placeholder = getattr(self.processor, "image_token", "<image>")
        if placeholder in question.text:
            raise ValueRangeError(
                f"question {number} must not contain the image placeholder {placeholder}. Remove it: images are placed "
                "before the text."
            )
        images = as_images(list(question.images)) if len(question.images) else []
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question.text}]
        return images, content, self._masks_of(number, question, images) if self.needs_masks and images else []

    def build_inputs(
        self, chats: list[list[dict[str, Any]]], images: list[list[Image.Image]], masks: Sequence[Masks]
    ) -> dict[str, Any]:
        """Return the arguments of the model's ``expand`` for chats and their images."""
        texts = self.processor.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        process = require("regiontok.adapters.huggingface", extra="hf").process
        inputs: dict[str, Any] = process(self.model, self.processor, texts, images)
        return inputs | ({"masks": list(masks)} if masks else {})

    def _masks_of(self, number: int, question: Question, images: list[Image.Image]) -> Sequence[Masks]:
        if question.masks is not None:
            if len(question.masks) != len(images):
                raise ValueRangeError(
                    f"question {number} must have masks for each of its {len(images)} images; got "
                    f"{len(question.masks)}."
                )
            return question.masks
        if self.masks is None:
            raise ValueRangeError(
                f"the model needs masks (source {self.model.regionizer.config.source!r}), and question {number} has "
                "none. Pass a generator to the assistant, as in masks=regiontok.masks.load('sam2')."
            )
        return self.masks(images)

    def _before_end(self, tokens: list[int]) -> list[int]:
        """Return the tokens before the first end token."""
        ends = self.model.generation_config.eos_token_id
        end_tokens = {self.processor.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        return next((tokens[:position] for position, token in enumerate(tokens) if token in end_tokens), tokens)


def stock_regionizer(
    *,
    num_regions: int | None = None,
    keep: float | None = None,
    threshold: float | None = None,
    explained_variance: float | None = None,
    linkage: str | None = None,
    norm: str | None = None,
) -> Regionizer | None:
    """Return a `Regionizer` that reduces the tokens of a stock model without training, or None without a limit.

    Args:
        num_regions: Number of tokens per image. See `UnionFindClusterer` for this and the next four.
        keep: Fraction of the patches, instead of a number.
        threshold: Cosine at which merging stops, instead of a number.
        explained_variance: Fraction of the squared deviation to preserve, instead of a number.
        linkage: The linkage of clustering.
        norm: Normalization of patch features; ``none`` by default, since the model was trained without.

    Raises:
        ValueRangeError: More than one limit, or ``norm`` or ``linkage`` without a limit.

    Example:
        >>> stock_regionizer(num_regions=128).config.num_regions
        128
    """
    limits: dict[str, Any] = {
        "num_regions": num_regions,
        "keep": keep,
        "threshold": threshold,
        "explained_variance": explained_variance,
    }
    limits = {name: value for name, value in limits.items() if value is not None}
    options = {name: value for name, value in (("linkage", linkage), ("norm", norm)) if value is not None}
    if limits:
        return Regionizer(**{"pool": "mean", "norm": "none"} | limits | options)
    for name, value in options.items():
        raise ValueRangeError(
            f"{name}={value!r} needs num_regions, keep, threshold or explained_variance, and a stock model. Remove it."
        )
    return None
