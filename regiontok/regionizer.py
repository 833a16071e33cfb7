"""`Regionizer`: the composition of the steps, and the options that make it again. No maths lives here."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from regiontok._checks import (
    Features,
    Valid,
    check_choice,
    check_features,
    check_finite,
    check_integer,
    flatten_features,
    flatten_valid,
)
from regiontok.clustering import UnionFindClusterer
from regiontok.errors import CheckpointError, ShapeError, ValueRangeError
from regiontok.normalize import rms_normalize
from regiontok.ordering import ORDERS, order_regions
from regiontok.pooling import CrossAttnPool, MeanPool
from regiontok.regions import Regions, RegionTokens

SOURCES = ("clustering", "patch")
NORMS = ("rms", "none")
POOLS = ("cross_attention", "mean")
PADDINGS = ("drop", "keep")
TOKEN_ORDERS = tuple(order for order in ORDERS if order != "score")  # no source here has scores

_CONFIG_FILE = "regionizer.json"
_WEIGHTS_FILE = "regionizer.safetensors"


class Regionizer(nn.Module):
    """Turn the patch features of a batch of photos into region tokens.

    Normalise the features, group patches into regions, bring the regions into an order, pool each into one token. Each
    step is a method, to be called alone or replaced. Gradients flow through pooling and normalisation, not through the
    grouping.

    Args:
        source: Where regions come from: ``clustering`` of similar neighbours, or ``patch``, every patch a region.
        dim: Feature dimension; needed by ``cross_attention``, and checked wherever it is given.
        norm: ``rms``, root mean square of each patch feature without a weight, or ``none``.
        pool: ``cross_attention`` or ``mean``. None is the paper's: cross-attention, and the mean for ``patch``, whose
            regions have one patch each.
        num_heads: Heads of cross-attention.
        order: Order of an image's tokens: ``raster``, ``centroid``, ``area`` or ``random``; see `order_regions`.
        seed: Seed of the random order, for which every call draws anew.
        threshold: Least cosine at which clustering merges.
        num_regions: An exact number of tokens per image instead; for ``clustering`` only.
        connectivity: 4 or 8 neighbours for clustering.
        padding: ``drop`` keeps the patches that are not valid out of every region; ``keep`` uses all.

    Raises:
        DTypeError, ValueRangeError: An option, or a combination of them, that cannot be.

    Shape:
        features: ``(B, rows, cols, dim)`` or a list of ``(rows, cols, dim)``, floating point.
        valid: ``(B, rows, cols)`` bool or a list of ``(rows, cols)``: which patches show the photo; None for all.

    Example:
        >>> features = torch.tensor([[[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]]])
        >>> tokens = Regionizer(pool="mean", norm="none")(features)
        >>> tokens.regions.labels()
        tensor([[[0, 0, 1]]])
        >>> tokens.values
        tensor([[1.0000, 0.0500],
                [0.0000, 1.0000]])

    Source:
        The paper's system: A.1 for sources and threshold, A.2 for pooling, Table 1 for norm and order. That the norm
        has no weight, the default order, and that padding is dropped are our choices.
    """

    draws: Tensor

    def __init__(
        self,
        *,
        source: str = "clustering",
        dim: int | None = None,
        norm: str = "rms",
        pool: str | None = None,
        num_heads: int = 16,
        order: str = "raster",
        seed: int = 0,
        threshold: float = 0.7,
        num_regions: int | None = None,
        connectivity: int = 4,
        padding: str = "drop",
    ) -> None:
        super().__init__()
        check_choice("source", source, SOURCES)
        check_choice("norm", norm, NORMS)
        if pool is None:
            pool = "mean" if source == "patch" else "cross_attention"
        check_choice("pool", pool, POOLS)
        check_choice("order", order, TOKEN_ORDERS)
        check_choice("padding", padding, PADDINGS)
        check_integer("seed", seed, minimum=0)
        if num_regions is not None and source != "clustering":
            raise ValueRangeError(f"num_regions is for source='clustering'; got source={source!r}. Leave it out.")
        if dim is None and pool == "cross_attention":
            raise ValueRangeError("pool='cross_attention' needs the features' dimension, as in dim=1024.")
        if dim is not None:
            check_integer("dim", dim)
        check_integer("num_heads", num_heads)
        self._clusterer = UnionFindClusterer(threshold=threshold, num_regions=num_regions, connectivity=connectivity)
        self.config: dict[str, Any] = {
            "source": source,
            "dim": None if dim is None else int(dim),
            "norm": norm,
            "pool": pool,
            "num_heads": int(num_heads),
            "order": order,
            "seed": int(seed),
            "threshold": float(threshold),
            "num_regions": None if num_regions is None else int(num_regions),
            "connectivity": int(connectivity),
            "padding": padding,
        }
        self.pool = CrossAttnPool(dim, num_heads) if pool == "cross_attention" else MeanPool()  # type: ignore[arg-type]
        if order == "random":  # counted in the state, so that a resumed run goes on where it stopped
            self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self.config.items())

    def forward(self, features: Features, *, valid: Valid | None = None) -> RegionTokens:
        """Region tokens of a batch, ``(R, dim)`` values with their regions.

        Raises:
            ShapeError, DTypeError, ValueRangeError: Features or ``valid`` that cannot be; see the steps.
        """
        features = self.normalize(features)
        regions = self.order(self.group(features, valid=valid))
        return self.pool(features, regions)

    def normalize(self, features: Features) -> Features:
        """Features, checked and normalised as ``norm`` says, in the same shape."""
        check_features(features)
        dim = features[0].shape[-1]
        if self.config["dim"] not in (None, dim):
            raise ShapeError(f"features must have dim {self.config['dim']} like this Regionizer; got {dim}.")
        return rms_normalize(features) if self.config["norm"] == "rms" else features

    def group(self, features: Features, *, valid: Valid | None = None) -> Regions:
        """`Regions` of features that are already normalised, in raster order."""
        if self.config["padding"] == "keep":
            valid = None
        if self.config["source"] == "clustering":
            return self._clusterer(features, valid)
        return _single_patches(features, valid)

    def order(self, regions: Regions) -> Regions:
        """The same regions in the order of the tokens."""
        name = self.config["order"]
        if name == "raster":  # as every source makes them
            return regions
        generator = None
        if name == "random":
            mixed = np.random.SeedSequence([self.config["seed"], int(self.draws)])  # torch itself takes 32 bits alone
            generator = torch.Generator().manual_seed(int(mixed.generate_state(1)[0]))
            self.draws += 1
        return order_regions(regions, name, generator=generator)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the options and weights into a folder, as ``regionizer.json`` and ``regionizer.safetensors``.

        Raises:
            CheckpointError: The folder cannot be made.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{folder} must be a folder that can be made: {error.strerror}.") from error
        config = {"regiontok": version("regiontok"), **self.config}
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / _WEIGHTS_FILE)
        (folder / _CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Regionizer":
        """Load what `save_pretrained` wrote.

        Raises:
            CheckpointError: A file is missing or damaged, has an unknown option, or does not fit the other.
        """
        folder = Path(folder)
        for name in (_CONFIG_FILE, _WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder} has no {name}. Give a folder that Regionizer.save_pretrained wrote.")
        try:
            config = json.loads((folder / _CONFIG_FILE).read_text(encoding="utf-8"))
            state = load_file(folder / _WEIGHTS_FILE)
        except (ValueError, SafetensorError) as error:
            raise CheckpointError(f"{folder} holds a damaged {_CONFIG_FILE} or {_WEIGHTS_FILE}: {error}") from error
        if not isinstance(config, dict):
            raise CheckpointError(
                f"{folder / _CONFIG_FILE} must hold an object of options; got {type(config).__name__}."
            )
        saved_by = config.pop("regiontok", "unknown")
        try:
            regionizer = cls(**config)
            regionizer.load_state_dict(state)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{folder}, saved by regiontok {saved_by}, does not fit this version: {error}"
            ) from error
        return regionizer


def _single_patches(features: Features, valid: Valid | None) -> Regions:
    """Every (valid) patch a region of its own."""
    flat = flatten_features(features)
    flat_valid = flatten_valid(valid, flat.grids)
    sizes = flat.grids.prod(1).tolist()
    patch = torch.cat([torch.arange(size, device=flat.values.device) for size in sizes])
    shown = flat.values
    if flat_valid is not None:
        flat_valid = flat_valid.to(patch.device)
        patch = torch.where(flat_valid, patch, -1)
        shown = torch.where(flat_valid[:, None], shown, 0)
    for image, (values, cols) in enumerate(zip(shown.split(sizes), flat.grids[:, 1].tolist(), strict=True)):
        check_finite(values, image, cols)
    grids = flat.grids.tolist()
    return Regions.from_labels([one.reshape(grid) for one, grid in zip(patch.split(sizes), grids, strict=True)])
