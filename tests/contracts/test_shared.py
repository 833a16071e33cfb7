"""One list of promises that everything public keeps; ``subjects.py`` has what they are checked on."""

import copy
import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import regiontok
from regiontok import masks
from tests.conftest import TOLERANCES, assert_close
from tests.contracts.subjects import EVALUABLE, SUBJECTS, batch, same, values

ROOT = Path(__file__).parents[2]
NAMED = {subject.name: subject for subject in SUBJECTS}
DIFFERENTIABLE = [subject for subject in SUBJECTS if subject.differentiable]

of_all = pytest.mark.parametrize("subject", SUBJECTS, ids=str)
of_differentiable = pytest.mark.parametrize("subject", DIFFERENTIABLE, ids=str)
of_values = pytest.mark.parametrize("name", values())


def run(subject, given):
    return subject.call(subject.make(), given)


# Values


@of_values
def test_values_are_copied_and_sent(name):
    value = values()[name]
    same(copy.deepcopy(value), value)
    same(copy.copy(value), value)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        same(pickle.loads(pickle.dumps(value, protocol)), value)


@pytest.mark.parametrize("name", EVALUABLE)
def test_a_repr_of_options_is_code_that_makes_them(name):
    value = values()[name]
    known = {key: getattr(regiontok, key) for key in regiontok.__all__} | {
        key: getattr(masks, key) for key in masks.__all__
    }
    same(eval(repr(value), known), value)


@pytest.mark.parametrize("name", ["Regions", "RegionTokens", "MergeTree", "Dropped"])
def test_what_torch_saves_of_data_is_read_with_weights_only(name, tmp_path):
    value = values()[name]
    torch.save(value, tmp_path / "value.pt")
    same(torch.load(tmp_path / "value.pt", weights_only=True), value)


@pytest.mark.parametrize("name", ["Regionizer", "CrossAttnPool", "MeanPool", "Encoder", "PixelDescriptor"])
def test_a_state_goes_into_a_new_one(name, tmp_path):
    value = values()[name]
    torch.save(value.state_dict(), tmp_path / "state.pt")
    other = copy.deepcopy(value)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    same(other, value)


def test_objects_are_made_without_work():
    code = (
        "from tests.contracts.subjects import SUBJECTS\n"
        "import torch, regiontok._kernels as k, importlib, pkgutil\n"
        "state = torch.get_rng_state()\n"
        "made = [one.make() for one in SUBJECTS if 'Pool' not in one.name and 'Regionizer' not in one.name]\n"
        "kernels = [getattr(importlib.import_module(f'regiontok._kernels.{m.name}'), n) for m in pkgutil.iter_modules(k.__path__)\n"
        "           for n in dir(importlib.import_module(f'regiontok._kernels.{m.name}'))]\n"
        "assert sum(hasattr(one, 'signatures') for one in kernels) > 20\n"
        "assert not any(one.signatures for one in kernels if hasattr(one, 'signatures')), 'compiled'\n"
        "assert torch.equal(torch.get_rng_state(), state)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


# Calls


@of_all
def test_inputs_stay_as_they_are_and_the_answer_is_the_same_twice(subject):
    given, untouched = batch(), copy.deepcopy(batch())
    made = subject.make()
    first = subject.call(made, given)
    same(given, untouched)
    same(subject.call(made, given), first)
    same(run(subject, batch()), first)


@of_all
@pytest.mark.parametrize("index", [[0], [2, 0], [1, 1, 2, 0]], ids=str)
def test_an_image_has_the_same_answer_in_any_batch(subject, index):
    whole = run(subject, batch())
    same(run(subject, batch()[index]), [whole[one] for one in index], close=assert_close)


def read_only(values):
    array = values.numpy().copy()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own word on such arrays
        return torch.from_numpy(array)


def strided(values):
    wide = torch.full((*values.shape[:3], 2 * values.shape[3]), torch.nan)
    wide[..., ::2] = values
    return wide[..., ::2]


LAYOUTS = {
    "read-only": read_only,
    "strided": strided,
    "channels first in memory": lambda values: values.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "turned over": lambda values: values.flip(1).contiguous().flip(1),
}


@of_all
@pytest.mark.parametrize("layout", LAYOUTS)
def test_how_features_lie_in_memory_changes_nothing(subject, layout):
    given = batch()
    laid = replace(given, features=LAYOUTS[layout](given.features))
    reordered = layout == "channels first in memory"  # torch then adds up channels in another order
    same(run(subject, laid), run(subject, given), close=assert_close if reordered else None)


@of_all
def test_expanded_features_are_like_copies(subject):
    given = batch()[[0, 0, 0]]
    expanded = replace(
        given, features=given.features[:1].expand(3, -1, -1, -1), valid=given.valid[:1].expand(3, -1, -1)
    )
    assert expanded.features.stride(0) == 0
    same(run(subject, expanded), run(subject, given))


@of_all
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_features_of_other_dtypes_are_taken(subject, dtype):
    given = batch()
    made = subject.make()
    made = made.to(dtype) if isinstance(made, torch.nn.Module) else made
    converted = replace(given, features=given.features.to(dtype))
    found = subject.call(made, converted)
    expected = run(subject, given)
    assert len(found) == len(expected)
    if subject.differentiable:
        tokens = [one[0] if isinstance(one, tuple) else one for one in found]
        assert all(one.dtype == dtype and one.isfinite().all() for one in tokens)
    if dtype == torch.float64 or subject.name in ("MeanPool", "CrossAttnPool", "rms_normalize"):
        loose = TOLERANCES[torch.float32 if dtype == torch.float64 else dtype]
        same(found, expected, close=lambda one, other: torch.testing.assert_close(one.float(), other, **loose))


@of_all
def test_under_autocast_it_gives_about_the_same(subject):
    given, made = batch(), subject.make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = subject.call(made, given)
    loose = {"rtol": 0.1, "atol": 0.1}
    same(found, run(subject, given), close=lambda one, other: torch.testing.assert_close(one.float(), other, **loose))


@of_all
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_without_gradients_it_gives_the_same(subject, mode):
    with mode():
        found = run(subject, batch())
    same(found, run(subject, batch()))


@of_differentiable
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(subject, reentrant):
    given, made, found = batch(), subject.make(), []

    def call(features):
        parts = subject.call(made, replace(given, features=features))
        return torch.cat([(one[0] if isinstance(one, tuple) else one).reshape(-1, features.shape[-1]) for one in parts])

    for whole in (call, lambda features: checkpoint(call, features, use_reentrant=reentrant)):
        features = given.features.clone().requires_grad_()
        tokens = whole(features)
        (tokens * torch.arange(len(tokens))[:, None]).square().sum().backward()
        found.append(features.grad)
    assert found[0].abs().sum() > 0
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "subject",
    [
        one
        for one in DIFFERENTIABLE
        if one.name not in ("Regionizer-budget", "Regionizer-variance", "Regionizer-segmentation")
    ],
    ids=str,
)  # those left out run the same graphs
def test_compiled_it_gives_the_same_for_changing_shapes(subject):
    torch.compiler.reset()
    made = subject.make()
    call = torch.compile(lambda given: subject.call(made, given), backend="eager", dynamic=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own words on graphs that break
        for index in ([0, 1, 2], [2], [1, 0]):
            given = batch()[index]
            same(call(given), subject.call(made, given), close=assert_close)
    torch.compiler.reset()


@of_all
def test_memory_that_was_not_set_is_never_read(subject, monkeypatch):
    expected = run(subject, batch())
    empty = np.empty

    def full(shape, dtype=float, *args, **kwargs):
        made = empty(shape, dtype, *args, **kwargs)
        made.view(np.uint8)[...] = 0xFF  # NaN, -1, or true
        return made

    monkeypatch.setattr(np, "empty", full)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()  # torch's own way to fill what is not set
        same(run(subject, batch()), expected)
    finally:
        torch.use_deterministic_algorithms(False)


def test_threads_share_objects():
    made = {subject.name: subject.make() for subject in SUBJECTS}
    expected = {subject.name: subject.call(made[subject.name], batch()) for subject in SUBJECTS}
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            (subject, pool.submit(subject.call, made[subject.name], batch())) for _ in range(4) for subject in SUBJECTS
        ]
        for subject, job in jobs:
            same(job.result(), expected[subject.name])


