"""The command line, ``regiontok COMMAND``: a module per command, which adds itself to the parser."""

import argparse
import sys
from collections.abc import Sequence

from regiontok import __version__
from regiontok.cli import chat, compare, count, env, evaluate, figures, focus, masks, tokenize, view
from regiontok.errors import RegiontokError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0, 1 where a photo failed, 2 where the command could not run."""
    parser = argparse.ArgumentParser(prog="regiontok", description="Region tokenizers for multimodal language models.")
    parser.add_argument("--version", action="version", version=f"regiontok {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (tokenize, masks, count, compare, view, figures, chat, evaluate, focus, env):
        module.add_commands(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except RegiontokError as error:
        print(f"regiontok: {error}", file=sys.stderr)
        return 2
