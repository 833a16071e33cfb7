"""The ``regiontok`` command, and ``python -m regiontok``."""

import importlib
import os
import sys
from contextlib import suppress

from regiontok._interrupt import end_on_interrupt, ignore_interrupt


def run() -> None:
    """Run the command line and end the process with its exit code.

    After a signal the process ends without waiting for its threads: one that reads from a dead network drive would
    keep it alive forever. All finished results are on disk by then.
    """
    end_on_interrupt()
    code = importlib.import_module("regiontok.cli").main()
    ignore_interrupt()
    if code > 128:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
