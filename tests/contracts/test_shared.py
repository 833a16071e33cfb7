"""Promises that everything public keeps; `subjects.py` lists the objects and functions that they are checked on.

A property is one case. Every subject is a subtest of it, so a failure names the subject and the other subjects still run.
"""

import copy
import functools
import multiprocessing
import os
import pickle
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
from tests.conftest import TOLERANCES, assert_close, for_each
from tests.contracts.subjects import EVALUABLE, KERNELS, SUBJECTS, batch, same, values

ROOT = Path(__file__).parents[2]
NAMED = {subject.name: subject for subject in SUBJECTS}
DIFFERENTIABLE = [subject for subject in SUBJECTS if subject.differentiable]


def run(subject, images):
    return subject.call(subject.make(), images)


@functools.cache
def expected(subject):
    """The result of a subject on the whole batch."""
    return run(subject, batch())


# Values


@for_each(name=values())
def test_values_are_copied_and_pickled(name):
    value = values()[name]
    same(copy.deepcopy(value), value)
    same(copy.copy(value), value)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        same(pickle.loads(pickle.dumps(value, protocol)), value)


@for_each(name=EVALUABLE)
def test_a_repr_of_options_is_code_that_makes_them(name):
    value = values()[name]
    names = {key: getattr(module, key) for module in (regiontok, masks) for key in module.__all__}
    same(eval(repr(value), names), value)


@for_each(name=("Regions", "RegionTokens", "MergeTree", "Dropped"))
def test_data_saved_by_torch_loads_with_weights_only(name, tmp_path):
    value = values()[name]
    torch.save(value, tmp_path / "value.pt")
    same(torch.load(tmp_path / "value.pt", weights_only=True), value)


@for_each(name=("Regionizer", "CrossAttnPool", "MeanPool", "Encoder", "PixelDescriptor"))
def test_a_state_loads_into_a_new_module(name, tmp_path):
    value = values()[name]
    torch.save(value.state_dict(), tmp_path / "state.pt")
    other = copy.deepcopy(value)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    same(other, value)


# Calls


@for_each(subject=SUBJECTS)
def test_inputs_stay_unchanged_and_two_calls_give_equal_results(subject):
    images, untouched = batch(), copy.deepcopy(batch())
    instance = subject.make()
    first = subject.call(instance, images)
    same(images, untouched)
    same(subject.call(instance, images), first)
    same(run(subject, batch()), first)


@for_each(subject=SUBJECTS, index=([0], [2, 0], [1, 1, 2, 0]))
def test_the_result_of_an_image_does_not_depend_on_its_batch(subject, index):
    same(run(subject, batch()[index]), [expected(subject)[image] for image in index], close=assert_close)


def read_only(features):
    array = features.numpy().copy()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of such arrays
        return torch.from_numpy(array)


def strided(features):
    wide = torch.full((*features.shape[:3], 2 * features.shape[3]), torch.nan)
    wide[..., ::2] = features
    return wide[..., ::2]


LAYOUTS = {
    "read-only": read_only,
    "strided": strided,
    "channels first in memory": lambda features: features.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "flipped": lambda features: features.flip(1).contiguous().flip(1),
}


@for_each(subject=SUBJECTS, layout=LAYOUTS)
def test_the_memory_layout_of_features_changes_nothing(subject, layout):
    images = batch()
    reordered = layout == "channels first in memory"  # torch then sums channels in another order
    images = replace(images, features=LAYOUTS[layout](images.features))
    same(run(subject, images), expected(subject), close=assert_close if reordered else None)


@for_each(subject=SUBJECTS)
def test_expanded_features_are_like_copies(subject):
    images = batch()[[0, 0, 0]]
    expanded = replace(
        images, features=images.features[:1].expand(3, -1, -1, -1), valid=images.valid[:1].expand(3, -1, -1)
    )
    assert expanded.features.stride(0) == 0
    same(run(subject, expanded), run(subject, images))


@for_each(subject=SUBJECTS, dtype=(torch.float16, torch.bfloat16, torch.float64))
def test_features_of_other_dtypes_are_accepted(subject, dtype):
    images, instance = batch(), subject.make()
    instance = instance.to(dtype) if isinstance(instance, torch.nn.Module) else instance
    results = subject.call(instance, replace(images, features=images.features.to(dtype)))
    assert len(results) == len(expected(subject))
    if subject.differentiable:
        tokens = [result[0] if isinstance(result, tuple) else result for result in results]
        assert all(values.dtype == dtype and values.isfinite().all() for values in tokens)
    if dtype == torch.float64 or subject.name in ("MeanPool", "CrossAttnPool", "rms_normalize"):
        tolerance = TOLERANCES[torch.float32 if dtype == torch.float64 else dtype]
        same(results, expected(subject), close=close_within(**tolerance))


def close_within(**tolerance):
    return lambda actual, wanted: torch.testing.assert_close(actual.float(), wanted, **tolerance)


@for_each(subject=SUBJECTS)
def test_results_under_autocast_are_close(subject):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = subject.call(subject.make(), batch())
    same(results, expected(subject), close=close_within(rtol=0.1, atol=0.1))


@for_each(subject=SUBJECTS, mode=(torch.inference_mode, torch.no_grad))
def test_results_without_gradients_are_the_same(subject, mode):
    with mode():
        results = run(subject, batch())
    same(results, expected(subject))


