import pytest

from regiontok.errors import ValueRangeError
from regiontok.evaluation.prompts import OPTIONS, SHORT_ANSWER, short_answer, with_options


def test_the_papers_words():
    assert SHORT_ANSWER == "Answer the question using a single word or phrase."
    assert OPTIONS == "Answer with the option's letter from the given choices directly."


def test_forms():
    assert short_answer(" Is it? ") == f"Is it?\n{SHORT_ANSWER}"
    assert with_options("Which?", ("x", "y", "z")) == f"Which?\nA. x\nB. y\nC. z\n{OPTIONS}"


@pytest.mark.parametrize("options", [[], ["one"], "yes", ["x"] * 27])
def test_a_choice_needs_two_to_26(options):
    with pytest.raises(ValueRangeError, match="options must be 2 to 26; got "):
        with_options("Which?", options)
