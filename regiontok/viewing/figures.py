"""The paper's figures for any image, encoder and model, as figures of matplotlib.

    seen = {name: see(image, encoders.load(name)) for name in ("clip-336", "radio-384")}
    save_figure(draw_norms(seen), "norms.png")

What there is:

    draw_norms       patch feature norms before and after rms (Figure 1)
    draw_features    patch features by PCA (Figure 2, rows 1 to 3)
    draw_encoders    features, regions from clustering and norms, encoder beside encoder (all of Figure 2)
    draw_sources     the regions of each source
    draw_attention   where an answer looks, over patches or irregular regions (Figures 1 and 3)

Every function returns a matplotlib ``Figure``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.decomposition import PCA
from torch import Tensor

from regiontok._require import require
from regiontok.choices import Norm
from regiontok.encoders import Encoder
from regiontok.errors import ShapeError
from regiontok.geometry import Placement
from regiontok.images import as_rgb
from regiontok.normalize import rms_normalize
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions
from regiontok.viewing._canvas import GREY, new_figure, plain
from regiontok.viewing._pixels import edges, shrunk
from regiontok.viewing.picture import flatten, outline

_SIDE = 2.4
"""Inches of a panel's longer side."""
_PIXELS = 512
_HEAT = "inferno"


class Seen(NamedTuple):
    """An image as an encoder sees it; `see` makes it.

    Attributes:
        image: Upright RGB.
        features: ``(rows, cols, D)``.
        valid: ``(rows, cols)`` bool: which patches show the image.
        placement: How it lies on the encoder's input.
    """

    image: Image.Image
    features: Tensor
    valid: Tensor
    placement: Placement


def see(image: Image.Image, encoder: Encoder) -> Seen:
    """Encode one image.

    Raises:
        ImageError: A picture that cannot be one RGB image.
    """
    image = as_rgb(image)
    features, valid = encoder(image)
    placement = encoder.geometry.place((image.height, image.width))
    return Seen(image, features[0].float().cpu(), valid[0].cpu(), placement)


class Attention(NamedTuple):
    """What a model's answer pays to the regions of one image.

    Attributes:
        regions: A batch of one image.
        weights: ``(R,)``: the attention to each region, in ``[0, 1]``.
        placement: How the image lay on the encoder's input.
    """

    regions: Regions
    weights: Tensor
    placement: Placement


def draw_norms(seen: Mapping[str, Seen]) -> Any:
    """Norms of patch features before and after rms, an encoder per row.

    Each map is in units of its median norm, and all are on one scale: outliers glow, and after rms, which makes all
    norms equal, nothing does.

    Args:
        seen: One image as each encoder sees it, by the encoder's name.

    Returns:
        A matplotlib ``Figure``.

    Raises:
        ShapeError: No encoder.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> figure = draw_norms({"pixels": see(Image.new("RGB", (64, 48)), encoders.load("pixels"))})
        >>> [axes.get_title() for axes in figure.axes[:3]]
        ['image', 'norm', 'norm after rms']

    Source:
        Supplement, Figure 1, left. The unit is our choice.
    """
    _check_some(seen)
    first = next(iter(seen.values()))
    figure, grid = _panels(len(seen), 3, first.image)
    maps = []
    for one in seen.values():
        maps.append([_norms([one])[0], _norms([one._replace(features=rms_normalize(one.features[None])[0])])[0]])
    top = max(float(np.nanmax(norms)) for pair in maps for norms in pair)
    for row, ((name, one), pair) in enumerate(zip(seen.items(), maps, strict=True)):
        _show(grid[row, 0], np.asarray(shrunk(one.image, _PIXELS)))
        for column, norms in enumerate(pair, start=1):
            heat = _show(grid[row, column], _on_image(one, norms), cmap=_HEAT, vmin=0, vmax=top)
        grid[row, 0].set_ylabel(name, color=GREY)
    for axes, title in zip(grid[0], ("image", "norm", "norm after rms"), strict=True):
        axes.set_title(title, color=GREY, fontsize=10)
    _scale(figure, heat, grid, "times the median norm")
    return figure


