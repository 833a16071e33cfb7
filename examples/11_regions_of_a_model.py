"""
The regions of a multimodal model
=================================

``ModelEncoder`` returns the patch features from which a multimodal model makes its regions, so that the regions can
be drawn and compared before a budget is chosen. The model here is a LLaVA with DINOv2-small as its vision tower, or a
small random tower if the weights cannot be downloaded, and a small random language model. For a model on disk,
``regiontok view IMAGE --model DIR`` writes an interactive page.
"""

import real_features
import torch
from transformers import (
    AutoModel,
    BitImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from regiontok import Regionizer
from regiontok.adapters.huggingface import ModelEncoder, with_regions
from regiontok.viewing import draw_sources, save_figure

torch.manual_seed(0)
sizes = {"intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
try:
    tower = AutoModel.from_pretrained(real_features.dinov2_small())
    tower.config.image_size = 336
except (OSError, ImportError):
    tower = CLIPVisionModel(CLIPVisionConfig(hidden_size=64, image_size=336, patch_size=14, **sizes))
text_config = LlamaConfig(hidden_size=64, vocab_size=1000, **sizes)
stock = LlavaForConditionalGeneration(LlavaConfig(vision_config=tower.config, text_config=text_config))
stock.model.vision_tower = tower
image_processor = BitImageProcessor(size={"height": 336, "width": 336}, do_center_crop=False)

# %%
# Convert the model, and encode an image as the model does.

model = with_regions(stock, keep=0.1).eval()
encoded = ModelEncoder(model, image_processor, name="LLaVA").encode_image(real_features.images()["astronaut"])
print("patches of the model", tuple(encoded.features.shape))

# %%
# Its regions with three budgets. ``with_regions`` merges by Ward linkage, without norm.

regions = {}
for keep in (0.25, 0.1, 0.05):
    regionizer = Regionizer(keep=keep, pool="mean", norm="none")
    regions[f"keep={keep}"] = regionizer(encoded.features[None], valid=encoded.valid[None]).regions
save_figure(draw_sources(encoded.image, regions, encoded.placement), "regions-of-a-model.png")

# %%
# The regions of a forward pass are the same. They are part of its output.

pixels = image_processor(images=[encoded.image], return_tensors="pt")["pixel_values"]
tokens = model.encode_regions(pixels)
print("tokens of the language model", tuple(tokens.values.shape))
print("saved regions-of-a-model.png")
