"""A mask generator that stores its masks by image content, for images without names such as those of benchmarks."""

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
from regiontok.store.storage import Address, Storage

_MAX_PENDING = 500
"""Number of images whose masks are kept in memory only; an interruption loses them."""


class CachedMaskGenerator:
    """A mask generator with a store as its cache. Keys are digests of the pixels.

    Args:
        path: The store.
        generator: Makes masks that the store lacks; they are added to the store. If None, missing masks are an error.
        writer: A different number for each process that writes to the store.

    Raises:
        StoreError: There is no store, and ``generator`` is None.
        OutputError, StoreError: With ``generator``: the store cannot be written, or another generator made it.
    """

    def __init__(self, path: Address, generator: Any = None, *, writer: int = 0) -> None:
        self.path = path
        self.generator = generator
        self._pending: dict[str, MaskSet] = {}
        self._writer: StoreWriter | None = None
        if generator is not None:
            manifest = Manifest(kind="masks", provenance=generator.describe())
            self._writer = StoreWriter(path, manifest, writer=writer, shared=True)
        self._store = MaskStore(path)

    def describe(self) -> dict[str, Any]:
        """Return the provenance of the masks."""
        manifest = read_manifest(Storage.of(self.path))
        return {} if manifest is None else manifest.provenance

    def __call__(self, images: Image.Image | Sequence[Image.Image]) -> list[MaskSet]:
        """Return the masks of each image.

        Raises:
            MissingKeyError: The store lacks the masks of an image, and there is no generator.
        """
        images = as_images(images)
        keys = [digest(image) for image in images]
        missing = {key: image for key, image in zip(keys, images, strict=True) if key not in self}
        if missing:
            if self.generator is None or self._writer is None:
                raise MissingKeyError(
                    f"{self.path} has no masks of the image with digest {next(iter(missing))}. Make missing masks with "
                    "--missing GENERATOR."
                )
            masks = self.generator(list(missing.values()))
            self._pending |= zip(missing, masks, strict=True)
            self._writer.write(masks_table(list(missing), masks))
        results = [self._pending[key] if key in self._pending else self._store[key] for key in keys]
        if len(self._pending) >= _MAX_PENDING:
            self.flush()
        return results

    def __contains__(self, key: str) -> bool:
        return key in self._pending or key in self._store

    def flush(self) -> None:
        """Write pending masks to the store."""
        if self._writer is not None and self._pending:
            self._writer.flush()
            self._store, self._pending = MaskStore(self.path), {}


def digest(image: Image.Image) -> str:
    """Return a digest of the mode, size and pixels of an image."""
    state = blake2b(f"{image.mode} {image.size} ".encode(), digest_size=16)
    state.update(image.tobytes())
    return state.hexdigest()
