"""`Conversation`: several questions about the same images; the images are encoded once.

conversation = Conversation(assistant, [image])
conversation.ask("What colour is the bus?").text
conversation.ask("And the car?").text
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from regiontok._values import check_integer
from regiontok.downsample import Masks
from regiontok.evaluation.assistant import GREEDY, Answer, Assistant, Question

_CACHE_NAMES = ("cache", "past_key_values")


class Conversation:
    """Turns of questions and answers about images, decoded greedily.

    Images are encoded with the first question. The key-value cache is reused if the new prompt starts with the cached
    tokens, so that a turn only computes its new tokens. Otherwise the conversation is computed again from the encoded
    images. The answers are the same in both cases.

    Args:
        assistant: A region model with its processor.
        images: The images of the conversation, which are placed before the first question.
        masks: The masks of each image, if the model needs masks and the assistant has no generator.

    Example:
        Two turns about one image::

            conversation = Conversation(Assistant.load("out/instruct/model"), [image])
            conversation.ask("What colour is the bus?")
            conversation.ask("Answer in one word.")
    """

    def __init__(
        self, assistant: Assistant, images: Sequence[Image.Image] = (), *, masks: Sequence[Masks] | None = None
    ) -> None:
        self.assistant = assistant
        self._first = Question("", list(images), masks)
        self._images: list[Image.Image] = []
        self._masks: Sequence[Masks] = ()
        self._messages: list[dict[str, Any]] = []
        self._encoded: Any = None
        self._counts: list[int] = []
        self._sequence: torch.Tensor | None = None
        self._cache: Any = None
        self._rope_deltas: Any = None

    @torch.no_grad()
    def ask(self, text: str, *, max_new_tokens: int = 128, stop: Sequence[str] = ()) -> Answer:
        """Return the answer to the next question.

        Args:
            text: The text of the question.
            max_new_tokens: Maximum length of the answer.
            stop: Strings at which the text of the answer is cut; its tokens are not cut.

        Raises:
            ValueRangeError, ImageError: See `Assistant.answer`.
        """
        check_integer("max_new_tokens", max_new_tokens)
        assistant, model = self.assistant, self.assistant.model
        question = self._first._replace(text=text) if not self._messages else Question(text)
        images, content, masks = assistant.build_content(len(self._messages) // 2, question)
        if not self._messages:
            self._images, self._masks = images, masks
        messages = [*self._messages, {"role": "user", "content": content}]
        inputs = assistant.build_inputs([messages], [self._images], self._masks)
        if "pixel_values" in inputs:
            expanded = model.expand(**inputs, left=True, encoded=self._encoded)
            inputs, self._encoded, self._counts = expanded.inputs, expanded.media, expanded.counts
        ids = inputs["input_ids"]
        cached = 0 if self._cache is None else self._cache.get_seq_length()
        cache_name = self._cache_name()
        if (
            self._sequence is not None
            and 0 < cached < ids.shape[1]
            and torch.equal(ids[:, :cached], self._sequence[:, :cached])
        ):
            for name in ("mm_encoder_outputs", "position_ids"):
                inputs.pop(name, None)
            inputs[cache_name] = self._cache
            if self._rope_deltas is not None:
                model.model.rope_deltas = self._rope_deltas
        output = model.generate(
            **inputs,
            **GREEDY,
            max_new_tokens=max_new_tokens,
            suppress_tokens=[model.config.image_token_id],
            return_dict_in_generate=True,
        )
        self._sequence, self._cache = output.sequences, output.get(cache_name)
        self._rope_deltas = getattr(model.model, "rope_deltas", None)
        answer = assistant.decode_answer(output.sequences[0, ids.shape[1] :].tolist(), self._counts, stop)
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer.text}]}
        self._messages = [*messages, reply]
        return answer

    def _cache_name(self) -> str:
        """Return the name of the cache argument, which depends on the version of transformers."""
        parameters = self.assistant.model.forward.__signature__.parameters
        return next((name for name in _CACHE_NAMES if name in parameters), _CACHE_NAMES[-1])
