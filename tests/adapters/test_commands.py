"""Commands and the focus metric with a family of each mechanism, from a folder with its real processor."""

import json
import re

import pytest
from PIL import Image

from regiontok import Regionizer
from regiontok.adapters.huggingface import with_regions
from regiontok.cli import main
from regiontok.evaluation.assistant import Assistant
from regiontok.evaluation.pixcv import measure_focus, read_objects, read_questions
from tests.adapters.test_processors import IMAGES
from tests.evaluation import test_pixcv
from tests.families import CASES
from tests.processors import PROCESSORS, TEMPLATE, placeholder

MECHANISMS = ["LLaVA-1.5", "LLaVA-NeXT", "LLaVA-OneVision", "Gemma 3", "InternVL", "SmolVLM", "Qwen3-VL", "Gemma 4"]
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)  # GLM's


@pytest.fixture(scope="module", params=MECHANISMS, ids=lambda name: name.replace(" ", "-"))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    """A stock model and its processor; and an image."""
    folder = tmp_path_factory.mktemp(name.replace(" ", "-"))
    CASES[name].make().save_pretrained(folder / "model")
    processor = PROCESSORS[name]()
    processor.chat_template = TEMPLATE.replace("IMAGE", placeholder(name, processor))
    processor.save_pretrained(folder / "model")
    IMAGES[1].save(folder / "image.png")
    return folder


def test_chat_answers_from_a_stock_folder_with_a_budget(folder, capsys):
    image, model = str(folder / "image.png"), str(folder / "model")
    assert (
        main(["chat", image, "--ask", "w5 w6", "--model", model, "--num-regions", "12", "--max-new-tokens", "3"]) == 0
    )
    told = capsys.readouterr()
    count = int(re.search(r"image.png: (\d+) tokens", told.out + told.err)[1])
    assert 1 <= count <= 12


def test_the_attention_figure(name, folder):
    image, model, out = str(folder / "image.png"), str(folder / "model"), folder / "attention.png"
    given = ["figures", "attention", image, "w5", "--model", model, "--answer", "w7", "--out", str(out)]
    assert main(given) == 0
    with Image.open(out) as one:
        alone = one.width
    assert main([*given, "--sources", "patch", "clustering", "--threshold", "0.9"]) == 0
    with Image.open(out) as two:
        assert two.width > alone


def test_the_focus_command(name, folder, tmp_path):
    processor = PROCESSORS[name]()
    processor.chat_template = TEMPLATE.replace("IMAGE", placeholder(name, processor))
    model = with_regions(CASES[name].make(), Regionizer(pool="mean", norm="none", num_regions=12))
    file = test_pixcv.prepared(tmp_path)
    found = measure_focus(
        Assistant(model, processor), read_questions(file, tmp_path), read_objects(tmp_path / "pix"), threshold=0.05,
        batch_size=2,
    )  # fmt: skip
    assert 0 < found.focus.focus < 1
    assert 0 < found.tokens <= 12


def test_pages_and_comparisons_of_the_features_of_a_model(name, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["view", "image.png", "--model", "model", "--num-regions", "3", "--masks", "felzenszwalb"]) == 0
    page = (folder / "image.html").read_text()
    assert re.search(r"model, \d+ x \d+ patches, without norm", page)
    assert main(["compare", "image.png", "--model", "model", "--keep", "0.5"]) == 0
    assert json.loads((folder / "regiontok-compare.png.json").read_text())["model"] == "model"
    assert "1 image, model\n" in capsys.readouterr().out
    assert main(["count", "image.png", "--model", "model", "--num-regions", "2", "--json", "counts.json"]) == 0
    assert json.loads((folder / "counts.json").read_text())[0]["clustering"] == 2
    assert main(["figures", "regions", "image.png", "--model", "model", "--out", "regions.png"]) == 0
    assert main(["view", "image.png", "--model", "model", "--encoder", "pixels"]) == 2
    assert "--encoder requires an encoder, and --model" in capsys.readouterr().err
