"""The errors regiontok raises on purpose.

All of them derive from `RegiontokError`; a bad argument is also an ordinary ``ValueError`` and a missing package an
ordinary ``ImportError``, so callers need not know these names. A message says what was wanted, what came, what to do.
"""


class RegiontokError(Exception):
    """Base of every error that regiontok raises on purpose."""


class ShapeError(RegiontokError, ValueError):
    """A tensor, grid or list has the wrong shape or length."""


class DTypeError(RegiontokError, ValueError):
    """A tensor or object is of the wrong type."""


class ValueRangeError(RegiontokError, ValueError):
    """A number, name or combination of options lies outside what is allowed."""


class UnknownOptionError(RegiontokError, TypeError):
    """An option of that name does not exist."""


class PhotoError(RegiontokError, ValueError):
    """A file or object is not a photo that can be read as one RGB picture."""


class CheckpointError(RegiontokError, ValueError):
    """Weights or a saved folder cannot be found, reached or matched."""


class MissingKeyError(CheckpointError, KeyError):
    """A store has no photo of this key."""

    __str__ = Exception.__str__  # and not the quoted form of `KeyError`


class MissingDependencyError(RegiontokError, ImportError):
    """An optional package is not installed."""


class BrokenDependencyError(RegiontokError, ImportError):
    """A package is installed but cannot be imported."""


class OutputError(RegiontokError, ValueError):
    """A file cannot be written, or would replace what must stay."""
