"""Handle Ctrl-C while the command line starts, runs and exits.

The handler is installed before any other module of regiontok is imported, so this module imports only standard modules.
"""

import os
import signal
import threading
from contextlib import suppress
from typing import Any


def _exit(*_: Any) -> None:
    with suppress(OSError):
        os.write(2, b"regiontok: interrupted.\n")
    os._exit(128 + signal.SIGINT)


def end_on_interrupt() -> None:
    """Exit immediately on Ctrl-C, since there is no work to lose yet.

    While compiled packages are imported, ``KeyboardInterrupt`` would cause long tracebacks. If the process was started
    with Ctrl-C ignored, as by ``nohup`` or in the background, it is still ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def raise_on_interrupt() -> None:
    """Raise ``KeyboardInterrupt`` on Ctrl-C again, so that results can be written and temporary files removed."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ignore_interrupt() -> None:
    """Ignore Ctrl-C while the interpreter exits, so that the exit code is that of the finished command."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
