"""How far is `UnionFindClusterer` from its floor, and from its peers?"""

from typing import Any

import numba
import numpy as np
import torch

from benchmarks import peers
from benchmarks.timing import ratio, save, take_turns
from regiontok import UnionFindClusterer
from regiontok._kernels.merge import merge

SHAPES = ((24, 24, 1024), (27, 27, 1152), (36, 36, 1280), (64, 64, 1024))
THRESHOLD = 0.7
BATCH = 32
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
    pairs, similarity = np.empty((len(flat), 2), np.int32), np.empty(len(flat), np.float64)
    one, two = (UnionFindClusterer(threshold=THRESHOLD, num_threads=threads) for threads in (1, 2))
    alone = take_turns(
        {
            "floor": lambda: floor(flat, cols, dots),
            "kernel": lambda: merge(flat, valid, cols, False, THRESHOLD, 1, False, pairs, similarity),
            "one photo": lambda: one(features[None]),
            "tree": lambda: one.tree(features[None]),
        },
        rounds=100 if rows < 64 else 30,
    )
    batches = take_turns(
        {
            "floor": lambda: [floor(photo.reshape(-1, dim), cols, dots) for photo in batch.numpy()],
            "1 thread": lambda: one(batch),
            "2 threads": lambda: two(batch),
        },
        rounds=30 if rows < 64 else 8,
    )
    rivals: dict[str, Any] = {"regiontok": lambda: one(features[None])}
    rivals |= {name: (lambda cluster=cluster: cluster(array, THRESHOLD)) for name, cluster in PEERS.items()}
    against = take_turns(rivals, rounds=7 if rows < 64 else 3)
    return {
        "regions": regions,
        "one photo, one thread": alone,
        f"batch of {BATCH}": batches,
        "peers": against,
        "kernel over floor": ratio(alone, "kernel", "floor"),
        "one photo over floor": ratio(alone, "one photo", "floor"),
        "batch on one thread over floor": ratio(batches, "1 thread", "floor"),
        "tree over floor": ratio(alone, "tree", "floor"),
        "two threads over one": ratio(batches, "1 thread", "2 threads"),
        "times faster than": {name: ratio(against, name, "regiontok") for name in PEERS},
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
        print(name, figures[name]["regions"], shown, sep="\n  ")
    print(save("clustering", figures))


if __name__ == "__main__":
    main()
