"""
Fewer tokens in a LLaVA
=======================

A LLaVA of transformers gets 64 tokens per image instead of 576, with and without training. The model is small and
randomly initialised, so the program runs in seconds and needs no weights. For a real model, load
``LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf")``.
"""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from regiontok import Regionizer
from regiontok.adapters.huggingface import with_regions

IMAGE = 999  # token id of <image>
SIZES = {"intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
config = LlavaConfig(
    vision_config=CLIPVisionConfig(hidden_size=64, image_size=336, patch_size=14, **SIZES),
    text_config=LlamaConfig(hidden_size=64, vocab_size=1000, pad_token_id=0, **SIZES),
    image_token_index=IMAGE,
)
model = LlavaForConditionalGeneration(config).eval()

# A prompt with one image placeholder and three words. A prompt with 576 placeholders, as the stock processor writes it,
# also works.
inputs = {"input_ids": torch.tensor([[1, IMAGE, 5, 6, 7]]), "pixel_values": torch.rand(1, 3, 336, 336)}

# %%
# Without training: 64 tokens per image. The region model shares the weights of the stock model.

region_model = with_regions(model, num_regions=64)
answer = region_model.generate(**inputs, max_new_tokens=4, do_sample=False)
expanded = region_model.expand(**inputs)
print(f"{expanded.inputs['input_ids'].shape[1]} tokens instead of {576 + 4}; answer {answer[0, 5:].tolist()}")

# %%
# With training: the attention pool, which starts as mean pooling, and the projector.

trained_model = with_regions(model, Regionizer(source="clustering", dim=64, num_heads=4, num_regions=64)).train()
trained_model.requires_grad_(False)
trained_model.regionizer.requires_grad_(True)
trained_model.model.multi_modal_projector.requires_grad_(True)
labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
optimizer = torch.optim.AdamW([weight for weight in trained_model.parameters() if weight.requires_grad], lr=1e-3)
losses = []
for _ in range(5):
    loss = trained_model(**inputs, labels=labels).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(round(loss.item(), 2))
print(f"loss {losses}")
