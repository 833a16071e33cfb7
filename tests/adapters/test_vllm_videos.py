"""Videos of Qwen-VL inside vLLM. Answers must equal those of the region model in transformers.

Set REGIONTOK_VLLM to a Python that has vLLM and regiontok; see docs/serving.md.
"""

import pytest

from regiontok import Regionizer
from regiontok.adapters.huggingface import region_processor, with_regions
from tests.adapters.test_processors import IMAGES
from tests.adapters.vllm_tools import serve, vllm_python, wide_model
from tests.video_processors import PROCESSORS, text_of, video

FRAMES = (9, 18, 4)
LIMITS = {"max_model_len": 1024, "max_num_batched_tokens": 1024}


@pytest.fixture
def python():
    return vllm_python()


def processor_of(title):
    """Return a processor that does not resize the videos, and treats the colours of images and videos alike.

    How far videos are resized depends on the version of transformers, and vLLM has one mean and deviation for both.
    """
    processor = PROCESSORS[title]()
    for name in ("image_mean", "image_std"):
        setattr(processor.image_processor, name, getattr(processor.video_processor, name))
    processor.video_processor.size = {"shortest_edge": 64, "longest_edge": 64 * 64 * 64}
    return processor


def metadata_of(frames):
    return {"fps": 1.0, "total_num_frames": frames, "frames_indices": list(range(frames))}


def samples_of(title, processor):
    """Return prompts with the frames of their videos, and their images: one video, two, and a video with an image."""
    token, image = text_of(title, processor), "<|vision_start|><|image_pad|><|vision_end|>"
    return [
        *((f"what {token} moves", [frames], []) for frames in FRAMES),
        (f"{token} and {token} here", [FRAMES[0], FRAMES[2]], []),
        (f"{image} in {token} now", [FRAMES[0]], IMAGES[:1]),
    ]


def expected_answers(model, processor, samples, budgets):
    answers = []
    for (text, lengths, images), budget in zip(samples, budgets, strict=True):
        given = processor(
            text=[text],
            images=[images] if images else None,
            videos=[video(count, count) for count in lengths],
            video_metadata=[metadata_of(count) for count in lengths],
            do_sample_frames=False,
            return_tensors="pt",
            **budget,
        )
        made = model.generate(**given, max_new_tokens=6, min_new_tokens=6, do_sample=False, eos_token_id=None)
        answers.append(made[0, given["input_ids"].shape[1] :].tolist())
    assert len({tuple(answer) for answer in answers}) > 1
    return answers


def request(text, lengths, images, kwargs):
    videos = [
        (video(count, count), metadata_of(count) | {"duration": float(count), "do_sample_frames": False})
        for count in lengths
    ]
    media = {"video": videos} | ({"image": images} if images else {})
    return {"prompt": text, "multi_modal_data": media, "mm_processor_kwargs": kwargs | {"do_sample_frames": False}}


@pytest.mark.parametrize("title", ["Qwen2.5-VL", "Qwen3-VL"])
def test_videos_of_a_stock_checkpoint(python, title, tmp_path):
    """Budgets of requests, and all patches; again with warm caches and one by one; bad budgets are rejected."""
    processor, stock = processor_of(title), wide_model(title)
    folder = tmp_path / "model"
    stock.save_pretrained(folder)
    processor.save_pretrained(folder)
    model = with_regions(stock, Regionizer(pool="mean", norm="none", num_regions=9))
    samples = samples_of(title, processor)
    budgets = [{"video_num_regions": count} for count in (7, 12, 400, 5, 6)]
    expected = expected_answers(model, region_processor(processor, model), samples, budgets)
    bad = [{"video_num_regions": 401}, {"video_num_regions": 0}, {"video_keep": 1.5}, {"video_num_regions": "x"}]
    bad.append({"video_num_region": 5})
    requests = {
        "answered": [request(*sample, budget) for sample, budget in zip(samples, budgets, strict=True)],
        "rejected": [request(*samples[0], budget) for budget in bad],
    }
    options = LIMITS | {
        "hf_overrides": {"architectures": [f"Region{type(stock).__name__}"]},
        "mm_processor_kwargs": {"num_regions": 9, "video_num_regions": 400},
    }
    told = serve(python, folder, options, requests, tmp_path)
    for name in ("batch", "cached", "single", "after"):
        assert told[name] == expected, name
    assert all("ValidationError" in error for error in told["rejected"]), told["rejected"]


@pytest.mark.parametrize("title", ["Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL"])
def test_videos_of_a_saved_folder(python, title, tmp_path):
    """The budget of videos of the model, a trained pool, and the text of frames without tokens."""
    processor, stock = processor_of(title), wide_model(title)
    options = {"empty_frames": "keep"} if title == "Qwen3-VL" else {}
    model = with_regions(stock, Regionizer(keep=0.5, dim=128, max_frames=4), video_keep=0.25, **options)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    regions = region_processor(processor, model)
    regions.save_pretrained(folder)
    samples = samples_of(title, processor)
    expected = expected_answers(model, regions, samples, [{}] * len(samples))
    requests = {"answered": [request(*sample, {"num_regions": 400}) for sample in samples], "rejected": []}
    for one in requests["answered"]:
        if "image" in one["multi_modal_data"]:  # the budget of an image is not that of a video, which has its own
            one["mm_processor_kwargs"].pop("num_regions")
    told = serve(python, folder, LIMITS | {"max_num_batched_tokens": 128}, requests, tmp_path)
    assert told["batch"] == told["cached"] == expected
