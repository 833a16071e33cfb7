"""How far is `UnionFindClusterer` from its floor, and from its peers?"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score

from benchmarks import peers
from benchmarks.timing import ratio, save, take_turns
from regiontok import UnionFindClusterer
from regiontok._kernels.merge import AVERAGE, CENTROID, UNSEEN, WARD, merge

SHAPES = ((24, 24, 1024), (27, 27, 1152), (36, 36, 1280), (64, 64, 1024))
THRESHOLD = 0.7
BATCH = 32
RULES = {"centroid": (CENTROID, -1.0), "average": (AVERAGE, -1.0), "ward": (WARD, -np.finfo(np.float64).max)}
"""Linkages, and a score that every pair reaches."""
PEERS = {
    "dictionary scan": peers.dictionary_scan,
    "scikit-image": peers.scikit_image,
    "Higra": peers.higra_tree,
    "scikit-learn (another rule)": peers.scikit_learn,
}


def smooth_features(rows: int, cols: int, dim: int, *, seed: int) -> torch.Tensor:
    """``(rows, cols, dim)``: a random field on a 6 x 6 grid, interpolated, with noise; some 100 regions at 24 x 24."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, dim, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(rows, cols), mode="bilinear")
    noisy = smooth + 0.35 * torch.randn(1, dim, rows, cols, generator=generator)
    return noisy[0].permute(1, 2, 0).contiguous()


@numba.njit(fastmath={"reassoc", "contract", "nsz"})
def _dot(x, y):
    total = np.float32(0)
    for i in range(len(x)):
        total += x[i] * y[i]
    return total


@numba.njit
def floor(features, cols, dots):
    """One copy of the features, then the dot product of every pair of neighbours: what no implementation avoids."""
    copy = features.copy()
    count = 0
    for patch in range(len(copy)):
        if patch % cols < cols - 1:
            dots[count] = _dot(copy[patch], copy[patch + 1])
            count += 1
        if patch + cols < len(copy):
            dots[count] = _dot(copy[patch], copy[patch + cols])
            count += 1


def check(features: torch.Tensor) -> dict[str, int]:
    """The number of regions by each contestant; stops where one with our rule has other labels."""
    ours = UnionFindClusterer(threshold=THRESHOLD)(features[None]).labels()[0].numpy()
    counts = {"regiontok": int(ours.max()) + 1}
    for name, cluster in PEERS.items():
        labels = cluster(features.numpy(), THRESHOLD)
        counts[name] = int(labels.max()) + 1
        if "another rule" not in name and not np.array_equal(labels, ours):
            raise SystemExit(f"clustering: {name} and regiontok disagree at {tuple(features.shape)}; no speed is told.")
    return counts


def measure(rows: int, cols: int, dim: int) -> dict[str, Any]:
    """Figures at one grid."""
    batch = torch.stack([smooth_features(rows, cols, dim, seed=seed) for seed in range(BATCH)])
    features, array = batch[0], batch[0].numpy()
    regions = check(features)
    flat = array.reshape(-1, dim)
    valid, dots = np.ones(len(flat), np.bool_), np.empty(2 * len(flat), np.float32)
    pairs, score = np.empty((len(flat), 2), np.int32), np.empty(len(flat), np.float64)
    one, two = (UnionFindClusterer(threshold=THRESHOLD, num_threads=threads) for threads in (1, 2))

    def kernel(linkage: int = CENTROID, lowest: float = THRESHOLD, least: int = 1, kept: float = -1.0) -> None:
        merge(flat, valid, cols, False, linkage, lowest, least, kept, UNSEEN, np.empty(0, np.int32), pairs, score)

    alone = take_turns(
        {
            "floor": lambda: floor(flat, cols, dots),
            "kernel": kernel,
            "one image": lambda: one(features[None]),
            "tree": lambda: one.tree(features[None]),
        },
        rounds=100 if rows < 64 else 30,
    )
    batches = take_turns(
        {
            "floor": lambda: [floor(image.reshape(-1, dim), cols, dots) for image in batch.numpy()],
            "1 thread": lambda: one(batch),
            "2 threads": lambda: two(batch),
        },
        rounds=30 if rows < 64 else 8,
    )
    rivals: dict[str, Any] = {"regiontok": lambda: one(features[None])}
    rivals |= {name: (lambda cluster=cluster: cluster(array, THRESHOLD)) for name, cluster in PEERS.items()}
    against = take_turns(rivals, rounds=7 if rows < 64 else 3)
    count = regions["regiontok"]
    return {
        "rules": measure_rules(features, count, kernel),
        "regions": regions,
        "one image, one thread": alone,
        f"batch of {BATCH}": batches,
        "peers": against,
        "kernel over floor": ratio(alone, "kernel", "floor"),
        "one image over floor": ratio(alone, "one image", "floor"),
        "one image over kernel": ratio(alone, "one image", "kernel"),
        "batch on one thread over floor": ratio(batches, "1 thread", "floor"),
        "tree over floor": ratio(alone, "tree", "floor"),
        "two threads over one": ratio(batches, "1 thread", "2 threads"),
        "times faster than": {name: ratio(against, name, "regiontok") for name in PEERS},
    }


