import pickle
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage import graph
from sklearn.cluster import AgglomerativeClustering
from sklearn.feature_extraction.image import grid_to_graph
from sklearn.metrics import adjusted_rand_score

from regiontok import MergeTree, Regions, UnionFindClusterer
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from tests.conftest import for_each, smooth_features
from tests.references import islands, merge_by_scanning, regret, squared_error, unit_length

LINKAGES = ("centroid", "average", "ward")
THRESHOLDS = (-1.0, -0.5, 0.0, 0.3, 0.5, 0.7, 0.9, 1.0)


@st.composite
def integer_grids(draw):
    """Small whole numbers: sums and dot products are exact in float32, ties are frequent and must break as promised."""
    shape = draw(hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=7))
    return draw(hnp.arrays(np.float32, shape, elements=st.integers(-2, 2)))


@st.composite
def unit_grids(draw):
    """Vectors whose unit length is exact in float32, so that all three rules are, and ties break as promised."""
    rows, cols = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    kinds = np.concatenate([np.eye(4), -2 * np.eye(4), [[1, 1, 1, 1], [1, -1, 1, -1], [-2, 2, 2, -2], [0, 0, 0, 0]]])
    chosen = draw(hnp.arrays(np.int64, (rows, cols), elements=st.integers(0, len(kinds) - 1)))
    return kinds.astype(np.float32)[chosen]


@st.composite
def grids_with_padding(draw, grids=integer_grids):
    features = draw(grids())
    valid = draw(hnp.arrays(np.bool_, features.shape[:2]))
    valid[draw(st.integers(0, valid.shape[0] - 1)), draw(st.integers(0, valid.shape[1] - 1))] = True
    return features, valid


def labels_of(clusterer, features, valid=None):
    valid = None if valid is None else torch.from_numpy(valid)[None]
    return clusterer(torch.from_numpy(features)[None], valid).labels()[0].numpy()


# Against the plain twin and an independent library


@given(integer_grids(), st.sampled_from(THRESHOLDS), st.sampled_from((4, 8)))
@example(np.zeros((3, 4, 2), np.float32), 0.7, 4)
@example(np.ones((5, 5, 3), np.float32), 1.0, 4)
@example(np.ones((1, 9, 1), np.float32), 0.7, 8)
def test_labels_equal_the_twins_with_all_ties(features, threshold, connectivity):
    expected, _ = merge_by_scanning(features, threshold=threshold, connectivity=connectivity)
    actual = labels_of(UnionFindClusterer(threshold=threshold, connectivity=connectivity), features)
    np.testing.assert_array_equal(actual, expected)


@given(grids_with_padding(), st.sampled_from(THRESHOLDS), st.sampled_from((4, 8)))
def test_labels_equal_the_twins_where_patches_are_not_valid(case, threshold, connectivity):
    features, valid = case
    expected, _ = merge_by_scanning(features, threshold=threshold, connectivity=connectivity, valid=valid)
    actual = labels_of(UnionFindClusterer(threshold=threshold, connectivity=connectivity), features, valid)
    np.testing.assert_array_equal(actual, expected)


@given(integer_grids(), st.data())
def test_budgets_equal_the_twins(features, data):
    patches = features.shape[0] * features.shape[1]
    budget = data.draw(st.integers(1, patches))
    expected, _ = merge_by_scanning(features, num_regions=budget)
    actual = labels_of(UnionFindClusterer(linkage="centroid", num_regions=budget), features)
    np.testing.assert_array_equal(actual, expected)


@given(grids_with_padding(unit_grids), st.sampled_from(LINKAGES), st.sampled_from((4, 8)), st.data())
def test_budgets_of_every_rule_equal_the_twins_with_all_ties(case, linkage, connectivity, data):
    features, valid = case
    budget = data.draw(st.integers(islands(valid, connectivity), int(valid.sum())))
    options = {"linkage": linkage, "num_regions": budget, "connectivity": connectivity}
    expected, _ = merge_by_scanning(features, valid=valid, **options)
    np.testing.assert_array_equal(labels_of(UnionFindClusterer(**options), features, valid), expected)


@given(grids_with_padding(unit_grids), st.sampled_from(THRESHOLDS), st.sampled_from((4, 8)))
def test_thresholds_of_average_linkage_equal_the_twins(case, threshold, connectivity):
    features, valid = case
    options = {"linkage": "average", "threshold": threshold, "connectivity": connectivity}
    expected, _ = merge_by_scanning(features, valid=valid, **options)
    np.testing.assert_array_equal(labels_of(UnionFindClusterer(**options), features, valid), expected)


