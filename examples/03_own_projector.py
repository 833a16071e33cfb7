"""
Region tokens in your own model
===============================

A ``Regionizer`` is placed between the frozen encoder and the projector. The number of regions differs between images,
so the tokens are padded. The model here is a small classifier with a projector and a transformer layer. It is trained
for a few steps, and the Regionizer is saved and loaded.
"""

import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import nn

from regiontok import Regionizer, encoders


class MyModel(nn.Module):
    """Score images: regions, projector, transformer layer, mean over tokens."""

    def __init__(self, dim: int, width: int = 64) -> None:
        super().__init__()
        self.regionizer = Regionizer(source="clustering", dim=dim, num_heads=4)  # has a trainable attention pool
        self.projector = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))
        self.transformer = nn.TransformerEncoderLayer(width, nhead=4, batch_first=True, dropout=0.0)
        self.head = nn.Linear(width, 1)

    def forward(self, features: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return scores ``(B,)`` for patch features ``(B, rows, cols, dim)``."""
        tokens = self.regionizer(features, valid=valid).map(self.projector)
        values, is_token = tokens.padded()  # (B, max_tokens, width) and (B, max_tokens)
        hidden = self.transformer(values, src_key_padding_mask=~is_token)
        mean = (hidden * is_token[..., None]).sum(1) / is_token.sum(1, keepdim=True)
        return self.head(mean)[:, 0]


# %%
# Encode two images. Real encoders are ``"clip-336"``, ``"radio-384"`` and others.

images = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
encoder = encoders.load("pixels")
features, valid = encoder(images)

torch.manual_seed(0)
model = MyModel(features.shape[-1])
print("tokens per image", model.regionizer(features, valid=valid).counts.tolist())

# %%
# Train the model to distinguish the two images. Gradients reach the projector and the attention pool.

labels = torch.tensor([0.0, 1.0])
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for step in range(21):
    loss = nn.functional.binary_cross_entropy_with_logits(model(features, valid), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 0:
        print(f"step {step:>2}  loss {loss.item():.3f}")

# %%
# Save and load the options and weights of the Regionizer.

model.regionizer.save_pretrained("my-regionizer")
loaded = Regionizer.from_pretrained("my-regionizer")
assert torch.equal(loaded(features, valid=valid).values, model.regionizer(features, valid=valid).values)  # noqa: S101
print("saved my-regionizer")
