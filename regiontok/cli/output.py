"""Files that commands write, which replace no input, and reports of what failed."""

import argparse
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from regiontok._files import check_output, is_same, write_bytes, write_json
from regiontok.cli.console import one_line, warn
from regiontok.errors import OutputError

_OUTPUTS = ("out", "csv", "json")
"""Options that name what is written; all other paths are read."""


def explain(path: Path, error: BaseException) -> str:
    """Why an image failed, with its name in front."""
    told = str(error) or "not enough memory"
    if told.startswith(f"{path}:"):
        told = told[len(str(path)) + 1 :].strip()
    return f"{one_line(path)}: {told}"


def report(failed: Sequence[str], images: int) -> int:
    """Name what failed; returns the exit code."""
    for message in failed:
        warn(message)
    if failed:
        warn(f"{len(failed)} of {images} images failed and are named above.")
    return 1 if failed else 0


def check_outputs(options: argparse.Namespace, *outputs: Path, images: Iterable[Path] = ()) -> None:
    """Refuse, before any work, outputs that could not be written, would replace what is read, or are the same file.

    Raises:
        OutputError: Such an output; see `regiontok._files.check_output`.
    """
    inputs = [*images, *_inputs(options)]
    maps = getattr(options, "label_maps", None)
    every = [*outputs, *(one for one in (getattr(options, "csv", None), getattr(options, "json", None)) if one)]
    for number, path in enumerate(every):
        check_output(path, inputs)
        if maps and path.exists() and path.resolve().is_relative_to(maps.resolve()):
            raise OutputError(f"{path} is one of the label maps and would be written over. Name another output.")
        store = getattr(options, "masks", None)
        if store and Path(store).is_dir() and path.resolve().is_relative_to(Path(store).resolve()):
            raise OutputError(f"{path} is in the store {store}, which is read here. Name another output.")
        if any(path.absolute() == other.absolute() or is_same(path, other) for other in every[:number]):
            raise OutputError(f"{path} would be written twice. Give each output a name of its own.")


def _inputs(options: argparse.Namespace) -> list[Path]:
    """Files that options name to be read; a text that is no file's is passed over."""
    given = []
    for name, value in vars(options).items():
        if name not in _OUTPUTS:
            given += [
                Path(one) for one in (value if isinstance(value, list) else [value]) if isinstance(one, str | Path)
            ]
    return given


def write_details(options: argparse.Namespace, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write what is known of every image to the files that were asked for; rows may differ in what they have."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if options.csv:
        text = io.StringIO()
        table = csv.DictWriter(text, columns)
        table.writeheader()
        table.writerows(rows)
        write_bytes(options.csv, text.getvalue().encode(errors="backslashreplace"))
    if options.json:
        write_json(options.json, [dict(row) for row in rows])
