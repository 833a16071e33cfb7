"""An interactive page of an image's regions: one HTML file that needs no network.

    write_page("china.html", image, encoders.load("radio-384"), title="china.jpg")

The file holds the image, its merge trees, the regions of the other sources and a compact copy of the patch features;
trees are cut and regions compared in the browser. ``page.html`` beside this module is the template.
"""

import base64
import html
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regiontok._checks import Features, check_number
from regiontok._files import write_bytes
from regiontok.budgets import resolve_budget
from regiontok.choices import MASK_SOURCES, MASK_WEIGHT, Norm
from regiontok.clustering import UnionFindClusterer
from regiontok.downsample import MaskDownsampler
from regiontok.encoders import Encoder
from regiontok.errors import ShapeError
from regiontok.images import as_rgb
from regiontok.maskset import MaskSet
from regiontok.merge_tree import MergeTree
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions
from regiontok.viewing._pixels import shrunk

_LONGEST_SIDE = 1024
_CLOSE = 0.01
"""How far a cosine of two patches may be off: the page shows two digits."""
_MOST_BYTES = 1_500_000
"""Of features: all components of 36 x 36 patches of dimension 1024; larger grids of finer features lose some."""
_MOST_PATCHES = 2**16 - 1
_MASK_WEIGHTS = (0.0, 0.1, 0.2, 0.3, MASK_WEIGHT, 0.7, 1.0, 2.0, float("inf"))
"""The steps of the slider; each has a tree of its own."""


def write_page(path: str | Path, image: Image.Image, encoder: Encoder, *, title: str = "image", **options: Any) -> None:
    """Write `make_page`'s page to a file.

    Args:
        path: The file; one that is there is replaced.
        image: The image.
        encoder: What makes its features.
        title: See `make_page`.
        options: Further options of `make_page`.

    Raises:
        OutputError: A file that cannot be written; and what `make_page` raises.
    """
    text = make_page(image, encoder, title=title, **options)
    write_bytes(path, text.encode(errors="backslashreplace"))  # a title may be a file name that is not UTF-8


def make_page(
    image: Image.Image,
    encoder: Encoder,
    *,
    title: str = "image",
    masks: MaskSet | None = None,
    threshold: float = 0.7,
    num_regions: int | None = None,
    keep: float | None = None,
    norm: Norm = "rms",
    connectivity: int = 4,
) -> str:
    """Return a page on which an image's regions can be explored, as HTML.

    It has a slider for the threshold of the paper's linkage and one for the number of tokens; with masks also a slider
    for how much they count at that number; choices of linkage and source; and for the region under the pointer its
    patches, its size, and how similar the other regions are. It works by pointer, touch, keyboard and screen reader, in
    light and dark mode.

    Args:
        image: The image.
        encoder: What makes its features.
        title: What to call it, such as its file name; any text is safe.
        masks: The image's; with them the page has the sources ``segmentation`` and ``combined``, and merges in masks.
        threshold: Where the page starts, by the paper's rule.
        num_regions: Start with so many tokens by Ward's rule instead; as many as there are, where there are fewer.
        keep: Start with this fraction of the valid patches as tokens instead.
        norm: Of patch features, ``rms`` or ``none``.
        connectivity: 4 or 8 neighbours for clustering.

    Raises:
        ImageError: A picture that cannot be one RGB image.
        ShapeError, ValueRangeError: Masks or options that cannot be, or more than 65535 patches.

    Example:
        >>> page = make_page(Image.new("RGB", (64, 48)), encoders.load("pixels"), title="<b>")
        >>> "<b>" in page, "&lt;b&gt;" in page
        (False, True)
    """
    threshold = check_number("threshold", threshold, low=-1, high=1)
    rows, cols = encoder.grid
    if rows * cols > _MOST_PATCHES:
        raise ShapeError(f"a page holds at most {_MOST_PATCHES} patches; got {rows} x {cols}. Take a smaller img_size.")
    image = as_rgb(image)
    features, valid = encoder(image)
    budget = resolve_budget([int(valid.sum())], num_regions, keep)
    placement = encoder.geometry.place((image.height, image.width))
    options: dict[str, Any] = {"pool": "mean", "norm": norm, "connectivity": connectivity}
    normed = Regionizer(**options).normalize(features)
    trees = [
        UnionFindClusterer(linkage=linkage, connectivity=connectivity).tree(normed, valid)[0]
        for linkage in ("centroid", "ward")
    ]
    sources = {"patch": Regionizer(source="patch", **options).group(normed, valid=valid)}
    for source in MASK_SOURCES if masks is not None else ():
        regionizer = Regionizer(source=source, geometry=encoder.geometry, **options)
        sources[source] = regionizer.group(normed, masks=[masks], valid=valid)  # type: ignore[list-item]
    trees_in_masks = None
    if masks is not None:
        on_grid = MaskDownsampler(geometry=encoder.geometry)([masks], features=normed, valid=valid)
        trees_in_masks = _trees_in_masks(normed, on_grid, connectivity)
    (height, width), small = encoder.geometry.size, shrunk(image, _LONGEST_SIDE)
    across = placement.scale[1] * image.width * cols / width, placement.offset[1] * cols / width
    down = placement.scale[0] * image.height * rows / height, placement.offset[0] * rows / height
    compact, scale = _compact(normed[0].float().cpu().flatten(0, 1), valid[0].cpu().flatten())
    patch = placement.patches((rows, cols), (small.height, small.width))
    data = {
        "grid": [rows, cols],
        "placement": [*across, *down],
        "threshold": threshold,
        "tokens": None if budget is None else budget[0],
        "valid": _encode(valid[0].cpu().numpy().astype(np.uint8)),
        "dim": compact.shape[1],
        "features": _encode(compact),
        "scale": _encode(scale.astype("<f4")),
        "colours": _encode(_mean_colours(small, patch, rows * cols)),
        "trees": {tree.linkage: _tree(tree) for tree in trees},
        "inMasks": trees_in_masks,
        "sources": {name: _regions(one) for name, one in sources.items()},
    }
    how = "without norm" if norm == "none" else f"{norm} norm"
    parts = {
        "title": html.escape(title),
        "subtitle": html.escape(f"{encoder.name}, {rows} x {cols} patches, {how}"),
        "ratio": f"{image.width / image.height:.4f}",
        "image": f"data:image/jpeg;base64,{_jpeg(small)}",
        "data": json.dumps(data).replace("<", "\\u003c"),  # nothing in it can end the script
    }
    frame = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], frame)


