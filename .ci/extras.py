"""Install the wheel with each extra by itself, and run the documentation's commands there.

Usage: python .ci/extras.py ENVIRONMENT WHEEL, with an environment in which the wheel is installed without extras. The
packages of an extra are removed again before the next one, so that no extra sees another's.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from commands import ENVIRONMENTS, MORE, ROOT, Command, as_run, commands_to_run, environments_of, prerequisites

TIMEOUT = 900


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
        }
        env.pop("PYTHONPATH", None)
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
        return done.returncode, "\n".join(done.stdout.strip().splitlines()[-15:])


def run_all(environment: Environment, name: str, commands: list[Command], has: set[str], work: Path) -> list[str]:
    """Run commands, each in a folder of its own; return those that failed."""
    subprocess.run([str(environment.bin / "python"), str(ROOT / ".ci" / "standins.py"), str(work)], check=True)
    failed = []
    for command in commands:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            for source in (work / "inputs").iterdir():
                (Path(folder) / source.name).symlink_to(source)
            where = Path(folder)
            if "train.py" in command.line:
                where = ROOT / "examples" / "train_llava"
            for line in [*prerequisites(command.line, has=has), command.line]:
                start = time.monotonic()
                code, output = environment.run(as_run(line, has=has), where, work)
                print(f"   {time.monotonic() - start:5.1f} s  {line}", flush=True)
                if code:
                    failed.append(
                        f"[{name}] {command.page}: {line}\n{as_run(line, has=has)}\nexit code {code}\n{output}"
                    )
                    print(failed[-1], flush=True)
                    break
    return failed


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
                failed += run_all(environment, name, some, has, Path(work))
                ran.update(some)
            environment.restore()
            print(f"== [{extra}] took {time.monotonic() - start:.0f} s", flush=True)
    failed += [f"{command.page}: {command.line}\nno environment ran it" for command in commands if command not in ran]
    for message in dict.fromkeys(failed):
        print(f"\nFAILED {message}")
    print(f"{len(ran)} commands ran in {len(ENVIRONMENTS)} environments, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]).resolve()))
