"""The inputs that fuzzing begins with, and all that it ever found, on every run of the tests."""

import subprocess
import sys

import pytest

from tests.conftest import for_each
from tests.fuzz.__main__ import CORPUS, NAMES
from tests.fuzz.targets import TARGETS, attempt

FOUND = {
    ("masks_of_json", b'{"masks":0.5, "scores": []}'): "TypeError of len()",
    ("masks_of_json", b"[[[[],[],[],[],[],[]]]]"): "IndexError of corners that are lists",
    (
        "annotations",
        b'{"images":[{"id":1,"file_name":"a.jp//g","height":9,"width":9}],"annotations":[]}',
    ): "KeyError of a name with two slashes",
    ("masks_of_json", b'[{"segmentation":[[1,1,5,1,5,5]],"score":1e39}]'): "a warning of an overflow",
}
"""Inputs that once raised something else than an error of regiontok, and what."""


@for_each(target=NAMES)
def test_inputs_to_begin_with_are_answered(target):
    seeds = sorted((CORPUS / target).iterdir())
    taken = [attempt(target, seed.read_bytes()) for seed in seeds]
    assert any(taken), "none of them comes far"


@pytest.mark.parametrize(("target", "data"), FOUND, ids=str)
def test_what_was_found_is_mended(target, data):
    attempt(target, data)


def test_targets_are_named_twice_alike():
    assert tuple(TARGETS) == NAMES
    assert {path.name for path in CORPUS.iterdir()} == set(NAMES)


def test_the_fuzzer_finds_what_it_should():
    """A target that fails for some bytes is told apart from one that does not, in a process as CI runs them."""
    code = (
        "import sys\n"
        "from tests.fuzz import targets, __main__ as runner\n"
        "def broken(data):\n"
        "    if data[:1] == b'{': raise KeyError('found')\n"
        "targets.TARGETS['options'] = broken\n"
        "runner.fuzz('options', ['-runs=200000', '-max_total_time=20', '-artifact_prefix=/dev/null'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode
    assert "KeyError" in done.stdout + done.stderr
