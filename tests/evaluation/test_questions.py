import json

import pytest

from regiontok.cli import main
from regiontok.errors import DataError
from regiontok.evaluation.assistant import Assistant, Question
from regiontok.evaluation.prompts import short_answer, with_options
from regiontok.evaluation.questions import answer_questions, is_correct, read_questions
from tests.models import tiny_llava, tiny_processor


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "stock"
    tiny_llava().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def file(tmp_path, china):
    """A question of each kind, of which one has an image that does not exist."""
    (tmp_path / "pictures").mkdir()
    china.save(tmp_path / "pictures" / "china.png")
    questions = [
        {"question": "w1", "image": "pictures/china.png", "answer": "no such answer", "id": "a"},
        {"question": "w1", "images": ["pictures/china.png"] * 2, "options": ["w3", "w4"], "answer": "w4"},
        {"question": "w1 w2", "image": "pictures/china.png"},
        {"question": "w1", "image": "none.png"},
        {"question": "w5"},
    ]
    (tmp_path / "mine.json").write_text(json.dumps(questions))
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(question) + "\n\n" for question in questions))
    return tmp_path / "mine.json"


def test_questions_of_a_file(file):
    questions = read_questions(file)
    assert questions == read_questions(file.with_suffix(".jsonl"))
    assert [question.name for question in questions] == ["a", "1", "2", "3", "4"]
    texts = [short_answer("w1"), with_options("w1", ["w3", "w4"]), "w1 w2", "w1", "w5"]
    assert [question.prompt for question in questions] == texts
    assert [question.expected for question in questions] == [("no such answer",), ("B",), (), (), ()]
    assert questions[0].images == (str(file.parent / "pictures" / "china.png"),)
    assert read_questions(file, "elsewhere")[0].images == ("elsewhere/pictures/china.png",)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_answers_are_those_of_the_assistant(file, model, china, batch_size):
    assistant = Assistant.load(model)
    result = answer_questions(assistant, read_questions(file), batch_size=batch_size, max_new_tokens=3)
    images = [[china], [china, china], [china], None, []]
    for question, answer, shown in zip(read_questions(file), result.answers, images, strict=True):
        if shown is None:
            assert answer.answer is None
            assert "none.png: there is no such file" in answer.error
        else:
            assert answer.answer == assistant.answer([Question(question.prompt, shown)], max_new_tokens=3)[0].text
            assert answer.tokens == (16,) * len(shown)
    assert result.answers[0].is_correct is False
    assert [answer.is_correct for answer in result.answers[2:]] == [None, None, None]
    assert result.tokens == 16
    assert result.accuracy in (0, 0.5)


def test_accepted_answers():
    for text, expected in (
        ("Red.", ["blue", "red"]),
        (" (b) two", ["B"]),
        ("B.", ["b"]),
        ("3", ["3"]),
        ("4 cats", ["4"]),
    ):
        assert is_correct(text, expected), text
    for text, expected in (("reddish", ["red"]), ("Both", ["B"]), ("", ["B"]), ("34", ["3"]), ("A", ["B"])):
        assert not is_correct(text, expected), text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as questions in JSON"),
        ("{}", "must be a list of questions; got dict"),
        ("[]", "must be a list of questions; got list"),
        ('["w1"]', "question 0 must be an object with the key question; got w1"),
        ('[{"question": "a"}, {"question": 1}]', "question 1 must be an object with the key question"),
        ('[{"question": "a", "imgae": "b"}]', "unknown key 'imgae'. The keys are question, image"),
        ('[{"question": "a", "image": "b", "images": ["c"]}]', "both image and images"),
        ('[{"question": "a", "image": {}}]', "images must be a text or a list of texts"),
        ('[{"question": "a", "options": ["b"]}]', "question 0: options must be 2 to 26"),
        ('[{"question": "a", "options": ["b", "c"], "answer": "d"}]', "answer 'd' is neither one of the options nor a letter up to B"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_explained(tmp_path, content, message):
    (tmp_path / "q.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_questions(tmp_path / "q.json")
    with pytest.raises(DataError, match=r"none.json cannot be read as questions in JSON"):
        read_questions(tmp_path / "none.json")


def test_the_command_writes_answers_and_reports_failures(file, model, capsys):
    out = file.parent / "scores"
    command = ["evaluate", str(model), "--questions", str(file), "--out", str(out), "--num-regions", "5"]
    assert main(command) == 1
    printed, errors = capsys.readouterr()
    assert " of 2 answers are correct (" in printed
    assert "5.0 tokens per image." in printed
    assert "3: " in errors
    assert "1 of 5 questions failed" in errors
    written = json.loads((out / "questions.json").read_text())
    assert written["run_id"]["num_regions"] == 5
    assert [answer["name"] for answer in written["answers"]] == ["a", "1", "2", "3", "4"]
    assert main([*command, "--limit", "1"]) == 0
    assert len(json.loads((out / "questions.json").read_text())["answers"]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "x"], "--images requires --questions. Leave it out."),
        (["--questions", "q.json", "--benchmarks", "pope"], "--benchmarks cannot be used with --questions"),
        (["--questions", "q.json", "--processes", "2"], "--processes cannot be used with --questions"),
        (["--questions", "q.json"], "q.json cannot be read as questions"),
    ],
)
def test_invalid_options_are_explained(options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "none", "--out", "scores", *options]) == 2
    assert message in capsys.readouterr().err
