"""A small random model of every family, with three images in the form of its processor and the prompts it writes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers

from tests.models import IMAGE, PAD, scaled, tiny_llava

TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TOWER = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56,
    "patch_size": 14,
}  # fmt: skip
SIGLIP = TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False}
CLIP = TOWER | {"model_type": "clip_vision_model"}
ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
VIDEO = 98
IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
QWEN_IDS = IDS | {"vision_start_token_id": 97, "vision_end_token_id": 96}
GLM_IDS = IDS | {
    "image_start_token_id": 97, "image_end_token_id": 96, "video_start_token_id": 95, "video_end_token_id": 94,
}  # fmt: skip
MERGING = {"num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
VISUAL = MERGING | {"depth": 3, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64}


def build(name, **options):
    """Return a stock model of a family by the common part of its class names."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**options)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    for weight in model.parameters():
        if weight.ndim > 1 and not weight.any():  # Gemma 3's projection, without which all images are equal
            torch.nn.init.normal_(weight, std=0.1)
    return model


def fast_vlm():
    """FastVLM with a tower of few and narrow layers, whose features depend on the image."""
    sizes = {"inference_mode": True, "layers": (1, 1, 1, 1), "embed_dims": (32, 32, 32, 32)}
    vision = {"model_type": "timm_wrapper", "architecture": "fastvit_mci0", "do_pooling": True, "global_pool": "avg"}
    model = build(
        "FastVlm", vision_config=vision | {"hidden_size": 64, "model_args": sizes}, image_token_index=IMAGE,
        text_config=TEXT | {"model_type": "qwen2"}, image_seq_length=4,
    )  # fmt: skip
    scaled(model.model.vision_tower)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0  # adapters do not save running statistics
    return model


