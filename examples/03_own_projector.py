"""Region tokens in a model of your own: anything that projects patch features can project regions.

The model is a stand-in with a projector and a small transformer; what matters is where the `Regionizer` goes: between
the frozen encoder and the projector, with padding for counts that differ between images.
"""

import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import nn

from regiontok import Regionizer, encoders


class MyModel(nn.Module):
    """Images to a score each: regions, projector, transformer, mean."""

    def __init__(self, dim: int, width: int = 64) -> None:
        super().__init__()
        self.regionizer = Regionizer(source="clustering", dim=dim, num_heads=4)  # its attention pool is trained too
        self.projector = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))
        self.language = nn.TransformerEncoderLayer(width, nhead=4, batch_first=True, dropout=0.0)
        self.head = nn.Linear(width, 1)

    def forward(self, features: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Scores ``(B,)`` of ``(B, rows, cols, dim)``."""
        tokens = self.regionizer(features, valid=valid).map(self.projector)
        values, there = tokens.padded()  # (B, most, width), and which of them are tokens
        hidden = self.language(values, src_key_padding_mask=~there)
        mean = (hidden * there[..., None]).sum(1) / there.sum(1, keepdim=True)
        return self.head(mean)[:, 0]


images = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
encoder = encoders.load("pixels")  # or "clip-336", "radio-384" ...
features, valid = encoder(images)

torch.manual_seed(0)
model = MyModel(features.shape[-1])
print("tokens per image", model.regionizer(features, valid=valid).counts.tolist())

# The two images are told apart; gradients reach the projector and the pool through the regions.
wanted = torch.tensor([0.0, 1.0])
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for step in range(21):
    loss = nn.functional.binary_cross_entropy_with_logits(model(features, valid), wanted)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 0:
        print(f"step {step:>2}  loss {loss.item():.3f}")

# The options and weights of the regions travel by themselves, too.
model.regionizer.save_pretrained("my-regionizer")
same = Regionizer.from_pretrained("my-regionizer")
assert torch.equal(same(features, valid=valid).values, model.regionizer(features, valid=valid).values)  # noqa: S101
print("saved in my-regionizer")
