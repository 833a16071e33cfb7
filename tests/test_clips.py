"""Clips: regions in space and time, compared with scikit-learn and with slow references."""

import heapq

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import AgglomerativeClustering
from sklearn.feature_extraction.image import grid_to_graph
from sklearn.metrics import adjusted_rand_score

from regiontok import MeanPool, Regionizer, Regions, RegionTokens, UnionFindClusterer, load_tokens, save_tokens
from regiontok.batch import PatchBatch
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from regiontok.ordering import order_regions
from regiontok.store import TokenStore, write_tokens
from tests.conftest import for_each


def smooth_clip(frames, rows, cols, dim=8, *, seed=0, alike=0.8):
    """Features of a clip whose neighbouring frames are alike."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.randn(rows, cols, dim, generator=generator)
    clip = []
    for _ in range(frames):
        frame = alike * frame + (1 - alike**2) ** 0.5 * torch.randn(rows, cols, dim, generator=generator)
        clip.append(frame)
    return torch.stack(clip)


def unit(features):
    return torch.nn.functional.normalize(features, dim=-1).double().numpy()


def neighbours_in_time(features, valid, motion):
    """The most similar patch around the same place in the next frame, of each valid patch."""
    frames, rows, cols, _ = features.shape
    vectors = unit(features)
    following = {}
    for frame in range(frames - 1):
        for row in range(rows):
            for col in range(cols):
                if not valid[frame, row, col]:
                    continue
                window = [(row, col)] + [
                    (y, x)
                    for y in range(max(0, row - motion), min(rows, row + motion + 1))
                    for x in range(max(0, col - motion), min(cols, col + motion + 1))
                ]
                window = [place for place in window if valid[frame + 1, place[0], place[1]]]
                if window:
                    similarity = [float(vectors[frame, row, col] @ vectors[frame + 1, y, x]) for y, x in window]
                    following[frame, row, col] = (frame + 1, *window[int(np.argmax(similarity))])
    return following


def slow_ward(features, count, *, motion=0, max_frames=None, valid=None):
    """Ward linkage over the edges of a clip, with a dictionary of edges that is searched for the best pair."""
    frames, rows, cols, _ = features.shape
    valid = np.ones((frames, rows, cols), bool) if valid is None else valid
    vectors = unit(features)
    number = {place: index for index, place in enumerate(map(tuple, np.argwhere(valid)))}
    edges = set()
    for (frame, row, col), index in number.items():
        for place in ((frame, row, col + 1), (frame, row + 1, col)):
            if place in number:
                edges.add((index, number[place]))
    for place, other in neighbours_in_time(features, valid, motion).items():
        if max_frames is None or other[0] % max_frames:
            edges.add((number[place], number[other]))
    sums = {index: vectors[place].copy() for place, index in number.items()}
    size = dict.fromkeys(sums, 1)
    adjacent = {index: set() for index in sums}
    for a, b in edges:
        adjacent[a].add(b)
        adjacent[b].add(a)
    parent = {index: index for index in sums}

    def growth(a, b):
        difference = sums[a] / size[a] - sums[b] / size[b]
        return size[a] * size[b] / (size[a] + size[b]) * float(difference @ difference)

    heap = [(growth(a, b), a, b, 0, 0) for a, b in edges]
    heapq.heapify(heap)
    version = dict.fromkeys(sums, 0)
    while len(sums) > count and heap:
        _, a, b, at_a, at_b = heapq.heappop(heap)
        if a not in sums or b not in sums or (version[a], version[b]) != (at_a, at_b):
            continue
        a, b = min(a, b), max(a, b)
        sums[a] += sums.pop(b)
        size[a] += size[b]
        parent[b] = a
        version[a] += 1
        adjacent[a] = (adjacent[a] | adjacent.pop(b)) - {a, b}
        for other in adjacent[a]:
            adjacent[other].discard(b)
            adjacent[other].add(a)
            heapq.heappush(heap, (growth(a, other), a, other, version[a], version[other]))
    labels = np.full((frames, rows, cols), -1)
    for place, index in number.items():
        while parent[index] != index:
            index = parent[index]
        labels[place] = index
    return labels


def same_partition(a, b):
    return adjusted_rand_score(np.asarray(a).ravel(), np.asarray(b).ravel()) == 1


@for_each(seed=range(40))
def test_partitions_equal_those_of_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    frames, rows, cols = generator.integers(2, 6), generator.integers(3, 9), generator.integers(3, 9)
    features = smooth_clip(int(frames), int(rows), int(cols), seed=seed, alike=0.9 * (seed % 2))
    graph = grid_to_graph(frames, rows, cols)
    for count in (2, 5, int(frames * rows * cols) // 4):
        ward = AgglomerativeClustering(count, linkage="ward", connectivity=graph)
        expected = ward.fit_predict(unit(features).reshape(-1, 8))
        labels = UnionFindClusterer(num_regions=count, motion=0)(features[None]).labels()
        assert labels.shape == (1, frames, rows, cols)
        assert same_partition(labels, expected)


@given(
    shape=st.tuples(st.integers(2, 5), st.integers(1, 5), st.integers(1, 5)),
    motion=st.integers(0, 2),
    max_frames=st.none() | st.integers(1, 4),
    seed=st.integers(0, 1000),
    holes=st.booleans(),
)
def test_motion_and_chunks_equal_a_slow_reference(shape, motion, max_frames, seed, holes):
    features = smooth_clip(*shape, seed=seed)
    valid = torch.ones(shape, dtype=torch.bool)
    if holes:
        valid = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.8
        valid[0, 0, 0] = True
    slow = slow_ward(features, 1, motion=motion, max_frames=max_frames, valid=valid.numpy())
    components = len(np.unique(slow[slow >= 0]))
    clusterer = UnionFindClusterer(motion=motion, max_frames=max_frames)
    for count in {components, components + 2, int(valid.sum())}:
        count = min(count, int(valid.sum()))
        expected = slow_ward(features, count, motion=motion, max_frames=max_frames, valid=valid.numpy())
        labels = clusterer(features[None], valid[None], num_regions=count).labels()[0]
        assert same_partition(labels, expected)
    if components > 1:
        with pytest.raises(ValueRangeError, match=f"connected components .* clip 0 has {components}"):
            clusterer(features[None], valid[None], num_regions=components - 1)


def test_a_region_does_not_cross_a_chunk_and_the_budget_is_shared():
    features = smooth_clip(10, 5, 6, alike=0.99)
    regions = UnionFindClusterer(num_regions=40, max_frames=4)(features[None])
    assert len(regions) == 40
    assert regions.durations().max() <= 4
    first, last = regions.tracks()[..., 0].unbind(1)
    assert torch.equal(first // 4, last // 4)


def test_a_still_clip_is_clustered_like_its_image():
    image = smooth_clip(1, 6, 7)[0]
    for count in (1, 4, 9):
        expected = UnionFindClusterer(num_regions=count)(image[None]).labels()[0]
        labels = UnionFindClusterer(num_regions=count)(image.expand(1, 5, 6, 7, 8)).labels()[0]
        assert all(same_partition(frame, expected) for frame in labels)


def test_a_moving_patch_is_one_region():
    """An object that moves by two patches per frame keeps its region only if the neighbours in time follow it."""
    generator = torch.Generator().manual_seed(0)
    background, thing = torch.randn(2, 16, generator=generator)
    clip = background.repeat(4, 3, 9, 1)
    for frame in range(4):
        clip[frame, 1, 2 * frame : 2 * frame + 2] = thing
    clip = clip + 0.01 * torch.randn(clip.shape, generator=generator)
    labels = UnionFindClusterer(num_regions=2, motion=2)(clip[None]).labels()[0]
    expected = torch.zeros(4, 3, 9)
    for frame in range(4):
        expected[frame, 1, 2 * frame : 2 * frame + 2] = 1
    assert same_partition(labels, expected)
    assert not same_partition(UnionFindClusterer(num_regions=2, motion=0)(clip[None]).labels()[0], expected)


@pytest.mark.parametrize(
    "stop", [{"threshold": 0.6}, {"num_regions": 9}, {"keep": 0.2}, {"explained_variance": 0.5}], ids=str
)
def test_every_stopping_rule_and_cut(stop):
    features = smooth_clip(4, 5, 6)[None]
    regions = UnionFindClusterer(**stop)(features)
    linkage = "centroid" if "threshold" in stop else "ward"
    tree = UnionFindClusterer(linkage=linkage).tree(features)[0]
    assert torch.equal(tree.cut(**stop).labels(), regions.labels())
    assert tree.valid.shape == (4, 5, 6)
    if linkage == "ward":
        counts, variance = tree.curve()
        assert (counts[0], counts[-1]) == (120, 1)
        assert abs(float(variance[-1])) < 1e-6


def test_images_and_clips_in_one_batch():
    image, clip = smooth_clip(1, 4, 5)[0], smooth_clip(3, 4, 5, seed=1)
    clusterer = UnionFindClusterer()
    regions = clusterer([image, clip], num_regions=[4, 7])
    assert regions.grids.tolist() == [[1, 4, 5], [3, 4, 5]]
    labels = regions.labels()
    assert torch.equal(labels[0][0], clusterer(image[None], num_regions=4).labels()[0])
    assert torch.equal(labels[1], clusterer(clip[None], num_regions=7).labels()[0])
    assert [mask.shape for mask in regions.masks()] == [(4, 1, 4, 5), (7, 3, 4, 5)]
    assert torch.equal(clusterer([image, clip[0]], num_regions=4).grids, torch.tensor([[4, 5], [4, 5]]))
    valid = [torch.ones(4, 5, dtype=torch.bool), torch.ones(3, 4, 5, dtype=torch.bool)]
    assert torch.equal(clusterer([image, clip], valid, num_regions=[4, 7]).patch, regions.patch)


def test_regions_of_clips_keep_their_frames():
    regions = UnionFindClusterer(num_regions=6)(torch.stack([smooth_clip(3, 4, 5, seed=seed) for seed in range(3)]))
    assert torch.equal(Regions.cat(regions.split()).labels(), regions.labels())
    assert torch.equal(regions[1:].labels(), regions.labels()[1:])
    assert torch.equal(Regions.from_labels(regions.labels()).labels(), regions.labels())
    assert torch.equal(Regions.from_masks(regions.masks()).labels(), regions.labels())
    assert regions.select(torch.arange(len(regions))).centroids().shape == (18, 3)
    assert regions.areas().sum() == 3 * 60
    for region, mask in enumerate(regions.masks()[0]):
        place = mask.nonzero().float()
        torch.testing.assert_close(regions.centroids()[region], place.mean(0))
        ends = torch.stack([place[place[:, 0] == end].mean(0) for end in (place[0, 0], place[-1, 0])])
        torch.testing.assert_close(regions.tracks()[region], ends)
        assert regions.durations()[region] == place[-1, 0] - place[0, 0] + 1
    assert repr(regions) == "Regions(18 regions in 3 clips)"
    assert "3 \u00d7 4 \u00d7 5 patches" in regions._repr_html_()
    with pytest.raises(ShapeError, match="regions of images have no frames"):
        UnionFindClusterer(num_regions=2)(torch.rand(1, 3, 3, 4)).tracks()


@pytest.mark.parametrize("order", ["raster", "centroid", "area", "random"])
def test_orders(order):
    regions = UnionFindClusterer(num_regions=9)(smooth_clip(4, 4, 5)[None])
    ordered = order_regions(regions, order)
    assert sorted(ordered.areas().tolist()) == sorted(regions.areas().tolist())
    if order == "centroid":
        assert ordered.centroids()[:, 0].diff().min() >= 0


def test_a_regionizer_pools_clips():
    clip = smooth_clip(4, 5, 6)
    regionizer = Regionizer(num_regions=10, pool="mean", max_frames=2)
    tokens = regionizer(clip[None])
    assert tokens.values.shape == (10, 8)
    flat = regionizer.normalize(clip[None]).reshape(-1, 8)
    for region, value in enumerate(tokens.values):
        member = tokens.regions.masks()[0][region].flatten()
        torch.testing.assert_close(value, flat[member].mean(0))
    pooled = Regionizer(num_regions=10, dim=8, num_heads=2, max_frames=2)([clip, clip[0]])
    assert pooled.counts.tolist() == [10, 10]
    patches = Regionizer(source="patch", pool="mean")(clip[None])
    assert len(patches) == 120
    torch.testing.assert_close(MeanPool()(PatchBatch.of(clip[None]), patches.regions).values, clip.reshape(-1, 8))
    assert regionizer.normalize([clip, clip[0]])[0].shape == clip.shape


def test_clips_in_files_and_stores(tmp_path):
    tokens = Regionizer(num_regions=[5, 7][0], pool="mean")([smooth_clip(3, 4, 5), smooth_clip(2, 3, 3)])
    save_tokens(tmp_path / "clip.safetensors", tokens[0])
    assert torch.equal(load_tokens(tmp_path / "clip.safetensors").regions.labels(), tokens[0].regions.labels())
    image = Regionizer(num_regions=3, pool="mean")(torch.rand(1, 3, 3, 8))
    write_tokens(tmp_path / "s", {"a": tokens[0], "b": tokens[1], "c": image}.items(), dtype="float32")
    store = TokenStore(tmp_path / "s")
    for key, value in {"a": tokens[0], "b": tokens[1], "c": image}.items():
        assert isinstance(store[key], RegionTokens)
        assert torch.equal(store[key].regions.labels(), value.regions.labels())
        assert torch.equal(store[key].values, value.values)


def test_invalid_clips_are_rejected():
    with pytest.raises(ShapeError, match=r"features must be \(batch, rows, cols, dim\)"):
        UnionFindClusterer()(torch.rand(1, 2, 2, 3, 3, 4))
    with pytest.raises(DTypeError, match="masks of a clip must be a TrackSet"):
        Regionizer(source="segmentation", pool="mean")(torch.rand(1, 2, 3, 3, 4), masks=[torch.ones(1, 3, 3) > 0])
    with pytest.raises(ValueRangeError, match="motion must be at least 0; got -1"):
        UnionFindClusterer(motion=-1)
    with pytest.raises(ValueRangeError, match="max_frames must be at least 1; got 0"):
        Regionizer(pool="mean", max_frames=0)
    with pytest.raises(ValueRangeError, match=r"num_regions must be at least .* clip 0 has 3"):
        UnionFindClusterer(num_regions=2, max_frames=1)(torch.rand(1, 3, 2, 2, 4))
    with pytest.raises(ValueRangeError, match="NaN or infinity"):
        UnionFindClusterer()(torch.full((1, 2, 2, 2, 4), torch.nan))
    huge = smooth_clip(3, 3, 3) * 1e30
    assert torch.equal(
        UnionFindClusterer(num_regions=3)(huge[None]).labels(),
        UnionFindClusterer(num_regions=3)(smooth_clip(3, 3, 3)[None]).labels(),
    )
