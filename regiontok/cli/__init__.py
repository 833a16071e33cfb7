"""The command line, ``regiontok COMMAND``.

parser      the options of every command; arguments those that several commands share
values      typed values of the options, with checks; regions those of a Regionizer, slices those of torchrun and Slurm
loading     encoders, Regionizers, stores and models for these values; mask_sources masks, inputs images
write_files, write_store    the outputs of tokenize and masks
output      checks of other outputs, and reports of failed images
console     everything that is written to stderr
signals     SIGINT and SIGTERM

Each other module runs the command of its name. It is imported after all checks of the command have passed.
"""

import argparse
import importlib
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterable, Sequence

from regiontok._interrupt import raise_on_interrupt
from regiontok._require import explain_import, require
from regiontok.cli import console
from regiontok.cli.parser import make_parser
from regiontok.cli.signals import Terminated, raise_on_terminate
from regiontok.cli.values import flag
from regiontok.errors import DTypeError, RegiontokError, ValueRangeError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 1 if an image failed; 2 if the command could not run; and as in shells, 130 after an interrupt, 143 after
        SIGTERM, and 141 if the reader of stdout has ended.
    """
    with console.safe_streams():
        options = _parse(arguments)
        try:
            with raise_on_terminate():
                return _run(options)
        except (ValueRangeError, DTypeError) as error:
            console.warn(with_flags(str(error), vars(options)))
            return 2
        except RegiontokError as error:
            console.warn(error)
            return 2
        except ImportError as error:
            console.warn(explain_import(error, "regiontok"))
            return 2
        except Terminated:
            console.warn("ended by a signal; finished files are kept.")
            return 128 + signal.SIGTERM
        except KeyboardInterrupt:
            console.warn("interrupted; finished files are kept.")
            return 128 + signal.SIGINT
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would write again as it exits
            return 141
        except OSError as error:
            console.warn(f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}.")
            return 2


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a command; ``serve`` passes those that it does not know to vLLM."""
    parser = make_parser()
    options, others = parser.parse_known_args(arguments)
    if others and "vllm_arguments" not in options:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    if others:
        options.vllm_arguments = others
    return options


def _run(options: argparse.Namespace) -> int:
    """Check the options of a command, then import its module and run it."""
    for check in options.checks:
        check(options)
    module, function = options.run
    run = getattr(require(f"regiontok.cli.{module}", extra=""), function)
    raise_on_interrupt()
    # regiontok.read_image rejects large images itself
    warnings.simplefilter("ignore", importlib.import_module("PIL.Image").DecompressionBombWarning)
    code: int = run(options)
    if sys.stdout is not None:  # None if it was closed before the start
        sys.stdout.flush()
    return code


def with_flags(message: str, names: Iterable[str]) -> str:
    """Return an error of the library with the command line's options in place of arguments.

    Args:
        message: The message.
        names: The names of the options.

    Example:
        >>> with_flags("num_regions=3 requires source='clustering'.", ["num_regions", "source"])
        '--num-regions 3 requires --source clustering.'
    """
    words = [name for name in names if name not in ("image", "images", "question", "model", "store", "run", "checks")]
    if not words:
        return message
    any_name = "|".join(sorted(words, key=len, reverse=True))
    # elsewhere than before "=" and " must", words such as source and order are English
    clear = "|".join(name for name in words if "_" in name or name in ("keep", "threshold", "linkage")) or "(?!)"
    pattern = rf"(?<![\w'-])(?:({any_name})=('[^']*'|-?[\d.]*\d|inf)|^({any_name})(?= must )|({clear})(?![\w'=-]))"

    def replace(match: re.Match[str]) -> str:
        assigned, value, first, word = match.groups()
        return f"{flag(assigned)} {value.strip(chr(39))}" if assigned else flag(first or word)

    return re.sub(pattern, replace, message)
