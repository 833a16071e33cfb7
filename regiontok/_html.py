"""Small pictures of label maps for notebooks."""

import base64
import colorsys
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from regiontok.regions import Regions

_MOST_IMAGES = 4
_SIDE = 160
"""Longest side of a picture in pixels."""


def label_maps(regions: "Regions") -> str:
    """Return HTML with a label map of each image, a colour per region; of several regions the smallest is on top."""
    shown = regions.split()[:_MOST_IMAGES]
    left = len(regions.grids) - len(shown)
    figures = "".join(_figure(one) for one in shown)
    more = f"<div>and {left} more</div>" if left else ""
    return f'<div style="display:flex;flex-wrap:wrap;gap:1em;align-items:end">{figures}{more}</div>'


def _figure(regions: "Regions") -> str:
    rows, cols = regions.grids[0].tolist()
    scale = max(1, _SIDE // max(rows, cols))
    data = io.BytesIO()
    pixels = _colours(regions, rows, cols).repeat(scale, 0).repeat(scale, 1)
    Image.fromarray(pixels, "RGBA").save(data, "PNG")
    picture = base64.b64encode(data.getvalue()).decode()
    noun = "region" + "s" * (len(regions) != 1)
    told = f"{len(regions)} {noun} on {rows} × {cols} patches"
    return (
        f'<figure style="margin:0"><img alt="Label map of {told}" src="data:image/png;base64,{picture}">'
        f"<figcaption><small>{told}</small></figcaption></figure>"
    )


def _colours(regions: "Regions", rows: int, cols: int) -> np.ndarray:
    """Return ``(rows, cols, 4)`` uint8; patches in no region are transparent."""
    largest_first = np.argsort(-regions.areas().cpu().numpy(), kind="stable")
    place = np.empty(len(regions), np.int64)
    place[largest_first] = np.arange(len(regions))
    patch, region = regions.patch.cpu().numpy(), regions.region.cpu().numpy()
    order = np.argsort(place[region], kind="stable")  # of a patch in several regions the last is drawn
    label = np.full(rows * cols, -1)
    label[patch[order]] = region[order]
    colours = np.zeros((len(regions) + 1, 4))
    for number in range(len(regions)):
        colours[number] = *colorsys.hsv_to_rgb(0.618034 * number % 1, 0.45 + 0.25 * (number % 2), 0.85), 1
    return (255 * colours[label]).astype(np.uint8).reshape(rows, cols, 4)