def draw_features(seen: Mapping[str, Sequence[Seen]]) -> Any:
    """Patch features by PCA: three components as red, green and blue, an image per row and an encoder per column.

    An encoder's components and their scale are those of all its images together, so that like features have like
    colours in every row.

    Args:
        seen: The same images as each encoder sees them, by the encoder's name.

    Returns:
        A matplotlib ``Figure``.

    Raises:
        ShapeError: No encoder, or another number of images for one of them.
        MissingDependencyError: matplotlib is not installed.

    Source:
        Supplement, Figure 2, rows 1 to 3. The components' scale, from the 1st to the 99th percentile, is our choice.
    """
    images = _check_same(seen)
    figure, grid = _panels(len(images), len(seen) + 1, images[0])
    _images(grid, images)
    for column, (name, views) in enumerate(seen.items(), start=1):
        grid[0, column].set_title(name, color=GREY, fontsize=10)
        for row, colours in enumerate(pca_colours(views)):
            _show(grid[row, column], _on_image(views[row], colours))
    return figure


def draw_encoders(seen: Mapping[str, Sequence[Seen]], *, norm: Norm = "rms", **amount: Any) -> Any:
    """Encoders side by side: features by PCA, regions from clustering, and norms, each for every image.

    Args:
        seen: The same images as each encoder sees them, by the encoder's name.
        norm: Of the features that are clustered, ``rms`` or ``none``.
        amount: How many regions: ``threshold``, ``num_regions``, ``explained_variance`` and ``linkage`` of
            `UnionFindClusterer`.

    Returns:
        A matplotlib ``Figure``.

    Raises:
        ShapeError: No encoder, or another number of images for one of them.
        ValueRangeError: An amount or norm that cannot be.
        MissingDependencyError: matplotlib is not installed.

    Source:
        Supplement, Figure 2: rows of PCA, of regions, of norms. Norms are over the encoder's median, on one scale.
    """
    images = _check_same(seen)
    count = len(images)
    figure, grid = _panels(3 * count, len(seen) + 1, images[0])
    for part in range(3):
        _images(grid[part * count : (part + 1) * count], images)
    norms = {name: _norms(views) for name, views in seen.items()}
    top = max(float(np.nanmax(one)) for maps in norms.values() for one in maps)
    regionizer = Regionizer(pool="mean", norm=norm, **amount)
    told = (
        ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in amount.items() if value is not None)
        or "threshold 0.7"
    )
    heat = None
    for column, (name, views) in enumerate(seen.items(), start=1):
        grid[0, column].set_title(name, color=GREY, fontsize=10)
        for row, colours in enumerate(pca_colours(views)):
            _show(grid[row, column], _on_image(views[row], colours))
        for row, one in enumerate(views):
            regions = regionizer.group(regionizer.normalize(one.features[None]), valid=one.valid[None])
            panel = grid[count + row, column]
            _show(panel, _outlined(one.image, regions, one.placement))
            panel.set_xlabel(f"{len(regions)} regions", color=GREY, fontsize=8)
            heat = _show(grid[2 * count + row, column], _on_image(one, norms[name][row]), cmap=_HEAT, vmin=0, vmax=top)
    for part, label in enumerate(("features, by PCA", f"regions, {told}", "norms")):
        grid[part * count, 0].set_ylabel(label, color=GREY)
    _scale(figure, heat, grid[2 * count :], "times the median norm")
    return figure


def draw_sources(image: Image.Image, regions: Mapping[str, Regions], placement: Placement) -> Any:
    """The regions of each source, outlined on the image, side by side.

    Args:
        image: Upright RGB.
        regions: A batch of one image per source, by the source's name.
        placement: How the image lay on the encoder's input.

    Returns:
        A matplotlib ``Figure``.

    Raises:
        ShapeError: No source, or regions of several images.
        MissingDependencyError: matplotlib is not installed.
    """
    _check_some(regions)
    figure, grid = _panels(1, len(regions), image)
    for axes, (source, one) in zip(grid[0], regions.items(), strict=True):
        _show(axes, _outlined(image, one, placement))
        axes.set_title(f"{source}: {len(one)}", color=GREY, fontsize=10)
    return figure


