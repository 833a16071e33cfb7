"""Install the wheel with each extra by itself, and run the documentation's commands there.

Usage: python .ci/extras.py ENVIRONMENT WHEEL, with an environment in which the wheel is installed without extras. The
packages of an extra are removed again before the next one, so that no extra sees another's. At the end the
documentation is built with its extra, and lmms-eval is tested with its own.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from commands import ENVIRONMENTS, MORE, ROOT, Command, as_run, commands_to_run, environments_of, prerequisites

TIMEOUT = 1800
CHECKS = {
    "video": "pip install -q torchcodec transformers hypothesis pytest && "
    "python -m pytest -q -p no:cacheprovider -o filterwarnings= tests/test_videos.py",
    # the gallery runs the examples; no page may need the network
    "docs": "export REGIONTOK_SITE=$(mktemp -d) http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9 && "
    "python -m sphinx -n -W --keep-going -q docs $REGIONTOK_SITE && unset http_proxy https_proxy && "
    "pip install -q hypothesis num2words pytest && "
    "python -m pytest -q -p no:cacheprovider -o filterwarnings= tests/test_docs.py -k 'site or reference or gallery'",
    "eval": "pip install -q hypothesis num2words pytest && "
    "python -m pytest -q -p no:cacheprovider -o filterwarnings= tests/evaluation/test_lmms.py",
}
"""Extras whose environment runs a command in the repository instead of the documentation's commands."""


def closures() -> dict[str, set[str]]:
    """Return the extras that each extra brings, itself included."""
    direct = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    def expand(extra: str) -> set[str]:
        names = re.findall(r"regiontok\[([^\]]+)\]", " ".join(direct[extra]))
        return {extra}.union(*(expand(name.strip()) for group in names for name in group.split(",")))

    # An extra also serves the commands of another one if it installs all of its packages.
    packages = {extra: {re.match(r"[\w.-]+", need)[0] for need in needs} for extra, needs in direct.items()}
    brought = {extra: set().union(*(packages[name] for name in expand(extra))) - {"regiontok"} for extra in direct}
    known = {extra: {other for other in direct if brought[other] <= brought[extra]} | expand(extra) for extra in direct}
    known["datasets"].add("store")  # datasets installs pyarrow
    return {"": set()} | known


