"""Locks of local stores, so that two processes never write the same rows.

A writer of all images excludes all other writers. Writers of slices share the store, and each locks its writer number.
The operating system releases a lock when its process ends, so a killed writer leaves no stale lock. Without file locks,
as on Windows and on some network filesystems, a warning says that other writers are not detected.
"""

import contextlib
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

from regiontok.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def writer_lock(folder: Path, writer: int, *, shared: bool) -> Iterator[None]:
    """Lock a local store for one writer while the block runs.

    Args:
        folder: The folder of the store.
        writer: The number of the writer, which is part of the names of its shards.
        shared: Whether other writer numbers may write at the same time.

    Raises:
        OutputError: Another process, named in the message, is writing; or the folder is not writable.
    """
    if fcntl is None:
        _warn_without_locks(folder)
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(_lock(folder / ".lock", exclusive=not shared))
        stack.enter_context(_lock(folder / f".lock-{writer:05d}", exclusive=True))
        yield


@contextlib.contextmanager
def _lock(path: Path, *, exclusive: bool) -> Iterator[None]:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(f"{path.parent} must be a writable folder ({error.strerror}).") from error
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
            raise OutputError(
                f"{path.parent} is being written by {holder}. Wait for it, end it, or write slices of the images "
                "(--slice), which may share a store."
            ) from None
        except OSError:  # a filesystem without locks
            _warn_without_locks(path.parent)
            yield
            return
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(handle)  # the file is not removed: two processes could then lock different files of this name


def _warn_without_locks(folder: Path) -> None:
    warnings.warn(
        f"{folder} cannot be locked on this system: make sure that no other process writes to it.", stacklevel=2
    )
