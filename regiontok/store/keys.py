"""Keys of images in a store.

The key of an image is its path below the image folder, with ``/`` as the separator. Lookups use the full key.
"""

from pathlib import PurePath

from regiontok.errors import ValueRangeError


def check_key(key: str) -> str:
    """Return a key unchanged if it is a relative path that is valid UTF-8.

    Raises:
        ValueRangeError: The key is empty, absolute, not UTF-8, or has empty, ``.`` or ``..`` components.

    Example:
        >>> check_key("train2017/000000000009.jpg")
        'train2017/000000000009.jpg'
    """
    if not isinstance(key, str) or not key:
        raise ValueRangeError(f"a key must be a non-empty string; got {key!r}.")
    if key.startswith("/") or "\0" in key or not {".", "..", ""}.isdisjoint(key.split("/")):
        raise ValueRangeError(f"a key must be a path below the image folder; got {key!r}. Name that folder as root.")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise ValueRangeError(f"a key must be valid UTF-8; got {key!r}. Rename the image.") from None
    return key


def as_key(key: str | PurePath) -> str:
    """Return a string or path as a key."""
    return key.as_posix() if isinstance(key, PurePath) else key


def printable(key: str) -> str:
    """Return a key with all characters that UTF-8 cannot encode escaped."""
    return key.encode(errors="backslashreplace").decode()
