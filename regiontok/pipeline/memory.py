"""A limit on the pixels that are decoded ahead of the batch that is being made."""

import threading
from collections.abc import Callable

from PIL import Image

from regiontok.geometry import Size
from regiontok.pipeline.listing import ListedImage, Reader
from regiontok.store.stamps import Stamp

MOST_PIXELS = 1 << 27
"""About 400 MB of RGB, and as much again while images are decoded: ten images of 12 megapixels, or one of 88."""


class PixelGate:
    """Let images be decoded ahead only as far as memory should go.

    The oldest batch that is not finished is always let through, so that no batch waits for ever. Large images are thus
    read one batch at a time, and small ones as far ahead as the pipeline goes.
    """

    def __init__(self, limit: int = MOST_PIXELS) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._used: dict[int, int] = {}
        self._oldest = 0
        self._closed = False

    def enter(self, batch: int, pixels: int) -> None:
        """Wait until an image of a batch may be decoded."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or batch <= self._oldest or sum(self._used.values()) + pixels <= self._limit
            )
            self._used[batch] = self._used.get(batch, 0) + pixels

    def leave(self, batch: int) -> None:
        """Note that a batch is finished and its images are gone."""
        with self._changed:
            self._used.pop(batch, None)
            self._oldest = max(self._oldest, batch + 1)
            self._changed.notify_all()

    def close(self) -> None:
        """Let everybody through: the run has ended."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class GatedReader(Reader):
    """The same reader for the images of one batch, which pass a gate before they are decoded."""

    def __init__(self, reader: Reader, gate: PixelGate, batch: int) -> None:
        super().__init__(bits=reader.bits)
        self._reader = reader
        self._admit: Callable[[int], None] = lambda pixels: gate.enter(batch, pixels)

    def read(self, image: ListedImage, *, admit: Callable[[int], None] | None = None) -> Image.Image:
        """Return an image's pixels; see `Reader.read`."""
        return self._reader.read(image, admit=admit or self._admit)

    def size(self, image: ListedImage) -> tuple[Size, int]:
        """Return an image's size; see `Reader.size`."""
        return self._reader.size(image)

    def stamp(self, image: ListedImage) -> Stamp:
        """Return an image's stamp; see `Reader.stamp`."""
        return self._reader.stamp(image)
