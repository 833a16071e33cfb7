import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import budgets, clustering, peers, timing
from regiontok import Regionizer, UnionFindClusterer
from regiontok.adapters.huggingface import with_regions
from regiontok.evaluation.assistant import Assistant, Question
from tests.adapters.test_processors import IMAGES
from tests.families import CASES
from tests.processors import PROCESSORS, TEMPLATE

RESULTS = sorted(timing.RESULTS.glob("*.json"))


@pytest.mark.parametrize("cluster", [peers.dictionary_scan, peers.scikit_image, peers.higra_tree])
@pytest.mark.parametrize("seed", range(3))
def test_peers_follow_our_rule(cluster, seed):
    features = clustering.smooth_features(9, 11, 40, seed=seed)
    for threshold in (0.3, 0.7, 0.95):
        ours = UnionFindClusterer(threshold=threshold)(features[None]).labels()[0].numpy()
        np.testing.assert_array_equal(cluster(features.numpy(), threshold), ours)


def test_a_benchmark_tells_no_speed_where_contestants_disagree(monkeypatch):
    monkeypatch.setitem(clustering.PEERS, "wrong", lambda features, _: np.zeros(features.shape[:2], np.int64))
    with pytest.raises(SystemExit, match="wrong and regiontok disagree at .9, 11, 40.; no speed is told"):
        clustering.check(clustering.smooth_features(9, 11, 40, seed=0))


def test_turns_measure_time_and_ratios_compare_medians():
    measured = timing.take_turns({"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.02)}, rounds=3)
    assert measured["short"]["median_ms"] >= 2
    assert measured["short"]["runs"] == 3
    assert timing.ratio(measured, "long", "short") > 2


def test_results_name_their_machine_and_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    monkeypatch.setenv("REGIONTOK_MACHINE", "my machine")
    path = timing.save("question", {"a": 1})
    assert path.name.startswith("question--my-machine--")
    assert json.loads(path.read_text())["figures"] == {"a": 1}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_stored_results_are_whole(path: Path):
    result = json.loads(path.read_text())
    assert {"question", "date", "machine", "device", "threads", "versions", "commit", "figures"} <= set(result)
    assert path.name.startswith(result["question"] + "--")
    assert {"regiontok", "torch", "numpy", "numba"} <= set(result["versions"]) <= set(timing.PACKAGES)
    assert result["figures"]


@pytest.mark.parametrize("rule", budgets.RULES)
@pytest.mark.parametrize("count", [1, 8, 40, 100])
def test_a_rule_makes_as_many_tokens_as_it_is_told(rule, count):
    generator = torch.Generator().manual_seed(0)
    features, looked = torch.randn(12, 12, 16, generator=generator), torch.rand(144, generator=generator)
    labels = budgets.RULES[rule](features, count, looked)
    kept = labels[labels >= 0]
    assert kept.unique().tolist() == list(range(count))
    if rule == "random":
        assert len(kept) == count
    elif rule != "visionzip" or count > 1:
        assert len(kept) == 144
    if rule == "visionzip":
        alone = labels.flatten().bincount(minlength=1) == 1 if (labels >= 0).all() else None
        dominant = max(1, round(count * 54 / 64))
        top = looked.argsort(descending=True)[:dominant]
        assert sorted(labels.flatten()[top].tolist()) == list(range(dominant))
        assert alone is None or alone[:dominant].all()


@pytest.mark.parametrize("name", ["LLaVA-NeXT", "InternVL", "SmolVLM", "Qwen3-VL"])
def test_every_rule_keeps_the_budget_of_a_image(name):
    model = with_regions(CASES[name].make(), Regionizer(source="patch", pool="mean", norm="none", padding="keep"))
    for rule in ("grid", "random", "tome", "ward"):
        prepared = budgets.cut(model, rule, 12).expand(**CASES[name].inputs())
        views = prepared.views
        patches = [sum(view.patches for view in views if view.image == image) for image in range(3)]
        wanted = [min(12, one) for one in patches]
        if rule == "grid":  # whose cells may be fewer in a small tile
            assert all(2 * one >= most >= one for one, most in zip(prepared.counts, wanted, strict=True))
        else:
            assert prepared.counts == wanted, rule
        assert int(prepared.columns.sum()) == sum(prepared.counts)


def test_budgets_are_measured_on_a_model_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    monkeypatch.setattr(budgets, "_TIMED", 1)
    stock, processor = CASES["LLaVA-1.5"].make(), PROCESSORS["LLaVA-1.5"]()
    processor.chat_template = TEMPLATE.replace("IMAGE", "<image>")
    for one in (stock, processor):
        one.save_pretrained(tmp_path / "model")
    questions = []
    for number, image in enumerate(IMAGES):
        image.save(tmp_path / f"{number}.png")
        told = Assistant.load(tmp_path / "model").answer([Question("w5", [image])], max_new_tokens=1)[0].text
        questions.append({"image": f"{number}.png", "text": "w5", "answer": told if number else "no such word"})
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    given = [str(tmp_path / "model"), "--questions", str(tmp_path / "questions.json"), "--max-new-tokens", "1"]
    results = budgets.main([*given, "--tokens", "8", "4", "--keep", "0.25"])
    assert results[0] | {"prefill_ms": 0} == {"rule": "patches", "tokens": 16, "right": 66.7, "prefill_ms": 0}
    assert {(one["rule"], one["tokens"]) for one in results[1:]} == {
        (rule, count) for rule in (*budgets.RULES, "centroid", "average", "ward") for count in (8, 4, 0.25)
    }
    assert "| 16 patches | 66.7 (" in capsys.readouterr().out
