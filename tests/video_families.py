"""Two small videos for the models of `tests.families` whose stock classes accept videos, and the prompts about them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.families import CASES, IMAGE, PAD, VIDEO, random

VIDEOS = "vw"
ROWS = [[5, "v", 7], [6, 7], [3, "w", 4, 8]]
"""Samples of words and videos: with one video, without, and with another."""
TWO = [[5, "v", 7, "w", 8]]
MIXED = [[5, "v", 7, "c", 8], [6, "c", 7], [3, "w", 4]]


@dataclass(frozen=True)
class VideoCase:
    """Two videos of a family.

    Attributes:
        written: The tokens that a processor writes for each video; ``(token, n)`` is a block of n placeholders.
        pixels: Returns the tensors of a processor for videos, such as ``[0, 1]``.
        per_frame: Whether each frame has a block of placeholders.
        as_images: Whether the stock class takes frames as images.
    """

    written: list[list]
    pixels: Callable
    per_frame: bool = False
    as_images: bool = False

    def piece(self, video, *, whole=True):
        parts = [
            [part[0]] * (part[1] if whole else 1) if isinstance(part, tuple) else [part] for part in self.written[video]
        ]
        return [token for part in parts for token in part]  # fmt: skip


def inputs_of(name, rows=ROWS, *, left=True, whole=True):
    """Return prompts, and the tensors of their images and videos, as a region processor returns them."""
    case, video_case = CASES[name], CASES_WITH_VIDEOS[name]
    samples, types = [], []
    for row in rows:
        tokens, kinds = [], []
        for word in row:
            if isinstance(word, int):
                piece = [word]
            elif word in VIDEOS:
                piece = video_case.piece(VIDEOS.index(word), whole=whole)
            else:
                piece = case.piece("abc".index(word), whole=whole)
            in_video = isinstance(word, str) and word in VIDEOS
            tokens += piece
            kinds += [(2 if in_video else 1) if token in (IMAGE, VIDEO) else 0 for token in piece]
        samples.append(tokens)
        types.append(kinds)
    width = max(map(len, samples))

    def pad(rows, fill):
        return torch.tensor([
            [fill] * (width - len(row)) * left + row + [fill] * (width - len(row)) * (not left) for row in rows
        ])  # fmt: skip

    ids = pad(samples, PAD)
    given = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    of_images = [["abc".index(word) for word in row if isinstance(word, str) and word in "abc"] for row in rows]
    videos = [VIDEOS.index(word) for row in rows for word in row if isinstance(word, str) and word in VIDEOS]
    if any(of_images):
        given |= case.pixels(of_images)
    if any(of_images) and case.tilings:
        given["tilings"] = [case.tilings[image] for sample in of_images for image in sample]
    if videos:
        given |= video_case.pixels(videos)
    if case.kinds == "mm_token_type_ids" or video_case.as_images:
        given["mm_token_type_ids"] = pad(types, 0)
    return given


def for_stock(name, given, rows=ROWS):
    """Return inputs as the stock processor returns them, from those of `inputs_of`."""
    if not CASES_WITH_VIDEOS[name].as_images:
        return given
    given = dict(given)
    for option in ("mm_token_type_ids", "tilings", "pixel_attention_mask"):
        given.pop(option, None)
    videos = given.pop("pixel_values_videos", None)
    if videos is None:
        return given
    if name == "SmolVLM":  # a dimension for samples, each padded
        assert "pixel_values" not in given
        return given | {"pixel_values": torch.nn.utils.rnn.pad_sequence(list(videos), batch_first=True)}
    frames = iter(videos)
    images = iter([] if "pixel_values" not in given else given["pixel_values"].split(3))  # three tiles of "c"
    parts = [next(frames) if word in VIDEOS else next(images) for row in rows for word in row if isinstance(word, str)]
    return given | {"pixel_values": torch.cat(parts)}


GRIDS = torch.tensor([[5, 4, 6], [2, 4, 4]])


def native(**more):
    def pixels(videos):
        patches = random(int(GRIDS.prod(1).sum()), 3 * 2 * 16, seed=2).split(GRIDS.prod(1).tolist())
        values = torch.cat([patches[video] for video in videos])
        return {"pixel_values_videos": values, "video_grid_thw": GRIDS[videos]} | {
            name: torch.tensor(values)[videos] for name, values in more.items()
        }

    return pixels


def merged(videos):
    patches = random(int(GRIDS.prod(1).sum()), 3 * 16, seed=2).split(GRIDS.prod(1).tolist())
    kept = [torch.arange(30) % 6 < torch.tensor([6, 2, 1, 6, 3]).repeat_interleave(6), torch.ones(8, dtype=torch.bool)]
    return {
        "pixel_values_videos": torch.cat([patches[video] for video in videos]),
        "video_grid_thw": GRIDS[videos],
        "video_merge_sizes": torch.full((len(videos),), 2),
        "video_compression_mask": torch.cat([kept[video] for video in videos]),
    }


def stacked(frames):
    def pixels(videos):
        return {"pixel_values_videos": random(2, frames, 3, 56, 56, seed=2)[videos]}

    return pixels


def gemma(videos):
    """Return frames of 4 x 4 patches, and of 2 x 4 padded to 16: five of the first video and two of the second."""
    parts, places = [], []
    for video in videos:
        frames, rows, cols = [(5, 4, 4), (2, 2, 4)][video]
        position = torch.full((frames, 16, 2), -1)
        position[:, : rows * cols] = torch.cartesian_prod(torch.arange(rows), torch.arange(cols)).flip(1)
        generator = torch.Generator().manual_seed(3 + video)
        parts.append(torch.rand(frames, 16, 48, generator=generator) * (position >= 0).all(-1)[..., None])
        places.append(position)
    counts = torch.tensor([len(part) for part in parts])
    return {
        "pixel_values_videos": torch.cat(parts),
        "video_position_ids": torch.cat(places),
        "num_frames_per_video": counts,
    }


def frames(*lengths, before, after=(), token=VIDEO, around=((), ())):
    """Return a block per frame, with a timestamp and tags around it."""
    return [
        [*around[0], *(part for frame, length in enumerate(video) for part in (*[70 + frame if tag == "t" else tag for tag in before], (token, length), *[70 + frame if tag == "t" else tag for tag in after])), *around[1]]
        for video in lengths
    ]  # fmt: skip


SIX = ([6] * 5, [4] * 2)
QWEN3 = VideoCase(frames(*SIX, before=["t", 31, 97], after=[96]), native(), per_frame=True)
GLM = VideoCase(frames(*SIX, before=[97], after=[96, "t"], token=IMAGE, around=([95], [94])), native(), per_frame=True)
CASES_WITH_VIDEOS = {
    "LLaVA-OneVision": VideoCase([[(VIDEO, 4 * 3 + 1)]] * 2, stacked(3)),
    "LLaVA-NeXT-Video": VideoCase([[(VIDEO, 4 * 3)]] * 2, stacked(3)),
    "VideoLLaVA": VideoCase([[(VIDEO, 17 * 3)]] * 2, stacked(3)),
    "Qwen2-VL": VideoCase([[97, (VIDEO, 30), 96], [97, (VIDEO, 8), 96]], native()),
    "Qwen2.5-VL": VideoCase([[97, (VIDEO, 30), 96], [97, (VIDEO, 8), 96]], native(second_per_grid_ts=[0.6, 0.5])),
    "Qwen3-VL": QWEN3,
    "Qwen3-VL MoE": QWEN3,
    "Qwen3.5": QWEN3,
    "Qwen3.5 MoE": QWEN3,
    "GLM-4.1V": GLM,
    "GLM-4.5V": GLM,
    "GLM-4.6V": GLM,
    "InternVL": VideoCase(
        frames([4] * 3, [4] * 3, before=["t", 50], after=[51], token=IMAGE), stacked(3), per_frame=True, as_images=True
    ),
    "PerceptionLM": VideoCase([[(VIDEO, 4 * 3)]] * 2, stacked(3)),
    "SmolVLM": VideoCase(
        frames([4] * 3, [4] * 3, before=["t", 50, 60], after=[50], token=IMAGE, around=([8], [7])),
        stacked(3),
        per_frame=True,
        as_images=True,
    ),
    "Gemma 4": VideoCase(frames([4] * 5, [2] * 2, before=["t", 97], after=[96]), gemma, per_frame=True),
    "VideoLlama3": VideoCase(frames([6, 2, 1, 6, 3], [4] * 2, before=["t", 31]), merged, per_frame=True),
}
