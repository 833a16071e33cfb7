import io
from unittest.mock import Mock

import pytest

from regiontok import ImageGeometry, Regionizer
from regiontok.adapters.huggingface import with_regions
from regiontok.cli import main
from regiontok.evaluation.assistant import Assistant, Question
from regiontok.evaluation.conversation import Conversation
from regiontok.evaluation.prompts import short_answer, with_options
from tests.models import tiny_llava, tiny_processor


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A stock model and one of masks, each with its processor."""
    root = tmp_path_factory.mktemp("models")
    tiny_llava().save_pretrained(root / "stock")
    regionizer = Regionizer(source="combined", dim=32, num_heads=4, geometry=ImageGeometry.center_crop(56))
    with_regions(tiny_llava(), regionizer).save_pretrained(root / "masks")
    for name in ("stock", "masks"):
        tiny_processor().save_pretrained(root / name)
    return root


def ask(capsys, image, question, *arguments):
    code = main(["chat", str(image), "--ask", question, *map(str, arguments), "--max-new-tokens", "3"])
    out, errors = capsys.readouterr()
    return code, out.strip(), errors.strip().splitlines()[-1]


@pytest.fixture
def image(tmp_path, china):
    china.save(tmp_path / "china.png")
    return tmp_path / "china.png"


def test_answers_are_those_of_the_assistant(capsys, folders, image, china):
    stock = Assistant.load(folders / "stock")
    for given, text in (
        ([], "w1 w2"),
        (["--short"], short_answer("w1 w2")),
        (["--options", "w3", "w4"], with_options("w1 w2", ["w3", "w4"])),
    ):
        code, out, told = ask(capsys, image, "w1 w2", "--model", folders / "stock", *given)
        assert (code, out) == (0, stock.answer([Question(text, [china])], max_new_tokens=3)[0].text)
        assert told == f"{image}: 16 tokens"


def test_budgets_for_a_stock_model(capsys, folders, image):
    assert ask(capsys, image, "w1", "--model", folders / "stock", "--num-regions", 5)[2] == f"{image}: 5 tokens"
    assert ask(capsys, image, "w1", "--model", folders / "stock", "--threshold", -1)[2] == f"{image}: 1 token"
    told = ask(capsys, image, "w1", "--model", folders / "stock", "--explained-variance", 0.5)[2]
    assert 1 < int(told.split()[-2]) < 16
    told = ask(capsys, image, "w1", "--model", folders / "stock", "--num-regions", 5, "--linkage", "centroid")[2]
    assert told == f"{image}: 5 tokens"


def test_masks_for_a_model_that_needs_masks(capsys, folders, image):
    code, _, told = ask(capsys, image, "w1", "--model", folders / "masks", "--masks", "felzenszwalb")
    assert code == 0
    assert int(told.split()[-2]) > 3


@pytest.mark.parametrize(
    ("model", "given", "expected"),
    [
        ("masks", [], "makes regions from masks (combined). Add --masks, such as --masks sam2."),
        ("stock", ["--masks", "felzenszwalb"], "makes regions by patch, without masks. Leave --masks out."),
        (
            "masks",
            ["--num-regions", "3", "--masks", "felzenszwalb"],
            "holds a region model with its own Regionizer.",
        ),
        (
            "stock",
            ["--norm", "rms"],
            "--norm rms needs --num-regions, --keep, --threshold or --explained-variance, and a stock model",
        ),
        (
            "stock",
            ["--linkage", "average"],
            "--linkage average needs --num-regions, --keep, --threshold or --explained-variance",
        ),
        ("stock", ["--linkage", "ward"], "--linkage ward "),
        ("stock", ["--options", "w1"], "options must be 2 to 26"),
        ("nothing", [], "holds no model of transformers"),
    ],
)
def test_invalid_options_are_explained(capsys, folders, image, model, given, expected):
    code, out, told = ask(capsys, image, "w1", "--model", folders / model, *given)
    assert (code, out) == (2, "")
    assert expected in told


def test_a_missing_image_is_reported(capsys, folders, tmp_path):
    code, _, told = ask(capsys, tmp_path / "none.png", "w1", "--model", folders / "stock")
    assert (code, told) == (2, f"regiontok: {tmp_path / 'none.png'}: there is no such file.")


def test_a_conversation_over_standard_input_with_several_images(capsys, folders, image, china, monkeypatch):
    arguments = ["chat", str(image), str(image), "--model", str(folders / "stock"), "--max-new-tokens", "3"]
    monkeypatch.setattr("sys.stdin", io.StringIO("w1 w2\n\n<image>\nw3\n"))
    encoded = []
    encode = Conversation.ask
    monkeypatch.setattr(Conversation, "ask", lambda self, *a, **k: (encoded.append(self), encode(self, *a, **k))[1])
    assert main(arguments) == 0
    out, errors = capsys.readouterr()
    conversation = Conversation(Assistant.load(folders / "stock"), [china, china])
    expected = [encode(conversation, text, max_new_tokens=3).text for text in ("w1 w2", "w3")]
    assert [line.strip() for line in out.splitlines()] == expected
    assert errors.count(f"{image}: 16 tokens") == 2
    assert "must not contain the image placeholder <image>" in errors  # the conversation goes on
    assert len(set(map(id, encoded))) == 1


def test_typed_questions_have_a_prompt(capsys, folders, image, monkeypatch):
    lines = iter(["w1"])
    monkeypatch.setattr("sys.stdin", Mock(isatty=lambda: True))

    def read_line(prompt):
        assert prompt == "> "
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read_line)
    assert main(["chat", str(image), "--model", str(folders / "stock"), "--max-new-tokens", "1"]) == 0
    assert "Ctrl-D ends the conversation" in capsys.readouterr().err
