"""Region tokens of one image in a safetensors file, as ``regiontok tokenize --out`` writes them."""

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
    """Write the tokens of one image and their regions to a file.

    The file contains ``tokens (R, D)``. If the regions are not made from masks, it also contains
    ``labels (rows, cols)`` int32, with -1 for patches in no region. Regions of masks may overlap and are stored as
    ``masks (R, rows, cols)`` bool, ``mask_index (R,)`` int32 and ``scores (R,)``.

    Args:
        path: The file; an existing file is replaced.
        tokens: The tokens of one image.
        config: A description of how the tokens were made, stored as JSON in the metadata of the file.

    Raises:
        ShapeError: ``tokens`` contain several images.
        OutputError: The file cannot be written.

    Example:
        >>> tokens = Regionizer(pool="mean")(torch.rand(1, 6, 6, 8))
        >>> save_tokens("a.safetensors", tokens)  # doctest: +SKIP
    """
    regions = tokens.regions
    if len(regions.grids) != 1:
        raise ShapeError(f"tokens must contain exactly one image; got {len(regions.grids)}. Write one file per image.")
    fallback = bool(regions.fallback.any())
    tensors = {"tokens": tokens.values.detach()}
    overlaps = bool((torch.bincount(regions.flat_patch) > 1).any())
    if fallback or overlaps or bool((regions.mask_index >= 0).any()):
        tensors |= {"masks": regions.masks()[0], "mask_index": regions.mask_index.int(), "scores": regions.score}
    else:
        tensors["labels"] = regions.labels()[0].int()
    metadata = {
        **(config or {}),
        "dropped": [{"mask_index": mask.mask_index, "reason": mask.reason} for mask in regions.dropped],
        "fallback": fallback,
    }
    contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(contiguous, metadata={"config": json.dumps(metadata)}))


def load_tokens(path: str | Path) -> RegionTokens:
    """Read the tokens of one image and their regions from a file.

    Args:
        path: A file written by `save_tokens` or ``regiontok tokenize``.

    Raises:
        DataError: The file cannot be read, is damaged, or is not a token file.

    Example:
        >>> import tempfile
        >>> tokens = Regionizer(pool="mean")(torch.rand(1, 6, 6, 8))
        >>> file = Path(tempfile.mkdtemp()) / "a.regions.safetensors"
        >>> save_tokens(file, tokens)
        >>> torch.equal(load_tokens(file).values, tokens.values)
        True
    """
    tensors, config = _read(path)
    try:
        tokens = tensors["tokens"]
        if not tokens.is_floating_point():
            raise ShapeError(f"tokens must be floating point; got {tokens.dtype}.")
        dropped = tuple(
            Dropped(image=0, mask_index=int(entry["mask_index"]), reason=str(entry["reason"]))
            for entry in config["dropped"]
        )
        stored_fields = {"fallback": torch.tensor([bool(config["fallback"])]), "dropped": dropped}
        if "labels" in tensors:
            regions = Regions.from_labels(tensors["labels"][None].long())
        else:
            masks, index = tensors["masks"], tensors["mask_index"].long()
            regions = Regions.from_masks([masks], scores=[tensors["scores"]], mask_index=[index])
            if len(regions) != len(masks):
                raise ShapeError("a stored mask has no patch.")
        return RegionTokens(tokens, Regions(**vars(regions) | stored_fields))
    except KeyError as error:
        raise DataError(f"{path} is not a complete token file: it has no {error}.") from error
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DataError(f"{path} is not a complete token file: {error}") from error


def read_config(path: str | Path) -> dict[str, Any]:
    """Return the ``config`` that was passed to `save_tokens`.

    It is returned with the keys ``dropped`` and ``fallback`` (True if no mask became a region).

    Raises:
        DataError: The file cannot be read, is damaged, or is not a token file.
    """
    return _read(path)[1]


def _read(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and the config of a file."""
    try:
        data = Path(path).read_bytes()  # safetensors cannot open a file whose name is not UTF-8
        tensors = load(data)
        header_size = int.from_bytes(data[:8], "little")
        config = json.loads(json.loads(data[8 : 8 + header_size])["__metadata__"]["config"])
        if not isinstance(config, dict):
            raise TypeError("its config is not a JSON object")
        return tensors, config
    except KeyError as error:
        raise DataError(f"{path} is not a complete token file: it has no {error}.") from error
    except (SafetensorError, OSError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        raise DataError(f"{path} is not a complete token file: {error}") from error
