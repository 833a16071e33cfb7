"""Files that commands write, which must not replace inputs, and reports of failed images."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from regiontok._files import check_output, is_same, write_bytes, write_json
from regiontok.cli.console import one_line, warn
from regiontok.errors import OutputError


def report(errors: Mapping[str, str], total: int, things: str = "images") -> int:
    """Print why images or other things failed, by path or name, and return the exit code."""
    for path, reason in errors.items():
        warn(f"{one_line(path)}: {reason.removeprefix(f'{path}:').strip()}")
    if errors:
        warn(f"{len(errors)} of {total} {things} failed and are named above.")
    return 1 if errors else 0


def check_outputs(outputs: Iterable[Path | None], images: Iterable[str | Path], *choices: Any) -> None:
    """Check before the work that outputs can be written, and replace neither an input nor each other.

    Args:
        outputs: The files that will be written; None is ignored.
        images: The images that are read.
        choices: Dataclasses with other paths that are read, such as weights and masks.

    Raises:
        OutputError: An invalid output; see `regiontok._files.check_output`.
    """
    paths = [path for choice in choices if choice is not None for path in _paths(choice)]
    inputs, folders = [*images, *paths], [path for path in paths if path.is_dir()]
    checked: list[Path] = []
    for path in filter(None, outputs):
        check_output(path, inputs)
        for folder in folders:
            if path.resolve().is_relative_to(folder.resolve()):
                raise OutputError(f"{path} is in {folder}, which is an input. Name another output.")
        if any(path.absolute() == other.absolute() or is_same(path, other) for other in checked):
            raise OutputError(f"{path} would be written twice. Give each output another name.")
        checked.append(path)


def _paths(choice: Any) -> list[Path]:
    """Return the fields of a choice that may be paths; a text that is no path does no harm."""
    return [Path(value) for value in vars(choice).values() if isinstance(value, str | Path)]


def write_details(rows: Sequence[Mapping[str, Any]], csv_file: Path | None, json_file: Path | None) -> None:
    """Write a table with a row per image as CSV, as JSON or as both; rows may have different columns."""
    if csv_file:
        text = io.StringIO()
        table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
        table.writeheader()
        table.writerows(rows)
        write_bytes(csv_file, text.getvalue().encode(errors="backslashreplace"))
    if json_file:
        write_json(json_file, [dict(row) for row in rows])
