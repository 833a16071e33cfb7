"""What is fuzzed: each target is a function of bytes that may raise only errors of regiontok."""

import contextlib
import io
import itertools
import json
import math
import shutil
import struct
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from regiontok import ImageGeometry, MaskDownsampler, MaskSet, Regionizer, RegionizerConfig, RegionTokens, load_tokens
from regiontok.adapters.huggingface import RegionLlavaForConditionalGeneration
from regiontok.errors import ImageError, RegiontokError, StoreError
from regiontok.masks import CocoMasks, LabelMaps, MaskFiles
from regiontok.pipeline import Listing
from regiontok.pipeline.roots import KeyFinder, Roots
from regiontok.store import MaskStore, TokenStore
from regiontok.track_files import read_tracks

_FOLDER = Path(tempfile.mkdtemp(prefix="regiontok-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
_MOST_DECODED = 2**22
"""Pixels up to which masks are decoded: an image may be large, and then so are its masks."""


def _use_tokens(tokens: RegionTokens) -> None:
    """What is done with tokens: each has a region with patches on the grid."""
    assert len(tokens.values) == len(tokens.regions)
    assert tokens.regions.areas().sum() == len(tokens.regions.patch)
    assert (tokens.regions.areas() > 0).all()
    assert all(len(one) for one in tokens.split())


def _use(masks: MaskSet) -> None:
    """What is done with masks: their pixels add up, they come back from COCO's form, and go to a grid."""
    pixels = masks.size[0] * masks.size[1]
    if not len(masks):
        return
    total = np.add.reduceat(masks.runs.astype(np.int64), masks.offsets[:-1])
    assert (total == pixels).all()
    assert np.array_equal(MaskSet.from_coco(masks.to_coco(), size=masks.size).runs, masks.runs)
    areas = masks.areas()
    covered = MaskDownsampler((4, 4), geometry=ImageGeometry.squash(16)).coverage(masks)
    assert covered.isfinite().all()
    np.testing.assert_allclose(covered.sum((1, 2)) / 16, areas / pixels, atol=1e-3)
    if pixels * len(masks) <= _MOST_DECODED:
        assert np.array_equal(masks.masks().sum((1, 2)).numpy(), areas)


def rle(data: bytes) -> None:
    """Compressed counts and a size, which may lie."""
    if len(data) < 9:
        return
    height, width = struct.unpack("<ii", data[:8])
    if data[8] & 1:  # mostly sizes of images
        height, width = abs(height) % 300 + 1, abs(width) % 300 + 1
    parts = data[9:].split(b"\xff")
    if data[8] & 2:  # counts that are valid text
        parts = [bytes(48 + one % 64 for one in part) for part in parts]
    if data[8] & 4:  # counts that add up
        parts = [_complete(part, height * width) for part in parts]
    masks: list[object] = [{"size": [height, width], "counts": part} for part in parts]
    if data[8] & 8:
        masks = [{"size": [height, width], "counts": list(part)} for part in parts]
    _use(MaskSet.from_coco(masks))


def _complete(part: bytes, pixels: int) -> bytes:
    runs, left = [], pixels
    for one in part:
        runs.append(min(one, left))
        left -= runs[-1]
    return bytes(MaskSet.from_coco([{"size": [pixels, 1], "counts": [*runs, left]}]).to_coco()[0]["counts"])


def polygons(data: bytes) -> None:
    """Corners of any kind of number, several polygons per mask."""
    if len(data) < 4:
        return
    height, width, kind = data[0] % 64 + 1, data[1] % 64 + 1, data[2] % 4
    dtype = ("<f8", "<f4", "<i2", "i1")[kind]
    masks = []
    for part in data[3:].split(b"\xff\xfe"):
        lines = [np.frombuffer(line[: len(line) // 8 * 8], dtype).tolist() for line in part.split(b"\xfe\xff")]
        masks.append({"id": len(masks), "segmentation": lines, "iscrowd": data[2] >> 2 & 1})
    _use(MaskSet.from_coco(masks, size=(height, width), iscrowd="drop" if data[2] & 8 else "keep"))


def annotations(data: bytes) -> None:
    """A file of COCO annotations."""
    file = _FOLDER / "instances.json"
    file.write_bytes(data)
    masks = CocoMasks(file)
    for name in masks:
        try:
            _use(masks[name])
        except RegiontokError:
            continue


def tracks(data: bytes) -> None:
    """A file of tracks, JSON or text by the first byte."""
    file = _FOLDER / ("tracks.txt" if data[:1] == b"t" else "tracks.json")
    file.write_bytes(data[1:])
    result = read_tracks(file, num_frames=None)
    for masks in result.frames.values():
        _use(masks)
    assert len(result.scores) == len(result)


def masks_of_json(data: bytes) -> None:
    """Whatever JSON can hold, as masks of an image."""
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        return
    _use(MaskSet.of(given, size=(48, 64)))


def label_map(data: bytes) -> None:
    """A picture as a label map; one in the place of a PNG, whatever it is."""
    file = _FOLDER / "maps" / "a.png"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(data[1:])
    _use(LabelMaps(file.parent, ignore=(0, 255) if data[:1] > b"\x7f" else ())["a.jpg"])
    with Image.open(io.BytesIO(data[1:])) as picture:
        assert picture.size[0] * picture.size[1] >= 1


def store(data: bytes) -> None:
    """Read a shard of masks, or of tokens."""
    for kind, open_store in (("masks", MaskStore), ("tokens", TokenStore)):
        folder = _FOLDER / f"store-{kind}"
        folder.mkdir(exist_ok=True)
        (folder / "_store.json").write_text(json.dumps({"format": 1, "kind": kind, "provenance": {}, "images": []}))
        (folder / "part-00000-000000.parquet").write_bytes(data)
        with warnings.catch_warnings(action="ignore"):
            opened: Any = open_store(folder)
        if not opened.damaged:
            break
    else:
        raise StoreError(str(opened.damaged))
    for key in list(opened)[:50]:
        try:
            if isinstance(opened, MaskStore):
                _use(opened[key])
            else:
                _use_tokens(opened[key])
        except RegiontokError:
            continue


def manifest(data: bytes) -> None:
    """What a store tells of itself."""
    folder = _FOLDER / "store"
    folder.mkdir(exist_ok=True)
    (folder / "_store.json").write_bytes(data)
    opened = MaskStore(folder)
    assert len(opened) == 0
    assert opened.manifest.difference(opened.manifest) == []
    KeyFinder(opened.manifest.images, Roots([_FOLDER]), explicit=False)(_FOLDER / "a.jpg")


def image_list(data: bytes) -> None:
    """A list of images, as text or JSON by its first byte."""
    file = _FOLDER / ("list" + (".txt", ".json", ".jsonl")[data[0] % 3 if data else 0])
    file.write_bytes(data[1:])
    for image in itertools.islice(Listing([file]), 50):
        assert image.address.endswith(image.key)


def mask_file(data: bytes) -> None:
    """The masks of one image in a file of its own, of a kind by its first byte."""
    suffix = (".json", ".npz", ".npy", ".png")[data[0] % 4 if data else 0]
    folder = _FOLDER / "masks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / f"a{suffix}").write_bytes(data[1:])
    _use(MaskFiles(folder)["a.jpg"])


def tar(data: bytes) -> None:
    """A tar of images: what is listed is an image, or raises the error of one."""
    file = _FOLDER / "a.tar"
    file.write_bytes(data)
    _read_all(Listing([file]))


def parquet(data: bytes) -> None:
    """A Parquet file with a column of images."""
    file = _FOLDER / "a.parquet"
    file.write_bytes(data)
    _read_all(Listing([file]))


def _read_all(listing: Listing) -> None:
    seen = 0
    for image in itertools.islice(listing, 20):
        with contextlib.suppress(ImageError):
            assert listing.read(image).mode == "RGB"
            seen += 1
    if not seen:
        raise ImageError("no image is left")


def tokens(data: bytes) -> None:
    """A file of tokens."""
    file = _FOLDER / "a.safetensors"
    file.write_bytes(data)
    _use_tokens(load_tokens(file))


def options(data: bytes) -> None:
    """A config of a Regionizer; what is taken is saved and read as the same."""
    try:
        config = json.loads(data)
    except (ValueError, RecursionError):
        return
    made = RegionizerConfig.from_dict(config)
    assert RegionizerConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def regionizer(data: bytes) -> None:
    """A saved Regionizer: a length, the config, and the weights."""
    if len(data) < 2:
        return
    length = struct.unpack("<H", data[:2])[0]
    folder = _FOLDER / "regionizer"
    folder.mkdir(exist_ok=True)
    (folder / "regionizer.json").write_bytes(data[2 : 2 + length])
    (folder / "regionizer.safetensors").write_bytes(data[2 + length :])
    loaded = Regionizer.from_pretrained(folder)
    assert all(not one.is_meta for one in loaded.state_dict().values())
    assert sum(one.numel() for one in loaded.state_dict().values()) <= len(data)


_LLAVA = {
    "vision_config": CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    ).to_dict(),
    "text_config": LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=64
    ).to_dict(),
    "image_token_index": 63,
}


def model_config(data: bytes) -> None:
    """The part of a model's config that is regiontok's."""
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        return
    config = LlavaConfig(**_LLAVA)
    config.regiontok = given
    with torch.device("meta"):
        model = RegionLlavaForConditionalGeneration(config)
    assert model.regionizer.config.dim in (None, 32)
    assert math.isfinite(model.regionizer.config.min_coverage)


TARGETS: dict[str, Callable[[bytes], None]] = {
    one.__name__: one
    for one in (
        rle, polygons, annotations, tracks, masks_of_json, label_map, store, manifest, image_list, mask_file, tar, parquet,
        tokens, options, regionizer, model_config
    )
}  # fmt: skip


def attempt(name: str, data: bytes) -> bool:
    """Try an input; returns whether it was taken. Whatever else is raised than regiontok's errors is a finding."""
    try:
        TARGETS[name](data)
    except RegiontokError as error:
        if not str(error):
            raise AssertionError(f"{type(error).__name__} says nothing") from error
        return False
    return True
