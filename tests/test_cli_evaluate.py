import argparse
import json

import pytest

from regiontok import Regionizer
from regiontok.adapters.huggingface import with_regions
from regiontok.cli import evaluate, main
from regiontok.cli.arguments import add_model_options
from regiontok.cli.common import told_apart
from regiontok.errors import CheckpointError
from regiontok.evaluation.benchmarks import BENCHMARKS, Measured
from regiontok.presets import FIGURES
from tests.models import tiny_llava


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("API_TYPE", raising=False)
    with_regions(tiny_llava(), Regionizer(dim=32, num_heads=4)).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def call(capsys, *arguments):
    code = main(["evaluate", *map(str, arguments)])
    out, errors = capsys.readouterr()
    return code, out, errors.strip()


def test_benchmarks_make_the_papers_figures():
    named = [figure for benchmark in BENCHMARKS.values() for figure in benchmark.figures]
    assert ["tokens", "focus", *named] == list(FIGURES)


def test_a_failing_benchmark_is_named_and_the_others_go_on(capsys, model, tmp_path, monkeypatch):
    """lmms-eval itself is replaced here; test_lmms.py runs the real one."""
    asked = []

    def run(names, arguments, out, **options):
        asked.append((names, options["batch_size"], arguments["pretrained"]))
        if names == ["mmstar"]:
            raise CheckpointError("mmstar: lmms-eval failed")
        return Measured(dict.fromkeys(BENCHMARKS[names[0]].figures, 7.0), {}, float(len(asked)))

    monkeypatch.setattr(evaluate, "run", run)
    given = (model, "--out", tmp_path / "out", "--batch-size", 3)
    code, out, errors = call(capsys, *given)
    assert code == 1
    assert errors.endswith("regiontok: mmstar: lmms-eval failed")
    assert asked == [([name], 3, model) for name in BENCHMARKS if name != "mm_vet"]
    assert "mm_vet was left out: it needs a judge, and there is no OPENAI_API_KEY." in out
    # the mean of 1, 2, 3, 5 and 6 tokens
    assert out.splitlines()[1].removeprefix(model).split()[:5] == ["3", "-", "7.00", "7", "7.00"]
    asked.clear()
    call(capsys, *given)
    assert [names for names, *_ in asked] == [["mmstar"]]
    code, _, errors = call(capsys, *given, "--limit", 5)
    assert code == 2
    assert "has benchmarks of limit None, and this is 5. Give another --out." in errors
    code, _, errors = call(capsys, *given, "--masks", "sam2")
    assert code == 2
    assert "has benchmarks of masks None, and this is sam2. Give another --out." in errors
    code, _, errors = call(capsys, *given, "--tokens", 64)
    assert code == 2
    assert "has scores of tokens None, and this is 64. Give another folder." in errors


def test_scores_know_how_tokens_were_made():
    def of(*arguments):
        parser = argparse.ArgumentParser()
        add_model_options(parser)
        options = parser.parse_args(arguments)
        options.model = "m"
        return told_apart(options)

    assert of()["linkage"] is of("--threshold", "0.7")["linkage"] is None  # as scores say that knew no other
    assert of("--tokens", "64", "--linkage", "centroid")["linkage"] is None
    assert of("--tokens", "64")["linkage"] == "ward"
    assert of("--explained-variance", "0.5") | {"explained_variance": None} == of() | {"linkage": "ward"}
    assert of("--threshold", "0.7", "--linkage", "average")["linkage"] == "average"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--benchmarks", "mm_vet"], "mm_vet needs a judge, and there is no OPENAI_API_KEY. Set it, or leave it out."),
        (["--ladder", "--masks", "sam2"], "--ladder is not for evaluate, which makes masks at the paper's cheap"),
        (
            ["--norm", "rms"],
            "norm='rms' is for num_regions, keep, threshold or explained_variance, of a stock model. Leave",
        ),
        (["--masks", "a,b"], "lmms-eval takes no comma and no equals sign in a,b. Rename it."),
    ],
)
def test_what_cannot_be_is_refused(capsys, model, tmp_path, given, expected):
    code, _, errors = call(capsys, model, "--out", tmp_path / "out", *given)
    assert code == 2
    assert expected in errors


def test_a_folder_without_a_model(capsys, model, tmp_path):
    code, _, errors = call(capsys, tmp_path / "none", "--out", tmp_path / "out")
    assert code == 2
    assert "holds no model of transformers" in errors


def test_lmms_eval_is_asked_for_where_it_is_not(capsys, model, tmp_path):
    code, _, errors = call(capsys, model, "--out", tmp_path / "out", "--benchmarks", "pope")
    assert code == 2
    assert "lmms-eval is needed here and is not installed. It pins what sam2 needs otherwise" in errors
    assert not (tmp_path / "out" / "scores.json").exists()


def test_scores_are_written_as_json(capsys, model, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "run", lambda *_, **__: Measured({"pope": 80.0}, {"pope_accuracy": 81.0}, 12.0))
    call(capsys, model, "--out", tmp_path / "out", "--benchmarks", "pope")
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["figures"] == {"pope": 80.0, "tokens": 12.0}
    assert scores["of"] == dict.fromkeys(("tokens", "keep", "threshold", "explained_variance", "norm", "linkage")) | {
        "model": model
    }
    assert scores["benchmarks"] == {"limit": None, "masks": None, "sam_model": None}
