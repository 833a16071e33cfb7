"""Time of `UnionFindClusterer`, compared with a lower bound and with other libraries."""

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
"""Each linkage with a threshold that every pair reaches."""
PEERS = {
    "dictionary scan": peers.dictionary_scan,
    "scikit-image": peers.scikit_image,
    "Higra": peers.higra_tree,
    "scikit-learn (another rule)": peers.scikit_learn,
}


def smooth_features(rows: int, cols: int, dim: int, *, seed: int) -> torch.Tensor:
    """Return ``(rows, cols, dim)`` features: an interpolated 6 x 6 random field plus noise."""
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
    """Copy the features and compute the dot products of all neighbours: a lower bound of any implementation."""
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
    """Return the number of regions of each contestant; exit if one with the same linkage has other labels."""
    ours = UnionFindClusterer(threshold=THRESHOLD)(features[None]).labels()[0].numpy()
    counts = {"regiontok": int(ours.max()) + 1}
    for name, cluster in PEERS.items():
        labels = cluster(features.numpy(), THRESHOLD)
        counts[name] = int(labels.max()) + 1
        if "another rule" not in name and not np.array_equal(labels, ours):
            raise SystemExit(
                f"clustering: {name} and regiontok disagree at {tuple(features.shape)}; nothing was timed."
            )
    return counts


def make_kernel(features: np.ndarray) -> Callable[..., int]:
    """Return a call of the compiled kernel alone, without checks and conversions; it returns the number of merges."""
    _, cols, dim = features.shape
    flat = features.reshape(-1, dim)
    valid, no_masks, no_pieces = (
        np.ones(len(flat), np.bool_),
        np.empty((len(flat), 0), np.float32),
        np.empty(0, np.int32),
    )
    pairs, scores = np.empty((len(flat), 2), np.int32), np.empty(len(flat), np.float64)

    def kernel(linkage: int = CENTROID, lowest: float = THRESHOLD, target: int = 1, variance: float = -1.0) -> int:
        stops = linkage, lowest, target, variance, UNSEEN
        image = flat, valid, cols, len(flat), no_pieces, np.empty((0, 2), np.int32), no_pieces, False
        num_merges, _ = merge(*image, *stops, no_masks, 0.0, no_pieces, pairs, scores)
        return num_merges

    return kernel


def measure(rows: int, cols: int, dim: int) -> dict[str, Any]:
    """Return the results for one shape of features."""
    batch = torch.stack([smooth_features(rows, cols, dim, seed=seed) for seed in range(BATCH)])
    features, array = batch[0], batch[0].numpy()
    regions = check(features)
    flat = array.reshape(-1, dim)
    dots, kernel = np.empty(2 * len(flat), np.float32), make_kernel(array)
    single, double = (UnionFindClusterer(threshold=THRESHOLD, num_threads=threads) for threads in (1, 2))

    alone = take_turns(
        {
            "floor": lambda: floor(flat, cols, dots),
            "kernel": kernel,
            "one image": lambda: single(features[None]),
            "tree": lambda: single.tree(features[None]),
        },
        rounds=100 if rows < 64 else 30,
    )
    batches = take_turns(
        {
            "floor": lambda: [floor(image.reshape(-1, dim), cols, dots) for image in batch.numpy()],
            "1 thread": lambda: single(batch),
            "2 threads": lambda: double(batch),
        },
        rounds=30 if rows < 64 else 8,
    )
    contestants: dict[str, Any] = {"regiontok": lambda: single(features[None])}
    contestants |= {name: (lambda cluster=cluster: cluster(array, THRESHOLD)) for name, cluster in PEERS.items()}
    against = take_turns(contestants, rounds=7 if rows < 64 else 3)
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
    """Return the results of the three linkages at one budget, and of Ward linkage compared with scikit-learn."""
    rows = len(features)
    unit = torch.nn.functional.normalize(features, dim=-1).numpy()
    clusterers = {name: UnionFindClusterer(linkage=name, num_regions=count, num_threads=1) for name in RULES}
    ward = clusterers["ward"]
    if adjusted_rand_score(peers.scikit_learn_ward(unit, count).ravel(), ward(features[None]).labels().ravel()) < 1:
        raise SystemExit(f"clustering: scikit-learn's Ward and ours disagree at {tuple(features.shape)}.")
    tree = ward.tree(features[None])[0]
    counts, variances = tree.curve()
    variance = float(variances[counts == count])
    by_variance = UnionFindClusterer(explained_variance=variance - 1e-6, num_threads=1)
    batch = features[None].expand(8, -1, -1, -1)
    rounds = 60 if rows < 64 else 15
    kernels = take_turns(
        {name: partial(kernel, rule, lowest, count) for name, (rule, lowest) in RULES.items()}
        | {"explained variance": partial(kernel, WARD, RULES["ward"][1], 1, variance - 1e-6)},
        rounds=rounds,
    )
    calls = take_turns(
        {f"call, {name}": partial(clusterer, features[None]) for name, clusterer in clusterers.items()}
        | {
            "kernel, ward": partial(kernel, *RULES["ward"], count),
            "call, explained variance": partial(by_variance, features[None]),
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
    """Measure every shape, print the ratios and save all results."""
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
