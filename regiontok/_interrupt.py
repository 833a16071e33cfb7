"""What Ctrl-C does while the command line starts, works and ends.

This module imports next to nothing, because the handler is installed before anything else of regiontok is imported.
"""

import os
import signal
import threading
from contextlib import suppress
from typing import Any


def _end(*_: Any) -> None:
    with suppress(OSError):
        os.write(2, b"regiontok: interrupted.\n")
    os._exit(128 + signal.SIGINT)


def end_on_interrupt() -> None:
    """End the process at once on Ctrl-C: nothing has been made yet that could be lost.

    Imports of compiled packages would otherwise turn the interrupt into long tracebacks. A process that was started
    with Ctrl-C ignored, as ``nohup`` and background jobs are, keeps ignoring it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_on_interrupt() -> None:
    """Raise ``KeyboardInterrupt`` on Ctrl-C again, so that work can be finished and files removed."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ignore_interrupt() -> None:
    """Ignore Ctrl-C while the interpreter ends: the exit code is that of the finished command."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
