"""How commands start and end: without torch where it is not needed, beside broken packages and a broken stderr."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regiontok.cli import env, main
from regiontok.cli.console import safe_streams, warn
from regiontok.store import MaskStore, TokenStore
from tests.pipeline.test_listing import draw

COMMAND = [sys.executable, "-m", "regiontok"]
LOADED = """
import contextlib, json, sys
from regiontok.cli import env, main
for arguments in json.loads(sys.argv[1]):
    with contextlib.suppress(SystemExit):
        main(arguments)
    loaded = sorted({"torch", "numpy", "PIL", "numba", "scipy"} & set(sys.modules))
    print("loaded", loaded, "by", arguments, file=sys.__stdout__)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        draw(tmp_path / "images" / f"{number}.png", number, size=(40, 30))
    return tmp_path


WITHOUT_TORCH = [
    ["--help"],
    ["--version"],
    ["tokenize", "--help"],
    ["tokenize", "a.jpg", "--colour"],
    ["tokenize", "a.jpg", "--source", "nowhere"],
    ["tokenize", "a.jpg", "--source", "patch", "--num-regions", "3"],
    ["masks", "images", "--out", "m", "--shard-size", "0"],
    ["store", "m", "--out", "x"],
    ["compare", "images", "--num-regions", "0"],
    ["compare", "images", "--keep", "0.5", "2"],
    ["view", "a.png", "--keep", "0"],
    ["tokenize", "a.jpg", "--num-regions", "0"],
    ["tokenize", "a.jpg", "--threshold", "9"],
    ["view", "a.jpg", "--encoder", "nonsense"],
    ["count", "a.jpg", "--img-size", "0"],
    ["masks", "images", "--out", "m", "--bits", "17"],
]


