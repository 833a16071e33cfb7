"""``regiontok serve``: the command of vLLM, and the cost of images. tests/adapters/test_vllm_server.py runs it."""

import json
import shlex

import pytest

from regiontok import Regionizer
from regiontok.adapters.huggingface import region_processor, with_regions
from regiontok.cli import main
from tests.families import CASES
from tests.processors import PROCESSORS


@pytest.fixture
def stock(tmp_path):
    return save("Qwen2.5-VL", tmp_path / "stock")


def save(title, folder, regionizer=None, **options):
    """Save a small model and its processor, with regions if a Regionizer is given."""
    model, processor = CASES[title].make(), PROCESSORS[title]()
    if regionizer is not None:
        model = with_regions(model, regionizer, **options)
        processor = region_processor(processor, model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def command_of(capsys, *arguments):
    """Return the words of the printed command, and the lines about costs."""
    assert main(["serve", *arguments, "--print-only"]) == 0
    out, err = capsys.readouterr()
    return shlex.split(out), [line for line in err.splitlines() if line.startswith("An image")]


@pytest.mark.parametrize(("option", "value", "kwargs"), [("--tokens", "5", {"num_regions": 5}), ("--keep", "0.5", {"keep": 0.5})])  # fmt: skip
def test_a_stock_checkpoint_gets_its_region_class_and_budget(capsys, stock, option, value, kwargs):
    words, costs = command_of(capsys, stock, option, value, "--port", "8001")
    assert words[:4] == ["vllm", "serve", stock, "--hf-overrides"]
    assert json.loads(words[4]) == {"architectures": ["RegionQwen2_5_VLForConditionalGeneration"]}
    assert words[5] == "--mm-processor-kwargs"
    assert json.loads(words[6]) == kwargs
    assert words[7:] == ["--port", "8001"]
    count = 5 if option == "--tokens" else 6
    assert costs[0] == f"An image of 1024 x 768 pixels takes {count} tokens instead of 12."


def test_a_saved_folder_needs_no_options_and_can_get_another_budget(capsys, tmp_path):
    folder = save("Qwen2.5-VL", tmp_path / "saved", Regionizer(num_regions=4, pool="mean", norm="none"))
    words, costs = command_of(capsys, folder)
    assert words == ["vllm", "serve", folder]
    assert costs[0] == "An image of 1024 x 768 pixels takes 4 tokens instead of 12."
    words, costs = command_of(capsys, folder, "--tokens", "3")
    assert words == ["vllm", "serve", folder, "--mm-processor-kwargs", '{"num_regions": 3}']
    assert "takes 3 tokens" in costs[0]


def test_videos_have_a_budget_of_their_own(capsys, stock):
    words, costs = command_of(capsys, stock, "--keep", "0.5", "--video-tokens", "32")
    assert json.loads(words[6]) == {"keep": 0.5, "video_num_regions": 32}
    assert "takes 6 tokens" in costs[0]


def test_what_cannot_be_served_is_rejected_before_vllm_starts(capsys, stock, tmp_path):
    saved = {
        name: save("LLaVA-1.5", tmp_path / name, Regionizer(pool="mean", norm="none", **options))
        for name, options in (("adaptive", {"threshold": 0.7}), ("random", {"num_regions": 4, "order": "random"}))
    }
    even = save("Qwen2.5-VL", tmp_path / "even", Regionizer(num_regions=4, pool="mean", norm="none"), positions="even")
    other = save("SmolVLM", tmp_path / "other")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    for arguments, message in (
        ([stock], "has no budget. Pass --tokens 128 or --keep 0.25."),
        ([stock, "--keep", "2"], "--keep must be in [0, 1]; got 2"),
        ([stock, "--tokens", "9", "--hf-overrides", "{}"], "regiontok serve writes --hf-overrides itself"),
        ([stock, "--tokens", "9", "--mm-processor-kwargs={}"], "regiontok serve writes --mm-processor-kwargs itself"),
        ([stock, "--tokens", "9", "--hf_overrides", '{"a": 1}'], "regiontok serve writes --hf-overrides itself"),
        ([stock, "--tokens", "9", "--mm-processor-kwargs.size", "1"], "regiontok serve writes --mm-processor-kwargs"),
        ([even, "--tokens", "9"], "vLLM serves Qwen2_5_VL with positions='centroid'"),
        ([saved["adaptive"]], "has no budget"),
        ([stock, "--keep", "0.5", "--video-keep", "2"], "keep must be in [0, 1]; got 2"),
        (
            [save("LLaVA-1.5", tmp_path / "llava"), "--tokens", "9", "--video-tokens", "9"],
            "videos of this family are not",
        ),
        ([saved["random"]], "vLLM cannot serve order='random'"),
        (
            [other, "--tokens", "9"],
            "vLLM cannot serve SmolVLM with regions: the family's processor cannot count tokens",
        ),
        ([str(tmp_path / "empty"), "--tokens", "9"], "holds no model of transformers"),
        (
            [str(tmp_path / "text"), "--tokens", "9"],
            "vLLM cannot serve LlamaForCausalLM with regions. It serves Llava,",
        ),
        ([str(tmp_path / "missing"), "--tokens", "9"], "holds no model of transformers"),
    ):
        assert main(["serve", *arguments, "--print-only"]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["serve", stock, "--tokens", "0"])


def test_a_folder_with_a_stock_processor_is_served(capsys, tmp_path):
    folder = save("Qwen2.5-VL", tmp_path / "saved", Regionizer(num_regions=4, pool="mean", norm="none"))
    PROCESSORS["Qwen2.5-VL"]().save_pretrained(folder)
    words, costs = command_of(capsys, folder)
    assert words == ["vllm", "serve", folder]
    assert "takes 4 tokens" in costs[0]
    for file in (tmp_path / "saved").glob("*processor*"):
        file.unlink()
    assert command_of(capsys, folder) == (["vllm", "serve", folder], [])


def test_a_missing_vllm_is_reported(capsys, stock):
    assert main(["serve", stock, "--tokens", "5"]) == 2
    assert "vllm is needed here but is not installed. Run: pip install vllm" in capsys.readouterr().err
