"""What needs a GPU, in ten minutes: tests, clustering beside an encoder, masks, models in bfloat16, video, vLLM.

Examples:
    python -m benchmarks.device                        # on a machine with a GPU; saves JSON with its name
    python -m benchmarks.device --device cpu --tiny    # small models, as the tests run it; saves nothing
    python -m benchmarks.device --parts clustering video
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, Sam2Config, Sam2Model

from benchmarks import families, serving, video_models
from benchmarks.clustering import smooth_features
from benchmarks.timing import ratio, save, take_turns
from regiontok import Regionizer, masks
from regiontok.adapters.huggingface import with_regions
from regiontok.errors import DTypeError
from regiontok.masks import MaskSettings
from tests.models import tiny_sam2

ROOT = Path(__file__).parents[1]
KEEPS = (0.25, 0.1)
"""Fractions of the tokens of an image that region models are timed with."""
LARGE_TEXT = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "head_dim": 128,
}  # fmt: skip
"""Size of a language model of 7B parameters; the small vision towers of `benchmarks.families` remain."""


class Place:
    """The device, the sizes and the number of rounds of a run."""

    def __init__(self, device: str, *, tiny: bool) -> None:
        self.device = torch.device(device)
        self.tiny = tiny
        self.rounds = 1 if tiny else 7
        self.dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16

    def waiting(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """Return a function that also waits for the device."""
        if self.device.type == "cpu":
            return run

        def wait() -> Any:
            result = run()
            torch.cuda.synchronize(self.device)
            return result

        return wait

    def time(self, contestants: dict[str, Callable[[], Any]]) -> dict[str, Any]:
        """Time contestants in turns, until the device has finished."""
        return take_turns({name: self.waiting(run) for name, run in contestants.items()}, rounds=self.rounds)


def run_tests(place: Place) -> dict[str, Any]:
    """Run the tests that need a CUDA device; without one they are counted as skipped."""
    files = ["tests/test_clustering.py", "tests/test_splitting.py", "tests/test_regions.py", "tests/test_downsample.py"]
    files += ["tests/test_encoders.py", "tests/masks/test_sam2.py", "tests/test_pooling.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "cuda or device"]
    done = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-4000:])
    return {"passed": done.returncode == 0, "summary": done.stdout.strip().splitlines()[-1]}


def time_clustering(place: Place) -> dict[str, Any]:
    """Time grouping of features on the device, and measure which part of it is hidden behind the encoder.

    In the second loop the encoder of the next batch is started before the regions of a batch are computed.
    """
    batch, batches = (1, 2) if place.tiny else (16, 8)
    depth, width = (1, 64) if place.tiny else (24, 1024)
    config = CLIPVisionConfig(
        image_size=336, patch_size=14, num_hidden_layers=depth, hidden_size=width, intermediate_size=4 * width,
        num_attention_heads=width // 64,
    )  # fmt: skip
    encoder = CLIPVisionModel(config).eval().to(place.device, place.dtype)
    pixels = [torch.randn(batch, 3, 336, 336, device=place.device, dtype=place.dtype) for _ in range(batches)]
    regionizer = Regionizer(num_regions=144, pool="mean").to(place.device)
    smooth = torch.stack([smooth_features(24, 24, 256, seed=seed) for seed in range(batch)])

    def encode(images: Tensor) -> Tensor:
        return encoder(images).last_hidden_state[:, 1:].unflatten(1, (24, 24)).float()

    def pipelined() -> None:
        upcoming = encode(pixels[0])
        for images in [*pixels[1:], None]:
            features, upcoming = upcoming, upcoming if images is None else encode(images)
            regionizer(features)

    on_cpu, features = Regionizer(num_regions=144, pool="mean"), smooth.to(place.device)
    expected = on_cpu.group(smooth).labels()
    times = place.time(
        {
            "regions of a batch": lambda: regionizer.group(features),
            "regions of a batch in memory of the CPU": lambda: on_cpu.group(smooth),
            "encoder": lambda: [encode(images) for images in pixels],
            "encoder, then regions": lambda: [regionizer(encode(images)) for images in pixels],
            "encoder of the next batch, then regions": pipelined,
        }
    )
    encoding, apart, together = (
        times[name]["median_ms"]
        for name in ("encoder", "encoder, then regions", "encoder of the next batch, then regions")
    )
    return {
        "labels equal those of the CPU": torch.equal(regionizer.group(features).labels().cpu(), expected),
        "images per batch": batch,
        "hidden fraction": round((apart - together) / max(apart - encoding, 1e-6), 2),
        "times": times,
    }


def time_masks(place: Place) -> dict[str, Any]:
    """Time SAM 2.1 with random weights on a real image."""
    model = (tiny_sam2() if place.tiny else Sam2Model(Sam2Config())).eval().to(place.device)
    settings = MaskSettings(points_per_side=2 if place.tiny else 32, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    generate = masks.Sam2Masks(model, settings=settings)
    image = Image.fromarray(load_sample_image("china.jpg"))
    times = place.time({"masks of an image": lambda: generate(image)})
    return {"masks": len(generate(image)[0]), "times": times}


def time_models(place: Place) -> dict[str, Any]:
    """Time the prefill of region models, and compare one region per patch with the stock model."""
    return {
        family.__name__: _time_model(place, family, families.IMAGE)
        for family in (families.llava, families.qwen2_5_vl, families.qwen3_vl)[: 1 if place.tiny else None]
    }


def time_videos(place: Place) -> dict[str, Any]:
    """Time clustering of a clip on the device, and the prefill of region models for 32 frames."""
    frames, dim = (2, 32) if place.tiny else (32, 1024)
    clip = smooth_features(frames * 24, 24, dim, seed=0).reshape(1, frames, 24, 24, dim).to(place.device)
    regionizer = Regionizer(num_regions=512, pool="mean").to(place.device)
    chosen = video_models.FAMILIES[:1] if place.tiny else video_models.FAMILIES[:2]
    return {
        "clip": place.time({"tokens of a clip": lambda: regionizer(clip)}),
        **{family.__name__: _time_model(place, family, video_models.VIDEO) for family in chosen},
    }


def time_serving(place: Place) -> dict[str, Any]:
    """Test and time the plug-in of vLLM with CUDA graphs, if REGIONTOK_VLLM names a Python that has vLLM."""
    python = os.environ.get("REGIONTOK_VLLM")
    if python is None:
        return {"skipped": "REGIONTOK_VLLM names no Python with vLLM"}
    # With graphs, vLLM starts with dummy videos, for which the Qwen3-VL of the tests of images has no placeholder.
    titles = "stock and LLaVA-1.5" if place.tiny else "stock and not (budgets and Qwen3)"
    files = ["tests/adapters/test_vllm.py", "tests/adapters/test_vllm_videos.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", titles, *files]
    environment = os.environ | {"REGIONTOK_VLLM_GRAPHS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    requests = ["--requests", "4"] if place.tiny else []
    figures = serving.measure(python, serving.parse(["--vllm", python, *requests]))
    return {"passed": done.returncode == 0, "summary": done.stdout.strip().splitlines()[-1], **figures}


def _time_model(place: Place, family: Callable[[], Any], token: int) -> dict[str, Any]:
    text = dict(families.TEXT)
    try:
        if not place.tiny:
            families.TEXT.update(LARGE_TEXT)
        with place.device:
            stock, pieces, media = family()
    finally:
        families.TEXT.clear()
        families.TEXT.update(text)
    stock = stock.to(place.device, place.dtype)
    words = torch.randint(20, 900, (families.WORDS,), generator=torch.Generator().manual_seed(0)).tolist()
    placed = [token_ for piece in pieces for token_ in ([piece] if piece > 0 else [token] * -piece)]
    ids = torch.tensor([words[:8] + placed + words[8:]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | media
    if any(name.endswith("grid_thw") for name in media):
        inputs["mm_token_type_ids"] = (ids == token).long() * (1 + (token != families.IMAGE))
    inputs = {
        name: value.to(place.device, place.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }
    identity = with_regions(stock, Regionizer(source="patch", pool="mean", norm="none"))
    expected, found = (model(**inputs, logits_to_keep=1).logits for model in (stock, identity))
    contestants = {"stock": lambda: stock(**inputs, logits_to_keep=1)}
    for keep in KEEPS:
        model = with_regions(stock, keep=keep)
        written = model.expand(**inputs).inputs
        short = inputs | {
            name: written[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids") if name in written
        }
        contestants[f"keep={keep}"] = lambda model=model, short=short: model(**short, logits_to_keep=1)
    times = place.time(contestants)
    return {
        "one region per patch equals the stock model": torch.equal(expected, found),
        "largest difference of logits": float((expected - found).abs().max()),
        **{f"keep={keep} over stock": ratio(times, f"keep={keep}", "stock") for keep in KEEPS},
        "times": times,
    }


PARTS: dict[str, Callable[[Place], dict[str, Any]]] = {
    "tests": run_tests,
    "clustering": time_clustering,
    "masks": time_masks,
    "models": time_models,
    "video": time_videos,
    "serving": time_serving,
}


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the parts, print and save their results, and return them.

    Raises:
        DTypeError: There is no such device.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.device", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="small models and one round; nothing is saved")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="default: all")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise DTypeError("there is no CUDA device. Pass --device cpu --tiny to try the program.")
    place, figures = Place(options.device, tiny=options.tiny), {}
    for name in options.parts:
        start = time.perf_counter()
        try:
            figures[name] = PARTS[name](place)
        except Exception as error:  # the other parts still run: a machine with a GPU is lent for minutes
            figures[name] = {"error": f"{type(error).__name__}: {error}"}
        figures[name]["seconds"] = round(time.perf_counter() - start, 1)
        print(name, json.dumps(figures[name], indent=2), flush=True)
        if not options.tiny:
            print(save("device", figures))
    return figures


if __name__ == "__main__":
    sys.exit(any("error" in results for results in main().values()))
