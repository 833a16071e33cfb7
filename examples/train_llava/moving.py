"""Answer questions about toy clips with regions in space and time, and with one or two positions per token.

Run ``python moving.py`` for the table in the README (half an hour on two cores). A small transformer reads the region
tokens of a clip and a question, and is trained to answer it. Its rotary embedding has frame, row and column as
axes. A token has its centroid as position; with two positions, half of the rotary dimensions have the centroid in the
first frame of the region and the other half that in its last frame.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from moving_scenes import FRAMES, KINDS, SIDE, WORDS, make_clip
from PIL import Image
from tiny import RESULTS, share_cores
from torch import Tensor, nn
from torch.nn import functional as F

from regiontok import Regionizer, encoders

TRAIN, TEST, STEPS, BATCH = 4000, 500, 3000, 32
DIM, HEADS, LAYERS, AXES = 128, 4, 3, 3
BUDGETS = (16, 64)
METHODS = ("sampled frames", "frames", "space-time", "space-time, two positions")
"""Ward regions of two sampled frames, of each frame with one budget, and of the clip with one or two positions."""
PARTS = 9
"""Parts in which clips are made; the last one has the clips for testing."""
POSITION_FEATURES = 8
"""Number of features of ``pixels`` that encode positions; they are left out."""


class Samples(NamedTuple):
    """Clips as tokens, with questions.

    Attributes:
        features: ``(N, frames, rows, cols, dim)`` float16.
        words: ``(N, 3)``: the question, padded with -1.
        answers: ``(N,)``.
        kinds: ``(N,)``: indices of `KINDS`.
    """

    features: Tensor
    words: Tensor
    answers: Tensor
    kinds: Tensor


class Tokens(NamedTuple):
    """Region tokens of clips ``(N, K, dim)``, and their first and last positions ``(N, K, 2, 3)``."""

    values: Tensor
    positions: Tensor


@torch.no_grad()
def make_samples(seed: int, count: int) -> Samples:
    """Return random clips with their patch features."""
    encoder = encoders.load("pixels", img_size=SIDE)
    generator = np.random.default_rng(seed)
    features, words, answers, kinds = [], [], [], []
    for _ in range(count):
        clip = make_clip(generator)
        patches, _ = encoder([Image.fromarray(frame) for frame in clip.frames])
        features.append(patches[..., :-POSITION_FEATURES].half())
        question = [WORDS.index(word) for word in clip.question]
        words.append(torch.tensor(question + [-1] * (3 - len(question))))
        answers.append(WORDS.index(clip.answer))
        kinds.append(KINDS.index(clip.kind))
    return Samples(torch.stack(features), torch.stack(words), torch.tensor(answers), torch.tensor(kinds))


def group(features: Tensor, method: str, budget: int) -> Tokens:
    """Return the region tokens of clips with ``budget`` tokens each."""
    regionizer = Regionizer(
        linkage="ward",
        num_regions=budget,
        norm="none",
        pool="mean",
        max_frames=None if method.startswith("space-time") else 1,
    )
    valid = torch.ones(1, *features.shape[1:4], dtype=torch.bool)
    if method == "sampled frames":  # the other frames are in no region
        valid[:] = False
        valid[:, [FRAMES // 4, 3 * FRAMES // 4]] = True
    values, positions = [], []
    for clip in features.float():
        tokens = regionizer(clip[None], valid=valid)
        tracks = tokens.regions.tracks()
        if not method.endswith("two positions"):
            tracks = tokens.regions.centroids()[:, None].expand(-1, 2, -1)
        values.append(tokens.values.half())
        positions.append(tracks)
    return Tokens(torch.stack(values), torch.stack(positions))


class Answerer(nn.Module):
    """A transformer that reads region tokens and a question, and predicts the answer.

    Shape:
        values ``(B, K, dim)``, positions ``(B, K, 2, 3)``, words ``(B, 3)``; returns logits ``(B, words)``.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(dim, DIM), nn.GELU(), nn.Linear(DIM, DIM))
        self.embed = nn.Embedding(len(WORDS) + 1, DIM)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, len(WORDS)))

    def forward(self, values: Tensor, positions: Tensor, words: Tensor) -> Tensor:
        """Return the logits of the answer, read at the last word."""
        hidden = torch.cat([self.project(values), self.embed(words + 1)], 1)
        after = torch.arange(words.shape[1], dtype=torch.float32) + 12  # text follows frames, rows and columns
        positions = torch.cat([positions, after[None, :, None, None].expand(len(words), -1, 2, AXES)], 1)
        cos, sin = rotary(positions)
        for block in self.blocks:
            hidden = block(hidden, cos, sin)
        return self.head(hidden[:, -1])


