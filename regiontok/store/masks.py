"""Stores of masks, with a row per image in COCO's RLE; pycocotools, datasets and DuckDB can read the shards.

Columns: ``key`` (string); ``height`` and ``width`` (int32); ``counts`` (list of binary: COCO's compressed RLE);
``scores`` and ``stability`` (list of float32); ``ids`` and ``categories`` (list of int64), null if the masks have none;
``image_bytes`` and ``image_modified`` (int64: microseconds since 1970, UTC) of the image file, null if unknown.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from regiontok.errors import ValueRangeError
from regiontok.maskset import MaskSet
from regiontok.store.base import Store
from regiontok.store.shards import pyarrow
from regiontok.store.stamps import Stamp, with_stamps
from regiontok.store.storage import Address
from regiontok.store.writer import write_pairs


class MaskStore(Store[MaskSet]):
    """Masks of images by key, read from a store of `write_masks` or ``regiontok masks``.

    The store is a mapping: ``store[key]``, ``key in store``, ``len(store)``, iteration over keys and ``store.items()``.
    The key of an image is its path below the image folder. A store can be used by several threads, and in forked and
    spawned workers.

    Args:
        path: A local folder, or a remote address such as ``s3://bucket/masks``.
        shards: Open only these shards: a slice such as ``slice(rank, None, world_size)``, or their names.

    Attributes:
        provenance: How the masks were made.
        shards: The names of the shards.
        damaged: The reasons of damaged shards by name. They cause a warning, and the other shards are used.
        failures: The reasons of failed images, by key.
        repeated: Number of rows that are not used because a later row has the same key.

    Raises:
        StoreError: There is no store, or it is not a store of masks.
        MissingDependencyError: pyarrow is not installed.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp() + "/masks"
        >>> write_masks(folder, [("a.jpg", MaskSet.from_masks(np.ones((2, 4, 6), bool)))])
        1
        >>> store = MaskStore(folder)
        >>> len(store), store["a.jpg"], "b.jpg" in store
        (1, MaskSet(2 masks of 4 x 6 pixels), False)
    """

    kind = "masks"
    count_column = "scores"

    def _value(self, table: Any, row: int) -> MaskSet:
        values = {name: table.column(name)[row].as_py() for name in table.column_names}
        size = (values["height"], values["width"])
        masks = MaskSet.from_coco(
            [{"size": size, "counts": counts} for counts in values["counts"]],
            size=size,
            scores=np.array(values["scores"], np.float32),
            stability=np.array(values["stability"], np.float32),
        )
        ids, categories = (
            None if values[name] is None else np.array(values[name], np.int64) for name in ("ids", "categories")
        )
        if any(array is not None and array.shape != (len(masks),) for array in (ids, categories)):
            raise ValueRangeError("there must be as many ids and categories as masks.")
        return replace(masks, ids=ids, categories=categories)


def write_masks(
    path: Address,
    masks: Iterable[tuple[str, MaskSet]],
    *,
    provenance: dict[str, Any] | None = None,
    overwrite: bool = False,
    shard_size: int = 1000,
) -> int:
    """Add masks to a store.

    Args:
        path: A local folder, or a remote address such as ``s3://bucket/masks``; created if it does not exist.
        masks: Pairs of a key and the masks of this image, in any form that `MaskSet.of` accepts. A generator is read
            one pair at a time.
        provenance: How the masks were made, as JSON values, such as ``generator.describe()``. It must be the same for
            all rows of a store.
        overwrite: Remove existing rows first.
        shard_size: Maximum number of images in a shard.

    Returns:
        The number of images.

    Raises:
        OutputError: The folder is not writable, or is not a store.
        StoreError: The store is damaged, or has another kind or provenance.
        ValueRangeError: A key is already in the store, or is not a relative path.
        MissingDependencyError: pyarrow is not installed.
    """
    return write_pairs(
        path,
        "masks",
        masks,
        lambda key, value: masks_table([key], [MaskSet.of(value)]),
        provenance=provenance,
        overwrite=overwrite,
        shard_size=shard_size,
    )


def masks_table(keys: Sequence[str], masks: Sequence[MaskSet]) -> Any:
    """Return rows of a store of masks as a table of pyarrow.

    Raises:
        ValueRangeError: The masks were made on a patch grid, so their pixels are unknown.
    """
    pa, _ = pyarrow()
    schema = pa.schema(
        [
            ("key", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("counts", pa.list_(pa.binary())),
            ("scores", pa.list_(pa.float32())),
            ("stability", pa.list_(pa.float32())),
            ("ids", pa.list_(pa.int64())),
            ("categories", pa.list_(pa.int64())),
        ]
    )
    columns = {
        "key": list(keys),
        "height": [image.size[0] for image in masks],
        "width": [image.size[1] for image in masks],
        "counts": [[rle["counts"] for rle in image.to_coco()] for image in masks],
        "scores": [image.scores for image in masks],
        "stability": [image.stability for image in masks],
        "ids": [image.ids for image in masks],
        "categories": [image.categories for image in masks],
    }
    return with_stamps(pa.table(columns, schema), [Stamp()] * len(keys))