@given(grids_with_padding(unit_grids), st.floats(0.01, 1), st.sampled_from((4, 8)))
def test_explained_variance_equals_the_twins(case, share, connectivity):
    features, valid = case
    total = squared_error(features, np.where(valid, 0, -1))
    expected, _ = merge_by_scanning(
        features,
        linkage="ward",
        valid=valid,
        connectivity=connectivity,
        allowed=(1 - share + 1e-4) * total,
    )
    actual = labels_of(UnionFindClusterer(explained_variance=share, connectivity=connectivity), features, valid)
    np.testing.assert_array_equal(actual, expected)


@for_each(linkage=LINKAGES, connectivity=[4, 8], seed=range(3))
def test_every_merge_is_the_best_of_its_moment(linkage, connectivity, seed):
    """On any numbers, where float32 may choose another of two pairs that are equal but for its roundings."""
    features = smooth_features(13, 11, 40, seed=seed) * torch.rand(
        1, 13, 11, 1, generator=torch.Generator().manual_seed(seed)
    )
    valid = torch.rand(1, 13, 11, generator=torch.Generator().manual_seed(seed)) < 0.85
    tree = UnionFindClusterer(linkage=linkage, connectivity=connectivity).tree(features, valid)[0]
    assert len(tree.pairs) == valid.sum() - islands(valid[0].numpy(), connectivity)
    worse = regret(
        features[0].numpy(), tree.pairs.tolist(), linkage=linkage, connectivity=connectivity, valid=valid[0].numpy()
    )
    assert worse.max() < 1e-5


@for_each(shape=[(6, 6, 5), (12, 17, 48), (24, 24, 64), (1, 50, 8), (31, 9, 100)], seed=range(4))
def test_wards_partition_equals_scikit_learns(shape, seed):
    rows, cols, dim = shape
    features = smooth_features(*shape, seed=seed)
    unit, graph = unit_length(features[0].numpy()).reshape(-1, dim), grid_to_graph(rows, cols)
    for budget in (2, 7, 20, 30):
        theirs = AgglomerativeClustering(n_clusters=budget, connectivity=graph, linkage="ward").fit_predict(unit)
        ours = UnionFindClusterer(num_regions=budget)(features).labels().numpy().ravel()
        assert adjusted_rand_score(theirs, ours) == 1


@for_each(
    dtype=[torch.float64, torch.float32, torch.bfloat16, torch.float16],
    shape=[(12, 12, 64), (9, 17, 33), (1, 40, 16), (30, 1, 5), (20, 20, 7)],
    seed=range(3),
)
def test_labels_equal_the_twins_on_features_of_every_dtype(shape, dtype, seed):
    features = smooth_features(*shape, seed=seed).to(dtype)
    expected, _ = merge_by_scanning(features[0].float().numpy(), threshold=0.6)
    np.testing.assert_array_equal(UnionFindClusterer(threshold=0.6)(features).labels()[0], expected)


def merge_with_scikit_image(features, threshold):
    """The same rule by scikit-image's region adjacency graph; it merges beyond, not at, the threshold."""
    rows, cols, _ = features.shape
    rag = graph.RAG(np.arange(rows * cols).reshape(rows, cols), connectivity=1)
    for node in rag:
        rag.nodes[node]["labels"] = [node]
        rag.nodes[node]["total"] = features.reshape(rows * cols, -1)[node].astype(np.float64)

    def distance(x, y):
        return 1 - x @ y / np.sqrt((x @ x) * (y @ y))

    for x, y in rag.edges():
        rag.edges[x, y]["weight"] = distance(rag.nodes[x]["total"], rag.nodes[y]["total"])

    def merge(rag, source, destination):
        rag.nodes[destination]["total"] = rag.nodes[destination]["total"] + rag.nodes[source]["total"]

    def weight(rag, source, destination, neighbour):
        return {"weight": distance(rag.nodes[destination]["total"], rag.nodes[neighbour]["total"])}

    return graph.merge_hierarchical(
        np.arange(rows * cols).reshape(rows, cols), rag, thresh=1 - threshold, rag_copy=False, in_place_merge=True,
        merge_func=merge, weight_func=weight,
    )  # fmt: skip


