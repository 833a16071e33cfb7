"""How well regions stand for their patches, and for annotated objects: what a choice of source costs an encoder.

    scores = measure_partition(features, regions, valid=valid)
    scores[0].kept                                   # the share of the squared deviation that the regions keep

`compare_partitions` measures a grid, clustering by its three linkages and both sources of masks at equal counts.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from regiontok._checks import Features, Valid, check_finite, check_integer, flatten_features, flatten_valid
from regiontok.budgets import resolve_budget
from regiontok.choices import BUDGETS, LINKAGES, MASK_WEIGHT
from regiontok.clustering import UnionFindClusterer
from regiontok.downsample import MaskDownsampler
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.geometry import ImageGeometry, Placement
from regiontok.masked import merge_masks
from regiontok.maskset import MaskSet
from regiontok.regions import Regions


class PartitionScores(NamedTuple):
    """How well one image's regions stand for it.

    Attributes:
        regions: How many there are.
        kept: The share of the squared deviation of the patches, at unit length, that is kept when each is replaced by
            its region's mean: 1 for single patches, 0 for one region. A patch in several regions counts with the mean
            of their means, a patch in none with the mean of all. 1 where patches do not differ.
        single: The share of regions that are one patch.
        largest: The share of the patches that is in the largest region.
        boundary_recall: The share of the objects' boundary pixels that lie no further from a boundary of regions than
            half a patch; None without objects. What the encoder does not see of the image does not count, here and
            below.
        miou: Intersection over union of objects with the regions most of which lies in them, averaged over objects;
            None without objects.
    """

    regions: float
    kept: float
    single: float
    largest: float
    boundary_recall: float | None = None
    miou: float | None = None


class PartitionResult(NamedTuple):
    """Regions of one image under a name, as `compare_partitions` measures them.

    Attributes:
        source: ``grid``, ``centroid``, ``average``, ``ward``, ``segmentation``, ``combined``, or the caller's name for
            other regions.
        tokens: The count that was asked for; None for fractions, and for regions that have counts of their own.
        scores: How well they do.
        keep: The fraction of the valid patches that was asked for.
    """

    source: str
    tokens: int | None
    scores: PartitionScores
    keep: float | None = None


def grid_regions(valid: Tensor, tokens: int) -> Regions:
    """Regions that ignore the image: the largest grid of at most ``tokens`` cells over the valid patches.

    Of grids of as many cells the one with the squarest cells is taken. Cells without a valid patch become no region.

    Args:
        valid: ``(rows, cols)`` bool.
        tokens: The most cells.

    Raises:
        ShapeError: No grid.
        ValueRangeError: No valid patch, or no cell.

    Example:
        >>> grid_regions(torch.ones(2, 6, dtype=torch.bool), 3).labels()
        tensor([[[0, 0, 1, 1, 2, 2],
                 [0, 0, 1, 1, 2, 2]]])
    """
    if valid.ndim != 2:
        raise ShapeError(f"valid must be (rows, cols); got {tuple(valid.shape)}.")
    tokens = check_integer("tokens", tokens)
    row, col = valid.nonzero(as_tuple=True)
    if not len(row):
        raise ValueRangeError("there is no valid patch, so there can be no cell.")
    top, left = int(row.min()), int(col.min())
    rows, cols = int(row.max()) - top + 1, int(col.max()) - left + 1
    shapes = ((down, min(cols, tokens // down)) for down in range(1, min(rows, tokens) + 1))
    down, across = max(
        shapes, key=lambda shape: (shape[0] * shape[1], -abs(np.log(rows * shape[1] / (cols * shape[0]))))
    )
    cell = (row - top) * down // rows * across + (col - left) * across // cols
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
    """How well the regions of each image stand for it.

    Args:
        features: ``(B, rows, cols, D)`` or a list of ``(rows, cols, D)``, of any norm: they are taken at unit length.
        regions: Of the same images.
        valid: Which patches count; all by default.
        objects: Annotated objects of each image, in its pixels.
        geometry: How the encoder places images, ``encoder.geometry``; needed with ``objects``.

    Raises:
        ShapeError, DTypeError, ValueRangeError: Arguments that cannot be, or do not belong to each other.

    Example:
        >>> features = torch.tensor([[[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]]])
        >>> halves = Regions.from_labels(torch.tensor([[[0, 0, 1, 1]]]))
        >>> measure_partition(features, halves)[0].kept
        1.0

    Source:
        Our choice, after the undersegmentation and boundary measures of superpixels.
    """
    flat = flatten_features(features)
    if not torch.equal(flat.grids, regions.grids.cpu()):
        raise ShapeError(f"regions must be on the features' grids {flat.grids.tolist()}; got {regions.grids.tolist()}.")
    flat_valid = flatten_valid(valid, flat.grids)
    if objects is not None:
        if geometry is None:
            raise ValueRangeError(
                "objects need the geometry by which images are placed; pass geometry=encoder.geometry."
            )
        if len(objects) != len(flat.grids) or not all(isinstance(one, MaskSet) for one in objects):
            raise ShapeError(f"objects must be one MaskSet per image, {len(flat.grids)}; got {objects!r}.")
    sizes = flat.grids.prod(1).tolist()
    shown = torch.ones(len(flat.values), dtype=torch.bool) if flat_valid is None else flat_valid.cpu()
    scores = []
    for image, (values, allowed) in enumerate(zip(flat.values.split(sizes), shown.split(sizes), strict=True)):
        rows, cols = flat.grids[image].tolist()
        member = _members(regions, image)
        if bool((member.amax(0) > allowed).any()):
            raise ValueRangeError(
                f"image {image} has regions on patches that are not valid. Make them with this valid."
            )
        measured = _measure(values.detach().double().cpu(), allowed, member, image, cols)
        if objects is not None and geometry is not None:
            placement = geometry.place(objects[image].size)
            recall = _boundary_recall(member, objects[image], placement, (rows, cols))
            miou = _mean_iou(member, objects[image], geometry, (rows, cols))
            measured = measured._replace(boundary_recall=recall, miou=miou)
        scores.append(measured)
    return scores


def compare_partitions(
    features: Tensor,
    *,
    valid: Tensor | None = None,
    counts: Sequence[int] = BUDGETS,
    keep: Sequence[float] = (),
    masks: Regions | None = None,
    mask_weight: float = MASK_WEIGHT,
    others: Mapping[str, Regions] | None = None,
    objects: MaskSet | None = None,
    geometry: ImageGeometry | None = None,
    connectivity: int = 4,
) -> list[PartitionResult]:
    """Measure a grid, clustering by its three linkages and both sources of masks at equal counts on one image.

    Args:
        features: ``(rows, cols, D)``, normalised as clustering shall see them.
        valid: ``(rows, cols)`` bool; all by default.
        counts: Numbers of regions; an image with fewer valid patches has all of them.
        keep: Further numbers of regions, as fractions of the valid patches.
        masks: Masks of the image on the grid, from `MaskDownsampler`, for ``segmentation`` and ``combined``. There are
            at most as many regions of ``segmentation`` as masks; patches outside all masks are in no region of both.
        mask_weight: How much masks count beside features; see `regiontok.masked`.
        others: Further regions of the image by name, whose numbers are what they are.
        objects: Annotated objects, for boundary recall and mean IoU.
        geometry: How the encoder places images; needed with ``objects``.
        connectivity: 4 or 8 neighbours for clustering.

    Returns:
        A `PartitionResult` per source and count; ``others`` come last.

    Raises:
        ShapeError, DTypeError, ValueRangeError: Arguments that cannot be, or do not belong to each other.

    Example:
        >>> rows = compare_partitions(torch.rand(6, 6, 8), counts=(4,))
        >>> [(row.source, row.scores.regions) for row in rows]
        [('grid', 4), ('centroid', 4), ('average', 4), ('ward', 4)]
    """
    batch = features[None]
    allowed = torch.ones(features.shape[:2], dtype=torch.bool) if valid is None else valid.cpu()
    patches = [int(allowed.sum())]
    budgets: list[tuple[int | None, float | None, int]] = [
        (count, None, check_integer("counts", count)) for count in counts
    ]
    budgets += [(None, share, (resolve_budget(patches, keep=share) or patches)[0]) for share in keep]
    found = [("grid", *budget[:2], grid_regions(allowed, budget[2])) for budget in budgets]
    for linkage in LINKAGES:
        tree = UnionFindClusterer(linkage=linkage, connectivity=connectivity).tree(batch, allowed[None])[0]
        found += [(linkage, *budget[:2], tree.cut(num_regions=budget[2])) for budget in budgets]
    if masks is not None:
        for budget in budgets:
            merged = merge_masks(batch, masks, [budget[2]], mask_weight=mask_weight)
            found.append(("segmentation", *budget[:2], merged))
        within = UnionFindClusterer(connectivity=connectivity, mask_weight=mask_weight)
        tree = within.tree(batch, masks=masks)[0]
        found += [("combined", *budget[:2], tree.cut(num_regions=budget[2])) for budget in budgets]
    found += [(name, None, None, regions) for name, regions in (others or {}).items()]
    given = None if objects is None else [objects]
    return [
        PartitionResult(
            name, count, measure_partition(batch, one, valid=allowed[None], objects=given, geometry=geometry)[0], share
        )
        for name, count, share, one in found
    ]


def mean_partitions(images: Sequence[Sequence[PartitionResult]]) -> list[PartitionResult]:
    """The mean of every score over images that were compared in the same way; ``regions`` may then be a fraction.

    A score that an image has not, such as the IoU of objects that its encoder does not see, is a mean of the others.

    Raises:
        ShapeError: No image, or images compared in different ways.
    """
    names = [[(row.source, row.tokens, row.keep) for row in rows] for rows in images]
    if not names or any(one != names[0] for one in names):
        raise ShapeError(
            "images must be compared in the same way, one or more; these differ in their sources or counts."
        )
    means = []
    for rows in zip(*images, strict=True):
        known = (
            [one for one in column if one is not None] for column in zip(*(row.scores for row in rows), strict=True)
        )
        values = [float(np.mean(column)) if column else None for column in known]
        scores = PartitionScores(*values)  # type: ignore[arg-type]
        means.append(rows[0]._replace(scores=scores))
    return means


def _members(regions: Regions, image: int) -> Tensor:
    """One image's regions as ``(R, patches)`` float64 of 0 and 1."""
    mine = regions.image == image
    first = int(mine.nonzero()[0])
    here = mine[regions.region]
    member = torch.zeros(int(mine.sum()), int(regions.grids[image].prod()), dtype=torch.float64)
    member[(regions.region[here] - first).cpu(), regions.patch[here].cpu()] = 1
    return member


