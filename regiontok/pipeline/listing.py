"""Images to take: of folders, patterns, lists, LLaVA's data and datasets, on a disk or elsewhere, one after another.

Folders are listed as they are needed, one at a time and by name, so that a million images cost the memory of the names
in one folder. A list is read whole, and its names are checked before the first image.
"""

import glob
import json
import os
import posixpath
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from regiontok._files import split_lines
from regiontok.errors import ImageError, ValueRangeError
from regiontok.geometry import Size
from regiontok.images import explain_image, is_image_name, read_image, read_size
from regiontok.pipeline.containers import (
    COMPRESSED_TARS,
    PARQUET,
    TARS,
    Container,
    DatasetFolder,
    Entry,
    ParquetImages,
    TarImages,
)
from regiontok.pipeline.roots import Roots
from regiontok.store.places import filesystem, is_remote
from regiontok.store.stamps import Stamp, stamp_of, stamp_of_file

LISTS = (".txt", ".json", ".jsonl")
"""Files that list images."""


class ListedImage(NamedTuple):
    """An image: its key, the path or address it is read from, and the stamp of its file as far as a listing has it."""

    key: str
    address: str
    stamp: Stamp = Stamp()
    inside: str = ""

    @property
    def path(self) -> str:
        """The path by which annotations and stores of masks know it; within a tar, say, its path below the tar."""
        return self.inside or self.address


class Reader:
    """Reads images, wherever they are.

    Args:
        containers: Files that hold many images.
        bits: Of greyscale images of 16 bits; see `regiontok.read_image`.
    """

    def __init__(self, containers: Iterable[Container] = (), *, bits: int | None = None) -> None:
        self.bits = bits
        self._containers = {container.named: container for container in containers}

    def _container(self, address: str) -> Container | None:
        return self._containers.get(address.rpartition("#")[0]) if self._containers else None

    def read(self, image: ListedImage, *, admit: Callable[[int], None] | None = None) -> Image.Image:
        """Return an image's pixels, upright and RGB; ``admit`` is called with their number before they are decoded.

        Raises:
            ImageError: It cannot be read; see `regiontok.read_image`.
        """
        container = self._container(image.address)
        if container is not None:
            return container.image(image.address, bits=self.bits, admit=admit)
        data = read_bytes(image.address) if is_remote(image.address) else None
        return read_image(image.address, data, bits=self.bits, admit=admit)

    def size(self, image: ListedImage) -> tuple[Size, int]:
        """An image's height and width, upright, and its EXIF orientation, without its pixels.

        Raises:
            ImageError: It cannot be read.
        """
        container = self._container(image.address)
        if container is not None:
            return container.size(image.address)
        return read_size(image.address, read_bytes(image.address) if is_remote(image.address) else None)

    def stamp(self, image: ListedImage) -> Stamp:
        """Return the size and modification time of an image's file, as far as they are known without reading it."""
        if image.stamp != Stamp() or is_remote(image.address) or self._container(image.address) is not None:
            return image.stamp
        return stamp_of_file(image.address)


class Listing(Reader):
    """Images by key; iterate over it for `ListedImage`, as often as needed.

    Args:
        named: Images, folders, patterns such as ``images/*.jpg``, lists (a text file with a path per line; JSON or
            JSON lines of paths, or of objects with ``image``, as LLaVA's data are), folders that ``datasets`` saved,
            Parquet files with a column of images, or WebDataset tars; each on a disk, or where fsspec reaches, such as
            ``s3://bucket/images``. The images of a Parquet file or a tar are below the name of that file.
        root: The folder that keys are below, and paths in lists are relative to; by default the folder that is named,
            or that an image or a list is in.
        column: Of datasets and Parquet files: where their images are.
        key_column: Of datasets and Parquet files: what to take for keys; by default row numbers.
        bits: Of greyscale images of 16 bits; see `regiontok.read_image`.

    Raises:
        ImageError: No image at all, or a list that cannot be read.
        ValueRangeError: An image that is not below ``root``, a path with ``..``, or folders of one name.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> Image.new("RGB", (8, 8)).save(folder + "/b.png")
        >>> Image.new("RGB", (8, 8)).save(folder + "/a.png")
        >>> [image.key for image in Listing([folder])]
        ['a.png', 'b.png']
    """

    def __init__(
        self,
        named: Sequence[str | Path],
        *,
        root: str | Path | None = None,
        column: str | None = None,
        key_column: str | None = None,
        bits: int | None = None,
    ) -> None:
        self.named = [os.fspath(one) for one in named]
        base = None if root is None else os.fspath(root)
        self._sources = _joined([source for name in self.named for source in _sources(name, base, column, key_column)])
        super().__init__([source for source in self._sources if isinstance(source, Container)], bits=bits)
        self.roots = Roots([root] if root is not None else [source.root for source in self._sources])
        self.given = root is not None
        for source in self._sources:
            if next(iter(source), None) is None:
                raise ImageError(f"{source.named}: there is no image in it.")
            for address in source.paths if isinstance(source, _Files) else [f"{source.root.rstrip('/')}/any"]:
                self.roots.key(address)  # or it is not below the root

    def __iter__(self) -> Iterator[ListedImage]:
        """Each image once; whether its key is one that a store can have is not checked here."""
        alone = len(self._sources) == 1 and not isinstance(self._sources[0], _Files)
        seen: set[str] | None = None if alone else set()
        for source in self._sources:
            key_of = self.roots.below(source.root)
            for address, key, stamp in source:
                own = key_of(address if key is None else f"{source.root}/{key}")
                if seen is not None:
                    if own in seen:
                        continue
                    seen.add(own)
                yield ListedImage(own, address, stamp, "" if key is None else f"{source.root}/{key}")

    def reader(self) -> Reader:
        """What reads the images, without the names of all of them."""
        return Reader(self._containers.values(), bits=self.bits)


