"""
Three linkages side by side
===========================

Clustering merges neighbouring regions, and the linkage decides which pair is next. With a budget, ``centroid``, the
linkage of the paper, lets one region grow over much of the image, while ``ward`` divides the image evenly by its
content. The features are those of DINOv2-small, or of ``pixels`` if its weights cannot be downloaded.
"""

import real_features

from regiontok import Regionizer
from regiontok.evaluation.partition import compare_partitions
from regiontok.viewing import draw_sources, save_figure

encoder = real_features.load_encoder()
encoded = encoder.encode_image(real_features.images()["coffee"])

# %%
# The regions of each linkage, with 48 tokens.

regions = {}
for linkage in ("centroid", "average", "ward"):
    regionizer = Regionizer(linkage=linkage, num_regions=48, pool="mean")
    regions[linkage] = regionizer(encoded.features[None], valid=encoded.valid[None]).regions
save_figure(draw_sources(encoded.image, regions, encoded.placement), "linkages.png")

# %%
# How well the regions represent the patches: the explained variance, the fraction of regions with a single patch, and
# the fraction of the image in the largest region.

for row in compare_partitions(encoded.features, valid=encoded.valid, num_regions=[48]):
    scores = row.scores
    print(
        f"{row.source:<9} variance {scores.explained_variance:.0%}  singletons {scores.singleton_fraction:.0%}  "
        f"largest {scores.largest_fraction:.0%}"
    )
print("saved linkages.png")
