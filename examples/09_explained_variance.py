"""
A simple and a busy image
=========================

With ``explained_variance``, an image gets as few tokens as preserve a fraction of the variance of its patch features.
A simple image needs fewer tokens than a busy one.
"""

import matplotlib.pyplot as plt
import real_features

from regiontok import Regionizer, UnionFindClusterer
from regiontok.viewing import draw_sources, save_figure

encoder = real_features.load_encoder()
encoded = {name: encoder.encode_image(real_features.images()[name]) for name in ("china", "coffee")}

# %%
# The number of tokens that preserve 80 % of the variance.

regionizer = Regionizer(explained_variance=0.8, pool="mean")
for name, image in encoded.items():
    regions = regionizer(image.features[None], valid=image.valid[None]).regions
    print(f"{name}: {len(regions)} tokens for {int(image.valid.sum())} patches")
    save_figure(draw_sources(image.image, {name: regions}, image.placement), f"{name}.png")

# %%
# The explained variance by number of tokens. A merge tree contains all of them, and is computed once.

figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, image in encoded.items():
    tree = UnionFindClusterer(linkage="ward").tree(regionizer.normalize(image.features[None]), image.valid[None])[0]
    counts, variance = tree.curve()
    axes.plot(counts, variance, label=name)
axes.set(xlabel="tokens", ylabel="explained variance", xlim=(1, 200), ylim=(0, 1))
axes.legend()
save_figure(figure, "variance.png")
print("saved china.png, coffee.png and variance.png")
