"""The figures of the paper for any image, encoder and model, drawn with matplotlib.

    encoded = {name: encoders.load(name).encode_image(image) for name in ("clip-336", "radio-384")}
    save_figure(draw_norms(encoded), "norms.png")

Functions:

    draw_norms       norms of patch features before and after RMS normalization (Figure 1)
    draw_features    patch features by PCA (Figure 2, rows 1 to 3)
    draw_encoders    features, regions from clustering and norms of several encoders (Figure 2)
    draw_sources     the regions of each source

`regiontok.viewing.attention` draws the attention to regions (Figures 1 and 3).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.decomposition import PCA

from regiontok.choices import Norm
from regiontok.encoders import EncodedImage
from regiontok.errors import ShapeError
from regiontok.geometry import Placement
from regiontok.images import shrink
from regiontok.normalize import rms_normalize
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions
from regiontok.viewing._canvas import GREY, HEAT, LONGEST_SIDE, add_colour_bar, new_panels, show
from regiontok.viewing.picture import label_patches, outline, to_pixels


def draw_norms(encoded: Mapping[str, EncodedImage]) -> Any:
    """Draw the norms of patch features before and after RMS normalization, with one row per encoder.

    Norms are divided by the median of their map, and all maps have the same scale. Outliers are bright before
    normalization; all norms are equal after it.

    Args:
        encoded: One image encoded by each encoder, by the name of the encoder.

    Returns:
        A matplotlib ``Figure``.

    Raises:
        ShapeError: There is no encoder.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> figure = draw_norms({"pixels": encoders.load("pixels").encode_image(Image.new("RGB", (64, 48)))})
        >>> [axes.get_title() for axes in figure.axes[:3]]
        ['image', 'norm', 'norm after rms']

    Source:
        Supplement, Figure 1, left. The division by the median is our choice.
    """
    _check_not_empty(encoded)
    figure, grid = new_panels(len(encoded), 3, next(iter(encoded.values())).image)
    maps = []
    for image in encoded.values():
        normalized = image._replace(features=rms_normalize(image.features[None])[0])
        maps.append((_norms([image])[0], _norms([normalized])[0]))
    highest = max(float(np.nanmax(norms)) for pair in maps for norms in pair)
    for panels, (name, image), pair in zip(grid, encoded.items(), maps, strict=True):
        _show_image(panels[0], image.image)
        panels[0].set_ylabel(name, color=GREY)
        for axes, norms in zip(panels[1:], pair, strict=True):
            heat = _show_patches(axes, image, norms, vmax=highest)
    for axes, title in zip(grid[0], ("image", "norm", "norm after rms"), strict=True):
        axes.set_title(title, color=GREY, fontsize=10)
    _add_norm_bar(figure, heat, grid)
    return figure


def draw_features(encoded: Mapping[str, Sequence[EncodedImage]]) -> Any:
    """Draw three principal components of patch features as red, green and blue: a row per image, a column per encoder.

    The components and their scale are computed from all images of an encoder, so similar features have similar colours
    in all rows.

    Args:
        encoded: The same images encoded by each encoder, by the name of the encoder.

    Returns:
        A matplotlib ``Figure``.

    Raises:
        ShapeError: There is no encoder or image, or the encoders have different numbers of images.
        MissingDependencyError: matplotlib is not installed.

    Source:
        Supplement, Figure 2, rows 1 to 3. The scale, from the 1st to the 99th percentile, is our choice.
    """
    images = _check_same_images(encoded)
    figure, grid = new_panels(len(images), len(encoded) + 1, images[0])
    for axes, image in zip(grid[:, 0], images, strict=True):
        _show_image(axes, image)
    for column, (name, encoder_images) in zip(grid.T[1:], encoded.items(), strict=True):
        column[0].set_title(name, color=GREY, fontsize=10)
        _show_features(column, encoder_images)
    return figure


def draw_encoders(encoded: Mapping[str, Sequence[EncodedImage]], *, norm: Norm = "rms", **options: Any) -> Any:
    """Draw features by PCA, regions from clustering, and norms, with a column per encoder and a row per image.

    Args:
        encoded: The same images encoded by each encoder, by the name of the encoder.
        norm: Normalization of the features before clustering, ``rms`` or ``none``.
        options: Options of `UnionFindClusterer`: ``threshold``, ``num_regions``, ``explained_variance`` and
            ``linkage``.

    Returns:
        A matplotlib ``Figure``.

    Raises:
        ShapeError: There is no encoder or image, or the encoders have different numbers of images.
        ValueRangeError: An option is out of range.
        MissingDependencyError: matplotlib is not installed.

    Source:
        Supplement, Figure 2: rows of PCA, of regions and of norms. Norms are divided by the median of the encoder, and
        all maps have the same scale.
    """
    images = _check_same_images(encoded)
    count = len(images)
    figure, grid = new_panels(3 * count, len(encoded) + 1, images[0])
    for axes, image in zip(grid[:, 0], 3 * images, strict=True):
        _show_image(axes, image)
    norms = {name: _norms(encoder_images) for name, encoder_images in encoded.items()}
    highest = max(float(np.nanmax(norm_map)) for maps in norms.values() for norm_map in maps)
    regionizer = Regionizer(pool="mean", norm=norm, **options)
    for column, (name, encoder_images) in zip(grid.T[1:], encoded.items(), strict=True):
        column[0].set_title(name, color=GREY, fontsize=10)
        _show_features(column[:count], encoder_images)
        for row, item in enumerate(encoder_images):
            regions = regionizer.group(regionizer.normalize(item.features[None]), valid=item.valid[None])
            axes = column[count + row]
            show(axes, _outline_regions(item.image, regions, item.placement))
            axes.set_xlabel(f"{len(regions)} regions", color=GREY, fontsize=8)
            heat = _show_patches(column[2 * count + row], item, norms[name][row], vmax=highest)
    described = [f"{name.replace('_', ' ')} {value}" for name, value in options.items() if value is not None]
    labels = ("features, by PCA", f"regions, {', '.join(described) or 'threshold 0.7'}", "norms")
    for axes, label in zip(grid[::count, 0], labels, strict=True):
        axes.set_ylabel(label, color=GREY)
    _add_norm_bar(figure, heat, grid[2 * count :])
    return figure


def draw_sources(image: Image.Image, regions: Mapping[str, Regions], placement: Placement) -> Any:
    """Draw the regions of each source as outlines on the image, side by side.

    Args:
        image: The upright RGB image.
        regions: A batch of one image per source, by the name of the source.
        placement: Placement of the image on the input of the encoder.

    Returns:
        A matplotlib ``Figure``.

    Raises:
        ShapeError: There is no source, or a batch has several images.
        MissingDependencyError: matplotlib is not installed.
    """
    _check_not_empty(regions)
    figure, grid = new_panels(1, len(regions), image)
    for axes, (source, source_regions) in zip(grid[0], regions.items(), strict=True):
        show(axes, _outline_regions(image, source_regions, placement))
        axes.set_title(f"{source}: {len(source_regions)}", color=GREY, fontsize=10)
    return figure


def pca_colours(images: Sequence[EncodedImage]) -> list[np.ndarray]:
    """Return three principal components of patch features as colours ``(rows, cols, 3)`` in ``[0, 1]`` per image.

    Args:
        images: Images of one encoder. The components and their scale are computed from all of them.
    """
    features = np.concatenate([image.features[image.valid].numpy() for image in images])
    if np.ptp(features, axis=0).max() == 0:  # all patches are equal
        return [np.full((*image.features.shape[:2], 3), 0.5) for image in images]
    num_components = min(3, *features.shape)
    pca = PCA(num_components, svd_solver="full").fit(features)
    low, high = np.percentile(pca.transform(features), (1, 99), axis=0)
    colours = []
    for image in images:
        rows, cols, dim = image.features.shape
        components = pca.transform(image.features.reshape(-1, dim).numpy())
        padded = np.full((rows * cols, 3), 0.5)
        padded[:, :num_components] = ((components - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
        colours.append(padded.reshape(rows, cols, 3))
    return colours


def _check_not_empty(panels: Mapping[str, Any]) -> None:
    if not panels:
        raise ShapeError("expected at least one entry to draw; got an empty mapping.")


def _check_same_images(encoded: Mapping[str, Sequence[EncodedImage]]) -> list[Image.Image]:
    """Return the images, and check that all encoders have the same number of them."""
    _check_not_empty(encoded)
    counts = {name: len(images) for name, images in encoded.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ShapeError(f"every encoder must have the same images, at least one; got {counts}.")
    return [image.image for image in next(iter(encoded.values()))]


def _norms(images: Sequence[EncodedImage]) -> list[np.ndarray]:
    """Return norms ``(rows, cols)`` per image divided by the median of all images; NaN for padding."""
    norms = [torch.where(image.valid, image.features.norm(dim=-1), torch.nan).numpy() for image in images]
    median = np.nanmedian(np.concatenate([norm_map.ravel() for norm_map in norms]))
    return [norm_map / max(median, 1e-12) for norm_map in norms]


def _show_image(axes: Any, image: Image.Image) -> None:
    show(axes, np.asarray(shrink(image, LONGEST_SIDE)))


def _show_features(column: np.ndarray, images: Sequence[EncodedImage]) -> None:
    for axes, image, colours in zip(column, images, pca_colours(images), strict=True):
        _show_patches(axes, image, colours)


def _show_patches(axes: Any, image: EncodedImage, values: np.ndarray, *, vmax: float | None = None) -> Any:
    """Show norms ``(rows, cols)`` or colours ``(rows, cols, 3)`` of patches at the size of the image."""
    small = shrink(image.image, LONGEST_SIDE)
    is_colour = values.ndim == 3
    pixels = to_pixels(values, image.placement, (small.height, small.width), outside=0.5 if is_colour else np.nan)
    return show(axes, pixels, **({} if is_colour else {"cmap": HEAT, "vmin": 0, "vmax": vmax}))


def _outline_regions(image: Image.Image, regions: Regions, placement: Placement) -> np.ndarray:
    _, region_set = label_patches(regions)
    pixels = np.asarray(shrink(image, LONGEST_SIDE))
    return outline(pixels, to_pixels(region_set, placement, (pixels.shape[0], pixels.shape[1]), outside=-1))


def _add_norm_bar(figure: Any, heat: Any, grid: np.ndarray) -> None:
    add_colour_bar(figure, heat, list(grid.flat), "times the median norm", font_size=9, shrink=0.8)
