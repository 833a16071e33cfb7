"""`Regionizer`: the composition of the steps, and the options that make it again. No maths lives here."""

import json
from collections.abc import Sequence
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
    check_number,
    flatten_features,
    flatten_valid,
)
from regiontok.clustering import UnionFindClusterer
from regiontok.downsample import METHODS, MaskDownsampler, Masks
from regiontok.errors import CheckpointError, ShapeError, ValueRangeError
from regiontok.geometry import ImageGeometry, Size
from regiontok.maskset import check_size
from regiontok.normalize import rms_normalize
from regiontok.ordering import ORDERS, order_regions
from regiontok.pooling import CrossAttnPool, MeanPool
from regiontok.regions import Regions, RegionTokens
from regiontok.splitting import check_splitting, split_regions

SOURCES = ("clustering", "patch", "segmentation", "combined")
MASK_SOURCES = ("segmentation", "combined")
NORMS = ("rms", "none")
POOLS = ("cross_attention", "mean")
PADDINGS = ("drop", "keep")

_CONFIG_FILE = "regionizer.json"
_WEIGHTS_FILE = "regionizer.safetensors"


class Regionizer(nn.Module):
    """Turn the patch features of a batch of photos into region tokens.

    Normalise the features, group patches into regions, bring the regions into an order, pool each into one token. Each
    step is a method, to be called alone or replaced. Gradients flow through pooling and normalisation, not through the
    grouping.

    Args:
        source: Where regions come from: ``clustering`` of similar neighbours; ``patch``, every patch a region;
            ``segmentation``, the masks given with the features; ``combined``, these masks split by `split_regions`.
        dim: Feature dimension; needed by ``cross_attention``, and checked wherever it is given.
        norm: ``rms``, root mean square of each patch feature without a weight, or ``none``.
        pool: ``cross_attention`` or ``mean``. None is the paper's: cross-attention, and the mean for ``patch``, whose
            regions have one patch each.
        num_heads: Heads of cross-attention.
        order: Order of an image's tokens: ``raster``, ``centroid``, ``area``, ``random`` or, for masks with scores,
            ``score``; see `order_regions`.
        seed: Seed of the random order, for which every call draws anew.
        threshold: Least cosine at which clustering merges, of all patches or of those that no mask covers.
        num_regions: An exact number of tokens per image instead; for ``clustering`` only.
        connectivity: 4 or 8 neighbours for clustering.
        padding: ``drop`` keeps the patches that are not valid out of every region; ``keep`` uses all. Masks never lie
            on padding.
        geometry: How the encoder places photos, ``encoder.geometry``; their masks go the same way.
        coverage: The share of a patch above which it is in a mask; see `MaskDownsampler` for this and the next three.
        downsampling: ``exact`` or ``two_step``.
        uncovered: Patches in no mask: ``drop``, ``background``, ``single_patches`` or ``cluster``.
        overlap: Patches in several masks: ``keep`` or ``smallest``.
        eps: Greatest distance between near patches; see `split_regions` for this and the next three.
        min_samples: Near patches that make a patch the core of a group.
        split_min_patches: The least patches of a mask that is split.
        noise: Patches in no group: ``own_region``, ``single_patches`` or ``drop``.

    Raises:
        DTypeError, ValueRangeError: An option, or a combination of them, that cannot be.

    Shape:
        features: ``(B, rows, cols, dim)`` or a list of ``(rows, cols, dim)``, floating point.
        masks: A list with one entry per photo: a `MaskSet`, ``(M, height, width)`` bool, COCO RLE, or a label map.
        valid: ``(B, rows, cols)`` bool or a list of ``(rows, cols)``: which patches show the photo; None for all, or
            for what masks' geometry tells.
        sizes: Each photo's height and width, ``(B, 2)``. Masks of another size are refused; for the other sources they
            tell, with ``geometry``, which patches show the photo where ``valid`` does not.

    Example:
        >>> features = torch.tensor([[[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]]])
        >>> tokens = Regionizer(pool="mean", norm="none")(features)
        >>> tokens.regions.labels()
        tensor([[[0, 0, 1]]])
        >>> tokens.values
        tensor([[1.0000, 0.0500],
                [0.0000, 1.0000]])

        With masks of the photo, here of 20 x 60 pixels:

        >>> regionizer = Regionizer(source="segmentation", pool="mean", geometry=ImageGeometry.squash((16, 48)))
        >>> left = torch.arange(60) < 20
        >>> regionizer(features, masks=[left.expand(1, 20, 60)]).regions.labels()
        tensor([[[ 0, -1, -1]]])

    Source:
        The paper's system: A.1 for sources and their numbers, A.2 for pooling, Table 1 for norm and order. That the
        norm has no weight, the default order, and what becomes of padding, overlaps, noise and uncovered patches are
        our choices.
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
        geometry: ImageGeometry | dict[str, Any] | None = None,
        coverage: float = 0.07,
        downsampling: str = "exact",
        uncovered: str = "drop",
        overlap: str = "keep",
        eps: float = 0.7,
        min_samples: int = 3,
        split_min_patches: int = 10,
        noise: str = "own_region",
    ) -> None:
        super().__init__()
        check_choice("source", source, SOURCES)
        check_choice("norm", norm, NORMS)
        if pool is None:
            pool = "mean" if source == "patch" else "cross_attention"
        check_choice("pool", pool, POOLS)
        check_choice("order", order, ORDERS)
        check_choice("padding", padding, PADDINGS)
        check_integer("seed", seed, minimum=0)
        if num_regions is not None and source != "clustering":
            raise ValueRangeError(f"num_regions is for source='clustering'; got source={source!r}. Leave it out.")
        if padding == "keep" and source in MASK_SOURCES:
            raise ValueRangeError(
                f"padding='keep' is not for source={source!r}: masks never lie on padding. Leave it out."
            )
        if order == "score" and (source not in MASK_SOURCES or uncovered != "drop"):
            raise ValueRangeError(
                "order='score' needs a score for every region: source='segmentation' or 'combined' with "
                "uncovered='drop'. Use another order."
            )
        if isinstance(geometry, dict):  # as in a saved folder
            geometry = ImageGeometry(**geometry)
        if dim is None and pool == "cross_attention":
            raise ValueRangeError("pool='cross_attention' needs the features' dimension, as in dim=1024.")
        if dim is not None:
            check_integer("dim", dim)
        check_integer("num_heads", num_heads)
        self._clusterer = UnionFindClusterer(threshold=threshold, num_regions=num_regions, connectivity=connectivity)
        check_number("coverage", coverage, low=0, high=1)
        check_choice("downsampling", downsampling, METHODS)
        self._downsampler = MaskDownsampler(
            geometry=geometry,
            threshold=coverage,
            method=downsampling,
            uncovered=uncovered,
            overlap=overlap,
            clusterer=self._clusterer,
        )
        check_splitting(eps, min_samples, split_min_patches, noise)
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
            "geometry": None if geometry is None else geometry.to_config(),
            "coverage": float(coverage),
            "downsampling": downsampling,
            "uncovered": uncovered,
            "overlap": overlap,
            "eps": float(eps),
            "min_samples": int(min_samples),
            "split_min_patches": int(split_min_patches),
            "noise": noise,
        }
        self.pool = CrossAttnPool(dim, num_heads) if pool == "cross_attention" else MeanPool()  # type: ignore[arg-type]
        if order == "random":  # counted in the state, so that a resumed run goes on where it stopped
            self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def reset_parameters(self) -> None:
        """Start anew: the pool as the mean, the random order at its first draw."""
        if isinstance(self.pool, CrossAttnPool):
            self.pool.reset_parameters()
        if self.config["order"] == "random":
            nn.init.zeros_(self.draws)

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self.config.items())

    def forward(
        self,
        features: Features,
        *,
        masks: Sequence[Masks] | None = None,
        valid: Valid | None = None,
        sizes: Sequence[Size] | None = None,
    ) -> RegionTokens:
        """Region tokens of a batch, ``(R, dim)`` values with their regions.

        Raises:
            ShapeError, DTypeError, ValueRangeError: Features, masks or ``valid`` that cannot be; see the steps.
        """
        features = self.normalize(features)
        regions = self.order(self.group(features, masks=masks, valid=valid, sizes=sizes))
        return self.pool(features, regions)

    def normalize(self, features: Features) -> Features:
        """Features, checked and normalised as ``norm`` says, in the same shape."""
        check_features(features)
        dim = features[0].shape[-1]
        if self.config["dim"] not in (None, dim):
            raise ShapeError(f"features must have dim {self.config['dim']} like this Regionizer; got {dim}.")
        return rms_normalize(features) if self.config["norm"] == "rms" else features

    def group(
        self,
        features: Features,
        *,
        masks: Sequence[Masks] | None = None,
        valid: Valid | None = None,
        sizes: Sequence[Size] | None = None,
    ) -> Regions:
        """`Regions` of features that are already normalised, in raster order."""
        source = self.config["source"]
        if (masks is None) == (source in MASK_SOURCES):
            needs = "needs masks, one entry per photo" if masks is None else "takes no masks"
            raise ValueRangeError(f"source={source!r} {needs}, as in regionizer(features, masks=[...]).")
        if masks is None and sizes is not None:
            shown = self._shown(features, sizes)
            valid = shown if valid is None else valid
        if self.config["padding"] == "keep":
            valid = None
        if source == "clustering":
            return self._clusterer(features, valid)
        if masks is None:
            return _single_patches(features, valid)
        regions = self._downsampler(masks, features=features, valid=valid, sizes=sizes)
        _check_used(features, regions)
        if source == "combined":
            if valid is None:
                valid = self._downsampler.valid(masks, features=features, sizes=sizes)
            options = {name: self.config[name] for name in ("eps", "min_samples", "noise")}
            min_patches = self.config["split_min_patches"]
            regions = split_regions(features, regions, min_patches=min_patches, valid=valid, **options)
        return order_regions(regions, "raster")

    def _shown(self, features: Features, sizes: Sequence[Size]) -> list[Tensor]:
        """Which patches show photos of ``sizes``."""
        geometry = self._downsampler.geometry
        if geometry is None:
            raise ValueRangeError(
                "sizes of photos need the geometry that places them, as in geometry=encoder.geometry."
            )
        grids = check_features(features).tolist()
        if len(sizes) != len(grids):
            raise ShapeError(f"sizes must have one entry per photo, {len(grids)}; got {len(sizes)}.")
        return [
            geometry.place(check_size(f"sizes[{photo}]", size)).valid((rows, cols)).to(features[0].device)
            for photo, (size, (rows, cols)) in enumerate(zip(sizes, grids, strict=True))
        ]

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


def _check_used(features: Features, regions: Regions) -> None:
    """Refuse NaN and infinity in patches that are in a region."""
    flat = flatten_features(features)
    used = torch.zeros(len(flat.values), dtype=torch.bool, device=flat.values.device)
    used[regions.flat_patch] = True
    sizes = flat.grids.prod(1).tolist()
    shown = torch.where(used[:, None], flat.values.detach(), 0)
    for image, (values, cols) in enumerate(zip(shown.split(sizes), flat.grids[:, 1].tolist(), strict=True)):
        check_finite(values, image, cols)


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