class Environment:
    """A virtual environment with the wheel."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.bin = folder / "bin"
        self.wheel = wheel
        self.base = self.freeze()

    def pip(self, *arguments: str) -> str:
        command = [str(self.bin / "python"), "-m", "pip", *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def freeze(self) -> dict[str, str]:
        """Return the version of each package."""
        return {package["name"]: package["version"] for package in json.loads(self.pip("list", "--format=json"))}

    def install(self, extra: str) -> None:
        self.pip("install", "-q", f"{self.wheel}[{extra}]")

    def restore(self) -> None:
        """Remove what was installed since the beginning, and put back what was replaced."""
        now = self.freeze()
        more = sorted(now.keys() - self.base.keys())
        if more:
            self.pip("uninstall", "-q", "-y", *more)
        other = [f"{name}=={version}" for name, version in self.base.items() if now.get(name) != version]
        if other:
            self.pip("install", "-q", *other)

    def run(self, line: str, folder: Path, standins: Path) -> tuple[int, str]:
        """Run a command line in a folder with the inputs; return its exit code and the end of what it printed."""
        env = os.environ | {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "STANDINS": str(standins),
            "HF_HUB_OFFLINE": "1",
            "MPLBACKEND": "agg",
            "OMP_NUM_THREADS": "1",  # two commands run at a time
        }
        env.pop("PYTHONPATH", None)
        try:
            done = subprocess.run(
                ["bash", "-c", line],
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return 124, f"it took more than {TIMEOUT} s"
        return done.returncode, "\n".join(done.stdout.strip().splitlines()[-15:])


class Runner:
    """Runs the commands of one environment, two at a time, each in a folder of its own.

    The commands before them, which make the stores that they read, run once; their outputs are copied.
    """

    def __init__(self, environment: Environment, name: str, has: set[str], work: Path) -> None:
        self.environment, self.name, self.has, self.work = environment, name, has, work
        subprocess.run([str(environment.bin / "python"), str(ROOT / ".ci" / "standins.py"), str(work)], check=True)

    def run(self, commands: list[Command]) -> list[str]:
        """Return a message for each command that failed."""
        lines = {line for command in commands for line in prerequisites(command.line, has=self.has)}
        with ThreadPoolExecutor(2) as pool, tempfile.TemporaryDirectory(dir=self.work) as folder:
            self.made = {line: Path(folder) / str(number) for number, line in enumerate(sorted(lines))}
            failed = list(pool.map(self._prepare, self.made))
            failed += list(pool.map(self._run_in_new_folder, commands))
        return [message for message in failed if message]

    def _prepare(self, line: str) -> str:
        return self._execute(Command("made before others", line, frozenset()), self._with_inputs(self.made[line]))

    def _with_inputs(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        for source in (self.work / "inputs").iterdir():
            (folder / source.name).symlink_to(source)
        return folder

    def _run_in_new_folder(self, command: Command) -> str:
        if "train.py" in command.line:
            return self._execute(command, ROOT / "examples" / "train_llava")
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            for line in prerequisites(command.line, has=self.has):
                shutil.copytree(self.made[line], folder, symlinks=True, dirs_exist_ok=True)
            for source in Path(folder).iterdir():
                if source.is_symlink():
                    source.unlink()
            return self._execute(command, self._with_inputs(Path(folder)))

    def _execute(self, command: Command, folder: Path) -> str:
        start = time.monotonic()
        line = as_run(command.line, has=self.has)
        code, output = self.environment.run(line, folder, self.work)
        print(f"   {time.monotonic() - start:5.1f} s  {command.line}", flush=True)
        if not code:
            return ""
        message = f"[{self.name}] {command.page}: {command.line}\n{line}\nexit code {code}\n{output}"
        print(message, flush=True)
        return message


def main(folder: Path, wheel: Path) -> int:
    known, commands = closures(), commands_to_run()
    environment = Environment(folder, wheel)
    places = {command: environments_of(command, known) for command in commands}
    failed = [
        f"{command.page}: {command.line}\nno environment has {set(command.needs)}"
        for command in commands
        if not places[command]
    ]
    ran: set[Command] = set()
    with tempfile.TemporaryDirectory() as work:
        for extra in ENVIRONMENTS:
            start = time.monotonic()
            if extra:
                environment.install(extra)
            for name in (extra, *([f"{extra}+{MORE[extra]}"] if extra in MORE else [])):
                if "+" in name:
                    environment.install(MORE[extra].replace("+", ","))
                has = set().union(*(known[part] for part in name.split("+")))
                some = [command for command in commands if name in places[command]]
                print(f"== [{name}] {len(some)} commands, installed in {time.monotonic() - start:.0f} s", flush=True)
                failed += Runner(environment, name, has, Path(work)).run(some)
                ran.update(some)
            environment.restore()
            print(f"== [{extra}] took {time.monotonic() - start:.0f} s", flush=True)
        for extra, line in CHECKS.items():
            start = time.monotonic()
            environment.install(extra)
            code, output = environment.run(line, ROOT, Path(work))
            if code:
                failed.append(f"[{extra}] {line}\nexit code {code}\n{output}")
            environment.restore()
            print(f"== [{extra}] took {time.monotonic() - start:.0f} s\n{output}", flush=True)
    failed += [f"{command.page}: {command.line}\nno environment ran it" for command in commands if command not in ran]
    for message in dict.fromkeys(failed):
        print(f"\nFAILED {message}")
    print(f"{len(ran)} commands ran in {len(ENVIRONMENTS)} environments, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]).resolve()))
