"""Overhead of the adapters over stock models, for one family per mechanism with small random models.

Three measurements: prefill and generation with one region per patch, compared with the stock model; prefill of both
with 64 precomputed image tokens; and the work that only the adapter does: layout, positions and deepstack layers.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.timing import ratio, save, take_turns
from regiontok import Regionizer
from regiontok.adapters.huggingface import with_regions

IMAGE, WORDS, NEW, TOKENS, ROUNDS = 999, 64, 8, 64, 25
TEXT = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "vocab_size": 1000, "pad_token_id": 0, "head_dim": 64,
}  # fmt: skip
TOWER = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 14,
}
VISUAL = {
    "depth": 3, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "out_hidden_size": 256, "patch_size": 14,
    "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
IDS = {"image_token_id": IMAGE, "video_token_id": 998, "vision_start_token_id": 997, "vision_end_token_id": 996}


def pixels(*shape: int) -> Tensor:
    """Return random values with a fixed seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def build(name: str, **options: Any) -> Any:
    """Return a stock model by the common prefix of its class names."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**options)
    return getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()


def llava() -> tuple[Any, list[int], dict[str, Any]]:
    """Return LLaVA-1.5 with a grid of 24 x 24, its prompt and inputs."""
    tower = TOWER | {"model_type": "clip_vision_model", "image_size": 336}
    stock = build("Llava", vision_config=tower, text_config=TEXT | {"model_type": "llama"}, image_token_index=IMAGE)
    return stock, [-576], {"pixel_values": pixels(1, 3, 336, 336)}


def llava_next() -> tuple[Any, list[int], dict[str, Any]]:
    """Return LLaVA-NeXT with a thumbnail of 12 x 12 and joined crops of 24 x 24, with newline tokens."""
    tower = TOWER | {"model_type": "clip_vision_model", "image_size": 168}
    stock = build(
        "LlavaNext", vision_config=tower, text_config=TEXT | {"model_type": "llama"}, image_token_index=IMAGE,
        image_grid_pinpoints=[[336, 336]],
    )  # fmt: skip
    inputs = {"pixel_values": pixels(1, 5, 3, 168, 168), "image_sizes": torch.tensor([[300, 300]])}
    return stock, [-(144 + 24 * 25)], inputs


def internvl() -> tuple[Any, list[int], dict[str, Any]]:
    """Return InternVL with four tiles and a thumbnail of 12 x 12."""
    tower = TOWER | {"image_size": [336, 336], "patch_size": [14, 14]}
    stock = build(
        "InternVL", vision_config=tower, text_config=TEXT | {"model_type": "qwen2"}, image_token_id=IMAGE,
        image_seq_length=144,
    )  # fmt: skip
    return stock, [-720], {"pixel_values": pixels(5, 3, 336, 336)}


def smolvlm() -> tuple[Any, list[int], dict[str, Any]]:
    """Return SmolVLM with the same tiles, each with its own block of placeholders."""
    tower = TOWER | {"image_size": 336}
    stock = build(
        "SmolVLM", vision_config=tower, text_config=TEXT | {"model_type": "llama"}, image_token_id=IMAGE, scale_factor=2
    )
    row = [901, 902, -144, 901, 903, -144, 7]
    return stock, [*row, *row, 7, 901, 904, -144, 901], {"pixel_values": pixels(1, 5, 3, 336, 336)}


def gemma3() -> tuple[Any, list[int], dict[str, Any]]:
    """Return Gemma 3 with a grid of 24 x 24 and bidirectional attention between its tokens."""
    tower = TOWER | {"model_type": "siglip_vision_model", "image_size": 336, "vision_use_head": False}
    stock = build(
        "Gemma3", vision_config=tower, text_config=TEXT, image_token_index=IMAGE, boi_token_index=997,
        eoi_token_index=996, mm_tokens_per_image=576,
    )  # fmt: skip
    return stock, [-576], {"pixel_values": pixels(1, 3, 336, 336)}


def qwen2_5_vl() -> tuple[Any, list[int], dict[str, Any]]:
    """Return Qwen2.5-VL with a merged grid of 24 x 24."""
    rope = {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 10000.0}
    stock = build("Qwen2_5_VL", vision_config=VISUAL, text_config=TEXT | {"rope_parameters": rope}, **IDS)
    inputs = {"pixel_values": pixels(48 * 48, 3 * 2 * 196), "image_grid_thw": torch.tensor([[1, 48, 48]])}
    return stock, [-576], inputs


def qwen3_vl() -> tuple[Any, list[int], dict[str, Any]]:
    """Return Qwen3-VL with the same grid and three deepstack layers."""
    rope = {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 10000.0, "mrope_interleaved": True}
    visual = VISUAL | {"num_position_embeddings": 576, "deepstack_visual_indexes": [0, 1, 2]}
    stock = build("Qwen3VL", vision_config=visual, text_config=TEXT | {"rope_parameters": rope}, **IDS)
    inputs = {"pixel_values": pixels(48 * 48, 3 * 2 * 196), "image_grid_thw": torch.tensor([[1, 48, 48]])}
    return stock, [-576], inputs


FAMILIES = (llava, llava_next, internvl, smolvlm, gemma3, qwen2_5_vl, qwen3_vl)


def prompt(pieces: list[int]) -> Tensor:
    """Return a prompt ``(1, columns)`` of random words around the tokens of an image; ``-n`` is n placeholders."""
    words = torch.randint(3, 900, (WORDS,), generator=torch.Generator().manual_seed(0)).tolist()
    image = [token for piece in pieces for token in ([piece] if piece > 0 else [IMAGE] * -piece)]
    return torch.tensor([words[:8] + image + words[8:]])


def measure(family: Callable[[], Any]) -> dict[str, Any]:
    """Return the results of one family."""
    stock, pieces, image_inputs = family()
    ids = prompt(pieces)
    text_inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    type_names = {"gemma3": "token_type_ids", "qwen2_5_vl": "mm_token_type_ids", "qwen3_vl": "mm_token_type_ids"}
    inputs = text_inputs | image_inputs
    if family.__name__ in type_names:
        inputs[type_names[family.__name__]] = (ids == IMAGE).long()
    model = with_regions(stock, Regionizer(source="patch", pool="mean", norm="none"))
    small = with_regions(stock, Regionizer(pool="mean", norm="none", num_regions=TOKENS))
    prefill = {"logits_to_keep": 1}
    generation = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    if not torch.equal(model(**inputs).logits, stock(**inputs).logits):
        raise SystemExit(
            f"families: {type(stock).__name__} with one region per patch differs from the stock model; nothing was "
            "timed."
        )
    expanded = small.expand(**text_inputs, **image_inputs).inputs
    image = expanded.pop("mm_encoder_outputs")["image"]
    packed = small.model.pack_features(image)  # the format of the stock class
    contestants = {
        "stock, prefill": lambda: stock(**inputs, **prefill),
        "regions, prefill": lambda: model(**inputs, **prefill),
        "stock, generation": lambda: stock.generate(**inputs, **generation),
        "regions, generation": lambda: model.generate(**inputs, **generation),
        "stock fed 64": lambda: stock(**expanded, mm_encoder_outputs={"image": packed}, **prefill),
        "regions fed 64": lambda: small(**expanded, mm_encoder_outputs={"image": image}, **prefill),
    }
    times = take_turns(contestants, rounds=ROUNDS)
    inner = small.model
    if family in (internvl, smolvlm):  # otherwise inferred from the prompt
        image_inputs |= {"tilings": [(2, 2)]}
    options = dict(image_inputs)
    encoded = inner._encode(options.pop("pixel_values"), options.pop("image_sizes", None), options)
    tokens = small.encode_regions(**image_inputs)
    inner._encode = lambda *_: encoded
    inner._regionize = lambda *_: tokens
    inner.__class__.projector = property(lambda _: torch.nn.Identity())  # the tokens are already projected
    adapter = {"own work": lambda: inner.encode_prompt(expanded["input_ids"], None, **image_inputs)}
    times |= take_turns(adapter, rounds=ROUNDS)
    return {
        "tokens of the image": int((ids == IMAGE).sum()),
        "times": times,
        "prefill, regions over stock": ratio(times, "regions, prefill", "stock, prefill"),
        "generation, regions over stock": ratio(times, "regions, generation", "stock, generation"),
        "fed 64 tokens, regions over stock": ratio(times, "regions fed 64", "stock fed 64"),
        "own work over prefill": ratio(times, "own work", "stock, prefill"),
    }


@torch.no_grad()
def main() -> None:
    """Run the measurements, print and save the results."""
    figures = {family.__name__: measure(family) for family in FAMILIES}
    for name, results in figures.items():
        print(name, {key: value for key, value in results.items() if key != "times"})
    print(save("families", figures))


if __name__ == "__main__":
    main()
