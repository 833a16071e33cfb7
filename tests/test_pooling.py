import copy
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regiontok import CrossAttnPool, MeanPool, Regionizer, Regions, UnionFindClusterer
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from tests.conftest import TOLERANCES, assert_close, for_each, random_labels, smooth_features
from tests.references import attend, mean_pool


def trained(dim, num_heads, *, seed=0, dtype=torch.float32):
    """A pool as training would leave it: the output projection and the biases are no longer zero."""
    torch.manual_seed(seed)
    pool = CrossAttnPool(dim, num_heads)
    for parameter in pool.parameters():
        torch.nn.init.normal_(parameter, std=dim**-0.5)
    return pool.to(dtype)


def overlapping(rows, cols, count, *, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(count, 1, 1, generator=generator) ** 2
    return Regions.from_masks([torch.rand(count, rows, cols, generator=generator) < share for _ in range(batch)])


def expect(reference, features, regions):
    flat_masks = [masks.flatten(1) for masks in regions.masks()]
    return torch.cat([reference(image.flatten(0, 1), mask) for image, mask in zip(features, flat_masks, strict=True)])


CASES = {
    "few regions": lambda: Regions.from_labels(random_labels(6, 7, 5, batch=2)),
    "every patch": lambda: Regions.from_labels(torch.arange(42).reshape(1, 6, 7).expand(2, 6, 7)),
    "one region": lambda: Regions.from_labels(torch.zeros(2, 6, 7, dtype=torch.int64)),
    "overlaps, more regions than patches": lambda: overlapping(6, 7, 60),
    "overlaps, few": lambda: overlapping(6, 7, 4),
}


@for_each(case=CASES, fold=[True, False], dtype=[torch.float64, torch.float32])
def test_attention_equals_its_definition_whichever_way_it_is_computed(case, fold, dtype, monkeypatch):
    regions = CASES[case]()
    features = smooth_features(6, 7, 32, batch=2).to(dtype)
    pool = trained(32, 4, dtype=dtype)
    monkeypatch.setattr(pool, "_folding_is_cheaper", lambda *_: fold)
    expected = expect(lambda image, masks: attend(pool, image, masks), features, regions)
    assert_close(pool(features, regions).values, expected)


def test_attention_equals_torchs_masked_attention_with_the_same_weights():
    dim, heads = 64, 16
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(dim, heads, batch_first=True)
    torch.nn.init.normal_(theirs.in_proj_bias)  # with a key bias too, which softmax takes away
    pool = CrossAttnPool(dim, heads)
    weights, biases = theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3)
    state = {f"{name}.weight": weight for name, weight in zip(("query", "key", "value"), weights, strict=True)}
    state |= {"query.bias": biases[0], "value.bias": biases[2]}
    state |= {f"out.{name}": value for name, value in theirs.out_proj.state_dict().items()}
    pool.load_state_dict(state)
    features = smooth_features(8, 8, dim, batch=3)
    regions = UnionFindClusterer(num_regions=9)(features)
    mean = MeanPool()(features, regions)
    masks = torch.stack([image.flatten(1) for image in regions.masks()])
    patches = features.flatten(1, 2)
    attended, _ = theirs(mean.values.reshape(3, 9, dim), patches, patches, attn_mask=~masks.repeat_interleave(heads, 0))
    assert_close(pool(features, regions).values, mean.values + attended.flatten(0, 1))


def test_gradients_are_the_same_whichever_way_they_are_computed(monkeypatch):
    features = smooth_features(6, 7, 32, batch=2).double()
    regions = overlapping(6, 7, 12)
    gradients = []
    for fold in (True, False):
        pool = trained(32, 4, dtype=torch.float64)
        monkeypatch.setattr(pool, "_folding_is_cheaper", lambda *_, fold=fold: fold)
        inputs = features.clone().requires_grad_()
        pool(inputs, regions).values.pow(2).sum().backward()
        gradients.append([inputs.grad, *(parameter.grad for parameter in pool.parameters())])
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("fold", [True, False])
def test_attention_passes_gradcheck(fold, monkeypatch):
    pool = trained(8, 2, dtype=torch.float64)
    monkeypatch.setattr(pool, "_folding_is_cheaper", lambda *_: fold)
    regions = Regions.from_labels(torch.tensor([[[0, 0, 1], [2, 0, 1]], [[0, 1, 1], [1, 1, -1]]]))
    names, parameters = zip(*pool.named_parameters(), strict=True)

    def run(features, *values):
        return torch.func.functional_call(pool, dict(zip(names, values, strict=True)), (features, regions)).values

    features = torch.randn(2, 2, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (features, *parameters))