@for_each(seed=range(4), threshold=[0.4, 0.7])
def test_partition_equals_scikit_images(seed, threshold):
    features = smooth_features(16, 13, 48, seed=seed)
    theirs = merge_with_scikit_image(features[0].numpy(), threshold)
    first = np.unique(theirs, return_index=True)
    renumbered = np.argsort(np.argsort(first[1]))[np.searchsorted(first[0], theirs)]
    ours = UnionFindClusterer(threshold=threshold)(features).labels()[0].numpy()
    assert 2 < ours.max() < 200
    np.testing.assert_array_equal(ours, renumbered)


# What always holds


@given(grids_with_padding(), st.sampled_from(THRESHOLDS), st.sampled_from((4, 8)))
def test_every_valid_patch_is_in_one_connected_region(case, threshold, connectivity):
    features, valid = case
    labels = labels_of(UnionFindClusterer(threshold=threshold, connectivity=connectivity), features, valid)
    np.testing.assert_array_equal(labels >= 0, valid)
    for label in range(labels.max() + 1):
        assert islands(labels == label, connectivity) == 1


@given(
    st.lists(grids_with_padding(), min_size=1, max_size=3),
    st.sampled_from(LINKAGES),
    st.sampled_from((4, 8)),
    st.data(),
)
def test_counts_are_the_budgets_or_all_patches_and_known_before(cases, linkage, connectivity, data):
    dim = max(features.shape[2] for features, _ in cases)
    batch = [torch.nn.functional.pad(torch.from_numpy(features), (0, dim - features.shape[2])) for features, _ in cases]
    valid = [torch.from_numpy(valid) for _, valid in cases]
    budgets = [data.draw(st.integers(islands(one, connectivity), 60)) for _, one in cases]
    clusterer = UnionFindClusterer(linkage=linkage, connectivity=connectivity)
    patches = [int(one.sum()) for one in valid]
    told = clusterer.counts(patches, num_regions=budgets)
    assert told == [min(*pair) for pair in zip(budgets, patches, strict=True)]
    for form in (budgets, torch.tensor(budgets), np.array(budgets, np.uint8)):
        assert clusterer(batch, valid, num_regions=form).counts.tolist() == told
    most = UnionFindClusterer(linkage=linkage, num_regions=max(budgets), connectivity=connectivity)
    assert most(batch, valid).counts.tolist() == most.counts(patches) == most.counts(torch.tensor(patches))


def test_a_budget_of_the_call_goes_before_the_clusterers_own():
    features = smooth_features(8, 8, 16, batch=2)
    for clusterer in (UnionFindClusterer(), UnionFindClusterer(threshold=0.9), UnionFindClusterer(num_regions=30)):
        regions = clusterer(features, num_regions=[9, np.int8(4)])
        assert regions.counts.tolist() == [9, 4]
        alone = [
            UnionFindClusterer(linkage="ward", num_regions=count)(one[None])
            for one, count in zip(features, (9, 4), strict=True)
        ]
        assert torch.equal(regions.labels(), torch.cat([one.labels() for one in alone]))


def stops(linkage):
    """Ways to stop that a rule has."""
    few = [{"num_regions": count} for count in (1, 2, 3, 5, 9, 60)]
    if linkage == "ward":
        return few + [{"explained_variance": share} for share in (0.05, 0.3, 0.6, 0.9, 1.0)]
    return few + [{"threshold": threshold} for threshold in THRESHOLDS]


@given(integer_grids(), st.sampled_from(LINKAGES), st.sampled_from((4, 8)))
def test_a_cut_tree_equals_a_direct_run(features, linkage, connectivity):
    tree = UnionFindClusterer(linkage=linkage, connectivity=connectivity).tree(torch.from_numpy(features)[None])[0]
    for stop in stops(linkage):
        direct = UnionFindClusterer(linkage=linkage, connectivity=connectivity, **stop)
        np.testing.assert_array_equal(tree.cut(**stop).labels()[0], labels_of(direct, features))


@for_each(seed=range(3), linkage=LINKAGES)
def test_a_cut_tree_equals_a_direct_run_on_real_numbers(linkage, seed):
    features = smooth_features(18, 18, 200, seed=seed)
    tree = UnionFindClusterer(linkage=linkage).tree(features)[0]
    share = "explained_variance" if linkage == "ward" else "threshold"
    for value in np.linspace(0.025, 1, 40):
        direct = UnionFindClusterer(linkage=linkage, **{share: value})(features).labels()
        assert torch.equal(tree.cut(**{share: value}).labels(), direct)


