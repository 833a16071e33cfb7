"""Which folder an image's key is below: the rule by which images get keys, and by which readers find them again."""

import os
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

from regiontok.errors import ValueRangeError
from regiontok.store.places import Address, is_remote


class Roots:
    """Folders of images. A key is the image's path below its folder; of several folders their names stand in front.

    Args:
        folders: Paths or addresses; those that come twice count once.

    Raises:
        ValueRangeError: No folder, or two of one name, whose keys could not be told apart.

    Example:
        >>> Roots(["data/train", "data/val"]).key("data/val/a/b.jpg")
        'val/a/b.jpg'
        >>> Roots(["data"]).key("data/val/a/b.jpg")
        'val/a/b.jpg'
    """

    def __init__(self, folders: Sequence[Address]) -> None:
        self.folders = list(dict.fromkeys(_whole(folder) for folder in folders))
        if not self.folders:
            raise ValueRangeError("images must be in at least one folder; got none.")
        self.names = [folder.rstrip("/").rpartition("/")[2] or "images" for folder in self.folders]
        twice = [name for name in self.names if self.names.count(name) > 1]
        if twice and len(self.folders) > 1:
            first, second = [folder for folder, name in zip(self.folders, self.names, strict=True) if name == twice[0]][
                :2
            ]
            raise ValueRangeError(
                f"two folders of images are called {twice[0]}: {first} and {second}. Name the folder that both are in, "
                "or give it by --root."
            )

    def __repr__(self) -> str:
        return f"Roots({self.folders})"

    def describe(self) -> list[dict[str, str]]:
        """Names of the folders, and an id of where each lies that tells nobody where that is."""
        return [{"name": name, "id": identity(folder)} for name, folder in zip(self.names, self.folders, strict=True)]

    def key(self, address: Address) -> str:
        """The key of an image; of the innermost folder that it is below.

        Raises:
            ValueRangeError: An image that is below none of the folders.
        """
        whole = _whole(address)
        found = [number for number, folder in enumerate(self.folders) if whole.startswith(_prefix(folder))]
        if not found:
            raise ValueRangeError(f"{address} is not below {' or '.join(self.folders)}, where keys begin.")
        number = max(found, key=lambda one: len(self.folders[one]))
        inside = whole.removeprefix(_prefix(self.folders[number]))
        return inside if len(self.folders) == 1 else f"{self.names[number]}/{inside}"

    def below(self, folder: Address) -> Callable[[str], str]:
        """`key` for images that are below a folder, which it looks at once and not for each of a million."""
        head, whole = f"{os.fspath(folder).rstrip('/')}/", _whole(folder)
        if any(_prefix(other).startswith(_prefix(whole)) and other != whole for other in self.folders):
            return self.key  # some of them may be another folder's
        known = self.key(f"{whole}/x")[:-1]
        return lambda address: known + address[len(head) :] if address.startswith(head) else self.key(address)


class KeyFinder:
    """The keys of images in a store that was made before, perhaps elsewhere.

    An image below the very folder that the store was made of has the key that it had there. Else its key is what it
    would be now, by the folders that are named, and whether it is the same image cannot be known; `elsewhere` tells so.

    Args:
        made_of: ``images`` of the store's manifest.
        now: The folders that are named now.
        given: Whether they were named on purpose (``--root``), so that nothing is left to be told.
    """

    def __init__(self, made_of: Sequence[dict[str, str]], now: Roots, *, given: bool) -> None:
        self.now = now
        self.elsewhere = False
        self._given = given
        self._names = {one["id"]: one["name"] if len(made_of) > 1 else "" for one in made_of}
        self._known: dict[str, str | None] = {}

    def __call__(self, address: Address) -> str:
        """The key of an image."""
        if self._given or not self._names:
            return self.now.key(address)
        whole = _whole(address)
        folder, _, name = whole.rpartition("/")
        if folder not in self._known:
            below = self._below(folder)
            self._known[folder] = self._below(os.path.realpath(folder)) if below is None else below
        below = self._known[folder]
        if below is None:
            self.elsewhere = True
            return self.now.key(address)
        return below + name

    def _below(self, folder: str) -> str | None:
        """What stands before the names of a folder's images, where it is below one that the store was made of."""
        parts: list[str] = []
        above = folder
        while above.strip("/"):
            name = self._names.get(identity(above))
            if name is not None:
                return "".join(f"{part}/" for part in [*([name] if name else []), *reversed(parts)])
            above, _, part = above.rpartition("/")
            parts.append(part)
        return None


def identity(folder: Address) -> str:
    """What tells a folder or file from others, wherever it is named from, and tells nobody where it lies."""
    text = os.fspath(folder)
    whole = text.rstrip("/") if is_remote(text) else os.path.realpath(text)
    return blake2b(whole.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _whole(address: Address) -> str:
    """An address without ``..`` or a relative beginning; links are kept."""
    text = os.fspath(address)
    if is_remote(text):
        return text.rstrip("/")
    return os.path.abspath(text.removeprefix("file://"))  # noqa: PTH100  links are not to be followed


def _prefix(folder: str) -> str:
    return folder.rstrip("/") + "/"


def describe_difference(made_of: Sequence[dict[str, str]], now: Sequence[dict[str, Any]]) -> str | None:
    """What tells the folders of a store from those that are named now; None where they are the same, or not known."""
    if not made_of or {one["id"] for one in made_of} == {one["id"] for one in now}:
        return None
    before, after = (", ".join(one["name"] for one in some) for some in (made_of, now))
    return f"it was made of images in {before}, and these are in {after}" + " elsewhere" * (before == after)
