"""Subjects of the contracts: every public object or function that computes, and every public value."""

import importlib
import pkgutil
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
    _kernels,
    encoders,
    order_regions,
    rms_normalize,
    split_regions,
)
from regiontok._kernels.logits import measure
from regiontok.encoders import PixelDescriptor
from regiontok.evaluation.partition import compare_partitions, mean_partitions, measure_partition
from regiontok.masks import FelzenszwalbMasks, MaskSettings
from tests.conftest import randomized, smooth_features

ROWS, COLS, DIM = 6, 7, 16
GEOMETRY = ImageGeometry.letterbox((8 * ROWS, 8 * COLS))
SIZES = [(40, 56), (48, 30), (48, 56)]
"""Image sizes of three shapes, so that each image of a batch has other padding patches."""


@dataclass(frozen=True)
class Batch:
    """Images on one grid: features, valid patches and masks."""

    features: torch.Tensor
    valid: torch.Tensor
    masks: list[MaskSet]

    def __getitem__(self, index: list[int]) -> "Batch":
        return Batch(self.features[index], self.valid[index], [self.masks[image] for image in index])


def batch(seed: int = 0) -> Batch:
    """Return three images."""
    valid = torch.stack([GEOMETRY.place(size).valid((ROWS, COLS)) for size in SIZES])
    generator = np.random.default_rng(seed)
    masks = []
    for height, width in SIZES:
        coarse = generator.random((5, 4, 4)) < 0.4
        rows, cols = np.arange(height) * 4 // height, np.arange(width) * 4 // width
        masks.append(MaskSet.from_masks(coarse[:, rows][:, :, cols], scores=generator.random(5)))
    return Batch(smooth_features(ROWS, COLS, DIM, seed=seed, batch=3), valid, masks)


