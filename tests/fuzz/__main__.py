"""Run the fuzzers: ``python -m tests.fuzz [TARGET ...] [--seconds 30] [--jobs 2] [--findings DIR]``.

Each target has a process of its own. The exit code is 1 where one of them found something: an error that is not
regiontok's, an answer that takes more than 2 s, or a gigabyte asked for at once.
"""

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
NAMES = (
    "rle", "polygons", "annotations", "tracks", "masks_of_json", "label_map", "store", "manifest", "image_list", "mask_file", "tar", "parquet", "tokens", "options", "regionizer", "model_config",
)  # fmt: skip
_COMPILED = [f"regiontok._kernels.{name}" for name in ("dbscan", "logits", "merge", "polygons", "rle")]
"""Loops that numba compiles, which cannot be instrumented; the branches of all else guide the fuzzer."""
_MOST_SECONDS = 2
"""For an answer. libFuzzer's own alarm can end the process without a message, so it is turned off."""
_MOST_RUNS = 3
_DICTIONARY = dict.fromkeys(
    ("annotations", "tracks", "masks_of_json", "options", "regionizer", "model_config"),
    (f"-dict={CORPUS.with_name('json.dict')}",),
)


def fuzz(name: str, arguments: list[str]) -> None:
    """Run one target in this process, until libFuzzer ends it."""
    # atheris sets an alarm even with a timeout of 0; if it comes while no handler is installed, it ends the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    import atheris  # noqa: PLC0415  only here: it changes how modules are imported

    with atheris.instrument_imports(include=["regiontok"], exclude=_COMPILED):
        from tests.fuzz.targets import attempt  # noqa: PLC0415
    for seed in sorted((CORPUS / name).iterdir()):  # compiles what there is, which takes longer than an input may
        attempt(name, seed.read_bytes())

    def one_input(data: bytes) -> None:
        took = _seconds(lambda: attempt(name, data))
        if took > _MOST_SECONDS:  # a first time may have compiled a loop
            took = _seconds(lambda: attempt(name, data))
        if took > _MOST_SECONDS:
            raise AssertionError(f"an answer took {took:.1f} s")

    atheris.Setup([name, *arguments], one_input)
    atheris.Fuzz()


def _seconds(work: Callable[[], object]) -> float:
    """Time of this process for a piece of work."""
    start = time.process_time()
    work()
    return time.process_time() - start


def run(name: str, seconds: int, findings: Path) -> tuple[str, int, int, str]:
    """Run one target in a process of its own: its name, inputs tried, exit code, and what it said.

    A finding is an input that fails alone, too. atheris itself ends the process now and then, and is then run again.
    """
    total = 0
    for _ in range(_MOST_RUNS):
        before = set(findings.iterdir())
        with tempfile.TemporaryDirectory() as grown:
            arguments = [
                grown,
                str(CORPUS / name),
                f"-max_total_time={seconds}",
                f"-artifact_prefix={findings}/{name}-",
            ]
            code, told = _child(name, [*arguments, *_DICTIONARY.get(name, ())], seconds)
        tried = re.search(r"stat::number_of_executed_units: *(\d+)", told)
        total += int(tried[1]) if tried else 0
        if code == 0:
            return name, total, 0, told
        for file in set(findings.iterdir()) - before:
            alone, said = _child(name, [str(file)], 0)
            if alone:
                return name, total, alone, said
            file.unlink()
    return name, total, code, told


def _child(name: str, arguments: list[str], seconds: int) -> tuple[int, str]:
    """The exit code and words of a process that fuzzes, or tries a single input."""
    limits = ["-timeout=0", "-rss_limit_mb=6144", "-malloc_limit_mb=1024", "-max_len=8192", "-print_final_stats=1"]
    command = [sys.executable, "-m", "tests.fuzz", "--child", name, *arguments, *limits]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=seconds + 180
        )
    except subprocess.TimeoutExpired as error:
        return 1, f"an answer never came: {error}"
    return done.returncode, done.stdout + done.stderr


def main() -> int:
    """Run all targets, or those that are named."""
    if sys.argv[1:2] == ["--child"]:
        fuzz(sys.argv[2], sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*NAMES, []], metavar="TARGET", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--seconds", type=int, default=30, help="for each; default: %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="at a time; default: %(default)s")
    parser.add_argument("--findings", type=Path, help="where inputs that found something are kept")
    options = parser.parse_args()
    findings = options.findings or Path(tempfile.mkdtemp())
    findings.mkdir(parents=True, exist_ok=True)
    failed, total = 0, 0
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = [pool.submit(run, name, options.seconds, findings) for name in options.targets or NAMES]
        for job in jobs:
            name, tried, code, told = job.result()
            total += tried
            print(f"{name:14} {tried:>9} inputs  {'ok' if code == 0 and tried else 'FOUND'}", flush=True)
            if code or not tried:
                failed += 1
                print(f"exit code {code}\n{told[-6000:]}", flush=True)
    print(f"{total} inputs" + (f"; what was found is in {findings}" if failed else "; nothing was found"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