def test_help_and_rejected_options_import_no_torch():
    command = [sys.executable, "-c", LOADED, json.dumps(WITHOUT_TORCH)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = [line for line in done.stdout.splitlines() if line.startswith("loaded")]
    assert loaded == [f"loaded [] by {arguments}" for arguments in WITHOUT_TORCH]


@pytest.mark.usefixtures("default_signals")
def test_ctrl_c_during_imports_prints_one_line(here):
    generator = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen([*COMMAND, "tokenize", "images"], stderr=subprocess.PIPE, text=True)
        time.sleep(generator.uniform(0.4, 1))  # after the interpreter itself has started, and before the first image
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
        assert process.returncode == 130
        assert len(told.splitlines()) == 1
        assert "interrupted" in told


@pytest.mark.parametrize(("where", "stderr"), [("--out", "2>/dev/full"), ("--store", "2>&-")])
def test_a_run_completes_if_stderr_cannot_be_written(here, stderr, where):
    (here / "images" / "bad.png").write_bytes(b"no image")
    command = " ".join([sys.executable, "-m regiontok tokenize images", where, "out", stderr])
    assert subprocess.run(command, shell=True, stdout=subprocess.DEVNULL, check=False).returncode == 1
    made = len(list((here / "out").glob("*.safetensors"))) if where == "--out" else len(TokenStore("out"))
    assert made == 4


def test_the_descriptor_of_a_closed_stderr_is_not_reused(here):
    program = "import os, sys\nfrom regiontok.cli.console import safe_streams\nwith safe_streams(): print(os.open('a', os.O_CREAT | os.O_WRONLY))"
    command = f'exec 2>&-; exec {sys.executable} -c "{program}"'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert int(done.stdout) > 2


def test_messages_are_dropped_without_stderr(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with safe_streams():
        warn("nobody reads this")
        assert not sys.stderr.isatty()
    assert sys.stderr is None


@pytest.mark.parametrize("stderr", ["closed", "full", "slow"])
@pytest.mark.parametrize("command", ["masks", "tokenize"])
def test_a_store_is_complete_after_kills_at_random_moments(here, command, stderr):
    """A store that was killed is finished and compared with one that was not; fifty kills by the thorough profile."""
    for number in range(4, 40):
        draw(here / "images" / f"{number}.png", number, size=(40, 30))
    arguments = [command, "images", "--shard-size", "4", "--batch-size", "2"]
    arguments += ["--masks", "felzenszwalb", "--out"] if command == "masks" else ["--store"]
    assert main([*arguments, "whole"]) == 0
    generator = random.Random(0)
    for _ in range(50 if os.environ.get("REGIONTOK_TEST_PROFILE") == "thorough" else 5):
        child = os.fork()
        if not child:  # the packages are imported already
            torch.set_num_threads(1)  # the threads of OpenMP do not exist in a fork, and waiting for them never ends
            if stderr == "closed":
                os.close(2)
                sys.stderr = None
            elif stderr == "full":
                sys.stderr = Path("/dev/full").open("w")  # noqa: SIM115  until the process is killed
            else:
                sys.stderr = Slow()
            os._exit(main([*arguments, "killed"]))
        time.sleep(generator.uniform(0, 0.4))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert main([*arguments, "killed"]) == 0
    kind = MaskStore if command == "masks" else TokenStore
    whole, killed = kind("whole"), kind("killed")
    assert (killed.keys(), killed.repeated, killed.damaged) == (whole.keys(), 0, {})
    for key in whole:
        if command == "masks":
            assert killed[key].to_coco() == whole[key].to_coco()
        else:
            assert np.array_equal(killed[key].values, whole[key].values)


class Slow:
    """A terminal that takes its time."""

    encoding = "utf-8"

    def write(self, text):
        time.sleep(0.01)
        return len(text)

    def flush(self):
        time.sleep(0.01)

    def isatty(self):
        return True


BROKEN = {
    "torchvision": "raise RuntimeError('operator torchvision::nms does not exist')",
    "pyarrow": "raise ImportError('libarrow.so.2600: cannot open shared object file')",
    "numba": "raise ImportError('Numba needs NumPy 2.3 or less')",
    "matplotlib": "raise AttributeError('module numpy has no attribute bool8')",
}


COMMANDS = (
    ("torchvision", ["tokenize", "images", "--encoder", "hf:folder"]),
    ("torchvision", ["tokenize", "images", "--encoder", "dinov2"]),
    ("torchvision", ["tokenize", "images", "--source", "segmentation", "--masks", "sam2"]),
    ("torchvision", ["chat", "images/0.png", "--model", "folder", "--ask", "what?"]),
    ("pyarrow", ["tokenize", "images", "--store", "s"]),
    ("pyarrow", ["store", "tokens"]),
    ("numba", ["tokenize", "images"]),
    ("matplotlib", ["count", "images"]),
)
"""Packages that cannot be imported, and commands that need them."""
FORKS = """
import json, os, sys
import torch, PIL.Image, scipy  # once for all commands
from regiontok.__main__ import run

for number, (package, arguments) in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if not child:
        os.dup2(os.open(f"{number}.err", os.O_CREAT | os.O_WRONLY), 2)
        sys.path.insert(0, os.path.join("broken", package))
        sys.argv = ["regiontok", *arguments]
        code = 99
        try:
            run()
        except SystemExit as error:
            code = error.code
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def break_package(package):
    folder = Path("broken") / package / package
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").write_text(BROKEN[package] + "\n")
    return str(folder.parent.resolve())


def test_a_broken_package_is_reported_in_one_line_with_cause_and_remedy(subtests, here):
    (here / "tokens").mkdir()
    (here / "tokens" / "_store.json").write_text('{"format": 1, "kind": "tokens", "provenance": {}, "images": []}')
    for package in BROKEN:
        break_package(package)
    command = [sys.executable, "-c", FORKS, json.dumps(COMMANDS)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    codes = [int(line) for line in done.stdout.splitlines() if line.isdigit()]
    for number, ((package, arguments), code) in enumerate(zip(COMMANDS, codes, strict=True)):
        with subtests.test(package, arguments=arguments):
            told = (here / f"{number}.err").read_text()
            lines = [line for line in told.splitlines() if "image/s" not in line]
            assert code == 2, told
            assert len(lines) == 1, told
            assert f"{package} " in lines[0]
            assert "is installed but cannot be imported" in lines[0]
            assert BROKEN[package].partition("'")[2].partition("'")[0] in lines[0]
            assert "pip install --force-reinstall" in lines[0]


def test_env_reports_broken_and_missing_packages(here, monkeypatch, capsys):
    names = ("torch", "tqdm", "matplotlib", "lmms-eval")  # importing all takes twenty seconds
    chosen = {package: extras for package, extras in env._read_extras().items() if package in names}
    monkeypatch.setattr(env, "_read_extras", lambda: chosen)
    monkeypatch.setenv("PYTHONPATH", break_package("matplotlib"))
    assert main(["env"]) == 1
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert any(line.startswith("matplotlib") and "(broken)" in line for line in lines)
    assert "is installed but cannot be imported (AttributeError: module numpy has no attribute bool8). Run:" in printed
    assert any(line.startswith("lmms-eval") for line in lines)
    assert any(line.startswith("tqdm") for line in lines)
    assert any(line.startswith("numba cache") for line in lines)
    assert any(line.startswith("weights") for line in lines)


def test_files_that_are_not_regular_fail_without_affecting_others(here, capfd):
    os.mkfifo(here / "images" / "pipe.png")
    (here / "loop.png").symlink_to("loop.png")
    Image.new("RGB", (40, 30)).save("a.png")
    for where in ("--out", "--store"):
        assert main(["tokenize", "a.png", "loop.png", "images/pipe.png", where, f"o{where}"]) == 1
        told = capfd.readouterr().err
        assert "pipe.png: expected a regular file" in told
        assert "loop.png: cannot be read" in told
    assert len(list((here / "o--out").rglob("*.safetensors"))) == 1
    assert len(TokenStore("o--store")) == 1
