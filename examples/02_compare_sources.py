"""
Four sources on one image
=========================

Regions are single patches, segmentation masks, clusters of similar patches, or masks that are split by their
features. This program prints the number of tokens of each source for two images, draws the regions side by side, and
writes a page to explore them in a browser. The masks are colour segments, which need no weights; the paper uses
``masks.load("sam2")``.
"""

from PIL import Image
from sklearn.datasets import load_sample_image

from regiontok import MaskDownsampler, Regionizer, encoders, masks
from regiontok.store import MaskStore, write_masks
from regiontok.viewing import draw_sources, save_figure, write_page

images = {name: Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")}

# %%
# Generate masks and write them to a store, which pycocotools, datasets and DuckDB can also read.

generator = masks.load("felzenszwalb")
mask_sets = generator(list(images.values()))
write_masks("masks", zip(images, mask_sets, strict=True), provenance=generator.describe(), overwrite=True)
store = MaskStore("masks")
print(store, store.provenance)

# %%
# Downsample the masks to the patch grid of an encoder. Images and masks need the same geometry.

encoder = encoders.load("pixels")
downsampler = MaskDownsampler(encoder.grid, geometry=encoder.geometry)
print("coverage", tuple(downsampler.coverage(store["china.jpg"]).shape))
regions = downsampler([store[name] for name in images])
print("regions", regions.counts.tolist(), "dropped", [tuple(indices) for indices in regions.dropped])

# %%
# A Regionizer does all of this, for every source.

features, valid = encoder(list(images.values()))
regions_of_china = {}
for source in ("patch", "segmentation", "clustering", "combined"):
    regionizer = Regionizer(source=source, dim=48, geometry=encoder.geometry)
    needs_masks = source in ("segmentation", "combined")
    tokens = regionizer(features, masks=[store[name] for name in images] if needs_masks else None, valid=valid)
    print(f"{source:<13}", tokens.counts.tolist(), "tokens")
    masks_of_china = [store["china.jpg"]] if needs_masks else None
    regions_of_china[source] = regionizer(features[:1], masks=masks_of_china, valid=valid[:1]).regions

# %%
# Draw the regions of one image side by side, and write a page with a slider for the number of tokens.

image = images["china.jpg"]
save_figure(draw_sources(image, regions_of_china, encoder.geometry.place((image.height, image.width))), "sources.png")
write_page("china.html", image, encoder, title="china.jpg", masks=store["china.jpg"])
print("saved sources.png and china.html (open it in a browser)")
