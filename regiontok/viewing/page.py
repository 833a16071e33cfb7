"""An interactive page with the regions of an image or video: a single HTML file that needs no network.

    write_page("china.html", image, encoders.load("radio-384"), title="china.jpg")
    write_page("film.html", read_video("film.mp4", num_frames=16), encoders.load("radio-384"))

The file contains the image or the frames, the merge trees, the regions of the other sources, and a compact copy of the
patch features. The browser cuts the trees and compares the regions. The template consists of ``page.html``,
``page.css``, ``page_regions.js``, ``page_frames.js`` and ``page.js`` in the folder of this module.
"""

import base64
import html
import io
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regiontok._files import write_bytes
from regiontok._values import check_number
from regiontok.budgets import resolve_budget
from regiontok.choices import MASK_SOURCES, MASK_WEIGHT, MOTION, Norm
from regiontok.clustering import UnionFindClusterer
from regiontok.downsample import MaskDownsampler
from regiontok.encoders import EncodedImage, ImageEncoder
from regiontok.errors import ShapeError
from regiontok.images import shrink
from regiontok.maskset import MaskSet
from regiontok.merge_tree import MergeTree
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions
from regiontok.videos import Video

_LONGEST_SIDE = 1024
_LONGEST_SIDE_OF_FRAMES = 640
_MAX_COSINE_ERROR = 0.01
"""Maximum error of the cosine of two patches. The page shows two digits."""
_MAX_FEATURE_BYTES = 3_000_000
"""Maximum size of the features: all components of 36 x 36 patches of dimension 1024, 160 of 32 x 24 x 24 patches."""
_MAX_COMPARED = 2048
"""Maximum number of patches whose cosines are compared to choose the number of components."""
_MAX_PATCHES = 2**16 - 1
_MASK_WEIGHTS = (0.0, 0.1, 0.2, 0.3, MASK_WEIGHT, 0.7, 1.0, 2.0, float("inf"))
"""Steps of the mask weight slider. Each has its own merge tree."""


def write_page(
    path: str | Path, image: Image.Image | Video, encoder: ImageEncoder, *, title: str = "image", **options: Any
) -> None:
    """Write the page of `make_page` to a file.

    Args:
        path: The file; an existing file is replaced.
        image: The image, or a video of `regiontok.videos.read_video`.
        encoder: An encoder, or a model's `ModelEncoder`, which computes the patch features.
        title: Title of the page, such as the file name.
        options: Further options of `make_page`.

    Raises:
        OutputError: The file cannot be written. Further errors are those of `make_page`.
    """
    text = make_page(image, encoder, title=title, **options)
    write_bytes(path, text.encode(errors="backslashreplace"))  # a file name may not be valid UTF-8


