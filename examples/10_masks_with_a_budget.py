"""
Masks with a budget
===================

With a budget, ``combined`` merges patches by Ward linkage, and masks add to the cost of merges across their borders.
``mask_weight`` is the weight of this cost: 0 ignores the masks, and with infinity regions stay within masks as long
as the budget allows. The masks here are colour segments, which need no weights.
"""

import real_features

from regiontok import Regionizer, masks
from regiontok.evaluation.partition import measure_partition
from regiontok.viewing import draw_sources, save_figure

encoder = real_features.load_encoder()
image = real_features.images()["coffee"]
mask_set = masks.load("felzenszwalb")(image)[0]
encoded = encoder.encode_image(image)
features, valid = encoded.features[None], encoded.valid[None]

# %%
# The same number of tokens with three weights.

regions = {}
for weight in (0, 0.5, float("inf")):
    regionizer = Regionizer(
        source="combined",
        num_regions=64,
        mask_weight=weight,
        unassigned="background",
        pool="mean",
        geometry=encoded.geometry,
    )
    regions[f"mask_weight={weight}"] = regionizer(features, masks=[mask_set], valid=valid).regions
save_figure(draw_sources(image, regions, encoded.placement), "masks-with-a-budget.png")

# %%
# Regions follow the masks, at a cost in explained variance.

unit = Regionizer(pool="mean").normalize(features)
for name, weighted in regions.items():
    scores = measure_partition(unit, weighted, valid=valid, objects=[mask_set], geometry=encoded.geometry)[0]
    print(f"{name:<16} variance {scores.explained_variance:.1%}  mIoU of the masks {scores.miou:.1%}")
print("saved masks-with-a-budget.png")
