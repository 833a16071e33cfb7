"""The command line, ``regiontok COMMAND``.

parser      the options of every command
arguments   groups of options that several commands share
checks      options that do not go together
console     everything that is written to stderr
output      files that commands write, and reports
common      encoders, masks and images that the options name
filling     filling a store

Each other module runs the commands of its name. It is imported only when its command has passed all checks.
"""

import argparse
import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import Any

from regiontok._interrupt import raise_on_interrupt
from regiontok._require import explain_import, require
from regiontok.cli import console
from regiontok.cli.parser import make_parser
from regiontok.errors import RegiontokError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 1 if an image failed; 2 if the command could not run; and as shells do, 130 and 143 if it was interrupted or
        terminated, and 141 if nothing reads what it prints.
    """
    with console.safe_streams():
        options = make_parser().parse_args(arguments)
        before = _on_terminate(_terminate)
        try:
            if options.check is not None:
                options.check(options)
            module, function = options.run
            run = getattr(require(f"regiontok.cli.{module}", extra=""), function)
            raise_on_interrupt()
            _ignore_size_warnings()
            code: int = run(options)
            if sys.stdout is not None:  # None if it was closed before the start
                sys.stdout.flush()
            return code
        except RegiontokError as error:
            console.warn(_with_option_name(options, str(error)))
            return 2
        except ImportError as error:
            console.warn(explain_import(error, "regiontok"))
            return 2
        except _Terminated:
            console.warn("ended by a signal; files that were finished are kept.")
            return 128 + signal.SIGTERM
        except KeyboardInterrupt:
            console.warn("interrupted; files that were finished are kept.")
            return 128 + signal.SIGINT
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                return _unread()
            console.warn(f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}.")
            return 2
        finally:
            _on_terminate(before)


def _ignore_size_warnings() -> None:
    """Ignore Pillow's warnings of large images: `regiontok.read_image` rejects those images itself."""
    warnings.simplefilter("ignore", importlib.import_module("PIL.Image").DecompressionBombWarning)


def _unread() -> int:
    """End when nothing reads what is printed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries to write once more
    return 141


def _with_option_name(options: argparse.Namespace, message: str) -> str:
    """Return an error of an argument's value with the name of the command line's option instead of the argument's."""
    word, must, rest = message.partition(" must be ")
    name = {"num_regions": "tokens"}.get(word, word)
    is_option = must and name in vars(options) and name not in ("image", "images", "question", "run", "masks")
    return f"--{name.replace('_', '-')}{must}{rest}" if is_option else message


class _Terminated(BaseException):
    """The process was told to end, as by ``kill`` or a batch system."""


def _terminate(*_: Any) -> None:
    raise _Terminated


def _on_terminate(handler: Any) -> Any:
    """Set the handler of a request to end, so that unfinished files are removed; return the handler before it.

    A process that was started with such requests ignored keeps ignoring them.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        return signal.signal(signal.SIGTERM, handler)
    return None
