"""One writer at a time: locks that end with the process that has them, so that a dead writer leaves none behind.

A run of all images excludes every other; runs of slices of them share the store, and each number is one's own.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regiontok.errors import OutputError

try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def writing(folder: Path, writer: int, *, shared: bool) -> Iterator[None]:
    """Hold the right to write a store on a disk, as the writer of a number.

    Args:
        folder: Of the store.
        writer: Its number, which its shards are named by.
        shared: Whether writers of other numbers may write at the same time.

    Raises:
        OutputError: Another process writes; it is named.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_held(folder / ".lock", exclusive=not shared))
        stack.enter_context(_held(folder / f".lock-{writer:05d}", exclusive=True))
        yield


@contextlib.contextmanager
def _held(path: Path, *, exclusive: bool) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(f"{path.parent} must be a folder that can be written to ({error.strerror}).") from error
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"{path.parent} is being written by {_told(handle)}. Wait for it, end it, or write slices of the "
                "images (--slice), which may share a store."
            ) from None
        except OSError:  # a filesystem without locks: as on a remote one, nobody keeps two writers apart
            yield
            return
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(handle)  # the file stays: to remove it would let two have it


def _told(handle: Any) -> str:
    """Who has a lock, as it wrote."""
    return os.pread(handle, 200, 0).decode(errors="replace") or "another process"
