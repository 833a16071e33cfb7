import copy
import dataclasses
import functools
import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.checkpoint import checkpoint

from regiontok import (
    CrossAttnPool,
    ImageGeometry,
    MeanPool,
    Regionizer,
    RegionizerConfig,
    Regions,
    UnionFindClusterer,
    encoders,
    order_regions,
    rms_normalize,
)
from regiontok.errors import (
    AmbiguousShapeWarning,
    CheckpointError,
    DTypeError,
    OutputError,
    ShapeError,
    UnknownOptionError,
    ValueRangeError,
)
from regiontok.options import OPTIONS
from tests.conftest import for_each, smooth_features
from tests.test_pooling import trained

features = smooth_features(6, 7, 32, batch=3)
half_valid = torch.ones(3, 6, 7, dtype=torch.bool)
half_valid[:, 3:] = False


@for_each(
    norm=["rms", "none"],
    pool=["cross_attention", "mean"],
    source=["clustering", "patch"],
    order=["raster", "centroid", "area"],
)
def test_it_is_the_composition_of_its_steps(source, pool, norm, order):
    regionizer = Regionizer(source=source, dim=32, norm=norm, pool=pool, num_heads=4, order=order, threshold=0.5)
    step = trained(32, 4) if pool == "cross_attention" else MeanPool()
    regionizer.pool.load_state_dict(step.state_dict())
    normalized = rms_normalize(features) if norm == "rms" else features
    if source == "patch":
        regions = UnionFindClusterer(num_regions=42)(normalized)
    else:
        regions = UnionFindClusterer(threshold=0.5)(normalized)
    expected = step(normalized, order_regions(regions, order))
    tokens = regionizer(features)
    assert torch.equal(tokens.values, expected.values)
    assert torch.equal(tokens.regions.patch, expected.regions.patch)


def test_defaults_are_the_papers():
    assert isinstance(Regionizer(dim=64).pool, CrossAttnPool)
    assert Regionizer(dim=64)(smooth_features(6, 7, 64)).counts.equal(
        Regionizer(dim=64, linkage="centroid", threshold=0.7)(smooth_features(6, 7, 64)).counts
    )
    assert Regionizer(dim=64).config.num_heads == 16
    patch = Regionizer(source="patch", norm="none")
    assert isinstance(patch.pool, MeanPool)
    assert torch.equal(patch(features).values, features.reshape(-1, 32))


def test_a_budget_gives_exactly_so_many_tokens():
    assert Regionizer(pool="mean", num_regions=11)(features).counts.tolist() == [11, 11, 11]


@for_each(given=[[5, 50, 21], torch.tensor([5, 50, 21]), np.array([5, 50, 21], np.uint8)])
def test_a_call_may_bring_a_budget_per_image(given):
    for regionizer in (
        Regionizer(pool="mean"),
        Regionizer(pool="mean", num_regions=11),
        Regionizer(pool="mean", threshold=0.9),
    ):
        tokens = regionizer(features, valid=half_valid, num_regions=given)
        assert tokens.counts.tolist() == [5, 21, 21] == regionizer.num_tokens([21, 21, 21], num_regions=given)
        ward = UnionFindClusterer(linkage="ward")(rms_normalize(features), half_valid, num_regions=given)
        assert torch.equal(tokens.regions.labels(), ward.labels())


def test_linkages_and_ways_to_stop_reach_the_clusterer():
    for options in (
        {"linkage": "average", "threshold": 0.6},
        {"linkage": "centroid", "num_regions": 9},
        {"num_regions": 9},
        {"explained_variance": 0.4},
    ):
        expected = UnionFindClusterer(**options)(rms_normalize(features))
        assert torch.equal(Regionizer(pool="mean", **options)(features).regions.labels(), expected.labels())


