"""Stage 1 without an encoder in memory: features of patches, or tokens of regions, from a store in its place.

Both are written by ``regiontok tokenize IMAGES --store DIR``: features with ``--source patch --norm none --padding
keep``, which any row can be trained on; tokens with the options of a row whose pool is the mean.
"""

from collections.abc import Sequence
from typing import Any

import torch
from recipe import Row
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from regiontok import ImageGeometry, Regionizer
from regiontok.adapters.huggingface import EncoderConfig, Patches
from regiontok.errors import CheckpointError
from regiontok.store import Manifest, TokenStore
from regiontok.views import uncut_images

_FREE = ("dim", "num_heads", "pool", "geometry")
"""Options of a Regionizer that do not change mean tokens; the geometry is compared by itself."""


class StoredFeatures:
    """What a store has of images, in the place of an encoder.

    Args:
        store: Made of the images of the data, with keys below their folder.
        row: What is trained.
        geometry: How the stage places images.

    Attributes:
        tokens: Whether the store has tokens of regions, and not features of all patches.
        grid: Rows and columns of patches.

    Raises:
        CheckpointError: A store that was made by other options than the model's; they are named.
    """

    def __init__(self, store: TokenStore, row: Row, geometry: str) -> None:
        self.store = store
        if not store:
            raise CheckpointError(f"{store.path} has no image yet.")
        first = store[next(iter(store))]
        made = dict(store.made_by)
        regions = made.get("regionizer", {})
        self.tokens = not (regions.get("source") == "patch" and regions.get("norm") == "none")
        wanted = {"encoder": row.encoder, "encoder_options": {}, "geometry": {"mode": geometry}}
        found = {"encoder": made.get("encoder"), "encoder_options": made.get("encoder_options"), "geometry": {}}
        found["geometry"]["mode"] = made.get("geometry", {}).get("mode")
        if self.tokens:
            options = dict(row.options) | {"dim": first.values.shape[1]}
            if options.get("pool") != "mean" and options.get("source") != "patch":
                raise CheckpointError(
                    f"{store.path} has tokens, which are means of their regions, and the row trains a pool. Store "
                    "features of patches for it: regiontok tokenize --source patch --norm none --padding keep."
                )
            shape = ImageGeometry(geometry, tuple(made["geometry"]["size"]))
            own = Regionizer(**options | {"geometry": shape}).config.to_dict()
            wanted["regionizer"] = {name: value for name, value in own.items() if name not in _FREE}
            found["regionizer"] = {name: value for name, value in regions.items() if name not in _FREE}
        different = Manifest(kind="tokens", made_by=found).difference(Manifest(kind="tokens", made_by=wanted))
        if different:
            raise CheckpointError(
                f"{store.path} was made by other options than the model's:\n  "
                + "\n  ".join(line.removesuffix(" now") + " in the model" for line in different)
            )
        rows, cols = first.regions.grids[0].tolist()
        self.grid = (rows, cols)
        self.size: tuple[int, int] = tuple(made["geometry"]["size"])
        self.dim = first.values.shape[1]

    def __call__(self, file: str) -> tuple[Tensor, tuple[int, int]]:
        """An image as an image ``(dim, rows, cols)`` of features, or ``(dim, 1, tokens)``; and its height and width.

        Raises:
            CheckpointError: No such image, or one without its size or all of its patches.
        """
        tokens, size = self.store[file], self.store.size(file)
        if size is None:
            raise CheckpointError(f"{self.store.path} does not tell the size of {file}. Make the store again.")
        if self.tokens:
            return tokens.values.T[:, None], size
        rows, cols = self.grid
        if len(tokens) != rows * cols or tokens.regions.grids[0].tolist() != [rows, cols]:
            raise CheckpointError(
                f"{self.store.path} has {len(tokens)} patches of {file} and not all {rows * cols}. Make it with "
                "--padding keep."
            )
        return tokens.values.reshape(rows, cols, -1).permute(2, 0, 1), size

    def count(self, file: str) -> int | None:
        """How many tokens an image will have, where the store knows it."""
        return self.store.count(file) if self.tokens and file in self.store else None

    def tower(self, encoder: str) -> "StoredTower":
        """What stands in the place of the encoder."""
        config = EncoderConfig(
            encoder=encoder,
            hidden_size=self.dim,
            image_size=list(self.size),
            patch_size=self.size[0] // self.grid[0],
        )
        return StoredTower(config, self)

    def attach(self, model: Any) -> None:
        """Let a model take tokens as they are, and blank images of this form."""
        rows, cols = (1, 1) if self.tokens else self.grid
        inner = model.model
        inner.blank_image = lambda: {"pixel_values": torch.zeros(1, self.dim, rows, cols, device=model.device)}
        if self.tokens:
            inner.encode_patches = _each_its_own
            model.regionizer = Regionizer(source="patch", norm="none", pool="mean", dim=self.dim)


class StoredTower(nn.Module):
    """A vision tower whose pixels are features already, ``(images, dim, rows, cols)``."""

    def __init__(self, config: EncoderConfig, features: StoredFeatures) -> None:
        super().__init__()
        self.config = config
        self.grid, self.size = features.grid, features.size
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Of the features, as the model has them."""
        return self._anchor.dtype

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._anchor.device

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """What came."""
        return BaseModelOutput(last_hidden_state=pixel_values, hidden_states=(pixel_values,))


def _each_its_own(pixel_values: Tensor, **kwargs: Any) -> Patches:
    """Tokens ``(1, tokens, dim)`` of each image; what `as_batch` added is left out."""
    features = [one[:, :, ~one[0, 0].isnan()].permute(1, 2, 0).float() for one in pixel_values]
    counts = [one.shape[1] for one in features]
    return Patches(features, counts, uncut_images([(1, count) for count in counts]))


def as_batch(images: Sequence[Tensor]) -> Tensor:
    """Images ``(n, dim, rows, cols)`` of several widths as one batch; what is added is NaN."""
    widest = max(one.shape[-1] for one in images)
    return torch.cat([nn.functional.pad(one, (0, widest - one.shape[-1]), value=torch.nan) for one in images])
