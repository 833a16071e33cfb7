"""Compare the sources of regions on an image: what they cut, how many tokens each gives, and a page to explore them.

Run it with ``python examples/02_compare_sources.py``; it needs no weights and no network. With weights,
``encoders.load("radio-384")`` and ``masks.load("sam2")`` are the paper's.
"""

from PIL import Image
from sklearn.datasets import load_sample_image

from regiontok import MaskDownsampler, Regionizer, encoders, masks
from regiontok.store import MaskStore, write_masks
from regiontok.viewing import draw_sources, save_figure, write_page

images = {name: Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")}

# 1. Masks of both images, kept in a store that pycocotools, datasets and DuckDB read as well.
generate = masks.load("felzenszwalb")
made = zip(images, generate(list(images.values())), strict=True)
write_masks("masks", made, made_by=generate.describe(), overwrite=True)
store = MaskStore("masks")
print(store, store.made_by)

# 2. To the grid of an encoder: the same geometry for the image and its masks.
encoder = encoders.load("pixels")
downsampler = MaskDownsampler(encoder.grid, geometry=encoder.geometry)
print("coverage", tuple(downsampler.coverage(store["china.jpg"]).shape))
regions = downsampler([store[name] for name in images])
print("regions", regions.counts.tolist(), "dropped", [tuple(one) for one in regions.dropped])

# 3. Or all of it at once, for every source: features, and masks where they are needed, to tokens.
features, valid = encoder(list(images.values()))
regions_of_china = {}
for source in ("patch", "segmentation", "clustering", "combined"):
    regionizer = Regionizer(source=source, dim=48, geometry=encoder.geometry)
    given = [store[name] for name in images] if source in ("segmentation", "combined") else None
    tokens = regionizer(features, masks=given, valid=valid)
    print(f"{source:<13}", tokens.counts.tolist(), "tokens")
    one = None if given is None else given[:1]
    regions_of_china[source] = regionizer(features[:1], masks=one, valid=valid[:1]).regions

# 4. Side by side, and as a page with a slider for the number of tokens.
image = images["china.jpg"]
save_figure(draw_sources(image, regions_of_china, encoder.geometry.place((image.height, image.width))), "sources.png")
write_page("china.html", image, encoder, title="china.jpg", masks=store["china.jpg"])
print("see sources.png, and open china.html in a browser")
