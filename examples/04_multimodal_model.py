"""Region tokens in a LLaVA of transformers: a budget without training, and training on regions.

The model is small and randomly initialised, so that this runs anywhere in seconds; a real one differs in a name:
``LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf")``.
"""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from regiontok import Regionizer
from regiontok.adapters.huggingface import with_regions

IMAGE = 999  # the id of <image>
SIZES = {"intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
config = LlavaConfig(
    vision_config=CLIPVisionConfig(hidden_size=64, image_size=336, patch_size=14, **SIZES),
    text_config=LlamaConfig(hidden_size=64, vocab_size=1000, pad_token_id=0, **SIZES),
    image_token_index=IMAGE,
)
model = LlavaForConditionalGeneration(config).eval()

# A prompt of an image and three words; a stock processor would write the image 576 times, which is understood too.
inputs = {"input_ids": torch.tensor([[1, IMAGE, 5, 6, 7]]), "pixel_values": torch.rand(1, 3, 336, 336)}

# 1. A budget: the stock model stays as it is and shares its weights.
small = with_regions(model, num_regions=64)
answer = small.generate(**inputs, max_new_tokens=4, do_sample=False)
prepared = small.expand(**inputs)
print(f"{prepared.inputs['input_ids'].shape[1]} tokens instead of {576 + 4}; answer {answer[0, 5:].tolist()}")

# 2. Training: the pool starts as the mean and learns with the projector.
learner = with_regions(model, Regionizer(source="clustering", dim=64, num_heads=4, num_regions=64)).train()
learner.requires_grad_(False)
learner.regionizer.requires_grad_(True)
learner.model.multi_modal_projector.requires_grad_(True)
labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
optimizer = torch.optim.AdamW([one for one in learner.parameters() if one.requires_grad], lr=1e-3)
losses = []
for _ in range(5):
    loss = learner(**inputs, labels=labels).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(round(loss.item(), 2))
print(f"loss {losses}")
