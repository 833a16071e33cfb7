"""Messages, warnings and progress bars: everything that the commands write to stderr goes through this module.

What cannot be printed is dropped and costs no work: stderr may be closed, or a log file on a full disk.
"""

import io
import os
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from tqdm import tqdm


def one_line(name: object) -> str:
    """Return a name as one line that any terminal can show; other characters are escaped as in ``repr``."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in str(name))


def warn(message: object) -> None:
    """Print a message to stderr."""
    lines = str(message).splitlines() or [""]
    print("regiontok:", "\n".join(map(one_line, lines)), file=sys.stderr)


def note(message: object) -> None:
    """Print a line to stderr that is no warning, so that stdout has the result alone."""
    print(one_line(message), file=sys.stderr)


def progress(items: Collection[Any], *, least: int = 2) -> Any:
    """Return the same items, with a progress bar on stderr if there are at least ``least``."""
    return tqdm(items, unit="image", disable=len(items) < least)


def progress_bar() -> Any:
    """Return a progress bar to be updated by hand; where stderr is a log file, it is written every ten seconds."""
    return tqdm(unit="image", mininterval=0.2 if is_terminal() else 10, delay=1, leave=False)


def is_terminal() -> bool:
    """Return whether stderr is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


class _Dropping(io.TextIOBase):
    """A text stream that drops what cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: the stream is closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        with suppress(OSError, ValueError):
            return self._stream.isatty()
        return False

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a property there too
        return self._stream.encoding


@contextmanager
def safe_streams() -> Iterator[None]:
    """Make stdout print any file name, and stderr drop what cannot be written; warnings become messages.

    A descriptor that was closed is opened on the null device: the next file that is opened would take its number, and
    messages of compiled libraries would be written into that file.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a stream that a notebook or a test has put there
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a file name may be any bytes
    before = sys.stderr
    nowhere = None if before is not None else open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    sys.stderr = _Dropping(before if nowhere is None else nowhere)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]  # it takes what it needs
            yield
    finally:
        sys.stderr = before
        if nowhere is not None:
            nowhere.close()


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    warn(message if category is UserWarning else f"{category.__name__}: {message}")
