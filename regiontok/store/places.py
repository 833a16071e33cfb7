"""Where a store lies: a folder on a disk, or on any filesystem that fsspec knows, such as ``s3://bucket/masks``.

Only whole files are written, each under its own name: on a disk beside and renamed, elsewhere by one put. A remote
filesystem has no locks, so that two writers of one store there are not told from each other.
"""

import glob
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

from regiontok.errors import MissingDependencyError, OutputError, StoreError

Address = str | os.PathLike[str]
"""A path, or an address with ``://``."""


def is_remote(address: Address) -> bool:
    """Whether an address is fsspec's business, and not a path on this machine.

    Example:
        >>> is_remote("s3://bucket/masks"), is_remote("masks"), is_remote("file:///data/masks")
        (True, False, False)
    """
    text = os.fspath(address)
    return "://" in text and not text.startswith("file://")


def filesystem(address: Address) -> tuple[Any, str]:
    """The filesystem of a remote address, and the path there.

    Raises:
        StoreError: No filesystem of that name.
        MissingDependencyError: The package of that filesystem is not installed.
    """
    try:
        found, path = fsspec.core.url_to_fs(os.fspath(address))
    except ImportError as error:
        raise MissingDependencyError(f"{address} needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise StoreError(f"{address} cannot be reached: {error}.") from error
    return found, path


class TakenError(OutputError):
    """A name that a file has already."""


class Place(ABC):
    """A folder that may not be there yet."""

    address: str

    @staticmethod
    def of(address: Address) -> "Place":
        """The place of an address."""
        text = os.fspath(address)
        return _Remote(text) if is_remote(text) else _Local(Path(text.removeprefix("file://")))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    @abstractmethod
    def names(self) -> dict[str, int]:
        """Files and their bytes, by name and sorted, but for hidden ones; none where there is no such folder."""

    @abstractmethod
    def is_file(self) -> bool:
        """Whether there is a file in the folder's place."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            OSError: It is not there, or cannot be read.
        """

    @abstractmethod
    def open(self, name: str) -> Any:
        """What pyarrow reads a file from."""

    @abstractmethod
    def size(self, name: str) -> int:
        """A file's bytes."""

    @abstractmethod
    def make(self) -> None:
        """Make the folder, or see that files can be written there.

        Raises:
            OutputError: They cannot.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file."""

    @abstractmethod
    def set_aside(self, name: str) -> None:
        """Give a damaged file a name by which nobody takes it for a shard."""

    def clean(self, label: str) -> None:  # noqa: B027  a remote place keeps what is not finished on this machine
        """Remove what a dead writer left of files whose names begin so."""

    @contextmanager
    def temporary(self, label: str) -> Iterator[Path]:
        """A path on this machine to write a file at, which `take` gives its name; removed where that is not done."""
        temporary = self._temporary(label)
        try:
            yield temporary
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def take(self, temporary: Path, name: str) -> None:
        """Give a file that is whole its name in the folder.

        Raises:
            OutputError: It cannot be written.
        """
        try:
            self._take(temporary, name)
        except FileExistsError as error:
            raise TakenError(f"{self.address}/{name} is there already, by another writer.") from error
        except Exception as error:  # a client's errors are of all kinds
            why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
            raise OutputError(f"{self.address}/{name} cannot be written ({why}).") from error

    def write(self, name: str, data: bytes, *, label: str | None = None) -> None:
        """Write a file; errors are those of `take`. Until it is whole its name begins with the label, for `clean`."""
        with self.temporary(label or name) as temporary:
            try:
                temporary.write_bytes(data)
            except OSError as error:
                raise OutputError(f"{self.address}/{name} cannot be written ({error.strerror}).") from error
            self.take(temporary, name)

    @abstractmethod
    def _temporary(self, label: str) -> Path: ...

    @abstractmethod
    def _take(self, temporary: Path, name: str) -> None: ...


class _Local(Place):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = str(folder)

    def names(self) -> dict[str, int]:
        try:
            with os.scandir(self.folder) as entries:
                found = sorted((entry for entry in entries if not entry.name.startswith(".")), key=_name)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise StoreError(f"{self.address} cannot be read ({error.strerror}).") from error
        sizes = {}
        for entry in found:
            try:
                if entry.is_file():
                    sizes[entry.name] = entry.stat().st_size
                elif entry.is_symlink() and not entry.is_dir():
                    sizes[entry.name] = 0  # it leads nowhere, and reading it says so
            except FileNotFoundError:  # removed since the folder was listed
                pass
            except OSError:  # a link to itself, or to where nobody may read
                sizes[entry.name] = 0
        return sizes

    def is_file(self) -> bool:
        return self.folder.exists() and not self.folder.is_dir()

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def open(self, name: str) -> Any:
        return str(self.folder / name)

    def size(self, name: str) -> int:
        return (self.folder / name).stat().st_size

    def make(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.address} must be a folder that can be made ({error.strerror}).") from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise OutputError(f"{self.address} must be a folder that can be written to.")

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def _temporary(self, label: str) -> Path:
        return self.folder / f".{label}.{uuid.uuid4().hex[:8]}.tmp"

    def _take(self, temporary: Path, name: str) -> None:
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # a name must not outlive a power cut without its bytes
        try:
            os.link(temporary, self.folder / name)  # never over a file that is there
        except FileExistsError:
            raise
        except OSError:  # a filesystem without links
            temporary.replace(self.folder / name)

    def clean(self, label: str) -> None:
        for left in self.folder.glob(f".{glob.escape(label)}*.tmp"):
            left.unlink(missing_ok=True)

    def set_aside(self, name: str) -> None:
        with suppress(FileNotFoundError):
            (self.folder / name).rename(self.folder / f"{name}.damaged")


class _Remote(Place):
    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._filesystem, self._path = filesystem(self.address)
        self._process = os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Remote, (self.address,)

    def _reach(self) -> tuple[Any, str]:
        """The filesystem; anew in a forked process, where its connections and threads are not."""
        if self._process != os.getpid():
            self._filesystem.clear_instance_cache()
            fsspec.asyn.reset_lock()
            self._filesystem, self._path = filesystem(self.address)
            self._process = os.getpid()
        return self._filesystem, self._path.rstrip("/")

    def names(self) -> dict[str, int]:
        files, folder = self._reach()
        try:
            files.invalidate_cache()
            found = files.ls(folder, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:  # a client's errors are of all kinds
            raise StoreError(f"{self.address} cannot be read: {error}.") from error
        sizes = {one["name"].rpartition("/")[2]: int(one["size"] or 0) for one in found if one["type"] == "file"}
        return {name: size for name, size in sorted(sizes.items()) if not name.startswith(".")}

    def is_file(self) -> bool:
        files, folder = self._reach()
        with self._told():
            return bool(files.isfile(folder))

    def read(self, name: str) -> bytes:
        files, folder = self._reach()
        with self._told():
            data: bytes = files.cat_file(f"{folder}/{name}")
            return data

    def open(self, name: str) -> Any:
        files, folder = self._reach()
        with self._told():
            return files.open(f"{folder}/{name}", "rb")

    def size(self, name: str) -> int:
        files, folder = self._reach()
        with self._told():
            return int(files.size(f"{folder}/{name}"))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of a client, which are of all kinds, as ours."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            raise StoreError(f"{self.address} cannot be read: {error}.") from error

    def make(self) -> None:
        files, folder = self._reach()
        probe = f"{folder}/.probe-{uuid.uuid4().hex[:8]}"  # a bucket's rights show only when it is written to
        try:
            try:
                files.pipe_file(probe, b"")
            except FileNotFoundError:
                if not files.exists("/".join(folder.split("/")[: 2 if folder.startswith("/") else 1])):
                    raise  # no bucket of that name, and a mistyped one is not to be made
                files.makedirs(folder, exist_ok=True)
                files.pipe_file(probe, b"")
            files.rm_file(probe)
        except Exception as error:
            raise OutputError(f"{self.address} must be a place that can be written to ({error}).") from error

    def remove(self, name: str) -> None:
        files, folder = self._reach()
        with suppress(FileNotFoundError):
            files.rm_file(f"{folder}/{name}")

    def set_aside(self, name: str) -> None:
        files, folder = self._reach()
        with suppress(FileNotFoundError):
            files.mv(f"{folder}/{name}", f"{folder}/{name}.damaged")

    def _temporary(self, label: str) -> Path:
        handle, name = tempfile.mkstemp(prefix="regiontok-", suffix=".tmp")
        os.close(handle)
        return Path(name)

    def _take(self, temporary: Path, name: str) -> None:
        files, folder = self._reach()
        files.put_file(str(temporary), f"{folder}/{name}")


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name
