"""Run benchmarks: ``python -m benchmarks [BENCHMARK ...]``."""

import argparse

from benchmarks import (
    annotations,
    clustering,
    downsampling,
    families,
    generators,
    memory,
    page,
    partition,
    pooling,
    scale,
    sources,
    splitting,
    steps,
    video,
)

BENCHMARKS = {
    "clustering": clustering.main,
    "partition": partition.main,
    "pooling": pooling.main,
    "memory": memory.main,
    "annotations": annotations.main,
    "downsampling": downsampling.main,
    "splitting": splitting.main,
    "generators": generators.main,
    "sources": sources.main,
    "steps": steps.main,
    "families": families.main,
    "page": page.main,
    "scale": scale.main,
    "video": video.main,
}

parser = argparse.ArgumentParser(prog="python -m benchmarks")
parser.add_argument("benchmarks", nargs="*", choices=[[], *BENCHMARKS], help="default: all")
for benchmark in parser.parse_args().benchmarks or BENCHMARKS:
    print(f"# {benchmark}")
    BENCHMARKS[benchmark]()
