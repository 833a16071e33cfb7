"""Region processors write one placeholder per region token of a video, with the real processor of every family."""

import pytest
import torch
from transformers import AutoProcessor

from regiontok import Regionizer
from regiontok.adapters.huggingface import region_processor, with_regions
from regiontok.errors import ShapeError, ValueRangeError
from tests.families import CASES, IMAGE, VIDEO
from tests.video_families import CASES_WITH_VIDEOS
from tests.video_processors import PROCESSORS, batch_of, text_of, video

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Gemma4:UserWarning"),
]
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
AS_IMAGES = ("InternVL", "SmolVLM")


SAME = ("Qwen3-VL MoE", "Qwen3.5", "Qwen3.5 MoE", "GLM-4.5V")
"""Families with the processor of another one."""


@pytest.fixture(
    scope="module",
    params=[name for name in CASES_WITH_VIDEOS if name not in SAME],
    ids=lambda name: name.replace(" ", "-"),
)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def stock(name):
    return CASES[name].make()


def averages(**options):
    return Regionizer(pool="mean", norm="none", num_regions=6, **options)


def placeholders(inputs):
    ids = inputs["input_ids"]
    return ((ids == IMAGE) | (ids == VIDEO)).sum(1).tolist()


def test_prompts_equal_expanded_prompts(subtests, name, stock):
    plain = PROCESSORS[name]()
    given = batch_of(name, plain)
    for options in (
        {"regionizer": averages(max_frames=3), "video_num_regions": 9},
        {"regionizer": averages(max_frames=3), "video_keep": 0.3, "empty_frames": "keep"},
        {"num_regions": 8},
        {"keep": 0.5},
        {"keep": 1.0},
    ):
        with subtests.test(str(options)):
            model = with_regions(stock, **options)
            processor = region_processor(plain, model)
            inputs = processor(**given)
            whole = plain(**given) if name not in AS_IMAGES else processor(**given, video_keep=1.0)
            whole.pop("video_keep", None)
            expanded = model.expand(**whole, left=True).inputs
            assert torch.equal(inputs["input_ids"], expanded["input_ids"])
            made = model.generate(**inputs, **GREEDY)[:, -4:]
            assert torch.equal(model.generate(**whole, **GREEDY)[:, -4:], made)
            if options == {"keep": 1.0}:
                assert torch.equal(stock.generate(**plain(**given), **GREEDY)[:, -4:], made)
            elif "video_num_regions" in options:
                newline = processor.video_format.newlines
                assert placeholders(inputs) == [9 + newline] * 2


def test_budgets_of_a_call_and_the_number_of_tokens(name, stock):
    model = with_regions(stock, num_regions=8)
    processor = region_processor(PROCESSORS[name](), model)
    given = batch_of(name, processor)
    newline = processor.video_format.newlines
    inputs = processor(**given, video_num_regions=[5, 7])
    assert placeholders(inputs) == [5 + newline, 7 + newline]
    model.generate(**inputs, **GREEDY)
    options = {"video_metadata": given["video_metadata"], "do_sample_frames": False}
    found = processor.count_video_tokens(given["videos"], **options, video_num_regions=[5, 7])
    assert [tokens.regions for tokens in found] == placeholders(inputs)
    lengths = inputs["attention_mask"].sum(1).tolist()
    around = [
        len(processor.tokenizer(text.replace(str(processor.video_token), "")).input_ids) for text in given["text"]
    ]
    assert [sum(tokens) for tokens in found] == [length - rest for length, rest in zip(lengths, around, strict=True)]
    with pytest.raises(ShapeError, match="video_num_regions must have one entry per video, 2; got 3"):
        processor(**given, video_num_regions=[5, 7, 9])
    with pytest.raises(ValueRangeError, match="this processor has no budget"):
        region_processor(PROCESSORS[name](), with_regions(stock, Regionizer(pool="mean", norm="none")))(**given)
    if processor.video_format.per_frame:
        with pytest.raises(ValueRangeError, match="at least the number of its chunks"):
            region_processor(PROCESSORS[name](), num_regions=8, max_frames=2)(**given, video_num_regions=1)


def test_a_loaded_processor_has_the_options_of_videos(name, stock, tmp_path):
    model = with_regions(stock, averages(max_frames=3), video_num_regions=9, empty_frames="keep")
    processor = region_processor(PROCESSORS[name](), model)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.regiontok_videos == {"num_regions": 9, "empty_frames": "keep"}
    loaded.tokenizer.padding_side = "left"
    given = batch_of(name, processor)
    assert torch.equal(loaded(**given)["input_ids"], processor(**given)["input_ids"])


def test_timestamps_are_those_of_the_first_frames_of_chunks():
    processor = region_processor(PROCESSORS["Qwen3-VL"](), num_regions=6, max_frames=2)
    ids = processor(**batch_of("Qwen3-VL", processor))["input_ids"][1]
    text = processor.tokenizer.decode(ids).replace(" ", "").replace("<pad>", "")
    pads, start, end = "<|video_pad|>" * 2, "<|vision_start|>", "<|vision_end|>"
    # Nine frames are five temporal patches, of two frames each: the first two share a timestamp.
    assert text == "".join(f"<{time}seconds>{start}{pads}{end}" for time in (0.5, 4.5, 8.0)) + "here"


def test_images_beside_videos():
    for name in ("InternVL", "Qwen3-VL"):
        processor = region_processor(PROCESSORS[name](), num_regions=8, video_num_regions=5)
        given = batch_of(name, processor, frames=(9,))
        image = "<|vision_start|><|image_pad|><|vision_end|>" if name == "Qwen3-VL" else "<IMG_CONTEXT>"
        given["text"] = [f"{image} and {text_of(name, processor)}"]
        model = with_regions(CASES[name].make(), num_regions=8, video_num_regions=5)
        inputs = processor(images=[video(1)[0]], **given)
        found = model.expand(**inputs)
        assert (found.counts, found.videos.counts) == ([min(8, found.counts[0])], [5])
        assert torch.equal(found.inputs["input_ids"], inputs["input_ids"])
        model.generate(**inputs, **GREEDY)
