"""Sources of images: folders, patterns, lists of paths, and files with many images, local or remote.

Folders are listed one at a time while the images are processed, so that a million images need little memory. A list is
read completely, and its paths are checked before the first image.
"""

import glob
import json
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from regiontok._files import split_lines
from regiontok.errors import ImageError, ValueRangeError
from regiontok.images import is_image_name
from regiontok.pipeline.containers import (
    COMPRESSED_TARS,
    PARQUET,
    TARS,
    DatasetFolder,
    Entry,
    ImageSource,
    ParquetImages,
    TarImages,
)
from regiontok.pipeline.files import absolute, find_files, is_folder, is_pattern, list_folder, read_remote
from regiontok.sampling import is_video_name
from regiontok.store.storage import is_remote

NameTest = Callable[[str], bool]
_LISTS = (".txt", ".json", ".jsonl")
"""Suffixes of files that list images."""


@dataclass
class ImageFiles(ImageSource):
    """Images with known paths or addresses."""

    address: str
    root: str
    paths: list[str]

    def __iter__(self) -> Iterator[Entry]:
        return map(Entry, self.paths)


class ImageFolder(ImageSource):
    """The images or videos of a folder and its subfolders, sorted by name.

    Args:
        folder: The folder.
        is_listed: Function of a file name: whether the file is an image, or a video. A local subfolder with frames is a
            video too; see `is_frame_folder`.
    """

    def __init__(self, folder: str, is_listed: NameTest) -> None:
        self.root = self.address = folder.rstrip("/") or "/"
        self._is_listed = is_listed

    def __iter__(self) -> Iterator[Entry]:
        return _walk(self.root, self._is_listed)


def _walk(folder: str, is_listed: NameTest) -> Iterator[Entry]:
    try:
        listed = list_folder(folder)
    except OSError:
        yield Entry(folder)  # reading it as an image fails, so that it is counted and reported
        return
    remote = is_remote(folder)
    for name, is_subfolder, stamp in listed:
        path = f"{folder.rstrip('/')}/{name}"
        if is_subfolder and is_listed is is_video_name and is_frame_folder(path):
            yield Entry(path)
        elif is_subfolder:
            yield from _walk(path, is_listed)
        elif is_listed(name) and (remote or os.path.isfile(path)):  # noqa: PTH113  names may be too long
            yield Entry(path, stamp=stamp)


def is_frame_folder(path: str) -> bool:
    """Return whether a local folder has the frames of one video: several images, and neither videos nor subfolders."""
    if is_remote(path) or not is_folder(path):
        return False
    try:
        entries = list_folder(path)
    except OSError:
        return False
    names = [name for name, is_subfolder, _ in entries if not is_subfolder]
    is_flat = len(names) == len(entries) and not any(map(is_video_name, names))
    return is_flat and sum(map(is_image_name, names)) > 1


def open_sources(
    addresses: Sequence[str],
    *,
    root: str | None,
    column: str | None,
    key_column: str | None,
    is_listed: NameTest = is_image_name,
) -> list[ImageSource]:
    """Return the sources that the addresses refer to; see `Listing` for the arguments.

    Raises:
        ImageError: There is no such file or folder, or a list or file of images cannot be read.
        ValueRangeError: A list contains a path with ``..``.
    """
    sources: list[ImageSource] = []
    for address in addresses:
        for source in _open(address, root, column, key_column, is_listed):
            previous = sources[-1] if sources else None
            if isinstance(source, ImageFiles) and isinstance(previous, ImageFiles) and source.root == previous.root:
                previous.paths += source.paths  # many files of one folder are one source
            else:
                sources.append(source)
    return sources


