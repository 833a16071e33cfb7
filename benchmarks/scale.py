"""Throughput and memory of stores and the pipeline.

Images are 640 x 480 JPEG. The ViT-S has random weights, which do not change its time. Commands run in a separate
process; a run of few images is subtracted, to exclude imports and startup.
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
    """Write crops of sample images, the first ``different`` with random position and rotation; further files repeat."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    sources = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    sources += [Image.fromarray(load()) for load in (data.astronaut, data.coffee, data.chelsea, data.rocket)]
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
    """Run a command in a separate process; return its seconds and peak memory in MiB."""
    program = (
        "import json, re, sys, time, torch\n"
        "from regiontok.cli import main\n"
        f"{code}\n"
        "start = time.perf_counter()\n"
        "code = main(json.loads(sys.argv[1]))\n"
        "peak = int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024\n"
        "print(json.dumps({'code': code, 'seconds': time.perf_counter() - start, 'peak': peak}))\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
    )
    result: dict[str, float] = json.loads(completed.stdout.splitlines()[-1])
    if result["code"] != 0:
        raise SystemExit(completed.stderr)
    return result


RANDOM_WEIGHTS = (
    "from functools import partial\nfrom regiontok import encoders\nload = encoders.load\n"
    "encoders.load = partial(load, pretrained=False)"
)


def per_image(folder: Path, options: list[str], target: str, count: int, few: int, *, rounds: int = 1) -> list[float]:
    """Return the milliseconds per image of a command, without startup, once per round."""
    out = folder.parent / "out"
    results = []
    for _ in range(rounds):
        seconds = []
        for number in (few, count):
            shutil.rmtree(out, ignore_errors=True)
            seconds.append(
                run(["tokenize", str(folder / str(number)), *options, target, str(out)], RANDOM_WEIGHTS)["seconds"]
            )
        results.append(1000 * (seconds[1] - seconds[0]) / (count - few))
    shutil.rmtree(out, ignore_errors=True)
    return results


def throughput(folder: Path) -> dict[str, Any]:
    """Measure ``--store``, compared with ``--out`` (one file per image), and Ray, compared with one process."""
    make_images(folder / "images", IMAGES)
    for number in (20, 60, FEW, 600, IMAGES):
        subset = folder / str(number)
        subset.mkdir()
        for file in sorted((folder / "images").iterdir())[:number]:
            os.link(file, subset / file.name)
    results: dict[str, Any] = {}
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
        results[name] = {kind: round(median(values), 2) for kind, values in turns.items()}
        results[name] |= {"images": count, "loop_over_store": round(results[name]["loop"] / results[name]["store"], 2)}
        print(f"{name:18}", results[name])
    ray = per_image(folder, ["--engine", "ray", "--shard-size", "100"], "--store", IMAGES, FEW)
    here = per_image(folder, ["--shard-size", "100"], "--store", IMAGES, FEW)
    results["ray"] = {"ray": round(ray[0], 2), "here": round(here[0], 2), "ray_over_here": round(ray[0] / here[0], 2)}
    print("ray               ", results["ray"])
    return results


def shares(folder: Path) -> dict[str, Any]:
    """Measure grouping, pooling and writing as a fraction of the time of the encoder, with one thread."""
    results = {}
    torch.set_num_threads(1)
    images = [read_image(file) for file in sorted(make_images(folder / "images", 20).iterdir())]
    for name, options in (("pixels", {}), (VIT, {"img_size": int(SIDE), "pretrained": False})):
        encoder, regionizer = encoders.load(name, **options), Regionizer(pool="mean")
        encode, other = [], []
        for start in range(0, len(images), 4):
            batch = images[start : start + 4]
            pixels, valid = encoder.preprocess(batch)
            begin = time.perf_counter()
            with torch.no_grad():
                features = encoder.encode(pixels)
            encoded = time.perf_counter()
            regions = regionizer.group(regionizer.normalize(features), valid=valid)
            tokens = regionizer.pool(regionizer.normalize(features), regions)
            table = tokens_table([str(n) for n in range(len(batch))], tokens, sizes=[(480, 640)] * len(batch))
            with StoreWriter(folder / "share", Manifest(kind="tokens"), overwrite=True) as writer:
                writer.write(table)
            encode.append(encoded - begin)
            other.append(time.perf_counter() - encoded)
        results[name] = round(median(other) / median(encode), 3)
    torch.set_num_threads(os.cpu_count() or 1)
    print("grouping, pooling and writing, over encoding", results)
    return results


