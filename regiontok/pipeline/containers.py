"""Sources of many images in one place: datasets that ``datasets`` saved, Parquet files, and WebDataset tars.

The address of an image is ``FILE#LOCATION``. Listing reads only the headers of tars and Parquet files, and an image is
read from its location without extracting the others.
"""

import math
import posixpath
import tarfile
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

from PIL import Image

from regiontok._require import require
from regiontok.errors import ImageError, RegiontokError
from regiontok.geometry import Size
from regiontok.images import as_rgb, explain_image, is_image_name, read_image, read_size
from regiontok.pipeline.files import open_file, read_stamp
from regiontok.store.shards import check_counts
from regiontok.store.stamps import Stamp
from regiontok.store.storage import is_remote

TARS = (".tar",)
COMPRESSED_TARS = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
PARQUET = (".parquet",)
_CACHED_GROUPS = 2
"""Row groups of a Parquet file in memory: several threads read images in almost the order of the rows."""
_SAMPLE_SIZE = 10
"""Values of a column that are checked before the run."""
_NO_IMAGES = (
    "{address}: column {column} contains {kind}, not images. A row must have one image: bytes, {{bytes, path}}, or an "
    "Image of datasets. Name another column by --column."
)


class Entry(NamedTuple):
    """An image of a source: its address, its key relative to ``root`` unless the address implies it, and its stamp."""

    address: str
    key: str | None = None
    stamp: Stamp = Stamp()


class ImageSource(ABC):
    """Images that the user named together, such as those of a folder.

    Attributes:
        address: The path or address of the source.
        root: The folder that keys are relative to.
    """

    address: str
    root: str

    @abstractmethod
    def __iter__(self) -> Iterator[Entry]: ...


