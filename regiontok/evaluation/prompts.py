"""The paper's two prompt formats.

    short_answer("What colour is the bus?")
    with_options("What colour is the bus?", ["red", "blue"])

Images are placed before the question; the chat template of the model adds their placeholders.
"""

from collections.abc import Sequence
from string import ascii_uppercase

from regiontok.errors import ValueRangeError

SHORT_ANSWER = "Answer the question using a single word or phrase."
"""The instruction after a question that is answered by a word or phrase."""
OPTIONS = "Answer with the option's letter from the given choices directly."
"""The instruction after a question that is answered by the letter of an option."""


def short_answer(question: str) -> str:
    r"""Return the prompt of a question that is answered by a word or phrase.

    Example:
        >>> short_answer("What colour is the bus?")
        'What colour is the bus?\nAnswer the question using a single word or phrase.'

    Source:
        Supplement A.2, "Inference". The line break is LLaVA's.
    """
    return f"{question.strip()}\n{SHORT_ANSWER}"


def option_letter(question: str) -> str:
    r"""Return the prompt of a question that already lists its options and is answered by a letter.

    Example:
        >>> option_letter("Is it red?\n(A) yes\n(B) no")
        "Is it red?\n(A) yes\n(B) no\nAnswer with the option's letter from the given choices directly."

    Source:
        Supplement A.2, "Inference".
    """
    return f"{question.strip()}\n{OPTIONS}"


def with_options(question: str, options: Sequence[str]) -> str:
    r"""Return the prompt of a question that is answered by the letter of an option.

    Args:
        question: The question without its options.
        options: 2 to 26 options without letters.

    Raises:
        ValueRangeError: Fewer or more options.

    Example:
        >>> print(with_options("What colour is the bus?", ["red", "blue"]))
        What colour is the bus?
        A. red
        B. blue
        Answer with the option's letter from the given choices directly.

    Source:
        Supplement A.2, "Inference". The format of the options, a line with ``A.`` each, is LLaVA's.
    """
    if isinstance(options, str) or not 2 <= len(options) <= len(ascii_uppercase):
        raise ValueRangeError(f"options must be 2 to {len(ascii_uppercase)}; got {options!r}.")
    lines = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]
    return option_letter("\n".join([question.strip(), *lines]))