def test_the_mean_passes_gradcheck():
    regions = overlapping(3, 3, 4)
    features = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: MeanPool()(values, regions).values, features)


@for_each(case=CASES, dtype=TOLERANCES)
def test_the_mean_equals_its_definition_in_every_dtype(case, dtype):
    regions = CASES[case]()
    features = smooth_features(6, 7, 33, batch=2).to(dtype)
    pooled = MeanPool()(features, regions).values
    assert pooled.dtype == dtype
    assert_close(pooled, expect(mean_pool, features, regions))


@given(st.integers(0, 1000))
def test_means_weighted_by_area_give_the_mean_of_the_image(seed):
    features = smooth_features(6, 5, 8, seed=seed)
    regions = UnionFindClusterer()(features)
    weights = regions.areas()[:, None] / 30
    assert_close((MeanPool()(features, regions).values * weights).sum(0), features.mean((0, 1, 2)))


@for_each(case=CASES)
def test_an_untrained_pool_is_the_mean(case):
    regions = CASES[case]()
    features = smooth_features(6, 7, 32, batch=2)
    assert torch.equal(CrossAttnPool(32, 4)(features, regions).values, MeanPool()(features, regions).values)


def test_an_untrained_pool_can_learn():
    pool = CrossAttnPool(32, 4)
    features = smooth_features(6, 7, 32, batch=2)
    pool(features, overlapping(6, 7, 4)).values.pow(2).sum().backward()
    assert pool.out.weight.grad.abs().sum() > 0


def test_a_batch_equals_its_images_one_by_one_also_where_grids_differ():
    features = [smooth_features(4, 9, 32)[0], smooth_features(7, 3, 32)[0]]
    pool = trained(32, 4)
    together = pool(features, UnionFindClusterer()(features)).split()
    for one, tokens in zip(features, together, strict=True):
        assert_close(tokens, pool(one[None], UnionFindClusterer()(one[None])).values)


def test_blocks_of_few_regions_give_the_same(monkeypatch):
    regions, features, pool = overlapping(6, 7, 30), smooth_features(6, 7, 32, batch=2), trained(32, 4)
    expected = pool(features, regions).values
    monkeypatch.setattr("regiontok.pooling._BLOCK_ELEMENTS", 32 * 4 * 3)
    assert_close(pool(features, regions).values, expected)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_pools_compile_with_changing_shapes():
    """`MeanPool` is compiled in tests/contracts, and the pool of a Regionizer with AOTAutograd in test_regionizer.py."""
    pool = trained(32, 4)
    compiled = torch.compile(copy.deepcopy(pool), backend="eager", dynamic=True)
    for seed, count in enumerate((3, 17)):  # few regions are pooled in another way than many
        features = smooth_features(6, 7, 32, batch=2, seed=seed)
        regions = overlapping(6, 7, count, seed=seed)
        assert_close(compiled(features, regions).values, pool(features, regions).values)


@pytest.mark.parametrize("fold", [True, False])
def test_attention_under_autocast_is_near_and_has_gradients(fold, monkeypatch):
    pool, features, regions = trained(32, 4), smooth_features(6, 7, 32, batch=2), overlapping(6, 7, 9)
    monkeypatch.setattr(pool, "_folding_is_cheaper", lambda *_: fold)
    with torch.autocast("cpu", torch.bfloat16):
        low = pool(features, regions).values
        low.square().mean().backward()
    assert_close(low.bfloat16(), pool(features, regions).values)
    assert all(parameter.grad.abs().sum() > 0 for parameter in pool.parameters())


def test_state_makes_a_round_trip():
    pool = trained(32, 4)
    again = CrossAttnPool(32, 4)
    again.load_state_dict(pool.state_dict())
    features, regions = smooth_features(6, 7, 32, batch=2), overlapping(6, 7, 9)
    assert torch.equal(again(features, regions).values, pool(features, regions).values)
    assert "dim=32, num_heads=4" in repr(again)