def _compact(features: Tensor, valid: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Features ``(patches, components)`` int8 and a scale per component, with the cosines of ``features``.

    Turned to their principal axes and cut after as many as keep all cosines to within `_CLOSE`, where `_MOST_BYTES`
    allows so many.
    """
    shown = torch.where(valid[:, None], features, 0)
    left, size, _ = torch.linalg.svd(shown, full_matrices=False)
    turned = left * size
    scale = turned.abs().amax(0).clamp(min=1e-12) / 127
    small = (turned / scale).round()
    exact = _cosines(shown[valid])
    low, high = 1, min(small.shape[1], max(1, _MOST_BYTES // len(small)))
    while low < high:  # the error falls with the components
        middle = (low + high) // 2
        error = (_cosines((small * scale)[valid, :middle]) - exact).abs().max()
        low, high = (low, middle) if error <= _CLOSE else (middle + 1, high)
    return small[:, :low].to(torch.int8).numpy(), scale[:low].numpy()


def _cosines(vectors: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(vectors, dim=1)
    return unit @ unit.T


def _mean_colours(image: Image.Image, patch: np.ndarray, patches: int) -> np.ndarray:
    """The mean colour of each patch, ``(patches, 3)`` uint8; black where the image does not lie.

    Args:
        image: ``(height, width)``.
        patch: ``(height, width)``: the patch of each pixel, -1 for none.
        patches: How many there are.
    """
    inside = patch >= 0
    pixels, where = np.asarray(image)[inside], patch[inside]
    count = np.bincount(where, minlength=patches)
    sums = [np.bincount(where, pixels[:, channel], minlength=patches) for channel in range(3)]
    return (np.stack(sums, 1) / np.maximum(count, 1)[:, None]).round().astype(np.uint8)


def _tree(tree: MergeTree) -> dict[str, str]:
    """Return the merges, and after each its cosine, or for Ward's rule the share of the deviation that is kept."""
    return _encode_tree(tree, tree.score if tree.deviation is None else tree.curve()[1][1:])


def _encode_tree(tree: MergeTree, score: Tensor) -> dict[str, str]:
    return {"pairs": _encode(tree.pairs.numpy().astype("<u2")), "score": _encode(score.numpy().astype("<f4"))}


def _trees_in_masks(features: Features, masks: Regions, connectivity: int) -> dict[str, Any]:
    """Return trees of Ward's rule with masks, one per weight, with the share of the deviation that each cut keeps."""
    trees = [
        UnionFindClusterer(connectivity=connectivity, mask_weight=weight).tree(features, masks=masks)[0]
        for weight in _MASK_WEIGHTS
    ]
    unit = torch.nn.functional.normalize(features[0].float().cpu().flatten(0, 1), dim=1)
    return {
        "weights": [f"{weight:g}" for weight in _MASK_WEIGHTS],
        "start": _MASK_WEIGHTS.index(MASK_WEIGHT),
        "valid": _encode(trees[0].valid.numpy().astype(np.uint8)),
        "trees": [_encode_tree(tree, _kept(tree, unit)) for tree in trees],
    }


def _kept(tree: MergeTree, unit: Tensor) -> Tensor:
    """Return the share of the squared deviation of ``unit (P, D)`` that is kept after each merge, ``(M,)``.

    A tree with masks scores merges by features and masks together; this is of the features alone.
    """
    inside = tree.valid.flatten()
    sums, members = unit.double().numpy().copy(), np.ones(len(unit))
    growth = np.empty(len(tree.pairs))
    for merge, (first, second) in enumerate(tree.pairs.tolist()):
        difference = sums[first] / members[first] - sums[second] / members[second]
        m, n = members[first], members[second]
        growth[merge] = m * n / (m + n) * (difference @ difference)
        sums[first] += sums[second]
        members[first] += n
    shown = unit[inside].double()
    deviation = float((shown - shown.mean(0)).square().sum())
    return torch.from_numpy(1 - growth.cumsum() / deviation).clamp(0, 1) if deviation else torch.ones(len(growth))


def _regions(regions: Regions) -> Mapping[str, Any]:
    scores = regions.score.tolist()
    return {
        "count": len(regions),
        "patch": _encode(regions.patch.cpu().numpy().astype("<u2")),
        "region": _encode(regions.region.cpu().numpy().astype("<u2")),
        "scores": None if regions.score.isnan().all() else [None if one != one else round(one, 4) for one in scores],
    }


def _encode(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _jpeg(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()
