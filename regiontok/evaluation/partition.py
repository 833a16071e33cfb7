"""Measures of how well regions represent their patches and annotated objects.

    scores = measure_partition(features, regions, valid=valid)
    scores[0].explained_variance

`compare_partitions` measures a grid, clustering with each linkage and both mask sources at equal numbers of regions.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from regiontok._values import check_integer
from regiontok.batch import Features, PatchBatch, Valid, check_finite, flatten_valid
from regiontok.budgets import resolve_budget
from regiontok.choices import BUDGETS, LINKAGES, MASK_WEIGHT
from regiontok.clustering import UnionFindClusterer
from regiontok.downsample import MaskDownsampler
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.geometry import ImageGeometry, Placement
from regiontok.masked import merge_masks
from regiontok.maskset import MaskSet
from regiontok.merge_tree import MergeTree
from regiontok.regions import Regions


class PartitionScores(NamedTuple):
    """Scores of the regions of one image.

    Attributes:
        num_regions: Number of regions.
        explained_variance: Fraction of the squared deviation of the unit-length patches that is preserved when each
            patch is replaced by the mean of its region: 1 for single patches, 0 for one region. A patch in several
            regions is replaced by the mean of their means, a patch in no region by the mean of all patches. 1 if all
            patches are equal.
        singleton_fraction: Fraction of the regions that are a single patch.
        largest_fraction: Fraction of the patches that are in the largest region.
        boundary_recall: Fraction of the boundary pixels of objects that are at most half a patch away from a boundary
            of regions; None without objects. Pixels outside the encoder's input are ignored, here and below.
        miou: Mean over objects of the intersection over union of an object and the union of the regions assigned to
            it, those with most of their area inside it; None without objects.
    """

    num_regions: float
    explained_variance: float
    singleton_fraction: float
    largest_fraction: float
    boundary_recall: float | None = None
    miou: float | None = None


class PartitionResult(NamedTuple):
    """A row of `compare_partitions`: the scores of one source at one budget.

    Attributes:
        source: ``grid``, ``centroid``, ``average``, ``ward``, ``segmentation``, ``combined``, or a name of ``others``.
        num_regions: The budget as a number of regions, if any.
        scores: The scores.
        keep: The budget as a fraction of the valid patches, if any.
    """

    source: str
    num_regions: int | None
    scores: PartitionScores
    keep: float | None = None


def grid_regions(valid: Tensor, num_regions: int) -> Regions:
    """Return the cells of the finest grid of at most ``num_regions`` cells over the valid patches.

    Of grids with equally many cells, that with the squarest cells is used. Cells without a valid patch are dropped.

    Args:
        valid: ``(rows, cols)`` bool.
        num_regions: Maximum number of cells.

    Raises:
        ShapeError: ``valid`` is not two-dimensional.
        ValueRangeError: There is no valid patch, or ``num_regions`` is below 1.

    Example:
        >>> grid_regions(torch.ones(2, 6, dtype=torch.bool), 3).labels()
        tensor([[[0, 0, 1, 1, 2, 2],
                 [0, 0, 1, 1, 2, 2]]])
    """
    if valid.ndim != 2:
        raise ShapeError(f"valid must be (rows, cols); got {tuple(valid.shape)}.")
    num_regions = check_integer("num_regions", num_regions)
    row, col = valid.nonzero(as_tuple=True)
    if not len(row):
        raise ValueRangeError("valid must have a valid patch; got none.")
    top, left = int(row.min()), int(col.min())
    rows, cols = int(row.max()) - top + 1, int(col.max()) - left + 1
    shapes = ((cell_rows, min(cols, num_regions // cell_rows)) for cell_rows in range(1, min(rows, num_regions) + 1))
    cell_rows, cell_cols = max(
        shapes, key=lambda shape: (shape[0] * shape[1], -abs(np.log(rows * shape[1] / (cols * shape[0]))))
    )
    cell = (row - top) * cell_rows // rows * cell_cols + (col - left) * cell_cols // cols
    labels = torch.full(valid.shape, -1, dtype=torch.int64, device=valid.device)
    labels[row, col] = cell
    return Regions.from_labels(labels[None])


def measure_partition(
    features: Features,
    regions: Regions,
    *,
    valid: Valid | None = None,
    objects: Sequence[MaskSet] | None = None,
    geometry: ImageGeometry | None = None,
) -> list[PartitionScores]:
    """Return the scores of the regions of each image.

    Args:
        features: ``(B, rows, cols, D)`` or a list of ``(rows, cols, D)``. They are scaled to unit length. Clips have
            frames first.
        regions: Regions of the same images.
        valid: The valid patches; all by default.
        objects: Annotated objects of each image, in image pixels; not for clips.
        geometry: Geometry of the encoder, ``encoder.geometry``; required with ``objects``.

    Raises:
        ShapeError, DTypeError, ValueRangeError: Invalid arguments, or arguments that do not match each other.

    Example:
        >>> features = torch.tensor([[[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]]])
        >>> halves = Regions.from_labels(torch.tensor([[[0, 0, 1, 1]]]))
        >>> measure_partition(features, halves)[0].explained_variance
        1.0

    Source:
        Our choice, similar to the undersegmentation error and boundary recall of superpixels.
    """
    batch = PatchBatch.of(features)
    batch.check_grids("regions", regions.grids)
    flat_valid = flatten_valid(valid, batch.shapes)
    if objects is not None:
        if geometry is None:
            raise ValueRangeError("objects need the geometry of the encoder; pass geometry=encoder.geometry.")
        if len(batch.shapes[0]) == 3:
            raise ValueRangeError("objects are of images, and the features of clips. Leave objects out.")
        if len(objects) != len(batch) or not all(isinstance(masks, MaskSet) for masks in objects):
            raise ShapeError(f"objects must be one MaskSet per image, {len(batch)}; got {objects!r}.")
    all_valid = torch.ones(len(batch.values), dtype=torch.bool) if flat_valid is None else flat_valid.cpu()
    results = []
    for image, (values, is_valid) in enumerate(zip(batch.split(batch.values), batch.split(all_valid), strict=True)):
        *_, rows, cols = batch.shapes[image]
        member = _membership(regions, image)
        if bool((member.amax(0) > is_valid).any()):
            raise ValueRangeError(f"image {image} has regions on invalid patches. Create its regions with this valid.")
        scores = _measure(values.detach().double().cpu(), is_valid, member, image, cols)
        if objects is not None and geometry is not None:
            placement = geometry.place(objects[image].size)
            recall = _boundary_recall(member, objects[image], placement, (rows, cols))
            miou = _mean_iou(member, objects[image], geometry, (rows, cols))
            scores = scores._replace(boundary_recall=recall, miou=miou)
        results.append(scores)
    return results


def compare_partitions(
    features: Tensor,
    *,
    valid: Tensor | None = None,
    num_regions: Sequence[int] = BUDGETS,
    keep: Sequence[float] = (),
    masks: Regions | None = None,
    mask_weight: float = MASK_WEIGHT,
    others: Mapping[str, Regions] | None = None,
    objects: MaskSet | None = None,
    geometry: ImageGeometry | None = None,
    connectivity: int = 4,
) -> list[PartitionResult]:
    """Measure a grid, clustering with each linkage and both mask sources at equal numbers of regions on one image.

    Args:
        features: ``(rows, cols, D)``, normalized for clustering.
        valid: ``(rows, cols)`` bool; all by default.
        num_regions: Budgets as numbers of regions. An image with fewer valid patches has one region per patch.
        keep: Further budgets, as fractions of the valid patches.
        masks: Masks of the image on the grid, from `MaskDownsampler`, for ``segmentation`` and ``combined``.
            ``segmentation`` has at most one region per mask. Both leave unassigned patches without a region.
        mask_weight: Weight of masks relative to features; see `regiontok.masked`.
        others: Further regions of the image by name, without a budget.
        objects: Annotated objects, for boundary recall and mean IoU.
        geometry: Geometry of the encoder; required with ``objects``.
        connectivity: 4 or 8 neighbours for clustering.

    Returns:
        A `PartitionResult` per source and budget, followed by ``others``.

    Raises:
        ShapeError, DTypeError, ValueRangeError: Invalid arguments, or arguments that do not match each other.

    Example:
        >>> rows = compare_partitions(torch.rand(6, 6, 8), num_regions=(4,))
        >>> [(row.source, row.scores.num_regions) for row in rows]
        [('grid', 4), ('centroid', 4), ('average', 4), ('ward', 4)]
    """
    batch = features[None]
    is_valid = torch.ones(features.shape[:2], dtype=torch.bool) if valid is None else valid.cpu()
    patches = [int(is_valid.sum())]
    budgets: list[tuple[int | None, float | None, int]] = [
        (number, None, check_integer("num_regions", number)) for number in num_regions
    ]
    budgets += [(None, fraction, (resolve_budget(patches, keep=fraction) or patches)[0]) for fraction in keep]
    partitions: list[tuple[str, int | None, float | None, Regions]] = []

    def add(source: str, group: Callable[[int], Regions]) -> None:
        partitions.extend((source, number, fraction, group(budget)) for number, fraction, budget in budgets)

    add("grid", partial(grid_regions, is_valid))
    for linkage in LINKAGES:
        tree = UnionFindClusterer(linkage=linkage, connectivity=connectivity).tree(batch, is_valid[None])[0]
        add(linkage, partial(_cut, tree))
    if masks is not None:
        add("segmentation", lambda budget: merge_masks(batch, masks, [budget], mask_weight=mask_weight))
        clusterer = UnionFindClusterer(connectivity=connectivity, mask_weight=mask_weight)
        add("combined", partial(_cut, clusterer.tree(batch, masks=masks)[0]))
    partitions += [(name, None, None, regions) for name, regions in (others or {}).items()]
    objects_of_batch = None if objects is None else [objects]
    results = []
    for source, number, fraction, regions in partitions:
        scores = measure_partition(batch, regions, valid=is_valid[None], objects=objects_of_batch, geometry=geometry)
        results.append(PartitionResult(source, number, scores[0], fraction))
    return results


def compare_clip_partitions(
    features: Tensor,
    *,
    valid: Tensor | None = None,
    num_regions: Sequence[int] = BUDGETS,
    keep: Sequence[float] = (),
    connectivity: int = 4,
) -> list[PartitionResult]:
    """Measure Ward linkage on single frames and on whole clips, at equal numbers of regions of one clip.

    Args:
        features: ``(frames, rows, cols, D)``, normalized for clustering.
        valid: ``(frames, rows, cols)`` bool; all by default.
        num_regions: Budgets of the whole clip as numbers of regions, at least one per frame.
        keep: Further budgets, as fractions of the valid patches.
        connectivity: 4 or 8 neighbours within a frame.

    Returns:
        A `PartitionResult` per source and budget. The sources are ``ward per frame``, which divides the budget equally
        among the frames, and ``motion 0`` and ``motion 2`` for regions of the whole clip.

    Raises:
        ShapeError, DTypeError, ValueRangeError: Invalid arguments, or a budget below the number of frames.

    Example:
        >>> rows = compare_clip_partitions(torch.rand(3, 4, 4, 8), num_regions=(6,))
        >>> [(row.source, row.scores.num_regions) for row in rows]
        [('ward per frame', 6), ('motion 0', 6), ('motion 2', 6)]
    """
    if features.ndim != 4:
        raise ShapeError(f"features must be (frames, rows, cols, dim); got {tuple(features.shape)}.")
    is_valid = torch.ones(features.shape[:3], dtype=torch.bool) if valid is None else valid.cpu()
    frames, patches = len(features), [int(is_valid.sum())]
    budgets: list[tuple[int | None, float | None, int]] = [
        (number, None, min(check_integer("num_regions", number), patches[0])) for number in num_regions
    ]
    budgets += [(None, fraction, (resolve_budget(patches, keep=fraction) or patches)[0]) for fraction in keep]
    lowest = min(budget for *_, budget in budgets)
    if lowest < frames:
        raise ValueRangeError(f"budgets must be at least one region per frame, {frames}; got {lowest}.")
    trees = UnionFindClusterer(linkage="ward", connectivity=connectivity).tree(features, is_valid)

    def per_frame(budget: int) -> Regions:
        shares = [budget // frames + (frame < budget % frames) for frame in range(frames)]
        cuts = [tree.cut(num_regions=share).labels()[0] for tree, share in zip(trees, shares, strict=True)]
        offsets = np.cumsum([0, *(int(labels.max()) + 1 for labels in cuts)])[:-1].tolist()
        shifted = [torch.where(labels < 0, labels, labels + first) for labels, first in zip(cuts, offsets, strict=True)]
        return Regions.from_labels(torch.stack(shifted)[None])

    sources: dict[str, Callable[[int], Regions]] = {"ward per frame": per_frame}
    for motion in (0, 2):
        clusterer = UnionFindClusterer(linkage="ward", connectivity=connectivity, motion=motion)
        sources[f"motion {motion}"] = partial(_cut, clusterer.tree(features[None], is_valid[None])[0])
    results = []
    for source, group in sources.items():
        for number, fraction, budget in budgets:
            (scores,) = measure_partition(features[None], group(budget), valid=is_valid[None])
            results.append(PartitionResult(source, number, scores, fraction))
    return results


def mean_partitions(images: Sequence[Sequence[PartitionResult]]) -> list[PartitionResult]:
    """Return the mean of each score over images.

    Images without a score, such as the IoU of objects outside the encoder's input, are left out of its mean.

    Args:
        images: Results of `compare_partitions` with the same sources and budgets.

    Raises:
        ShapeError: There is no image, or sources or budgets differ.
    """
    keys = [[(row.source, row.num_regions, row.keep) for row in rows] for rows in images]
    if not keys or any(image_keys != keys[0] for image_keys in keys):
        raise ShapeError("images must have one entry or more, with the same sources and budgets.")
    means = []
    for rows in zip(*images, strict=True):
        columns = zip(*(row.scores for row in rows), strict=True)
        values = [[value for value in column if value is not None] for column in columns]
        scores = PartitionScores(*(float(np.mean(column)) if column else None for column in values))  # type: ignore[arg-type]
        means.append(rows[0]._replace(scores=scores))
    return means


def _cut(tree: MergeTree, num_regions: int) -> Regions:
    return tree.cut(num_regions=num_regions)


def _membership(regions: Regions, image: int) -> Tensor:
    """Return which patches are in which region of an image, as ``(R, patches)`` float64 of 0 and 1."""
    in_image = regions.image == image
    first = int(in_image.nonzero()[0])
    entries = in_image[regions.region]
    member = torch.zeros(int(in_image.sum()), int(regions.grids[image].prod()), dtype=torch.float64)
    member[(regions.region[entries] - first).cpu(), regions.patch[entries].cpu()] = 1
    return member


def _measure(values: Tensor, is_valid: Tensor, member: Tensor, image: int, cols: int) -> PartitionScores:
    """Return the scores of an image without objects from ``values (P, D)``, ``is_valid (P,)`` and ``member (R, P)``."""
    values = torch.where(is_valid[:, None], values, 0)
    check_finite(values, image, cols)
    unit = torch.nn.functional.normalize(values, dim=1, eps=1e-300)
    areas = member.sum(1)
    means = member @ unit / areas[:, None]
    memberships = member.sum(0)
    mean = unit[is_valid].mean(0)
    approximation = torch.where(memberships[:, None] > 0, member.T @ means / memberships.clamp(min=1)[:, None], mean)
    total = (unit[is_valid] - mean).square().sum()
    error = (unit - approximation)[is_valid].square().sum()
    rounding = 1e-12 * len(unit)
    return PartitionScores(
        num_regions=len(member),
        explained_variance=1.0 if total <= rounding else float(1 - error / total),
        singleton_fraction=float((areas == 1).double().mean()),
        largest_fraction=float(areas.max() / is_valid.sum()),
    )


def _mean_iou(member: Tensor, objects: MaskSet, geometry: ImageGeometry, grid: tuple[int, int]) -> float | None:
    """Return the mean IoU from exact areas: of the image and of each object in every patch."""
    downsampler = MaskDownsampler(grid, geometry=geometry)
    coverage = downsampler.coverage(objects).flatten(1).double()
    image_area = downsampler.coverage(np.ones((1, *objects.size), np.bool_)).flatten().double()
    background = (image_area - coverage.sum(0)).clamp(min=0)
    overlap = member @ torch.cat([background[None], coverage]).T  # (R, 1 + objects)
    assigned = overlap.argmax(1) - 1
    ious = []
    for number, mask in enumerate(coverage):
        if not mask.any():  # the object is outside the encoder's input
            continue
        is_assigned = assigned == number
        union = member[is_assigned].amax(0) if is_assigned.any() else torch.zeros_like(image_area)
        intersection = float((union * mask).sum())
        ious.append(intersection / float((union * image_area).sum() + mask.sum() - intersection))
    return float(np.mean(ious)) if ious else None


def _boundary_recall(member: Tensor, objects: MaskSet, placement: Placement, grid: tuple[int, int]) -> float | None:
    patch_side = placement.input[0] / grid[0] / max(placement.scale)  # in pixels of the image
    _, label = np.unique(member.numpy(), axis=1, return_inverse=True)  # patches in the same regions share a label
    patch = placement.patches(grid)
    is_visible = patch >= 0
    region_edges = _edges(np.append(label, -1)[patch], is_visible)
    distance = distance_transform_edt(~region_edges) if region_edges.any() else np.full(region_edges.shape, np.inf)
    object_edges = np.zeros(region_edges.shape, bool)
    for mask in objects.masks().numpy():
        object_edges |= _edges(mask, is_visible)
    return float((distance[object_edges] <= patch_side / 2).mean()) if object_edges.any() else None


def _edges(labels: np.ndarray, is_visible: np.ndarray) -> np.ndarray:
    """Return the pixels whose label differs from the left or upper neighbour, where both pixels are visible."""
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= (labels[:, 1:] != labels[:, :-1]) & is_visible[:, 1:] & is_visible[:, :-1]
    edge[1:] |= (labels[1:] != labels[:-1]) & is_visible[1:] & is_visible[:-1]
    return edge
