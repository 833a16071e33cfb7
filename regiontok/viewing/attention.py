"""Figures of the attention of an answer to the regions of an image."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from regiontok._require import require
from regiontok.errors import ShapeError
from regiontok.geometry import Placement
from regiontok.images import shrink
from regiontok.regions import Regions
from regiontok.viewing._canvas import GREY, HEAT, LONGEST_SIDE, add_colour_bar, new_panels, show
from regiontok.viewing.picture import find_edges, label_patches, to_pixels


class Attention(NamedTuple):
    """Attention of the answer of a model to the regions of one image.

    Attributes:
        regions: A batch of one image.
        weights: ``(R,)``: the attention to each region, in ``[0, 1]``.
        placement: Placement of the image on the input of the encoder.
    """

    regions: Regions
    weights: Tensor
    placement: Placement


def draw_attention(
    image: Image.Image, attention: Mapping[str, Attention], *, question: str | None = None, spread: bool = False
) -> Any:
    """Draw the attention of an answer to patches or irregular regions as heat maps, side by side.

    The colour of a patch shows the attention to its region, or to the smallest of several regions. Each panel has its
    own colour bar, and shows the number of tokens and the total attention to the image.

    Args:
        image: The upright RGB image.
        attention: Attention by the title of the panel, such as the name of the source.
        question: Title of the figure.
        spread: Divide the attention to a region among its patches, so that large regions are not emphasised.

    Returns:
        A matplotlib ``Figure``.

    Raises:
        ShapeError: There is no panel, ``regions`` has several images, or ``weights`` has another length.
        MissingDependencyError: matplotlib is not installed.

    Source:
        Supplement, Figure 3, and Figure 1, right. Showing the smallest region of a patch is our choice.
    """
    if not attention:
        raise ShapeError("attention must have at least one panel; got an empty mapping.")
    figure, grid = new_panels(1, len(attention) + 1, image)
    pixels = np.asarray(shrink(image, LONGEST_SIDE))
    show(grid[0, 0], pixels)
    colour_map = require("matplotlib", extra="viz").colormaps[HEAT]
    for axes, (name, panel) in zip(grid[0, 1:], attention.items(), strict=True):
        num_regions = len(panel.regions)
        if len(panel.regions.grids) != 1 or panel.weights.shape != (num_regions,):
            raise ShapeError(
                f"{name}: attention must be ({num_regions},) over the regions of one image; got "
                f"{tuple(panel.weights.shape)} over {len(panel.regions.grids)} images."
            )
        heat = patch_attention(panel.regions, panel.weights, spread=spread)
        show(axes, _heat_map(pixels, heat, panel, colour_map))
        _add_attention_bar(figure, axes, 100 * float(heat.max()), spread=spread)
        total = 100 * float(panel.weights.sum())
        axes.set_title(f"{name}: {num_regions} tokens", color=GREY, fontsize=10)
        axes.set_xlabel(f"{total:.0f} % of attention to the image", color=GREY, fontsize=8)
    if question is not None:
        figure.suptitle(question, color=GREY, fontsize=11, wrap=True)
    return figure


def patch_attention(regions: Regions, weights: Tensor, *, spread: bool = False) -> np.ndarray:
    """Return the attention to the region of each patch, or to the smallest of several regions: ``(rows, cols)``.

    Args:
        regions: A batch of one image.
        weights: ``(R,)``: the attention to each region.
        spread: Divide the attention to a region among its patches.

    Example:
        >>> regions = Regions.from_labels(torch.tensor([[[0, 0, 1, -1]]]))
        >>> patch_attention(regions, torch.tensor([0.4, 0.1]), spread=True)
        array([[0.2, 0.2, 0.1, 0. ]], dtype=float32)
    """
    values = weights.float().cpu().numpy()
    if spread:
        values = values / regions.areas().cpu().numpy()
    smallest, _ = label_patches(regions)
    return np.append(values, 0).astype(np.float32)[smallest]


def _heat_map(pixels: np.ndarray, heat: np.ndarray, panel: Attention, colour_map: Any) -> np.ndarray:
    """Blend the attention to patches ``(rows, cols)`` with a greyscale image, and outline the regions."""
    size = (pixels.shape[0], pixels.shape[1])
    grey = pixels.mean(-1, keepdims=True) / 255
    relative = to_pixels(heat / max(float(heat.max()), 1e-12), panel.placement, size, outside=0.0)
    colours = colour_map(relative)[..., :3]
    blended = np.where(relative[..., None] > 0, 0.35 * grey + 0.65 * colours, 0.6 * grey)
    if len(panel.regions) < heat.size:  # outlines of single patches would hide the image
        _, region_set = label_patches(panel.regions)
        is_edge = find_edges(to_pixels(region_set, panel.placement, size, outside=-1))
        blended[is_edge] = 0.7 * blended[is_edge] + 0.3
    return blended.clip(0, 1)


def _add_attention_bar(figure: Any, axes: Any, highest: float, *, spread: bool) -> None:
    """Add a colour bar in percent of the total attention."""
    colours = require("matplotlib.colors", extra="viz", distribution="matplotlib")
    mappable = require("matplotlib.cm", extra="viz", distribution="matplotlib").ScalarMappable(
        colours.Normalize(0, max(highest, 1e-9)), HEAT
    )
    label = "% of attention per patch" if spread else "% of attention per token"
    add_colour_bar(figure, mappable, axes, label, font_size=8, fraction=0.046)
