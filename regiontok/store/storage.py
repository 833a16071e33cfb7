"""Folders of stores: local, or on any filesystem of fsspec, such as ``s3://bucket/masks``.

Every file is complete before it gets its name: a local file is renamed, and a remote file is uploaded in one operation.
Remote filesystems have no locks, so two writers of the same remote store are not detected.
"""

import os
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
import fsspec.asyn

from regiontok._files import error_reason, make_folder
from regiontok.errors import DataError, MissingDependencyError, OutputError, StoreError

Address = str | os.PathLike[str]
"""A local path, or a remote address with ``://``."""


def is_remote(address: Address) -> bool:
    """Return whether an address is remote, so that fsspec is needed to read it.

    Example:
        >>> is_remote("s3://bucket/masks"), is_remote("masks"), is_remote("file:///data/masks")
        (True, False, False)
    """
    text = os.fspath(address)
    return "://" in text and not text.startswith("file://")


def filesystem(address: Address, kind: type[DataError] = DataError) -> tuple[Any, str]:
    """Return the fsspec filesystem of a remote address, and the path in it.

    Args:
        address: The remote address.
        kind: The class of the error.

    Raises:
        DataError: There is no such filesystem; raised as ``kind``.
        MissingDependencyError: The package of the filesystem is not installed.
    """
    try:
        files, path = fsspec.core.url_to_fs(os.fspath(address))
    except ImportError as error:
        raise MissingDependencyError(f"{address} needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise kind(f"{address} cannot be reached: {error}.") from error
    return files, path


class FileTakenError(OutputError):
    """Another writer has already written a file of this name."""


class Storage(ABC):
    """A local or remote folder of files, which may not exist yet.

    Attributes:
        address: The folder, as shown in messages.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._filesystem, self._folder = self._connect()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.address,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    @staticmethod
    def of(address: Address) -> "Storage":
        """Return the storage at an address."""
        text = os.fspath(address)
        return _Remote(text.rstrip("/")) if is_remote(text) else _Local(str(Path(text.removeprefix("file://"))))

    def names(self) -> dict[str, int]:
        """Return the sizes in bytes of all visible files, sorted by name; empty if the folder does not exist.

        Raises:
            StoreError: The folder cannot be read.
        """
        try:
            with self._read_errors():
                sizes = self._sizes()
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return {name: size for name, size in sorted(sizes.items()) if not name.startswith(".")}

    @abstractmethod
    def open(self, name: str) -> Any:
        """Return a file as an argument for pyarrow."""

    @abstractmethod
    def make(self) -> None:
        """Create the folder unless it exists, and check that it is writable.

        Raises:
            OutputError: It cannot be created or is not writable.
        """

    def is_file(self) -> bool:
        """Return whether the address is a file instead of a folder."""
        with self._read_errors():
            return bool(self._files().isfile(self._folder))

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            FileNotFoundError, NotADirectoryError: The file does not exist.
            StoreError: It cannot be read.
        """
        with self._read_errors():
            data: bytes = self._files().cat_file(self._path(name))
            return data

    def size(self, name: str) -> int:
        """Return the size of a file in bytes; errors are those of `read`."""
        with self._read_errors():
            return int(self._files().size(self._path(name)))

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        with suppress(FileNotFoundError):
            self._files().rm_file(self._path(name))

    def quarantine(self, name: str) -> str:
        """Rename a damaged file to ``_NAME.damaged``, so that it is no longer a shard, and return the new name."""
        new_name = f"_{name.removeprefix('_')}.damaged"
        with suppress(FileNotFoundError):
            self._files().mv(self._path(name), self._path(new_name))
        return new_name

    def clean(self, writer: int) -> None:  # noqa: B027  temporary files of remote storages are not in the folder
        """Remove the temporary files of a writer that was killed."""

    @contextmanager
    def temporary(self, label: str) -> Iterator[Path]:
        """Yield a local path for a file that `commit` then moves to the folder; without a commit, it is removed.

        A label that starts like a shard of the writer allows `clean` to find the file after the process was killed.
        """
        temporary = self._temporary(label)
        try:
            yield temporary
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def commit(self, temporary: Path, name: str) -> None:
        """Move a complete temporary file to its name in the folder.

        Raises:
            FileTakenError: Another writer has written a file of this name. Remote files are overwritten instead.
            OutputError: The file cannot be written.
        """
        try:
            self._commit(temporary, name)
        except FileExistsError as error:
            raise FileTakenError(f"{self.address}/{name} was already written by another writer.") from error
        except Exception as error:  # clients of remote filesystems raise errors of any class
            raise OutputError(f"{self.address}/{name} cannot be written ({error_reason(error)}).") from error

    def write(self, name: str, data: bytes, *, writer: int) -> None:
        """Write a file as one of the writers; errors are those of `commit`."""
        with self.temporary(f"part-{writer:05d}-{name}") as temporary:
            try:
                temporary.write_bytes(data)
            except OSError as error:
                raise OutputError(f"{self.address}/{name} cannot be written ({error_reason(error)}).") from error
            self.commit(temporary, name)

    @abstractmethod
    def _connect(self) -> tuple[Any, str]:
        """Return the filesystem of fsspec, and the path of the folder in it."""

    @abstractmethod
    def _sizes(self) -> dict[str, int]: ...

    @abstractmethod
    def _temporary(self, label: str) -> Path: ...

    @abstractmethod
    def _commit(self, temporary: Path, name: str) -> None: ...

    def _files(self) -> Any:
        return self._filesystem

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    @contextmanager
    def _read_errors(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            raise
        except Exception as error:  # clients of remote filesystems raise errors of any class
            raise StoreError(f"{self.address} cannot be read ({error_reason(error)}).") from error


class _Local(Storage):
    def _connect(self) -> tuple[Any, str]:
        return fsspec.filesystem("file"), os.path.abspath(self.address)  # noqa: PTH100  a leading ~ is not expanded

    def _sizes(self) -> dict[str, int]:
        with os.scandir(self._folder) as scan:
            entries = list(scan)
        sizes = {}
        for entry in entries:
            try:
                if entry.is_file():
                    sizes[entry.name] = entry.stat().st_size
                elif entry.is_symlink() and not entry.is_dir():
                    sizes[entry.name] = 0  # a broken link, which is reported when it is read
            except FileNotFoundError:  # removed since the folder was listed
                pass
            except OSError:  # a link to itself, or into a folder that is not readable
                sizes[entry.name] = 0
        return sizes

    def open(self, name: str) -> Any:
        return self._path(name)

    def make(self) -> None:
        make_folder(self.address)

    def clean(self, writer: int) -> None:
        for temporary in Path(self._folder).glob(f".*-{writer:05d}-*.tmp"):
            temporary.unlink(missing_ok=True)

    def _temporary(self, label: str) -> Path:
        return Path(self._path(f".{label}.{uuid.uuid4().hex[:8]}.tmp"))

    def _commit(self, temporary: Path, name: str) -> None:
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # after a power failure, a name without its data would be a damaged shard
        try:
            os.link(temporary, self._path(name))  # unlike a rename, it never replaces an existing file
        except FileExistsError:
            raise
        except OSError:  # a filesystem without hard links
            temporary.replace(self._path(name))


class _Remote(Storage):
    def _connect(self) -> tuple[Any, str]:
        self._process = os.getpid()
        files, folder = filesystem(self.address, StoreError)
        return files, folder.rstrip("/")

    def _files(self) -> Any:
        if self._process != os.getpid():  # connections and threads do not survive a fork
            self._filesystem.clear_instance_cache()
            fsspec.asyn.reset_lock()
            self._filesystem, self._folder = self._connect()
        return self._filesystem

    def _sizes(self) -> dict[str, int]:
        files = self._files()
        files.invalidate_cache()
        entries = files.ls(self._folder, detail=True)
        return {
            entry["name"].rpartition("/")[2]: int(entry["size"] or 0) for entry in entries if entry["type"] == "file"
        }

    def open(self, name: str) -> Any:
        with self._read_errors():
            return self._files().open(self._path(name), "rb")

    def make(self) -> None:
        files, folder = self._files(), self._folder
        probe = self._path(f".probe-{uuid.uuid4().hex[:8]}")  # only a write shows whether a bucket is writable
        try:
            try:
                files.pipe_file(probe, b"")
            except FileNotFoundError:
                if not files.exists("/".join(folder.split("/")[: 2 if folder.startswith("/") else 1])):
                    raise  # makedirs would create a bucket of a mistyped name
                files.makedirs(folder, exist_ok=True)
                files.pipe_file(probe, b"")
            files.rm_file(probe)
        except Exception as error:  # clients of remote filesystems raise errors of any class
            raise OutputError(f"{self.address} must be a writable folder ({error_reason(error)}).") from error

    def _temporary(self, label: str) -> Path:
        handle, name = tempfile.mkstemp(prefix="regiontok-", suffix=".tmp")
        os.close(handle)
        return Path(name)

    def _commit(self, temporary: Path, name: str) -> None:
        self._files().put_file(str(temporary), self._path(name))