def test_counts_are_told_from_sizes_before_anything_is_encoded(china):
    images = [china, china.resize((640, 20)), china.resize((33, 200))]
    sizes = [(image.height, image.width) for image in images]
    for geometry in ("letterbox", "squash", "center_crop"):
        encoder = encoders.load("pixels", geometry=geometry)
        encoded, valid = encoder(images)
        patches = encoder.num_patches(sizes)
        assert patches == valid.sum((1, 2)).tolist()
        for options in ({"num_regions": 100}, {"source": "patch"}, {"num_regions": 100, "padding": "keep"}):
            regionizer = Regionizer(pool="mean", geometry=encoder.geometry, **options)
            told = regionizer.num_tokens(regionizer.num_patches([encoder.grid] * 3, sizes))
            assert regionizer(encoded, sizes=sizes).counts.tolist() == told
            assert regionizer(encoded, valid=valid).counts.tolist() == told
            if regionizer.config.padding == "drop":
                assert regionizer.num_tokens(patches) == told
    with pytest.raises(ShapeError, match="sizes must have one entry per image, 3; got 2"):
        regionizer.num_patches([encoder.grid] * 3, sizes[:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "number of regions by threshold depends on the features"),
        ({"explained_variance": 0.5}, "number of regions by explained_variance depends on the features"),
        ({"source": "segmentation"}, "the number of tokens of source='segmentation' depends on the masks"),
    ],
)
def test_counts_that_are_not_known_before_are_refused(options, message):
    with pytest.raises(ValueRangeError, match=message):
        Regionizer(pool="mean", **options).num_tokens([42])


def test_a_budget_of_a_call_is_not_for_patches():
    with pytest.raises(ValueRangeError, match="num_regions is not for source='patch'"):
        Regionizer(source="patch", pool="mean")(features, num_regions=5)


@pytest.mark.parametrize("source", ["clustering", "patch"])
def test_padding_is_dropped_or_kept(source):
    dropped = Regionizer(source=source, pool="mean")(features, valid=half_valid)
    labels = dropped.regions.labels()
    assert torch.equal(labels >= 0, half_valid)
    kept = Regionizer(source=source, pool="mean", padding="keep")(features, valid=half_valid)
    assert torch.equal(kept.values, Regionizer(source=source, pool="mean")(features).values)


def test_grids_may_differ_within_a_batch():
    mixed = [features[0], features[1, :2]]
    valid = [half_valid[0], half_valid[1, :2]]
    for source in ("clustering", "patch"):
        regionizer = Regionizer(source=source, pool="mean")
        tokens = regionizer(mixed, valid=valid).split()
        for one, mask, values in zip(mixed, valid, tokens, strict=True):
            assert torch.equal(regionizer(one[None], valid=mask[None]).values, values)


def test_random_order_is_drawn_as_dropout_is():
    regionizer = Regionizer(pool="mean", order="random")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first, second = (regionizer(features).regions.patch for _ in range(2))
        torch.manual_seed(3)
        again = regionizer(features).regions.patch
    assert not torch.equal(first, second)
    assert torch.equal(again, first)
    assert not regionizer.state_dict()


