"""
A budget for each image of a batch
==================================

A budget may be one number, a number per image, or a fraction of the patches. The number of tokens is known before an
image is encoded, so that batches can be packed.
"""

import real_features

from regiontok import Regionizer

encoder = real_features.load_encoder()
images = list(real_features.images().values())[:3]
sizes = [(image.height, image.width) for image in images]
features, valid = encoder(images)
regionizer = Regionizer(pool="mean", num_regions=64)

# %%
# Known before encoding, from the sizes of the images:

print("valid patches", encoder.num_patches(sizes))
print("tokens", regionizer.num_tokens(encoder.num_patches(sizes)))

# %%
# One number per image, and a fraction:

print("num_regions=[16, 64, 128]", regionizer(features, valid=valid, num_regions=[16, 64, 128]).counts.tolist())
print("keep=0.25", regionizer(features, valid=valid, keep=0.25).counts.tolist())

# %%
# Tokens of a batch as one tensor with a mask, as a list, or of one image:

tokens = regionizer(features, valid=valid, num_regions=[16, 64, 128])
values, is_token = tokens.padded()
print("padded", tuple(values.shape), is_token.sum(1).tolist())
print("split", [tuple(part.shape) for part in tokens.split()])
print("the second image", tokens[1])
