"""Messages, warnings and progress bars: everything that commands write to stderr.

If stderr is closed, or a log file on a full disk, messages are dropped and the command continues.
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
    """Print a line of information to stderr, so that stdout only has the result."""
    print(one_line(message), file=sys.stderr)


def progress(items: Collection[Any], *, least: int = 2) -> Any:
    """Iterate over items with a progress bar on stderr if there are at least ``least``."""
    return tqdm(items, unit="image", disable=len(items) < least)


def progress_bar(total: int | None = None) -> Any:
    """Return a progress bar that the caller updates. In a log file it is written every ten seconds.

    Args:
        total: The number of images. Without it the bar is removed at the end.
    """
    if total is not None:
        return tqdm(unit="image", total=total, disable=total < 2)
    return tqdm(unit="image", mininterval=0.2 if is_terminal() else 10, delay=1, leave=False)


def is_terminal() -> bool:
    """Return whether stderr is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


class _Dropping(io.TextIOBase):
    """A text stream that ignores errors when it is written to."""

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
    def encoding(self) -> str:  # type: ignore[override]  # a property in typeshed too
        return self._stream.encoding


@contextmanager
def safe_streams() -> Iterator[None]:
    """Let stdout print any file name, ignore errors of stderr, and print warnings as messages.

    Closed descriptors are opened on the null device. Otherwise the next opened file would get their number, and
    messages of compiled libraries would be written into that file.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this descriptor
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a stream of a notebook or a test
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a file name may be any bytes
    before = sys.stderr
    nowhere = None if before is not None else open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    sys.stderr = _Dropping(before if nowhere is None else nowhere)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]  # takes fewer arguments
            yield
    finally:
        sys.stderr = before
        if nowhere is not None:
            nowhere.close()


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    warn(message if category is UserWarning else f"{category.__name__}: {message}")