def in_slice(key: str, rank: int, world_size: int) -> bool:
    """Whether an image is a rank's, by a hash of its key: whatever else is listed, and whenever.

    Example:
        >>> [in_slice("a.jpg", rank, 3) for rank in range(3)]
        [False, False, True]
    """
    return zlib.crc32(key.encode(errors="surrogatepass")) % world_size == rank


def read_bytes(address: str) -> bytes:
    """A remote file.

    Raises:
        ImageError: It cannot be read.
    """
    files, path = filesystem(address)
    try:
        data: bytes = files.cat_file(path)
        return data
    except FileNotFoundError as error:
        raise explain_image(address, error) from error
    except Exception as error:  # a client's errors are of all kinds
        raise ImageError(f"{address}: cannot be read: {error}") from error


class _Source(ABC):
    """Images that were named together."""

    root: str
    named: str

    @abstractmethod
    def __iter__(self) -> Iterator[Entry]: ...


class _Files(_Source):
    """Paths that are known."""

    def __init__(self, named: str, root: str, paths: list[str]) -> None:
        self.named = named
        self.root = root
        self.paths = paths

    def __iter__(self) -> Iterator[Entry]:
        return map(Entry, self.paths)


class _Folder(_Source):
    """A folder and those in it, by name."""

    def __init__(self, folder: str) -> None:
        self.root = self.named = folder

    def __iter__(self) -> Iterator[Entry]:
        return map(Entry, self._walk(self.root.rstrip("/") or "/"))

    def _walk(self, folder: str) -> Iterator[str]:
        try:
            with os.scandir(folder) as entries:
                found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
        except OSError:
            yield folder  # which fails as an image, and so is counted and named
            return
        for name, is_folder in found:
            path = f"{folder.rstrip('/')}/{name}"
            if is_folder:
                yield from self._walk(path)
            elif is_image_name(name) and os.path.isfile(path):  # noqa: PTH113  a name that is too long is none
                yield path


