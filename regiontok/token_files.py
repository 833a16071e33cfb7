"""Tokens of one photo in a file of safetensors, as ``regiontok tokenize`` writes them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from regiontok._files import write_bytes
from regiontok.errors import CheckpointError, ShapeError
from regiontok.regions import Dropped, Regions, RegionTokens


def save_tokens(path: str | Path, tokens: RegionTokens, *, config: dict[str, Any] | None = None) -> None:
    """Write the tokens of one photo, their regions, and how they were made.

    The file has ``tokens (K, dim)`` and either ``labels (rows, cols)`` int32, -1 in no region, or for regions of masks,
    which may overlap, ``masks (K, rows, cols)`` bool, ``mask_index (K,)`` int32 and ``scores (K,)``.

    Args:
        path: The file; one that is there is replaced.
        tokens: Of one photo.
        config: Whatever tells how they were made; plain values, kept as JSON in the file's metadata.

    Raises:
        ShapeError: Tokens of several photos.
        OutputError: A file that cannot be written.

    Example:
        >>> tokens = Regionizer(pool="mean")(torch.rand(1, 6, 6, 8))
        >>> save_tokens("a.safetensors", tokens)  # doctest: +SKIP
    """
    regions = tokens.regions
    if len(regions.grids) != 1:
        raise ShapeError(f"a file holds the tokens of one photo; got {len(regions.grids)}. Write one file per photo.")
    fallback = bool(regions.fallback.any())
    tensors = {"tokens": tokens.values.detach()}
    if fallback or bool((regions.mask_index >= 0).any()):
        tensors |= {"masks": regions.masks()[0], "mask_index": regions.mask_index.int(), "scores": regions.score}
    else:
        tensors["labels"] = regions.labels()[0].int()
    told = {
        **(config or {}),
        "dropped": [{"mask_index": one.mask_index, "reason": one.reason} for one in regions.dropped],
        "fallback": fallback,
    }
    whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(whole, metadata={"config": json.dumps(told)}))


def load_tokens(path: str | Path) -> RegionTokens:
    """Read the tokens of one photo back, with their regions.

    Args:
        path: A file that `save_tokens` or ``regiontok tokenize`` wrote.

    Raises:
        CheckpointError: No such file, a damaged one, or one of something else.

    Example:
        >>> import tempfile
        >>> tokens = Regionizer(pool="mean")(torch.rand(1, 6, 6, 8))
        >>> file = Path(tempfile.mkdtemp()) / "a.regions.safetensors"
        >>> save_tokens(file, tokens)
        >>> torch.equal(load_tokens(file).values, tokens.values)
        True
    """
    config = read_config(path)
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  it is no mapping
        if "labels" in found:
            return RegionTokens(found["tokens"], Regions.from_labels(found["labels"][None].long()))
        fallback = bool(config["fallback"])
        masks, index = found["masks"], found["mask_index"].long()
        scores = found.get("scores", torch.full((len(masks),), torch.nan))
        regions = Regions.from_masks([masks], scores=[scores], mask_index=[index])
        if len(regions) != len(masks):
            raise ShapeError("every region must have a patch.")
        dropped = tuple(Dropped(0, int(one["mask_index"]), str(one["reason"])) for one in config["dropped"])
        made = Regions(**vars(regions) | {"fallback": torch.tensor([fallback]), "dropped": dropped})
        return RegionTokens(found["tokens"], made)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no whole file of tokens: {error}") from error


def read_config(path: str | Path) -> dict[str, Any]:
    """How the tokens of a file were made: what `save_tokens` was told.

    Raises:
        CheckpointError: No such file, or not one of tokens.
    """
    try:
        with safe_open(path, "pt") as file:
            return dict(json.loads((file.metadata() or {})["config"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no whole file of tokens: {error}") from error
