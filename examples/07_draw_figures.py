"""Draw the paper's figures for images and a model of one's own; on the command line it is ``regiontok figures``.

Encoders are ``pixels``, which needs no weights, and timm's small ViT with random ones: name ``"clip-336"``,
``"siglip2-378"``, ``"radio-384"`` for the paper's. The model is the one of ``05_train_tiny.py``.
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
    see,
)

images = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
chosen = {
    "pixels": encoders.load("pixels"),
    "random ViT": encoders.load("timm:vit_tiny_patch16_224", pretrained=False),
}

# Figures 1 and 2: norms before and after rms, features by PCA, and encoders side by side.
seen = {name: [see(image, encoder) for image in images] for name, encoder in chosen.items()}
save_figure(draw_norms({name: views[0] for name, views in seen.items()}), "norms.png")
save_figure(draw_features(seen), "features.png")
save_figure(draw_encoders(seen, threshold=0.7), "encoders.png")

# Regions from each source.
encoder, view = chosen["pixels"], seen["pixels"][0]
found = masks.load("felzenszwalb")(images[:1])
regions = {}
for source in ("patch", "segmentation", "clustering", "combined"):
    regionizer = Regionizer(source=source, pool="mean", geometry=encoder.geometry)
    features = regionizer.normalize(view.features[None])
    given = found if source in ("segmentation", "combined") else None
    regions[source] = regionizer.group(features, masks=given, valid=view.valid[None])
save_figure(draw_sources(images[0], regions, view.placement), "sources.png")

# Figure 3: where an answer looks.
model = runpy.run_path(str(Path(__file__).with_name("06_evaluate_focus.py")))["find_model"]()
data = model.parents[3] / "data"
assistant, store = Assistant.load(model), MaskStore(data / "masks")
asked = json.loads((data / "test.json").read_text())[0]
image = read_image(data / "images" / asked["image"])
question = Question(asked["text"], [image], [store[asked["image"]]])
answer = assistant.answer([question], max_new_tokens=1)[0]
attention = assistant.attend([question], [answer.tokens])
panel = Attention(
    attention.regions, attention.weights[0].mean((0, 1)), assistant.geometry.place((image.height, image.width))
)
save_figure(draw_attention(image, {"segmentation": panel}, question=f"{question.text}? {answer.text}"), "attention.png")
print("see norms.png, features.png, encoders.png, sources.png and attention.png")
