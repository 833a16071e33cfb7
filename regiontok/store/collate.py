"""Rows of stores as batches of a torch ``DataLoader``."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import default_collate

from regiontok.errors import ShapeError
from regiontok.maskset import MaskSet
from regiontok.tokens import RegionTokens


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Combine rows into a batch, as ``collate_fn`` of a ``DataLoader``.

    Args:
        rows: Mappings with the same names, such as those of ``store.rows()``, with further values beside them.

    Returns:
        By name: one batch of `RegionTokens`; a list of `MaskSet`, as `Regionizer` takes masks; and anything else as
        torch's ``default_collate`` combines it.

    Raises:
        ShapeError: No rows, or rows with different names.

    Example:
        >>> import tempfile
        >>> from torch.utils.data import DataLoader
        >>> from regiontok import store
        >>> tokens = Regionizer(pool="mean")(torch.rand(3, 6, 6, 8))
        >>> folder = tempfile.mkdtemp() + "/tokens"
        >>> store.write_tokens(folder, zip(["a.jpg", "b.jpg", "c.jpg"], tokens))
        3
        >>> loader = DataLoader(store.TokenStore(folder).rows(), batch_size=2, collate_fn=store.collate)
        >>> [(batch["key"], len(batch["tokens"].counts)) for batch in loader]
        [(['a.jpg', 'b.jpg'], 2), (['c.jpg'], 1)]
    """
    if not rows or any(row.keys() != rows[0].keys() for row in rows):
        raise ShapeError(f"rows must be one or more with the same names; got {[list(row) for row in rows]}.")
    return {name: _combine([row[name] for row in rows]) for name in rows[0]}


def _combine(values: list[Any]) -> Any:
    if all(isinstance(value, RegionTokens) for value in values):
        return RegionTokens.cat(values)
    if all(isinstance(value, MaskSet) for value in values):
        return values
    return default_collate(values)
