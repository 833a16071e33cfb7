"""Keys of images: their paths relative to the image folders. Stores and annotations find an image by its key."""

import os
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

from regiontok.errors import ValueRangeError
from regiontok.pipeline.files import absolute
from regiontok.store.storage import Address, is_remote


class Roots:
    """Image folders. The key of an image is its path in its folder; with several folders it starts with their names.

    Args:
        folders: Paths or addresses. Duplicates are removed.

    Raises:
        ValueRangeError: There is no folder, or two folders have the same name and their keys would be ambiguous.

    Example:
        >>> Roots(["data/train", "data/val"]).key("data/val/a/b.jpg")
        'val/a/b.jpg'
        >>> Roots(["data"]).key("data/val/a/b.jpg")
        'val/a/b.jpg'
    """

    def __init__(self, folders: Sequence[Address]) -> None:
        self.folders = list(dict.fromkeys(absolute(folder) for folder in folders))
        if not self.folders:
            raise ValueRangeError("images must be in at least one folder; got none.")
        self.names = [folder.rstrip("/").rpartition("/")[2] or "images" for folder in self.folders]
        named: dict[str, str] = {}
        for folder, name in zip(self.folders, self.names, strict=True):
            if named.setdefault(name, folder) != folder:
                raise ValueRangeError(
                    f"two image folders have the name {name}: {named[name]} and {folder}. Name the folder that contains"
                    " both, or give it by --root."
                )

    def __repr__(self) -> str:
        return f"Roots({self.folders})"

    def describe(self) -> list[dict[str, str]]:
        """Return the name of each folder, and an id that does not reveal its path."""
        return [{"name": name, "id": identity(folder)} for name, folder in zip(self.names, self.folders, strict=True)]

    def key(self, address: Address) -> str:
        """Return the key of an image, relative to the innermost folder that contains it.

        Raises:
            ValueRangeError: No folder contains the image.
        """
        path = absolute(address)
        containing = [number for number, folder in enumerate(self.folders) if path.startswith(_prefix(folder))]
        if not containing:
            raise ValueRangeError(f"{address} is not in {' or '.join(self.folders)}, which keys are relative to.")
        innermost = max(containing, key=lambda number: len(self.folders[number]))
        inside = path.removeprefix(_prefix(self.folders[innermost]))
        return inside if len(self.folders) == 1 else f"{self.names[innermost]}/{inside}"

    def below(self, folder: Address) -> Callable[[str], str]:
        """Return a function like `key` for images in a folder, which is faster because it resolves the folder once."""
        written, path = f"{os.fspath(folder).rstrip('/')}/", absolute(folder)
        if any(_prefix(other).startswith(_prefix(path)) and other != path for other in self.folders):
            return self.key  # an image may be in another of the folders
        start = self.key(f"{path}/x")[:-1]
        return lambda address: start + address[len(written) :] if address.startswith(written) else self.key(address)


class KeyFinder:
    """Find the keys of images in an existing store, also if the image folders have moved.

    An image in a folder from which the store was made has the same key as in the store. Any other image gets its key
    from the current folders; then `moved` is set, since the images may differ from those of the store.

    Args:
        recorded: The image folders in the store's manifest.
        roots: The current image folders.
        explicit: Whether the user named the current folders by ``--root``. Then the recorded folders are ignored.

    Attributes:
        moved: Whether an image was in none of the recorded folders.
    """

    def __init__(self, recorded: Sequence[dict[str, str]], roots: Roots, *, explicit: bool) -> None:
        self.roots = roots
        self.moved = False
        self._names = {folder["id"]: folder["name"] if len(recorded) > 1 else "" for folder in recorded}
        self._ignores_recorded = explicit or not recorded
        self._prefixes: dict[str, str | None] = {}

    def __call__(self, address: Address) -> str:
        """Return the key of an image."""
        if self._ignores_recorded:
            return self.roots.key(address)
        folder, _, name = absolute(address).rpartition("/")
        if folder not in self._prefixes:
            prefix = self._recorded_prefix(folder)
            self._prefixes[folder] = self._recorded_prefix(os.path.realpath(folder)) if prefix is None else prefix
        prefix = self._prefixes[folder]
        if prefix is None:
            self.moved = True
            return self.roots.key(address)
        return prefix + name

    def _recorded_prefix(self, folder: str) -> str | None:
        """Return the part of a key before the file name; None if no recorded folder contains ``folder``."""
        parts: list[str] = []
        parent = folder
        while parent.strip("/"):
            name = self._names.get(identity(parent))
            if name is not None:
                return "".join(f"{part}/" for part in [*([name] if name else []), *reversed(parts)])
            parent, _, part = parent.rpartition("/")
            parts.append(part)
        return None


def identity(folder: Address) -> str:
    """Return an id of a folder or file that is the same for all paths to it and does not reveal its path."""
    path = absolute(folder) if is_remote(folder) else os.path.realpath(folder)
    return blake2b(path.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _prefix(folder: str) -> str:
    return folder.rstrip("/") + "/"


def describe_difference(recorded: Sequence[dict[str, str]], current: Sequence[dict[str, Any]]) -> str | None:
    """Return how the recorded image folders of a store differ from the current ones; None if they do not differ."""
    if not recorded or {folder["id"] for folder in recorded} == {folder["id"] for folder in current}:
        return None
    before, after = (", ".join(folder["name"] for folder in folders) for folders in (recorded, current))
    place = " at another path" if before == after else ""
    return f"it was made from images in {before}, and these are in {after}{place}"
