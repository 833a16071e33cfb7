"""Time and memory of a training step and a prefill with region tokens and with patch tokens, including the Regionizer.

Without a GPU the model is a small random LLaVA. With CUDA it has the size of LLaVA-1.5-7B, and the training step is
that of LLaVA's first stage.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from benchmarks.clustering import smooth_features
from benchmarks.memory import held_peak
from benchmarks.timing import ratio, save, take_turns
from regiontok import Regionizer
from regiontok.adapters.huggingface import with_regions

TOKENS = (576, 257, 124, 101)
"""Patches of CLIP at 336, then the paper's mean counts: clustering with CLIP, with RADIO, and segmentation."""
IMAGES, WORDS = 4, 64
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}


def build(device: str) -> Any:
    """Return a stock LLaVA: small on a CPU, of the size of LLaVA-1.5-7B on a GPU."""
    torch.manual_seed(0)
    large = device == "cuda"
    vision = {
        "image_size": 336,
        "patch_size": 14,
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
    }
    if not large:
        vision |= {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 256}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(num_attention_heads=16 if large else 4, **vision),
        text_config=LlamaConfig(**({"vocab_size": 32064} if large else SMALL)),
        image_token_index=999,
    )
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(config, dtype=torch.bfloat16 if large else torch.float32)
    model.model.vision_tower.requires_grad_(False)
    model.model.language_model.requires_grad_(not large)
    model.lm_head.requires_grad_(not large)
    return model


def contestant(stock: Any, tokens: int) -> Any:
    """Return the region version of a model with a number of tokens per image."""
    if tokens == TOKENS[0]:
        return with_regions(stock, Regionizer(source="patch", pool="mean", norm="none"))
    return with_regions(stock, Regionizer(dim=stock.config.vision_config.hidden_size, num_regions=tokens))


def batch(device: str, tokens: int) -> dict[str, Tensor]:
    """Return smooth images and prompts with ``tokens`` placeholders; all other tokens have labels."""
    side = 48
    coarse = smooth_features(side, side, 3 * IMAGES, seed=0).permute(2, 0, 1).reshape(IMAGES, 3, side, side)
    pixels = torch.nn.functional.interpolate(coarse, (336, 336), mode="bilinear").to(device)
    words = torch.randint(3, 900, (IMAGES, WORDS), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([words[:, :1], torch.full((IMAGES, tokens), 999), words[:, 2:]], 1).to(device)
    return {"input_ids": ids, "pixel_values": pixels, "labels": ids.masked_fill(ids == 999, -100)}


def tasks(model: Any, inputs: dict[str, Tensor]) -> dict[str, Callable[[], None]]:
    """Return a training step and a prefill as functions that wait for the device."""

    def wait() -> None:
        if inputs["input_ids"].is_cuda:
            torch.cuda.synchronize()

    def step() -> None:
        model.train()
        model.zero_grad()
        model(**inputs).loss.backward()
        wait()

    def prefill() -> None:
        model.eval()
        with torch.no_grad():
            model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"], logits_to_keep=1)
        wait()

    return {"training step": step, "prefill": prefill}


def rise(task: str, tokens: int) -> int:
    """Return by how many bytes the peak memory rises, in this process."""
    inputs = batch("cpu", tokens)
    run = tasks(contestant(build("cpu"), tokens), inputs)[task]
    contestant(build("cpu"), 2).regionizer.group(torch.ones(1, 1, 2, 128))  # compiles
    before, held = held_peak()
    run()
    after = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del held
    return after - before


def peak(task: str, tokens: int, run: Callable[[], None]) -> float:
    """Return peak memory in MiB: the rise above the memory before on a CPU, allocated memory on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        run()
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    command = [sys.executable, "-m", "benchmarks.steps", "--rise", task, str(tokens)]
    completed = subprocess.run(command, capture_output=True, text=True, check=True)
    return round(int(completed.stdout.split()[-1]) / 2**20, 1)


def check(stock: Any, inputs: dict[str, Tensor]) -> None:
    """Exit if one region per patch differs from the stock model."""
    sample = {name: inputs[name][:1] for name in ("input_ids", "pixel_values")}
    with torch.no_grad():
        expected = stock(**sample).logits
        logits = contestant(stock, TOKENS[0])(**sample).logits
    if not torch.equal(expected, logits):
        raise SystemExit("steps: one region per patch differs from the stock model; nothing was timed.")


def main() -> None:
    """Run the measurements, print and save the results."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stock, inputs = build(device), {tokens: batch(device, tokens) for tokens in TOKENS}
    check(stock, inputs[TOKENS[0]])
    models = {tokens: contestant(stock, tokens) for tokens in TOKENS}
    weights = sum(parameter.numel() for parameter in stock.parameters())
    figures: dict[str, Any] = {"shape": {"images": IMAGES, "words": WORDS, "weights": weights, "device": device}}
    for task in ("training step", "prefill"):
        runs = {str(tokens): tasks(model, inputs[tokens])[task] for tokens, model in models.items()}
        times = take_turns(runs, rounds=7)
        figures[task] = {
            "times": times,
            "times faster than patches": {name: ratio(times, str(TOKENS[0]), name) for name in runs},
            "samples per second": {name: round(1000 * IMAGES / run["median_ms"], 2) for name, run in times.items()},
            "tokens per second": {
                name: round(1000 * IMAGES * (int(name) + WORDS - 1) / run["median_ms"]) for name, run in times.items()
            },
            "peak_MiB": {name: peak(task, int(name), run) for name, run in runs.items()},
        }
    with torch.no_grad():
        pixels = inputs[TOKENS[0]]["pixel_values"]
        features = {tokens: model.encode_patches(pixels).features for tokens, model in models.items()}
        regions = {
            str(tokens): lambda model=model, tokens=tokens: model.regionizer(features[tokens])
            for tokens, model in models.items()
        }
        encode = {"vision tower": lambda: models[TOKENS[0]].encode_patches(pixels)}
        figures["of which regions"] = take_turns(regions | encode, rounds=7)
    print(json.dumps(figures, indent=2))
    print(save("steps", figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rise", nargs=2, metavar=("TASK", "TOKENS"), help="used by the benchmark itself")
    case = parser.parse_args().rise
    if case is None:
        main()
    else:
        print(rise(case[0], int(case[1])))
