"""Keys: which image a row is of.

A key is the image's path below the folder that was named, with ``/`` between its parts; it matches whole.
"""

from pathlib import PurePath

from regiontok.errors import ValueRangeError


def check_key(key: str) -> str:
    """The same key; refuses one that is no path below a folder, or that no file can hold.

    Raises:
        ValueRangeError: An empty key, an absolute one, one with ``.`` or ``..``, or one that is not UTF-8.

    Example:
        >>> check_key("train2017/000000000009.jpg")
        'train2017/000000000009.jpg'
    """
    if not isinstance(key, str) or not key:
        raise ValueRangeError(f"a key must be a text that is not empty; got {key!r}.")
    if key.startswith("/") or "\0" in key or not {".", "..", ""}.isdisjoint(key.split("/")):
        raise ValueRangeError(f"a key must be a path below the images' folder; got {key!r}. Name that folder as root.")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise ValueRangeError(f"{key!r} is not UTF-8, and keys are. Rename the image.") from None
    return key


def as_key(key: str | PurePath) -> str:
    """A key from a path."""
    return key.as_posix() if isinstance(key, PurePath) else key


def printable(key: str) -> str:
    """A key as UTF-8 can hold it: bytes of a name that are no text are escaped."""
    return key.encode(errors="backslashreplace").decode()