@for_each(linkage=LINKAGES)
def test_scores_of_the_tree_are_the_twins(linkage):
    features = smooth_features(10, 10, 24)
    _, expected = merge_by_scanning(features[0].numpy(), linkage=linkage)
    actual = UnionFindClusterer(linkage=linkage).tree(features)[0].score
    np.testing.assert_allclose(actual, np.abs(expected) if linkage == "ward" else expected, atol=1e-5)


@for_each(shape=[(5, 4, 3), (16, 16, 64), (24, 24, 384), (40, 30, 16)])
def test_growths_of_wards_merges_add_up_to_the_squared_deviation(shape):
    features = smooth_features(*shape, seed=1)
    tree = UnionFindClusterer(linkage="ward").tree(features)[0]
    total = squared_error(features[0].numpy(), np.zeros(shape[:2], int))
    np.testing.assert_allclose([tree.deviation, float(tree.score.sum())], total, rtol=1e-4)
    counts, kept = tree.curve()
    for count, share in list(zip(counts.tolist(), kept.tolist(), strict=True))[:: max(1, len(counts) // 9)]:
        error = squared_error(features[0].numpy(), tree.cut(num_regions=count).labels()[0])
        np.testing.assert_allclose(share, 1 - error / total, atol=1e-4)


@for_each(common=[1.0, 10.0, 100.0, 1000.0])
def test_wards_rule_is_exact_where_patches_have_a_large_common_part(common):
    """As where one channel is massive: cosines up to 0.999999, whose differences float32 cannot hold."""
    features = smooth_features(12, 12, 48, seed=2)
    features[..., 7] = common * features.square().sum(-1).mean().sqrt()
    unit, graph = unit_length(features[0].numpy()).reshape(-1, 48), grid_to_graph(12, 12)
    total = squared_error(features[0].numpy(), np.zeros((12, 12), int))
    tree = UnionFindClusterer(linkage="ward").tree(features)[0]
    np.testing.assert_allclose([tree.deviation, float(tree.score.sum())], total, rtol=1e-4)
    for budget in (3, 10, 32):
        theirs = AgglomerativeClustering(n_clusters=budget, connectivity=graph, linkage="ward").fit_predict(unit)
        ours = UnionFindClusterer(num_regions=budget)(features).labels()
        assert adjusted_rand_score(theirs, ours.ravel()) == 1
        assert torch.equal(tree.cut(num_regions=budget).labels(), ours)
    for share in (0.3, 0.6, 0.9):
        labels = UnionFindClusterer(explained_variance=share)(features).labels()
        assert torch.equal(tree.cut(explained_variance=share).labels(), labels)
        assert 1 - squared_error(features[0].numpy(), labels[0]) / total >= share - 2e-4
        assert len(np.unique(labels)) > 2


def test_patches_that_differ_by_less_than_their_rounding_are_equal():
    features = torch.ones(1, 6, 6, 64) + 1e-9 * smooth_features(6, 6, 64)
    assert len(UnionFindClusterer(explained_variance=0.99)(features)) == 1
    assert len(UnionFindClusterer(num_regions=7)(features)) == 7


@for_each(share=[0.1, 0.5, 0.8, 0.99])
def test_explained_variance_is_kept_by_as_few_regions_as_can(share):
    features = smooth_features(15, 15, 32, seed=3)
    total = squared_error(features[0].numpy(), np.zeros((15, 15), int))
    regions = UnionFindClusterer(explained_variance=share)(features)
    assert 1 - squared_error(features[0].numpy(), regions.labels()[0]) / total >= share - 1e-4
    fewer = UnionFindClusterer(num_regions=len(regions) - 1)(features)
    assert 1 - squared_error(features[0].numpy(), fewer.labels()[0]) / total < share


@for_each(
    num_threads=[1, 2, 5],
    stop=[
        {"threshold": 0.7},
        {"num_regions": 20},
        {"explained_variance": 0.5},
        {"linkage": "average", "threshold": 0.6},
    ],
)
def test_a_batch_equals_its_images_one_by_one_on_any_number_of_threads(num_threads, stop):
    features = smooth_features(11, 9, 40, batch=7)
    clusterer = UnionFindClusterer(num_threads=num_threads, **stop)
    alone = torch.cat([UnionFindClusterer(**stop)(image[None]).labels() for image in features])
    assert torch.equal(clusterer(features).labels(), alone)
    assert torch.equal(clusterer(features.flip(0)).labels(), alone.flip(0))
    cut = {name: value for name, value in stop.items() if name != "linkage"}
    for one, labels in zip(clusterer.tree(features), alone, strict=True):
        assert torch.equal(one.cut(**cut).labels()[0], labels)


def test_grids_may_differ_within_a_batch():
    features = [smooth_features(5, 8, 16)[0], smooth_features(9, 3, 16)[0]]
    batch = UnionFindClusterer()(features).labels()
    for one, labels in zip(features, batch, strict=True):
        assert torch.equal(UnionFindClusterer()(one[None]).labels()[0], labels)


def test_strides_do_not_matter_and_input_is_left_alone():
    features = smooth_features(8, 12, 32, batch=2)
    before = features.clone()
    expected = UnionFindClusterer()(features).labels()
    strided = torch.empty(2, 8, 12, 64)[..., ::2].copy_(features)
    channels_first = features.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    budget = UnionFindClusterer(num_regions=9)(features).labels()
    for view in (strided, channels_first, features.clone().requires_grad_()):
        assert torch.equal(UnionFindClusterer()(view).labels(), expected)
        assert torch.equal(UnionFindClusterer(num_regions=9)(view).labels(), budget)
    assert torch.equal(features, before)


@for_each(scale=[1e-30, 1e-20, 1e18, 1e30])
def test_scale_does_not_matter_even_where_squares_leave_float32(scale):
    features = smooth_features(9, 9, 32)
    for clusterer in (UnionFindClusterer(), UnionFindClusterer(num_regions=9), UnionFindClusterer(linkage="average")):
        assert torch.equal(clusterer(features * scale).labels(), clusterer(features).labels())


@pytest.mark.parametrize("linkage", ["average", "ward"])
def test_lengths_of_features_do_not_matter_where_the_rule_sees_unit_length(linkage):
    features = smooth_features(9, 9, 32)
    lengths = 2.0 ** torch.randint(-8, 9, (1, 9, 9, 1), generator=torch.Generator().manual_seed(0))
    clusterer = UnionFindClusterer(linkage=linkage, num_regions=12)
    assert torch.equal(clusterer(features * lengths).labels(), clusterer(features).labels())


@for_each(value=[0.0, 1.0, 0.1, -3.7, 1e-30])
def test_a_uniform_image_is_one_region(value):
    features = torch.full((1, 24, 24, 768), value)
    for linkage in ("centroid", "average"):
        assert len(UnionFindClusterer(linkage=linkage, threshold=0.99999)(features)) == 1
    assert len(UnionFindClusterer(explained_variance=1.0)(features)) == 1
    assert UnionFindClusterer(linkage="ward").tree(features)[0].curve()[1].min() == 1


def test_zero_vectors_are_alike_and_unlike_all_others():
    features = torch.tensor([[[[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]]])
    assert UnionFindClusterer(threshold=0.1)(features).labels().tolist() == [[[0, 0, 1, 1]]]
    assert len(UnionFindClusterer(threshold=0.0)(features)) == 1


def test_a_pair_at_exactly_the_threshold_merges():
    features = torch.tensor([[[[1.0, 0.0], [3.0, 4.0]]]])  # their cosine is 0.6
    assert len(UnionFindClusterer(threshold=0.6)(features)) == 1
    assert len(UnionFindClusterer(threshold=0.6000001)(features)) == 2


def test_nan_in_patches_that_are_not_valid_does_no_harm():
    features = smooth_features(6, 6, 8)
    valid = torch.ones(1, 6, 6, dtype=torch.bool)
    valid[0, 4:] = False
    expected = UnionFindClusterer()(features, valid).labels()
    features[0, 4:] = torch.nan
    assert torch.equal(UnionFindClusterer()(features, valid).labels(), expected)


def test_large_grids_of_few_regions():
    features = smooth_features(36, 40, 16, noise=0.05)
    labels = UnionFindClusterer(threshold=0.5)(features).labels()
    expected, _ = merge_by_scanning(features[0].numpy(), threshold=0.5)
    assert labels.max() < 100
    np.testing.assert_array_equal(labels[0], expected)


@given(st.lists(grids_with_padding(), min_size=1, max_size=4))
def test_regions_are_those_of_their_labels(cases):
    dim = max(features.shape[2] for features, _ in cases)
    batch = [torch.nn.functional.pad(torch.from_numpy(features), (0, dim - features.shape[2])) for features, _ in cases]
    regions = UnionFindClusterer()(batch, [torch.from_numpy(valid) for _, valid in cases])
    expected = Regions.from_labels(list(regions.labels()))
    for name in ("patch", "region", "image", "mask_index", "grids", "fallback"):
        assert torch.equal(getattr(regions, name), getattr(expected, name)), name
    assert regions.score.isnan().all()


# Where it is used


def test_from_many_threads_at_once():
    clusterer = UnionFindClusterer()
    features = smooth_features(16, 16, 64, batch=3)
    expected = clusterer(features).labels()
    start, results = threading.Barrier(8), []

    def work():
        start.wait()
        results.extend(torch.equal(clusterer(features).labels(), expected) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 40


def test_the_kernel_lets_other_python_threads_run():
    features = smooth_features(128, 128, 1024)  # so long a call that a busy machine's gaps are short beside it
    clusterer = UnionFindClusterer(num_threads=1)
    clusterer(features)
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    ticker = threading.Thread(target=tick)
    ticker.start()
    begin = time.perf_counter()
    for _ in range(5):
        clusterer(features)
    end = time.perf_counter()
    done.set()
    ticker.join()
    longest = np.diff([begin, *[t for t in ticks if begin < t < end], end]).max()
    assert longest < (end - begin) / 5  # a kernel that held the lock would leave gaps as long as itself


class Images(torch.utils.data.Dataset):
    def __init__(self, features):
        self.features = features

    def __len__(self):
        return len(self.features)

    def __getitem__(self, index):
        return UnionFindClusterer()(self.features[index][None]).labels()[0]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_in_forked_data_loader_workers_after_the_parent_has_run_it():
    features = smooth_features(10, 10, 32, batch=6)
    expected = UnionFindClusterer(num_threads=2)(features).labels()
    loader = torch.utils.data.DataLoader(
        Images(features), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=120
    )
    assert torch.equal(torch.cat(list(loader)), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_features_give_the_same_regions_on_their_device():
    features = smooth_features(16, 16, 64, batch=3)
    regions = UnionFindClusterer()(features.cuda())
    assert regions.device.type == "cuda"
    assert torch.equal(regions.labels().cpu(), UnionFindClusterer()(features).labels())


def test_trees_and_clusterers_pickle():
    features = smooth_features(6, 6, 8)
    clusterer = pickle.loads(pickle.dumps(UnionFindClusterer(threshold=0.5, connectivity=8)))
    tree = pickle.loads(pickle.dumps(clusterer.tree(features)[0]))
    assert torch.equal(tree.cut(threshold=0.5).labels(), clusterer(features).labels())
    assert repr(eval(repr(clusterer))) == repr(clusterer)
    assert repr(tree) == "MergeTree(35 merges on a 6 x 6 grid, linkage='centroid')"


# Bad input


def bad(value, at=(0, 2, 1)):
    features = smooth_features(4, 4, 8, batch=2)
    features[at] = value
    return features


@for_each(
    ("options", "error", "message"),
    [
        ({"threshold": 1.5}, ValueRangeError, r"threshold must be in \[-1, 1\]; got 1.5"),
        ({"threshold": float("nan")}, ValueRangeError, r"threshold must be in \[-1, 1\]; got nan"),
        ({"threshold": "0.7"}, DTypeError, "threshold must be a number; got '0.7'"),
        ({"num_regions": 0}, ValueRangeError, "num_regions must be at least 1; got 0"),
        ({"num_regions": 2.5}, DTypeError, "num_regions must be a whole number; got 2.5"),
        ({"connectivity": 6}, ValueRangeError, "connectivity must be one of 4, 8; got 6"),
        ({"num_threads": 0}, ValueRangeError, "num_threads must be at least 1; got 0"),
        ({"linkage": "single"}, ValueRangeError, "linkage must be one of 'centroid', 'average', 'ward'; got 'single'"),
        ({"num_regions": True}, DTypeError, "num_regions must be a whole number; got True"),
        ({"num_regions": np.True_}, DTypeError, "num_regions must be a whole number; got np.True_"),
        (
            {"linkage": "ward", "threshold": 0.7},
            ValueRangeError,
            "threshold=0.7 is a cosine.*Pass num_regions, keep or",
        ),
        ({"threshold": 0.7, "num_regions": 3}, ValueRangeError, "threshold=0.7 and num_regions=3 are several ways"),
        ({"explained_variance": 0}, ValueRangeError, "explained_variance must be above 0; got 0"),
        ({"explained_variance": 1.1}, ValueRangeError, r"explained_variance must be in \[0, 1\]; got 1.1"),
        ({"explained_variance": True}, DTypeError, "explained_variance must be a number; got True"),
        (
            {"linkage": "average", "explained_variance": 0.5},
            ValueRangeError,
            "explained_variance requires linkage='ward'.*got linkage='average'",
        ),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        UnionFindClusterer(**options)


@for_each(
    ("features", "error", "message"),
    [
        (torch.zeros(576, 8), ShapeError, r"got \(576, 8\). Reshape with features.reshape\(1, 24, 24, 8\)"),
        (
            torch.zeros(2, 576, 8),
            ShapeError,
            r"got \(2, 576, 8\). Reshape a batch of tokens with features.reshape\(2, 24, 24, 8\)",
        ),
        (
            torch.zeros(2, 577, 8),
            ShapeError,
            r"577 tokens are a grid of 24 x 24 and 1 more, such as a class token: take features\[:, 1:\].reshape\(2, 24, 24",
        ),
        (torch.zeros(261, 8), ShapeError, r"16 x 16 and 5 more.*: take features\[5:\].reshape\(1, 16, 16, 8\)"),
        (torch.zeros(36, 36, 8), ShapeError, r"A single image needs a batch axis: features\[None\]"),
        (torch.zeros(3, 5, 8), ShapeError, r"A single image needs a batch axis: features\[None\]"),
        (torch.zeros(1, 2, 2, 8, dtype=torch.int64), DTypeError, "must be floating point; got torch.int64"),
        (torch.zeros(0, 4, 4, 8), ShapeError, r"at least one image.*got \(0, 4, 4, 8\)"),
        (torch.zeros(1, 0, 4, 8), ShapeError, r"row, column.*got \(1, 0, 4, 8\)"),
        (torch.zeros(1, 4, 4, 0), ShapeError, r"dimension; got \(1, 4, 4, 0\)"),
        (np.zeros((1, 4, 4, 8)), DTypeError, "must be a torch tensor or a list of tensors; got ndarray"),
        ([], ShapeError, "at least one image; got an empty list"),
        ([torch.zeros(2, 2, 8), 3], DTypeError, r"features\[1\] must be a torch tensor; got int"),
        ([torch.zeros(2, 8)], ShapeError, r"features\[0\] must be \(rows, cols, dim\)"),
        ([torch.zeros(2, 2, 8), torch.zeros(2, 2, 9)], ShapeError, r"share dim.*features\[1\] has \(9,"),
        (
            bad(torch.nan),
            ValueRangeError,
            "image 0 has NaN or infinity in 1 of its patches, the first at row 2, column 1",
        ),
        (bad(torch.inf, (1, 0, 3)), ValueRangeError, "image 1 has NaN or infinity.*row 0, column 3"),
        (bad(-torch.inf, (1,)), ValueRangeError, "image 1 has NaN or infinity in 16 of its patches"),
        (smooth_features(4, 4, 8).double() * 1e200, ValueRangeError, "must be finite in float32; image 0"),
    ],
)
def test_bad_features_are_refused(features, error, message):
    with pytest.raises(error, match=message):
        UnionFindClusterer()(features)
    with pytest.raises(error, match=message):
        UnionFindClusterer().tree(features)


def two_islands():
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    valid[1, 1] = False
    return valid


@pytest.mark.parametrize(
    ("budget", "valid", "message"),
    [
        (1, two_islands(), "at least the number of connected components.*got 1, image 1 has 2. Pass 2 or more"),
        ([1, 1], two_islands(), "at least the number of connected components.*got 1, image 1 has 2. Pass 2 or more"),
        ([3], None, r"one number or a list of length 2 .*; got length 1"),
        (torch.tensor([3, 4, 5]), None, r"one number or a list of length 2 .*; got length 3"),
        ([3, 0], None, "num_regions must be at least 1; got 0"),
        ([3, True], None, "num_regions must be a whole number; got True"),
        ([3, 2.0], None, "num_regions must be a whole number; got 2.0"),
        ("12", None, "num_regions must be a whole number; got '12'"),
    ],
)
def test_budgets_that_cannot_be_are_refused(budget, valid, message):
    with pytest.raises(ValueError, match=message):
        UnionFindClusterer()(smooth_features(4, 4, 8, batch=2), valid, num_regions=budget)


def test_small_integers_of_numpy_do_not_overflow():
    features = smooth_features(24, 24, 8)
    for one in (torch.tensor(100, dtype=torch.uint8), np.array(100, np.uint8), np.uint8(100)):
        assert len(UnionFindClusterer()(features, num_regions=one)) == 100
    assert len(UnionFindClusterer(num_regions=np.uint8(100))(features)) == 100
    assert len(UnionFindClusterer().tree(features)[0].cut(num_regions=np.uint8(100))) == 100


def test_wards_rule_needs_a_budget():
    clusterer = UnionFindClusterer(linkage="ward")
    with pytest.raises(ValueRangeError, match="linkage='ward' needs num_regions, keep or explained_variance"):
        clusterer(smooth_features(4, 4, 8))
    with pytest.raises(ValueRangeError, match="linkage='ward' needs num_regions, keep or explained_variance"):
        clusterer.counts([16])
    assert len(clusterer(smooth_features(4, 4, 8), num_regions=3)) == 3


@pytest.mark.parametrize(
    ("clusterer", "name"),
    [
        (UnionFindClusterer(), "threshold"),
        (UnionFindClusterer(threshold=0.5), "threshold"),
        (UnionFindClusterer(explained_variance=0.5), "explained_variance"),
    ],
)
def test_counts_that_depend_on_features_are_refused(clusterer, name):
    with pytest.raises(ValueRangeError, match=f"number of regions by {name} depends on the features"):
        clusterer.counts([576])


@pytest.mark.parametrize(
    ("valid", "error", "message"),
    [
        (torch.ones(1, 4, 4, dtype=torch.bool), ShapeError, r"one \(rows, cols\) grid per image, 2; got 1"),
        (
            torch.ones(2, 4, 5, dtype=torch.bool),
            ShapeError,
            r"valid\[0\] must be \(4, 4\) like its features; got \(4, 5\)",
        ),
        (torch.ones(2, 4, 4), DTypeError, "valid must be bool; got torch.float32"),
        (3, DTypeError, "valid must be a torch tensor .* got int"),
        (
            np.ones((2, 4, 4), bool),
            DTypeError,
            "valid must be a torch tensor .* got ndarray. Convert arrays with torch.from_numpy",
        ),
        (
            torch.tensor([True, False]).repeat_interleave(16).reshape(2, 4, 4),
            ValueRangeError,
            "image 1 has no valid patch",
        ),
    ],
)
def test_bad_valid_patches_are_refused(valid, error, message):
    with pytest.raises(error, match=message):
        UnionFindClusterer()(smooth_features(4, 4, 8, batch=2), valid)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ({}, "cut needs one of threshold, num_regions, keep and explained_variance"),
        ({"threshold": 0.5, "num_regions": 3}, "threshold=0.5 and num_regions=3 are several ways"),
        ({"threshold": 2}, r"threshold must be in \[-1, 1\]"),
        ({"explained_variance": 0.5}, "explained_variance requires linkage='ward'.*got linkage='centroid'"),
        ({"num_regions": 0}, "num_regions must be at least 1"),
    ],
)
def test_bad_cuts_are_refused(cut, message):
    tree = UnionFindClusterer().tree(smooth_features(4, 4, 8))[0]
    assert isinstance(tree, MergeTree)
    with pytest.raises(ValueRangeError, match=message):
        tree.cut(**cut)
    with pytest.raises(ValueRangeError, match="curve needs linkage='ward' without masks"):
        tree.curve()
    with pytest.raises(ValueRangeError, match="threshold=0.5 is a cosine"):
        UnionFindClusterer(linkage="ward").tree(smooth_features(4, 4, 8))[0].cut(threshold=0.5)


def test_a_cut_below_the_islands_is_refused():
    tree = UnionFindClusterer().tree(smooth_features(4, 4, 8, batch=2), two_islands())[1]
    with pytest.raises(ValueRangeError, match="the image has 2. Pass 2 or more"):
        tree.cut(num_regions=1)
