"""The real processor of every family of `tests.families`, with a small vocabulary and small images."""

import transformers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.models import IMAGE, PAD, tiny_processor

SIDE = {"height": 56, "width": 56}
PINPOINTS = [[56, 112], [112, 56], [112, 112]]
TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE {% else %}"
    "{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
)


def tokenizer(image, *, more=(), **attributes):
    """Return a tokenizer of the words ``w1`` to ``w40`` and special tokens from 41 on; ``image`` is the placeholder."""
    special = [token for token in more if token != image]
    words = {"<pad>": PAD, image: IMAGE} | {f"w{number}": number for number in range(1, 41)}
    words |= {token: 41 + number for number, token in enumerate(special)}
    words |= {f"x{number}": number for number in range(1, IMAGE) if number not in words.values()}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<pad>", extra_special_tokens=attributes
    )
    made.add_tokens([AddedToken(token, normalized=False, special=True) for token in (image, *special)], True)
    made.padding_side = "left"
    return made


def _fast():
    made = tiny_processor()
    made.image_processor = transformers.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64)
    made.patch_size, made.num_additional_image_tokens, made.vision_feature_select_strategy = 32, 0, "full"
    return made


def _next():
    images = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": 56}, crop_size=SIDE, image_grid_pinpoints=PINPOINTS
    )
    return transformers.LlavaNextProcessor(
        images,
        tokenizer("<image>"),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def _onevision():
    images = transformers.LlavaOnevisionImageProcessor(size=SIDE, image_grid_pinpoints=PINPOINTS)
    return transformers.LlavaOnevisionProcessor(
        images, tokenizer("<image>", more=["<video>"]), transformers.LlavaOnevisionVideoProcessor(),
        num_image_tokens=16, vision_feature_select_strategy="full",
    )  # fmt: skip


def _native(
    kind, images, videos, image="<|image_pad|>", video="<|video_pad|>", start="<|vision_start|>", end="<|vision_end|>"
):
    sizes = {"patch_size": 4, "merge_size": 2} | ({} if "Llama" in kind else {"temporal_patch_size": 2})
    sizes["size"] = {
        "shortest_edge": 8 * 8 * (2 if "Glm" in images else 1),
        "longest_edge": 32 * 32 * (2 if "Glm" in images else 1),
    }
    words = tokenizer(image, more=[video, start, end], image_token=image, video_token=video)
    made = getattr(transformers, images)(**sizes)
    return getattr(transformers, kind)(made, words, getattr(transformers, videos)())


def _internvl():
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    words = tokenizer("<IMG_CONTEXT>", more=names.values(), **names)
    images = transformers.GotOcr2ImageProcessor(size=SIDE, crop_to_patches=True, max_patches=4)
    return transformers.InternVLProcessor(
        images, words, transformers.InternVLVideoProcessor(size=SIDE), image_seq_length=4
    )


def _perception():
    words = tokenizer("<|image|>", more=["<|video|>"], image_token="<|image|>", video_token="<|video|>")
    images = transformers.PerceptionLMImageProcessor(tile_size=56, max_num_tiles=4)
    return transformers.PerceptionLMProcessor(
        transformers.PerceptionLMVideoProcessor(), images, words, patch_size=14, pooling_ratio=2
    )


def _aya():
    more = [
        "<image>",
        "<|START_OF_IMG|>",
        "<|END_OF_IMG|>",
        "<|IMG_LINE_BREAK|>",
        "TILE_GLOBAL",
        *(f"TILE_{n}" for n in range(1, 5)),
    ]
    images = transformers.GotOcr2ImageProcessor(size=SIDE, crop_to_patches=True, max_patches=4)
    return transformers.AyaVisionProcessor(images, tokenizer("<|IMG_PATCH|>", more=more), patch_size=28, img_size=56)


def _cohere():
    names = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image>", "img_line_break_token": "<break>"}
    images = transformers.Cohere2VisionImageProcessor(size=SIDE, crop_to_patches=True, max_patches=4)
    images.patch_size = 2  # of features on the side of a tile, which its processor takes for the count
    return transformers.Cohere2VisionProcessor(images, tokenizer("<image>", more=names.values(), **names))


def _idefics(kind):
    more = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>", "\n"]
    more += [f"<row_{row}_col_{col}>" for row in range(1, 4) for col in range(1, 4)]
    sizes = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}
    images = getattr(transformers, f"{kind}ImageProcessor")(**sizes)
    words = tokenizer("<image>", more=more)
    videos = (transformers.SmolVLMVideoProcessor(),) if kind == "SmolVLM" else ()
    return getattr(transformers, f"{kind}Processor")(images, words, *videos, image_seq_len=4)


