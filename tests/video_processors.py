"""The real processors of the families of `tests.video_families`, for videos of small frames."""

import string

import numpy as np
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.families import VIDEO
from tests.models import IMAGE, PAD

SIDE = {"height": 56, "width": 56}
CHARACTERS = string.ascii_lowercase + string.digits + ".:<>,[]\n "


def tokenizer(ids, **attributes):
    """Return a tokenizer of characters; ``ids`` are the ids of special tokens."""
    words = {"<pad>": PAD} | {character: 3 + number for number, character in enumerate(CHARACTERS)} | ids
    words |= {f"x{number}": number for number in range(1, IMAGE) if number not in words.values()}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("[^§]"), "isolated")
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<pad>", extra_special_tokens=attributes
    )
    made.add_tokens([AddedToken(token, normalized=False, special=True) for token in ids], True)
    made.padding_side = "left"
    return made


def _qwen(kind, videos):
    ids = {"<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO, "<|vision_start|>": 97, "<|vision_end|>": 96}
    words = tokenizer(ids, image_token="<|image_pad|>", video_token="<|video_pad|>")
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    images = transformers.Qwen2VLImageProcessor(**sizes, size={"shortest_edge": 64, "longest_edge": 32 * 32})
    frames = getattr(transformers, videos)(**sizes, size={"shortest_edge": 64, "longest_edge": 10 * 32 * 32})
    return getattr(transformers, kind)(images, words, frames)


def _glm(kind, images, videos):
    ids = {
        "<|image|>": IMAGE, "<|video|>": VIDEO, "<|begin_of_image|>": 97, "<|end_of_image|>": 96,
        "<|begin_of_video|>": 95, "<|end_of_video|>": 94,
    }  # fmt: skip
    words = tokenizer(ids, image_token="<|image|>", video_token="<|video|>")
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    images = getattr(transformers, images)(**sizes, size={"shortest_edge": 128, "longest_edge": 2 * 32 * 32})
    frames = getattr(transformers, videos)(**sizes, size={"shortest_edge": 64, "longest_edge": 10 * 32 * 32})
    return getattr(transformers, kind)(images, words, frames)


def _internvl():
    names = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    words = tokenizer({"<IMG_CONTEXT>": IMAGE, "<video>": VIDEO, "<img>": 50, "</img>": 51}, **names)
    images = transformers.GotOcr2ImageProcessor(size=SIDE, crop_to_patches=True, max_patches=4)
    videos = transformers.InternVLVideoProcessor(size=SIDE)
    return transformers.InternVLProcessor(images, words, videos, image_seq_length=4)


def _smolvlm():
    ids = {
        "<image>": IMAGE,
        "<video>": VIDEO,
        "<fake_token_around_image>": 50,
        "<global-img>": 60,
        "<end_of_utterance>": 61,
    }
    images = transformers.SmolVLMImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    videos = transformers.SmolVLMVideoProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 56})
    return transformers.SmolVLMProcessor(images, tokenizer(ids), videos, image_seq_len=4)


def _onevision():
    words = tokenizer({"<image>": IMAGE, "<video>": VIDEO})
    images = transformers.LlavaOnevisionImageProcessor(size=SIDE, image_grid_pinpoints=[[56, 112], [112, 56]])
    videos = transformers.LlavaOnevisionVideoProcessor(size=SIDE)
    return transformers.LlavaOnevisionProcessor(
        images, words, videos, num_image_tokens=16, vision_feature_select_strategy="full"
    )


