import argparse
import json

import pytest

from regiontok import Regionizer
from regiontok.adapters.huggingface import with_regions
from regiontok.cli import evaluate, main
from regiontok.cli.arguments import add_model_options
from regiontok.cli.loading import run_id
from regiontok.cli.values import ModelChoice
from regiontok.errors import CheckpointError
from regiontok.evaluation.benchmarks import BENCHMARKS, BenchmarkScores
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


def test_benchmarks_have_all_figures_of_the_paper():
    named = [figure for benchmark in BENCHMARKS.values() for figure in benchmark.figures]
    assert ["tokens", "focus", *named] == list(FIGURES)


def test_a_failed_benchmark_is_reported_and_the_others_run(capsys, model, tmp_path, monkeypatch):
    """lmms-eval itself is replaced here; test_lmms.py runs the real one."""
    asked = []

    def run(names, arguments, out, **options):
        asked.append((names, options["batch_size"], arguments["pretrained"]))
        if names == ["mmstar"]:
            raise CheckpointError("mmstar: lmms-eval failed")
        return BenchmarkScores(dict.fromkeys(BENCHMARKS[names[0]].figures, 7.0), {}, float(len(asked)))

    monkeypatch.setattr(evaluate, "run", run)
    given = (model, "--out", tmp_path / "out", "--batch-size", 3)
    code, out, errors = call(capsys, *given)
    assert code == 1
    assert errors.endswith("regiontok: mmstar: lmms-eval failed")
    assert asked == [([name], 3, model) for name in BENCHMARKS if name != "mm_vet"]
    assert "mm_vet was skipped: it needs a judge, but OPENAI_API_KEY is not set." in out
    # the mean of 1, 2, 3, 5 and 6 tokens
    assert out.splitlines()[1].removeprefix(model).split()[:5] == ["3", "-", "7.00", "7", "7.00"]
    asked.clear()
    call(capsys, *given)
    assert [names for names, *_ in asked] == [["mmstar"]]
    code, _, errors = call(capsys, *given, "--limit", 5)
    assert code == 2
    assert "has benchmarks with limit None; this run has 5. Use another --out." in errors
    code, _, errors = call(capsys, *given, "--masks", "sam2")
    assert code == 2
    assert "has benchmarks with masks None; this run has sam2. Use another --out." in errors
    code, _, errors = call(capsys, *given, "--num-regions", 64)
    assert code == 2
    assert "has scores with num_regions None; this run has 64. Use another folder." in errors


def test_scores_are_identified_by_the_options_of_the_regions():
    def of(*arguments):
        parser = argparse.ArgumentParser()
        add_model_options(parser)
        return run_id("m", ModelChoice.of(parser.parse_args(arguments)))

    assert of()["linkage"] == of("--threshold", "0.7")["linkage"] == "centroid"
    assert of("--num-regions", "64", "--linkage", "centroid")["linkage"] == "centroid"
    assert of("--num-regions", "64")["linkage"] == "ward"
    assert of("--explained-variance", "0.5") | {"explained_variance": None} == of() | {"linkage": "ward"}
    assert of("--threshold", "0.7", "--linkage", "average")["linkage"] == "average"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            ["--benchmarks", "mm_vet"],
            "mm_vet needs a judge, but OPENAI_API_KEY is not set. Set it, or leave the benchmark out.",
        ),
        (["--masks", "sam2", "--missing", "sam2"], "--missing requires masks of a store"),
        (
            ["--norm", "rms"],
            "--norm rms needs --num-regions, --keep, --threshold or --explained-variance, and a stock model. Remove",
        ),
        (["--masks", "a,b"], "lmms-eval cannot parse a comma or an equals sign, as in a,b. Rename it."),
    ],
)
def test_invalid_options_are_explained(capsys, model, tmp_path, given, expected):
    code, _, errors = call(capsys, model, "--out", tmp_path / "out", *given)
    assert code == 2
    assert expected in errors


def test_a_folder_without_a_model_is_rejected(capsys, model, tmp_path):
    code, _, errors = call(capsys, tmp_path / "none", "--out", tmp_path / "out")
    assert code == 2
    assert "has no model of transformers" in errors


def test_lmms_eval_must_be_installed(capsys, model, tmp_path):
    code, _, errors = call(capsys, model, "--out", tmp_path / "out", "--benchmarks", "pope")
    assert code == 2
    assert "lmms-eval is not installed. Its pinned versions conflict with sam2" in errors
    assert not (tmp_path / "out" / "scores.json").exists()


def test_scores_are_written_as_json(capsys, model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        evaluate, "run", lambda *_, **__: BenchmarkScores({"pope": 80.0}, {"pope_accuracy": 81.0}, 12.0)
    )
    call(capsys, model, "--out", tmp_path / "out", "--benchmarks", "pope")
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["figures"] == {"pope": 80.0, "tokens": 12.0}
    assert scores["run_id"] == dict.fromkeys(
        ("num_regions", "keep", "threshold", "explained_variance", "norm", "linkage")
    ) | {"linkage": "centroid"} | {"model": model}
    assert scores["benchmarks"] == {"limit": None, "masks": None, "sam_model": None}
