"""The errors regiontok raises on purpose.

All of them derive from `RegiontokError`; a bad argument is also an ordinary ``ValueError`` and a missing package an
ordinary ``ImportError``, so callers need not know these names. A message says what was wanted, what came, what to do.
"""


class RegiontokError(Exception):
    """Base of every error that regiontok raises on purpose.

    Attributes:
        kind: A stable word for the kind of fault, by which failures of images can be grouped; see `failure_kind`.
    """

    kind = "value"


class ShapeError(RegiontokError, ValueError):
    """A tensor, grid or list has the wrong shape or length."""


class DTypeError(RegiontokError, ValueError):
    """A tensor or object is of the wrong type."""


class ValueRangeError(RegiontokError, ValueError):
    """A number, name or combination of options lies outside what is allowed."""


class UnknownOptionError(RegiontokError, ValueError, TypeError):
    """An option of that name does not exist."""


class ImageError(RegiontokError, ValueError):
    """A file or object is not an image that can be read as one RGB picture.

    Args:
        message: What is wrong.
        kind: ``missing``, ``not_an_image``, ``damaged``, ``too_large``, ``unreadable`` or ``unsupported``.
    """

    def __init__(self, message: str, kind: str = "unsupported") -> None:
        super().__init__(message)
        self.kind = kind


class CheckpointError(RegiontokError, ValueError):
    """Weights or a saved folder cannot be found, reached or matched."""

    kind = "data"


class DataError(RegiontokError, ValueError):
    """Data of the user cannot be found or read, or does not fit: annotations, questions, results, token files."""

    kind = "data"


class StoreError(DataError):
    """A store of masks or tokens cannot be found or read, is damaged, or was made with other options."""


class MissingKeyError(DataError, KeyError):
    """A store, or a file of annotations, has no image of this key."""

    kind = "no_annotation"
    __str__ = Exception.__str__  # and not the quoted form of `KeyError`


class MissingDependencyError(RegiontokError, ImportError):
    """An optional package is not installed."""


class BrokenDependencyError(RegiontokError, ImportError):
    """A package is installed but cannot be imported."""


class OutputError(RegiontokError, ValueError):
    """A file cannot be written, or would replace what must stay."""


class UntrainedWarning(UserWarning):
    """A stock model gets options that only training makes up for."""


class AmbiguousShapeWarning(UserWarning):
    """Features or masks have a valid shape that is more often a mistake."""


def failure_kind(error: BaseException) -> str:
    """Return a stable word for the kind of an error with which an image failed.

    ``missing``, ``not_an_image``, ``damaged``, ``too_large``, ``unreadable`` and ``unsupported`` are of the image;
    ``no_annotation`` and ``data`` of its masks; ``value`` of the options; ``memory`` and ``io`` of the machine; and
    ``internal`` is a fault of the program.

    Example:
        >>> failure_kind(ImageError("a.jpg: there is no such file.", "missing"))
        'missing'
    """
    if isinstance(error, RegiontokError):
        return error.kind
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "memory"
    return "io" if isinstance(error, OSError) else "internal"
