"""
Region tokens of an image
=========================

This program encodes an image, groups its patches into regions, pools one token per region, and projects the tokens to
the width of a language model. It needs no weights and no network. Run it with ``python examples/01_quickstart.py``.
"""

import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from regiontok import Regionizer, encoders
from regiontok.viewing import draw_regions

image = Image.fromarray(load_sample_image("china.jpg"))

# %%
# Encode the image: patch features, and a mask of the patches that show the image. The others are padding.

encoder = encoders.load("pixels")
features, valid = encoder(image)
print("features", tuple(features.shape), "valid patches", int(valid.sum()))

# %%
# Make one token per region with the defaults of the paper: RMS norm, clustering at 0.7, cross-attention pooling.

regionizer = Regionizer(source="clustering", dim=features.shape[-1])
tokens = regionizer(features, valid=valid)
print("tokens", tuple(tokens.values.shape))

# %%
# Make exactly 64 tokens.

with_budget = Regionizer(source="clustering", dim=features.shape[-1], num_regions=64)
print("tokens with num_regions=64", tuple(with_budget(features, valid=valid).values.shape))

# %%
# Apply the projector of a language model, and pad the tokens to a batch.

projector = torch.nn.Sequential(torch.nn.Linear(48, 256), torch.nn.GELU(), torch.nn.Linear(256, 256))
values, mask = tokens.map(projector).padded()
print("projected tokens", tuple(values.shape), "mask", tuple(mask.shape))

# %%
# Draw the regions on the image: outlines on the left, mean colours on the right.

placement = encoder.geometry.place((image.height, image.width))
draw_regions(image, tokens.regions, placement).save("quickstart.png")
print("saved quickstart.png")
