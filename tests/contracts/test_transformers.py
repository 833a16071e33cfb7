"""The names inside transformers that the adapters depend on exist in the installed version."""

import inspect
import re

import pytest
import transformers
from transformers import processing_utils

from regiontok.adapters.huggingface import FAMILIES, region_processor
from regiontok.adapters.huggingface import _transformers as names
from regiontok.adapters.huggingface.families.tiles import TypedFramesMixin
from tests.processors import PROCESSORS
from tests.video_processors import PROCESSORS as VIDEO_PROCESSORS


@pytest.mark.parametrize(("owner", "methods"), names.METHODS.items())
def test_methods_exist(owner, methods):
    assert [name for name in methods if not callable(getattr(getattr(transformers, owner), name, None))] == []


@pytest.mark.parametrize(("owner", "option"), [*names.TILING_OPTIONS.items(), *names.MERGING_OPTIONS.items()])
def test_options_of_image_processors_exist(owner, option):
    assert hasattr(getattr(transformers, owner)(), option)


def test_block_formats_are_of_processors_and_give_the_length_of_a_tile():
    processors = {type(processor).__name__: processor for processor in (make() for make in PROCESSORS.values())}
    assert names.BLOCK_FORMATS.keys() <= processors.keys()
    for owner, block_format in names.BLOCK_FORMATS.items():
        assert region_processor(processors[owner], num_regions=4).block_format is block_format
        if block_format.kind in ("stitched", "joined", "per_tile"):
            assert block_format.tile_length(processors[owner]) == 4, owner


def test_video_formats_are_of_processors_and_agree_with_the_models():
    processors = {type(processor).__name__: processor for processor in (make() for make in VIDEO_PROCESSORS.values())}
    assert names.VIDEO_FORMATS.keys() <= processors.keys()
    for owner, video_format in names.VIDEO_FORMATS.items():
        assert region_processor(processors[owner], num_regions=4).video_format is video_format
        if video_format.closing is not None:
            assert isinstance(video_format.closing(processors[owner]), str)
    for family in FAMILIES:
        if family.title in VIDEO_PROCESSORS:
            video_format = names.find_video_format(type(VIDEO_PROCESSORS[family.title]()))
            assert video_format.per_frame == family.mixin.has_frame_blocks
            assert video_format.newlines == family.mixin.video_newlines
            assert video_format.has_frame_tokens == family.mixin.has_frame_tokens
            assert video_format.as_images == issubclass(family.mixin, TypedFramesMixin)


def test_functions_for_tiles():
    for owner in ("GotOcr2ImageProcessor", "Cohere2VisionImageProcessor"):
        choose_tiles = names.find_tile_chooser(getattr(transformers, owner)())
        assert tuple(choose_tiles((50, 100), (56, 56), 1, 4)) == (2, 1)  # columns, rows
    assert tuple(names.select_best_resolution([50, 100], [[56, 112], [112, 56]])) == (56, 112)
    assert names.default_image_options(PROCESSORS["InternVL"]())["crop_to_patches"]


def test_the_error_of_truncated_prompts():
    assert names.TRUNCATED in inspect.getsource(processing_utils)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_classes_and_arguments_of_a_family(family):
    stock = getattr(transformers, family.stock)
    inner = names.find_inner_class(stock, family.name)
    assert issubclass(inner, transformers.PreTrainedModel)
    assert all(names.ENCODER_OUTPUTS in inspect.signature(model.forward).parameters for model in (stock, inner))
    assert any(name in inspect.signature(stock.forward).parameters for name in names.CACHES)
    assert callable(inner.get_image_features)
    assert family.name == "FastVlm" or stock.config_class.model_type in names.PROCESSOR_NAMES
    if "Qwen3VL" in family.name:
        assert {"pooler_output", "deepstack_features"} <= set(dir(names.find_deepstack_output(inner)))


def test_renaming_rules_do_not_match_the_regionizer():
    for name in ("Qwen2VLModel", "Qwen2VLForConditionalGeneration", "llava"):
        for rule in map(names.exclude_regionizer, names.get_renaming_rules(name)):
            for key in ("model.regionizer.pool.out.weight", "regionizer.pool.out.weight"):
                assert not any(re.search(pattern, key) for pattern in rule.source_patterns), name
    assert "output_attentions" in names.FORWARD_KWARGS
