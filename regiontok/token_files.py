"""Tokens of one image in a file of safetensors, as ``regiontok tokenize`` writes them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from regiontok._files import write_bytes
from regiontok.errors import DataError, ShapeError
from regiontok.regions import Dropped, Regions
from regiontok.tokens import RegionTokens


def save_tokens(path: str | Path, tokens: RegionTokens, *, config: dict[str, Any] | None = None) -> None:
    """Write the tokens of one image, their regions, and how they were made.

    The file has ``tokens (K, dim)`` and either ``labels (rows, cols)`` int32, -1 in no region, or for regions of masks,
    which may overlap, ``masks (K, rows, cols)`` bool, ``mask_index (K,)`` int32 and ``scores (K,)``.

    Args:
        path: The file; one that is there is replaced.
        tokens: Of one image.
        config: Whatever tells how they were made; plain values, kept as JSON in the file's metadata.

    Raises:
        ShapeError: Tokens of several images.
        OutputError: A file that cannot be written.

    Example:
        >>> tokens = Regionizer(pool="mean")(torch.rand(1, 6, 6, 8))
        >>> save_tokens("a.safetensors", tokens)  # doctest: +SKIP
    """
    regions = tokens.regions
    if len(regions.grids) != 1:
        raise ShapeError(f"a file holds the tokens of one image; got {len(regions.grids)}. Write one file per image.")
    fallback = bool(regions.fallback.any())
    tensors = {"tokens": tokens.values.detach()}
    overlaps = bool((torch.bincount(regions.flat_patch) > 1).any())
    if fallback or overlaps or bool((regions.mask_index >= 0).any()):
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
    """Read the tokens of one image back, with their regions.

    Args:
        path: A file that `save_tokens` or ``regiontok tokenize`` wrote.

    Raises:
        DataError: No such file, a damaged one, or one of something else.

    Example:
        >>> import tempfile
        >>> tokens = Regionizer(pool="mean")(torch.rand(1, 6, 6, 8))
        >>> file = Path(tempfile.mkdtemp()) / "a.regions.safetensors"
        >>> save_tokens(file, tokens)
        >>> torch.equal(load_tokens(file).values, tokens.values)
        True
    """
    found, config = _read(path)
    try:
        tokens = found["tokens"]
        if not tokens.is_floating_point():
            raise ShapeError(f"tokens must be floating point; these are {tokens.dtype}.")
        dropped = tuple(Dropped(0, int(one["mask_index"]), str(one["reason"])) for one in config["dropped"])
        told = {"fallback": torch.tensor([bool(config["fallback"])]), "dropped": dropped}
        if "labels" in found:
            regions = Regions.from_labels(found["labels"][None].long())
        else:
            masks, index = found["masks"], found["mask_index"].long()
            scores = found.get("scores", torch.full((len(masks),), torch.nan))
            regions = Regions.from_masks([masks], scores=[scores], mask_index=[index])
            if len(regions) != len(masks):
                raise ShapeError("every region must have a patch.")
        return RegionTokens(tokens, Regions(**vars(regions) | told))
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DataError(f"{path} is no whole file of tokens: {error}") from error


def read_config(path: str | Path) -> dict[str, Any]:
    """How the tokens of a file were made: what `save_tokens` was told.

    Raises:
        DataError: No such file, or not one of tokens.
    """
    return _read(path)[1]


def _read(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and config of a file; by its bytes, since a name that is not UTF-8 may be none to safetensors."""
    try:
        data = Path(path).read_bytes()
        found = load(data)
        length = int.from_bytes(data[:8], "little")
        config = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["config"])
        if not isinstance(config, dict):
            raise TypeError("its config is no object")
        return found, config
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        raise DataError(f"{path} is no whole file of tokens: {error}") from error
