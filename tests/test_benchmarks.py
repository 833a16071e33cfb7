import json
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import clustering, peers, timing
from regiontok import UnionFindClusterer

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