def _measure(values: Tensor, allowed: Tensor, member: Tensor, image: int, cols: int) -> PartitionScores:
    """Scores of one image without objects: ``values (P, D)``, ``allowed (P,)``, ``member (R, P)``."""
    values = torch.where(allowed[:, None], values, 0)
    check_finite(values, image, cols)
    unit = torch.nn.functional.normalize(values, dim=1, eps=1e-300)
    areas = member.sum(1)
    means = member @ unit / areas[:, None]
    times = member.sum(0)
    whole = unit[allowed].mean(0)
    stands = torch.where(times[:, None] > 0, member.T @ means / times.clamp(min=1)[:, None], whole)
    total = (unit[allowed] - whole).square().sum()
    error = (unit - stands)[allowed].square().sum()
    rounding = 1e-12 * len(unit)
    kept = 1.0 if total <= rounding else float(1 - error / total)
    return PartitionScores(len(member), kept, float((areas == 1).double().mean()), float(areas.max() / allowed.sum()))


def _mean_iou(member: Tensor, objects: MaskSet, geometry: ImageGeometry, grid: tuple[int, int]) -> float | None:
    """Areas are exact: what of a patch shows the image, and what of it an object covers."""
    downsampler = MaskDownsampler(grid, geometry=geometry)
    covered = downsampler.coverage(objects).flatten(1).double()
    image = downsampler.coverage(np.ones((1, *objects.size), np.bool_)).flatten().double()
    ground = (image - covered.sum(0)).clamp(min=0)
    inside = member @ torch.cat([ground[None], covered]).T  # (R, 1 + objects)
    taken = inside.argmax(1) - 1
    ious = []
    for number, mask in enumerate(covered):
        if not mask.any():  # the encoder sees nothing of it
            continue
        of_object = member[taken == number].amax(0) if (taken == number).any() else torch.zeros_like(image)
        shared = float((of_object * mask).sum())
        ious.append(shared / float((of_object * image).sum() + mask.sum() - shared))
    return float(np.mean(ious)) if ious else None


def _boundary_recall(member: Tensor, objects: MaskSet, placement: Placement, grid: tuple[int, int]) -> float | None:
    side = placement.input[0] / grid[0] / max(placement.scale)  # of a patch, in pixels of the image
    _, kind = np.unique(member.numpy(), axis=1, return_inverse=True)  # patches in the same regions are of one kind
    patch = placement.patches(grid)
    seen = patch >= 0
    of_regions = _edges(np.append(kind, -1)[patch], seen)
    away = distance_transform_edt(~of_regions) if of_regions.any() else np.full(of_regions.shape, np.inf)
    edges = np.zeros(of_regions.shape, bool)
    for mask in objects.masks().numpy():
        edges |= _edges(mask, seen)
    return float((away[edges] <= side / 2).mean()) if edges.any() else None


def _edges(labels: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Which pixels differ from the one to the left or above, both of them seen."""
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= (labels[:, 1:] != labels[:, :-1]) & seen[:, 1:] & seen[:, :-1]
    edge[1:] |= (labels[1:] != labels[:-1]) & seen[1:] & seen[:-1]
    return edge
