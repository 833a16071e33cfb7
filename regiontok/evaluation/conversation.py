"""`Conversation`: several questions about the same images, which are encoded once.

conversation = Conversation(assistant, [image])
conversation.ask("What colour is the bus?").text
conversation.ask("And the car?").text
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from regiontok._checks import check_integer
from regiontok.downsample import Masks
from regiontok.evaluation.assistant import GREEDY, Answer, Assistant, Question

_CACHES = ("cache", "past_key_values")


class Conversation:
    """Turns of questions and answers about images, decoded greedily.

    Images are encoded with the first question. The key-value cache is kept between turns and reused as long as the new
    prompt begins with the columns that it holds, so a turn costs its own tokens only; otherwise the conversation is
    computed again from the encoded images. The answers are the same in both cases.

    Args:
        assistant: A region model with its processor.
        images: The images that all turns are about; they are placed before the first question.
        masks: Their masks, one entry per image, for a model of masks whose assistant has no generator.

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
        """Return the answer to a question, given the conversation before.

        Args:
            text: The words of the question.
            max_new_tokens: The longest answer.
            stop: Strings before which the text of the answer ends; its tokens are all returned.

        Raises:
            ValueRangeError, ImageError: See `Assistant.answer`.
        """
        check_integer("max_new_tokens", max_new_tokens)
        assistant, model = self.assistant, self.assistant.model
        question = self._first._replace(text=text) if not self._messages else Question(text)
        images, content, masks = assistant.content_of(len(self._messages) // 2, question)
        if not self._messages:
            self._images, self._masks = images, masks
        messages = [*self._messages, {"role": "user", "content": content}]
        inputs = assistant.inputs_of([messages], [self._images], self._masks)
        if "pixel_values" in inputs:
            expanded = model.expand(**inputs, left=True, encoded=self._encoded)
            inputs, self._encoded, self._counts = expanded.inputs, expanded.encoded, expanded.counts
        ids = inputs["input_ids"]
        past = 0 if self._cache is None else self._cache.get_seq_length()
        name = self._name_of_cache()
        if past and past < ids.shape[1] and torch.equal(ids[:, :past], self._sequence[:, :past]):  # type: ignore[index]
            for image in ("mm_encoder_outputs", "position_ids"):
                inputs.pop(image, None)
            inputs[name] = self._cache
            if self._rope_deltas is not None:
                model.model.rope_deltas = self._rope_deltas
        never = [model.config.image_token_id]  # an image's placeholder is no word
        options = GREEDY | {"max_new_tokens": max_new_tokens, "suppress_tokens": never, "return_dict_in_generate": True}
        output = model.generate(**inputs, **options)
        self._sequence, self._cache = output.sequences, output.get(name)
        self._rope_deltas = getattr(model.model, "rope_deltas", None)
        answer = assistant.answer_of(output.sequences[0, ids.shape[1] :].tolist(), self._counts, stop)
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer.text}]}
        self._messages = [*messages, reply]
        return answer

    def _name_of_cache(self) -> str:
        """Return the name by which this version of transformers takes a cache."""
        taken = self.assistant.model.forward.__signature__.parameters
        return next(name for name in _CACHES if name in taken or name == _CACHES[-1])
