"""Files that hold many images: folders that ``datasets`` saved, Parquet files, and WebDataset tars.

An image in one of them has the address ``FILE#PLACE``. Tars and Parquet files are read as streams: listing reads their
headers alone, and an image is read from its place.
"""

import io
import math
import posixpath
import tarfile
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from regiontok._require import require
from regiontok.errors import ImageError, RegiontokError
from regiontok.geometry import Size
from regiontok.images import as_rgb, explain_image, is_image_name, read_image, read_size
from regiontok.store.places import filesystem, is_remote
from regiontok.store.shards import check_counts
from regiontok.store.stamps import Stamp, stamp_of, stamp_of_file

TARS = (".tar",)
COMPRESSED_TARS = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
PARQUET = (".parquet",)
_KEPT_GROUPS = 2
"""Row groups of a Parquet file that are kept in memory: images are read in their order, by several threads."""


_SAMPLE = 10
"""Values of a column that are looked at before the run."""
_NO_IMAGES = (
    "{named}: column {column} holds no images but {kind}. A row must have one image: bytes, {{bytes, path}}, or an "
    "Image of datasets. Name another column by --column."
)


class Entry(NamedTuple):
    """An image of a source: its address, its key below ``root`` if the address does not give it, and its stamp."""

    address: str
    key: str | None = None
    stamp: Stamp = Stamp()


class Container(ABC):
    """A file or folder with many images.

    Attributes:
        named: The path or address of it.
        root: The folder that keys are below.
    """

    named: str
    root: str

    @abstractmethod
    def __iter__(self) -> Iterator[Entry]: ...

    @abstractmethod
    def value(self, place: str) -> Any:
        """Return what is stored of an image: a Pillow image, bytes, or a dict with ``bytes`` or ``path``.

        Raises:
            ImageError: It cannot be read.
        """

    def image(
        self, address: str, *, bits: int | None = None, admit: Callable[[int], None] | None = None
    ) -> Image.Image:
        """Return an image's pixels, upright and RGB; see `regiontok.read_image` for the arguments.

        Raises:
            ImageError: It cannot be read.
        """
        value = self._checked(address)
        if isinstance(value, Image.Image):
            try:
                return as_rgb(value, bits=bits)
            except RegiontokError:
                raise
            except Exception as error:  # a file that is opened lazily is decoded only here
                raise explain_image(address, error) from error
        return read_image(address, value, bits=bits, admit=admit)

    def size(self, address: str) -> tuple[Size, int]:
        """Return an image's height and width, upright, and its EXIF orientation.

        Raises:
            ImageError: It cannot be read.
        """
        value = self._checked(address)
        if isinstance(value, Image.Image):
            image = as_rgb(value)
            return (image.height, image.width), 1
        return read_size(address, value)

    def _checked(self, address: str) -> Any:
        try:
            value = self.value(address.rpartition("#")[2])
        except RegiontokError:
            raise
        except Exception as error:  # damaged files raise errors of all kinds
            raise explain_image(address, error) from error
        if isinstance(value, Mapping):
            path = value.get("path")
            value = value.get("bytes")
            if value is None and path is not None:
                raise ImageError(f"{address}: the row has the path {path!r} and no bytes of an image.", "missing")
        if value is None:
            raise ImageError(f"{address}: the row has no image.", "missing")
        return value


class DatasetFolder(Container):
    """Images in a column of a dataset that ``datasets`` saved.

    Raises:
        ImageError: No dataset, or no such column of images or of keys.
    """

    def __init__(self, folder: str, column: str | None, key_column: str | None) -> None:
        self.root = self.named = folder
        self.key_column = key_column
        features = dict(self._rows.features.items())
        images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
        self.column = _choose_column(folder, column, images, features)
        feature = features[self.column]
        if type(feature).__name__ != "Image":
            if "binary" not in str(getattr(feature, "dtype", "")) and not _is_struct(feature):
                raise ImageError(_NO_IMAGES.format(named=folder, column=self.column, kind=feature), "not_an_image")
            first = self._rows.select(range(min(_SAMPLE, len(self._rows))))[self.column]
            _check_values(folder, self.column, list(first), feature)
        if key_column is not None:
            _check_keys(folder, key_column, features, lambda: self._rows[key_column])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_rows"}

    @cached_property
    def _rows(self) -> Any:
        datasets = require("datasets", extra="datasets")
        try:
            rows = datasets.load_from_disk(self.root)
        except Exception as error:  # of all kinds where files are damaged
            raise ImageError(f"{self.root}: the dataset cannot be read: {error}", "damaged") from error
        if not hasattr(rows, "features"):
            raise ImageError(f"{self.root} holds several splits: {', '.join(rows)}. Name the folder of one.")
        return rows

    def __iter__(self) -> Iterator[Entry]:
        keys = None if self.key_column is None else self._rows[self.key_column]
        for number, name in enumerate(_numbered(len(self._rows))):
            yield Entry(f"{self.root}#{number}", name if keys is None else str(keys[number]))

    def value(self, place: str) -> Any:
        """Return what the row of a number has in the column of images."""
        return self._rows[int(place)][self.column]


