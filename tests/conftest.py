"""Fixtures, the table of tolerances, and helpers of many test files."""

import contextlib
import inspect
import itertools
import os
import signal
import sys
import traceback
import uuid
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from sklearn.datasets import load_sample_image

collect_ignore = ["adapters/vllm_engine.py", "adapters/vllm_regions.py"]  # another Python runs them

settings.register_profile(
    "default", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=1000, derandomize=False)
settings.load_profile(os.environ.get("REGIONTOK_TEST_PROFILE", "default"))

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test uses the network
os.environ.setdefault("RAY_AUTH_TOKEN", uuid.uuid4().hex)  # Ray would write one to the home folder


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """One worker more than cores: many tests wait for processes."""
    return (os.cpu_count() or 1) + 1


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "ignore:This DataLoader will create:UserWarning")  # on a single core


TOLERANCES = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
}


def assert_close(actual, expected):
    """Compare at the tolerance of ``actual``'s dtype."""
    torch.testing.assert_close(actual, expected.to(actual.dtype), **TOLERANCES[actual.dtype])


def for_each(names=(), rows=((),), **parameters):
    """Turn a test into one case with a subtest for every combination of ``parameters``, the last one varying fastest.

    ``names`` and ``rows`` are as for ``pytest.mark.parametrize``, and are combined with the parameters.

    Each has torch's seed and its own ``tmp_path`` and ``monkeypatch``; other fixtures are shared. A failure names its
    combination, and the others still run.
    """

    def decorate(check):
        def test(subtests, **fixtures):
            combinations = itertools.product(rows, *parameters.values())
            for number, values in enumerate((*row, *values) for row, *values in combinations):
                arguments = dict(zip((*names, *parameters), values, strict=True)) | fixtures
                with contextlib.ExitStack() as stack:
                    name = ", ".join(str(value)[:60] for value in values)
                    stack.enter_context(subtests.test(name.encode(errors="backslashreplace").decode()))
                    torch.manual_seed(0)
                    if "tmp_path" in fixtures:
                        arguments["tmp_path"] = fixtures["tmp_path"] / str(number)
                        arguments["tmp_path"].mkdir()
                    if "monkeypatch" in fixtures:
                        arguments["monkeypatch"] = stack.enter_context(fixtures["monkeypatch"].context())
                    check(**arguments)

        others = [name for name in inspect.signature(check).parameters if name not in (*names, *parameters)]
        keyword = inspect.Parameter.KEYWORD_ONLY
        test.__signature__ = inspect.Signature([inspect.Parameter(name, keyword) for name in (*others, "subtests")])
        test.__name__, test.__doc__, test.__module__ = check.__name__, check.__doc__, check.__module__
        test.pytestmark = getattr(check, "pytestmark", [])
        return test

    return decorate


def run_in_fork(function):
    """Run a function in a fork of this process, which saves it all imports; return its exit code, stdout and stderr."""
    pipes = [os.pipe(), os.pipe()]
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of forks with threads
        child = os.fork()
    if not child:
        code = 99
        try:
            for descriptor, (_, write) in enumerate(pipes, 1):
                os.dup2(write, descriptor)
            torch.set_num_threads(1)  # the threads of OpenMP do not exist in a fork, and waiting for them never ends
            sys.stdout, sys.stderr = (open(descriptor, "w", closefd=False) for descriptor in (1, 2))  # noqa: SIM115
            code = function()
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    texts = []
    for read, write in pipes:
        os.close(write)
        with open(read, encoding="utf-8") as stream:  # noqa: PTH123
            texts.append(stream.read())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), *texts


@pytest.fixture(autouse=True)
def _seeded():
    """Give each test the same random numbers, whichever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def default_signals():
    """Let SIGINT and SIGTERM end this process and those it starts, even if the parent of the tests ignores them."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def china():
    return Image.fromarray(load_sample_image("china.jpg"))


def smooth_features(rows, cols, dim, *, seed=0, batch=1, noise=0.35):
    """Return features ``(batch, rows, cols, dim)`` like an encoder's, which change slowly over the grid, with noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, dim, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(rows, cols), mode="bilinear")
    return (smooth + noise * torch.randn(batch, dim, rows, cols, generator=generator)).permute(0, 2, 3, 1).contiguous()


def random_labels(rows, cols, count, *, seed=0, batch=1):
    """Return label maps with regions of very different sizes in random order, and patches in none."""
    values = np.random.default_rng(seed).zipf(1.5, (batch, rows, cols)) % (count + 1) - 1
    values[:, 0, 0] = 0
    return torch.from_numpy(values)


def randomized(module, std=0.3):
    """Give every weight of a module a random value, since an untrained pool is the mean."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=std, generator=generator)
    return module


@pytest.fixture(scope="session")
def s3_server():
    """Start moto's S3 server on this machine and return its address."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """Return the address of an empty bucket, which every process of the test can use."""
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
