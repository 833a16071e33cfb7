import json
import sys

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from regiontok import ImageGeometry, MaskSet, Regionizer, Regions
from regiontok.adapters.huggingface import with_regions
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from regiontok.evaluation.focus import FocusMeter, RegionAttention, answer_attention, target_regions
from tests.conftest import assert_close, for_each
from tests.families import CASES
from tests.models import IMAGE, tiny_llava

PIXELS = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(1))
IDS = torch.tensor([[5, IMAGE, 6, 7, 8, 9], [5, IMAGE, 3, IMAGE, 4, 2], [1, IMAGE, 7, 0, 0, 0]])
MASK = (IDS != 0).long()
ANSWER = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0]]).bool()
PIXELS = torch.randn(4, 3, 56, 56, generator=torch.Generator().manual_seed(1))
SEEN = {"input_ids": IDS, "attention_mask": MASK, "pixel_values": PIXELS}


def attend_from_a_mask_of_padding(module, query, key, value, mask, scaling=None, **_):
    """Attention with the mask of flash attention: None, or padding only."""
    length = query.shape[2]
    allowed = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    if mask is not None:
        allowed = allowed & mask[:, None, None, :].bool()
    allowed = allowed | torch.eye(length, dtype=torch.bool)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, allowed, scale=scaling).transpose(
        1, 2
    ), None


AttentionInterface.register("like_flash", attend_from_a_mask_of_padding)
AttentionMaskInterface.register("like_flash", flash_attention_mask)


def regions_of(stock, implementation="sdpa", dim=32):
    model = with_regions(stock, Regionizer(dim=dim, num_heads=4, threshold=0.3))
    model.config.get_text_config()._attn_implementation = implementation
    return model


def by_full_maps(model, query, **inputs):
    """Return the weights of `answer_attention` from full maps of eager attention, by definition."""
    model.config.get_text_config()._attn_implementation = "eager"
    prepared = model.expand(**inputs)
    maps = torch.stack(model(**prepared.inputs, output_attentions=True).attentions, 1)  # (B, layers, heads, L, L)
    answers = prepared.layout.put(ANSWER.long(), 0).bool()
    found = []
    for sample in range(len(IDS)):
        rows = answers[sample].nonzero().squeeze(1) - int(query == "predicting")
        columns = (prepared.inputs["input_ids"][sample] == IMAGE).nonzero().squeeze(1)
        found.append(maps[sample][:, :, rows][..., columns].mean(2))
    return found


@for_each(query=["answer", "predicting"], implementation=["sdpa", "eager", "like_flash"])
def test_attention_equals_full_maps(implementation, query):
    stock = tiny_llava()
    found = answer_attention(regions_of(stock, implementation), ANSWER, query=query, **SEEN)
    assert found.images == [[0], [1, 2], [3]]
    counts = found.regions.counts.tolist()
    assert [one.shape for one in found.weights] == [(2, 4, counts[0]), (2, 4, counts[1] + counts[2]), (2, 4, counts[3])]
    for mine, full in zip(found.weights, by_full_maps(regions_of(stock), query, **SEEN), strict=True):
        assert_close(mine, full)
    assert stock.config.get_text_config()._attn_implementation == "eager"  # as it was set last


def test_padding_on_the_left_changes_nothing():
    model = regions_of(tiny_llava())
    expected = answer_attention(model, ANSWER, **SEEN).weights
    flipped = torch.tensor([[5, IMAGE, 6, 7, 8, 9], [5, IMAGE, 3, IMAGE, 4, 2], [0, 0, 0, 1, IMAGE, 7]])
    answer = torch.cat([ANSWER[:2], ANSWER[2:].roll(3, 1)])
    found = answer_attention(
        model, answer, input_ids=flipped, attention_mask=(flipped != 0).long(), pixel_values=PIXELS
    )
    for one, other in zip(found.weights, expected, strict=True):
        assert_close(one, other)


def test_grouped_query_attention_and_two_dimensional_positions():
    grid = torch.tensor([[1, 4, 6], [1, 8, 4], [1, 2, 2], [1, 4, 4]])
    patches = torch.randn(int(grid.prod(1).sum()), 96, generator=torch.Generator().manual_seed(0))
    given = SEEN | {"pixel_values": patches, "image_grid_thw": grid}
    stock = CASES["Qwen2.5-VL"].make()
    found = answer_attention(regions_of(stock, dim=64), ANSWER, **given)
    for mine, full in zip(found.weights, by_full_maps(regions_of(stock, dim=64), "answer", **given), strict=True):
        assert_close(mine, full)


def test_memory_grows_linearly_with_the_sequence():
    """The largest tensor made for the capture, at two lengths of prompt."""
    largest = []
    for words in (100, 400):
        ids = torch.randint(1, 90, (1, words), generator=torch.Generator().manual_seed(0))
        ids[0, 1] = IMAGE
        answer = torch.zeros_like(ids, dtype=torch.bool)
        answer[0, -1] = True
        sizes = []

        class Sizes(TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None, sizes=sizes):
                made = function(*args, **(kwargs or {}))
                if isinstance(made, torch.Tensor) and "focus" in sys._getframe(1).f_code.co_filename:
                    sizes.append(made.numel())
                return made

        with Sizes():
            answer_attention(regions_of(tiny_llava()), answer, input_ids=ids, pixel_values=PIXELS[:1])
        largest.append(max(sizes))
    assert largest[1] / largest[0] < 4, largest


