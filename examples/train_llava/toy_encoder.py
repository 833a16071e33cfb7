"""Encoders for toy scenes: ``pixels``, DINOv2-small or another vision transformer, with features computed once."""

import json
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from scenes import SIDE
from torch import Tensor
from tqdm import tqdm
from transformers import AutoConfig

from regiontok import ImageGeometry, encoders, read_image


class ToyEncoder(NamedTuple):
    """An encoder for toy scenes.

    Attributes:
        label: Name in rows and results.
        name: Name for `regiontok.encoders.load`.
        options: Options for `regiontok.encoders.load`, including ``img_size``.
    """

    label: str
    name: str
    options: dict[str, Any]

    @property
    def geometry(self) -> ImageGeometry:
        """Geometry of scenes and their masks on the input of the encoder."""
        return ImageGeometry.squash(self.options["img_size"])


PIXELS = ToyEncoder("pixels", "pixels", {"img_size": SIDE})
GRID = 12
"""Number of patches per side, for every encoder."""


def find_encoder(name: str, layer: int | None = None) -> ToyEncoder:
    """Return an encoder with 12 x 12 patches.

    Args:
        name: ``pixels``, ``dinov2-small``, or a folder of a vision transformer of transformers.
        layer: Index of the feature layer; by default the last, or block 10 of ``dinov2-small``.
    """
    if name == "pixels":
        return PIXELS
    folder, default_layer = Path(name), None
    if name == "dinov2-small":
        sys.path.append(str(Path(__file__).parent.parent))
        import real_features  # noqa: PLC0415  needs packages that the other encoders do not need

        folder, default_layer = real_features.dinov2_small(), real_features.LAYER
        layer = default_layer if layer is None else layer
    if not folder.is_dir():
        raise SystemExit(f"--encoder must be pixels, dinov2-small or a folder; got {name}.")
    patch_size = AutoConfig.from_pretrained(folder).patch_size
    options = {"img_size": GRID * patch_size} | ({} if layer is None else {"layer": layer})
    label = folder.name if layer == default_layer else f"{folder.name}-layer{layer}"
    return ToyEncoder(label, f"hf:{folder}", options)


@torch.no_grad()
def store_features(folder: Path, encoder: ToyEncoder) -> Path:
    """Compute the features of all scenes once, and return the file that holds them with digests of the pixels."""
    encoder_digest = blake2b(repr(encoder).encode(), digest_size=4).hexdigest()  # labels may be equal
    file = folder / f"{encoder.label}-{encoder_digest}.safetensors"
    if file.is_file():
        return file
    loaded = encoders.load(encoder.name, geometry="squash", **encoder.options)
    digests, features = [], []
    names: set[str] = set()
    for split in ("captions", "test"):
        entries = json.loads((folder / "data" / f"{split}.json").read_text(encoding="utf-8"))
        names |= {entry["image"] for entry in entries}
    images = [folder / "data" / "images" / name for name in sorted(names)]
    for start in tqdm(range(0, len(images), 32), desc=encoder.label):
        pixels, _ = loaded.preprocess([read_image(image) for image in images[start : start + 32]])
        digests += [_digest(image) for image in pixels]
        features.append(loaded.encode(pixels))
    temporary = file.with_suffix(".part")
    save_file({"digests": torch.stack(digests), "features": torch.cat(features)}, temporary)
    temporary.replace(file)
    return file


def use_stored_features(encoder: Any, folder: Path, toy_encoder: ToyEncoder) -> None:
    """Change an encoder to return stored features of scenes. Other images are encoded."""
    stored = load_file(store_features(folder, toy_encoder))
    index_of = {digest.numpy().tobytes(): index for index, digest in enumerate(stored["digests"])}
    encode = encoder.encode

    def look_up(pixels: Tensor) -> Tensor:
        indices = [index_of.get(_digest(image).numpy().tobytes()) for image in pixels]
        return encode(pixels) if None in indices else stored["features"][indices]

    encoder.encode = look_up


def _digest(pixels: Tensor) -> Tensor:
    return torch.frombuffer(bytearray(blake2b(pixels.numpy().tobytes(), digest_size=16).digest()), dtype=torch.uint8)
