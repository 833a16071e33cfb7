"""What do tokens of equal number keep of real features, and what do they cost to make?

Our three linkages beside a grid, k-means, and the rules of ToMe and DiVT, written here from their papers: on a trained
DINOv2-small and images that packages ship (``examples/real_features.py``). And what masks add at the same numbers, by
their weight: Felzenszwalb's segments of every image, and the true outline of the animal in one.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans

from benchmarks.timing import ratio, save, take_turns
from regiontok import MaskDownsampler, MaskSet, Regions, UnionFindClusterer, encoders
from regiontok import masks as generators
from regiontok.choices import MASK_WEIGHT
from regiontok.evaluation.partition import grid_regions, measure_partition
from regiontok.masked import merge_masks

COUNTS = (32, 64, 100)
WEIGHTS = (0.0, 0.1, 0.3, 0.5, 1.0, float("inf"))
BLOCKS = {"block 10": 9, "last block": -1}
SIDE = 336
_TOME_MERGES = 16  # a step, as in ToMe's larger models

OURS = ("grid", "centroid", "average", "ward")

Cluster = Callable[[torch.Tensor, int], np.ndarray]
"""Unit features ``(rows, cols, D)`` and a count, to labels ``(rows, cols)``."""


def by_linkage(linkage: str) -> Cluster:
    """One of our rules."""

    def cluster(features: torch.Tensor, count: int) -> np.ndarray:
        clusterer = UnionFindClusterer(linkage=linkage, num_regions=count, num_threads=1)
        return clusterer(features[None]).labels()[0].numpy()

    return cluster


def grid(features: torch.Tensor, count: int) -> np.ndarray:
    """Cells that ignore the image."""
    return grid_regions(torch.ones(features.shape[:2], dtype=torch.bool), count).labels()[0].numpy()


def k_means(features: torch.Tensor, count: int) -> np.ndarray:
    """scikit-learn's, one start; patches may join from anywhere."""
    flat = features.flatten(0, 1).numpy()
    return KMeans(count, n_init=1, random_state=0).fit_predict(flat).reshape(features.shape[:2])


def tome(features: torch.Tensor, count: int) -> np.ndarray:
    """ToMe's bipartite matching, again and again: every other token finds its nearest of the rest; best pairs merge.

    After "Token Merging: Your ViT But Faster" (Bolya et al., 2023), on features in place of keys.
    """
    tokens = features.flatten(0, 1)
    sizes = torch.ones(len(tokens))
    owner = torch.arange(len(tokens))
    while len(tokens) > count:
        unit = torch.nn.functional.normalize(tokens, dim=1)
        best, partner = (unit[::2] @ unit[1::2].T).max(1)
        merges = min(_TOME_MERGES, len(tokens) - count, len(best))
        gone = best.argsort(descending=True)[:merges]
        place = torch.arange(len(tokens))
        place[2 * gone] = 2 * partner[gone] + 1
        keep = torch.ones(len(tokens), dtype=torch.bool)
        keep[2 * gone] = False
        number = (keep.cumsum(0) - 1)[place]
        weighted = torch.zeros(int(keep.sum()), tokens.shape[1]).index_add_(0, number, tokens * sizes[:, None])
        sizes = torch.zeros(len(weighted)).index_add_(0, number, sizes)
        tokens, owner = weighted / sizes[:, None], number[owner]
    return owner.reshape(features.shape[:2]).numpy()


def divt(similarity: torch.Tensor, threshold: float) -> torch.Tensor:
    """DiVT's clusters of patches at a threshold, ``(P,)``: seeds by number of near patches, then each to its nearest.

    After "A More Word-like Image Tokenization for MLLMs" (arXiv 2605.17954).
    """
    near = similarity > threshold
    wanted = near.sum(1)
    seeds = []
    while (wanted >= 0).any():
        seeds.append(int(wanted.argmax()))
        wanted[near[seeds[-1]]] = -1
        wanted[seeds[-1]] = -1
    return similarity[:, seeds].argmax(1)


