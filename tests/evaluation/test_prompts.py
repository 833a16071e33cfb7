import pytest

from regiontok.errors import ValueRangeError
from regiontok.evaluation.prompts import OPTIONS, SHORT_ANSWER, option_letter, short_answer, with_options
from tests.conftest import for_each


def test_instructions_are_those_of_the_paper():
    assert SHORT_ANSWER == "Answer the question using a single word or phrase."
    assert OPTIONS == "Answer with the option's letter from the given choices directly."


def test_prompt_formats():
    assert short_answer(" Is it? ") == f"Is it?\n{SHORT_ANSWER}"
    assert option_letter("Which? (A) x ") == f"Which? (A) x\n{OPTIONS}"
    assert with_options("Which?", ("x", "y", "z")) == f"Which?\nA. x\nB. y\nC. z\n{OPTIONS}"


@for_each(options=[[], ["one"], "yes", ["x"] * 27])
def test_with_options_needs_2_to_26_options(options):
    with pytest.raises(ValueRangeError, match="options must be 2 to 26; got "):
        with_options("Which?", options)
