"""
Regions of a clip
=================

Patches of a video merge with their neighbours in the same frame and in the next one. A region that continues over
several frames is a single token.
"""

import real_features

from regiontok import Regionizer, UnionFindClusterer, read_video
from regiontok.viewing import draw_clip

# %%
# A clip of eight frames, in which the view moves over an image. For a file, write ``read_video("film.mp4", fps=2)``.

image = real_features.images()["chelsea"]
video = read_video([image.crop((16 * step, 0, 16 * step + 300, 300)) for step in range(8)])
encoder = real_features.load_encoder()
features, valid = encoder(video.frames)
features = Regionizer(pool="mean").normalize(features)

# %%
# One budget for the whole clip: 96 tokens, instead of the patches of eight frames.

clusterer = UnionFindClusterer(linkage="ward", num_regions=96)
regions = clusterer([features], [valid])
durations = regions.durations()
print(f"{valid.sum()} patches -> {len(regions)} regions, which last {durations.float().mean():.1f} frames on average")

# %%
# Outlines above, and below each region in its mean colour, which is the same in all frames.

placement = encoder.geometry.place((300, 300))
draw_clip(video.frames, regions, placement, columns=4).save("clip.png")

# %%
# The region that moves furthest: its centroid in the first and in the last frame.

first, last = regions.tracks().unbind(1)
furthest = int((last - first)[:, 1:].norm(dim=1).argmax())
print(f"from {first[furthest].tolist()} to {last[furthest].tolist()} (frame, row, column)")
print("saved clip.png")
