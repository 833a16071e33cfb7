"""Our SAM 2 mask generator, compared with the transformers pipeline and the ``sam2`` package.

*Post-processing*: all three receive the same synthetic logits of the decoder, and only their post-processing is timed.
Their masks are compared. *Stages*: all three run the same randomly initialized SAM 2.1 tiny on a real image.
"""

import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from sam2.build_sam import build_sam2
from sklearn.datasets import load_sample_image
from torch import Tensor
from transformers import Sam2Config, Sam2Model

from benchmarks.memory import held_peak
from benchmarks.timing import ratio, save, take_turns
from regiontok import ImageGeometry, MaskDownsampler, MaskSet, masks
from regiontok.masks import MaskSettings

SIZE, POINTS, LOW = (768, 1024), 24, 256
GEOMETRY, GRID = ImageGeometry.letterbox(336), (24, 24)
CONTESTANTS = ("regiontok, on the grid", "regiontok, RLE", "sam2 package", "transformers pipeline")


def smooth_logits(points: int = POINTS, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return logits ``(points**2, 3, 256, 256)`` like those of a trained decoder, and their predicted IoU.

    The objects are 150 ellipses with irregular edges, soft or sharp, from a few pixels to half the image. The three
    candidates of a point are its nearest objects with random variations.
    """
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(LOW) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    count = 150
    center = LOW * torch.rand(count, 2, generator=generator)
    radius = 6 * (16 ** torch.rand(count, 2, generator=generator))
    waves = torch.nn.functional.interpolate(
        torch.randn(count, 1, 12, 12, generator=generator), (LOW, LOW), mode="bicubic"
    )[:, 0]
    distance = (
        ((y - center[:, 0, None, None]) / radius[:, 0, None, None]) ** 2
        + ((x - center[:, 1, None, None]) / radius[:, 1, None, None]) ** 2
    ).sqrt()
    steepness = 0.5 * 16 ** torch.rand(count, generator=generator)  # logits per pixel at the edge
    blob = (steepness * radius.mean(1))[:, None, None] * (1 - distance + 0.1 * waves)
    quality = 0.4 + 0.6 * torch.rand(count, generator=generator)

    middle = (torch.arange(points) + 0.5) / points * LOW
    point = torch.stack([middle.repeat_interleave(points), middle.repeat(points)], 1)  # row by row
    reach = ((point[:, None] - center) / radius).norm(dim=2)
    nearest = reach.topk(3, largest=False).indices
    wobble = torch.nn.functional.interpolate(
        torch.randn(points**2, 1, 8, 8, generator=generator), (LOW, LOW), mode="bilinear"
    )
    logits = blob[nearest] + 0.3 * wobble
    scores = quality[nearest] + 0.03 * torch.randn(points**2, 3, generator=generator)
    return logits.clamp(-32, 32), scores.clamp(0, 1)


def generators(logits: Tensor, scores: Tensor, settings: MaskSettings) -> dict[str, Callable[[Image.Image], MaskSet]]:
    """Return the contestants, with a decoder that returns the given logits in order and an empty encoder."""
    tiny = Sam2Model(Sam2Config()).eval()
    position = [0]

    def next_logits(count: int) -> tuple[Tensor, Tensor]:
        start = position[0]
        position[0] = (start + count) % len(logits)
        return logits[start : start + count], scores[start : start + count]

    ours = masks.Sam2Masks(tiny, settings=settings)
    ours._embed = lambda inputs: [torch.zeros(len(inputs), 1)]
    ours._decode = lambda _, prompts: tuple(values[None] for values in next_logits(len(prompts)))

    theirs = masks.PipelineMasks(tiny, settings=settings)
    tiny.get_image_embeddings = lambda _: [torch.zeros(1, 1)]
    tiny.forward = lambda input_points, **_: dict(
        zip(("pred_masks", "iou_scores"), (values[None] for values in next_logits(input_points.shape[1])), strict=True)
    )

    official = masks.PackageMasks(
        build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", None, device="cpu"), settings=settings
    )
    predictor = next(iter(official._generators.values())).predictor

    def set_image(image: np.ndarray) -> None:
        predictor._orig_hw, predictor._is_image_set = [image.shape[:2]], True

    def predict(points: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
        low, iou = next_logits(len(points))
        return predictor._transforms.postprocess_masks(low, predictor._orig_hw[-1]), iou, low

    predictor.set_image, predictor._predict = set_image, predict
    return {
        "regiontok, on the grid": lambda image: ours.on_grid(image, geometry=GEOMETRY, grid=GRID)[0],
        "regiontok, RLE": lambda image: ours(image)[0],
        "sam2 package": lambda image: official(image)[0],
        "transformers pipeline": lambda image: theirs(image)[0],
    }


def matched(masks: MaskSet, other: MaskSet, min_iou: float = 0.9) -> float:
    """Return the fraction of ``other`` that have a mask in ``masks`` with an IoU of at least ``min_iou``."""
    a, b = (mask_set.masks().flatten(1).float() for mask_set in (masks, other))
    intersection = b @ a.T
    union = b.sum(1)[:, None] + a.sum(1) - intersection
    return float(((intersection / union).amax(1) >= min_iou).float().mean())


def patches_that_differ(grid: MaskSet, encoded: MaskSet) -> float:
    """Return the fraction of assigned patches that differ between masks on the grid and encoded masks."""
    from_encoded = MaskDownsampler(GRID, geometry=GEOMETRY).coverage(encoded) > 0.07
    on_grid = grid.coverage > 0.07
    return float((from_encoded ^ on_grid).sum() / (from_encoded | on_grid).sum())


def compare(settings: MaskSettings) -> dict[str, Any]:
    """Return times and masks on the same logits."""
    contestants = generators(*smooth_logits(), settings)
    image = Image.new("RGB", SIZE[::-1])
    results = {name: run(image) for name, run in contestants.items()}
    times = take_turns({name: (lambda run=run: run(image)) for name, run in contestants.items()}, rounds=5)
    ours = results["regiontok, RLE"]
    result: dict[str, Any] = {
        "candidates": 3 * POINTS**2,
        "masks": {name: len(mask_set) for name, mask_set in results.items()},
        "times": times,
        "patches that differ between ours on the grid and encoded": round(
            patches_that_differ(results["regiontok, on the grid"], ours), 4
        ),
    }
    for name in ("sam2 package", "transformers pipeline"):
        result[f"masks of {name} matched at IoU 0.9"] = round(matched(ours, results[name]), 4)
        result[f"ours matched by {name}"] = round(matched(results[name], ours), 4)
        for mine in CONTESTANTS[:2]:
            result[f"{mine}: times faster than {name}"] = ratio(times, name, mine)
    return result


def peaks(settings: MaskSettings) -> dict[str, Any]:
    """Return by how much each contestant raises the peak memory, each in a separate process."""
    rises = {}
    for name in CONTESTANTS:
        completed = subprocess.run(
            [sys.executable, "-m", "benchmarks.generators", name], capture_output=True, text=True, check=True
        )
        rises[name] = round(int(completed.stdout.split()[-1]) / 2**20, 1)
    result: dict[str, Any] = {"rise_MiB": rises}
    for name in CONTESTANTS[2:]:
        for mine in CONTESTANTS[:2]:
            result[f"{mine} over {name}"] = round(rises[mine] / rises[name], 3)
    return result


def rise(name: str) -> int:
    """Return by how many bytes a contestant raises the peak memory."""
    contestants = generators(*smooth_logits(), MaskSettings())
    image = Image.new("RGB", SIZE[::-1])
    small = Image.new("RGB", (8, 8))
    contestants[CONTESTANTS[0]](small)  # compiles
    contestants[CONTESTANTS[1]](small)
    before, held = held_peak()
    contestants[name](image)
    after = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del held
    return after - before


def to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the ``sam2`` package with the names of transformers."""
    renamed = {}
    for name, value in state.items():
        if name.startswith(("memory", "maskmem", "mask_downsample", "obj_ptr", "no_obj", "no_mem_pos")):
            continue  # for video
        for pattern, into in _NAMES:
            name = re.sub(pattern, into, name)
        last = "2" if "mlps" in name or "head" in name else "1"
        name = re.sub(r"(mlp|mlps\.\d|head)\.layers\.0\.", r"\1.proj_in.", name)
        name = re.sub(rf"(mlp|mlps\.\d|head)\.layers\.{last}\.", r"\1.proj_out.", name)
        name = re.sub(r"(mlps\.\d|head)\.layers\.1\.", r"\1.layers.0.", name)
        renamed[name] = value
    points = [renamed.pop(f"prompt_encoder.point_embeddings.{kind}.weight") for kind in range(4)]
    renamed["prompt_encoder.point_embed.weight"] = torch.cat(points)
    renamed["shared_image_embedding.positional_embedding"] = renamed[
        "prompt_encoder.shared_embedding.positional_embedding"
    ]
    return renamed


_NAMES = (
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"(blocks\.\d+|layers\.\d)\.norm(\d)\.", r"\1.layer_norm\2."),
    (r"norm_final_attn", "layer_norm_final_attn"),
    (r"^no_mem_embed", "no_memory_embedding"),
    (r"^sam_", ""),
    (r"pe_layer\.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"out_proj", "o_proj"),
)


def same_weights(seed: int = 0) -> tuple[Any, Any]:
    """Return a randomly initialized SAM 2.1 tiny as a model of the package and as one of transformers."""
    torch.manual_seed(seed)
    official = build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", None, device="cpu")
    model = Sam2Model(Sam2Config()).eval()
    model.load_state_dict(to_transformers(official.state_dict()))
    return official, model


class Timed:
    """A function that adds up the seconds of its calls."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run, self.seconds = run, 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = self.run(*args, **kwargs)
        self.seconds += time.perf_counter() - start
        return result


def stages(points: int = 8) -> dict[str, Any]:
    """Return the seconds per stage on a real image with the same random weights and ``points`` per side."""
    image = Image.fromarray(load_sample_image("china.jpg"))
    settings = MaskSettings(points_per_side=points, stability_score_thresh=0, pred_iou_thresh=0)
    official, model = same_weights()
    result = {}

    def measure(run: Callable[[], Any], encode: Timed, decode: Timed) -> dict[str, float]:
        start = time.perf_counter()
        run()
        other = time.perf_counter() - start - encode.seconds - decode.seconds
        return {"encode": round(encode.seconds, 3), "decode": round(decode.seconds, 3), "rest": round(other, 3)}

    ours = masks.Sam2Masks(model, settings=settings)
    ours._embed, ours._decode = encode, decode = Timed(ours._embed), Timed(ours._decode)
    result["regiontok"] = measure(lambda: ours.on_grid(image, geometry=GEOMETRY, grid=GRID), encode, decode)
    theirs = masks.PackageMasks(official, settings=settings)
    encode, decode = Timed(official.forward_image), Timed(official.sam_mask_decoder.forward)
    official.forward_image, official.sam_mask_decoder.forward = encode, decode
    result["sam2 package"] = measure(lambda: theirs(image), encode, decode)
    pipeline = masks.PipelineMasks(model, settings=settings)
    encode, decode = Timed(model.get_image_embeddings), Timed(model.forward)
    model.get_image_embeddings, model.forward = encode, decode
    result["transformers pipeline"] = measure(lambda: pipeline(image), encode, decode)
    return result


def main() -> None:
    """Run the measurements, print and save the results."""
    settings = MaskSettings()
    figures = {"same smooth logits": compare(settings), "memory": peaks(settings)}
    figures["seconds per stage, random SAM 2.1 tiny, china.jpg, 64 points"] = stages()
    for name, values in figures.items():
        print(name)
        for key, value in values.items():
            print("   ", key, value)
    print(save("generators", figures))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(rise(sys.argv[1]))
    else:
        main()
