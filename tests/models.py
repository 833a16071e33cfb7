"""Small models of the real classes with random weights: LLaVA, SAM 2 and SAM 3, and regions added to any model.

`tests.families` has a model of every family.
"""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VisionConfig,
    Sam3TrackerConfig,
    Sam3TrackerMaskDecoderConfig,
    Sam3TrackerModel,
    Sam3TrackerPromptEncoderConfig,
    Sam3TrackerVideoConfig,
    Sam3TrackerVideoModel,
    Sam3VisionConfig,
    Sam3ViTConfig,
)

from regiontok import Regionizer
from regiontok.adapters.huggingface import with_regions

IDENTITY = {"source": "patch", "pool": "mean", "norm": "none", "padding": "keep"}
"""Options with which every patch is a region, so that a region model computes what its stock model does."""


def region_model(stock, **options):
    """Add regions to a stock model, with a cross-attention pool that is not the mean as an untrained one is."""
    settings = {"dim": with_regions(stock, Regionizer(**IDENTITY)).patch_dim, "num_heads": 4, "num_regions": 6}
    torch.manual_seed(0)
    model = with_regions(stock, Regionizer(**settings | options)).eval()
    if model.regionizer.config.pool == "cross_attention":
        torch.nn.init.normal_(model.regionizer.pool.out.weight, std=0.3)
    return model


def scaled(model, seed=0):
    """Give a model random weights that keep the size of its activations, so that outputs depend on inputs."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            fan_in = parameter.shape[1] if parameter.ndim == 2 else parameter[0].numel()
            torch.nn.init.normal_(parameter, std=1.5 / fan_in**0.5, generator=generator)
    return model.eval()


def tiny_sam2(seed=0):
    """Return a `Sam2Model` of 128 x 128 pixels with masks of 32 x 32."""
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
    return scaled(Sam2Model(config), seed)


def tiny_sam2_video(seed=0):
    """Return a ``Sam2VideoModel`` of 128 x 128 pixels."""
    return scaled(Sam2VideoModel(Sam2VideoConfig(**_video_options(tiny_sam2().config, 128))), seed)


def tiny_sam3_video(seed=0):
    """Return a ``Sam3TrackerVideoModel`` of 112 x 112 pixels."""
    return scaled(Sam3TrackerVideoModel(Sam3TrackerVideoConfig(**_video_options(tiny_sam3().config, 112))), seed)


def _video_options(config, side):
    """Return small options of a video model. Its memory has the dimension that the classes require, 64."""
    vision = config.vision_config
    vision.fpn_hidden_size = 128
    return {
        "vision_config": vision, "image_size": side,
        "prompt_encoder_config": {"hidden_size": 128, "image_size": side, "mask_input_channels": 4},
        "mask_decoder_config": {"hidden_size": 128, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 64},
        "memory_attention_hidden_size": 128, "memory_attention_num_layers": 1, "memory_encoder_hidden_size": 128,
        "memory_attention_feed_forward_hidden_size": 64, "memory_attention_rope_feat_sizes": [8, 8],
        "memory_encoder_output_channels": 64, "mask_downsampler_embed_dim": 128, "memory_fuser_embed_dim": 128,
        "memory_fuser_intermediate_dim": 64, "memory_fuser_num_layers": 1,
    }  # fmt: skip


def tiny_sam3(seed=0):
    """Return a `Sam3TrackerModel` of 112 x 112 pixels with masks of 32 x 32."""
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
    return scaled(Sam3TrackerModel(config), seed)


IMAGE, PAD = 99, 0
"""Placeholder and padding of the language models; their words are 1 to 98."""


def tiny_clip(**options):
    """Return the config of a CLIP of dimension 32 with 4 x 4 patches of 14 pixels."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    return CLIPVisionConfig(**(sizes | {"image_size": 56, "patch_size": 14} | options))


def tiny_llava(vision=None, *, seed=0, **options):
    """Return a stock LLaVA with a vision tower of 4 x 4 patches."""
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


def tiny_processor(**options):
    """Return a LLaVA processor with the words ``w1`` to ``w98`` that writes 16 placeholders per image."""
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
