"""Exceptions and warnings of regiontok.

Every exception that regiontok raises on purpose derives from `RegiontokError`. Errors about arguments are also
``ValueError``, and errors about packages are also ``ImportError``, so callers can catch the standard classes.

Each message states what was expected, what was received, and what to do.
"""


class RegiontokError(Exception):
    """Base class of all exceptions that regiontok raises on purpose.

    Attributes:
        kind: A stable word for the kind of error, used to group failed images; see `failure_kind`.
    """

    kind = "value"


class ShapeError(RegiontokError, ValueError):
    """A tensor, grid or list has the wrong shape or length."""


class DTypeError(RegiontokError, ValueError):
    """A tensor or object has the wrong type."""


class ValueRangeError(RegiontokError, ValueError):
    """A number, name or combination of options is not allowed."""


class UnknownOptionError(RegiontokError, ValueError, TypeError):
    """There is no option of this name."""


class ImageError(RegiontokError, ValueError):
    """A file or object cannot be read as a single RGB image.

    Args:
        message: The description of the error.
        kind: ``missing``, ``not_an_image``, ``damaged``, ``too_large``, ``unreadable`` or ``unsupported``.
    """

    def __init__(self, message: str, kind: str = "unsupported") -> None:
        super().__init__(message)
        self.kind = kind


class CheckpointError(RegiontokError, ValueError):
    """Weights or a saved folder cannot be found or read, or do not match the model."""

    kind = "data"


class DataError(RegiontokError, ValueError):
    """A file of the user cannot be found or read, or is invalid: annotations, questions, results or token files."""

    kind = "data"


class StoreError(DataError):
    """A store of masks or tokens cannot be found or read, is damaged, or was written with other options."""


class MissingKeyError(DataError, KeyError):
    """A store or an annotation file has no image with this key."""

    kind = "no_annotation"
    __str__ = Exception.__str__  # `KeyError` would print the message in quotes


class MissingDependencyError(RegiontokError, ImportError):
    """An optional package is not installed."""


class BrokenDependencyError(RegiontokError, ImportError):
    """A package is installed but cannot be imported."""


class OutputError(RegiontokError, ValueError):
    """An output cannot be written, or would overwrite a file that must be preserved."""


class UntrainedWarning(UserWarning):
    """A stock model is used with options that are only useful after training."""


class AmbiguousShapeWarning(UserWarning):
    """Features or masks have a shape that is valid but usually a mistake."""


def failure_kind(error: BaseException) -> str:
    """Return a stable word for the kind of error that made an image fail.

    ``missing``, ``not_an_image``, ``damaged``, ``too_large``, ``unreadable`` and ``unsupported`` describe the image.
    ``no_annotation`` and ``data`` describe its masks, and ``value`` the options. ``memory`` and ``io`` describe the
    machine. ``internal`` is an error in the program.

    Example:
        >>> failure_kind(ImageError("a.jpg: there is no such file.", "missing"))
        'missing'
    """
    if isinstance(error, RegiontokError):
        return error.kind
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "memory"
    return "io" if isinstance(error, OSError) else "internal"
