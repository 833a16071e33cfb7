"""How well do stores and the pipeline scale, beside the loop over single images, on the cores of this machine?

Images are 640 x 480 JPEG; the ViT-S has random weights, which cost what trained ones do. Runs are whole commands in a
process of their own, whose imports and start are taken off by a run of few images.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pycocotools import mask as coco
from skimage import data
from sklearn.datasets import load_sample_image
from transformers import Sam2Config, Sam2Model

from benchmarks.timing import save, save_path
from regiontok import ImageGeometry, MaskDownsampler, MaskSet, Regionizer, encoders, read_image
from regiontok.masks import MaskSettings, Sam2Masks, sam2
from regiontok.pipeline.roots import Roots
from regiontok.store import Manifest, MaskStore, StoreWriter
from regiontok.store.masks import masks_table
from regiontok.store.tokens import tokens_table

IMAGES, FEW = 2000, 200
VIT = "timm:vit_small_patch14_dinov2"
SIDE = "336"


def make_images(folder: Path, count: int, *, size: tuple[int, int] = (640, 480), different: int = 200) -> Path:
    """Images cut and turned out of a few; every file is its own, though pictures come again."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    sources = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    sources += [Image.fromarray(picture()) for picture in (data.astronaut, data.coffee, data.chelsea, data.rocket)]
    for number in range(min(count, different)):
        source = sources[number % len(sources)].convert("RGB")
        left, top = (int(generator.integers(0, side // 3)) for side in source.size)
        box = (left, top, left + 2 * source.width // 3, top + 2 * source.height // 3)
        source.resize(size, box=box).rotate(int(generator.integers(-9, 9))).save(
            folder / f"{number:06d}.jpg", quality=90
        )
    for number in range(different, count):
        shutil.copy(folder / f"{number % different:06d}.jpg", folder / f"{number:06d}.jpg")
    return folder


def run(arguments: list[str], code: str = "") -> dict[str, float]:
    """A command in a process of its own: its seconds and peak memory in MiB."""
    program = (
        "import json, re, sys, time, torch\n"
        "from regiontok.cli import main\n"
        f"{code}\n"
        "start = time.perf_counter()\n"
        "code = main(json.loads(sys.argv[1]))\n"
        "peak = int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024\n"
        "print(json.dumps({'code': code, 'seconds': time.perf_counter() - start, 'peak': peak}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
    )
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if told["code"] != 0:
        raise SystemExit(done.stderr)
    return told


RANDOM_WEIGHTS = (
    "from functools import partial\nfrom regiontok import encoders\nload = encoders.load\n"
    "encoders.load = partial(load, pretrained=False)"
)


def per_image(folder: Path, options: list[str], target: str, count: int, few: int, *, rounds: int = 1) -> list[float]:
    """Milliseconds per image of a command, its start taken off."""
    out = folder.parent / "out"
    found = []
    for _ in range(rounds):
        seconds = []
        for number in (few, count):
            shutil.rmtree(out, ignore_errors=True)
            seconds.append(
                run(["tokenize", str(folder / str(number)), *options, target, str(out)], RANDOM_WEIGHTS)["seconds"]
            )
        found.append(1000 * (seconds[1] - seconds[0]) / (count - few))
    shutil.rmtree(out, ignore_errors=True)
    return found


def throughput(folder: Path) -> dict[str, Any]:
    """The pipeline beside the loop over single images, in turns."""
    make_images(folder / "images", IMAGES)
    for number in (20, 60, FEW, 600, IMAGES):
        some = folder / str(number)
        some.mkdir()
        for file in sorted((folder / "images").iterdir())[:number]:
            os.link(file, some / file.name)
    told: dict[str, Any] = {}
    for name, options, count, few, rounds in (
        ("pixels", [], IMAGES, FEW, 2),
        ("ViT-S", ["--encoder", VIT, "--img-size", SIDE], 600, 60, 1),
        ("pixels, pictures", ["--pictures"], 600, 60, 1),
    ):
        turns: dict[str, list[float]] = {"loop": [], "store": []}
        for _ in range(rounds):
            pictures = [] if "--pictures" in options else ["--no-pictures"]
            turns["loop"] += per_image(folder, [*options, *pictures], "--out", count, few)
            turns["store"] += per_image(folder, options, "--store", count, few)
        told[name] = {kind: round(median(values), 2) for kind, values in turns.items()}
        told[name] |= {"images": count, "loop_over_store": round(told[name]["loop"] / told[name]["store"], 2)}
        print(f"{name:18}", told[name])
    ray = per_image(folder, ["--engine", "ray", "--shard-size", "100"], "--store", IMAGES, FEW)
    here = per_image(folder, ["--shard-size", "100"], "--store", IMAGES, FEW)
    told["ray"] = {"ray": round(ray[0], 2), "here": round(here[0], 2), "ray_over_here": round(ray[0] / here[0], 2)}
    print("ray               ", told["ray"])
    return told


def shares(folder: Path) -> dict[str, Any]:
    """What everything but reading and encoding costs, as a share of the encoder's time; one thread."""
    told = {}
    torch.set_num_threads(1)
    images = [read_image(file) for file in sorted(make_images(folder / "images", 20).iterdir())]
    for name, options in (("pixels", {}), (VIT, {"img_size": int(SIDE), "pretrained": False})):
        encoder, regionizer = encoders.load(name, **options), Regionizer(pool="mean")
        encode, rest = [], []
        for start in range(0, len(images), 4):
            some = images[start : start + 4]
            pixels, valid = encoder.preprocess(some)
            begun = time.perf_counter()
            with torch.no_grad():
                features = encoder.encode(pixels)
            encoded = time.perf_counter()
            regions = regionizer.group(regionizer.normalize(features), valid=valid)
            tokens = regionizer.pool(regionizer.normalize(features), regions)
            table = tokens_table([str(n) for n in range(len(some))], tokens, sizes=[(480, 640)] * len(some))
            with StoreWriter(folder / "share", Manifest(kind="tokens"), overwrite=True) as writer:
                writer.write(table)
            encode.append(encoded - begun)
            rest.append(time.perf_counter() - encoded)
        told[name] = round(median(rest) / median(encode), 3)
    torch.set_num_threads(os.cpu_count() or 1)
    print("all but reading and encoding, over encoding", told)
    return told


def masks_to_grid(folder: Path) -> dict[str, Any]:
    """100 masks of 640 x 480 from a store to a grid of 24 x 24, beside decoding, resizing and pooling."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:480, :640]
    keys, sets = [], []
    for number in range(100):
        middle, radius = generator.uniform(0, (480, 640), (100, 2)), generator.uniform(8, 90, 100)
        wave = 1 + 0.2 * np.sin(generator.uniform(2, 9) * np.arctan2(y, x))
        masks = [((y - a) ** 2 + (x - b) ** 2) * wave < r**2 for (a, b), r in zip(middle, radius, strict=True)]
        keys.append(f"{number}.jpg")
        sets.append(MaskSet.from_masks(np.stack(masks)))
    with StoreWriter(folder / "masks", Manifest(kind="masks")) as writer:
        writer.write(masks_table(keys, sets))
    store, geometry = MaskStore(folder / "masks"), ImageGeometry.squash(384)
    downsampler = MaskDownsampler((24, 24), geometry=geometry)

    def ours(key: str) -> Any:
        return downsampler.coverage(store[key])

    def plain(key: str) -> Any:
        pixels = torch.from_numpy(coco.decode(store[key].to_coco())).permute(2, 0, 1)[:, None].float()
        large = torch.nn.functional.interpolate(pixels, (384, 384), mode="bilinear")
        return torch.nn.functional.avg_pool2d(large, 16)[:, 0]

    torch.set_num_threads(1)
    assert float((ours(keys[0]) - plain(keys[0])).abs().mean()) < 0.01  # noqa: S101  the same but for the interpolation
    times = {
        name: _each(work, keys if name == "ours" else keys[:10]) for name, work in (("ours", ours), ("plain", plain))
    }
    torch.set_num_threads(os.cpu_count() or 1)
    told = {name: round(value, 3) for name, value in times.items()} | {
        "ratio": round(times["plain"] / times["ours"], 1)
    }
    print("masks of a store to the grid, ms per image", told)
    return told


def _each(work: Callable[[str], Any], keys: list[str]) -> float:
    """Milliseconds of each."""
    work(keys[0])
    begun = time.perf_counter()
    for key in keys:
        work(key)
    return 1000 * (time.perf_counter() - begun) / len(keys)


def memory(folder: Path) -> dict[str, Any]:
    """Peak memory of a run by its number of images."""
    make_images(folder / "small", 20_000, size=(64, 48))
    (folder / "thousand").mkdir()
    for file in sorted((folder / "small").iterdir())[:1000]:
        os.link(file, folder / "thousand" / file.name)
    options = ["--img-size", "64", "--store"]
    few = run(["tokenize", str(folder / "thousand"), *options, str(folder / "m1")])
    many = run(["tokenize", str(folder / "small"), *options, str(folder / "m2")])
    told = {"1000": round(few["peak"]), "20000": round(many["peak"]), "ratio": round(many["peak"] / few["peak"], 3)}
    print("peak MiB by images", told)
    return told


def large(folder: Path) -> dict[str, Any]:
    """A store of a million rows, and a run that finds all of 100 000 images done."""
    masks = MaskSet.from_labels(np.kron(np.arange(100).reshape(10, 10), np.ones((48, 64), np.int64)))
    one = masks_table(["x"] * 50, [masks] * 50)

    def fill(name: str, count: int, key: str, manifest: Manifest) -> None:
        with StoreWriter(folder / name, manifest, shard_minutes=None) as writer:
            for start in range(0, count, 50):
                keys = pa.array([key.format(number) for number in range(start, start + 50)])
                writer.write(one.set_column(0, "key", keys))

    fill("million", 10**6, "train/{:09d}.jpg", Manifest(kind="masks"))
    begun = time.perf_counter()
    store = MaskStore(folder / "million")
    opening = time.perf_counter() - begun
    keys = np.random.default_rng(0).choice(list(store), 300)
    times = []
    for key in keys.tolist():
        begun = time.perf_counter()
        store[key]
        times.append(1000 * (time.perf_counter() - begun))
    (folder / "touched").mkdir()
    for number in range(10**5):
        (folder / "touched" / f"{number:09d}.jpg").touch()
    roots = Roots([folder / "touched"]).describe()
    made_by = {"generator": "felzenszwalb", "scale": 150.0, "sigma": 0.8, "min_size": 120, "longest_side": 480}
    fill("done", 10**5, "{:09d}.jpg", Manifest(kind="masks", made_by=made_by, images=roots))
    resumed = run(["masks", str(folder / "touched"), "--masks", "felzenszwalb", "--out", str(folder / "done")])
    told = {
        "open_million_s": round(opening, 2),
        "random_access_ms": {"median": round(median(times), 2), "p99": round(float(np.quantile(times, 0.99)), 2)},
        "resume_100000_s": round(resumed["seconds"], 2),
    }
    print(told)
    return told


_SAM = """
import re, torch
from PIL import Image
from benchmarks.scale import stand_in
from regiontok.masks import MaskSettings, sam2
import torchvision
generate = stand_in()
image = Image.new("RGB", (640, 480))
generate.steps = (MaskSettings(3, 0, 0),)
generate([image])
def peak():  # what getrusage tells has the parent's in it
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
sam2._MOST_BYTES = LIMIT
generate.steps = (MaskSettings(96, 0, 0),)
masks = generate([image])[0]
print((peak() - before) / 1024, len(masks), int(masks.areas().sum()))
"""


def stand_in() -> Sam2Masks:
    """A generator whose decoder draws what stands where it is prompted, as SAM 2's does, at 256 x 256."""
    model: Any = Sam2Model(Sam2Config()).eval()
    model.get_image_embeddings = lambda _: [torch.zeros(1, 1)]
    generate = Sam2Masks(model, settings=MaskSettings(3, 0, 0))
    generator = torch.Generator().manual_seed(0)
    middle, radius = torch.rand(150, 2, generator=generator) * 256, torch.rand(150, generator=generator) * 40 + 8
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")

    def decode(_: Any, prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        points = prompts / generate.input_side * 256
        noise = torch.Generator().manual_seed(int(points.sum()))
        near = ((points[:, None] - middle) ** 2).sum(-1).sqrt() - radius
        which = near.topk(3, largest=False).indices
        size = radius[which] * (1 + 0.03 * torch.randn(len(points), 3, generator=noise))
        away = ((x - middle[which][..., 0, None, None]) ** 2 + (y - middle[which][..., 1, None, None]) ** 2).sqrt()
        return (size[..., None, None] - away)[None], torch.rand(1, len(points), 3, generator=noise)

    generate._decode = decode  # type: ignore[method-assign]
    return generate


def candidates(_: Path) -> dict[str, Any]:
    """What SAM's candidates take at 96 points per side, beside holding all of them as before."""
    told: dict[str, Any] = {}
    same = set()
    for name, most in (("thinned", sam2._MOST_BYTES), ("all", 2**50)):
        done = subprocess.run(
            [sys.executable, "-c", _SAM.replace("LIMIT", str(most))],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peak, *masks = done.stdout.split()
        told[name] = round(float(peak))
        same.add(tuple(masks))
    assert len(same) == 1  # noqa: S101  the same masks
    told["ratio"] = round(told["thinned"] / told["all"], 3)
    print("MiB of candidates at 96 points per side", told)
    return told


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "throughput": throughput,
    "shares": shares,
    "masks_to_grid": masks_to_grid,
    "memory": memory,
    "large": large,
    "candidates": candidates,
}


def main(parts: Sequence[str] = ()) -> None:
    """Measure and save; of some parts alone where they are named, beside what was saved of the others."""
    figures: dict[str, Any] = {}
    if parts:
        figures = json.loads(save_path("scale").read_text(encoding="utf-8"))["figures"]
    for part in parts or PARTS:
        with tempfile.TemporaryDirectory() as name:
            figures[part] = PARTS[part](Path(name))
    print("saved in", save("scale", figures))


if __name__ == "__main__":
    main(sys.argv[1:])