class Container(ImageSource):
    """A file or folder that contains many images and reads them itself."""

    @abstractmethod
    def value(self, location: str) -> Any:
        """Return the stored form of an image: a Pillow image, bytes, or a dict with ``bytes`` or ``path``.

        Raises:
            ImageError: The image cannot be read.
        """

    def image(
        self, address: str, *, bits: int | None = None, admit: Callable[[int], None] | None = None
    ) -> Image.Image:
        """Return an image, upright and in RGB; see `regiontok.read_image` for the arguments.

        Raises:
            ImageError: The image cannot be read.
        """
        value = self._image_or_bytes(address)
        if not isinstance(value, Image.Image):
            return read_image(address, value, bits=bits, admit=admit)
        with _as_image_error(address):  # images that are opened lazily are decoded here
            return as_rgb(value, bits=bits)

    def data(self, address: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            ImageError: It cannot be read.
        """
        value = self._image_or_bytes(address)
        if not isinstance(value, bytes):
            raise ImageError(f"{address}: it must be bytes of a file; got {type(value).__name__}.", "not_an_image")
        return value

    def size(self, address: str) -> tuple[Size, int]:
        """Return the height and width of an image, upright, and its EXIF orientation.

        Raises:
            ImageError: The image cannot be read.
        """
        value = self._image_or_bytes(address)
        if isinstance(value, Image.Image):
            image = as_rgb(value)
            return (image.height, image.width), 1
        return read_size(address, value)

    def _image_or_bytes(self, address: str) -> Any:
        with _as_image_error(address):
            value = self.value(address.rpartition("#")[2])
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
        ImageError: There is no dataset, or no column of images or keys with the given name.
    """

    def __init__(self, folder: str, column: str | None, key_column: str | None) -> None:
        self.root = self.address = folder
        self.key_column = key_column
        features = dict(self._rows.features.items())
        images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
        self.column = _choose_column(folder, column, images, features)
        feature = features[self.column]
        if type(feature).__name__ != "Image":
            is_struct = isinstance(feature, Mapping) and "bytes" in feature
            if "binary" not in str(getattr(feature, "dtype", "")) and not is_struct:
                raise ImageError(_NO_IMAGES.format(address=folder, column=self.column, kind=feature), "not_an_image")
            sample = self._rows.select(range(min(_SAMPLE_SIZE, len(self._rows))))[self.column]
            _check_values(folder, self.column, list(sample), feature)
        if key_column is not None:
            _check_keys(folder, key_column, features, lambda: self._rows[key_column])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_rows"}

    @cached_property
    def _rows(self) -> Any:
        datasets = require("datasets", extra="datasets")
        try:
            rows = datasets.load_from_disk(self.root)
        except Exception as error:  # damaged files raise errors of any class
            raise ImageError(f"{self.root}: the dataset cannot be read: {error}", "damaged") from error
        if not hasattr(rows, "features"):
            raise ImageError(f"{self.root} contains several splits: {', '.join(rows)}. Name the folder of one split.")
        return rows

    def __iter__(self) -> Iterator[Entry]:
        keys = None if self.key_column is None else self._rows[self.key_column]
        for row, number in enumerate(_row_numbers(len(self._rows))):
            yield Entry(f"{self.root}#{row}", number if keys is None else str(keys[row]))

    def value(self, location: str) -> Any:
        """Return the image of a row by its number."""
        return self._rows[int(location)][self.column]


class ParquetImages(Container):
    """Images in a column of a Parquet file: bytes, or ``{bytes, path}`` as ``datasets`` and hubs write them.

    Raises:
        ImageError: The file is not a Parquet file, or has no column of images or keys with the given name.
        MissingDependencyError: pyarrow is not installed.
    """

    def __init__(self, path: str, column: str | None, key_column: str | None) -> None:
        self.address = path
        self.root = posixpath.dirname(path) or "."
        self.key_column = key_column
        self._reset_cache()
        schema = self._file.schema_arrow
        columns = dict(zip(schema.names, schema.types, strict=True))
        self.column = _choose_column(
            path, column, [name for name, kind in columns.items() if _holds_bytes(kind)], columns
        )
        kind = columns[self.column]
        if not _holds_bytes(kind):
            raise ImageError(_NO_IMAGES.format(address=path, column=self.column, kind=kind), "not_an_image")
        self._ends: list[int] = []
        for group in range(self._file.metadata.num_row_groups):
            self._ends.append(self._file.metadata.row_group(group).num_rows + (self._ends[-1] if self._ends else 0))
        if self._ends:
            _check_values(path, self.column, self._read_group(0)[:_SAMPLE_SIZE], kind)
        if key_column is not None:
            _check_keys(path, key_column, columns, self._read_keys)

    def _reset_cache(self) -> None:
        self._lock = threading.Lock()
        self._groups: OrderedDict[int, list[Any]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_file", "_lock", "_groups")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset_cache()

    @cached_property
    def _file(self) -> Any:
        parquet = require("pyarrow.parquet", extra="store", distribution="pyarrow")
        with self._read_errors():
            file = parquet.ParquetFile(open_file(self.address) if is_remote(self.address) else self.address)
            check_counts(file.metadata, read_stamp(self.address).size or 0)
            return file

    def __iter__(self) -> Iterator[Entry]:
        names: Iterable[Any] = _row_numbers(self._ends[-1] if self._ends else 0)
        if self.key_column is not None:
            names = self._read_keys()
        file, stamp = posixpath.basename(self.address), read_stamp(self.address)  # a changed file changes all its rows
        for row, name in enumerate(names):
            yield Entry(f"{self.address}#{row}", f"{file}/{name}", stamp)

    def value(self, location: str) -> Any:
        """Return the image of a row by its number."""
        row = int(location)
        group = next(group for group, end in enumerate(self._ends) if row < end)
        with self._lock:
            if group not in self._groups:
                self._groups[group] = self._read_group(group)
                if len(self._groups) > _CACHED_GROUPS:
                    self._groups.popitem(last=False)
            values = self._groups[group]
        return values[row - (self._ends[group - 1] if group else 0)]

    def _read_group(self, group: int) -> list[Any]:
        with self._read_errors():
            values: list[Any] = self._file.read_row_group(group, [self.column]).column(0).to_pylist()
        return values

    def _read_keys(self) -> list[Any]:
        with self._lock, self._read_errors():
            keys: list[Any] = self._file.read([self.key_column]).column(self.key_column).to_pylist()
        return keys

    @contextmanager
    def _read_errors(self) -> Iterator[None]:
        try:
            yield
        except RegiontokError:
            raise
        except Exception as error:  # remote filesystems and damaged files raise errors of any class
            raise ImageError(f"{self.address}: cannot be read as a Parquet file ({error}).", "damaged") from error


class TarImages(Container):
    """Images or videos in a WebDataset tar: the members with the suffix of one.

    If a tar is cut short or damaged, the images before the damage are read, and the rest of the tar is one failure.

    Args:
        path: Path or address of the tar.
        is_listed: Function of a file name: whether the file is an image, or a video.
    """

    def __init__(self, path: str, is_listed: Callable[[str], bool] = is_image_name) -> None:
        self.address = path
        self._is_listed = is_listed
        self.root = posixpath.dirname(path) or "."

    def __iter__(self) -> Iterator[Entry]:
        file = posixpath.basename(self.address)
        names: set[str] = set()
        last = "its beginning"
        try:
            with open_file(self.address) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # otherwise all members stay in memory
                    name = posixpath.normpath(member.name)
                    if member.isdir() or not self._is_listed(name) or posixpath.basename(name).startswith("._"):
                        continue
                    last = name
                    if name in names:
                        yield Entry(f"{self.address}#!{name} occurs twice", f"{file}/{name}#{member.offset}")
                        continue
                    names.add(name)
                    if not member.isreg():
                        yield Entry(f"{self.address}#!{name} is not a regular file", f"{file}/{name}")
                        continue
                    has_time = math.isfinite(member.mtime) and 0 <= member.mtime < 1 << 40
                    stamp = Stamp(member.size, int(member.mtime * 1_000_000) if has_time else None)
                    yield Entry(f"{self.address}#{member.offset_data}:{member.size}", f"{file}/{name}", stamp)
                stream.seek(archive.offset)
                if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile ends there without an error
                    raise tarfile.ReadError("it ends early or is damaged")
        except Exception as error:  # remote filesystems and damaged files raise errors of any class
            yield Entry(f"{self.address}#!the tar cannot be read after {last} ({error})", file)

    def value(self, location: str) -> Any:
        """Return the bytes of a member by its offset and size."""
        if location.startswith("!"):
            raise ImageError(f"{self.address}: {location[1:]}.", "damaged")
        offset, size = map(int, location.split(":"))
        with open_file(self.address) as stream:
            stream.seek(offset)
            data = stream.read(size)
        if len(data) < size:
            raise ImageError(f"{self.address}: the tar ends within this file.", "damaged")
        return data


@contextmanager
def _as_image_error(address: str) -> Iterator[None]:
    """Raise every error as an `ImageError`: damaged files raise errors of any class."""
    try:
        yield
    except RegiontokError:
        raise
    except Exception as error:
        raise explain_image(address, error) from error


def _choose_column(address: str, column: str | None, images: list[str], columns: Mapping[str, Any]) -> str:
    """Return the name of the image column: ``column``, or the only column that can contain images."""
    if column is None and len(images) == 1:
        return images[0]
    if column is None:
        raise ImageError(f"{address}: name the column of the images by --column. The columns are {', '.join(columns)}.")
    if column not in columns:
        raise ImageError(f"{address}: there is no column {column}. The columns are {', '.join(columns)}.")
    return column


def _check_values(address: str, column: str, values: list[Any], kind: Any) -> None:
    """Reject a column before the run starts if none of its first values is an image.

    Raises:
        ImageError: The column contains values, but no images.
    """
    data = (value.get("bytes") if isinstance(value, Mapping) else value for value in values)
    images = [_is_image(value) for value in data if value is not None]
    if images and not any(images):
        raise ImageError(_NO_IMAGES.format(address=address, column=column, kind=kind), "not_an_image")


def _is_image(data: bytes) -> bool:
    try:
        read_size("", data)
    except ImageError:
        return False
    return True


def _check_keys(address: str, column: str, columns: Mapping[str, Any], read: Callable[[], Iterable[Any]]) -> None:
    """Reject a key column that does not exist or has duplicates."""
    if column not in columns:
        raise ImageError(f"{address}: there is no key column {column}. The columns are {', '.join(columns)}.")
    keys: set[str] = set()
    for key in map(str, read()):
        if key in keys:
            raise ImageError(f"{address}: several rows have {column} {key!r}, but keys must be unique.")
        keys.add(key)


def _holds_bytes(kind: Any) -> bool:
    """Return whether a pyarrow type is binary, or a struct with a binary field ``bytes``."""
    text = str(kind)
    if text.startswith("struct"):
        return "bytes" in [field.name for field in kind]
    return text in ("binary", "large_binary", "binary_view")


def _row_numbers(count: int) -> Iterator[str]:
    """Return the row numbers, padded with zeros so that they sort as text."""
    width = len(str(max(0, count - 1)))
    return (f"{row:0{width}d}" for row in range(count))
