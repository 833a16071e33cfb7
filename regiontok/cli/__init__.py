"""The command line, ``regiontok COMMAND``: a module per command, which adds itself to the parser."""

import argparse
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from PIL import Image

from regiontok import __version__
from regiontok.cli import chat, compare, count, env, evaluate, figures, focus, masks, store, tokenize, view
from regiontok.cli.output import warn
from regiontok.errors import RegiontokError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 1 where a photo failed; 2 where the command could not run; and as shells have it 130 and 143 where it was
        interrupted or told to end, 141 where nobody reads what it prints.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # what a notebook or a test put in its place
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a file name may be any bytes
    parser = argparse.ArgumentParser(prog="regiontok", description="Region tokenizers for multimodal language models.")
    parser.add_argument("--version", action="version", version=f"regiontok {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (tokenize, masks, store, count, compare, view, figures, chat, evaluate, focus, env):
        module.add_commands(commands)
    options = parser.parse_args(arguments)
    before = _on_terminate(_terminate)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # read_photo refuses what Pillow warns of
            code = options.run(options)
        if sys.stdout is not None:  # none where it was closed before
            sys.stdout.flush()
        return code
    except RegiontokError as error:
        warn(_in_words_of(options, str(error)))
        return 2
    except _Terminated:
        warn("ended by a signal; files that were finished are kept.")
        return 143
    except KeyboardInterrupt:
        warn("interrupted; files that were finished are kept.")
        return 130
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            return _unread()
        warn(f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}.")
        return 2
    finally:
        _on_terminate(before)


def _unread() -> int:
    """Leave when nobody reads what is printed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries to write once more
    return 141


def _in_words_of(options: argparse.Namespace, message: str) -> str:
    """An error of an argument's value, with the name of the command line's option in place of the argument's."""
    word, must, rest = message.partition(" must be ")
    name = {"num_regions": "tokens"}.get(word, word)
    known = must and name in vars(options) and name not in ("photo", "photos", "question", "run", "masks")
    return f"--{name.replace('_', '-')}{must}{rest}" if known else message


class _Terminated(BaseException):
    """The process was told to end, as by ``kill`` or a batch system."""


def _terminate(*_: Any) -> None:
    raise _Terminated


def _on_terminate(handler: Any) -> Any:
    """Set what a request to end does, so that files in hand are removed; returns what it did before."""
    if threading.current_thread() is threading.main_thread():
        return signal.signal(signal.SIGTERM, handler)
    return None
