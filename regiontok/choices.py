"""Values that options can take, and defaults that the command line shows.

This module imports no torch, so that the command line can describe and check its options quickly.
"""

from typing import Literal, get_args

Source = Literal["clustering", "patch", "segmentation", "combined"]
SOURCES = get_args(Source)
MASK_SOURCES: tuple[Source, ...] = ("segmentation", "combined")
"""Sources that take their regions from masks."""
Norm = Literal["rms", "none"]
NORMS = get_args(Norm)
Pool = Literal["cross_attention", "mean"]
POOLS = get_args(Pool)
Padding = Literal["drop", "keep"]
PADDINGS = get_args(Padding)
Linkage = Literal["centroid", "average", "ward"]
LINKAGES = get_args(Linkage)
MASK_WEIGHT = 0.5
"""How much masks count beside features, where masks have a budget."""
Prompt = Literal["prompt"]
PROMPT: Prompt = "prompt"
"""As ``num_regions``: the number of placeholders in the prompt."""
Order = Literal["raster", "centroid", "area", "score", "random"]
ORDERS = get_args(Order)
Method = Literal["exact", "two_step"]
METHODS = get_args(Method)
"""How `MaskDownsampler` measures which part of a patch a mask covers."""
Uncovered = Literal["drop", "background", "single_patches", "cluster"]
UNCOVERED = get_args(Uncovered)
Overlap = Literal["keep", "smallest"]
OVERLAPS = get_args(Overlap)
Noise = Literal["own_region", "single_patches", "drop"]
NOISES = get_args(Noise)

GEOMETRIES = ("letterbox", "squash", "center_crop")

GENERATORS = ("sam2", "sam3", "sam2-pipeline", "sam2-package", "felzenszwalb")
"""Mask generators. ``sam2`` and ``sam3`` are `Sam2Masks`; the next two make the same masks through other packages."""
POINTS_PER_SIDE = 24
STABILITY_SCORE_THRESH = 0.9
PRED_IOU_THRESH = 0.5
BOX_NMS_THRESH = 0.7
"""Default settings of SAM's automatic masks, which are the paper's cheap setting; see `MaskSettings`."""
CROWDS = ("keep", "drop")
"""What to do with COCO annotations of crowds."""
DUPLICATES = ("merge", "first")
"""What to do with an image that a file of COCO annotations has under several ids."""
MATCHES = ("path", "name")
"""How names in a file of annotations are matched with images: by the ends of paths, or by the last part alone."""

TOKEN_DTYPES = ("float16", "float32")
"""Data types of tokens in a store."""
BUDGETS = (32, 64, 100, 128)
"""Numbers of regions at which ``regiontok compare`` compares sources."""
QUERIES = ("answer", "predicting")
"""Which rows of attention the focus metric reads."""
ANSWERS = ("generated", "right")
"""Whose attention the focus metric measures: that of the generated answer or of the right one."""
