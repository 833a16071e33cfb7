"""lmms-eval in a separate environment, on synthetic benchmark data."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from regiontok.evaluation.assistant import Assistant, Question
from regiontok.evaluation.benchmarks import BENCHMARKS, TASKS
from regiontok.evaluation.prompts import option_letter, short_answer, with_options
from tests.evaluation.benchmark_data import COUNT, answering_model, documents, start_judge, write

ROOT = Path(__file__).parents[2]
RIGHT = (0, 3, 4)
"""Numbers of the questions that the model answers correctly."""
ASKED = {
    "pope": short_answer("{question}"),
    "ocrbench": short_answer("{question}"),
    "cv_bench": option_letter("{prompt}"),
    "mmstar": option_letter("{question}"),
    "mme": short_answer("{question}"),
    "mmbench": with_options("{question}", ["one", "two", "three", "four"]),
    "mm_vet": "{question}",
}


@pytest.fixture(scope="session")
def eval_python():
    """A Python with the extra ``eval``: this one, or that of ``.venv-eval``."""
    if importlib.util.find_spec("lmms_eval"):
        return Path(sys.executable)
    python = ROOT / ".venv-eval" / "bin" / "python"
    if not python.is_file():
        pytest.skip("lmms-eval needs an environment of its own: run `make eval`")
    return python


def prepare(root, words, names):
    """Write a model and benchmark data of which it answers ``RIGHT`` correctly; return answers and labels."""
    answering_model(root / "model", words)
    assistant = Assistant.load(root / "model")
    given = {}
    for name in names:
        rows = documents()[name][3]
        asked = [Question(ASKED[name].format(**row), [row["image"]]) for row in rows]
        told = [answer.text for answer in assistant.answer(asked)]
        assert set(told) == set(words), f"{name}: the model must give both answers, or nothing is told apart"
        other = dict(zip(words, reversed(words), strict=True))
        truth = [text if number in RIGHT else other[text] for number, text in enumerate(told)]
        write(root / "data", name, [f"({one})" for one in truth] if name == "cv_bench" else truth)
        given[name] = told, truth
    return given


def environment(root, **more):
    return os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(root / "hf"), "CUDA_VISIBLE_DEVICES": ""} | more


def samples(folder):
    """Return prompts and answers by task and question number."""
    found = {}
    for file in folder.rglob("*_samples_*.jsonl"):
        task = file.stem.partition("_samples_")[2]
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        found[task] = {row["doc_id"]: (row["input"], row["filtered_resps"]) for row in rows}
    return found


def check_asked(found, name, told):
    rows = documents()[name][3]
    expected = {n: (ASKED[name].format(**row), text) for n, (row, text) in enumerate(zip(rows, told, strict=True))}
    assert found[BENCHMARKS[name].task] == expected


def test_evaluate_runs_benchmarks_and_prints_a_row(tmp_path, eval_python):
    names = ("pope", "mm_vet")
    given = prepare(tmp_path, ("yes", "no"), names)
    server, address = start_judge()
    command = [eval_python, "-m", "regiontok", "evaluate", tmp_path / "model", "--out", tmp_path / "out"]
    command += ["--benchmarks", *names, "--batch-size", "4", "--row", "clip-336/clustering/rms/cross_attention/raster"]
    judged = environment(tmp_path, OPENAI_API_KEY="any", OPENAI_API_URL=address)

    def run():
        return subprocess.run(
            list(map(str, command)), cwd=tmp_path / "data", env=judged, capture_output=True, text=True, check=False
        )

    try:
        done = run()
        assert done.returncode == 0, done.stderr[-3000:]
        again = run()
    finally:
        server.shutdown()
        server.server_close()
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    told, truth = given["pope"]
    hits = sum(one == two == "yes" for one, two in zip(told, truth, strict=True))
    f1 = 2 * hits / (told.count("yes") + truth.count("yes"))
    assert scores["figures"] == pytest.approx({"pope": 100 * f1, "mm_vet": 75.0, "tokens": 6.0})
    assert scores["details"] == pytest.approx({"pope_accuracy": 100 * len(RIGHT) / COUNT})
    for name in names:
        check_asked(samples(tmp_path / "out" / name), name, given[name][0])
    head, mine, paper, accuracy = done.stdout.splitlines()[-4:]
    assert head.split()[:3] == ["#Tok", "Focus", "POPE"]
    assert mine.removeprefix(str(tmp_path / "model")).split() == ["6", "-", f"{100 * f1:.2f}", *"------", "75.0"]
    assert paper.startswith("paper, clip-336/clustering/rms/cross_attention/raster")
    assert paper.split()[2:] == ["257", "12.72", "85.80", "310", "57.66", "35.80", "1493", "306", "66.84", "29.6"]
    assert accuracy == "pope_accuracy: 50.00"
    assert again.returncode == 0
    assert again.stdout == "\n".join([head, mine, paper, accuracy, ""]), "what is measured is not run again"


def test_multiple_choice_benchmarks_in_two_processes(tmp_path, eval_python):
    names = ["ocrbench", "cv_bench", "mmstar", "mmbench"]
    given = prepare(tmp_path, ("A", "B"), names)
    code = (
        "import sys, json; from pathlib import Path; from regiontok.evaluation.benchmarks import run; "
        f"measured = run({names!r}, {{'pretrained': {str(tmp_path / 'model')!r}, 'device': 'cpu'}}, Path('../out'), batch_size=2, processes=2); "
        "Path('../measured.json').write_text(json.dumps(measured))"
    )
    done = subprocess.run(
        [eval_python, "-c", code], cwd=tmp_path / "data", env=environment(tmp_path), capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    figures, details, tokens = json.loads((tmp_path / "measured.json").read_text())
    by_source = [RIGHT.count(0) + RIGHT.count(3), RIGHT.count(1) + RIGHT.count(4), RIGHT.count(2) + RIGHT.count(5)]
    ade, coco, omni = (right / 2 for right in by_source)
    expected = {
        "ocrbench": len(RIGHT),
        "cv_bench": 50 * ((ade + coco) / 2 + omni),
        "mmstar": 100 * (len([n for n in RIGHT if n % 2 == 0]) / 3 + len([n for n in RIGHT if n % 2]) / 3) / 2,
        "mmbench": 100 * len(RIGHT) / COUNT,
    }
    assert figures == pytest.approx(expected)
    assert (details, tokens) == ({"cv_bench_plain": 50.0}, 6.0)
    for name in names:
        check_asked(samples(tmp_path / "out"), name, given[name][0])


def test_mme_and_rejected_arguments_of_the_plugin(tmp_path, eval_python):
    prepare(tmp_path, ("yes", "no"), ["mme"])
    run = [str(eval_python), "-m", "lmms_eval", "--model", "regiontok", "--tasks", "mme", "--model_args"]

    def ask(arguments):
        return subprocess.run(
            [*run, arguments, "--output_path", "../out", "--log_samples"],
            cwd=tmp_path / "data", env=environment(tmp_path), capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = ask(f"pretrained={tmp_path / 'model'}")
    assert done.returncode == 0, done.stderr[-3000:]
    file = next((tmp_path / "out").rglob("*_results.json"))
    results = json.loads(file.read_text())["results"]["mme"]
    # pairs: (0 right, 1 wrong), (2 wrong, 3 right), (4 right, 5 wrong): accuracy 50 each, both right in none
    assert (results["mme_perception_score,none"], results["mme_cognition_score,none"]) == (50.0, 50.0)
    file.unlink()
    refused = ask(f"pretrained={tmp_path / 'model'},num_regions=3")
    assert not list((tmp_path / "out").rglob("*_results.json"))
    assert "holds a region model with its own Regionizer" in refused.stderr + refused.stdout


def test_a_missing_mark_of_the_judge_is_an_error(eval_python):
    """lmms-eval returns a mark of 0 when the judge cannot be reached."""
    code = (
        "import importlib.util; from regiontok.evaluation.benchmarks import TASKS; from lmms_eval.tasks.mmvet import utils\n"
        "spec = importlib.util.spec_from_file_location('mmvet', TASKS / 'mmvet.py')\n"
        "task = importlib.util.module_from_spec(spec); spec.loader.exec_module(task)\n"
        "doc = {'question_id': 'v7', 'question': 'q', 'answer': 'a', 'capability': 'rec'}\n"
        "utils.get_chat_response = lambda *_, **__: ('0.0', 'judge'); print(task.results(doc, ['b'])['gpt_eval_score']['score'])\n"
        "utils.get_chat_response = lambda *_, **__: ('', ''); task.results(doc, ['b'])"
    )
    done = subprocess.run(
        [str(eval_python), "-c", code], env=os.environ | {"OPENAI_API_KEY": "any"}, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.stdout == "0.0\n", done.stderr
    assert "MM-Vet, question v7: the judge gave no mark. Check that it can be reached." in done.stderr


@pytest.mark.parametrize("file", sorted(TASKS.glob("*.yaml")), ids=lambda file: file.stem)
def test_our_tasks_are_registered_and_greedy(file):
    class Loader(yaml.SafeLoader):
        """Reads function names as text."""

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    task = yaml.load(file.read_text(), Loader)
    assert "lmms_eval_specific_kwargs" not in task  # prompts are in regiontok.evaluation.prompts only
    assert task["task"] in {benchmark.task for benchmark in BENCHMARKS.values()}
    assert task["generation_kwargs"]["temperature"] == 0
    assert task["generation_kwargs"]["do_sample"] is False
