import pytest
import torch

from regiontok import rms_normalize
from regiontok.errors import DTypeError
from tests.conftest import TOLERANCES, assert_close, for_each, smooth_features


@for_each(dtype=TOLERANCES)
def test_it_divides_by_the_root_mean_square(dtype):
    features = (5 * smooth_features(3, 4, 33)).to(dtype)
    expected = features.double() / features.double().pow(2).mean(-1, keepdim=True).add(1e-6).sqrt()
    normalized = rms_normalize(features)
    assert normalized.dtype == dtype
    assert_close(normalized, expected)


def test_zero_stays_zero_and_outliers_lose_their_norm():
    features = torch.tensor([[[[0.0, 0.0], [3e4, 4e4]]]]).half()
    normalized = rms_normalize(features)
    assert normalized[0, 0, 0].tolist() == [0.0, 0.0]
    assert_close(normalized[0, 0, 1].norm(), torch.tensor(2.0).sqrt())


def test_lists_stay_lists():
    features = [smooth_features(3, 4, 8)[0], smooth_features(2, 2, 8)[0]]
    for one, other in zip(rms_normalize(features), features, strict=True):
        assert torch.equal(one, rms_normalize(other))


@pytest.mark.parametrize("features", [torch.ones(2, 2, dtype=torch.int64), [[1.0]]])
def test_what_is_no_floating_point_tensor_is_refused(features):
    with pytest.raises(DTypeError, match="features must be floating point"):
        rms_normalize(features)


def test_it_passes_gradcheck():
    features = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rms_normalize, features)
