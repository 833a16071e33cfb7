"""Explained variance of trained features at equal numbers of tokens, and the time of grouping.

The three linkages are compared with a grid, k-means, and ToMe and DiVT, which are implemented here from their papers.
Features are those of DINOv2-small on images that Python packages contain (``examples/real_features.py``). A second
table adds masks with several weights: Felzenszwalb's segments of each image, and the annotated outline of a quokka.
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
from regiontok.evaluation.partition import PartitionScores, grid_regions, measure_partition
from regiontok.masked import merge_masks

COUNTS = (32, 64, 100)
WEIGHTS = (0.0, 0.1, 0.3, 0.5, 1.0, float("inf"))
BLOCKS = {"block 10": 9, "last block": -1}
SIDE = 336
_TOME_MERGES = 16  # per step, as in ToMe's larger models

OURS = ("grid", "centroid", "average", "ward")

Cluster = Callable[[torch.Tensor, int], np.ndarray]
"""A function from unit features ``(rows, cols, D)`` and a number of regions to labels ``(rows, cols)``."""


def by_linkage(linkage: str) -> Cluster:
    """Return the clustering function of a linkage."""

    def cluster(features: torch.Tensor, count: int) -> np.ndarray:
        clusterer = UnionFindClusterer(linkage=linkage, num_regions=count, num_threads=1)
        return clusterer(features[None]).labels()[0].numpy()

    return cluster


def grid(features: torch.Tensor, count: int) -> np.ndarray:
    """Return the cells of a regular grid."""
    return grid_regions(torch.ones(features.shape[:2], dtype=torch.bool), count).labels()[0].numpy()


def k_means(features: torch.Tensor, count: int) -> np.ndarray:
    """Cluster with scikit-learn's k-means and one start; clusters need not be connected."""
    flat = features.flatten(0, 1).numpy()
    return KMeans(count, n_init=1, random_state=0).fit_predict(flat).reshape(features.shape[:2])


def tome(features: torch.Tensor, count: int) -> np.ndarray:
    """Merge tokens by repeated bipartite matching: every second token is matched to the most similar other token.

    After "Token Merging: Your ViT But Faster" (Bolya et al., 2023), on features instead of keys.
    """
    tokens = features.flatten(0, 1)
    sizes = torch.ones(len(tokens))
    owner = torch.arange(len(tokens))
    while len(tokens) > count:
        unit = torch.nn.functional.normalize(tokens, dim=1)
        best, partner = (unit[::2] @ unit[1::2].T).max(1)
        merges = min(_TOME_MERGES, len(tokens) - count, len(best))
        merged = best.argsort(descending=True)[:merges]
        target = torch.arange(len(tokens))
        target[2 * merged] = 2 * partner[merged] + 1
        remains = torch.ones(len(tokens), dtype=torch.bool)
        remains[2 * merged] = False
        new_index = (remains.cumsum(0) - 1)[target]
        weighted = torch.zeros(int(remains.sum()), tokens.shape[1]).index_add_(0, new_index, tokens * sizes[:, None])
        sizes = torch.zeros(len(weighted)).index_add_(0, new_index, sizes)
        tokens, owner = weighted / sizes[:, None], new_index[owner]
    return owner.reshape(features.shape[:2]).numpy()