class Block(nn.Module):
    """Attention with rotary embeddings, and a feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(2))
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.mlp = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return hidden states ``(B, N, dim)``."""
        batch, count, _ = hidden.shape
        qkv = self.qkv(self.norms[0](hidden)).view(batch, count, 3, HEADS, DIM // HEADS)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        attended = F.scaled_dot_product_attention(query, key, value)
        hidden = hidden + self.out(attended.transpose(1, 2).reshape(batch, count, DIM))
        return hidden + self.mlp(self.norms[1](hidden))


def rotary(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines ``(B, 1, N, pairs)`` of positions ``(B, N, 2, 3)``.

    Consecutive pairs of dimensions alternate between the first and the last position, and between the axes.
    """
    pairs = DIM // HEADS // 2
    pair = torch.arange(pairs)
    frequencies = 2.0 ** -(pair // (2 * AXES)).float()
    angles = positions[:, :, pair % 2, (pair // 2) % AXES] * frequencies
    return angles.cos()[:, None], angles.sin()[:, None]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def train(train_set: Samples, test_set: Samples, method: str, budget: int, *, seed: int, steps: int) -> dict[str, Any]:
    """Train a model, and return its accuracy in percent by kind of question."""
    tokens, test_tokens = (group(samples.features, method, budget) for samples in (train_set, test_set))
    torch.manual_seed(seed)
    mean, std = tokens.values.float().mean((0, 1)), tokens.values.float().std((0, 1)) + 1e-3
    model = Answerer(tokens.values.shape[2])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps, pct_start=0.1)
    for _ in range(steps):
        rows = torch.randint(len(train_set.answers), (BATCH,))
        values = (tokens.values[rows].float() - mean) / std
        logits = model(values, tokens.positions[rows], train_set.words[rows])
        loss = F.cross_entropy(logits, train_set.answers[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        values = (test_tokens.values.float() - mean) / std
        is_right = model(values, test_tokens.positions, test_set.words).argmax(1) == test_set.answers
    accuracy = {kind: is_right[test_set.kinds == number] for number, kind in enumerate(KINDS)} | {"all": is_right}
    return {"method": method, "tokens": budget, "seed": seed, "steps": steps} | {
        kind: round(100 * float(right.float().mean()), 1) for kind, right in accuracy.items()
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the means over seeds as a Markdown table."""
    rows: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        rows[result["method"], result["tokens"]].append(result)
    lines = [f"| regions | tokens | {' | '.join(KINDS)} | all |", "| --- | ---: |" + " ---: |" * (len(KINDS) + 1)]
    for method in METHODS:
        for budget in sorted({tokens for name, tokens in rows if name == method}):
            group_of = rows[method, budget]
            means = [f"{np.mean([result[kind] for result in group_of]):.1f}" for kind in (*KINDS, "all")]
            lines.append(f"| {method} | {budget} | {' | '.join(means)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train all models, and write the table."""
    parser = argparse.ArgumentParser(
        prog="moving.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budgets", nargs="*", type=int, default=list(BUDGETS), help="tokens per clip")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[42, 43])
    parser.add_argument("--clips", type=int, default=TRAIN, help="clips for training; default: %(default)s")
    parser.add_argument("--steps", type=int, default=STEPS, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="parallel runs; default: %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for results; default: %(default)s")
    options = parser.parse_args(arguments)
    runs = [
        (method, budget, seed) for budget in options.budgets for method in options.methods for seed in options.seeds
    ]
    results = []
    with ProcessPoolExecutor(
        options.jobs, get_context("spawn"), initializer=share_cores, initargs=(options.jobs,)
    ) as pool:
        parts = list(pool.map(make_samples, range(PARTS), [options.clips // (PARTS - 1)] * (PARTS - 1) + [TEST]))
        train_set = Samples(*(torch.cat(columns) for columns in zip(*parts[:-1], strict=True)))
        run = partial(train, train_set, parts[-1], steps=options.steps)
        for future in [pool.submit(run, method, budget, seed=seed) for method, budget, seed in runs]:
            results.append(future.result())
            print(results[-1], flush=True)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "moving.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (options.results / "moving.md").write_text(table(results), encoding="utf-8")
    print(f"\n{table(results)}\nSaved in {options.results}")


if __name__ == "__main__":
    main()