@for_each(subject=DIFFERENTIABLE)
def test_activation_checkpointing_gives_the_same_gradients(subject):
    images, instance, gradients = batch(), subject.make(), []

    def call(features):
        parts = subject.call(instance, replace(images, features=features))
        parts = [part[0] if isinstance(part, tuple) else part for part in parts]
        return torch.cat([part.reshape(-1, features.shape[-1]) for part in parts])

    for function in (call, *(functools.partial(checkpoint, call, use_reentrant=flag) for flag in (False, True))):
        features = images.features.clone().requires_grad_()
        tokens = function(features)
        (tokens * torch.arange(len(tokens))[:, None]).square().sum().backward()
        gradients.append(features.grad)
    assert gradients[0].abs().sum() > 0
    assert torch.equal(gradients[1], gradients[0])
    assert torch.equal(gradients[2], gradients[0])


NOT_COMPILED = ("Regionizer-budget", "Regionizer-variance", "Regionizer-segmentation", "CrossAttnPool")
"""Three run the graphs of other subjects; tests/test_pooling.py compiles the pool."""


@for_each(subject=[subject for subject in DIFFERENTIABLE if subject.name not in NOT_COMPILED])
def test_compiled_results_are_the_same_for_changing_shapes(subject):
    torch.compiler.reset()
    instance = subject.make()
    call = torch.compile(lambda images: subject.call(instance, images), backend="eager", dynamic=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of graph breaks
        for index in ([0, 1, 2], [2], [1, 0]):
            images = batch()[index]
            same(call(images), subject.call(instance, images), close=assert_close)
    torch.compiler.reset()


@for_each(subject=SUBJECTS)
def test_uninitialised_memory_is_never_read(subject, monkeypatch):
    empty = np.empty

    def filled(shape, dtype=float, *args, **kwargs):
        array = empty(shape, dtype, *args, **kwargs)
        array.view(np.uint8)[...] = 0xFF  # NaN, -1, or true
        return array

    wanted = expected(subject)
    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", filled)
        torch.use_deterministic_algorithms(True)  # fills the memory of torch.empty
        try:
            assert torch.empty(3).isnan().all()
            same(run(subject, batch()), wanted)
        finally:
            torch.use_deterministic_algorithms(False)


@for_each(subject=[subject for subject in SUBJECTS if "Regionizer" in subject.name])
def test_random_numbers_come_from_torch_alone(subject):
    """Weights and random orders do not depend on the generators of NumPy and Python."""
    results = []
    for seed in range(2):
        np.random.seed(seed)
        torch.manual_seed(3)
        options = {**subject.make().config.to_dict(), "order": "random"}
        regionizer = regiontok.Regionizer.from_config(options)
        calls = [subject.call(regionizer, batch()) for _ in range(2)]
        results.append([regionizer.state_dict(), *calls])
    same(*results)


def test_threads_share_objects():
    instances = {subject: subject.make() for subject in SUBJECTS}
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            (subject, pool.submit(subject.call, instances[subject], batch())) for _ in range(4) for subject in SUBJECTS
        ]
        for subject, job in jobs:
            same(job.result(), expected(subject))


# Processes


def pickled_result(name):
    torch.set_num_threads(1)
    return pickle.dumps(run(NAMED[name], batch()))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_processes_give_the_same(subtests, method):
    wanted = {subject: expected(subject) for subject in SUBJECTS}  # the parent has used all kernels
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        for subject, result in zip(SUBJECTS, pool.map(pickled_result, NAMED), strict=True):
            with subtests.test(str(subject)):
                same(pickle.loads(result), wanted[subject], close=assert_close)


PROGRAM = """
import os, pickle, resource, signal, sys
import torch
from tests.contracts.subjects import KERNELS, SUBJECTS, batch, kernels
state = torch.get_rng_state()
instances = [subject.make() for subject in SUBJECTS if "Pool" not in subject.name and "Regionizer" not in subject.name]
assert torch.equal(torch.get_rng_state(), state), "random numbers were drawn"
compiled = [kernel for kernel in kernels() if hasattr(kernel, "signatures")]
assert not any(kernel.signatures for kernel in compiled), "kernels were compiled"
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
if sys.argv[1] == "full disk":
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
results = [subject.call(subject.make(), batch()) for subject in SUBJECTS]
results += [call() for call in KERNELS.values()]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
sys.stdout.buffer.write(pickle.dumps((len(compiled), results)))
"""


def results_of_a_process(disk, **environment):
    """Return how many kernels a new process compiles, and the results of all subjects and kernels there."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, disk]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return pickle.loads(done.stdout)


def check_results(subtests, results):
    wanted = [expected(subject) for subject in SUBJECTS] + [call() for call in KERNELS.values()]
    for name, result, other in zip([*map(str, SUBJECTS), *KERNELS], results, wanted, strict=True):
        with subtests.test(name):
            same(result, other, close=assert_close)


def test_kernels_check_their_bounds_and_survive_a_damaged_cache_on_a_full_disk(subtests, tmp_path):
    """Kernels are compiled again if their cache cannot be written or is damaged, and never index outside their arrays."""
    environment = {"NUMBA_CACHE_DIR": str(tmp_path)}
    code = "import torch; from regiontok import UnionFindClusterer as U; U()(torch.rand(1, 2, 2, 3))"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)} | environment, check=True)
    files = [path for path in tmp_path.rglob("*") if path.suffix in (".nbi", ".nbc")]
    assert files
    for number, path in enumerate(files):
        path.write_bytes(np.random.default_rng(number).bytes(40))
    num_compiled, results = results_of_a_process("full disk", NUMBA_BOUNDSCHECK="1", **environment)
    assert num_compiled > 20
    check_results(subtests, results)


def test_uncompiled_kernels_give_the_same(subtests, tmp_path):
    _, results = results_of_a_process("free disk", NUMBA_DISABLE_JIT="1")
    check_results(subtests, results)