def divt_threshold(features: torch.Tensor, count: int) -> float:
    """The threshold at which DiVT makes so many clusters, or the most below that."""
    flat = features.flatten(0, 1)
    similarity = flat @ flat.T
    low, high = -1.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if len(divt(similarity, middle).unique()) <= count:
            low = middle
        else:
            high = middle
    return low


def measure(features: list[torch.Tensor], quokka: tuple[torch.Tensor, MaskSet, Any]) -> dict[str, Any]:
    """Scores and times of every contestant at every count, over unit features of images."""
    contestants: dict[str, Cluster] = {
        "grid": grid,
        "centroid": by_linkage("centroid"),
        "average": by_linkage("average"),
        "ward": by_linkage("ward"),
        "k-means": k_means,
        "ToMe": tome,
    }
    told: dict[str, Any] = {}
    for count in COUNTS:
        thresholds = [divt_threshold(one, count) for one in features]
        scores: dict[str, list[Any]] = {name: [] for name in (*contestants, "DiVT")}
        for one, threshold in zip(features, thresholds, strict=True):
            labels = {name: cluster(one, count) for name, cluster in contestants.items()}
            labels["DiVT"] = _divt(one, threshold)
            for name, found in labels.items():
                regions = Regions.from_labels(torch.from_numpy(found.astype(np.int64))[None])
                scores[name] += measure_partition(one[None], regions)
        runs: dict[str, Any] = {name: partial(cluster, features[0], count) for name, cluster in contestants.items()}
        runs["DiVT"] = partial(_divt, features[0], thresholds[0])
        runs["DiVT, threshold searched"] = partial(divt_threshold, features[0], count)
        times = take_turns(runs, rounds=9)
        unit, objects, geometry = quokka
        of_object = {}
        threshold = divt_threshold(unit, count)
        for name, cluster in {**contestants, "DiVT": lambda one, _, at=threshold: _divt(one, at)}.items():
            regions = Regions.from_labels(torch.from_numpy(cluster(unit, count).astype(np.int64))[None])
            scored = measure_partition(unit[None], regions, objects=[objects], geometry=geometry)
            of_object[name] = round(scored[0].miou or 0.0, 3)
        error = {name: float(np.mean([1 - one.kept for one in some])) for name, some in scores.items()}
        told[str(count)] = {
            "regions": {name: round(float(np.mean([one.regions for one in some])), 1) for name, some in scores.items()},
            "squared error": {name: round(value, 4) for name, value in error.items()},
            "ward's error over": {name: round(error["ward"] / error[name], 3) for name in error},
            "single patches": {
                name: round(float(np.mean([one.single for one in some])), 3) for name, some in scores.items()
            },
            "largest region": {
                name: round(float(np.mean([one.largest for one in some])), 3) for name, some in scores.items()
            },
            "IoU of the quokka": of_object,
            "times": times,
            "times faster by ward": {name: ratio(times, name, "ward") for name in times if name not in OURS},
        }
    return told


