"""The paper's two forms of a question.

    short_answer("What colour is the bus?")
    with_options("What colour is the bus?", ["red", "blue"])

Images stand before the words; the model's chat template brings them together.
"""

from collections.abc import Sequence
from string import ascii_uppercase

from regiontok.errors import ValueRangeError

SHORT_ANSWER = "Answer the question using a single word or phrase."
"""What ends a question that wants a word."""
OPTIONS = "Answer with the option's letter from the given choices directly."
"""What ends a question that wants a letter."""


def short_answer(question: str) -> str:
    r"""A question that wants a word or phrase.

    Example:
        >>> short_answer("What colour is the bus?")
        'What colour is the bus?\nAnswer the question using a single word or phrase.'

    Source:
        Supplement A.2, "Inference". That a line break parts them is LLaVA's.
    """
    return f"{question.strip()}\n{SHORT_ANSWER}"


def with_options(question: str, options: Sequence[str]) -> str:
    r"""A question that wants the letter of one of some options.

    Args:
        question: Without its options.
        options: 2 to 26 of them, without letters.

    Raises:
        ValueRangeError: Another number of options.

    Example:
        >>> print(with_options("What colour is the bus?", ["red", "blue"]))
        What colour is the bus?
        A. red
        B. blue
        Answer with the option's letter from the given choices directly.

    Source:
        Supplement A.2, "Inference". That letters are written ``A.``, in lines of their own, is LLaVA's.
    """
    if isinstance(options, str) or not 2 <= len(options) <= len(ascii_uppercase):
        raise ValueRangeError(f"options must be 2 to {len(ascii_uppercase)}; got {options!r}.")
    lines = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]
    return "\n".join([question.strip(), *lines, OPTIONS])
