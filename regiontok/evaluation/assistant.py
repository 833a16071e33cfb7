"""`Assistant`: a region model that answers questions about images, and shows where it looks.

    assistant = Assistant.load("out/instruct/model")
    assistant.answer([Question(short_answer("What colour is the bus?"), [image])])[0].text

The words of a question are the caller's; `regiontok.evaluation.prompts` has the paper's forms.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from regiontok._checks import check_integer
from regiontok._require import check_importable, require
from regiontok.choices import MASK_SOURCES
from regiontok.downsample import Masks
from regiontok.errors import CheckpointError, DTypeError, ValueRangeError
from regiontok.evaluation.focus import RegionAttention, answer_attention
from regiontok.geometry import ImageGeometry
from regiontok.images import as_images
from regiontok.regionizer import Regionizer

MaskGenerator = Callable[[list[Image.Image]], Sequence[Masks]]
"""Images to their masks, as the generators of `regiontok.masks`."""

GREEDY = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}


class Question(NamedTuple):
    """What a user says once.

    Attributes:
        text: The words; see `regiontok.evaluation.prompts` for the paper's.
        images: The images it is about, which stand before the words.
        masks: Their masks, one entry per image, for a model of masks whose assistant has no generator.
    """

    text: str
    images: Sequence[Image.Image] = ()
    masks: Sequence[Masks] | None = None


class Answer(NamedTuple):
    """What the model says.

    Attributes:
        text: Without special tokens.
        tokens: Ids, up to the end that the model set.
        counts: Region tokens of each image of the question.
    """

    text: str
    tokens: list[int]
    counts: list[int]


class Assistant:
    """A region model with its processor; it answers greedily, in batches whose images may differ in their counts.

    Args:
        model: Of `regiontok.adapters.huggingface`.
        processor: Of ``AutoProcessor``, with a chat template. Its tokenizer will pad on the left.
        masks: Makes the masks of images, for a model whose source has them.

    Raises:
        DTypeError: A model without regions.
        CheckpointError: A processor without a chat template or a tokenizer that cannot pad.
    """

    def __init__(self, model: Any, processor: Any, *, masks: MaskGenerator | None = None) -> None:
        if not hasattr(model, "regionizer"):
            raise DTypeError(
                f"model must have region tokens; got {type(model).__name__}. Make it with "
                "regiontok.adapters.huggingface.with_regions, or load its folder with Assistant.load."
            )
        if getattr(processor, "chat_template", None) is None:
            raise CheckpointError(
                "the processor has no chat template, which says how questions are written. Set "
                "processor.chat_template, or take a checkpoint that has one."
            )
        if processor.tokenizer.pad_token_id is None:
            raise CheckpointError("the tokenizer has no padding token. Set tokenizer.pad_token, such as to its eos.")
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
            folder: A region model's, such as the training recipe writes; or a stock model's, by folder or name.
            regionizer: For a stock model; by default every patch is a token.
            masks: See the class.
            device: The CPU by default.
            options: Further arguments of the model's ``from_pretrained``, such as ``dtype``.

        Raises:
            CheckpointError, ValueRangeError: A folder that holds no supported model, or not its processor.
        """
        huggingface = require("regiontok.adapters.huggingface", extra="hf")
        transformers = require("transformers", extra="hf")
        check_importable("torchvision")
        model = huggingface.load_model(folder, regionizer=regionizer, **options)
        try:
            processor = transformers.AutoProcessor.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder} holds no processor beside its model: {error}") from error
        return cls(model.to(device or "cpu"), processor, masks=masks)

    @property
    def by_masks(self) -> bool:
        """Whether its regions are made of masks."""
        return self.model.regionizer.config.source in MASK_SOURCES

    @property
    def places_images(self) -> bool:
        """Whether its model cuts images into views, and knows itself where these lie."""
        return bool(self.model.places_images)

    @property
    def geometry(self) -> ImageGeometry:
        """How images are placed on the encoder's input: the Regionizer's word, or else the processor's.

        Raises:
            ValueRangeError: A processor whose way with images is not known; see `geometry_of`.
        """
        own = self.model.regionizer.config.geometry
        if own is not None:
            return own
        huggingface = require("regiontok.adapters.huggingface", extra="hf")
        geometry: ImageGeometry = huggingface.geometry_of(self.processor)
        return geometry

    def answer(
        self, questions: Sequence[Question], *, max_new_tokens: int = 128, stop: Sequence[str] = ()
    ) -> list[Answer]:
        """Answer a batch of questions.

        Args:
            questions: One batch, all of which must fit into memory.
            max_new_tokens: The longest answer.
            stop: Strings before which an answer's text ends; the tokens are all there.

        Raises:
            ValueRangeError: No question, one that holds a placeholder of images, or masks that are missing.
            ImageError: An image that cannot be read.
        """
        check_integer("max_new_tokens", max_new_tokens)
        inputs, held = self._inputs(questions)
        counts: list[int] = []
        with torch.no_grad():
            if "pixel_values" in inputs:
                prepared = self.model.expand(**inputs, left=True)
                inputs, counts = prepared.inputs, prepared.counts
            never = [self.model.config.image_token_id]  # an image's placeholder is no word
            sequences = self.model.generate(**inputs, **GREEDY, max_new_tokens=max_new_tokens, suppress_tokens=never)
        made = sequences[:, inputs["input_ids"].shape[1] :].tolist()
        own = iter(counts)
        pairs = zip(made, held, strict=True)
        return [self.answer_of(tokens, [next(own) for _ in range(images)], stop) for tokens, images in pairs]

    def answer_of(self, tokens: list[int], counts: list[int], stop: Sequence[str]) -> Answer:
        """Return what a model says by the tokens that it generated."""
        tokens = self._until_end(tokens)
        text = self.processor.tokenizer.decode(tokens, skip_special_tokens=True)
        for end in filter(None, stop):
            text = text.split(end)[0]
        return Answer(text.strip(), tokens, counts)

    def attend(
        self, questions: Sequence[Question], answers: Sequence[Sequence[int]], *, query: str = "answer"
    ) -> RegionAttention:
        """The attention that answers pay to the regions of the images, of `answer_attention`.

        Args:
            questions: One batch.
            answers: The tokens of each answer, the model's own (``Answer.tokens``) or others (``tokens``).
            query: See `answer_attention`.

        Raises:
            ValueRangeError: An answer without a token, or what `answer` raises.
        """
        for number, tokens in enumerate(answers):
            if not len(tokens):
                raise ValueRangeError(f"answer {number} has no token, whose attention is asked for. Leave it out.")
        inputs, _ = self._inputs(questions)
        ids, inside = inputs.pop("input_ids"), inputs.pop("attention_mask").bool()
        pad = self.processor.tokenizer.pad_token_id
        whole = [
            torch.cat([one[keep], one.new_tensor(list(tokens))])
            for one, keep, tokens in zip(ids, inside, answers, strict=True)
        ]
        length = max(map(len, whole))
        padded, mask = ids.new_full((len(whole), length), pad), ids.new_zeros(len(whole), length)
        answer = torch.zeros_like(mask, dtype=torch.bool)
        for row, (one, tokens) in enumerate(zip(whole, answers, strict=True)):
            padded[row, length - len(one) :] = one
            mask[row, length - len(one) :] = 1
            answer[row, length - len(tokens) :] = True
        for name, of_answer in (("token_type_ids", self.model.model.answer_type), ("mm_token_type_ids", 0)):
            if name in inputs:  # of the prompt alone
                of_prompt, inputs[name] = inputs[name], torch.zeros_like(mask).masked_fill(answer, of_answer)
                inputs[name][mask.bool() & ~answer] = of_prompt[inside]
        return answer_attention(self.model, answer, query=query, input_ids=padded, attention_mask=mask, **inputs)

    def tokens(self, text: str) -> list[int]:
        """The tokens of an answer in words, as the model would have written them."""
        return list(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _inputs(self, questions: Sequence[Question]) -> tuple[dict[str, Any], list[int]]:
        """What the model takes, and how many images each question has."""
        if not questions:
            raise ValueRangeError("there must be at least one question; got none.")
        chats: list[list[dict[str, Any]]] = []
        images: list[list[Image.Image]] = []
        masks: list[Masks] = []
        for number, question in enumerate(questions):
            own, content, of_images = self.content_of(number, question)
            chats.append([{"role": "user", "content": content}])
            images.append(own)
            masks += of_images
        return self.inputs_of(chats, images, masks), [len(own) for own in images]

    def content_of(
        self, number: int, question: Question
    ) -> tuple[list[Image.Image], list[dict[str, Any]], Sequence[Masks]]:
        """Return the images of a question, its content in a chat, and the masks of its images."""
        placeholder = getattr(self.processor, "image_token", "<image>")
        if placeholder in question.text:
            raise ValueRangeError(
                f"question {number} contains {placeholder}, the placeholder of an image. Leave it out: images are put "
                "before the words."
            )
        images = as_images(list(question.images)) if len(question.images) else []
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question.text}]
        return images, content, self._masks_of(number, question, images) if self.by_masks and images else []

    def inputs_of(
        self, chats: list[list[dict[str, Any]]], images: list[list[Image.Image]], masks: Sequence[Masks]
    ) -> dict[str, Any]:
        """Return what the model's ``expand`` takes of chats and their images."""
        texts = self.processor.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        process = require("regiontok.adapters.huggingface", extra="hf").process
        inputs: dict[str, Any] = process(self.model, self.processor, texts, images)
        return inputs | ({"masks": list(masks)} if masks else {})

    def _masks_of(self, number: int, question: Question, images: list[Image.Image]) -> Sequence[Masks]:
        if question.masks is not None:
            if len(question.masks) != len(images):
                raise ValueRangeError(
                    f"question {number} must have masks of each of its {len(images)} images; got {len(question.masks)}."
                )
            return question.masks
        if self.masks is None:
            raise ValueRangeError(
                f"the model's regions are of masks (source {self.model.regionizer.config.source!r}), and question "
                f"{number} has none. Give the assistant a generator, as in masks=regiontok.masks.load('sam2')."
            )
        return self.masks(images)

    def _until_end(self, tokens: list[int]) -> list[int]:
        """Those before the token by which the model ended, and the padding after it."""
        ends = self.model.generation_config.eos_token_id
        known = {self.processor.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        return next((tokens[:at] for at, token in enumerate(tokens) if token in known), tokens)


def stock_regions(
    *,
    num_regions: int | None = None,
    keep: float | None = None,
    threshold: float | None = None,
    explained_variance: float | None = None,
    linkage: str | None = None,
    norm: str | None = None,
) -> Regionizer | None:
    """A `Regionizer` that cuts a stock model's tokens without training, by clustering; None where no cut is asked for.

    Args:
        num_regions: So many tokens per image; see `UnionFindClusterer` for this and the next four.
        keep: This fraction of the patches instead.
        threshold: Clustering down to this cosine instead.
        explained_variance: As few tokens as keep this share of the squared deviation instead.
        linkage: Which regions merge first.
        norm: Of patch features before; ``none`` by default, as the model was trained.

    Raises:
        ValueRangeError: Several of them, or a ``norm`` or ``linkage`` for nothing.

    Example:
        >>> stock_regions(num_regions=128).config.num_regions
        128
    """
    amount = {
        "num_regions": num_regions,
        "keep": keep,
        "threshold": threshold,
        "explained_variance": explained_variance,
    }
    given: dict[str, Any] = {
        name: value for name, value in (amount | {"linkage": linkage}).items() if value is not None
    }
    if not set(given) - {"linkage"}:
        for name, value in (given | ({} if norm is None else {"norm": norm})).items():
            raise ValueRangeError(
                f"{name}={value!r} is for num_regions, keep, threshold or explained_variance, of a stock model. "
                "Leave it out."
            )
        return None
    return Regionizer(**{"pool": "mean", "norm": norm or "none"} | given)
