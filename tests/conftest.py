"""Fixtures and the one table of tolerances."""

import os
import signal
import uuid

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from sklearn.datasets import load_sample_image

collect_ignore = ["adapters/vllm_engine.py"]  # another Python runs it

settings.register_profile(
    "default", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=1000, derandomize=False)
settings.load_profile(os.environ.get("REGIONTOK_TEST_PROFILE", "default"))

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for the network, and none waits for it
os.environ.setdefault("RAY_AUTH_TOKEN", uuid.uuid4().hex)  # Ray would write one to the home folder


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "ignore:This DataLoader will create:UserWarning")  # on a single core


TOLERANCES = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
}


def assert_close(actual, expected):
    """Compare at the tolerance of ``actual``'s dtype, the only one there is."""
    torch.testing.assert_close(actual, expected.to(actual.dtype), **TOLERANCES[actual.dtype])


@pytest.fixture(autouse=True)
def _seeded():
    """The same weights and features in a test whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def default_signals():
    """SIGINT and SIGTERM end this process and those it starts, also where whatever started the tests ignores them."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def china():
    return Image.fromarray(load_sample_image("china.jpg"))


def smooth_features(rows, cols, dim, *, seed=0, batch=1, noise=0.35):
    """Features like an encoder's: they change slowly over the grid, with some noise. ``(batch, rows, cols, dim)``."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, dim, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(rows, cols), mode="bilinear")
    return (smooth + noise * torch.randn(batch, dim, rows, cols, generator=generator)).permute(0, 2, 3, 1).contiguous()


def random_labels(rows, cols, count, *, seed=0, batch=1):
    """Label maps with regions of very different sizes, in no order, with some patches in none."""
    values = np.random.default_rng(seed).zipf(1.5, (batch, rows, cols)) % (count + 1) - 1
    values[:, 0, 0] = 0
    return torch.from_numpy(values)


@pytest.fixture(scope="session")
def s3_server():
    """A real S3 server on this machine, as moto has it; its address."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """An empty bucket there, as an address that any process of this test can reach."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs = pytest.importorskip("s3fs")
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    s3fs.S3FileSystem().mkdir(bucket)
    yield f"s3://{bucket}"
    s3fs.S3FileSystem.clear_instance_cache()
