import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import budgets, clustering, device, peers, timing
from regiontok import Regionizer, UnionFindClusterer
from regiontok.adapters.huggingface import with_regions
from regiontok.errors import DTypeError
from regiontok.evaluation.assistant import Assistant, Question
from tests.adapters.test_processors import IMAGES
from tests.conftest import for_each
from tests.families import CASES
from tests.processors import PROCESSORS, TEMPLATE

RESULTS = sorted(timing.RESULTS.glob("*.json"))


@for_each(cluster=[peers.dictionary_scan, peers.scikit_image, peers.higra_tree], seed=range(3))
def test_peers_return_our_partition(cluster, seed):
    features = clustering.smooth_features(9, 11, 40, seed=seed)
    for threshold in (0.3, 0.7, 0.95):
        ours = UnionFindClusterer(threshold=threshold)(features[None]).labels()[0].numpy()
        np.testing.assert_array_equal(cluster(features.numpy(), threshold), ours)


def test_the_timed_kernel_returns_the_merges_of_the_clusterer():
    features = clustering.smooth_features(9, 11, 40, seed=0)
    regions = UnionFindClusterer(threshold=clustering.THRESHOLD)(features[None])
    assert clustering.make_kernel(features.numpy())() == 99 - len(regions)


def test_benchmark_exits_if_contestants_disagree(monkeypatch):
    monkeypatch.setitem(clustering.PEERS, "wrong", lambda features, _: np.zeros(features.shape[:2], np.int64))
    with pytest.raises(SystemExit, match="wrong and regiontok disagree at .9, 11, 40.; nothing was timed"):
        clustering.check(clustering.smooth_features(9, 11, 40, seed=0))


def test_take_turns_and_ratio_of_medians():
    measured = timing.take_turns({"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.02)}, rounds=3)
    assert measured["short"]["median_ms"] >= 2
    assert measured["short"]["runs"] == 3
    assert timing.ratio(measured, "long", "short") > 2


def test_results_record_machine_and_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    monkeypatch.setenv("REGIONTOK_MACHINE", "my machine")
    path = timing.save("question", {"a": 1})
    assert path.name.startswith("question--my-machine--")
    assert json.loads(path.read_text())["figures"] == {"a": 1}


@for_each(path=RESULTS)
def test_stored_results_are_complete(path: Path):
    result = json.loads(path.read_text())
    assert {"question", "date", "machine", "device", "threads", "versions", "commit", "figures"} <= set(result)
    assert path.name.startswith(result["question"] + "--")
    assert {"regiontok", "torch", "numpy", "numba"} <= set(result["versions"]) <= set(timing.PACKAGES)
    assert result["figures"]


@for_each(rule=budgets.RULES, count=[1, 8, 40, 100])
def test_rules_return_the_requested_number_of_regions(rule, count):
    generator = torch.Generator().manual_seed(0)
    features, attention = torch.randn(12, 12, 16, generator=generator), torch.rand(144, generator=generator)
    labels = budgets.RULES[rule](features, count, attention)
    assigned = labels[labels >= 0]
    assert assigned.unique().tolist() == list(range(count))
    if rule == "random":
        assert len(assigned) == count
    elif rule != "visionzip" or count > 1:
        assert len(assigned) == 144
    if rule == "visionzip":
        dominant = max(1, round(count * 54 / 64))
        top = attention.argsort(descending=True)[:dominant]
        assert sorted(labels.flatten()[top].tolist()) == list(range(dominant))
        assert (assigned.bincount()[:dominant] == 1).all()


@for_each(name=["LLaVA-NeXT", "InternVL", "SmolVLM", "Qwen3-VL"])
def test_rules_keep_the_budget_of_an_image(name):
    model = with_regions(CASES[name].make(), Regionizer(source="patch", pool="mean", norm="none", padding="keep"))
    for rule in ("grid", "random", "tome", "ward"):
        expanded = budgets.cut(model, rule, 12).expand(**CASES[name].inputs())
        patches = [sum(tile.patches for tile in expanded.tiles if tile.image == image) for image in range(3)]
        expected = [min(12, number) for number in patches]
        if rule == "grid":  # a small tile may have fewer cells
            assert all(2 * count >= most >= count for count, most in zip(expanded.counts, expected, strict=True))
        else:
            assert expanded.counts == expected, rule
        assert int(expanded.columns.sum()) == sum(expanded.counts)


def test_budgets_are_measured_on_a_model_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    monkeypatch.setattr(budgets, "_TIMED", 1)
    stock, processor = CASES["LLaVA-1.5"].make(), PROCESSORS["LLaVA-1.5"]()
    processor.chat_template = TEMPLATE.replace("IMAGE", "<image>")
    for part in (stock, processor):
        part.save_pretrained(tmp_path / "model")
    questions = []
    for number, image in enumerate(IMAGES):
        image.save(tmp_path / f"{number}.png")
        answer = Assistant.load(tmp_path / "model").answer([Question("w5", [image])], max_new_tokens=1)[0].text
        questions.append({"image": f"{number}.png", "text": "w5", "answer": answer if number else "no such word"})
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    arguments = [str(tmp_path / "model"), "--questions", str(tmp_path / "questions.json"), "--max-new-tokens", "1"]
    results = budgets.main([*arguments, "--num-regions", "8", "4", "--keep", "0.25"])
    assert results[0] | {"prefill_ms": 0} == {"rule": "patches", "tokens": 16, "right": 66.7, "prefill_ms": 0}
    assert {(row["rule"], row["tokens"]) for row in results[1:]} == {
        (rule, count) for rule in (*budgets.RULES, "centroid", "average", "ward") for count in (8, 4, 0.25)
    }
    assert "| 16 patches | 66.7 (" in capsys.readouterr().out


def test_the_parts_for_a_gpu_run_on_small_models(monkeypatch):
    monkeypatch.setattr(timing, "save", None)  # a tiny run saves nothing
    figures = device.main(["--device", "cpu", "--tiny", "--parts", "clustering", "masks", "models", "video", "serving"])
    assert [name for name, results in figures.items() if "error" in results] == []
    assert figures["clustering"]["labels equal those of the CPU"]
    assert figures["masks"]["masks"] > 0
    for results in (figures["models"]["llava"], figures["video"]["qwen2_5_vl"]):
        assert results["one region per patch equals the stock model"]
    if not torch.cuda.is_available():
        with pytest.raises(DTypeError, match="there is no CUDA device. Pass --device cpu --tiny"):
            device.main([])
