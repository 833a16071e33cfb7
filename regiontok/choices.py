"""Values that options can take, and defaults that the command line shows.

This module imports nothing, so that the command line can describe and check its options without loading torch.
"""

SOURCES = ("clustering", "patch", "segmentation", "combined")
MASK_SOURCES = ("segmentation", "combined")
"""Sources that take their regions from masks."""
NORMS = ("rms", "none")
POOLS = ("cross_attention", "mean")
PADDINGS = ("drop", "keep")
LINKAGES = ("centroid", "average", "ward")
MASK_WEIGHT = 0.5
"""How much masks count beside features, where masks have a budget."""
PROMPT = "prompt"
"""As ``num_regions``: the number of placeholders in the prompt."""
ORDERS = ("raster", "centroid", "area", "score", "random")
METHODS = ("exact", "two_step")
"""How `MaskDownsampler` measures which part of a patch a mask covers."""
UNCOVERED = ("drop", "background", "single_patches", "cluster")
OVERLAPS = ("keep", "smallest")
NOISES = ("own_region", "single_patches", "drop")

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