def _gemma3():
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    images = transformers.Gemma3ImageProcessor(size=SIDE)
    return transformers.Gemma3Processor(
        images, tokenizer("<image_soft_token>", more=names.values(), **names), image_seq_length=4
    )


def _gemma4():
    names = {"boi_token": "<|image>", "eoi_token": "<image|>", "image_token": "<|image|>", "audio_token": "<|audio|>",
             "boa_token": "<|audio>", "eoa_token": "<audio|>"}  # fmt: skip
    words = tokenizer("<|image|>", more=[*names.values(), "<|video|>"], **names)
    images = transformers.Gemma4ImageProcessor(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70)
    return transformers.Gemma4Processor(
        transformers.Gemma4AudioFeatureExtractor(), images, words, transformers.Gemma4VideoProcessor()
    )


def _paligemma():
    images = transformers.SiglipImageProcessor(size=SIDE)
    images.image_seq_length = 16
    return transformers.PaliGemmaProcessor(
        images, tokenizer("<image>", more=["<bos>", "\n"], image_token="<image>", bos_token="<bos>")
    )


def _next_video():
    images = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": 56}, crop_size=SIDE, image_grid_pinpoints=PINPOINTS
    )
    return transformers.LlavaNextVideoProcessor(
        transformers.LlavaNextVideoVideoProcessor(), images, tokenizer("<image>", more=["<video>"]), patch_size=14,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip


def _video_llava():
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=SIDE)
    words = tokenizer("<image>", more=["<video>"])
    return transformers.VideoLlavaProcessor(images, transformers.VideoLlavaVideoProcessor(), words, patch_size=14)


PROCESSORS = {
    "LLaVA-1.5": tiny_processor,
    "LLaVA-NeXT": _next,
    "LLaVA-OneVision": _onevision,
    "LLaVA-NeXT-Video": _next_video,
    "VideoLLaVA": _video_llava,
    "Qwen2-VL": lambda: _native("Qwen2VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"),
    "Qwen2.5-VL": lambda: _native("Qwen2_5_VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"),
    "Qwen3-VL": lambda: _native("Qwen3VLProcessor", "Qwen2VLImageProcessor", "Qwen3VLVideoProcessor"),
    "Qwen3-VL MoE": lambda: _native("Qwen3VLProcessor", "Qwen2VLImageProcessor", "Qwen3VLVideoProcessor"),
    "Qwen3.5": lambda: _native("Qwen3VLProcessor", "Qwen2VLImageProcessor", "Qwen3VLVideoProcessor"),
    "Qwen3.5 MoE": lambda: _native("Qwen3VLProcessor", "Qwen2VLImageProcessor", "Qwen3VLVideoProcessor"),
    "GLM-4.1V": lambda: _native("Glm4vProcessor", "Glm4vImageProcessor", "Glm4vVideoProcessor", "<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>"),
    "GLM-4.5V": lambda: _native("Glm4vProcessor", "Glm4vImageProcessor", "Glm4vVideoProcessor", "<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>"),
    "GLM-4.6V": lambda: _native("Glm46VProcessor", "Glm46VImageProcessor", "Glm46VVideoProcessor", "<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>"),
    "InternVL": _internvl,
    "PerceptionLM": _perception,
    "Aya Vision": _aya,
    "Cohere2 Vision": _cohere,
    "Idefics3": lambda: _idefics("Idefics3"),
    "SmolVLM": lambda: _idefics("SmolVLM"),
    "Gemma 3": _gemma3,
    "Gemma 4": _gemma4,
    "VideoLlama3": lambda: _native("VideoLlama3Processor", "VideoLlama3ImageProcessor", "VideoLlama3VideoProcessor"),
    "PaliGemma": _paligemma,
    "FastVLM": _fast,
    "VipLlava": tiny_processor,
}  # fmt: skip
"""Functions that return a new processor, by family."""


def placeholder(name, processor):
    """Return the text of an image in a prompt."""
    if name == "Aya Vision":
        return "<image>"
    start, end = {"Qwen": ("<|vision_start|>", "<|vision_end|>"), "GLM-": ("<|begin_of_image|>", "<|end_of_image|>")}.get(name[:4], ("", ""))  # fmt: skip
    return f"{start}{getattr(processor, 'image_token', '<image>')}{end}"
