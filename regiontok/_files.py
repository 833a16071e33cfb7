"""Files in and out: JSON that may be damaged, and outputs that are whole or not there."""

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from regiontok.errors import DataError, OutputError, RegiontokError

_STREAMS = ("stdout", "stderr", "fd")


@contextmanager
def written(path: str | Path) -> Iterator[Path]:
    """A name to write a file under; it becomes ``path`` when the block ends, and is removed where it fails.

    Raises:
        OutputError: The file cannot be written: no such folder, a full disk, a name that is not a file's.
    """
    refuse_devices(path)
    target = Path(os.path.realpath(path))  # through a link, and not in its place
    temporary = target.with_name(f".{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        if target.is_dir():
            raise OutputError(f"{path} is a folder, and a file is to be written there. Name a file in it.")
        yield temporary
        temporary.replace(target)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else error
        raise OutputError(f"{path} cannot be written ({why}).") from error
    finally:
        with suppress(OSError):  # where the folder is not there, as the error says
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file; errors are those of `written`."""
    with written(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | Path, value: Any) -> None:
    """Write a file of JSON; errors are those of `written`."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def make_folder(path: str | Path) -> Path:
    """A folder, made where it is not there.

    Raises:
        OutputError: It cannot be made or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} must be a folder that can be made ({error.strerror}).") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise OutputError(f"{path} must be a folder that can be written to.")
    return path


def check_output(path: str | Path, inputs: Iterable[str | Path] = ()) -> None:
    """Refuse an output that could not be written, or would replace an input: to be called before the work.

    Raises:
        OutputError: A folder of that name, no folder that it could be in, or a file that is also read.
    """
    path = Path(path)
    refuse_devices(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder, and a file is to be written there. Name a file in it.")
    if not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {path.parent}.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: {path.parent} is a folder that cannot be written to.")
    if path.exists() and any(is_same(path, one) for one in inputs):
        raise OutputError(f"{path} is read here and would be written over. Name another output.")


def refuse_devices(path: str | Path) -> None:
    """Refuse what is no ordinary file: renaming another over it would end it, or what stdout is sent to.

    Raises:
        OutputError: Such a path.
    """
    path = Path(path)
    stream = path.parts[:2] == ("/", "proc") or path.parts[:3] in [("/", "dev", one) for one in _STREAMS]
    if stream or (path.exists() and not path.is_file() and not path.is_dir()):
        raise OutputError(f"{path} is no ordinary file. Name one, and print it from there.")


def is_same(path: str | Path, other: str | Path) -> bool:
    """Whether two paths lead to one file or folder that is there."""
    try:
        return Path(path).samefile(other)
    except (OSError, ValueError):
        return False


def digest(path: str | Path) -> str:
    """Return a digest of a file's bytes.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error


def split_lines(text: str) -> list[str]:
    r"""Return the lines of a text, which end at ``\n`` or ``\r\n`` alone.

    ``str.splitlines`` also splits at characters that JSON and file names may hold, such as U+2028.

    Example:
        >>> split_lines("a\u2028b\r\nc\n")
        ['a\u2028b', 'c', '']
    """
    return [line.removesuffix("\r") for line in text.split("\n")]


def read_json(path: str | Path, kind: type[RegiontokError] = DataError) -> Any:
    """Return the value in a file of JSON.

    Args:
        path: The file.
        kind: Class of the errors.

    Raises:
        DataError: No such file, or no JSON; or the other ``kind``.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise kind(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise kind(f"{path} is no JSON, or damaged: {error}.") from error
