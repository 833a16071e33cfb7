"""End a command early by a signal, so that it can write its results."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Terminated(BaseException):
    """The process received SIGTERM, as from ``kill`` or a batch system."""


@contextmanager
def raise_on_terminate() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM, so that unfinished files are removed. If SIGTERM was ignored, it still is."""

    def terminate(*_: object) -> None:
        raise Terminated

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        yield
        return
    handler = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


class StopOnSignal:
    """A ``stop`` function of a run that returns whether SIGINT or SIGTERM was received. Use it as a context manager.

    A second signal raises ``KeyboardInterrupt``.

    Attributes:
        signal: The number of the received signal.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Return whether a signal was received."""
        return self.signal is not None

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and shell scripts ignore signals on purpose
                    self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _receive(self, number: int, _: object) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
