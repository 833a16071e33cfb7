"""What does an adapter cost beside the stock model fed as many tokens? One family per mechanism, small and random.

Prefill and generation with a region per patch, where there is nothing to group, against the stock model; both with as
many tokens as regions left, encoded before; and the adapter's own work alone: layout, positions, deepstack layers.
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
    """The same random ones every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def build(name: str, **options: Any) -> Any:
    """A stock model by the stem of its classes."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**options)
    return getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()


def llava() -> tuple[Any, list[int], dict[str, Any]]:
    """One grid of 24 x 24."""
    tower = TOWER | {"model_type": "clip_vision_model", "image_size": 336}
    stock = build("Llava", vision_config=tower, text_config=TEXT | {"model_type": "llama"}, image_token_index=IMAGE)
    return stock, [-576], {"pixel_values": pixels(1, 3, 336, 336)}


def llava_next() -> tuple[Any, list[int], dict[str, Any]]:
    """A thumbnail of 12 x 12 and tiles of 24 x 24 together, with their newlines."""
    tower = TOWER | {"model_type": "clip_vision_model", "image_size": 168}
    stock = build(
        "LlavaNext", vision_config=tower, text_config=TEXT | {"model_type": "llama"}, image_token_index=IMAGE,
        image_grid_pinpoints=[[336, 336]],
    )  # fmt: skip
    given = {"pixel_values": pixels(1, 5, 3, 168, 168), "image_sizes": torch.tensor([[300, 300]])}
    return stock, [-(144 + 24 * 25)], given


def internvl() -> tuple[Any, list[int], dict[str, Any]]:
    """Four tiles and a thumbnail of 12 x 12."""
    tower = TOWER | {"image_size": [336, 336], "patch_size": [14, 14]}
    stock = build(
        "InternVL", vision_config=tower, text_config=TEXT | {"model_type": "qwen2"}, image_token_id=IMAGE,
        image_seq_length=144,
    )  # fmt: skip
    return stock, [-720], {"pixel_values": pixels(5, 3, 336, 336)}


def smolvlm() -> tuple[Any, list[int], dict[str, Any]]:
    """The same tiles, each in a run of its own."""
    tower = TOWER | {"image_size": 336}
    stock = build(
        "SmolVLM", vision_config=tower, text_config=TEXT | {"model_type": "llama"}, image_token_id=IMAGE, scale_factor=2
    )
    row = [901, 902, -144, 901, 903, -144, 7]
    return stock, [*row, *row, 7, 901, 904, -144, 901], {"pixel_values": pixels(1, 5, 3, 336, 336)}


def gemma3() -> tuple[Any, list[int], dict[str, Any]]:
    """One grid of 24 x 24, whose tokens see each other."""
    tower = TOWER | {"model_type": "siglip_vision_model", "image_size": 336, "vision_use_head": False}
    stock = build(
        "Gemma3", vision_config=tower, text_config=TEXT, image_token_index=IMAGE, boi_token_index=997,
        eoi_token_index=996, mm_tokens_per_image=576,
    )  # fmt: skip
    return stock, [-576], {"pixel_values": pixels(1, 3, 336, 336)}


def qwen2_5_vl() -> tuple[Any, list[int], dict[str, Any]]:
    """A merged grid of 24 x 24."""
    rope = {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 10000.0}
    stock = build("Qwen2_5_VL", vision_config=VISUAL, text_config=TEXT | {"rope_parameters": rope}, **IDS)
    given = {"pixel_values": pixels(48 * 48, 3 * 2 * 196), "image_grid_thw": torch.tensor([[1, 48, 48]])}
    return stock, [-576], given


def qwen3_vl() -> tuple[Any, list[int], dict[str, Any]]:
    """The same, with three deepstack layers."""
    rope = {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 10000.0, "mrope_interleaved": True}
    visual = VISUAL | {"num_position_embeddings": 576, "deepstack_visual_indexes": [0, 1, 2]}
    stock = build("Qwen3VL", vision_config=visual, text_config=TEXT | {"rope_parameters": rope}, **IDS)
    given = {"pixel_values": pixels(48 * 48, 3 * 2 * 196), "image_grid_thw": torch.tensor([[1, 48, 48]])}
    return stock, [-576], given


FAMILIES = (llava, llava_next, internvl, smolvlm, gemma3, qwen2_5_vl, qwen3_vl)


def prompt(pieces: list[int]) -> Tensor:
    """Words around what a processor writes, where ``-n`` stands for n placeholders, ``(1, columns)``."""
    words = torch.randint(3, 900, (WORDS,), generator=torch.Generator().manual_seed(0)).tolist()
    written = [one for piece in pieces for one in ([piece] if piece > 0 else [IMAGE] * -piece)]
    return torch.tensor([words[:8] + written + words[8:]])


def measure(family: Callable[[], Any]) -> dict[str, Any]:
    """The ratios of one family."""
    stock, pieces, given = family()
    ids = prompt(pieces)
    inside = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    kinds = {"gemma3": "token_type_ids", "qwen2_5_vl": "mm_token_type_ids", "qwen3_vl": "mm_token_type_ids"}
    for_stock = dict(given)
    if family.__name__ in kinds:
        for_stock[kinds[family.__name__]] = (ids == IMAGE).long()
    model = with_regions(stock, Regionizer(source="patch", pool="mean", norm="none"))
    few = with_regions(stock, Regionizer(pool="mean", norm="none", num_regions=TOKENS))
    last = {"logits_to_keep": 1}
    greedy = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    if not torch.equal(model(**inside, **for_stock).logits, stock(**inside, **for_stock).logits):
        raise SystemExit(
            f"families: a region per patch of {type(stock).__name__} is not the stock model; no speed is told."
        )
    laid = few.expand(**inside, **given).inputs
    image = laid.pop("mm_encoder_outputs")["image"]
    packed = {"image": few.model.pack_features(image)}  # as the stock class itself takes it

    def fed() -> None:
        stock(**laid, mm_encoder_outputs=packed, **last)

    def fed_regions() -> None:
        few(**laid, mm_encoder_outputs={"image": image}, **last)

    written = {name: laid[name] for name in laid if name != "position_ids"}
    contestants = {
        "stock, prefill": lambda: stock(**inside, **for_stock, **last),
        "regions, prefill": lambda: model(**inside, **for_stock, **last),
        "stock, generation": lambda: stock.generate(**inside, **for_stock, **greedy),
        "regions, generation": lambda: model.generate(**inside, **for_stock, **greedy),
        "stock fed 64": fed,
        "regions fed 64": fed_regions,
    }
    times = take_turns(contestants, rounds=ROUNDS)
    inner = few.model
    if family in (internvl, smolvlm):  # which the prompt of the stock processor gives
        given |= {"tiles": [(2, 2)]}
    sides = dict(given)
    encoded = inner._encode(sides.pop("pixel_values"), sides.pop("image_sizes", None), sides)
    tokens = few.encode_regions(**given)
    inner._encode = lambda *_: encoded
    inner._regionize = lambda *_: tokens
    inner.__class__.projector = property(lambda _: torch.nn.Identity())  # the tokens are projected
    own = take_turns({"own work": lambda: inner.encode_prompt(written["input_ids"], None, **given)}, rounds=ROUNDS)
    times |= own
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
    """Measure, print and save."""
    figures = {family.__name__: measure(family) for family in FAMILIES}
    for name, found in figures.items():
        print(name, {one: value for one, value in found.items() if one != "times"})
    print(save("families", figures))


if __name__ == "__main__":
    main()
