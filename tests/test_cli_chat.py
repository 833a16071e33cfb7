import pytest

from regiontok import ImageGeometry, Regionizer
from regiontok.adapters.huggingface import with_regions
from regiontok.cli import main
from regiontok.evaluation.assistant import Assistant, Question
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


def ask(capsys, *arguments):
    code = main(["chat", *map(str, arguments), "--max-new-tokens", "3"])
    out, errors = capsys.readouterr()
    return code, out.strip(), errors.strip().splitlines()[-1]


@pytest.fixture
def image(tmp_path, china):
    china.save(tmp_path / "china.png")
    return tmp_path / "china.png"


def test_it_answers_as_the_assistant_does(capsys, folders, image, china):
    stock = Assistant.load(folders / "stock")
    for given, text in (
        ([], "w1 w2"),
        (["--short"], short_answer("w1 w2")),
        (["--options", "w3", "w4"], with_options("w1 w2", ["w3", "w4"])),
    ):
        code, out, told = ask(capsys, image, "w1 w2", "--model", folders / "stock", *given)
        assert (code, out) == (0, stock.answer([Question(text, [china])], max_new_tokens=3)[0].text)
        assert told == f"{image}: 16 tokens"


def test_a_budget_for_a_stock_model(capsys, folders, image):
    assert ask(capsys, image, "w1", "--model", folders / "stock", "--tokens", 5)[2] == f"{image}: 5 tokens"
    assert ask(capsys, image, "w1", "--model", folders / "stock", "--threshold", -1)[2] == f"{image}: 1 token"
    told = ask(capsys, image, "w1", "--model", folders / "stock", "--explained-variance", 0.5)[2]
    assert 1 < int(told.split()[-2]) < 16
    told = ask(capsys, image, "w1", "--model", folders / "stock", "--tokens", 5, "--linkage", "centroid")[2]
    assert told == f"{image}: 5 tokens"


def test_masks_for_a_model_of_masks(capsys, folders, image):
    code, _, told = ask(capsys, image, "w1", "--model", folders / "masks", "--masks", "felzenszwalb")
    assert code == 0
    assert int(told.split()[-2]) > 3


@pytest.mark.parametrize(
    ("model", "given", "expected"),
    [
        ("masks", [], "makes regions of masks (combined). Give --masks, such as --masks sam2."),
        ("stock", ["--masks", "felzenszwalb"], "makes regions by patch, without masks. Leave --masks and its options"),
        ("masks", ["--tokens", "3", "--masks", "felzenszwalb"], "holds a region model, whose Regionizer is its own."),
        (
            "stock",
            ["--norm", "rms"],
            "norm='rms' is for num_regions, keep, threshold or explained_variance, of a stock model. Leave",
        ),
        (
            "stock",
            ["--linkage", "average"],
            "linkage='average' is for num_regions, keep, threshold or explained_variance",
        ),
        ("stock", ["--linkage", "ward"], "--linkage ward has no threshold. Say how many by --tokens"),
        ("stock", ["--options", "w1"], "options must be 2 to 26"),
        ("nothing", [], "holds no model of transformers"),
    ],
)
def test_what_cannot_be_is_named(capsys, folders, image, model, given, expected):
    code, out, told = ask(capsys, image, "w1", "--model", folders / model, *given)
    assert (code, out) == (2, "")
    assert expected in told


def test_a_image_that_is_not_there(capsys, folders, tmp_path):
    code, _, told = ask(capsys, tmp_path / "none.png", "w1", "--model", folders / "stock")
    assert (code, told) == (2, f"regiontok: {tmp_path / 'none.png'}: there is no such file.")
