"""Label maps of regions as HTML, for notebooks."""

import base64
import colorsys
import io
import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from regiontok.regions import Regions

_MAX_IMAGES = 4
_MAX_SIDE = 160
"""Longest side of a label map in pixels, unless the grid is larger."""
_MAX_FRAMES = 8
"""Frames of a clip that are shown."""


def label_maps(regions: "Regions") -> str:
    """Return HTML with a label map for each image and a colour for each region; the smallest region is drawn on top."""
    images = regions.split()
    figures = "".join(_figure(image) for image in images[:_MAX_IMAGES])
    num_hidden = len(images) - _MAX_IMAGES
    note = f"<div>and {num_hidden} more</div>" if num_hidden > 0 else ""
    return f'<div style="display:flex;flex-wrap:wrap;gap:1em;align-items:end">{figures}{note}</div>'


def _figure(regions: "Regions") -> str:
    *frames, rows, cols = regions.grids[0].tolist()
    scale = max(1, _MAX_SIDE // max(rows, cols))
    png = io.BytesIO()
    colours = _colours(regions, [*frames, rows, cols])
    strip = np.concatenate(list(colours[:_MAX_FRAMES]), 1) if frames else colours
    pixels = strip.repeat(scale, 0).repeat(scale, 1)
    Image.fromarray(pixels, "RGBA").save(png, "PNG")
    data = base64.b64encode(png.getvalue()).decode()
    noun = "region" + "s" * (len(regions) != 1)
    caption = f"{len(regions)} {noun} on {' × '.join(map(str, [*frames, rows, cols]))} patches"
    return (
        f'<figure style="margin:0"><img alt="Label map of {caption}" src="data:image/png;base64,{data}">'
        f"<figcaption><small>{caption}</small></figcaption></figure>"
    )


def _colours(regions: "Regions", grid: list[int]) -> np.ndarray:
    """Return ``(rows, cols, 4)`` uint8, with frames for a clip; patches in no region are transparent."""
    largest_first = np.argsort(-regions.areas().cpu().numpy(), kind="stable")
    rank = np.empty(len(regions), np.int64)
    rank[largest_first] = np.arange(len(regions))
    patch, region = regions.patch.cpu().numpy(), regions.region.cpu().numpy()
    order = np.argsort(rank[region], kind="stable")  # the last region of a patch is drawn
    label = np.full(math.prod(grid), -1)
    label[patch[order]] = region[order]
    colours = np.zeros((len(regions) + 1, 4))
    for number in range(len(regions)):
        colours[number] = *colorsys.hsv_to_rgb(0.618034 * number % 1, 0.45 + 0.25 * (number % 2), 0.85), 1
    return (255 * colours[label]).astype(np.uint8).reshape(*grid, 4)
