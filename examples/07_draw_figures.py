"""
The figures of the paper
========================

The figures of the paper for your own images and model. The encoders are ``pixels``, which needs no weights, and a
small ViT of timm with random weights; the paper uses ``"clip-336"``, ``"siglip2-378"`` and ``"radio-384"``. The model
is the one of ``05_train_tiny.py``, which is trained first if it is missing. The same figures are commands:
``regiontok figures``.
"""

import json
import runpy
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_image

from regiontok import Regionizer, encoders, masks, read_image
from regiontok.evaluation.assistant import Assistant, Question
from regiontok.store import MaskStore
from regiontok.viewing import (
    Attention,
    draw_attention,
    draw_encoders,
    draw_features,
    draw_norms,
    draw_sources,
    save_figure,
)

HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()  # a notebook has no file
images = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
all_encoders = {
    "pixels": encoders.load("pixels"),
    "random ViT": encoders.load("timm:vit_tiny_patch16_224", pretrained=False),
}

# %%
# Figures 1 and 2: feature norms before and after RMS norm, PCA of features, and a comparison of encoders.

encoded = {name: [encoder.encode_image(image) for image in images] for name, encoder in all_encoders.items()}
save_figure(draw_norms({name: encoded_images[0] for name, encoded_images in encoded.items()}), "norms.png")
save_figure(draw_features(encoded), "features.png")
save_figure(draw_encoders(encoded, threshold=0.7), "encoders.png")

# %%
# The regions of each source.

encoder, china = all_encoders["pixels"], encoded["pixels"][0]
mask_sets = masks.load("felzenszwalb")(images[:1])
regions = {}
for source in ("patch", "segmentation", "clustering", "combined"):
    regionizer = Regionizer(source=source, pool="mean", geometry=encoder.geometry)
    features = regionizer.normalize(china.features[None])
    needs_masks = source in ("segmentation", "combined")
    regions[source] = regionizer.group(features, masks=mask_sets if needs_masks else None, valid=china.valid[None])
save_figure(draw_sources(images[0], regions, china.placement), "sources.png")

# %%
# Figure 3: the attention of an answer to the regions of an image.

model = runpy.run_path(str(HERE / "06_evaluate_focus.py"))["find_model"]()
data = model.parents[3] / "data"
assistant, store = Assistant.load(model), MaskStore(data / "masks")
entry = json.loads((data / "test.json").read_text())[0]
image = read_image(data / "images" / entry["image"])
question = Question(entry["text"], [image], [store[entry["image"]]])
answer = assistant.answer([question], max_new_tokens=1)[0]
attention = assistant.attend([question], [answer.tokens])
panel = Attention(
    attention.regions, attention.weights[0].mean((0, 1)), assistant.geometry.place((image.height, image.width))
)
save_figure(draw_attention(image, {"segmentation": panel}, question=f"{question.text}? {answer.text}"), "attention.png")
print("saved norms.png, features.png, encoders.png, sources.png and attention.png")