def test_parts_of_an_object_are_united_in_every_mask_format():
    halves = np.zeros((2, 20, 40), bool)
    halves[0, :10, :20], halves[1, 10:, :20] = True, True  # of the first region, each 50 %
    labels = np.where(halves[0], 0, np.where(halves[1], 1, -1))
    masks = MaskSet.from_masks(halves)
    for one in (
        halves,
        halves.view(np.uint8),
        torch.from_numpy(halves),
        torch.from_numpy(halves).byte(),
        labels,
        masks,
        masks.to_coco(),
    ):
        found = target_regions(REGIONS, [one, one], threshold=0.9, geometry=ImageGeometry.squash((20, 40)))
        assert found.int().tolist() == [1, 0, 1, 1, 0, 0], type(one)


def test_config_is_restored_when_a_model_fails():
    model = regions_of(tiny_llava())
    model.lm_head.forward = None
    with pytest.raises(TypeError):
        answer_attention(model, ANSWER, **SEEN)
    assert model.config.get_text_config()._attn_implementation == "sdpa"


REGIONS = Regions.from_labels(torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1]], [[0, 1, 2, 3], [0, 1, 2, 3]]]))


def test_a_region_is_a_target_above_the_threshold_of_coverage():
    image = np.zeros((2, 20, 40), bool)
    image[0, :, :10] = True  # half of the first region
    image[1, :10, 10:15] = True  # and an eighth
    geometry = ImageGeometry.squash((20, 40))
    for threshold, expected in ((0.5, [1, 0, 1, 0, 0, 0]), (0.7, [0, 0, 1, 0, 0, 0]), (0.1, [1, 0, 1, 1, 0, 0])):
        for masks in (image, MaskSet.from_masks(image), MaskSet.from_masks(image).to_coco(), torch.from_numpy(image)):
            found = target_regions(REGIONS, [masks, masks], threshold=threshold, geometry=geometry)
            assert found.int().tolist() == expected, (threshold, type(masks))
    none = MaskSet.from_masks(image[:0])
    assert not target_regions(REGIONS, [none, none], geometry=geometry).any()
    small = image[:, ::2, ::2]
    assert target_regions(REGIONS, [small] * 2, geometry=geometry, sizes=[(20, 40)] * 2).int().tolist() == [
        1,
        0,
        1,
        0,
        0,
        0,
    ]


def test_area_shared_by_two_masks_counts_once():
    image = np.zeros((2, 20, 40), bool)
    image[:, :, :6] = True  # less than a third of the region, twice
    assert not target_regions(REGIONS, [image, image], threshold=0.4, geometry=ImageGeometry.squash((20, 40)))[0]


def test_meter_averages_over_heads_layers_and_questions():
    weights = [torch.tensor([[[0.2, 0.2], [0.0, 0.4]]]), torch.full((1, 2, 4), 0.1)]
    attention = RegionAttention(weights, REGIONS, [[0], [1]], "answer")
    meter = FocusMeter(threshold=0.3)
    meter.add(attention, torch.tensor([True, False, False, False, False, True]))
    meter.add(attention, torch.tensor([False] * 5 + [True]))
    result = meter.result()
    assert (result.questions, result.without_target) == (3, 1)
    assert result.focus == pytest.approx(0.1)
    assert result.share == pytest.approx(0.25)
    assert result.chance == pytest.approx((0.5 + 0.25 + 0.25) / 3)
    told = json.loads(json.dumps(result.to_dict()))
    assert (told["query"], told["threshold"], told["layers"], told["heads"]) == ("answer", 0.3, None, None)
    one_head = FocusMeter(heads=[1], layers=[0])
    one_head.add(attention, torch.tensor([False, True, False, False, False, True]))
    assert one_head.result().focus == pytest.approx((0.4 + 0.1) / 2)
    none = FocusMeter()
    none.add(attention._replace(weights=[torch.zeros(1, 1, 2), torch.zeros(1, 1, 4)]), torch.ones(6, dtype=torch.bool))
    assert (none.result().focus, none.result().share) == (0, 0)
    with pytest.raises(ValueRangeError, match="query must be 'answer', as in earlier batches; got 'predicting'"):
        meter.add(attention._replace(query="predicting"), torch.ones(6, dtype=torch.bool))


def test_flex_attention_is_an_error():
    model = regions_of(tiny_llava(), "flex_attention")
    with pytest.raises(ValueRangeError, match="focus does not support flex_attention"):
        answer_attention(model, ANSWER, **SEEN)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda model: answer_attention(model, ANSWER[:, :2], **SEEN), ShapeError, r"answer must be \(3, 6\) bool"),
        (lambda model: answer_attention(model, ANSWER.long(), **SEEN), ShapeError, "like input_ids; got .* of torch.int64"),
        (lambda model: answer_attention(model, ANSWER & (IDS != 2), **SEEN), ValueRangeError, "answer must have a token in every sample; sample 1 has none"),
        (lambda model: answer_attention(model, ANSWER, query="all", **SEEN), ValueRangeError, "query must be one of 'answer', 'predicting'"),
        (lambda model: answer_attention(torch.nn.Linear(1, 1), ANSWER, **SEEN), DTypeError, "model must have region tokens; got Linear"),
        (lambda _: target_regions(REGIONS, []), ShapeError, "objects must have one entry per image, 2; got 0"),
        (lambda _: target_regions(REGIONS, [MaskSet.on_grid(torch.ones(1, 2, 4))] * 2, threshold=2), ValueRangeError, "threshold must be in"),
        (lambda _: FocusMeter().result(), ValueRangeError, "no question has a target region; 0 were skipped"),
        (lambda _: FocusMeter().add(RegionAttention([], REGIONS, [], "answer"), torch.ones(3)), ShapeError, r"targets must be \(6,\)"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(regions_of(tiny_llava()))
