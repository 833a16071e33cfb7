"""
One tree, every number of tokens
================================

Clustering merges regions one pair at a time. All merges form a tree, which is computed once; cutting it gives the
regions for any number of tokens.
"""

import matplotlib.pyplot as plt
import real_features

from regiontok import Regionizer, UnionFindClusterer
from regiontok.viewing import draw_sources, save_figure

encoder = real_features.load_encoder()
encoded = encoder.encode_image(real_features.images()["chelsea"])
features = Regionizer(pool="mean").normalize(encoded.features[None])
tree = UnionFindClusterer(linkage="ward").tree(features, encoded.valid[None])[0]

# %%
# Three cuts of the tree. Each region of a smaller number is a union of regions of a larger one.

regions = {f"num_regions={count}": tree.cut(num_regions=count) for count in (128, 32, 8)}
save_figure(draw_sources(encoded.image, regions, encoded.placement), "cuts.png")

# %%
# The explained variance after each merge.

counts, variance = tree.curve()
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
axes.plot(counts, variance)
axes.set(xlabel="tokens", ylabel="explained variance", xscale="log", ylim=(0, 1))
save_figure(figure, "curve.png")
print("saved cuts.png and curve.png")