def test_regions_of_another_kind_or_device_are_refused():
    features, regions = smooth_features(2, 3, 16), Regions.from_labels(torch.zeros(1, 2, 3, dtype=torch.int64))
    with pytest.raises(DTypeError, match="regions must be Regions; got Tensor. Make them with Regions.from_labels"):
        MeanPool()(features, regions.labels())
    with pytest.raises(DTypeError, match="features are on cpu and regions on meta"):
        MeanPool()(features, regions.to("meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same():
    pool, features, regions = trained(32, 4), smooth_features(6, 7, 32, batch=2), overlapping(6, 7, 9)
    expected = pool(features, regions).values
    assert_close(pool.cuda()(features.cuda(), regions.to("cuda")).values.cpu(), expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((100, 16), ValueRangeError, "num_heads must divide dim; got num_heads=16, dim=100. Try num_heads=10"),
        ((0, 16), ValueRangeError, "dim must be at least 1; got 0"),
        ((64, 0), ValueRangeError, "num_heads must be at least 1; got 0"),
        ((64.0, 16), DTypeError, "dim must be a whole number; got 64.0"),
    ],
)
def test_bad_options_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        CrossAttnPool(*arguments)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(1, 2, 3, 16), "regions must have as many images as features, 1; got 2"),
        (torch.zeros(2, 3, 2, 16), r"grids of features, \(3, 2\) for image 0; got \(2, 3\)"),
        (torch.zeros(2, 2, 3, 8), "features must have dim 16 like this pool; got 8"),
    ],
)
def test_features_that_do_not_match_are_refused(features, message):
    regions = Regions.from_labels(torch.zeros(2, 2, 3, dtype=torch.int64))
    with pytest.raises(ShapeError, match=message):
        CrossAttnPool(16)(features, regions)


@pytest.mark.parametrize("regions", [2, 60])
def test_every_weight_is_used_through_its_modules_call(regions):
    """What shards weights gathers them there (DeepSpeed's ZeRO-3), in both ways to compute."""
    pool, called = CrossAttnPool(32, 4), set()
    for name, module in pool.named_children():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    labels = torch.arange(64).reshape(1, 8, 8) % regions
    assert pool._folding_is_cheaper(64, regions, 64) == (regions == 2)
    pool(torch.randn(1, 8, 8, 32), Regions.from_labels(labels))
    assert called == {"query", "key", "value", "out"}


def test_a_number_of_heads_beyond_the_dimension_is_told_at_once():
    with pytest.raises(ValueRangeError, match="Try num_heads=8"):
        CrossAttnPool(8, 10**20)


@pytest.mark.parametrize("overlapping", [False, True])
def test_the_mean_has_a_second_derivative(overlapping):
    masks = torch.rand(4, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    regions = (
        Regions.from_masks([masks]) if overlapping else Regions.from_labels(torch.arange(12).reshape(1, 3, 4) // 3)
    )
    features = torch.randn(1, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    mean = MeanPool()
    assert torch.autograd.gradcheck(lambda x: mean(x, regions).values, features)
    assert torch.autograd.gradgradcheck(lambda x: mean(x, regions).values.square(), features)


def test_tensors_without_values_are_named():
    regionizer, x = Regionizer(pool="mean"), torch.randn(1, 4, 4, 8)
    with warnings.catch_warnings(action="ignore"):  # torch warns of a prototype, once per process
        nested = torch.nested.nested_tensor([x[0], x[0]])
    for wrong, message in (
        (x.to("meta"), "must have values; got a tensor on the meta device"),
        (x.to_sparse(), "must be a dense tensor; got layout torch.sparse_coo"),
        (nested, "got a nested tensor"),
        (x.to(torch.float8_e4m3fn), "must be floating point; got torch.float8_e4m3fn"),
    ):
        with pytest.raises(DTypeError, match=message):
            regionizer(wrong)
    for transform in (
        torch.func.grad(lambda z: regionizer(z).values.sum()),
        torch.vmap(lambda z: regionizer(z[None]).values),
    ):
        with pytest.raises(DTypeError, match=r"cannot be inside torch.func"):
            transform(x)
