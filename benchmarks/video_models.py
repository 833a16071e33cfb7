"""Time of stock video models and of their region models for 32 frames, with small random models.

The adapter does what remains without the vision tower, which both run: clustering, pooling, positions and the rewriting
of the prompt. Its share of the prefill of a large language model is smaller than that of these small ones.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.families import IDS, IMAGE, TEXT, TOWER, VISUAL, WORDS, build, pixels
from benchmarks.timing import ratio, save, take_turns
from regiontok import Regionizer
from regiontok.adapters.huggingface import with_regions

VIDEO, KEEP, ROUNDS = 998, 0.1, 7
GRID = torch.tensor([[16, 24, 24]])  # 32 frames, merged to 16 x 12 x 12


def qwen2_5_vl() -> tuple[Any, list[int], dict[str, Any]]:
    """Return Qwen2.5-VL, with one block of placeholders."""
    rope = {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 10000.0}
    stock = build("Qwen2_5_VL", vision_config=VISUAL, text_config=TEXT | {"rope_parameters": rope}, **IDS)
    inputs = {"pixel_values_videos": pixels(int(GRID.prod()), 3 * 2 * 196), "video_grid_thw": GRID}
    return stock, [997, -16 * 144, 996], inputs


def qwen3_vl() -> tuple[Any, list[int], dict[str, Any]]:
    """Return Qwen3-VL, with three deepstack layers and a block of placeholders per frame."""
    rope = {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 10000.0, "mrope_interleaved": True}
    visual = VISUAL | {"num_position_embeddings": 576, "deepstack_visual_indexes": [0, 1, 2]}
    stock = build("Qwen3VL", vision_config=visual, text_config=TEXT | {"rope_parameters": rope}, **IDS)
    inputs = {"pixel_values_videos": pixels(int(GRID.prod()), 3 * 2 * 196), "video_grid_thw": GRID}
    return stock, [token for frame in range(16) for token in (*range(10, 17), 997, -144, 996)], inputs


def llava_onevision() -> tuple[Any, list[int], dict[str, Any]]:
    """Return LLaVA-OneVision, with 14 x 14 resized patches of 27 x 27 per frame."""
    tower = TOWER | {"model_type": "siglip_vision_model", "image_size": 378, "vision_use_head": False}
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO}
    stock = build("LlavaOnevision", vision_config=tower, text_config=TEXT | {"model_type": "qwen2"}, **ids)
    return stock, [-(32 * 196 + 1)], {"pixel_values_videos": pixels(1, 32, 3, 378, 378)}


FAMILIES = (qwen2_5_vl, qwen3_vl, llava_onevision)


def measure(family: Callable[[], Any]) -> dict[str, Any]:
    """Return the results of one family."""
    stock, pieces, video_inputs = family()
    words = torch.randint(20, 900, (WORDS,), generator=torch.Generator().manual_seed(0)).tolist()
    video = [token for piece in pieces for token in ([piece] if piece > 0 else [VIDEO] * -piece)]
    ids = torch.tensor([words[:8] + video + words[8:]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | video_inputs
    if "video_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = 2 * (ids == VIDEO).long()
    model = with_regions(stock, Regionizer(source="patch", pool="mean", norm="none"))
    small = with_regions(stock, keep=KEEP)
    prefill = {"logits_to_keep": 1}
    if not torch.equal(model(**inputs, **prefill).logits, stock(**inputs, **prefill).logits):
        raise SystemExit(
            f"video_models: {type(stock).__name__} with one region per patch differs from the stock model; nothing was "
            "timed."
        )
    written = small.expand(**inputs).inputs
    short = {name: written[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids") if name in written}
    contestants = {
        "stock": lambda: stock(**inputs, **prefill),
        "one region per patch": lambda: model(**inputs, **prefill),
        "a tenth": lambda: small(**inputs | short, **prefill),
    }
    times = take_turns(contestants, rounds=ROUNDS)
    inner = small.model
    names = [name for name in inner.video_inputs if name in inputs and name != "mm_token_type_ids"]
    clips = inner.encode_clips(inputs["pixel_values_videos"], **{name: inputs[name] for name in names})
    inner.encode_clips = lambda *_, **__: clips
    times |= take_turns({"adapter": lambda: inner.encode_prompt(**inputs | short)}, rounds=ROUNDS)
    return {
        "tokens of the video": int((ids == VIDEO).sum()),
        "tokens of a tenth": int((short["input_ids"] == VIDEO).sum()),
        "times": times,
        "one region per patch over stock": ratio(times, "one region per patch", "stock"),
        "a tenth over stock": ratio(times, "a tenth", "stock"),
        "adapter over stock": ratio(times, "adapter", "stock"),
    }


@torch.no_grad()
def main() -> None:
    """Run the measurements, print and save the results."""
    figures = {family.__name__: measure(family) for family in FAMILIES}
    for name, results in figures.items():
        print(name, {key: value for key, value in results.items() if key != "times"})
    print(save("video_models", figures))


if __name__ == "__main__":
    main()
