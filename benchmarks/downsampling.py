"""Time of resizing masks to the patch grid, and of pooling features at the size of the masks instead.

`MaskDownsampler` is compared with the steps of the paper in pycocotools and torch: decode, resize to the encoder's
input, average-pool. Both start from RLE or from dense masks. Mean pooling on the grid is compared with pooling features
that are enlarged to the size of the masks.
"""

import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco
from torch import Tensor
from torch.nn import functional as F

from benchmarks.memory import held_peak
from benchmarks.timing import ratio, save, take_turns
from regiontok import ImageGeometry, MaskDownsampler, MaskSet, MeanPool

MASKS, HEIGHT, WIDTH, SIDE, INPUT, DIM = 100, 768, 1024, 24, 336, 1024
GEOMETRY = ImageGeometry.squash(INPUT)


def make_masks(*, seed: int = 0) -> np.ndarray:
    """Return ``(100, 768, 1024)`` bool: elliptical masks with irregular edges and radii of 16 to 400 pixels."""
    generator = torch.Generator().manual_seed(seed)
    waves = F.interpolate(torch.randn(MASKS, 1, 24, 32, generator=generator), (HEIGHT, WIDTH), mode="bicubic")[:, 0]
    center = torch.rand(MASKS, 2, generator=generator) * torch.tensor([HEIGHT, WIDTH])
    radius = 16 * 25 ** torch.rand(MASKS, 2, generator=generator)
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    masks = np.empty((MASKS, HEIGHT, WIDTH), bool)
    for mask, (row, col), (tall, wide), wave in zip(masks, center, radius, waves, strict=True):
        distance = (((y - row) / tall) ** 2 + ((x - col) / wide) ** 2).sqrt()
        mask[...] = (distance < 1 + 0.2 * wave).numpy()
    return masks


def resize_and_pool(masks: np.ndarray) -> Tensor:
    """Return the coverage of dense masks by the paper's two steps."""
    resized = F.interpolate(torch.from_numpy(masks)[:, None].float(), (INPUT, INPUT), mode="nearest")
    return F.avg_pool2d(resized, INPUT // SIDE)[:, 0]


def decode_resize_and_pool(encoded: list[dict[str, Any]]) -> Tensor:
    """Return the coverage of encoded masks by the same steps."""
    return resize_and_pool(coco.decode(encoded).transpose(2, 0, 1))


def pool_enlarged(features: Tensor, masks: np.ndarray) -> Tensor:
    """Return mean features ``(M, dim)`` of masks from features enlarged to their size; the paper's reference [5]."""
    enlarged = F.interpolate(features.permute(2, 0, 1)[None], (HEIGHT, WIDTH), mode="bilinear")[0]
    weights = torch.from_numpy(masks).flatten(1).float()
    return weights @ enlarged.flatten(1).T / weights.sum(1, keepdim=True)


def pool_on_grid(features: Tensor, masks: Any) -> Tensor:
    """Return the mean features of masks on the grid."""
    regions = MaskDownsampler((SIDE, SIDE), geometry=GEOMETRY)([masks])
    return MeanPool()(features[None], regions).values


def memory_cases() -> dict[str, Callable[[], Any]]:
    """Return the function of each method, to be run in a separate process."""
    masks = make_masks()
    encoded = MaskSet.from_masks(masks).to_coco()
    features = torch.randn(SIDE, SIDE, DIM)
    downsampler = MaskDownsampler((SIDE, SIDE), geometry=GEOMETRY)
    downsampler.coverage(encoded[:1]), downsampler.coverage(masks[:1])  # compiles
    pool_on_grid(features, encoded[:1])
    return {
        "RLE": lambda: downsampler.coverage(encoded),
        "decode, resize, pool": lambda: decode_resize_and_pool(encoded),
        "dense": lambda: downsampler.coverage(masks),
        "resize, pool": lambda: resize_and_pool(masks),
        "mean features on the grid": lambda: pool_on_grid(features, encoded),
        "mean features at the masks' size": lambda: pool_enlarged(features, masks),
    }


def rise(case: str) -> int:
    """Return by how many bytes a method raises the peak memory."""
    run = memory_cases()[case]
    before, held = held_peak()
    run()
    after = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del held
    return after - before


def main() -> None:
    """Check, measure, print and save."""
    masks = make_masks()
    encoded = MaskSet.from_masks(masks).to_coco()
    downsampler = MaskDownsampler((SIDE, SIDE), geometry=GEOMETRY)
    exact, steps = downsampler.coverage(encoded), resize_and_pool(masks)
    if not torch.allclose(exact, downsampler.coverage(masks), atol=1e-6):
        raise SystemExit("downsampling: RLE and dense masks disagree; nothing was timed.")
    if (exact - steps).abs().mean() > 0.005:
        raise SystemExit("downsampling: exact and two-step coverage disagree; nothing was timed.")
    features = torch.randn(SIDE, SIDE, DIM)
    words = masks.view(np.uint64)
    times = take_turns(
        {
            "RLE": lambda: downsampler.coverage(encoded),
            "decode, resize, pool": lambda: decode_resize_and_pool(encoded),
            "dense": lambda: downsampler.coverage(masks),
            "resize, pool": lambda: resize_and_pool(masks),
            "floor: one read of the dense masks": lambda: np.bitwise_or.reduce(words, axis=None),
        },
        rounds=15,
    )
    older = take_turns({"mean features on the grid": lambda: pool_on_grid(features, encoded)}, rounds=15)
    older |= take_turns({"mean features at the masks' size": lambda: pool_enlarged(features, masks)}, rounds=2)
    rises = {}
    for case in memory_cases():
        command = [sys.executable, "-m", "benchmarks.downsampling", case]
        completed = subprocess.run(command, capture_output=True, text=True, check=True)
        rises[case] = round(int(completed.stdout.split()[-1]) / 2**20, 1)
    assigned, assigned_by_steps = exact > 0.07, steps > 0.07
    figures = {
        "shape": {"masks": MASKS, "height": HEIGHT, "width": WIDTH, "grid": SIDE, "input": INPUT, "dim": DIM},
        "RLE bytes per mask": round(sum(len(mask["counts"]) for mask in encoded) / MASKS),
        "times": times,
        "pooling": older,
        "peak_rise_MiB": rises,
        "RLE: times faster than decode, resize, pool": ratio(times, "decode, resize, pool", "RLE"),
        "dense: times faster than resize, pool": ratio(times, "resize, pool", "dense"),
        "dense over one read": ratio(times, "dense", "floor: one read of the dense masks"),
        "pooling on the grid: times faster": ratio(
            older, "mean features at the masks' size", "mean features on the grid"
        ),
        "patches kept by one route alone": round(
            float((assigned ^ assigned_by_steps).sum() / (assigned | assigned_by_steps).sum()), 4
        ),
    }
    for name, value in figures.items():
        print(name, value)
    print(save("downsampling", figures))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(rise(sys.argv[1]))
    else:
        main()