def in_a_process(name):
    torch.set_num_threads(1)
    return pickle.dumps(run(NAMED[name], batch()))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_processes_give_the_same(method):
    expected = {subject.name: run(subject, batch()) for subject in SUBJECTS}  # the parent has used all kernels
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        for name, found in zip(expected, pool.map(in_a_process, expected), strict=True):
            same(pickle.loads(found), expected[name], close=assert_close)


FULL_DISK = f"""
import resource, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.contracts.subjects import SUBJECTS, batch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
found = [subject.call(subject.make(), batch()) for subject in SUBJECTS]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
import pickle
sys.stdout.buffer.write(pickle.dumps(found))
"""


@pytest.mark.parametrize("cache", ["full disk", "damaged"])
def test_a_cache_that_fails_costs_time_alone(cache, tmp_path):
    """Kernels are compiled anew where their cache cannot be written, or is no longer what was written."""
    if cache == "damaged":
        code = "import torch; from regiontok import UnionFindClusterer as U; U()(torch.rand(1, 2, 2, 3))"
        subprocess.run([sys.executable, "-c", code], env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}, check=True)
        files = [path for path in tmp_path.rglob("*") if path.suffix in (".nbi", ".nbc")]
        assert files
        for number, path in enumerate(files):
            path.write_bytes(np.random.default_rng(number).bytes(40))
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK],
        capture_output=True, env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    for found, subject in zip(pickle.loads(done.stdout), SUBJECTS, strict=True):
        same(found, run(subject, batch()), close=assert_close)


@pytest.mark.parametrize("environment", [{"NUMBA_DISABLE_JIT": "1"}, {"NUMBA_BOUNDSCHECK": "1"}], ids=str)
def test_uncompiled_and_with_bounds_checked_it_gives_the_same(environment, tmp_path):
    code = FULL_DISK.replace(
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0,", "resource.setrlimit(resource.RLIMIT_FSIZE, (-1,"
    )
    environment = os.environ | environment | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode()
    for found, subject in zip(pickle.loads(done.stdout), SUBJECTS, strict=True):
        same(found, run(subject, batch()), close=assert_close)


@pytest.mark.parametrize("subject", [one for one in SUBJECTS if "Regionizer" in one.name], ids=str)
def test_seeds_are_torchs(subject):
    """Weights and random orders come from torch's generator alone: not from NumPy's, nor from Python's."""
    given, found = batch(), []
    for other in range(2):
        np.random.seed(other)
        torch.manual_seed(3)
        options = {**subject.make().config.to_dict(), "order": "random"}
        regionizer = regiontok.Regionizer.from_config(options)
        found.append([regionizer.state_dict(), subject.call(regionizer, given), subject.call(regionizer, given)])
    same(*found)
