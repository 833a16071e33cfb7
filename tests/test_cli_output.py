"""What no command may do: lose work, write over what it reads, or end in a traceback."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from regiontok import load_tokens
from regiontok.cli import main
from regiontok.cli.console import one_line
from regiontok.store import MaskStore
from tests.conftest import run_in_fork

COMMAND = [sys.executable, "-m", "regiontok"]
FELZENSZWALB = ["--masks", "felzenszwalb"]


def draw(path, size=(48, 32), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "p.png")
    return tmp_path


WRITING = [
    ["view", "p.png", "--out"],
    ["figures", "norms", "p.png", "--out"],
    ["figures", "features", "p.png", "--out"],
    ["figures", "encoders", "p.png", "--out"],
    ["figures", "regions", "p.png", "--out"],
    ["count", "p.png", "--out"],
    ["count", "p.png", "--csv"],
    ["compare", "p.png", "--out"],
    ["tokenize", "p.png", "--json"],
]


@pytest.mark.parametrize("arguments", WRITING, ids=lambda words: " ".join([*words[:2], words[-1]]))
def test_no_command_overwrites_an_input(arguments, here, capsys):
    before = (here / "p.png").read_bytes()
    os.link("p.png", "link.png")
    for name in ("p.png", "./p.png", "link.png"):
        assert main([*arguments, name]) == 2
        assert f"{name.removeprefix('./')} is also an input and would be overwritten" in capsys.readouterr().err
    assert (here / "p.png").read_bytes() == before


@pytest.mark.parametrize("arguments", WRITING, ids=lambda words: " ".join([*words[:2], words[-1]]))
def test_outputs_are_checked_before_any_work(arguments, here, capsys, monkeypatch):
    for module in ("view", "figures", "inputs", "tokenize", "masks"):
        for job in ("load_encoder", "load_generator", "read_image"):
            monkeypatch.setattr(f"regiontok.cli.{module}.{job}", None, raising=False)
    (here / "folder.png").mkdir()
    for name, message in (
        ("folder.png", "folder.png must be a file, but is a folder"),
        ("none/x.png", "none/x.png cannot be written: there is no folder none"),
    ):
        assert main([*arguments, name]) == 2
        assert message in capsys.readouterr().err


def test_two_outputs_must_differ(here, capsys):
    assert main(["count", "p.png", "--csv", "x", "--json", "./x"]) == 2
    assert "x would be written twice" in capsys.readouterr().err


def test_files_of_masks_are_inputs(here, capsys):
    assert main(["masks", "p.png", *FELZENSZWALB, "--out", "m"]) == 0
    (shard,) = MaskStore("m").shards
    assert main(["count", "p.png", "--masks", f"m/{shard}", "--csv", f"m/{shard}"]) == 2
    assert f"m/{shard} is also an input and would be overwritten" in capsys.readouterr().err
    assert main(["count", "p.png", "--masks", "m", "--csv", f"m/{shard}"]) == 2
    assert main(["count", "p.png", "--masks", "m", "--csv", "m/new.csv"]) == 2
    assert "m/new.csv is in m, which is an input. Name another output." in capsys.readouterr().err
    assert len(MaskStore("m")) == 1


def test_an_earlier_figure_in_the_folder_is_replaced_but_an_image_is_not(here, capsys):
    for _ in range(2):
        assert main(["count", ".", "--out", "counts.png"]) == 0
        assert "1 image," in capsys.readouterr().out
    draw(here / "holiday.png", seed=1)
    assert main(["count", ".", "--out", "holiday.png"]) == 2
    assert "holiday.png is also an input" in capsys.readouterr().err


def test_files_keep_subfolders_and_never_replace_those_of_another_image(here):
    draw(here / "sub" / "p.png", seed=1)
    draw(here / "else" / "p.png", seed=2)

    def files():
        return sorted(one.relative_to(here / "out").as_posix() for one in (here / "out").rglob("*.safetensors"))

    assert main(["tokenize", "p.png", "--out", "out"]) == 0
    first = (here / "out" / "p.regions.safetensors").read_bytes()
    assert main(["tokenize", "sub/p.png", "--out", "out"]) == 0
    assert files() == ["p-2.regions.safetensors", "p.regions.safetensors"]
    assert main(["tokenize", "sub", "else", "--out", "out"]) == 0
    written = [f"{name}.regions.safetensors" for name in ("else/p", "p-2", "p", "sub/p")]
    assert files() == written
    assert (here / "out" / "p.regions.safetensors").read_bytes() == first
    for _ in range(2):
        assert main(["tokenize", "p.png", "--out", "out"]) == 0
    assert files() == written


def test_a_table_with_every_image_is_written_and_a_summary_printed(here, capsys):
    for number in range(12):
        draw(here / "many" / f"{number:02}.png", seed=number)
    (here / "many" / "broken.png").write_bytes(b"no image")
    assert main(["tokenize", "many", "--out", "out", "--csv", "d.csv", "--json", "d.json"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[1].startswith("mean ")
    assert told[2].startswith("12 images, ")
    assert len(told) == 5
    rows = list(csv.DictReader((here / "d.csv").read_text().splitlines()))
    assert [row["image"] for row in rows] == [f"many/{number:02}.png" for number in range(12)] + ["many/broken.png"]
    assert all(int(row["tokens"]) > 0 and float(row["group_ms"]) > 0 for row in rows[:12])
    assert "not an image" in rows[12]["error"]
    assert [row["image"] for row in json.loads((here / "d.json").read_text())] == [row["image"] for row in rows]
    assert main(["count", "many", "--csv", "c.csv"]) == 1
    counted = list(csv.DictReader((here / "c.csv").read_text().splitlines()))
    assert [row["clustering"] for row in counted[:12]] == [row["tokens"] for row in rows[:12]]


@pytest.mark.parametrize(
    "arguments",
    [["tokenize", ""], ["count", "p.png", "--out", ""], ["view", ""], ["masks", "p.png", "--out", "m", "--masks", ""],
     ["chat", "p.png", "--model", ""], ["focus", "", "--annotations", "a", "--questions", "q", "--out", "o"]],
    ids=" ".join,
)  # fmt: skip
def test_empty_arguments_are_rejected(arguments, here, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "it is empty" in capsys.readouterr().err
    assert sorted(path.name for path in here.iterdir()) == ["p.png"]


STRANGE = "caf\u00e9\n\x1b[31m.png"


def test_names_are_printed_escaped(here, capfd):
    assert one_line(STRANGE) == "caf\u00e9\\n\\x1b[31m.png"
    assert one_line(b"\xff.png".decode("utf-8", "surrogateescape")) == "\\udcff.png"
    draw(here / STRANGE)
    (here / f"{STRANGE[:-4]}.jpg").write_bytes(b"no image")
    names = [name for name in os.listdir(here) if name != "p.png"]  # noqa: PTH208
    for command in ("tokenize", "count"):
        assert main([command, *names]) == 1
        told = capfd.readouterr()
        assert "\x1b" not in told.out + told.err.replace("\x1b[A", "")
        assert "caf\u00e9\\n\\x1b[31m.jpg: not an image" in told.err
    assert main(["view", STRANGE, "--out", "x.html"]) == 0
    assert "caf\u00e9\\n\\x1b[31m.png" in (here / "x.html").read_text(encoding="utf-8")


def test_a_name_that_is_not_utf_8_fails_in_a_store_only(here, capfd):
    name = b"\xff\xfe.png".decode("utf-8", "surrogateescape")
    draw(here / "in" / name)
    draw(here / "in" / "q.png", seed=1)
    assert main(["masks", "in", *FELZENSZWALB, "--out", "m"]) == 1
    assert "a key must be valid UTF-8" in capfd.readouterr().err
    assert list(MaskStore("m")) == ["q.png"]
    assert list(MaskStore("m").failures) == ["\\udcff\\udcfe.png"]
    assert main(["view", f"in/{name}", "--out", "x.html"]) == 0
    assert (here / "x.html").stat().st_size > 10000
    assert main(["tokenize", "in", "--csv", "d.csv"]) == 0
    assert len((here / "d.csv").read_text(encoding="utf-8").splitlines()) == 3


def test_names_are_escaped_for_an_ascii_stream(here):
    draw(here / "caf\u00e9.png")

    def run_with_ascii():
        sys.stdout.reconfigure(encoding="ascii")
        return main(["tokenize", "caf\u00e9.png"])

    code, printed, told = run_in_fork(run_with_ascii)
    assert (code, told) == (0, "")
    assert "caf\\xe9.png" in printed


def test_a_closed_pipe_is_not_an_error(here):
    for number in range(30):
        draw(here / "many" / f"{number}.png", size=(16, 16))
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*COMMAND, "count", "many", "--out", "c.png"], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert done.returncode == 141
    assert "Error" not in done.stderr
    assert "Traceback" not in done.stderr
    assert (here / "c.png").is_file()  # what was made is written before it is told


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_keeps_finished_files_and_removes_partial_ones(here, number, code):
    for image in range(300):
        draw(here / "many" / f"{image:03}.png", size=(64, 64), seed=image)
    started = subprocess.Popen([*COMMAND, "tokenize", "many"], stderr=subprocess.PIPE, text=True)
    out = here / "regiontok-out"
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.safetensors"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    started.send_signal(number)
    told = started.communicate(timeout=60)[1]
    assert started.returncode == code
    assert "finished files are kept" in told
    assert "Traceback" not in told
    whole = list(out.glob("*.safetensors"))
    assert 5 <= len(whole) < 300
    assert not list(out.rglob("*.part"))


@pytest.mark.parametrize(
    "arguments",
    [["tokenize", "p.png"], ["view", "p.png"], ["count", "p.png"], ["figures", "norms", "p.png", "--out", "n.png"]],
    ids=lambda words: words[0],
)
def test_a_full_disk_leaves_no_partial_file(arguments, here):
    draw(here / "p.png", size=(200, 200))
    assert main(["tokenize", "p.png", "--out", "warm"]) == 0  # compiled before the disk is full

    def run_on_a_full_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        return main(arguments)

    code, _, told = run_in_fork(run_on_a_full_disk)
    assert code in (1, 2), told
    assert "cannot be written (File too large)" in told
    assert "Traceback" not in told
    left = {path.name for path in here.rglob("*") if path.is_file() and "warm" not in path.parts}
    assert left == {"p.png"}


@pytest.mark.parametrize("name", ["/dev/null", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_an_output_must_be_a_regular_file(name, here, capsys):
    assert main(["tokenize", "p.png", "--json", name]) == 2
    assert f"{name} is not a regular file" in capsys.readouterr().err
    assert not list((here / "regiontok-out").iterdir())


def test_a_table_may_be_in_the_folder_of_tokens(here):
    assert main(["tokenize", "p.png", "--out", "new", "--csv", "new/rows.csv"]) == 0
    assert (here / "new" / "rows.csv").is_file()


def test_an_image_with_the_same_name_in_another_folder_is_another_image(here, monkeypatch):
    out = str(here / "out")
    for folder in ("one", "two"):
        draw(here / folder / "x.png", seed=len(folder + folder[0]))
        monkeypatch.chdir(here / folder)
        for _ in range(2):
            assert main(["tokenize", "x.png", "--out", out]) == 0
    assert len(list((here / "out").glob("*.safetensors"))) == 2


def test_invalid_names_and_streams_are_reported_without_a_traceback(here, capfd):
    assert main(["tokenize", f"{'a' * 300}.png"]) == 1
    assert "File name too long" in capfd.readouterr().err
    assert main(["masks", "p.png", *FELZENSZWALB, "--out", "m"]) == 0
    for redirection in (">&-", "> /dev/full"):
        done = subprocess.run(
            f"{sys.executable} -m regiontok store m {redirection}",
            shell=True,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr


def test_tokens_of_an_image_whose_name_is_not_utf_8(here):
    name = b"\xff.png".decode("utf-8", "surrogateescape")
    draw(here / name)
    for _ in range(2):
        assert main(["tokenize", name, "--out", "out"]) == 0
    (file,) = (here / "out").glob("*.safetensors")
    assert len(load_tokens(file)) > 0
