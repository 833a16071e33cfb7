"""What do a training step and a prefill cost with region tokens instead of patch tokens, the regions' making included?

On a CPU with a small randomly initialised LLaVA; where a CUDA device is at hand, with one of 7 billion weights, whose
training step is that of LLaVA's first stage.
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
"""Patches of CLIP at 336, and the paper's regions of clustering (CLIP, RADIO) and of segmentation."""
IMAGES, WORDS = 4, 64
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}


def build(device: str) -> Any:
    """A stock LLaVA: small on a CPU, LLaVA-1.5-7B's sizes on a GPU."""
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
    """A model with so many tokens per image."""
    if tokens == TOKENS[0]:
        return with_regions(stock, Regionizer(source="patch", pool="mean", norm="none"))
    return with_regions(stock, Regionizer(dim=stock.config.vision_config.hidden_size, num_regions=tokens))


def batch(device: str) -> dict[str, Tensor]:
    """Images that change slowly, and prompts of 64 words; everything after the image is learnt."""
    side = 48
    coarse = smooth_features(side, side, 3 * IMAGES, seed=0).permute(2, 0, 1).reshape(IMAGES, 3, side, side)
    pixels = torch.nn.functional.interpolate(coarse, (336, 336), mode="bilinear").to(device)
    ids = torch.randint(3, 900, (IMAGES, WORDS), generator=torch.Generator().manual_seed(0)).to(device)
    ids[:, 1] = 999
    return {"input_ids": ids, "pixel_values": pixels, "labels": ids.masked_fill(ids == 999, -100)}


def works(model: Any, inputs: dict[str, Tensor]) -> dict[str, Callable[[], None]]:
    """A training step and a prefill, each waiting for its device."""

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


def rise(work: str, tokens: int) -> int:
    """Bytes by which the peak rises, in a process of its own."""
    inputs = batch("cpu")
    run = works(contestant(build("cpu"), tokens), inputs)[work]
    contestant(build("cpu"), 2).regionizer.group(torch.ones(1, 1, 2, 128))  # loads the compiled code
    before, held = held_peak()
    run()
    after = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del held
    return after - before


def peak(work: str, tokens: int, run: Callable[[], None]) -> float:
    """MiB at the peak: beyond what is held on a CPU, allocated on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        run()
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    command = [sys.executable, "-m", "benchmarks.steps", "--rise", work, str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return round(int(done.stdout.split()[-1]) / 2**20, 1)


def check(stock: Any, inputs: dict[str, Tensor]) -> None:
    """Stop where patches through the adapter are not the stock model's."""
    ids = inputs["input_ids"][:1]
    written = torch.cat([ids[:, :1], ids[:, 1:2].expand(1, TOKENS[0]), ids[:, 2:]], 1)
    with torch.no_grad():
        expected = stock(input_ids=written, pixel_values=inputs["pixel_values"][:1]).logits
        found = contestant(stock, TOKENS[0])(input_ids=ids, pixel_values=inputs["pixel_values"][:1]).logits
    if not torch.equal(expected, found):
        raise SystemExit("steps: a region per patch is not the stock model; no speed is told.")


def main() -> None:
    """Measure, print and save."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stock, inputs = build(device), batch(device)
    check(stock, inputs)
    models = {tokens: contestant(stock, tokens) for tokens in TOKENS}
    weights = sum(parameter.numel() for parameter in stock.parameters())
    figures: dict[str, Any] = {"shape": {"images": IMAGES, "words": WORDS, "weights": weights, "device": device}}
    for work in ("training step", "prefill"):
        runs = {str(tokens): works(model, inputs)[work] for tokens, model in models.items()}
        times = take_turns(runs, rounds=7)
        figures[work] = {
            "times": times,
            "times faster than patches": {name: ratio(times, str(TOKENS[0]), name) for name in runs},
            "samples per second": {name: round(1000 * IMAGES / one["median_ms"], 2) for name, one in times.items()},
            "tokens per second": {
                name: round(1000 * IMAGES * (int(name) + WORDS - 1) / one["median_ms"]) for name, one in times.items()
            },
            "peak_MiB": {name: peak(work, int(name), run) for name, run in runs.items()},
        }
    with torch.no_grad():
        features = {tokens: model.encode_patches(inputs["pixel_values"]).features for tokens, model in models.items()}
        regions = {
            str(tokens): lambda model=model, tokens=tokens: model.regionizer(features[tokens])
            for tokens, model in models.items()
        }
        encode = {"vision tower": lambda: models[TOKENS[0]].encode_patches(inputs["pixel_values"])}
        figures["of which regions"] = take_turns(regions | encode, rounds=7)
    print(json.dumps(figures, indent=2))
    print(save("steps", figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rise", nargs=2)
    told = parser.parse_args().rise
    if told is None:
        main()
    else:
        print(rise(told[0], int(told[1])))