def _next():
    words = tokenizer({"<image>": IMAGE, "<video>": VIDEO})
    images = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": 56}, crop_size=SIDE, image_grid_pinpoints=[[56, 112], [112, 56]]
    )
    videos = transformers.LlavaNextVideoVideoProcessor(size={"shortest_edge": 56}, crop_size=SIDE)
    return transformers.LlavaNextVideoProcessor(
        videos, images, words, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def _video_llava():
    words = tokenizer({"<image>": IMAGE, "<video>": VIDEO})
    images = transformers.VideoLlavaImageProcessor(size={"shortest_edge": 56}, crop_size=SIDE)
    videos = transformers.VideoLlavaVideoProcessor(size={"shortest_edge": 56}, crop_size=SIDE)
    return transformers.VideoLlavaProcessor(images, videos, words, patch_size=14)


def _perception():
    ids = {"<|image|>": IMAGE, "<|video|>": VIDEO}
    words = tokenizer(ids, image_token="<|image|>", video_token="<|video|>")
    images = transformers.PerceptionLMImageProcessor(tile_size=56, max_num_tiles=4)
    videos = transformers.PerceptionLMVideoProcessor(size=SIDE)
    return transformers.PerceptionLMProcessor(videos, images, words, patch_size=14, pooling_ratio=2)


def _gemma():
    names = {"boi_token": "<|image>", "eoi_token": "<image|>", "image_token": "<|image|>", "audio_token": "<|audio|>",
             "boa_token": "<|audio>", "eoa_token": "<audio|>"}  # fmt: skip
    ids = {"<|image|>": IMAGE, "<|video|>": VIDEO, "<|image>": 97, "<image|>": 96, "<|audio|>": 95}
    words = tokenizer(ids | {"<|audio>": 60, "<audio|>": 61}, **names)
    sizes = {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70}
    images, videos = transformers.Gemma4ImageProcessor(**sizes), transformers.Gemma4VideoProcessor(**sizes)
    return transformers.Gemma4Processor(transformers.Gemma4AudioFeatureExtractor(), images, words, videos)


def _llama():
    ids = {"<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO}
    words = tokenizer(ids, image_token="<|image_pad|>", video_token="<|video_pad|>")
    images = transformers.VideoLlama3ImageProcessor(
        patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 32 * 32}
    )
    videos = transformers.VideoLlama3VideoProcessor(
        patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 10 * 32 * 32}, use_token_compression=True
    )
    return transformers.VideoLlama3Processor(images, words, videos)


PROCESSORS = {
    "LLaVA-OneVision": _onevision,
    "LLaVA-NeXT-Video": _next,
    "VideoLLaVA": _video_llava,
    "Qwen2-VL": lambda: _qwen("Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
    "Qwen2.5-VL": lambda: _qwen("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
    "Qwen3-VL": lambda: _qwen("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "Qwen3-VL MoE": lambda: _qwen("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "Qwen3.5": lambda: _qwen("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "Qwen3.5 MoE": lambda: _qwen("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "GLM-4.1V": lambda: _glm("Glm4vProcessor", "Glm4vImageProcessor", "Glm4vVideoProcessor"),
    "GLM-4.5V": lambda: _glm("Glm4vProcessor", "Glm4vImageProcessor", "Glm4vVideoProcessor"),
    "GLM-4.6V": lambda: _glm("Glm46VProcessor", "Glm46VImageProcessor", "Glm46VVideoProcessor"),
    "InternVL": _internvl,
    "PerceptionLM": _perception,
    "SmolVLM": _smolvlm,
    "Gemma 4": _gemma,
    "VideoLlama3": _llama,
}
"""Functions that return a new processor, by family."""


def video(frames, seed=0):
    """Return a video of 48 x 64 pixels that changes from frame to frame."""
    rng = np.random.default_rng(seed)
    start, step = rng.integers(0, 200, (1, 48, 64, 3)), rng.integers(0, 9, (1, 48, 64, 3))
    return (start + step * np.arange(frames)[:, None, None, None]).clip(0, 255).astype(np.uint8)


def text_of(name, processor):
    """Return the text of a video in a prompt."""
    token = str(processor.video_token)
    if name in ("Qwen2-VL", "Qwen2.5-VL"):
        return f"<|vision_start|>{token}<|vision_end|>"
    return f"<|begin_of_video|>{token}<|end_of_video|>" if name.startswith("GLM") else token


def batch_of(name, processor, frames=(9, 9)):
    """Return two prompts with a video each, whose frames are a second apart."""
    token = text_of(name, processor)
    metadata = [{"fps": 1.0, "total_num_frames": count, "frames_indices": list(range(count))} for count in frames]
    return {
        "text": [f"what {token} moves", f"{token} here"],
        "videos": [video(count, seed) for seed, count in enumerate(frames)],
        "video_metadata": metadata,
        "do_sample_frames": False,
        "return_tensors": "pt",
        "padding": True,
    }