class ParquetImages(Container):
    """Images in a column of a Parquet file: bytes, or ``{bytes, path}`` as ``datasets`` and hubs write them.

    Raises:
        ImageError: No Parquet file, or no such column of images or of keys.
        MissingDependencyError: pyarrow is not installed.
    """

    def __init__(self, path: str, column: str | None, key_column: str | None) -> None:
        self.named = path
        self.root = posixpath.dirname(path) or "."
        self.key_column = key_column
        self._open_state()
        schema = self._file.schema_arrow
        columns = dict(zip(schema.names, schema.types, strict=True))
        self.column = _choose_column(
            path, column, [name for name, kind in columns.items() if _holds_bytes(kind)], columns
        )
        kind = columns[self.column]
        if not _holds_bytes(kind):
            raise ImageError(_NO_IMAGES.format(named=path, column=self.column, kind=kind), "not_an_image")
        self._ends: list[int] = []
        for group in range(self._file.metadata.num_row_groups):
            self._ends.append(self._file.metadata.row_group(group).num_rows + (self._ends[-1] if self._ends else 0))
        if self._ends:
            _check_values(path, self.column, self._column(0)[:_SAMPLE], kind)
        if key_column is not None:
            _check_keys(path, key_column, columns, self._keys)

    def _open_state(self) -> None:
        self._alone = threading.Lock()
        self._groups: OrderedDict[int, list[Any]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_file", "_alone", "_groups")
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open_state()

    @cached_property
    def _file(self) -> Any:
        parquet = require("pyarrow.parquet", extra="store", distribution="pyarrow")
        with self._reading():
            if is_remote(self.named):
                files, path = filesystem(self.named)
                file, size = parquet.ParquetFile(files.open(path, "rb")), int(files.size(path))
            else:
                file, size = parquet.ParquetFile(self.named), Path(self.named).stat().st_size
            check_counts(file.metadata, size)
            return file

    def __iter__(self) -> Iterator[Entry]:
        count = self._ends[-1] if self._ends else 0
        names: Iterable[Any] = _numbered(count)
        if self.key_column is not None:
            names = self._keys()
        file, stamp = posixpath.basename(self.named), self._stamp()
        for number, name in enumerate(names):
            yield Entry(f"{self.named}#{number}", f"{file}/{name}", stamp)

    def _stamp(self) -> Stamp:
        """The stamp of the file: a row counts as changed if the file has."""
        if is_remote(self.named):
            files, path = filesystem(self.named)
            return stamp_of(files.info(path))
        return stamp_of_file(self.named)

    def value(self, place: str) -> Any:
        """Return what the row of a number has in the column of images."""
        row = int(place)
        group = next(number for number, end in enumerate(self._ends) if row < end)
        with self._alone:
            if group not in self._groups:
                self._groups[group] = self._column(group)
                if len(self._groups) > _KEPT_GROUPS:
                    self._groups.popitem(last=False)
            values = self._groups[group]
        return values[row - (self._ends[group - 1] if group else 0)]

    def _column(self, group: int) -> list[Any]:
        with self._reading():
            values: list[Any] = self._file.read_row_group(group, [self.column]).column(0).to_pylist()
        return values

    def _keys(self) -> list[Any]:
        with self._alone, self._reading():
            keys: list[Any] = self._file.read([self.key_column]).column(self.key_column).to_pylist()
        return keys

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Raise the errors of damaged files as ours."""
        try:
            yield
        except RegiontokError:
            raise
        except Exception as error:  # a client's errors, and those of damaged files, are of all kinds
            raise ImageError(f"{self.named}: no Parquet file that can be read ({error}).", "damaged") from error


class TarImages(Container):
    """Images in a WebDataset tar, each a member with the suffix of an image.

    A tar that ends early, or is damaged from somewhere on, loses its remaining images alone: they are one failure.
    """

    def __init__(self, path: str) -> None:
        self.named = path
        self.root = posixpath.dirname(path) or "."

    def __iter__(self) -> Iterator[Entry]:
        file = posixpath.basename(self.named)
        seen: set[str] = set()
        last = "its beginning"
        try:
            with self._opened() as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # or it keeps those of the whole file
                    name = posixpath.normpath(member.name)
                    if member.isdir() or not is_image_name(name) or posixpath.basename(name).startswith("._"):
                        continue
                    last = name
                    if name in seen:
                        yield Entry(f"{self.named}#!it comes twice in the tar", f"{file}/{name}#{member.offset}")
                        continue
                    seen.add(name)
                    if not member.isreg():
                        yield Entry(f"{self.named}#!{name} is no regular file", f"{file}/{name}")
                        continue
                    usable = math.isfinite(member.mtime) and 0 <= member.mtime < 1 << 40
                    stamp = Stamp(member.size, int(member.mtime * 1_000_000) if usable else None)
                    yield Entry(f"{self.named}#{member.offset_data}:{member.size}", f"{file}/{name}", stamp)
                stream.seek(archive.offset)
                if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile stops there without an error
                    raise tarfile.ReadError("it ends early or is damaged")
        except Exception as error:  # a client's errors, and those of damaged files, are of all kinds
            yield Entry(f"{self.named}#!the tar cannot be read after {last} ({error})", file)

    def value(self, place: str) -> Any:
        """Return the bytes of a member."""
        if place.startswith("!"):
            raise ImageError(f"{self.named}: {place[1:]}.", "damaged")
        offset, size = map(int, place.split(":"))
        with self._opened() as stream:
            stream.seek(offset)
            data = stream.read(size)
        if len(data) < size:
            raise ImageError(f"{self.named}: the tar ends within this image.", "damaged")
        return data

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        if is_remote(self.named):
            files, path = filesystem(self.named)
            with files.open(path, "rb") as stream:
                yield stream
        else:
            with io.open(self.named, "rb") as stream:  # noqa: UP020  `open` is this function's own word
                yield stream


def _is_struct(feature: Any) -> bool:
    """Return whether a column of datasets has ``{bytes, path}``."""
    return isinstance(feature, Mapping) and "bytes" in feature


def _choose_column(named: str, column: str | None, images: list[str], columns: Mapping[str, Any]) -> str:
    """Return the column of images: the one that is given, or the only one that can hold them."""
    if column is None and len(images) == 1:
        return images[0]
    if column is None:
        raise ImageError(f"{named}: say which column has the images (--column), one of {', '.join(columns)}.")
    if column not in columns:
        raise ImageError(f"{named}: there is no column {column}, but {', '.join(columns)}.")
    return column


def _check_values(named: str, column: str, values: list[Any], kind: Any) -> None:
    """Reject a column before the run starts if none of its first values is an image.

    Raises:
        ImageError: Such a column.
    """
    data = [value.get("bytes") if isinstance(value, Mapping) else value for value in values]
    known = [value for value in data if value is not None]
    if known and not any(map(_is_image, known)):
        raise ImageError(_NO_IMAGES.format(named=named, column=column, kind=kind), "not_an_image")


def _is_image(data: bytes) -> bool:
    try:
        read_size("", data)
    except ImageError:
        return False
    return True


def _check_keys(named: str, column: str, columns: Mapping[str, Any], read: Any) -> None:
    """Reject a column of keys that is not there, or has a value twice."""
    if column not in columns:
        raise ImageError(f"{named}: there is no column {column} of keys, but {', '.join(columns)}.")
    seen: set[str] = set()
    for value in map(str, read()):
        if value in seen:
            raise ImageError(f"{named}: several rows have {column} {value!r}, which is no key then.")
        seen.add(value)


def _holds_bytes(kind: Any) -> bool:
    """Return whether a type of pyarrow is binary, or a struct with a binary field ``bytes``."""
    text = str(kind)
    if text.startswith("struct"):
        return "bytes" in [field.name for field in kind]
    return text in ("binary", "large_binary", "binary_view")


def _numbered(count: int) -> Iterator[str]:
    """Return numbers of rows as texts of one length, so that they are in order when they are sorted."""
    width = len(str(max(0, count - 1)))
    return (f"{number:0{width}d}" for number in range(count))
