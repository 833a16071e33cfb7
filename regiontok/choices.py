"""The values of options, and defaults that the command line shows. This module imports no torch."""

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
MOTION = 2
"""Weight of masks relative to features, for masks with a budget."""
Prompt = Literal["prompt"]
PROMPT: Prompt = "prompt"
"""The value of ``num_regions`` that reads the budget from the placeholders of the prompt."""
VIDEO_BUDGETS = (128, 256, 512)
"""Numbers of regions of a clip at which ``compare`` compares."""
PREDICTORS = ("sam2", "sam3", "sam2-package")
"""Video predictors that propagate masks."""
Order = Literal["raster", "centroid", "area", "score", "random"]
ORDERS = get_args(Order)
Downsampling = Literal["exact", "two_step"]
DOWNSAMPLINGS = get_args(Downsampling)
"""How `MaskDownsampler` computes the covered fraction of a patch."""
Unassigned = Literal["drop", "background", "single_patches", "cluster"]
UNASSIGNED = get_args(Unassigned)
Overlap = Literal["keep", "assign_smallest"]
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
"""What to do with an image that has several ids in a file of COCO annotations."""
MATCHES = ("path", "name")
"""How annotations are matched to images: one path must be a suffix of the other, or the file names must be equal."""

TOKEN_DTYPES = ("float16", "float32")
"""Data types of tokens in a store."""
BUDGETS = (32, 64, 100, 128)
"""Numbers of regions at which ``regiontok compare`` compares sources."""
QUERIES = ("answer", "predicting")
"""The rows of attention that the focus metric reads: of the answer, or of the tokens that predict it."""
ANSWERS = ("generated", "right")
"""The answer whose attention the focus metric measures: the generated or the correct one."""
