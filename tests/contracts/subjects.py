"""What the contracts are checked on: everything public that computes, and every public value, one entry each."""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from regiontok import (
    CrossAttnPool,
    Dropped,
    ImageGeometry,
    MaskDownsampler,
    MaskSet,
    MeanPool,
    Regionizer,
    RegionizerConfig,
    Regions,
    RegionTokens,
    UnionFindClusterer,
    encoders,
    order_regions,
    rms_normalize,
    split_regions,
)
from regiontok.encoders import PixelDescriptor
from regiontok.evaluation.partition import compare_partitions, mean_partitions, measure_partition
from regiontok.masks import FelzenszwalbMasks, MaskSettings
from tests.conftest import smooth_features

ROWS, COLS, DIM = 6, 7, 16
GEOMETRY = ImageGeometry.letterbox((8 * ROWS, 8 * COLS))
SIZES = [(40, 56), (48, 30), (48, 56)]
"""Images of three shapes, so that each image of a batch has patches of its own that are not valid."""


@dataclass(frozen=True)
class Batch:
    """Images of one grid: features, which of their patches are valid, and their masks."""

    features: torch.Tensor
    valid: torch.Tensor
    masks: list[MaskSet]

    def __getitem__(self, index: list[int]) -> "Batch":
        return Batch(self.features[index], self.valid[index], [self.masks[one] for one in index])


def batch(seed: int = 0) -> Batch:
    """Three images."""
    valid = torch.stack([GEOMETRY.place(size).valid((ROWS, COLS)) for size in SIZES])
    generator = np.random.default_rng(seed)
    masks = []
    for height, width in SIZES:
        coarse = generator.random((5, 4, 4)) < 0.4
        rows, cols = np.arange(height) * 4 // height, np.arange(width) * 4 // width
        masks.append(MaskSet.from_masks(coarse[:, rows][:, :, cols], scores=generator.random(5)))
    return Batch(smooth_features(ROWS, COLS, DIM, seed=seed, batch=3), valid, masks)