class _RemoteFolder(_Source):
    """The same elsewhere."""

    def __init__(self, folder: str) -> None:
        self.root = self.named = folder.rstrip("/")
        self.files, self.path = filesystem(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return _RemoteFolder, (self.root,)

    def __iter__(self) -> Iterator[Entry]:
        path = self.path.rstrip("/")
        return (Entry(self.root + name.removeprefix(path), stamp=stamp) for name, stamp in self._walk(path))

    def _walk(self, folder: str) -> Iterator[tuple[str, Stamp]]:
        try:
            listed = sorted(self.files.ls(folder, detail=True), key=lambda info: str(info["name"]).rstrip("/"))
        except Exception as error:  # a client's errors are of all kinds
            raise explain_image(folder, error) from error
        for info in listed:
            name = info["name"].rstrip("/")
            path = name if name.startswith(folder) else "/" + name  # memory:// answers as it likes
            if info["type"] == "directory":
                yield from self._walk(path)
            elif is_image_name(path):
                yield path, stamp_of(info)


Source = _Source | Container


def _sources(named: str, root: str | None, column: str | None, key_column: str | None) -> list[Source]:
    """Return what a name stands for: one source, or for a pattern of tars or Parquet files one for each of them."""
    if not named.lower().endswith((*TARS, *PARQUET, *COMPRESSED_TARS)) or os.path.isdir(named.removeprefix("file://")):  # noqa: PTH112
        return [_source(named, root, column, key_column)]
    if named.lower().endswith(COMPRESSED_TARS):
        raise ImageError(f"{named} is a compressed tar, whose images cannot be read one by one. Decompress it first.")
    files = [named]
    if glob.has_magic(named):
        if is_remote(named):
            system, path = filesystem(named)
            scheme = named.partition("://")[0]
            files = [f"{scheme}://{one.lstrip('/')}" for one in sorted(system.glob(path))]
        elif not os.path.exists(named):  # noqa: PTH110
            files = sorted(glob.iglob(named, recursive=True))  # noqa: PTH207
    files = [file if is_remote(file) else os.path.abspath(file.removeprefix("file://")) for file in files]  # noqa: PTH100
    missing = next((file for file in files if not is_remote(file) and not os.path.lexists(file)), None)
    if missing is not None or not files:
        raise ImageError(f"{missing or named}: there is no such file.", "missing")
    if named.lower().endswith(TARS):
        if column or key_column:
            raise ImageError(f"{named}: --column and --key-column are of datasets and Parquet files. Leave them out.")
        return [TarImages(file) for file in files]
    return [ParquetImages(file, column, key_column) for file in files]


def _source(named: str, root: str | None, column: str | None, key_column: str | None) -> Source:
    if is_remote(named):
        return _remote_source(named, root)
    path = named.removeprefix("file://")
    if os.path.isdir(path):  # noqa: PTH112  a name that is too long is none, and fails as an image
        path = os.path.normpath(path)
        if Path(path, "dataset_info.json").is_file() or Path(path, "dataset_dict.json").is_file():
            return DatasetFolder(path, column, key_column)
        return _Folder(path)
    if Path(path).suffix.lower() in LISTS:
        return _listed(path, root or str(Path(path).parent))
    if glob.has_magic(path) and not os.path.exists(path):  # noqa: PTH110
        fixed = _fixed_part(path)
        found = sorted(one for one in glob.iglob(path, recursive=True) if is_image_name(one))  # noqa: PTH207
        return _Files(named, fixed, found)
    if not os.path.lexists(path) and not is_image_name(path):
        raise ImageError(f"{named}: there is no such file or folder.")
    return _Files(named, str(Path(path).parent), [path])


def _joined(sources: Sequence[Source]) -> list[Source]:
    """The same, with images that are named one after another in one folder as one source."""
    joined: list[Source] = []
    for source in sources:
        last = joined[-1] if joined else None
        if isinstance(source, _Files) and isinstance(last, _Files) and source.root == last.root:
            last.paths += source.paths
        else:
            joined.append(source)
    return joined


def _remote_source(named: str, root: str | None) -> _Source:
    files, path = filesystem(named)
    scheme = named.partition("://")[0]
    if Path(path).suffix.lower() in LISTS:
        return _listed(named, root or named.rpartition("/")[0])
    if glob.has_magic(path):
        found = [f"{scheme}://{one.lstrip('/')}" for one in sorted(files.glob(path)) if is_image_name(one)]
        return _Files(named, _fixed_part(named), found)
    try:
        folder = files.isdir(path)
    except Exception as error:  # a client's errors are of all kinds
        raise explain_image(named, error) from error
    return _RemoteFolder(named) if folder else _Files(named, named.rpartition("/")[0], [named])


def _listed(path: str, root: str) -> _Source:
    """The images that a list names, each once."""
    try:
        data = read_bytes(path) if is_remote(path) else Path(path).read_bytes()
        text = data.decode("utf-8-sig")
        if path.lower().endswith(".txt"):
            names = [line.strip(" \t") for line in split_lines(text) if line.strip()]
        else:
            lines = [line for line in split_lines(text) if line.strip()]
            entries = list(map(json.loads, lines)) if path.lower().endswith(".jsonl") else json.loads(text)
            if not isinstance(entries, list):
                raise TypeError(f"it must hold a list; got {type(entries).__name__}")
            names = [name for entry in entries for name in _named_by(entry)]
    except OSError as error:
        raise ImageError(f"{path}: the list cannot be read ({error.strerror}).") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ImageError(f"{path}: it is no list of images: {error}.") from error
    found: dict[str, None] = {}
    base = root.rstrip("/")
    for name in names:
        if ".." in name.split("/"):
            raise ValueRangeError(f"{path} names {name!r}: a path with .. is no key. Give the folder above by --root.")
        if "://" not in name:
            name = posixpath.normpath(name)  # ./a.jpg, as find prints it
            name = name if name.startswith("/") else f"{base}/{name}"
        found[name] = None
    return _Files(path, root, list(found))


def _named_by(entry: Any) -> list[str]:
    """The images that an entry of JSON names: itself, or in LLaVA's data its ``image``, of which there may be none."""
    if isinstance(entry, dict):
        entry = entry.get("image") or []
    names = [entry] if isinstance(entry, str) else entry
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise TypeError(f"an entry must be a path or have one as image; got {str(entry)[:80]}")
    return names


def _fixed_part(pattern: str) -> str:
    """The folder of a pattern before its first wildcard."""
    parts = pattern.split("/")
    fixed = list(islice((part for part in _until_magic(parts)), len(parts) - 1))
    return "/".join(fixed) or ("/" if pattern.startswith("/") else ".")


def _until_magic(parts: Sequence[str]) -> Iterator[str]:
    for part in parts:
        if glob.has_magic(part):
            return
        yield part