def divt(similarity: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return DiVT's cluster of each patch, ``(P,)``.

    The patch with the most uncovered neighbours becomes a seed, until all patches are covered. Then each patch joins
    the most similar seed. After "A More Word-like Image Tokenization for MLLMs" (arXiv 2605.17954).
    """
    is_near = similarity > threshold
    neighbours = is_near.sum(1)
    seeds = []
    while (neighbours >= 0).any():
        seeds.append(int(neighbours.argmax()))
        neighbours[is_near[seeds[-1]]] = -1
        neighbours[seeds[-1]] = -1
    return similarity[:, seeds].argmax(1)


def divt_threshold(features: torch.Tensor, count: int) -> float:
    """Return the threshold with which DiVT has ``count`` clusters, or the largest smaller number."""
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
    """Return scores and times of each contestant by number of regions.

    Args:
        features: Unit features of each image.
        quokka: Features, annotated masks and geometry of the quokka image.
    """
    contestants: dict[str, Cluster] = {
        "grid": grid,
        "centroid": by_linkage("centroid"),
        "average": by_linkage("average"),
        "ward": by_linkage("ward"),
        "k-means": k_means,
        "ToMe": tome,
    }
    results: dict[str, Any] = {}
    for count in COUNTS:
        thresholds = [divt_threshold(image, count) for image in features]
        scores: dict[str, list[PartitionScores]] = {name: [] for name in (*contestants, "DiVT")}
        for image, threshold in zip(features, thresholds, strict=True):
            labels = {name: cluster(image, count) for name, cluster in contestants.items()}
            labels["DiVT"] = _divt(image, threshold)
            for name, image_labels in labels.items():
                regions = Regions.from_labels(torch.from_numpy(image_labels.astype(np.int64))[None])
                scores[name] += measure_partition(image[None], regions)
        runs: dict[str, Any] = {name: partial(cluster, features[0], count) for name, cluster in contestants.items()}
        runs["DiVT"] = partial(_divt, features[0], thresholds[0])
        runs["DiVT, threshold searched"] = partial(divt_threshold, features[0], count)
        times = take_turns(runs, rounds=9)
        unit, objects, geometry = quokka
        iou = {}
        threshold = divt_threshold(unit, count)
        for name, cluster in {**contestants, "DiVT": lambda image, _, at=threshold: _divt(image, at)}.items():
            regions = Regions.from_labels(torch.from_numpy(cluster(unit, count).astype(np.int64))[None])
            object_scores = measure_partition(unit[None], regions, objects=[objects], geometry=geometry)
            iou[name] = round(object_scores[0].miou or 0.0, 3)
        means = {name: PartitionScores(*np.mean([row[:4] for row in rows], 0)) for name, rows in scores.items()}
        error = {name: 1 - mean.explained_variance for name, mean in means.items()}
        results[str(count)] = {
            "regions": {name: round(mean.num_regions, 1) for name, mean in means.items()},
            "squared error": {name: round(value, 4) for name, value in error.items()},
            "ward's error over": {name: round(error["ward"] / error[name], 3) for name in error},
            "single patches": {name: round(mean.singleton_fraction, 3) for name, mean in means.items()},
            "largest region": {name: round(mean.largest_fraction, 3) for name, mean in means.items()},
            "IoU of the quokka": iou,
            "times": times,
            "times faster by ward": {name: ratio(times, name, "ward") for name in times if name not in OURS},
        }
    return results


def measure_masks(
    features: torch.Tensor, masks: list[Regions], quokka: tuple[torch.Tensor, Any, Any]
) -> dict[str, Any]:
    """Return scores of regions with masks by number of regions and mask weight, and their time over that of Ward.

    Args:
        features: ``(images, rows, cols, D)`` of unit length.
        masks: Felzenszwalb's segments of each image on the grid, and at the end of the quokka image.
        quokka: Features, annotated masks and geometry of the quokka image.
    """
    unit, outline, geometry = quokka
    true_masks = MaskDownsampler(geometry=geometry, unassigned="background")([outline], features=unit)
    results: dict[str, Any] = {}
    for count in COUNTS:
        rows: dict[str, dict[str, float]] = {}
        for weight in WEIGHTS:
            clusterer = UnionFindClusterer(num_regions=count, mask_weight=weight)
            variances = [
                measure_partition(image[None], clusterer(image[None], masks=mask))[0].explained_variance
                for image, mask in zip(features, masks[:-1], strict=True)
            ]
            row = {"squared error, Felzenszwalb": round(1 - float(np.mean(variances)), 4)}
            for name, mask in (("true mask", true_masks), ("Felzenszwalb", masks[-1])):
                regions = clusterer(unit, masks=mask)
                (scores,) = measure_partition(unit, regions, objects=[outline], geometry=geometry)
                row[f"IoU of the quokka, {name}"] = round(scores.miou or 0.0, 3)
                row[f"squared error of the quokka, {name}"] = round(1 - scores.explained_variance, 4)
            rows[f"{weight:g}"] = row
        variances = []
        for image, mask in zip(features, masks[:-1], strict=True):
            regions = merge_masks(image[None], mask, [count], mask_weight=MASK_WEIGHT)
            variances.append(measure_partition(image[None], regions)[0].explained_variance)
        results[str(count)] = {
            "by weight": rows,
            "squared error of segmentation, Felzenszwalb": round(1 - float(np.mean(variances)), 4),
        }
    return results | {"time over ward": _mask_times()}


def _mask_times() -> dict[str, float]:
    """Return the time of Ward linkage with masks over that without, by grid and number of masks."""
    ratios = {}
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
        ratios[f"{side} x {side} patches of {dim}, {len(masks)} masks"] = ratio(times, "with masks", "ward")
    return ratios


def _divt(features: torch.Tensor, threshold: float) -> np.ndarray:
    flat = features.flatten(0, 1)
    return divt(flat @ flat.T, threshold).reshape(features.shape[:2]).numpy()


def main() -> None:
    """Measure both encoder blocks, print and save."""
    sys.path.append(str(Path(__file__).parents[1] / "examples"))
    import real_features  # noqa: PLC0415  downloads weights

    torch.set_num_threads(1)
    image, objects = real_features.quokka()
    images = [*real_features.images().values(), image]
    segments = generators.load("felzenszwalb")(images)
    figures: dict[str, Any] = {}
    for name, layer in BLOCKS.items():
        encoder = encoders.load(f"hf:{real_features.dinov2_small()}", layer=layer, img_size=SIDE, geometry="squash")
        encoded, _ = encoder(images[:-1])
        quokka, _ = encoder(image)
        unit = torch.nn.functional.normalize(encoded, dim=-1)
        quokka = torch.nn.functional.normalize(quokka, dim=-1)
        figures[name] = measure(list(unit), (quokka[0], objects, encoder.geometry))
        for count, results in figures[name].items():
            print(name, count, {key: value for key, value in results.items() if key != "times"}, sep="\n  ")
        downsampler = MaskDownsampler(geometry=encoder.geometry, unassigned="single_patches")
        on_grid = [
            downsampler([mask], features=patches)
            for mask, patches in zip(segments, [*unit[:, None], quokka], strict=True)
        ]
        figures[f"{name}, masks"] = measure_masks(unit, on_grid, (quokka, objects, encoder.geometry))
        print(f"{name}, masks", figures[f"{name}, masks"], sep="\n  ")
    print(save("partition", figures))


if __name__ == "__main__":
    main()
