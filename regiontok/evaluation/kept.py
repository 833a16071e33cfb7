"""Masks of images that have no name, as those of benchmarks: kept in a store by what is in them, and made once."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from PIL import Image

from regiontok.errors import MissingKeyError
from regiontok.images import as_images
from regiontok.maskset import MaskSet
from regiontok.store import Manifest, MaskStore, StoreWriter
from regiontok.store.manifest import read_manifest
from regiontok.store.masks import masks_table
from regiontok.store.places import Address, Place

_MOST_HELD = 500
"""Images whose masks are in memory alone, which a process that ends would lose."""


class KeptMasks:
    """A generator of masks that looks into a store first, by a digest of the image's pixels.

    Args:
        path: The store.
        generator: Makes the masks that it lacks, which are added to it; without it they are an error.
        writer: A number of its own for each process that adds to the store.

    Raises:
        StoreError: No store, and no generator.
        OutputError, ValueRangeError: Where masks are to be added: a place that cannot be written to, or a store that
            another generator made.
    """

    def __init__(self, path: Address, generator: Any = None, *, writer: int = 0) -> None:
        self.path = path
        self.generator = generator
        self._made: dict[str, MaskSet] = {}
        self._writer: StoreWriter | None = None
        if generator is not None:
            manifest = Manifest(kind="masks", made_by=generator.describe())
            self._writer = StoreWriter(path, manifest, writer=writer, shared=True)
        self._store = MaskStore(path)

    def describe(self) -> dict[str, Any]:
        """What made the masks."""
        found = read_manifest(Place.of(self.path))
        return {} if found is None else found.made_by

    def __call__(self, images: Image.Image | Sequence[Image.Image]) -> list[MaskSet]:
        """Masks of one image or several.

        Raises:
            MissingKeyError: The store has not those of an image, and there is no generator.
        """
        images = as_images(images)
        keys = [digest(image) for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self}
        if new:
            if self.generator is None or self._writer is None:
                raise MissingKeyError(
                    f"{self.path} has no masks of image {next(iter(new))}, by a digest of its pixels. Have them made "
                    "by --missing GENERATOR."
                )
            masks = self.generator(list(new.values()))
            self._made |= zip(new, masks, strict=True)
            self._writer.write(masks_table(list(new), masks))
        found = [self._made[key] if key in self._made else self._store[key] for key in keys]
        if len(self._made) >= _MOST_HELD:
            self.flush()
        return found

    def __contains__(self, key: str) -> bool:
        return key in self._made or key in self._store

    def flush(self) -> None:
        """Write what was made so far."""
        if self._writer is not None and self._made:
            self._writer.cut()
            self._store, self._made = MaskStore(self.path), {}


def digest(image: Image.Image) -> str:
    """What tells an image's pixels from others."""
    told = blake2b(f"{image.mode} {image.size} ".encode(), digest_size=16)
    told.update(image.tobytes())
    return told.hexdigest()
