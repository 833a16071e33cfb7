"""Small randomly initialised models of the real classes, whose masks are many and different."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
    Sam3TrackerConfig,
    Sam3TrackerMaskDecoderConfig,
    Sam3TrackerModel,
    Sam3TrackerPromptEncoderConfig,
    Sam3VisionConfig,
    Sam3ViTConfig,
    SiglipVisionConfig,
)


def _lively(model, seed):
    """Weights that keep the size of what flows through, so that masks depend on image and point."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            fan_in = parameter.shape[1] if parameter.ndim == 2 else parameter[0].numel()
            torch.nn.init.normal_(parameter, std=1.5 / fan_in**0.5, generator=generator)
    return model.eval()


def tiny_sam2(seed=0):
    """A `Sam2Model` of 128 x 128 pixels whose masks are 32 x 32."""
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[128, 128],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 1, 1],
        window_size_per_stage=[8, 4, 2, 2],
        global_attention_blocks=[3],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=32,
    )
    prompt = Sam2PromptEncoderConfig(hidden_size=32, image_size=128, mask_input_channels=4)
    decoder = Sam2MaskDecoderConfig(hidden_size=32, mlp_dim=64, num_attention_heads=2, iou_head_hidden_dim=32)
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    return _lively(Sam2Model(config), seed)


def tiny_sam3(seed=0):
    """A `Sam3TrackerModel` of 112 x 112 pixels whose masks are 32 x 32."""
    backbone = Sam3ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=112,
        pretrain_image_size=56,
        window_size=4,
        global_attn_indexes=[1],
    )
    vision = Sam3VisionConfig(
        backbone_config=backbone, fpn_hidden_size=32, backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]]
    )
    prompt = Sam3TrackerPromptEncoderConfig(hidden_size=32, image_size=112, mask_input_channels=4)
    decoder = Sam3TrackerMaskDecoderConfig(hidden_size=32, mlp_dim=64, num_attention_heads=2, iou_head_hidden_dim=32)
    config = Sam3TrackerConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    return _lively(Sam3TrackerModel(config), seed)


IMAGE, PAD = 99, 0
"""The placeholder and padding of the language models below, whose other tokens are 1 to 98."""


def tiny_clip(**options):
    """The config of a CLIP of 4 x 4 patches of 14 pixels, of dimension 32."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    return CLIPVisionConfig(**(sizes | {"image_size": 56, "patch_size": 14} | options))


def tiny_llava(vision=None, *, seed=0, **options):
    """A stock LLaVA with a vision tower of 4 x 4 patches."""
    torch.manual_seed(seed)
    text = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=100,
        pad_token_id=PAD,
    )
    config = LlavaConfig(vision_config=vision or tiny_clip(), text_config=text, image_token_index=IMAGE, **options)
    return LlavaForConditionalGeneration(config).eval()


def tiny_onevision():
    """A stock LLaVA-OneVision with tiles of 2 x 2 patches."""
    torch.manual_seed(0)
    sizes = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = SiglipVisionConfig(hidden_size=32, image_size=28, patch_size=14, **sizes)
    text = Qwen2Config(
        hidden_size=64, num_key_value_heads=2, vocab_size=100, pad_token_id=PAD, bos_token_id=1, eos_token_id=2, **sizes
    )
    config = LlavaOnevisionConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, video_token_id=98, image_grid_pinpoints=[[28, 28]]
    )
    return LlavaOnevisionForConditionalGeneration(config).eval()


def tiny_qwen():
    """A stock Qwen2.5-VL whose merged patches are 8 pixels wide, of dimension 64."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    text = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 100, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2,
        "rope_parameters": rope,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64, "patch_size": 4,
        "window_size": 16, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=98, vision_start_token_id=97,
        vision_end_token_id=96,
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def tiny_processor(**options):
    """A LLaVA processor whose words are ``w1`` to ``w98``, and which writes 16 placeholders per image."""
    words = {"<pad>": PAD, "<image>": IMAGE} | {f"w{number}": number for number in range(1, IMAGE)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<pad>")
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    fast.padding_side = "left"
    return LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=56),
        fast,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}"
        "{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}",
        **options,
    )
