"""Regions from masks: made once, kept in a file, brought to the patch grid, and split where patches differ.

Run it with ``python examples/02_masks.py``; it needs no weights and no network. With weights, ``masks.load("sam2")``
makes the paper's masks.
"""

from PIL import Image
from sklearn.datasets import load_sample_image

from regiontok import MaskDownsampler, Regionizer, encoders, masks
from regiontok.viewing import draw_regions

photos = {name: Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")}

# 1. Masks of both photos, kept in a file that pycocotools, datasets and DuckDB read as well.
generate = masks.load("felzenszwalb")
made = zip(photos, generate(list(photos.values())), strict=True)
masks.write_masks("masks.parquet", made, made_by=generate.describe())
store = masks.MaskStore("masks.parquet")
print(store, store.made_by)

# 2. To the grid of an encoder: the same geometry for the photo and its masks.
encoder = encoders.load("pixels")
downsampler = MaskDownsampler(encoder.grid, geometry=encoder.geometry)
print("coverage", tuple(downsampler.coverage(store["china.jpg"]).shape))
regions = downsampler([store[name] for name in photos])
print("regions", regions.counts.tolist(), "dropped", [tuple(one) for one in regions.dropped])

# 3. Or all of it at once: features and masks to tokens.
features, valid = encoder(list(photos.values()))
for source in ("segmentation", "combined"):
    regionizer = Regionizer(source=source, dim=48, geometry=encoder.geometry)
    tokens = regionizer(features, masks=[store[name] for name in photos], valid=valid)
    print(source, tokens.counts.tolist(), "tokens")

# 4. What the tokens of the first photo stand for; overlapping regions lie on one another, the smallest on top.
first = regionizer(features[:1], masks=[store["china.jpg"]], valid=valid[:1]).regions
photo = photos["china.jpg"]
draw_regions(photo, first, encoder.geometry.place((photo.height, photo.width))).save("combined.png")
print("see combined.png")