def _open(
    address: str, root: str | None, column: str | None, key_column: str | None, is_listed: NameTest
) -> list[ImageSource]:
    """Return the source of an address, or for a pattern of tars or Parquet files one source per file."""
    path = address.removeprefix("file://")
    if not is_remote(path) and is_folder(path):
        path = os.path.normpath(path)
        if any(Path(path, f"dataset_{name}.json").is_file() for name in ("info", "dict")):
            return [DatasetFolder(absolute(path), column, key_column)]
        if is_listed is is_video_name and is_frame_folder(path):
            return [ImageFiles(address, _parent(absolute(path)), [absolute(path)])]
        return [ImageFolder(path, is_listed)]
    if path.lower().endswith((*TARS, *PARQUET, *COMPRESSED_TARS)):
        return _open_containers(path, column, key_column, is_listed)
    if path.lower().endswith(_LISTS):
        return [_read_list(path, root or _parent(path))]
    if is_pattern(path):
        found = [
            file
            for file in find_files(path)
            if is_listed(file) or (is_listed is is_video_name and is_frame_folder(file))
        ]
        return [ImageFiles(address, _fixed_part(path), found)]
    if is_remote(path) and is_folder(path):
        return [ImageFolder(path, is_listed)]
    if not is_remote(path) and not os.path.lexists(path) and not is_listed(path):
        raise ImageError(f"{address}: there is no such file or folder.")
    return [ImageFiles(address, _parent(path), [path])]


def _open_containers(path: str, column: str | None, key_column: str | None, is_listed: NameTest) -> list[ImageSource]:
    if path.lower().endswith(COMPRESSED_TARS):
        raise ImageError(f"{path} is a compressed tar, whose images cannot be read separately. Decompress it first.")
    files = [absolute(file) for file in (find_files(path) if is_pattern(path) else [path])]
    missing = next((file for file in files if not is_remote(file) and not os.path.lexists(file)), None)
    if missing is not None or not files:
        raise ImageError(f"{missing or path}: there is no such file.", "missing")
    if not path.lower().endswith(TARS):
        return [ParquetImages(file, column, key_column) for file in files]
    if column or key_column:
        raise ImageError(f"{path}: --column and --key-column require datasets and Parquet files. Leave them out.")
    return [TarImages(file, is_listed) for file in files]


def _read_list(path: str, root: str) -> ImageFiles:
    """Return the images in a list, without duplicates."""
    try:
        data = read_remote(path) if is_remote(path) else Path(path).read_bytes()
        text = data.decode("utf-8-sig")
        lines = [line for line in split_lines(text) if line.strip()]
        if path.lower().endswith(".txt"):
            names = [line.strip(" \t") for line in lines]
        else:
            entries = list(map(json.loads, lines)) if path.lower().endswith(".jsonl") else json.loads(text)
            if not isinstance(entries, list):
                raise TypeError(f"it must contain a list; got {type(entries).__name__}")
            names = [name for entry in entries for name in _names_in(entry)]
    except OSError as error:
        raise ImageError(f"{path}: the list cannot be read ({error.strerror}).") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ImageError(f"{path}: this is not a list of images: {error}.") from error
    paths = []
    for name in names:
        if ".." in name.split("/"):
            raise ValueRangeError(
                f"{path} contains {name!r}, but keys cannot contain '..'. Name the parent folder by --root."
            )
        if "://" not in name:
            name = posixpath.normpath(name)  # find prints ./a.jpg
            name = name if name.startswith("/") else f"{root.rstrip('/')}/{name}"
        paths.append(name)
    return ImageFiles(path, root, list(dict.fromkeys(paths)))


def _names_in(entry: Any) -> list[str]:
    """Return the images in an entry of JSON: a path, or an object whose ``image`` is a path, several, or missing."""
    if isinstance(entry, dict):
        entry = entry.get("image") or []
    names = [entry] if isinstance(entry, str) else entry
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise TypeError(f"an entry must be a path, or an object with a path as 'image'; got {str(entry)[:80]}")
    return names


def _parent(path: str) -> str:
    return path.rpartition("/")[0] if is_remote(path) else str(Path(path).parent)


def _fixed_part(pattern: str) -> str:
    """Return the folder of a pattern before its first wildcard."""
    folders = takewhile(lambda part: not glob.has_magic(part), pattern.split("/")[:-1])
    return "/".join(folders) or ("/" if pattern.startswith("/") else ".")