def regions_of(images: Batch) -> Regions:
    """Return regions that do not depend on the features' dtype."""
    label = (torch.arange(ROWS)[:, None] // 2 * COLS + torch.arange(COLS) // 3).expand(len(images.features), -1, -1)
    return Regions.from_labels(torch.where(images.valid, label, -1))


def mask_regions_of(images: Batch) -> Regions:
    return MaskDownsampler((ROWS, COLS), geometry=GEOMETRY)(images.masks, valid=images.valid)


def _split(tokens: RegionTokens) -> list[Any]:
    return [(values, masks) for values, masks in zip(tokens.split(), tokens.regions.masks(), strict=True)]


def _regionize(regionizer: Regionizer, images: Batch) -> list[Any]:
    masks = images.masks if regionizer.config.source in ("segmentation", "combined") else None
    return _split(regionizer(images.features, valid=images.valid, masks=masks))


def _pool(pool: torch.nn.Module, images: Batch) -> list[Any]:
    return _split(pool(images.features, regions_of(images)))


def _cluster(clusterer: UnionFindClusterer, images: Batch) -> list[Any]:
    return clusterer(images.features, images.valid).masks()


def _trees(clusterer: UnionFindClusterer, images: Batch) -> list[Any]:
    trees = clusterer.tree(images.features, images.valid)
    return [(tree.pairs, tree.valid, tree.cut(num_regions=5).masks(), tree.curve()[0]) for tree in trees]


def _downsample(downsampler: MaskDownsampler, images: Batch) -> list[Any]:
    return downsampler(images.masks, features=images.features, valid=images.valid).masks()


def _cross(**options: Any) -> CrossAttnPool:
    return randomized(CrossAttnPool(DIM, 4, **options))


def _source(source: str, **options: Any) -> Regionizer:
    geometry = GEOMETRY if source in ("segmentation", "combined") else None
    return randomized(
        Regionizer(source=source, dim=DIM, pool="cross_attention", num_heads=4, geometry=geometry, **options)
    )


@dataclass(frozen=True)
class Subject:
    """An object or function that computes per image.

    Attributes:
        name: Its name in test reports.
        covers: Public names whose contract it checks.
        make: Returns a new object to call, or the function.
        call: Calls it on a batch and returns one result per image, of tensors, arrays and containers.
        differentiable: Whether its results have gradients for features.
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
    Subject("UnionFindClusterer", ("UnionFindClusterer",), UnionFindClusterer, _cluster),
    Subject("UnionFindClusterer-ward", ("UnionFindClusterer",), partial(UnionFindClusterer, num_regions=6, connectivity=8), _cluster),
    Subject("MergeTree", ("MergeTree",), partial(UnionFindClusterer, linkage="ward"), _trees),
    Subject("MaskDownsampler", ("MaskDownsampler", "MaskSet", "Placement"), partial(MaskDownsampler, geometry=GEOMETRY), _downsample),
    Subject("MaskDownsampler-cluster", ("MaskDownsampler",), partial(MaskDownsampler, geometry=GEOMETRY, unassigned="cluster", overlap="assign_smallest"), _downsample),
    Subject("rms_normalize", ("rms_normalize",), lambda: rms_normalize, lambda normalize, images: list(normalize(images.features)), True),
    Subject("order_regions", ("order_regions", "Regions"), lambda: order_regions, lambda order, images: order(regions_of(images), "area").masks()),
    Subject("split_regions", ("split_regions",), lambda: split_regions, lambda split, images: split(images.features, mask_regions_of(images), split_min_patches=3, valid=images.valid).masks()),
    Subject("measure_partition", ("partition.measure_partition",), lambda: measure_partition, lambda measure, images: [list(scores) for scores in measure(images.features, regions_of(images), valid=images.valid)]),
    Subject("compare_partitions", ("partition.compare_partitions", "partition.mean_partitions", "partition.grid_regions"), lambda: compare_partitions, lambda compare, images: [mean_partitions([compare(features, valid=valid, num_regions=(4, 6))]) for features, valid in zip(images.features, images.valid, strict=True)]),
]  # fmt: skip


def values() -> dict[str, Any]:
    """Return public values by name; they can be copied and pickled, and some have a repr that is code."""
    images = batch()
    regions = mask_regions_of(images)
    tree = UnionFindClusterer(linkage="ward").tree(images.features, images.valid)[0]
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
            [{"id": 3, "category_id": 2, "segmentation": mask} for mask in images.masks[0].to_coco()], scores=[0.5] * 5
        ),
        "MaskSet, on the grid": MaskSet.on_grid(np.ones((2, 3, 3)), valid=np.ones((3, 3), bool)),
        "MergeTree": tree,
    }


EVALUABLE = (
    "ImageGeometry", "Placement", "RegionizerConfig", "UnionFindClusterer", "MaskDownsampler", "MaskSettings",
    "Dropped", "FelzenszwalbMasks",
)  # fmt: skip
"""Values of options alone, whose repr is code that makes them. Modules keep torch's repr; data shows its size."""


def kernels() -> list[Callable[..., Any]]:
    """Return every function of `regiontok._kernels`, compiled or not."""
    modules = [
        importlib.import_module(f"{_kernels.__name__}.{module.name}")
        for module in pkgutil.iter_modules(_kernels.__path__)
    ]
    return [value for module in modules for value in vars(module).values() if callable(value)]


def _masks() -> np.ndarray:
    masks = np.random.default_rng(0).random((3, 17, 13)) < 0.4
    masks[2] = True
    return masks


def _coverage() -> list[torch.Tensor]:
    geometries = (ImageGeometry.letterbox(8), ImageGeometry.center_crop((30, 8)), ImageGeometry.squash(64))
    forms = (_masks(), MaskSet.from_coco(MaskSet.from_masks(_masks()).to_coco()))
    downsamplers = [MaskDownsampler(grid, geometry=one) for one in geometries for grid in ((2, 2), (5, 3), (40, 40))]
    return [downsampler.coverage(masks) for downsampler in downsamplers for masks in forms]


def _measured_logits() -> list[np.ndarray]:
    areas, boxes = np.empty((3, 2), np.int64), np.empty((3, 4), np.int64)
    measure((_masks() * 4 - 2).astype(np.float32), 1, areas, boxes)
    return [areas, boxes]


KERNELS: dict[str, Callable[[], Any]] = {
    **{f"clustering, {options}": lambda options=options: UnionFindClusterer(**options)(smooth_features(7, 9, 12, batch=2)).labels()
       for options in ({"connectivity": 8}, {"linkage": "average", "num_regions": 9}, {"linkage": "ward", "num_regions": 9},
                       {"explained_variance": 0.6, "connectivity": 8})},
    "a tree on one row": lambda: UnionFindClusterer().tree(smooth_features(1, 6, 3))[0].cut(num_regions=2).labels(),
    "one column": lambda: UnionFindClusterer(num_regions=5)(smooth_features(5, 1, 4)).labels(),
    "RLE": lambda: MaskSet.from_coco(MaskSet.from_masks(_masks()).to_coco()),
    "a label map": lambda: MaskSet.from_labels(_masks()[0].astype(int) - 1),
    "coverage": _coverage,
    "splitting": lambda: split_regions(smooth_features(6, 5, 8), Regions.from_masks([torch.from_numpy(_masks()[:, :6, :5].copy())]), split_min_patches=2).region,
    "candidate masks": _measured_logits,
}  # fmt: skip
"""Calls that reach kernels, or sides of them, that `SUBJECTS` do not."""


def same(actual: Any, wanted: Any, close: Callable[[torch.Tensor, torch.Tensor], None] | None = None) -> None:
    """Assert that two results are equal, NaN included; ``close`` compares tensors of floats if given."""
    assert type(actual) is type(wanted)
    if isinstance(actual, torch.Tensor):
        assert actual.shape == wanted.shape
        if close is not None and actual.is_floating_point():
            close(actual, wanted)
        else:
            assert actual.dtype == wanted.dtype
            assert torch.equal(actual.isnan(), wanted.isnan())
            assert torch.equal(actual.nan_to_num(), wanted.nan_to_num())
    elif isinstance(actual, np.ndarray):
        np.testing.assert_array_equal(actual, wanted)
    elif isinstance(actual, Image.Image):
        np.testing.assert_array_equal(np.asarray(actual), np.asarray(wanted))
    elif isinstance(actual, dict):
        assert list(actual) == list(wanted)
        for key in actual:
            same(actual[key], wanted[key], close)
    elif isinstance(actual, list | tuple):
        assert len(actual) == len(wanted)
        for left, right in zip(actual, wanted, strict=True):
            same(left, right, close)
    elif isinstance(actual, torch.nn.Module):
        assert repr(actual) == repr(wanted)
        same(dict(actual.state_dict()), dict(wanted.state_dict()), close)
    elif is_dataclass(actual):
        same(
            [getattr(actual, field.name) for field in fields(actual)],
            [getattr(wanted, field.name) for field in fields(wanted)],
            close,
        )
    elif isinstance(actual, float):
        assert (
            actual == wanted
            or (actual != actual and wanted != wanted)
            or (close is not None and abs(actual - wanted) < 0.05)
        )
    elif hasattr(actual, "__dict__") and type(actual).__eq__ is object.__eq__:
        same(vars(actual), vars(wanted), close)
    else:
        assert actual == wanted