def make_page(
    image: Image.Image | Video,
    encoder: ImageEncoder,
    *,
    title: str = "image",
    masks: MaskSet | None = None,
    threshold: float = 0.7,
    num_regions: int | None = None,
    keep: float | None = None,
    norm: Norm = "rms",
    connectivity: int = 4,
    motion: int = MOTION,
    max_frames: int | None = None,
) -> str:
    """Return an interactive page with the regions of an image or video.

    The page shows the regions of each source. Sliders set the threshold, the number of tokens and, with masks, the mask
    weight. For the region under the pointer it shows the patches, the size, and the similarity to the other regions. It
    works with pointer, touch, keyboard and screen reader, in light and dark mode. The page of a video also has a slider
    of its frames and plays them. A region has one colour in all frames.

    Args:
        image: The image, or a video of `regiontok.videos.read_video`.
        encoder: The encoder that computes the patch features.
        title: Title of the page, such as the file name. It is escaped.
        masks: Masks of an image. They add the sources ``segmentation`` and ``combined``, and Ward linkage with masks.
        threshold: Initial threshold, with centroid linkage as in the paper.
        num_regions: Initial number of tokens with Ward linkage, at most the number of patches, instead of a threshold.
        keep: Initial number of tokens as a fraction of the valid patches, instead of a threshold.
        norm: Normalization of the patch features, ``rms`` or ``none``.
        connectivity: 4 or 8 neighbours for clustering.
        motion: For videos: see `UnionFindClusterer`.
        max_frames: For videos: see `UnionFindClusterer`.

    Raises:
        ImageError: The image cannot be converted to one RGB image.
        ShapeError: Masks do not match the image, or are passed for a video; frames have different sizes; or there are
            more than 65535 patches.
        ValueRangeError: An option is out of range.

    Example:
        >>> page = make_page(Image.new("RGB", (64, 48)), encoders.load("pixels"), title="<b>")
        >>> "<b>" in page, "&lt;b&gt;" in page
        (False, True)
    """
    threshold = check_number("threshold", threshold, low=-1, high=1)
    is_video = isinstance(image, Video)
    if is_video and masks is not None:
        raise ShapeError("the page of a video has no masks. Leave masks out.")
    encoded, features, valid = _encode_frames(image.frames if isinstance(image, Video) else [image], encoder)
    num_frames, rows, cols = valid.shape
    grid = valid.shape if is_video else valid.shape[1:]
    if valid.numel() > _MAX_PATCHES:
        raise ShapeError(
            f"a page can have at most {_MAX_PATCHES} patches; got {' x '.join(map(str, grid))}. Reduce img_size"
            f"{' or the number of frames' if is_video else ''}."
        )
    budget = resolve_budget([int(valid.sum())], num_regions, keep)
    if is_video:
        features, valid = features[None], valid[None]  # a batch of one clip
    options: dict[str, Any] = {"pool": "mean", "norm": norm, "connectivity": connectivity}
    features = Regionizer(**options).normalize(features)
    trees = [
        UnionFindClusterer(linkage=linkage, connectivity=connectivity, motion=motion, max_frames=max_frames).tree(
            features, valid
        )[0]
        for linkage in ("centroid", "ward")
    ]
    sources = {"patch": Regionizer(source="patch", **options).group(features, valid=valid)}
    masked = None
    if masks is not None:
        for source in MASK_SOURCES:
            regionizer = Regionizer(source=source, geometry=encoded[0].geometry, **options)
            sources[source] = regionizer.group(features, masks=[masks], valid=valid)
        on_grid = MaskDownsampler(geometry=encoded[0].geometry)([masks], features=features, valid=valid)
        masked = _masked_trees(features, on_grid, connectivity)
    placement, (height, width) = encoded[0].placement, encoded[0].geometry.size
    images = [shrink(each.image, _LONGEST_SIDE_OF_FRAMES if is_video else _LONGEST_SIDE) for each in encoded]
    (full_height, full_width), small = placement.image_size, images[0]
    compact, scale = _compact(features.reshape(valid.numel(), -1), valid.flatten())
    patch = placement.patches((rows, cols), (small.height, small.width))
    data = {
        "grid": [num_frames, rows, cols],
        "frames": [f"data:image/jpeg;base64,{_jpeg(each)}" for each in images],
        "times": [round(time, 3) for time in image.times] if isinstance(image, Video) and image.fps else None,
        "placement": [
            placement.scale[1] * full_width * cols / width,
            placement.offset[1] * cols / width,
            placement.scale[0] * full_height * rows / height,
            placement.offset[0] * rows / height,
        ],
        "threshold": threshold,
        "tokens": None if budget is None else budget[0],
        "valid": _encode(valid.numpy().astype(np.uint8)),
        "dim": compact.shape[1],
        "features": _encode(compact),
        "scale": _encode(scale.astype("<f4")),
        "colours": _encode(np.concatenate([_mean_colours(each, patch, rows * cols) for each in images])),
        "trees": {tree.linkage: _tree(tree) for tree in trees},
        "masked": masked,
        "sources": {source: _regions(regions) for source, regions in sources.items()},
    }
    normalization = "without norm" if norm == "none" else f"{norm} norm"
    description = f"{f'{num_frames} frames of ' if is_video else ''}{rows} x {cols} patches"
    return _fill_template(
        title=html.escape(title),
        subtitle=html.escape(f"{encoder.name}, {description}, {normalization}"),
        aspect_ratio=f"{full_width / full_height:.4f}",
        data=json.dumps(data).replace("<", "\\u003c"),  # cannot close the script element
    )


