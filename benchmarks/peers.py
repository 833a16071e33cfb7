"""Centroid and Ward linkage with other libraries, and the most similar linkage of scikit-learn."""

from collections.abc import Iterator

import higra
import numpy as np
from skimage import graph
from sklearn.cluster import AgglomerativeClustering
from sklearn.feature_extraction.image import grid_to_graph


def _edges(rows: int, cols: int) -> Iterator[tuple[int, int]]:
    for patch in range(rows * cols):
        if patch % cols < cols - 1:
            yield patch, patch + 1
        if patch < (rows - 1) * cols:
            yield patch, patch + cols


def dictionary_scan(features: np.ndarray, threshold: float) -> np.ndarray:
    """Cluster with the published algorithm: a dictionary of pairs, fully searched before every merge."""
    rows, cols, dim = features.shape
    total = dict(enumerate(features.reshape(-1, dim)))
    members = {patch: [patch] for patch in total}

    def cosine(x: int, y: int) -> float:
        return float(total[x] @ total[y] / np.sqrt((total[x] @ total[x]) * (total[y] @ total[y])))

    around: dict[int, set[int]] = {patch: set() for patch in total}
    pairs = {}
    for x, y in _edges(rows, cols):
        pairs[x, y] = cosine(x, y)
        around[x].add(y)
        around[y].add(x)
    while pairs:
        a, b = max(pairs, key=pairs.__getitem__)
        if pairs[a, b] < threshold:
            break
        total[a] = total[a] + total.pop(b)
        members[a] += members.pop(b)
        for region in (a, b):
            for other in around[region]:
                pairs.pop((min(region, other), max(region, other)), None)
        neighbours = (around[a] | around.pop(b)) - {a, b}
        around[a] = neighbours
        for other in neighbours:
            around[other].discard(b)
            around[other].add(a)
            pairs[min(a, other), max(a, other)] = cosine(a, other)
    labels = np.empty(rows * cols, np.int64)
    for number, first in enumerate(sorted(members, key=lambda region: min(members[region]))):
        labels[members[first]] = number
    return labels.reshape(rows, cols)


def scikit_image(features: np.ndarray, threshold: float) -> np.ndarray:
    """Cluster with scikit-image's ``merge_hierarchical`` and callbacks for centroid linkage."""
    rows, cols, dim = features.shape
    flat = features.reshape(-1, dim)
    patches = np.arange(rows * cols).reshape(rows, cols)
    rag = graph.RAG(patches, connectivity=1)
    for node in rag:
        rag.nodes[node].update(labels=[node], total=flat[node], square=float(flat[node] @ flat[node]))

    def distance(x: dict, y: dict) -> float:
        return 1 - float(x["total"] @ y["total"]) / (x["square"] * y["square"]) ** 0.5

    for x, y in rag.edges():
        rag.edges[x, y]["weight"] = distance(rag.nodes[x], rag.nodes[y])

    def merge(rag: graph.RAG, source: int, destination: int) -> None:
        total = rag.nodes[destination]["total"] + rag.nodes[source]["total"]
        rag.nodes[destination].update(total=total, square=float(total @ total))

    def weight(rag: graph.RAG, _: int, destination: int, neighbour: int) -> dict:
        return {"weight": distance(rag.nodes[destination], rag.nodes[neighbour])}

    labels = graph.merge_hierarchical(
        patches, rag, thresh=1 - threshold, rag_copy=False, in_place_merge=True, merge_func=merge, weight_func=weight
    )
    return renumber(labels)


def higra_tree(features: np.ndarray, threshold: float) -> np.ndarray:
    """Cluster with Higra's binary partition tree and a callback for centroid linkage, cut at the threshold."""
    rows, cols, dim = features.shape
    flat = features.reshape(-1, dim)
    patches = rows * cols
    grid = higra.get_4_adjacency_graph((rows, cols))
    source, target = grid.edge_list()
    total = list(flat) + [None] * (patches - 1)
    square = [float(patch @ patch) for patch in flat] + [0.0] * (patches - 1)

    def distance(x: int, y: int) -> float:
        return 1 - float(total[x] @ total[y]) / (square[x] * square[y]) ** 0.5

    def weigh(_graph, _edge, new, first, second, neighbours):
        total[new] = total[first] + total[second]
        square[new] = float(total[new] @ total[new])
        for neighbour in neighbours:
            neighbour.set_new_edge_weight(distance(new, neighbour.neighbour_vertex()))

    weights = np.array([distance(x, y) for x, y in zip(source, target, strict=True)])
    tree, altitudes = higra.binary_partition_tree(grid, weigh, weights)
    beyond = np.flatnonzero(altitudes[patches:] > 1 - threshold)
    merges = beyond[0] if len(beyond) else patches - 1
    root = np.arange(patches + merges)
    parents = tree.parents()
    for node in range(patches + merges - 1, -1, -1):
        if parents[node] < patches + merges:
            root[node] = root[parents[node]]
    return renumber(root[:patches].reshape(rows, cols))


def scikit_learn(features: np.ndarray, threshold: float) -> np.ndarray:
    """Cluster with scikit-learn's average linkage on cosine. It averages edges; centroid linkage averages features."""
    rows, cols, dim = features.shape
    model = AgglomerativeClustering(
        n_clusters=None, metric="cosine", linkage="average", distance_threshold=1 - threshold,
        connectivity=grid_to_graph(rows, cols),
    )  # fmt: skip
    return renumber(model.fit_predict(features.reshape(-1, dim)).reshape(rows, cols))


def scikit_learn_ward(features: np.ndarray, count: int | None) -> np.ndarray:
    """Cluster unit features ``(rows, cols, D)`` with scikit-learn's Ward linkage; the full tree if count is None."""
    rows, cols, dim = features.shape
    model = AgglomerativeClustering(
        n_clusters=count or 1, linkage="ward", connectivity=grid_to_graph(rows, cols), compute_full_tree=count is None
    )
    return model.fit_predict(features.reshape(-1, dim)).reshape(rows, cols)


def renumber(labels: np.ndarray) -> np.ndarray:
    """Return labels numbered by first appearance, row by row."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].reshape(labels.shape)
