"""Prompt templates: the conversations of LLaVA as text, and as chat templates of transformers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

IMAGE = "<image>"


@dataclass(frozen=True)
class Template:
    """Prompt template for a conversation.

    Attributes:
        system: Text at the start of the prompt.
        question: Format of a question, with ``{}`` for its text.
        answer: Text before an answer.
        end: Text after an answer, which is learnt with it. ``{eos}`` is the end token of the tokenizer.
        only_image: Replace a question by its image placeholders, as in stage 1.
    """

    system: str
    question: str
    answer: str
    end: str
    only_image: bool = False

    def write(self, turns: Sequence[tuple[str, str]], eos: str) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of a conversation, and the start and end of each answer in it."""
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
        """Return the same format as a chat template of transformers.

        A prompt ends before the space at the start of the answer, because tokenizers join this space to the next word.
        """
        before_question, after_question = (self.question.format("\0") + "\0").split("\0")[:2]
        before_space = self.answer.rstrip()
        system, question_start, question_end, answer_start, answer_end = (
            json.dumps(text)
            for text in (
                self.system,
                before_question,
                after_question + before_space,
                self.answer[len(before_space) :],
                self.end.replace("{eos}", eos),
            )
        )
        content = "{% if message['content'] is string %}{{ message['content'] }}{% else %}PARTS{% endif %}"
        text = "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
        images = "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
        only_text, with_images = content.replace("PARTS", text), content.replace("PARTS", images + text)
        return (
            "{% if messages[0]['role'] != 'system' %}{{ " + system + " }}{% endif %}{% for message in messages %}"
            "{% if message['role'] == 'system' and loop.first %}" + only_text + "{{ ' ' }}"
            "{% elif message['role'] == 'user' %}{{ " + question_start + " }}" + with_images
            + "{{ " + question_end + " }}"
            "{% elif message['role'] == 'assistant' %}{{ " + answer_start + " }}" + only_text
            + "{{ " + answer_end + " }}"
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
"""``plain`` and ``vicuna_v1`` are the templates of LLaVA-1.5; the others are for the toy language, without roles."""