def draw_attention(
    image: Image.Image, attention: Mapping[str, Attention], *, question: str | None = None, spread: bool = False
) -> Any:
    """Where an answer looks, over patches or irregular regions, side by side.

    A patch glows by the attention of its region, the smallest where several overlap. Each panel has a scale of its
    own, which a colour bar tells, and says how many tokens there are and how much attention the image gets at all.

    Args:
        image: Upright RGB.
        attention: By what the panels are called, such as the sources' names.
        question: Written above.
        spread: Share a region's attention among its patches, so that large regions do not glow for their size.

    Returns:
        A matplotlib ``Figure``.

    Raises:
        ShapeError: No panel, regions of several images, or weights of other regions.
        MissingDependencyError: matplotlib is not installed.

    Source:
        Supplement, Figure 3, and the right of Figure 1. That the smallest region lies on top is our choice.
    """
    _check_some(attention)
    figure, grid = _panels(1, len(attention) + 1, image)
    pixels = np.asarray(shrunk(image, _PIXELS))
    _show(grid[0, 0], pixels)
    ground = pixels.mean(-1, keepdims=True) / 255
    heat_of = require("matplotlib", extra="viz").colormaps[_HEAT]
    for axes, (name, one) in zip(grid[0, 1:], attention.items(), strict=True):
        if len(one.regions.grids) != 1 or one.weights.shape != (len(one.regions),):
            raise ShapeError(
                f"{name}: attention must be ({len(one.regions)},) over the regions of one image; got "
                f"{tuple(one.weights.shape)} over {len(one.regions.grids)} images."
            )
        heat = patch_attention(one.regions, one.weights, spread=spread)
        rows, cols = heat.shape
        patch = one.placement.patches((rows, cols), (pixels.shape[0], pixels.shape[1]))
        share = np.append(heat / max(float(heat.max()), 1e-12), 0.0)[patch][..., None]
        colours = heat_of(share[..., 0])[..., :3]
        shown = np.where(share > 0, 0.35 * ground + 0.65 * colours, 0.6 * ground)
        if len(one.regions) < rows * cols:
            _, membership = flatten(one.regions)
            label = np.append(membership, -1)[patch]
            edge = edges(label)
            shown[edge] = 0.7 * shown[edge] + 0.3
        _show(axes, shown.clip(0, 1))
        _attention_bar(figure, axes, 100 * float(heat.max()), spread=spread)
        total = 100 * float(one.weights.sum())
        axes.set_title(f"{name}: {len(one.regions)} tokens", color=GREY, fontsize=10)
        axes.set_xlabel(f"{total:.0f} % of attention to the image", color=GREY, fontsize=8)
    if question is not None:
        figure.suptitle(question, color=GREY, fontsize=11, wrap=True)
    return figure


def _attention_bar(figure: Any, axes: Any, most: float, *, spread: bool) -> None:
    """What the colours of a panel mean, in percent of all attention."""
    colours = require("matplotlib.colors", extra="viz", distribution="matplotlib")
    mappable = require("matplotlib.cm", extra="viz", distribution="matplotlib").ScalarMappable(
        colours.Normalize(0, max(most, 1e-9)), _HEAT
    )
    bar = figure.colorbar(mappable, ax=axes, fraction=0.046, pad=0.02)
    bar.set_label("% of attention per patch" if spread else "% of attention per token", color=GREY, fontsize=8)
    bar.ax.tick_params(colors=GREY, labelsize=7)
    bar.outline.set_visible(False)


def patch_attention(regions: Regions, weights: Tensor, *, spread: bool = False) -> np.ndarray:
    """Attention on the grid, ``(rows, cols)``: a patch has its region's, the smallest's where several overlap.

    Args:
        regions: A batch of one image.
        weights: ``(R,)``.
        spread: Share a region's among its patches.

    Example:
        >>> regions = Regions.from_labels(torch.tensor([[[0, 0, 1, -1]]]))
        >>> patch_attention(regions, torch.tensor([0.4, 0.1]), spread=True)
        array([[0.2, 0.2, 0.1, 0. ]], dtype=float32)
    """
    own = weights.float().cpu().numpy()
    if spread:
        own = own / regions.areas().cpu().numpy()
    top, _ = flatten(regions)
    return np.append(own, 0).astype(np.float32)[top]


