"""Stage 1 from stored features: the encoder is replaced by a store of patch features or region tokens.

Both are written by ``regiontok tokenize IMAGES --store DIR``. Patch features (``--source patch --norm none --padding
keep``) can train every row. Region tokens, written with the options of a row, can train rows with mean pooling.
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
from regiontok.tiles import uncut_images

_IGNORED = ("dim", "num_heads", "pool", "geometry")
"""Options of a Regionizer that do not change mean-pooled tokens; the geometry is compared separately."""


class StoredFeatures:
    """Stored features of images, which replace the encoder.

    Args:
        store: Store of the training images. Its keys are their paths relative to the image folder.
        row: The row of Table 1 that is trained.
        geometry: Geometry mode of the stage.

    Attributes:
        is_tokens: Whether the store holds region tokens, not patch features.
        grid: Rows and columns of patches.

    Raises:
        CheckpointError: The store is empty, or its options differ from those of the model.
    """

    def __init__(self, store: TokenStore, row: Row, geometry: str) -> None:
        self.store = store
        if not store:
            raise CheckpointError(f"{store.path} has no images yet.")
        first = store[next(iter(store))]
        provenance = dict(store.provenance)
        regions = provenance.get("regionizer", {})
        self.is_tokens = not (regions.get("source") == "patch" and regions.get("norm") == "none")
        expected = {"encoder": row.encoder, "encoder_options": {}, "geometry": {"mode": geometry}}
        stored = {
            "encoder": provenance.get("encoder"),
            "encoder_options": provenance.get("encoder_options"),
            "geometry": {"mode": provenance.get("geometry", {}).get("mode")},
        }
        if self.is_tokens:
            options = dict(row.options) | {"dim": first.values.shape[1]}
            if options.get("pool") != "mean" and options.get("source") != "patch":
                raise CheckpointError(
                    f"{store.path} has mean-pooled tokens, but the row trains a pool. Store patch features instead: "
                    "regiontok tokenize --source patch --norm none --padding keep."
                )
            image_geometry = ImageGeometry(geometry, tuple(provenance["geometry"]["size"]))
            config = Regionizer(**options | {"geometry": image_geometry}).config.to_dict()
            expected["regionizer"] = {name: value for name, value in config.items() if name not in _IGNORED}
            stored["regionizer"] = {name: value for name, value in regions.items() if name not in _IGNORED}
        differences = Manifest(kind="tokens", provenance=stored).difference(
            Manifest(kind="tokens", provenance=expected)
        )
        if differences:
            raise CheckpointError(
                f"the options of {store.path} differ from those of the model:\n  "
                + "\n  ".join(line.removesuffix(" now") + " in the model" for line in differences)
            )
        rows, cols = first.regions.grids[0].tolist()
        self.grid = (rows, cols)
        self.size: tuple[int, int] = tuple(provenance["geometry"]["size"])
        self.dim = first.values.shape[1]

    def __call__(self, file: str) -> tuple[Tensor, tuple[int, int]]:
        """Return the features of an image, and its height and width.

        Features are channels first, like pixels: ``(dim, rows, cols)`` for patches, ``(dim, 1, tokens)`` for tokens.

        Raises:
            MissingKeyError: The image is not in the store.
            CheckpointError: The image is stored without its size, or without padding patches.
        """
        tokens, size = self.store[file], self.store.size(file)
        if size is None:
            raise CheckpointError(f"{self.store.path} has no size of {file}. Write the store again.")
        if self.is_tokens:
            return tokens.values.T[:, None], size
        rows, cols = self.grid
        if len(tokens) != rows * cols or tokens.regions.grids[0].tolist() != [rows, cols]:
            raise CheckpointError(
                f"{self.store.path} has {len(tokens)} patches of {file} and not all {rows * cols}. Write it with "
                "--padding keep."
            )
        return tokens.values.reshape(rows, cols, -1).permute(2, 0, 1), size

    def count(self, file: str) -> int | None:
        """Return the number of tokens of an image; None for patch features and for images that are not in the store."""
        return self.store.count(file) if self.is_tokens and file in self.store else None

    def tower(self, encoder: str) -> "StoredTower":
        """Return a vision tower that replaces the encoder."""
        config = EncoderConfig(
            encoder=encoder,
            hidden_size=self.dim,
            image_size=list(self.size),
            patch_size=self.size[0] // self.grid[0],
        )
        return StoredTower(config, self)

    def attach(self, model: Any) -> None:
        """Change a model to take stored features as pixels. Stored tokens become its regions."""
        rows, cols = (1, 1) if self.is_tokens else self.grid
        inner = model.model
        inner.blank_image = lambda: {"pixel_values": torch.zeros(1, self.dim, rows, cols, device=model.device)}
        if self.is_tokens:
            inner.encode_patches = _tokens_as_patches
            model.regionizer = Regionizer(source="patch", norm="none", pool="mean", dim=self.dim)


class StoredTower(nn.Module):
    """A vision tower that returns its input, which is features ``(images, dim, rows, cols)``."""

    def __init__(self, config: EncoderConfig, features: StoredFeatures) -> None:
        super().__init__()
        self.config = config
        self.grid, self.size = features.grid, features.size
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the features."""
        return self._anchor.dtype

    @property
    def device(self) -> torch.device:
        """Device of the model, which moves this tower."""
        return self._anchor.device

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """Return the input as the only hidden state."""
        return BaseModelOutput(last_hidden_state=pixel_values, hidden_states=(pixel_values,))


def _tokens_as_patches(pixel_values: Tensor, **kwargs: Any) -> Patches:
    """Return the tokens of each image as a grid of one row, ``(1, tokens, dim)``, without the padding of `as_batch`."""
    features = [image[:, :, ~image[0, 0].isnan()].permute(1, 2, 0).float() for image in pixel_values]
    counts = [grid.shape[1] for grid in features]
    return Patches(features, counts, uncut_images([(1, count) for count in counts]))


def as_batch(images: Sequence[Tensor]) -> Tensor:
    """Concatenate images ``(n, dim, rows, cols)``, padded with NaN to the largest number of columns."""
    width = max(image.shape[-1] for image in images)
    return torch.cat([nn.functional.pad(image, (0, width - image.shape[-1]), value=torch.nan) for image in images])