def test_random_order_is_the_same_when_a_checkpointed_block_is_computed_again():
    regionizer = Regionizer(dim=32, num_heads=4, order="random")

    def block(values):
        tokens = regionizer(values).values
        return torch.tanh(tokens * torch.arange(len(tokens))[:, None])  # an order matters, as in a language model

    gradients = []
    for call in (block, functools.partial(checkpoint, block, use_reentrant=False)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            given = features.clone().requires_grad_()
            call(given).square().sum().backward()
            gradients.append(given.grad)
    assert torch.equal(*gradients)


class Orders(torch.utils.data.Dataset):
    """The order of one image's regions, drawn where an item is read."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return Regionizer(pool="mean", order="random")(features[:1]).regions.patch


def test_random_order_differs_between_workers_and_epochs():
    loader = torch.utils.data.DataLoader(Orders(), batch_size=None, num_workers=2)
    seen = [order.tolist() for _ in range(2) for order in loader]
    assert len({tuple(order) for order in seen}) == len(seen) == 8


def test_gradients_reach_features_and_pool():
    regionizer = Regionizer(dim=32, num_heads=4)
    regionizer.pool.load_state_dict(trained(32, 4).state_dict())
    inputs = features.clone().requires_grad_()
    regionizer(inputs).values.pow(2).sum().backward()
    assert inputs.grad.abs().sum(-1).min() > 0
    assert all(parameter.grad is not None for parameter in regionizer.parameters())


def test_it_copies_and_shows_its_options():
    regionizer = copy.deepcopy(Regionizer(dim=32, num_heads=4, order="random"))
    assert len(regionizer(features)) > 3
    assert "source='clustering', dim=32, norm='rms', pool='cross_attention'" in repr(regionizer)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_it_compiles():
    regionizer = Regionizer(dim=32, num_heads=4)
    regionizer.pool.load_state_dict(trained(32, 4).state_dict())
    compiled = torch.compile(copy.deepcopy(regionizer), backend="aot_eager")
    for seed in (0, 1):
        batch = smooth_features(6, 7, 32, batch=2, seed=seed)
        torch.testing.assert_close(compiled(batch).values, regionizer(batch).values)


@for_each(
    options=[
        {"dim": 32, "num_heads": 4, "order": "random", "threshold": 0.4, "connectivity": 8},
        {"source": "patch", "norm": "none", "padding": "keep", "order": "centroid"},
        {"pool": "mean", "num_regions": 7},
        {"pool": "mean", "linkage": "average", "threshold": 0.6},
        {"pool": "mean", "explained_variance": 0.7},
        {"pool": "mean", "linkage": "centroid", "num_regions": 7},
    ]
)
def test_saving_and_loading_changes_nothing(tmp_path, options):
    regionizer = Regionizer(**options)
    for parameter in regionizer.parameters():
        torch.nn.init.normal_(parameter)
    regionizer(features)
    regionizer.save_pretrained(tmp_path / "new" / "folder")
    again = Regionizer.from_pretrained(tmp_path / "new" / "folder")
    assert again.config == regionizer.config
    torch.manual_seed(0)
    expected = regionizer(features).values
    torch.manual_seed(0)
    assert torch.equal(again(features).values, expected)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12), reason="graph breaks differ in older versions of torch"
)
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo reads it
def test_a_compiled_model_calls_it_as_one_step():
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), Regionizer(dim=32, num_heads=2, num_regions=5))
    expected = model(features).values
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, backend="eager")
    for batch in (features, features[:1]):
        assert torch.allclose(compiled(batch).values, model(batch).values, atol=1e-5)
    assert torch.allclose(compiled(features).values, expected, atol=1e-5)
    assert len(torch._dynamo.utils.counters["graph_break"]) <= 2  # at the step, and where it is first prepared


def test_options_have_one_place():
    assert inspect.signature(Regionizer) == inspect.signature(RegionizerConfig)
    assert list(Regionizer(pool="mean").config.to_dict()) == [
        field.name for field in dataclasses.fields(RegionizerConfig)
    ]
    with pytest.raises(UnknownOptionError, match="no option 'colour'"):
        Regionizer(pool="mean", colour="red")
    assert list(OPTIONS) == [field.name for field in dataclasses.fields(RegionizerConfig)]


@pytest.fixture
def saved(tmp_path):
    Regionizer(dim=32, num_heads=4).save_pretrained(tmp_path)
    return tmp_path


def edit(folder, **changes):
    path = folder / "regionizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "regionizer.json").unlink(), "has no regionizer.json"),
        (lambda folder: (folder / "regionizer.safetensors").unlink(), "has no regionizer.safetensors"),
        (lambda folder: (folder / "regionizer.json").write_text("{"), "regionizer.json is not valid JSON"),
        (lambda folder: (folder / "regionizer.json").write_text("[]"), "must hold an object of options; got list"),
        (lambda folder: (folder / "regionizer.safetensors").write_bytes(b"12345678abc"), "damaged"),
        (
            lambda folder: edit(folder, colour="red"),
            r"saved by regiontok [\w.]+, does not fit .*has no option 'colour'",
        ),
        (
            lambda folder: edit(folder, threshold=3),
            r"does not fit this version: a saved Regionizer has invalid options: threshold must be in \[-1, 1\]; got 3",
        ),
        (lambda folder: edit(folder, dim=64), "does not fit this version: .*size mismatch"),
        (lambda folder: save_file({"x": torch.ones(1)}, folder / "regionizer.safetensors"), "Missing key"),
    ],
)
def test_damaged_folders_are_refused(saved, damage, message):
    damage(saved)
    with pytest.raises(CheckpointError, match=r"(?s)" + message):
        Regionizer.from_pretrained(saved)


def test_what_is_saved_can_be_read_without_us(saved):
    assert set(load_file(saved / "regionizer.safetensors")) == set(Regionizer(dim=32, num_heads=4).state_dict())


@for_each(
    ("options", "error", "message"),
    [
        (
            {"source": "magic"},
            ValueRangeError,
            "source must be one of 'clustering', 'patch', 'segmentation', 'combined'; got 'magic'",
        ),
        ({"norm": "layer"}, ValueRangeError, "norm must be one of 'rms', 'none'"),
        ({"pool": "max"}, ValueRangeError, "pool must be one of 'cross_attention', 'mean'"),
        ({"pool": "mean", "order": "up"}, ValueRangeError, "order must be one of"),
        (
            {"pool": "mean", "order": "score"},
            ValueRangeError,
            "order='score' needs a score for every region",
        ),
        ({"pool": "mean", "padding": "crop"}, ValueRangeError, "padding must be one of 'drop', 'keep'"),
        ({"source": "patch", "num_regions": 5}, ValueRangeError, "num_regions requires source='clustering'"),
        ({}, ValueRangeError, "pool='cross_attention' needs the dimension of the features, as in dim=1024"),
        ({"dim": 100}, ValueRangeError, "num_heads must divide dim"),
        ({"dim": "64"}, DTypeError, "dim must be a whole number; got '64'"),
        ({"dim": 64, "threshold": -3}, ValueRangeError, "threshold must be in"),
        ({"dim": 64, "connectivity": "x"}, ValueRangeError, "connectivity must be one of 4, 8; got 'x'"),
        ({"dim": 64, "num_heads": None}, DTypeError, "num_heads must be a whole number; got None"),
        ({"dim": 64, "linkage": "ward", "threshold": 0.5}, ValueRangeError, "threshold=0.5 is a cosine"),
        ({"dim": 64, "linkage": "best"}, ValueRangeError, "linkage must be one of 'centroid', 'average', 'ward'"),
        ({"dim": 64, "num_regions": 5, "threshold": 0.5}, ValueRangeError, "several ways to say when to stop"),
        (
            {"source": "segmentation", "dim": 64, "linkage": "ward"},
            ValueRangeError,
            "linkage='ward' needs num_regions or keep for source='segmentation'",
        ),
        (
            {"source": "combined", "dim": 64, "explained_variance": 0.5},
            ValueRangeError,
            "explained_variance requires source='clustering'; got source='combined'",
        ),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        Regionizer(**options)


def test_numbers_of_numpy_are_numbers(tmp_path):
    regionizer = Regionizer(dim=np.int64(32), num_heads=4, num_regions=np.uint8(5), eps=np.float32(0.5))
    regionizer.save_pretrained(tmp_path)
    assert Regionizer.from_pretrained(tmp_path)(features).counts.tolist() == [5, 5, 5]


@pytest.mark.parametrize("source", ["clustering", "patch"])
def test_nan_is_named_by_every_source_unless_it_is_not_valid(source):
    broken = features.clone()
    broken[1, 2, 3] = torch.nan
    with pytest.raises(
        ValueRangeError, match="image 1 has NaN or infinity in 1 of its patches, the first at row 2, column 3"
    ):
        Regionizer(source=source, pool="mean")(broken)
    valid = torch.ones(3, 6, 7, dtype=torch.bool)
    valid[1, 2, 3] = False
    regionizer = Regionizer(source=source, dim=32, num_heads=4, pool="cross_attention", threshold=1)
    regionizer.pool.load_state_dict(trained(32, 4).state_dict())
    tokens = regionizer(broken, valid=valid)
    tokens.values.sum().backward()
    assert tokens.values.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in regionizer.parameters())


@for_each(scale=[1e-3, 1e20, 1e30])
def test_the_scale_of_features_does_not_matter_after_rms(scale):
    expected = Regionizer(pool="mean")(features)
    tokens = Regionizer(pool="mean")(features * scale)
    assert torch.equal(tokens.regions.patch, expected.regions.patch)
    torch.testing.assert_close(tokens.values, expected.values, rtol=1, atol=0.05)


def test_features_of_another_dtype_than_the_weights_are_refused():
    regionizer = Regionizer(dim=32, num_heads=4)
    with pytest.raises(DTypeError, match="features are torch.bfloat16 and this pool is torch.float32. Convert one"):
        regionizer(features.bfloat16())
    assert regionizer.bfloat16()(features.bfloat16()).values.dtype == torch.bfloat16


def test_a_default_device_of_torch_changes_nothing():
    expected = Regionizer(pool="mean", order="random")(features, valid=half_valid)
    patch = Regionizer(source="patch", pool="mean")(features)
    with torch.device("meta"):
        tokens = Regionizer(pool="mean", order="centroid")(features, valid=half_valid)
        assert len(tokens) == len(expected)
        assert torch.equal(Regionizer(source="patch", pool="mean")(features).values, patch.values)
        assert torch.equal(Regions.from_labels(patch.regions.labels()).patch, patch.regions.patch)
        assert len(Regions.from_masks(patch.regions.masks(), valid=half_valid)) == int(half_valid.sum())
        assert UnionFindClusterer().tree(features)[0].cut(num_regions=4).labels().max() == 3


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file must be a folder, but cannot be created \(File exists\)"):
        Regionizer(pool="mean").save_pretrained(tmp_path / "file")


def test_channels_first_are_told():
    with pytest.raises(
        ShapeError, match=r"must have dim 32 .*; got 7. Channels come last: features.permute\(0, 2, 3, 1"
    ):
        Regionizer(dim=32, num_heads=4)(features.permute(0, 3, 1, 2))


def test_features_of_another_dimension_are_refused():
    with pytest.raises(ShapeError, match="features must have dim 64 like this Regionizer; got 32"):
        Regionizer(dim=64)(features)


def test_patches_that_are_not_valid_get_no_gradient_even_where_they_are_not_finite():
    for norm in ("rms", "none"):
        given = features.clone()
        given[:, 3:] = torch.nan
        given.requires_grad_()
        tokens = Regionizer(dim=32, num_heads=4, norm=norm)(given, valid=half_valid)
        tokens.values.square().sum().backward()
        assert (given.grad[:, 3:] == 0).all()
        assert given.grad[:, :3].abs().sum() > 0


@pytest.mark.parametrize(
    ("value", "dtype", "options"),
    [
        (65504.0, torch.float16, {"dim": 8, "num_heads": 2}),
        (3e38, torch.float32, {"pool": "mean", "threshold": -1}),
    ],
)
def test_tokens_that_leave_their_dtype_are_refused(value, dtype, options):
    given = torch.full((2, 6, 6, 8), value, dtype=dtype)
    regionizer = Regionizer(norm="none", **options).to(dtype)
    with pytest.raises(ValueRangeError, match=r"of 2 tokens are not finite, the first of image 0.*norm='rms'"):
        regionizer(given)
    assert Regionizer(**options).to(dtype)(given).values.isfinite().all()


def test_weights_come_back_in_their_dtype(tmp_path):
    Regionizer(dim=32, num_heads=4).to(torch.bfloat16).save_pretrained(tmp_path)
    again = Regionizer.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}


@for_each(sizes=[torch.tensor([[50, 80]]), np.array([[50, 80]], np.uint8), [np.array([50, 80])]])
def test_sizes_may_be_lists_arrays_and_tensors_of_any_integers(sizes):
    regionizer = Regionizer(source="patch", geometry=ImageGeometry.letterbox(96))
    assert regionizer(features[:1], sizes=sizes).counts.tolist() == [28]
    assert regionizer.num_patches([(6, 7)], sizes) == [28]


def test_channels_first_and_hidden_states_are_told_from_patches():
    wide = torch.randn(1, 1024, 24, 24)
    with pytest.warns(AmbiguousShapeWarning, match=r"pass features.permute\(0, 2, 3, 1\); else .*with dim=24"):
        assert len(Regionizer(pool="mean", num_regions=9)(wide)) == 9
    assert Regionizer(pool="mean", dim=24, threshold=-1)(wide).counts.tolist() == [1]
    states = [torch.randn(2, 257, 32) for _ in range(3)]
    for features in (states, tuple(states)):
        message = r"If these are the hidden states of a model.*features\[-2\]\[:, 1:\].reshape\(2, 16, 16, 32\)"
        with pytest.warns(AmbiguousShapeWarning, match=message):
            assert len(Regionizer(pool="mean", num_regions=2)(features).counts) == 3
    assert len(Regionizer(source="patch")(states[:1]).counts) == 1


def test_saved_regions_are_read_with_weights_only(tmp_path):
    tokens = Regionizer(pool="mean")(features)
    torch.save(tokens, tmp_path / "t.pt")
    again = torch.load(tmp_path / "t.pt", weights_only=True)
    assert torch.equal(again.values, tokens.values)
    assert torch.equal(again.regions.labels(), tokens.regions.labels())
    masks = [torch.zeros(2, 6, 7, dtype=torch.bool), *(torch.ones(1, 6, 7, dtype=torch.bool) for _ in range(2))]
    torch.save(Regions.from_masks(masks), tmp_path / "r.pt")
    assert torch.load(tmp_path / "r.pt", weights_only=True).dropped == Regions.from_masks(masks).dropped


def test_a_config_of_any_depth_or_size_is_refused_by_name(tmp_path):
    Regionizer(dim=32, num_heads=4).save_pretrained(tmp_path)
    file = tmp_path / "regionizer.json"
    whole = json.loads(file.read_text())
    for text in ("[" * 200_000, '{"a":' * 100_000, "\ud800", "\xff"):
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(CheckpointError, match="regionizer.json is not valid JSON"):
            Regionizer.from_pretrained(tmp_path)
    for name, value in (
        ("num_heads", 10**20),
        ("dim", 10**20),
        ("num_heads", 10**7),
        ("dim", 400_000),
        ("geometry", {"mode": 1}),
        ("geometry", "exact"),
        ("eps", None),
    ):
        file.write_text(json.dumps(whole | {name: value}))
        with pytest.raises(CheckpointError):
            Regionizer.from_pretrained(tmp_path)


def test_a_geometry_of_another_type_is_rejected():
    for geometry in ("letterbox", 336, (336, 336)):
        with pytest.raises(DTypeError, match="geometry must be an ImageGeometry, as in geometry=encoder.geometry; got"):
            Regionizer(pool="mean", geometry=geometry)


def test_grids_of_small_integers_do_not_wrap():
    regionizer = Regionizer(pool="mean")
    for grids in ([(np.uint8(24), np.uint8(24))], torch.tensor([[24, 24]]), np.array([[24, 24]], np.int8)):
        assert regionizer.num_patches(grids) == [576]
    with pytest.warns(AmbiguousShapeWarning, match=r"read as images of 1 x 729 patches.*reshape\(1, 27, 27, 32\)"):
        assert len(regionizer([torch.randn(1, 729, 32)] * 5).counts) == 5


def test_a_full_disk_is_told_and_leaves_no_part(tmp_path):
    code = (
        "import resource, signal\nfrom pathlib import Path\n"
        "from regiontok import Regionizer\nfrom regiontok.errors import OutputError\n"
        "regionizer = Regionizer(dim=64)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    regionizer.save_pretrained('x')\nexcept OutputError as error:\n    print(error, list(Path('x').iterdir()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "x/regionizer.safetensors cannot be written (File too large). []\n", done.stderr


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_region": 4}, UnknownOptionError, "no option 'num_region'. Did you mean 'num_regions'"),
        ({"threshold": 10**400}, ValueRangeError, r"threshold must be in \[-1, 1\]; got 1000"),
        ({"source": np.array(["clustering", "patch"])}, ValueRangeError, "source must be one of 'clustering'"),
    ],
)
def test_options_that_are_wrong_in_odd_ways_are_named(options, error, message):
    with pytest.raises(error, match=message):
        Regionizer(pool="mean", **options)