def pca_colours(views: Sequence[Seen]) -> list[np.ndarray]:
    """Three principal components of an encoder's features as colours, ``(rows, cols, 3)`` in ``[0, 1]`` per image.

    Args:
        views: Images as one encoder sees them; components and scale are of all of them.
    """
    every = np.concatenate([one.features[one.valid].numpy() for one in views])
    if np.ptp(every, axis=0).max() == 0:  # nothing tells patches apart
        return [np.full((*one.features.shape[:2], 3), 0.5) for one in views]
    components = min(3, *every.shape)
    fitted = PCA(components, svd_solver="full").fit(every)
    low, high = np.percentile(fitted.transform(every), (1, 99), axis=0)
    colours = []
    for one in views:
        rows, cols, dim = one.features.shape
        placed = fitted.transform(one.features.reshape(-1, dim).numpy())
        scaled = ((placed - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
        padded = np.full((rows * cols, 3), 0.5)
        padded[:, :components] = scaled
        colours.append(padded.reshape(rows, cols, 3))
    return colours


def _check_some(given: Mapping[str, Any]) -> None:
    if not given:
        raise ShapeError("there must be something to draw; got nothing.")


def _check_same(seen: Mapping[str, Sequence[Seen]]) -> list[Image.Image]:
    """The images that all encoders see."""
    _check_some(seen)
    numbers = {name: len(views) for name, views in seen.items()}
    if len(set(numbers.values())) != 1 or 0 in numbers.values():
        raise ShapeError(f"every encoder must see the same images, one or more; got {numbers}.")
    return [one.image for one in next(iter(seen.values()))]


def _norms(views: Sequence[Seen]) -> list[np.ndarray]:
    """Norms ``(rows, cols)`` per image over the median of all; NaN where the image does not lie."""
    norms = [torch.where(one.valid, one.features.norm(dim=-1), torch.nan).numpy() for one in views]
    median = np.nanmedian(np.concatenate([one.ravel() for one in norms]))
    return [one / max(median, 1e-12) for one in norms]


def _panels(rows: int, cols: int, image: Image.Image) -> tuple[Any, np.ndarray]:
    """A figure of panels of an image's shape."""
    longest = max(image.size)
    width, height = _SIDE * image.width / longest, _SIDE * image.height / longest
    figure = new_figure(figsize=(cols * (width + 0.1) + 0.4, rows * (height + 0.15) + 0.3))
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    grid = figure.subplots(rows, cols, squeeze=False)
    for axes in grid.flat:
        plain(axes)
    return figure, grid


def _images(grid: np.ndarray, images: Sequence[Image.Image]) -> None:
    for axes, image in zip(grid[:, 0], images, strict=True):
        _show(axes, np.asarray(shrunk(image, _PIXELS)))


def _show(axes: Any, picture: np.ndarray, **options: Any) -> Any:
    return axes.imshow(picture, interpolation="antialiased", **options)


def _scale(figure: Any, heat: Any, grid: np.ndarray, label: str) -> None:
    bar = figure.colorbar(heat, ax=list(grid.flat), shrink=0.8, pad=0.02)
    bar.set_label(label, color=GREY, fontsize=9)
    bar.ax.tick_params(colors=GREY, labelsize=8)
    bar.outline.set_visible(False)


def _on_image(one: Seen, values: np.ndarray) -> np.ndarray:
    """Values of patches, ``(rows, cols)`` or ``(rows, cols, 3)``, on the image's pixels; NaN or grey where none is."""
    image = shrunk(one.image, _PIXELS)
    rows, cols = values.shape[:2]
    patch = one.placement.patches((rows, cols), (image.height, image.width))
    nothing = np.full((1, *values.shape[2:]), np.nan if values.ndim == 2 else 0.5)
    return np.concatenate([values.reshape(rows * cols, *values.shape[2:]), nothing])[patch]


def _outlined(image: Image.Image, regions: Regions, placement: Placement) -> np.ndarray:
    if len(regions.grids) != 1:
        raise ShapeError(f"regions must be of one image; got {len(regions.grids)}.")
    pixels = np.asarray(shrunk(image, _PIXELS))
    _, membership = flatten(regions)
    patch = placement.patches((membership.shape[0], membership.shape[1]), (pixels.shape[0], pixels.shape[1]))
    return outline(pixels, np.append(membership, -1)[patch])
