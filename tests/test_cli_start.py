"""How commands start and end: without torch where it is not needed, beside broken packages and a broken stderr."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regiontok.cli import main
from regiontok.cli.console import safe_streams, warn
from regiontok.store import MaskStore, TokenStore
from tests.pipeline.test_listing import draw

COMMAND = [sys.executable, "-m", "regiontok"]
LOADED = """
import sys
from regiontok.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(sorted({"torch", "numpy", "PIL", "numba", "scipy"} & set(sys.modules)), file=sys.__stdout__)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        draw(tmp_path / "images" / f"{number}.png", number, size=(40, 30))
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["tokenize", "--help"],
        ["tokenize", "a.jpg", "--colour"],
        ["tokenize", "a.jpg", "--source", "nowhere"],
        ["tokenize", "a.jpg", "--source", "patch", "--tokens", "3"],
        ["masks", "images", "--out", "m", "--shard-size", "0"],
        ["store", "m", "--out", "x"],
        ["compare", "images", "--tokens", "0"],
        ["compare", "images", "--keep", "0.5", "2"],
        ["view", "a.png", "--keep", "0"],
        ["tokenize", "a.jpg", "--tokens", "0"],
        ["tokenize", "a.jpg", "--threshold", "9"],
        ["view", "a.jpg", "--encoder", "nonsense"],
        ["count", "a.jpg", "--img-size", "0"],
        ["masks", "images", "--out", "m", "--bits", "17"],
    ],
)
def test_help_and_rejected_options_import_no_torch(arguments):
    done = subprocess.run([sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.usefixtures("default_signals")
def test_ctrl_c_while_packages_are_imported_is_one_line(here):
    generator = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen([*COMMAND, "tokenize", "images"], stderr=subprocess.PIPE, text=True)
        time.sleep(generator.uniform(0.4, 1))  # after the interpreter itself has started, and before the first image
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
        assert process.returncode == 130
        assert len(told.splitlines()) == 1
        assert "interrupted" in told


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize("where", ["--out", "--store"])
def test_a_stderr_that_cannot_be_written_costs_no_work(here, stderr, where):
    (here / "images" / "bad.png").write_bytes(b"no image")
    command = " ".join([sys.executable, "-m regiontok tokenize images", where, "out", stderr])
    assert subprocess.run(command, shell=True, stdout=subprocess.DEVNULL, check=False).returncode == 1
    made = len(list((here / "out").glob("*.safetensors"))) if where == "--out" else len(TokenStore("out"))
    assert made == 4


def test_a_closed_stderr_is_not_the_next_file_that_is_opened(here):
    program = "import os, sys\nfrom regiontok.cli.console import safe_streams\nwith safe_streams(): print(os.open('a', os.O_CREAT | os.O_WRONLY))"
    command = f'exec 2>&-; exec {sys.executable} -c "{program}"'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert int(done.stdout) > 2


def test_messages_are_dropped_when_stderr_is_gone(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with safe_streams():
        warn("nobody reads this")
        assert not sys.stderr.isatty()
    assert sys.stderr is None


@pytest.mark.parametrize("stderr", ["closed", "full", "slow"])
@pytest.mark.parametrize("command", ["masks", "tokenize"])
def test_kills_at_random_moments_lose_nothing(here, command, stderr):
    """A store that was killed is finished and compared with one that was not; fifty kills by the thorough profile."""
    for number in range(4, 40):
        draw(here / "images" / f"{number}.png", number, size=(40, 30))
    arguments = [command, "images", "--shard-size", "4", "--batch", "2"]
    arguments += ["--masks", "felzenszwalb", "--out"] if command == "masks" else ["--store"]
    assert main([*arguments, "whole"]) == 0
    generator = random.Random(0)
    for _ in range(50 if os.environ.get("REGIONTOK_TEST_PROFILE") == "thorough" else 8):
        child = os.fork()
        if not child:  # the packages are imported already
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


@pytest.fixture
def broken(tmp_path, monkeypatch):
    def install(package):
        folder = tmp_path / "broken" / package
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(BROKEN[package] + "\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))

    return install


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("torchvision", ["tokenize", "images", "--encoder", "hf:folder"]),
        ("torchvision", ["tokenize", "images", "--encoder", "dinov2"]),
        ("torchvision", ["tokenize", "images", "--source", "segmentation", "--masks", "sam2"]),
        ("torchvision", ["chat", "images/0.png", "what?", "--model", "folder"]),
        ("pyarrow", ["tokenize", "images", "--store", "s"]),
        ("pyarrow", ["store", "s"]),
        ("numba", ["tokenize", "images"]),
        ("matplotlib", ["count", "images"]),
    ],
)
def test_a_broken_package_is_one_line_with_cause_and_remedy(here, broken, package, arguments):
    if arguments == ["store", "s"]:
        (here / "s").mkdir()
        (here / "s" / "store.json").write_text('{"format": 1, "kind": "tokens", "made_by": {}, "images": []}')
    broken(package)
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)
    told = [line for line in done.stderr.splitlines() if "image/s" not in line]
    assert done.returncode == 2, done.stderr
    assert len(told) == 1, done.stderr
    assert f"{package} " in told[0]
    assert "is installed but cannot be imported" in told[0]
    assert BROKEN[package].partition("'")[2].partition("'")[0] in told[0]
    assert "pip install --force-reinstall" in told[0]


def test_env_reports_what_is_broken_and_what_is_missing(here, broken, monkeypatch):
    broken("matplotlib")
    done = subprocess.run([*COMMAND, "env"], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("matplotlib") and "(broken)" in line for line in lines)
    assert (
        "is installed but cannot be imported (AttributeError: module numpy has no attribute bool8). Run:" in done.stdout
    )
    assert any(line.startswith("lmms-eval") for line in lines)
    assert any(line.startswith("tqdm") for line in lines)
    assert any(line.startswith("numba cache") for line in lines)
    assert any(line.startswith("weights") for line in lines)


def test_images_that_are_no_regular_files_fail_alone(here, capfd):
    os.mkfifo(here / "images" / "pipe.png")
    (here / "loop.png").symlink_to("loop.png")
    Image.new("RGB", (40, 30)).save("a.png")
    for where in ("--out", "--store"):
        assert main(["tokenize", "a.png", "loop.png", "images/pipe.png", where, f"o{where}"]) == 1
        told = capfd.readouterr().err
        assert "pipe.png: not a regular file" in told
        assert "loop.png: cannot be read" in told
    assert len(list((here / "o--out").glob("*.safetensors"))) == 1
    assert len(TokenStore("o--store")) == 1