def random(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def word(tag, run):
    return [tag, *[IMAGE] * run]


ROWS = [[5, "a", 7, "b", 8], [6, 7], [3, "c", 4]]
"""Samples of words and images: with two images, without one, and with one."""


@dataclass(frozen=True)
class Case:
    """A family with three images.

    Attributes:
        make: Returns its stock model.
        written: The tokens that a processor writes for each image; ``-n`` is a block of n placeholders.
        pixels: Returns the processor's tensors for the images of each sample, such as ``[[0, 1], [], [2]]``.
        kinds: Name of the input that marks image tokens, if the stock class has one.
        tilings: Tiling of each image; None for families without tiles, or whose image sizes determine it.
    """

    make: Callable
    written: list[list[int]]
    pixels: Callable
    kinds: str | None = None
    tilings: list | None = None

    def piece(self, image, *, whole=True):
        """Return the tokens of an image, with the blocks of a processor or with one placeholder per block."""
        return [
            token
            for part in self.written[image]
            for token in ([part] if part > 0 else [IMAGE] * (-part if whole else 1))
        ]

    def prompts(self, rows, *, whole=True, left=True):
        """Return ``input_ids`` and ``attention_mask`` of rows of words; the images are ``"a"``, ``"b"`` and ``"c"``."""
        rows = [[token for word in row for token in (self.piece("abc".index(word), whole=whole) if isinstance(word, str) else [word])] for row in rows]  # fmt: skip
        width = max(map(len, rows))
        ids = torch.tensor([[PAD] * (width - len(row)) * left + row + [PAD] * (width - len(row)) * (not left) for row in rows])  # fmt: skip
        return {"input_ids": ids, "attention_mask": (ids != PAD).long()}

    def inputs(self, rows=ROWS, *, whole=True, left=True):
        """Return prompts, and the processor's tensors for their images if there are any."""
        samples = [["abc".index(word) for word in row if isinstance(word, str)] for row in rows]
        inputs = self.prompts(rows, whole=whole, left=left)
        if any(samples):
            inputs |= self.pixels(samples)
        if self.tilings and not whole:
            inputs["tilings"] = [self.tilings[image] for image in flat(samples)]
        return inputs

    def for_stock(self, inputs):
        """Return further inputs that the stock class needs."""
        return {} if self.kinds is None else {self.kinds: (inputs["input_ids"] == IMAGE).int()}


def expanded_logits(model, **inputs):
    """Return logits of a prompt of the stock processor, in the columns of the rewritten prompt."""
    return model(**model.expand(**inputs).inputs).logits


def flat(samples):
    return [image for sample in samples for image in sample]


def images(*shape):
    """Return one tensor per image."""
    images = random(3, *shape)
    return lambda samples: {"pixel_values": images[flat(samples)]}


GRIDS = torch.tensor([[1, 4, 6], [1, 8, 4], [1, 4, 4]])


def native(samples):
    patches = random(int(GRIDS.prod(1).sum()), 3 * 2 * 16).split(GRIDS.prod(1).tolist())
    chosen = flat(samples)
    return {"pixel_values": torch.cat([patches[image] for image in chosen]), "image_grid_thw": GRIDS[chosen]}


def merged(samples):
    """Return VideoLlama3's patches, which are merged 2 x 2."""
    patches = random(int(GRIDS.prod(1).sum()), 3 * 16).split(GRIDS.prod(1).tolist())
    chosen = flat(samples)
    sizes = torch.full((len(chosen),), 2)
    pixels = torch.cat([patches[image] for image in chosen])
    return {"pixel_values": pixels, "image_grid_thw": GRIDS[chosen], "image_merge_sizes": sizes}


def padded_patches(samples):
    """Return Gemma 4's patches of 4 x 4, 2 x 4 and 4 x 2, padded to 16."""
    shapes, chosen = [(4, 4), (2, 4), (4, 2)], flat(samples)
    positions = torch.full((3, 16, 2), -1)
    for position, (rows, cols) in zip(positions, shapes, strict=True):
        position[: rows * cols] = torch.cartesian_prod(torch.arange(rows), torch.arange(cols)).flip(1)
    pixels = torch.rand(3, 16, 48, generator=torch.Generator().manual_seed(1)) * (positions >= 0).all(-1)[..., None]
    return {"pixel_values": pixels[chosen], "image_position_ids": positions[chosen]}


TILES = [(1, 1), (2, 2), (1, 2)]
COUNTS = [1, 5, 3]


def tiles(samples):
    """Return images of 1, 2 x 2 and 1 x 2 tiles with their thumbnails in one dimension."""
    parts = random(9, 3, 56, 56).split(COUNTS)
    return {"pixel_values": torch.cat([parts[image] for image in flat(samples)])}


def tilings_by_image(samples):
    """Return PerceptionLM's images, each with the same number of tiles."""
    return {"pixel_values": random(3, 3, 3, 56, 56)[flat(samples)]}


def tilings_by_sample(samples):
    """Return the tiles of each sample as in Idefics3, padded with zeros."""
    parts = random(9, 3, 56, 56).split(COUNTS)
    rows = [torch.cat([parts[image] for image in sample]) if sample else parts[0][:0] for sample in samples]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {"pixel_values": padded, "pixel_attention_mask": torch.ones(*padded.shape[:2], 56, 56, dtype=torch.long)}


SIZES = torch.tensor([[20, 100], [100, 20], [60, 100]])  # tiles of 1 x 2, 2 x 1 and 2 x 2, half of them padding


def anyres(samples):
    parts = random(11, 3, 56, 56).split([3, 3, 5])
    chosen = flat(samples)
    padded = torch.nn.utils.rnn.pad_sequence([parts[image] for image in chosen], batch_first=True)
    return {"pixel_values": padded, "image_sizes": SIZES[chosen]}


def onevision(samples):
    """Return the tiles of each image; those of a sample with two images are only their thumbnails."""
    parts = random(11, 3, 56, 56).split([3, 3, 5])
    rows = [parts[image] if len(sample) == 1 else parts[image][:1] for sample in samples for image in sample]
    counts = torch.tensor([len(sample) for sample in samples if sample])
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {"pixel_values": padded, "image_sizes": SIZES[flat(samples)], "batch_num_images": counts}


def tagged(*runs, between=7):
    """Return tags, blocks and a line break after each row, for images of 1, 2 x 2 and 1 x 2 tiles."""
    thumbnail, row = [50, 60, -4], [50, 61, -4, 50, 62, -4, 7]
    return [[*thumbnail, 50], [*row, *row, 7, *thumbnail, 50], [*row, 7, *thumbnail, 50]]


FIVE = [[50, -4, 51], [50, -20, 51], [50, -12, 51]]
CASES = {
    "LLaVA-1.5": Case(tiny_llava, [[-16]] * 3, images(3, 56, 56)),
    "LLaVA-NeXT": Case(
        lambda: build("LlavaNext", vision_config=CLIP, text_config=TEXT | {"model_type": "llama"}, image_token_index=IMAGE,
                      image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]]),
        [[-(16 + 2 * 9)], [-(16 + 8 * 3)], [-(16 + 4 * 9)]], anyres,
    ),
    "LLaVA-OneVision": Case(
        lambda: build("LlavaOnevision", vision_config=SIGLIP, text_config=TEXT | {"model_type": "qwen2"}, **IDS,
                      image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]]),
        [[-17], [-17], [-(16 + 4 * 9)]], onevision,
    ),
    "LLaVA-NeXT-Video": Case(
        lambda: build("LlavaNextVideo", vision_config=CLIP, text_config=TEXT | {"model_type": "llama"}, image_token_index=IMAGE,
                      video_token_index=VIDEO, image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]]),
        [[-(16 + 2 * 9)], [-(16 + 8 * 3)], [-(16 + 4 * 9)]], anyres,
    ),
    "VideoLLaVA": Case(
        lambda: build("VideoLlava", vision_config=CLIP, text_config=TEXT | {"model_type": "llama"}, image_token_index=IMAGE,
                      video_token_index=VIDEO),
        [[-16]] * 3, images(3, 56, 56),
    ),
    "Qwen2-VL": Case(
        lambda: build("Qwen2VL", text_config=TEXT | {"rope_parameters": ROPE}, **QWEN_IDS,
                      vision_config=MERGING | {"depth": 2, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}),
        [[97, -6, 96], [97, -8, 96], [97, -4, 96]], native, "mm_token_type_ids",
    ),
    "Qwen2.5-VL": Case(
        lambda: build("Qwen2_5_VL", text_config=TEXT | {"rope_parameters": ROPE}, **QWEN_IDS,
                      vision_config=VISUAL | {"window_size": 16, "fullatt_block_indexes": [1]}),
        [[97, -6, 96], [97, -8, 96], [97, -4, 96]], native, "mm_token_type_ids",
    ),
    "Qwen3-VL": Case(
        lambda: build("Qwen3VL", text_config=TEXT | {"head_dim": 16, "rope_parameters": ROPE | {"mrope_interleaved": True}},
                      vision_config=VISUAL | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}, **QWEN_IDS),
        [[97, -6, 96], [97, -8, 96], [97, -4, 96]], native, "mm_token_type_ids",
    ),
    "Qwen3-VL MoE": Case(
        lambda: build("Qwen3VLMoe", text_config=TEXT | {"head_dim": 16, "rope_parameters": ROPE | {"mrope_interleaved": True},
                      "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1},
                      vision_config=VISUAL | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}, **QWEN_IDS),
        [[97, -6, 96], [97, -8, 96], [97, -4, 96]], native, "mm_token_type_ids",
    ),
    "Qwen3.5": Case(
        lambda: build("Qwen3_5", text_config=TEXT | {"head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
                      "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
                      "linear_value_head_dim": 16,
                      "rope_parameters": ROPE | {"mrope_interleaved": True, "partial_rotary_factor": 1.0}},
                      vision_config=VISUAL | {"num_position_embeddings": 64}, **QWEN_IDS),
        [[97, -6, 96], [97, -8, 96], [97, -4, 96]], native, "mm_token_type_ids",
    ),
    "Qwen3.5 MoE": Case(
        lambda: build("Qwen3_5Moe", text_config=TEXT | {"head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
                      "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
                      "linear_value_head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                      "shared_expert_intermediate_size": 32,
                      "rope_parameters": ROPE | {"mrope_interleaved": True, "partial_rotary_factor": 1.0}},
                      vision_config=VISUAL | {"num_position_embeddings": 64}, **QWEN_IDS),
        [[97, -6, 96], [97, -8, 96], [97, -4, 96]], native, "mm_token_type_ids",
    ),
    "GLM-4.1V": Case(
        lambda: build("Glm4v", text_config=TEXT | {"head_dim": 16, "rope_parameters": ROPE | {"partial_rotary_factor": 1.0}},
                      vision_config=VISUAL | {"image_size": 32}, **GLM_IDS),
        [[97, -6, 96], [97, -8, 96], [97, -4, 96]], native, "mm_token_type_ids",
    ),
    "GLM-4.5V": Case(
        lambda: build("Glm4vMoe", text_config=TEXT | {"head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2,
                      "moe_intermediate_size": 32, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1,
                      "topk_group": 1, "rope_parameters": ROPE | {"partial_rotary_factor": 1.0}},
                      vision_config=VISUAL | {"image_size": 32}, **GLM_IDS),
        [[97, -6, 96], [97, -8, 96], [97, -4, 96]], native, "mm_token_type_ids",
    ),
    "GLM-4.6V": Case(
        lambda: build("Glm46V", text_config=TEXT | {"model_type": "glm4v_text", "head_dim": 16,
                      "rope_parameters": ROPE | {"partial_rotary_factor": 1.0}},
                      vision_config=VISUAL | {"model_type": "glm4v_vision", "image_size": 32}, **GLM_IDS),
        [[97, -6, 96], [97, -8, 96], [97, -4, 96]], native, "mm_token_type_ids",
    ),
    "InternVL": Case(
        lambda: build("InternVL", vision_config=TOWER | {"image_size": [56, 56], "patch_size": [14, 14]},
                      text_config=TEXT | {"model_type": "qwen2"}, image_token_id=IMAGE, image_seq_length=4),
        FIVE, tiles, tilings=TILES,
    ),
    "PerceptionLM": Case(
        lambda: build("PerceptionLM", text_config=TEXT | {"model_type": "llama"}, projector_pooling_ratio=2, **IDS,
                      vision_config={"architecture": "vit_pe_core_large_patch14_336", "hidden_size": 32, "model_args": {
                          "embed_dim": 32, "img_size": [56, 56], "depth": 2, "num_heads": 2, "global_pool": "",
                          "use_post_transformer_norm": False, "init_values": 0.1, "ref_feat_shape": [4, 4]}}),
        [[-12]] * 3, tilings_by_image, tilings=[3, 3, 3],
    ),
    "Aya Vision": Case(
        lambda: build("AyaVision", vision_config=SIGLIP, text_config=TEXT | {"model_type": "cohere2", "sliding_window": 32},
                      image_token_index=IMAGE),
        [[50, 60, -4, 51], [50, 61, -4, 62, -4, 63, -4, 64, -4, 60, -4, 51], [50, 61, -4, 62, -4, 60, -4, 51]],
        tiles, tilings=TILES,
    ),
    "Cohere2 Vision": Case(
        lambda: build("Cohere2Vision", vision_config=SIGLIP, image_token_id=IMAGE, alignment_intermediate_size=64,
                      text_config=TEXT | {"model_type": "cohere2", "sliding_window": 32}),
        [[50, -4, 7, 51], [50, *[-4, 7] * 5, 51], [50, *[-4, 7] * 3, 51]], tiles, tilings=TILES,
    ),
    "Idefics3": Case(
        lambda: build("Idefics3", vision_config=TOWER, text_config=TEXT | {"model_type": "llama"}, image_token_id=IMAGE),
        tagged(), tilings_by_sample, tilings=TILES,
    ),
    "SmolVLM": Case(
        lambda: build("SmolVLM", vision_config=TOWER, text_config=TEXT | {"model_type": "llama"}, image_token_id=IMAGE),
        tagged(), tilings_by_sample, tilings=TILES,
    ),
    "Gemma 3": Case(
        lambda: build("Gemma3", vision_config=SIGLIP, image_token_index=IMAGE, boi_token_index=97, eoi_token_index=96,
                      text_config=TEXT | {"head_dim": 16, "sliding_window": 16,
                                          "layer_types": ["sliding_attention", "full_attention"]}, mm_tokens_per_image=4),
        [[97, -4, 96]] * 3, images(3, 56, 56), "token_type_ids",
    ),
    "Gemma 4": Case(
        lambda: build("Gemma4", audio_config=None, **IDS, audio_token_id=95, boi_token_id=97, eoi_token_id=96,
                      text_config=TEXT | {"head_dim": 16, "global_head_dim": 16, "sliding_window": 16,
                      "layer_types": ["sliding_attention", "full_attention"], "hidden_size_per_layer_input": 8,
                      "vocab_size_per_layer_input": 100, "num_kv_shared_layers": 0, "use_bidirectional_attention": "vision"},
                      vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                      "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4,
                      "pooling_kernel_size": 2, "position_embedding_size": 64}),
        [[97, -4, 96], [97, -2, 96], [97, -2, 96]], padded_patches, "mm_token_type_ids",
    ),
    "VideoLlama3": Case(
        lambda: build("VideoLlama3", text_config=TEXT | {"model_type": "qwen2"}, **IDS, vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}),
        [[-6], [-8], [-4]], merged,
    ),
    "PaliGemma": Case(
        lambda: build("PaliGemma", vision_config=SIGLIP | {"projection_dim": 64}, projection_dim=64, image_token_index=IMAGE,
                      text_config=TEXT | {"model_type": "gemma2", "head_dim": 16, "sliding_window": 32}),
        [[-16]] * 3, images(3, 56, 56),
    ),
    "FastVLM": Case(
        fast_vlm, [[-4]] * 3, images(3, 64, 64),
    ),
    "VipLlava": Case(
        lambda: build("VipLlava", vision_config=CLIP, text_config=TEXT | {"model_type": "llama"}, image_token_index=IMAGE,
                      vision_feature_layer=[-2, -1]),
        [[-16]] * 3, images(3, 56, 56),
    ),
}  # fmt: skip
