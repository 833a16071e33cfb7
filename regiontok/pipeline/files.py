"""Read files and folders by path or address: on a local disk, or on a remote filesystem of fsspec."""

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

from regiontok.errors import ImageError
from regiontok.images import explain_image
from regiontok.store.stamps import Stamp, stamp_of, stamp_of_file
from regiontok.store.storage import Address, filesystem, is_remote


def absolute(address: Address) -> str:
    """Return an absolute path or address without ``..``, ``file://`` and trailing slashes; links are not resolved."""
    text = os.fspath(address)
    return text.rstrip("/") if is_remote(text) else os.path.abspath(text.removeprefix("file://"))  # noqa: PTH100


def open_file(address: str) -> Any:
    """Open a file to read bytes from it."""
    if not is_remote(address):
        return open(address, "rb")  # noqa: PTH123
    files, path = filesystem(address)
    return files.open(path, "rb")


def read_remote(address: str) -> bytes:
    """Return the content of a remote file.

    Raises:
        ImageError: The file cannot be read.
    """
    files, path = filesystem(address)
    with _remote_errors(address):
        data: bytes = files.cat_file(path)
        return data


def read_stamp(address: str) -> Stamp:
    """Return the size and modification time of a file."""
    if not is_remote(address):
        return stamp_of_file(address)
    files, path = filesystem(address)
    return stamp_of(files.info(path))


def is_folder(address: str) -> bool:
    """Return whether there is a folder at an address.

    Raises:
        ImageError: A remote filesystem does not answer.
    """
    if not is_remote(address):
        return os.path.isdir(address)  # noqa: PTH112  Path.is_dir raises an error for names that are too long
    files, path = filesystem(address)
    with _remote_errors(address):
        return bool(files.isdir(path))


def list_folder(folder: str) -> list[tuple[str, bool, Stamp]]:
    """Return the entries of a folder, sorted by name: the name, whether the entry is a folder, and its stamp if known.

    Links to folders are not folders, so that cycles of links are harmless.

    Raises:
        OSError: A local folder cannot be read.
        ImageError: A remote folder cannot be read.
    """
    if not is_remote(folder):
        unknown = Stamp()  # a system call per image would be needed to know it
        with os.scandir(folder) as entries:
            return sorted((entry.name, entry.is_dir(follow_symlinks=False), unknown) for entry in entries)
    files, path = filesystem(folder)
    with _remote_errors(folder):
        infos = files.ls(path, detail=True)
    names = (info["name"].rstrip("/").rpartition("/")[2] for info in infos)
    listed = [(name, info["type"] == "directory", stamp_of(info)) for name, info in zip(names, infos, strict=True)]
    return sorted(listed, key=itemgetter(0))


def is_pattern(address: str) -> bool:
    """Return whether an address has wildcards and is not the name of an existing local file."""
    return glob.has_magic(address) and (is_remote(address) or not os.path.exists(address))  # noqa: PTH110


def find_files(pattern: str) -> list[str]:
    """Return the paths or addresses that match a pattern, sorted."""
    if not is_remote(pattern):
        return sorted(glob.iglob(pattern, recursive=True))  # noqa: PTH207
    files, path = filesystem(pattern)
    scheme = pattern.partition("://")[0]
    return [f"{scheme}://{match.lstrip('/')}" for match in sorted(files.glob(path))]


@contextmanager
def _remote_errors(address: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise explain_image(address, error) from error
    except Exception as error:  # remote filesystems raise errors of any class
        raise ImageError(f"{address}: cannot be read: {error}") from error