def labels_of(given: Batch) -> Regions:
    """Regions to pool over, which do not depend on features' dtype."""
    label = (torch.arange(ROWS)[:, None] // 2 * COLS + torch.arange(COLS) // 3).expand(len(given.features), -1, -1)
    return Regions.from_labels(torch.where(given.valid, label, -1))


def masks_of(given: Batch) -> Regions:
    return MaskDownsampler((ROWS, COLS), geometry=GEOMETRY)(given.masks, valid=given.valid)


def _split(tokens: RegionTokens) -> list[Any]:
    return [(values, masks) for values, masks in zip(tokens.split(), tokens.regions.masks(), strict=True)]


def _regionize(regionizer: Regionizer, given: Batch) -> list[Any]:
    masks = given.masks if regionizer.config.source in ("segmentation", "combined") else None
    return _split(regionizer(given.features, valid=given.valid, masks=masks))


def _pool(pool: torch.nn.Module, given: Batch) -> list[Any]:
    return _split(pool(given.features, labels_of(given)))


def _trees(clusterer: UnionFindClusterer, given: Batch) -> list[Any]:
    trees = clusterer.tree(given.features, given.valid)
    return [(tree.pairs, tree.valid, tree.cut(num_regions=5).masks(), tree.curve()[0]) for tree in trees]


def _bring(downsampler: MaskDownsampler, given: Batch) -> list[Any]:
    return downsampler(given.masks, features=given.features, valid=given.valid).masks()


def _cross(**options: Any) -> CrossAttnPool:
    return lively(CrossAttnPool(DIM, 4, **options))


def lively(module: torch.nn.Module) -> Any:
    """A module whose weights are all at work: an untrained pool is the mean."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return module


def _source(source: str, **options: Any) -> Regionizer:
    geometry = GEOMETRY if source in ("segmentation", "combined") else None
    return lively(Regionizer(source=source, dim=DIM, pool="cross_attention", num_heads=4, geometry=geometry, **options))


@dataclass(frozen=True)
class Subject:
    """Something that computes per image.

    Attributes:
        name: What to call it.
        covers: Public names that it is the contract of.
        make: Makes the object that is called; module-level functions are their own.
        call: Calls it on a batch: one result per image, of tensors, arrays and containers.
        differentiable: Whether gradients go back to features.
    """

    name: str
    covers: tuple[str, ...]
    make: Callable[[], Any]
    call: Callable[[Any, Batch], list[Any]]
    differentiable: bool = False

    def __str__(self) -> str:
        return self.name


SUBJECTS = [
    Subject("Regionizer-clustering", ("Regionizer",), partial(_source, "clustering", threshold=0.6), _regionize, True),
    Subject("Regionizer-budget", ("Regionizer",), partial(_source, "clustering", num_regions=5), _regionize, True),
    Subject("Regionizer-variance", ("Regionizer",), partial(_source, "clustering", explained_variance=0.7), _regionize, True),
    Subject("Regionizer-patch", ("Regionizer",), partial(_source, "patch", order="centroid"), _regionize, True),
    Subject("Regionizer-segmentation", ("Regionizer",), partial(_source, "segmentation", order="score"), _regionize, True),
    Subject("Regionizer-combined", ("Regionizer",), partial(_source, "combined", split_min_patches=3), _regionize, True),
    Subject("CrossAttnPool", ("CrossAttnPool", "RegionTokens"), _cross, _pool, True),
    Subject("MeanPool", ("MeanPool",), MeanPool, _pool, True),
    Subject("UnionFindClusterer", ("UnionFindClusterer",), UnionFindClusterer, lambda one, given: one(given.features, given.valid).masks()),
    Subject("UnionFindClusterer-ward", ("UnionFindClusterer",), partial(UnionFindClusterer, num_regions=6, connectivity=8), lambda one, given: one(given.features, given.valid).masks()),
    Subject("MergeTree", ("MergeTree",), partial(UnionFindClusterer, linkage="ward"), _trees),
    Subject("MaskDownsampler", ("MaskDownsampler", "MaskSet", "Placement"), partial(MaskDownsampler, geometry=GEOMETRY), _bring),
    Subject("MaskDownsampler-cluster", ("MaskDownsampler",), partial(MaskDownsampler, geometry=GEOMETRY, uncovered="cluster", overlap="smallest"), _bring),
    Subject("rms_normalize", ("rms_normalize",), lambda: rms_normalize, lambda one, given: list(one(given.features)), True),
    Subject("order_regions", ("order_regions", "Regions"), lambda: order_regions, lambda one, given: one(labels_of(given), "area").masks()),
    Subject("split_regions", ("split_regions",), lambda: split_regions, lambda one, given: one(given.features, masks_of(given), min_patches=3, valid=given.valid).masks()),
    Subject("measure_partition", ("partition.measure_partition",), lambda: measure_partition, lambda one, given: [list(scores) for scores in one(given.features, labels_of(given), valid=given.valid)]),
    Subject("compare_partitions", ("partition.compare_partitions", "partition.mean_partitions", "partition.grid_regions"), lambda: compare_partitions, lambda one, given: [mean_partitions([one(features, valid=valid, counts=(4, 6))]) for features, valid in zip(given.features, given.valid, strict=True)]),
]  # fmt: skip


def values() -> dict[str, Any]:
    """Public values, by name: they are kept, copied and sent, and some are written as code."""
    given = batch()
    regions = masks_of(given)
    tree = UnionFindClusterer(linkage="ward").tree(given.features, given.valid)[0]
    return {
        "ImageGeometry": GEOMETRY,
        "Placement": GEOMETRY.place((40, 30)),
        "RegionizerConfig": RegionizerConfig(source="combined", dim=DIM, geometry=GEOMETRY, num_heads=4),
        "UnionFindClusterer": UnionFindClusterer(num_regions=9, linkage="average", connectivity=8),
        "MaskDownsampler": MaskDownsampler((4, 4), geometry=GEOMETRY, clusterer=UnionFindClusterer(threshold=0.4)),
        "MaskSettings": MaskSettings(points_per_side=3),
        "Dropped": Dropped(0, 1, "why"),
        "PixelDescriptor": PixelDescriptor(),
        "FelzenszwalbMasks": FelzenszwalbMasks(scale=50),
        "Regionizer": _source("segmentation"),
        "CrossAttnPool": _cross(),
        "MeanPool": MeanPool(),
        "Encoder": encoders.load("pixels", img_size=64),
        "Regions": regions,
        "RegionTokens": RegionTokens(torch.rand(len(regions), 3), regions),
        "MaskSet": MaskSet.from_coco(
            [{"id": 3, "category_id": 2, "segmentation": one} for one in given.masks[0].to_coco()], scores=[0.5] * 5
        ),
        "MaskSet, on the grid": MaskSet.on_grid(np.ones((2, 3, 3)), valid=np.ones((3, 3), bool)),
        "MergeTree": tree,
    }


EVALUABLE = (
    "ImageGeometry", "Placement", "RegionizerConfig", "UnionFindClusterer", "MaskDownsampler", "MaskSettings",
    "Dropped", "FelzenszwalbMasks",
)  # fmt: skip
"""Values that are all options, whose repr is code that makes them. Modules keep torch's repr; data tells its size."""


def same(one: Any, other: Any, close: Callable[[torch.Tensor, torch.Tensor], None] | None = None) -> None:
    """Assert that two results are the same, NaN included; tensors of floats are compared by ``close`` where it is given."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.shape == other.shape
        if close is not None and one.is_floating_point():
            close(one, other)
        else:
            assert one.dtype == other.dtype
            assert torch.equal(one.isnan(), other.isnan())
            assert torch.equal(one.nan_to_num(), other.nan_to_num())
    elif isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, Image.Image):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            same(one[key], other[key], close)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            same(left, right, close)
    elif isinstance(one, torch.nn.Module):
        assert repr(one) == repr(other)
        same(dict(one.state_dict()), dict(other.state_dict()), close)
    elif is_dataclass(one):
        same(
            [getattr(one, field.name) for field in fields(one)],
            [getattr(other, field.name) for field in fields(other)],
            close,
        )
    elif isinstance(one, float):
        assert one == other or (one != one and other != other) or (close is not None and abs(one - other) < 0.05)
    elif hasattr(one, "__dict__") and type(one).__eq__ is object.__eq__:
        same(vars(one), vars(other), close)
    else:
        assert one == other