def _fill_template(**parts: str) -> str:
    """Return ``page.html`` with these parts, its style sheet and its scripts."""
    folder = Path(__file__).parent
    files = {"style": "page.css", "regions_script": "page_regions.js", "frames_script": "page_frames.js"}
    for name, file in (files | {"script": "page.js"}).items():
        parts[name] = (folder / file).read_text(encoding="utf-8")
    template = (folder / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _encode_frames(images: list[Image.Image], encoder: ImageEncoder) -> tuple[list[EncodedImage], Tensor, Tensor]:
    """Return the images with their features, and the features ``(frames, rows, cols, D)`` and ``valid`` of all."""
    encoded = [encoder.encode_image(image) for image in images]
    sizes = {(each.image.height, each.image.width) for each in encoded}
    if len(sizes) > 1:
        raise ShapeError(f"the frames of a video must have one size; got {sorted(sizes)}. Resize them.")
    return encoded, torch.stack([each.features for each in encoded]), torch.stack([each.valid for each in encoded])


def _compact(features: Tensor, valid: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Compress features ``(patches, D)`` to int8 ``(patches, components)`` and a scale per component.

    The features are rotated to their principal axes. As few components are returned as preserve the cosines of all
    pairs of valid patches up to `_MAX_COSINE_ERROR` (of `_MAX_COMPARED` patches, if there are more), or fewer because
    of `_MAX_FEATURE_BYTES`.
    """
    features = torch.where(valid[:, None], features, 0)
    left, size, _ = torch.linalg.svd(features, full_matrices=False)
    rotated = left * size
    scale = rotated.abs().amax(0).clamp(min=1e-12) / 127
    quantized = (rotated / scale).round()
    compared = valid.nonzero().flatten()
    compared = compared[:: max(1, math.ceil(len(compared) / _MAX_COMPARED))]
    exact = _cosines(features[compared])
    low, high = 1, min(quantized.shape[1], max(1, _MAX_FEATURE_BYTES // len(quantized)))
    while low < high:  # binary search: the error decreases with the number of components
        middle = (low + high) // 2
        error = (_cosines((quantized[compared] * scale)[:, :middle]) - exact).abs().max()
        low, high = (low, middle) if error <= _MAX_COSINE_ERROR else (middle + 1, high)
    return quantized[:, :low].to(torch.int8).numpy(), scale[:low].numpy()


def _cosines(vectors: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(vectors, dim=1)
    return unit @ unit.T


def _mean_colours(image: Image.Image, patch: np.ndarray, num_patches: int) -> np.ndarray:
    """Return the mean colour of each patch, ``(num_patches, 3)`` uint8; black for padding.

    Args:
        image: The image.
        patch: ``(height, width)``: index of the patch of each pixel, -1 for none.
        num_patches: Number of patches.
    """
    inside = patch >= 0
    pixels, index = np.asarray(image)[inside], patch[inside]
    count = np.bincount(index, minlength=num_patches)
    sums = [np.bincount(index, pixels[:, channel], minlength=num_patches) for channel in range(3)]
    return (np.stack(sums, 1) / np.maximum(count, 1)[:, None]).round().astype(np.uint8)


def _tree(tree: MergeTree) -> dict[str, str]:
    """Return the merges of a tree with their cosines, or with the explained variance after each for Ward linkage."""
    return _encode_tree(tree, tree.score if tree.deviation is None else tree.curve()[1][1:])


def _encode_tree(tree: MergeTree, score: Tensor) -> dict[str, str]:
    return {"pairs": _encode(tree.pairs.numpy().astype("<u2")), "score": _encode(score.numpy().astype("<f4"))}


def _masked_trees(features: Tensor, masks: Regions, connectivity: int) -> dict[str, Any]:
    """Return one merge tree with masks per mask weight, with the explained variance after each merge."""
    trees = [
        UnionFindClusterer(connectivity=connectivity, mask_weight=weight).tree(features, masks=masks)[0]
        for weight in _MASK_WEIGHTS
    ]
    unit = torch.nn.functional.normalize(features[0].flatten(0, 1), dim=1)
    return {
        "weights": [f"{weight:g}" for weight in _MASK_WEIGHTS],
        "start": _MASK_WEIGHTS.index(MASK_WEIGHT),
        "valid": _encode(trees[0].valid.numpy().astype(np.uint8)),
        "trees": [_encode_tree(tree, _explained_variance(tree, unit)) for tree in trees],
    }


def _explained_variance(tree: MergeTree, unit: Tensor) -> Tensor:
    """Return the explained variance of unit-length features ``(P, D)`` after each merge, ``(M,)``.

    The scores of a tree with masks cannot be used, because they depend on features and masks.
    """
    sums, sizes = unit.double().numpy().copy(), np.ones(len(unit))
    increase = np.empty(len(tree.pairs))
    for merge, (first, second) in enumerate(tree.pairs.tolist()):
        difference = sums[first] / sizes[first] - sums[second] / sizes[second]
        m, n = sizes[first], sizes[second]
        increase[merge] = m * n / (m + n) * (difference @ difference)
        sums[first] += sums[second]
        sizes[first] += n
    included = unit[tree.valid.flatten()].double()
    deviation = float((included - included.mean(0)).square().sum())
    return torch.from_numpy(1 - increase.cumsum() / deviation).clamp(0, 1) if deviation else torch.ones(len(increase))


def _regions(regions: Regions) -> Mapping[str, Any]:
    scores = [None if math.isnan(score) else round(score, 4) for score in regions.score.tolist()]
    return {
        "count": len(regions),
        "patch": _encode(regions.patch.cpu().numpy().astype("<u2")),
        "region": _encode(regions.region.cpu().numpy().astype("<u2")),
        "scores": None if regions.score.isnan().all() else scores,
    }


def _encode(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _jpeg(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()
