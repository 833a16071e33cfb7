"""``python -m benchmarks [QUESTION ...]``."""

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
)

QUESTIONS = {
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
}

parser = argparse.ArgumentParser(prog="python -m benchmarks")
parser.add_argument("questions", nargs="*", choices=[[], *QUESTIONS], help="all of them where none is named")
for question in parser.parse_args().questions or QUESTIONS:
    print(f"# {question}")
    QUESTIONS[question]()