def measure_masks(
    features: torch.Tensor, masks: list[Regions], quokka: tuple[torch.Tensor, Any, Any]
) -> dict[str, Any]:
    """Return scores of regions with masks by number of regions and weight, and their time over Ward's without masks.

    Args:
        features: ``(images, rows, cols, D)``, unit length.
        masks: Felzenszwalb's segments of each on the grid; the last are those of the quokka.
        quokka: Its features, the outline of the animal, and the geometry of the encoder.
    """
    animal, outline, geometry = quokka
    true = MaskDownsampler(geometry=geometry, uncovered="background")([outline], features=animal)
    table: dict[str, Any] = {}
    for count in COUNTS:
        rows: dict[str, dict[str, float]] = {}
        for weight in WEIGHTS:
            clusterer = UnionFindClusterer(num_regions=count, mask_weight=weight)
            scores = [
                measure_partition(one[None], clusterer(one[None], masks=mask))[0].kept
                for one, mask in zip(features, masks[:-1], strict=True)
            ]
            row = {"squared error, Felzenszwalb": round(1 - float(np.mean(scores)), 4)}
            for name, mask in (("true mask", true), ("Felzenszwalb", masks[-1])):
                regions = clusterer(animal, masks=mask)
                (found,) = measure_partition(animal, regions, objects=[outline], geometry=geometry)
                row[f"IoU of the quokka, {name}"] = round(found.miou or 0.0, 3)
                row[f"squared error of the quokka, {name}"] = round(1 - found.kept, 4)
            rows[f"{weight:g}"] = row
        merged = [
            measure_partition(one[None], merge_masks(one[None], mask, [count], mask_weight=MASK_WEIGHT))[0].kept
            for one, mask in zip(features, masks[:-1], strict=True)
        ]
        table[str(count)] = {
            "by weight": rows,
            "squared error of segmentation, Felzenszwalb": round(1 - float(np.mean(merged)), 4),
        }
    return table | {"time over ward": _mask_costs()}


def _mask_costs() -> dict[str, float]:
    """Return how long masks take over Ward's rule without them, by grid and number of masks."""
    costs = {}
    generator = torch.Generator().manual_seed(0)
    for side, dim in ((24, 1024), (27, 1152)):
        coarse = torch.randn(1, 4, 4, dim, generator=generator)
        smooth = coarse.repeat_interleave(side // 4 + 1, 1).repeat_interleave(side // 4 + 1, 2)[:, :side, :side]
        features = (smooth + 0.7 * torch.randn(1, side, side, dim, generator=generator)).contiguous()
        rows, cols = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        centres = side * torch.rand(100, 2, generator=generator)
        nearest = torch.cdist(torch.stack([rows, cols], -1).reshape(-1, 2).float(), centres).argmin(1)
        masks = Regions.from_labels(nearest.unique(return_inverse=True)[1].reshape(1, side, side))
        clusterer = UnionFindClusterer(num_regions=64)
        times = take_turns(
            {"ward": partial(clusterer, features), "with masks": partial(clusterer, features, masks=masks)}, rounds=25
        )
        costs[f"{side} x {side} patches of {dim}, {len(masks)} masks"] = ratio(times, "with masks", "ward")
    return costs


def _divt(features: torch.Tensor, threshold: float) -> np.ndarray:
    flat = features.flatten(0, 1)
    return divt(flat @ flat.T, threshold).reshape(features.shape[:2]).numpy()


def main() -> None:
    """Measure both blocks, print and save."""
    sys.path.append(str(Path(__file__).parents[1] / "examples"))
    import real_features  # noqa: PLC0415  downloads

    torch.set_num_threads(1)
    image, objects = real_features.quokka()
    images = [*real_features.images().values(), image]
    segments = generators.load("felzenszwalb")(images)
    figures: dict[str, Any] = {}
    for name, layer in BLOCKS.items():
        encoder = encoders.load(f"hf:{real_features.dinov2_small()}", layer=layer, img_size=SIDE, geometry="squash")
        encoded, _ = encoder(images[:-1])
        own, _ = encoder(image)
        unit = torch.nn.functional.normalize(encoded, dim=-1)
        figures[name] = measure(list(unit), (torch.nn.functional.normalize(own[0], dim=-1), objects, encoder.geometry))
        for count, one in figures[name].items():
            print(name, count, {key: value for key, value in one.items() if key != "times"}, sep="\n  ")
        downsampler = MaskDownsampler(geometry=encoder.geometry, uncovered="single_patches")
        both = [*unit[:, None], torch.nn.functional.normalize(own, dim=-1)]
        on_grid = [downsampler([mask], features=one) for mask, one in zip(segments, both, strict=True)]
        figures[f"{name}, masks"] = measure_masks(unit, on_grid, (both[-1], objects, encoder.geometry))
        print(f"{name}, masks", figures[f"{name}, masks"], sep="\n  ")
    print(save("partition", figures))


if __name__ == "__main__":
    main()