def measure_rules(features: torch.Tensor, count: int, kernel: Callable[..., None]) -> dict[str, Any]:
    """Our three rules at one count, and Ward's beside scikit-learn's, whose partition must be the same."""
    rows = len(features)
    unit = torch.nn.functional.normalize(features, dim=-1).numpy()
    clusterers = {name: UnionFindClusterer(linkage=name, num_regions=count, num_threads=1) for name in RULES}
    ward = clusterers["ward"]
    if adjusted_rand_score(peers.scikit_learn_ward(unit, count).ravel(), ward(features[None]).labels().ravel()) < 1:
        raise SystemExit(f"clustering: scikit-learn's Ward and ours disagree at {tuple(features.shape)}.")
    tree = ward.tree(features[None])[0]
    counts, kept = tree.curve()
    share = float(kept[counts == count])
    sharing = UnionFindClusterer(explained_variance=share - 1e-6, num_threads=1)
    batch = features[None].expand(8, -1, -1, -1)
    rounds = 60 if rows < 64 else 15
    kernels = take_turns(
        {name: partial(kernel, rule, lowest, count) for name, (rule, lowest) in RULES.items()}
        | {"explained variance": partial(kernel, WARD, RULES["ward"][1], 1, share - 1e-6)},
        rounds=rounds,
    )
    calls = take_turns(
        {f"call, {name}": partial(clusterer, features[None]) for name, clusterer in clusterers.items()}
        | {
            "kernel, ward": partial(kernel, *RULES["ward"], count),
            "call, explained variance": partial(sharing, features[None]),
            "batch of 8, one budget": partial(ward, batch),
            "batch of 8, a budget per image": partial(ward, batch, num_regions=[count] * 8),
        },
        rounds=rounds,
    )
    race = take_turns(
        {
            "ours": partial(ward, features[None]),
            "scikit-learn": partial(peers.scikit_learn_ward, unit, count),
            "our tree": partial(ward.tree, features[None]),
            "scikit-learn's tree": partial(peers.scikit_learn_ward, unit, None),
        },
        rounds=9 if rows < 64 else 5,
    )
    return {
        "regions": count,
        "kernels": kernels,
        "calls": calls,
        "race": race,
        "kernel over the paper's rule": {name: ratio(kernels, name, "centroid") for name in ("average", "ward")},
        "explained variance over a count": {
            "kernel": ratio(kernels, "explained variance", "ward"),
            "call": ratio(calls, "call, explained variance", "call, ward"),
        },
        "call over kernel": ratio(calls, "call, ward", "kernel, ward"),
        "a budget per image over one": ratio(calls, "batch of 8, a budget per image", "batch of 8, one budget"),
        "times faster than scikit-learn's Ward": ratio(race, "scikit-learn", "ours"),
        "trees": ratio(race, "scikit-learn's tree", "our tree"),
    }


def main() -> None:
    """Measure every shape, print the ratios and save all figures."""
    figures = {}
    for shape in SHAPES:
        name = "x".join(map(str, shape))
        figures[name] = measure(*shape)
        shown = {
            key: value for key, value in figures[name].items() if isinstance(value, float) or key.startswith("times")
        }
        rules = figures[name]["rules"]
        shown |= {key: value for key, value in rules.items() if key not in ("kernels", "calls", "race")}
        print(name, figures[name]["regions"], shown, sep="\n  ")
    print(save("clustering", figures))


if __name__ == "__main__":
    main()