def masks_to_grid(folder: Path) -> dict[str, Any]:
    """Measure 100 stored masks of 640 x 480 on a 24 x 24 grid, compared with decoding, resizing and pooling."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:480, :640]
    keys, sets = [], []
    for number in range(100):
        center, radius = generator.uniform(0, (480, 640), (100, 2)), generator.uniform(8, 90, 100)
        wave = 1 + 0.2 * np.sin(generator.uniform(2, 9) * np.arctan2(y, x))
        masks = [((y - a) ** 2 + (x - b) ** 2) * wave < r**2 for (a, b), r in zip(center, radius, strict=True)]
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
    if float((ours(keys[0]) - plain(keys[0])).abs().mean()) > 0.01:  # the interpolation differs
        raise SystemExit("scale: the masks on the grid disagree; nothing was timed.")
    times = {"ours": _per_key(ours, keys), "plain": _per_key(plain, keys[:10])}
    torch.set_num_threads(os.cpu_count() or 1)
    results = {name: round(value, 3) for name, value in times.items()}
    results["ratio"] = round(times["plain"] / times["ours"], 1)
    print("masks of a store to the grid, ms per image", results)
    return results


def _per_key(function: Callable[[str], Any], keys: list[str]) -> float:
    """Return the mean milliseconds of a call."""
    function(keys[0])
    begin = time.perf_counter()
    for key in keys:
        function(key)
    return 1000 * (time.perf_counter() - begin) / len(keys)


def memory(folder: Path) -> dict[str, Any]:
    """Measure the peak memory of runs with 1000 and 20000 images."""
    make_images(folder / "small", 20_000, size=(64, 48))
    (folder / "thousand").mkdir()
    for file in sorted((folder / "small").iterdir())[:1000]:
        os.link(file, folder / "thousand" / file.name)
    options = ["--img-size", "64", "--store"]
    small_run = run(["tokenize", str(folder / "thousand"), *options, str(folder / "m1")])
    large_run = run(["tokenize", str(folder / "small"), *options, str(folder / "m2")])
    results = {
        "1000": round(small_run["peak"]),
        "20000": round(large_run["peak"]),
        "ratio": round(large_run["peak"] / small_run["peak"], 3),
    }
    print("peak MiB by images", results)
    return results


def large(folder: Path) -> dict[str, Any]:
    """Measure a store of a million rows, and a run that resumes with all 100 000 images finished."""
    masks = MaskSet.from_labels(np.kron(np.arange(100).reshape(10, 10), np.ones((48, 64), np.int64)))
    table = masks_table(["x"] * 50, [masks] * 50)

    def fill(name: str, count: int, key: str, manifest: Manifest) -> None:
        with StoreWriter(folder / name, manifest, shard_minutes=None) as writer:
            for start in range(0, count, 50):
                keys = pa.array([key.format(number) for number in range(start, start + 50)])
                writer.write(table.set_column(0, "key", keys))

    fill("million", 10**6, "train/{:09d}.jpg", Manifest(kind="masks"))
    begin = time.perf_counter()
    store = MaskStore(folder / "million")
    opening = time.perf_counter() - begin
    keys = np.random.default_rng(0).choice(list(store), 300)
    times = []
    for key in keys.tolist():
        begin = time.perf_counter()
        store[key]
        times.append(1000 * (time.perf_counter() - begin))
    (folder / "touched").mkdir()
    for number in range(10**5):
        (folder / "touched" / f"{number:09d}.jpg").touch()
    roots = Roots([folder / "touched"]).describe()
    provenance = {"generator": "felzenszwalb", "scale": 150.0, "sigma": 0.8, "min_size": 120, "longest_side": 480}
    fill("done", 10**5, "{:09d}.jpg", Manifest(kind="masks", provenance=provenance, images=roots))
    resumed = run(["masks", str(folder / "touched"), "--masks", "felzenszwalb", "--out", str(folder / "done")])
    results = {
        "open_million_s": round(opening, 2),
        "random_access_ms": {"median": round(median(times), 2), "p99": round(float(np.quantile(times, 0.99)), 2)},
        "resume_100000_s": round(resumed["seconds"], 2),
    }
    print(results)
    return results


_SAM = """
import re, torch
from PIL import Image
from benchmarks.scale import synthetic_generator
from regiontok.masks import MaskSettings, sam2
import torchvision
generate = synthetic_generator()
image = Image.new("RGB", (640, 480))
generate.steps = (MaskSettings(3, 0, 0),)
generate([image])
def peak():  # getrusage would include the parent process
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
sam2._MAX_VALUE_BYTES = LIMIT
generate.steps = (MaskSettings(96, 0, 0),)
masks = generate([image])[0]
print((peak() - before) / 1024, len(masks), int(masks.areas().sum()))
"""


def synthetic_generator() -> Sam2Masks:
    """Return a generator whose decoder draws discs near the prompts, at 256 x 256."""
    model: Any = Sam2Model(Sam2Config()).eval()
    model.get_image_embeddings = lambda _: [torch.zeros(1, 1)]
    generate = Sam2Masks(model, settings=MaskSettings(3, 0, 0))
    generator = torch.Generator().manual_seed(0)
    center, radius = torch.rand(150, 2, generator=generator) * 256, torch.rand(150, generator=generator) * 40 + 8
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")

    def decode(_: Any, prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        points = prompts / generate.input_side * 256
        noise = torch.Generator().manual_seed(int(points.sum()))
        gap = ((points[:, None] - center) ** 2).sum(-1).sqrt() - radius
        nearest = gap.topk(3, largest=False).indices
        size = radius[nearest] * (1 + 0.03 * torch.randn(len(points), 3, generator=noise))
        center_x, center_y = center[nearest][..., None, None].unbind(2)
        distance = ((x - center_x) ** 2 + (y - center_y) ** 2).sqrt()
        return (size[..., None, None] - distance)[None], torch.rand(1, len(points), 3, generator=noise)

    generate._decode = decode  # type: ignore[method-assign]
    return generate


def candidates(_: Path) -> dict[str, Any]:
    """Measure the memory of SAM's candidates at 96 points per side, with and without the limit on their bytes."""
    results: dict[str, Any] = {}
    masks = set()
    for name, limit in (("thinned", sam2._MAX_VALUE_BYTES), ("all", 2**50)):
        completed = subprocess.run(
            [sys.executable, "-c", _SAM.replace("LIMIT", str(limit))],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peak, *summary = completed.stdout.split()
        results[name] = round(float(peak))
        masks.add(tuple(summary))
    if len(masks) > 1:
        raise SystemExit("scale: the masks with and without the limit differ.")
    results["ratio"] = round(results["thinned"] / results["all"], 3)
    print("MiB of candidates at 96 points per side", results)
    return results


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "throughput": throughput,
    "shares": shares,
    "masks_to_grid": masks_to_grid,
    "memory": memory,
    "large": large,
    "candidates": candidates,
}


def main(parts: Sequence[str] = ()) -> None:
    """Measure the named parts, or all, and save them together with earlier results of the other parts."""
    figures: dict[str, Any] = {}
    if parts:
        figures = json.loads(save_path("scale").read_text(encoding="utf-8"))["figures"]
    for part in parts or PARTS:
        with tempfile.TemporaryDirectory() as name:
            figures[part] = PARTS[part](Path(name))
    print("saved in", save("scale", figures))


if __name__ == "__main__":
    main(sys.argv[1:])
