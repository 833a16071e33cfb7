"""Combine rows of stores into batches, for a ``DataLoader`` of torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import default_collate

from regiontok.errors import ShapeError
from regiontok.maskset import MaskSet
from regiontok.tokens import RegionTokens


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Combine rows into a batch, as the ``collate_fn`` of a ``DataLoader``.

    Args:
        rows: Mappings with the same keys, such as the items of ``store.as_dataset()``. They may have further values.

    Returns:
        A batch for each key: `RegionTokens` are concatenated, `MaskSet` become a list as `Regionizer` accepts it, and
        all other values are combined by the ``default_collate`` of torch.

    Raises:
        ShapeError: There are no rows, or their keys differ.

    Example:
        >>> import tempfile
        >>> from torch.utils.data import DataLoader
        >>> from regiontok import store
        >>> tokens = Regionizer(pool="mean")(torch.rand(3, 6, 6, 8))
        >>> folder = tempfile.mkdtemp() + "/tokens"
        >>> store.write_tokens(folder, zip(["a.jpg", "b.jpg", "c.jpg"], tokens))
        3
        >>> loader = DataLoader(store.TokenStore(folder).as_dataset(), batch_size=2, collate_fn=store.collate)
        >>> [(batch["key"], len(batch["tokens"].counts)) for batch in loader]
        [(['a.jpg', 'b.jpg'], 2), (['c.jpg'], 1)]
    """
    if not rows or any(row.keys() != rows[0].keys() for row in rows):
        raise ShapeError(f"rows must be one or more mappings with the same keys; got {[list(row) for row in rows]}.")
    return {key: _combine([row[key] for row in rows]) for key in rows[0]}


def _combine(values: list[Any]) -> Any:
    if all(isinstance(value, RegionTokens) for value in values):
        return RegionTokens.cat(values)
    if all(isinstance(value, MaskSet) for value in values):
        return values
    return default_collate(values)
