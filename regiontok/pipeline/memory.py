"""A limit for the memory of images that are decoded ahead of the workers."""

import threading

MAX_PIXELS = 1 << 27
"""About 400 MB of RGB, and twice that while decoding: ten images of 12 megapixels, or one of 88."""


class PixelGate:
    """Let readers decode images until the unfinished batches have ``limit`` pixels; then they wait.

    The oldest unfinished batch never waits, to prevent deadlocks. Large images are therefore read one batch at a time,
    and small ones several batches ahead.
    """

    def __init__(self, limit: int = MAX_PIXELS) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._pixels: dict[int, int] = {}
        self._oldest = 0
        self._closed = False

    def enter(self, batch: int, pixels: int) -> None:
        """Wait until an image of a batch may be decoded."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or batch <= self._oldest or sum(self._pixels.values()) + pixels <= self._limit
            )
            self._pixels[batch] = self._pixels.get(batch, 0) + pixels

    def leave(self, batch: int) -> None:
        """Release the pixels of a finished batch."""
        with self._changed:
            self._pixels.pop(batch, None)
            self._oldest = max(self._oldest, batch + 1)
            self._changed.notify_all()

    def close(self) -> None:
        """Let all waiting readers continue, because the run has ended."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
