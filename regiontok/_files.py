"""Read JSON files and write files atomically: an output is complete or does not exist."""

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from regiontok.errors import DataError, OutputError, RegiontokError

_STREAMS = [("/", "dev", name) for name in ("stdout", "stderr", "fd")]


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path, which is renamed to ``path`` when the block ends, and removed if the block fails.

    Raises:
        OutputError: The file cannot be written: its folder is missing, the disk is full, or ``path`` is not a file.
    """
    check_regular_file(path)
    target = Path(os.path.realpath(path))  # replace the target of a link, not the link
    temporary = target.with_name(f".{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        if target.is_dir():
            raise OutputError(f"{path} must be a file, but is a folder. Name a file in it.")
        yield temporary
        temporary.replace(target)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error_reason(error)}).") from error
    finally:
        with suppress(OSError):  # the folder may be missing
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file atomically; see `atomic_write` for the errors."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON atomically; see `atomic_write` for the errors."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def make_folder(path: str | Path) -> Path:
    """Create a folder unless it exists, and return its path.

    Raises:
        OutputError: It cannot be created or is not writable.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} must be a folder, but cannot be created ({error.strerror}).") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise OutputError(f"{path} must be a writable folder.")
    return path


def check_output(path: str | Path, inputs: Iterable[str | Path] = ()) -> None:
    """Check before the work that an output can be written and does not overwrite an input.

    Raises:
        OutputError: ``path`` is a folder or one of ``inputs``, or its folder is missing or not writable.
    """
    path = Path(path)
    check_regular_file(path)
    if path.is_dir():
        raise OutputError(f"{path} must be a file, but is a folder. Name a file in it.")
    if not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {path.parent}.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: the folder {path.parent} is not writable.")
    if path.exists() and any(is_same(path, file) for file in inputs):
        raise OutputError(f"{path} is also an input and would be overwritten. Name another output.")


def check_regular_file(path: str | Path) -> None:
    """Reject paths of devices and streams: a rename would replace the device, or the file that stdout is sent to.

    Raises:
        OutputError: ``path`` exists and is neither a regular file nor a folder.
    """
    path = Path(path)
    is_stream = path.parts[:2] == ("/", "proc") or path.parts[:3] in _STREAMS
    if is_stream or (path.exists() and not path.is_file() and not path.is_dir()):
        raise OutputError(f"{path} is not a regular file. Write to a regular file and print it afterwards.")


def error_reason(error: Exception) -> str:
    """Return the text of the error number of an ``OSError``, and the message of other errors."""
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


def is_same(path: str | Path, other: str | Path) -> bool:
    """Return whether two paths are the same existing file or folder."""
    try:
        return Path(path).samefile(other)
    except (OSError, ValueError):
        return False


def digest(path: str | Path) -> str:
    """Return a digest of the bytes of a file.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error


def split_lines(text: str) -> list[str]:
    r"""Split a text at ``\n`` and ``\r\n`` only.

    ``str.splitlines`` also splits at characters that JSON and file names may contain, such as U+2028.

    Example:
        >>> split_lines("a\u2028b\r\nc\n")
        ['a\u2028b', 'c', '']
    """
    return [line.removesuffix("\r") for line in text.split("\n")]


def read_json(path: str | Path, kind: type[RegiontokError] = DataError) -> Any:
    """Return the value in a JSON file.

    Args:
        path: The file.
        kind: The class of the errors.

    Raises:
        DataError: The file cannot be read or is not valid JSON; raised as ``kind``.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise kind(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise kind(f"{path} is not valid JSON: {error}.") from error
