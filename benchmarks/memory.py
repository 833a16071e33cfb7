"""Peak memory of clustering and pooling beyond their input, each measured in a separate process."""

import argparse
import resource
import subprocess
import sys

import torch

from benchmarks.clustering import smooth_features
from benchmarks.pooling import make, ours_and_theirs
from benchmarks.timing import save
from regiontok import UnionFindClusterer

CASES = ("clustering", "pool", "attention", "pool and backward", "attention and backward")


def peak() -> int:
    """Return the peak resident memory of this process in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(case: str) -> tuple[int, int]:
    """Return the bytes of the input, and by how many bytes a call raises the peak."""
    torch.manual_seed(0)
    backward = "backward" in case
    if case == "clustering":
        image = smooth_features(24, 24, 1024, seed=0)
        inputs = image[None].expand(64, -1, -1, -1).contiguous()
        UnionFindClusterer()(inputs[:1, :2, :2])  # loads the compiled code

        def run() -> object:
            return UnionFindClusterer()(inputs)
    else:
        inputs, regions = make()
        pool = ours_and_theirs(regions)["attention" in case]
        torch.nn.Linear(8, 8)(torch.ones(8, 8, requires_grad=True)).sum().backward()
        inputs.requires_grad_(backward)

        def run() -> object:
            with torch.set_grad_enabled(backward):
                result = pool(inputs).square().mean()
            return result.backward() if backward else result

    before, held = held_peak()
    run()
    rise = peak() - before
    del held
    return inputs.nbytes, rise


def held_peak() -> tuple[int, torch.Tensor]:
    """Return the peak, and a tensor that keeps the memory in use at the peak.

    Without the tensor, memory that the setup has freed would be reused and would not raise the peak.
    """
    held = torch.ones(max(0, peak() - _resident()) // 4 + 1)
    return peak(), held


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * resource.getpagesize()


def main() -> None:
    """Measure every case, print and save."""
    figures = {}
    for case in CASES:
        command = [sys.executable, "-m", "benchmarks.memory", "--case", case]
        completed = subprocess.run(command, capture_output=True, text=True, check=True)
        size, rise = map(int, completed.stdout.split())
        figures[case] = {"input_MiB": round(size / 2**20, 1), "rise_MiB": round(rise / 2**20, 1)}
        figures[case]["rise over input"] = round(rise / size, 2)
    for suffix in ("", " and backward"):
        rises = [figures[name + suffix]["rise_MiB"] for name in ("pool", "attention")]
        figures[f"pool{suffix} over attention{suffix}"] = round(rises[0] / rises[1], 2)
    for name, value in figures.items():
        print(name, value)
    print(save("memory", figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", choices=CASES)
    case = parser.parse_args().case
    if case is None:
        main()
    else:
        print(*measure(case))
