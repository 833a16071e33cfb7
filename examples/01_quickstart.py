"""From an image to region tokens in a language model's width, and a picture of what each token stands for.

Run it with ``python examples/01_quickstart.py``; it needs no weights and no network.
"""

import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from regiontok import Regionizer, encoders
from regiontok.viewing import draw_regions

image = Image.fromarray(load_sample_image("china.jpg"))

# 1. A vision encoder: patch features, and which patches show the image rather than padding.
encoder = encoders.load("pixels")
features, valid = encoder(image)
print("features", tuple(features.shape), "of which", int(valid.sum()), "patches show the image")

# 2. Regions and one token for each, by the paper's defaults: rms norm, clustering at 0.7, cross-attention.
regionizer = Regionizer(source="clustering", dim=features.shape[-1])
tokens = regionizer(features, valid=valid)
print("tokens", tuple(tokens.values.shape))

# 3. The same image at an exact budget.
budget = Regionizer(source="clustering", dim=features.shape[-1], num_regions=64)
print("with num_regions=64", tuple(budget(features, valid=valid).values.shape))

# 4. Your language model's projector, and a padded batch for it.
projector = torch.nn.Sequential(torch.nn.Linear(48, 256), torch.nn.GELU(), torch.nn.Linear(256, 256))
values, mask = tokens.map(projector).padded()
print("for the language model", tuple(values.shape), "mask", tuple(mask.shape))

# 5. What the tokens stand for.
placement = encoder.geometry.place((image.height, image.width))
draw_regions(image, tokens.regions, placement).save("quickstart.png")
print("see quickstart.png")
