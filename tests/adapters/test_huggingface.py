"""The promises of every family; its own are in test_families.py."""

import inspect
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import (
    AutoConfig,
    AutoProcessor,
    DynamicCache,
    GenerationConfig,
    LlavaForConditionalGeneration,
    TextStreamer,
    pipeline,
)

from regiontok import ImageGeometry, MaskSet, Regionizer
from regiontok.adapters.huggingface import (
    RegionLlavaForConditionalGeneration,
    geometry_of,
    with_regions,
    without_regions,
)
from regiontok.errors import CheckpointError, DTypeError, MissingDependencyError, ShapeError, ValueRangeError
from tests.conftest import assert_close
from tests.families import expanded_logits
from tests.models import IMAGE, PAD, tiny_llava, tiny_processor

PIXELS = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(1))
CACHE = "cache" if "cache" in inspect.signature(LlavaForConditionalGeneration.forward).parameters else "past_key_values"
IDENTITY = {"source": "patch", "pool": "mean", "norm": "none"}


@pytest.fixture(scope="module")
def stock():
    return tiny_llava()


def prompts(rows, *, run=1, left=False):
    """Ids and mask of rows of words, where None stands for an image."""
    rows = [[one for word in row for one in ([word] if word else [IMAGE] * run)] for row in rows]
    width = max(len(row) for row in rows)
    padded = [[PAD] * (width - len(row)) * left + row + [PAD] * (width - len(row)) * (not left) for row in rows]
    ids = torch.tensor(padded)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


ROWS = [[5, None, 7, None, 8], [6, 7], [3, None, 4]]
"""Two images, none, and one."""


def clustered(stock, **options):
    return with_regions(
        stock, Regionizer(**({"source": "clustering", "dim": 32, "num_heads": 4, "threshold": 0.3} | options))
    )


def lively(model, seed=0):
    """A pool that is more than the mean."""
    torch.manual_seed(seed)
    torch.nn.init.normal_(model.regionizer.pool.out.weight, std=0.3)
    return model


def test_a_budget_may_be_one_per_image_and_is_known_before(stock):
    model = with_regions(stock, Regionizer(**IDENTITY | {"source": "clustering"}))
    given, budgets = prompts(ROWS), [3, 40, 7]
    told = model.num_tokens(images=3, num_regions=budgets)
    assert told == [3, 16, 7]
    prepared = model.expand(**given, pixel_values=PIXELS, num_regions=torch.tensor(budgets))
    assert prepared.regions.counts.tolist() == told
    assert [len(one) for one in model.encode_regions(PIXELS, num_regions=budgets).split()] == told
    batched = expanded_logits(model, **given, pixel_values=PIXELS, num_regions=budgets)[
        prepared.inputs["attention_mask"].bool()
    ]
    alone = [expanded_logits(model, **prompts([row]), pixel_values=PIXELS[part], num_regions=budgets[part])[0] if len(PIXELS[part])
             else model(**prompts([row])).logits[0]
             for row, part in zip(ROWS, (slice(0, 2), slice(0, 0), slice(2, 3)), strict=True)]  # fmt: skip
    assert_close(batched, torch.cat(alone))
    made = model.generate(**given, pixel_values=PIXELS, num_regions=budgets, max_new_tokens=3, do_sample=False)
    first = model.generate(
        **prompts([ROWS[2]]), pixel_values=PIXELS[2:], num_regions=7, max_new_tokens=3, do_sample=False
    )
    assert torch.equal(made[2, -3:], first[0, -3:])
    with pytest.raises(ShapeError, match="num_regions must be one number, or one per image, 3; got 2 of them"):
        model(**given, pixel_values=PIXELS, num_regions=[3, 4])


def test_counts_are_told_from_sizes_where_the_geometry_pads(stock):
    sizes = [(40, 40), (14, 56), (30, 90)]
    for padding in ("drop", "keep"):
        options = {
            "source": "clustering",
            "geometry": ImageGeometry.letterbox(56),
            "num_regions": 10,
            "padding": padding,
        }
        model = with_regions(stock, Regionizer(**IDENTITY | options))
        told = model.num_tokens(torch.tensor(sizes))
        assert told == model.encode_regions(PIXELS, image_sizes=sizes).counts.tolist()
    assert told == [10, 10, 10]
    patches = with_regions(stock, Regionizer(**IDENTITY, geometry=ImageGeometry.letterbox(56)))
    assert patches.num_tokens(sizes) == patches.encode_regions(PIXELS, image_sizes=sizes).counts.tolist()
    with pytest.raises(ValueRangeError, match="threshold makes as many regions as the features ask for"):
        clustered(stock).num_tokens(sizes)
    for given, message in (
        ({}, "how many tokens there are depends on the images. Pass image_sizes, or images"),
        ({"image_sise": sizes}, "num_tokens takes no image_sise. Leave it out."),
        ({"images": 0}, "images must be at least 1; got 0"),
        ({"images": 2.0}, "images must be a whole number; got 2.0"),
        ({"image_sizes": sizes, "images": 2}, "images must be as many as image_sizes, 3; got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            model.num_tokens(**given)


def test_a_budget_without_images_is_refused(stock):
    model, text = clustered(stock), prompts([[5, 6]])
    for call in (model, model.generate):
        with pytest.raises(ValueRangeError, match="there is a budget of tokens for images and no pixel_values"):
            call(**text, num_regions=5)


def test_an_untrained_cross_attention_pool_over_single_patches_changes_nothing(stock):
    model = with_regions(stock, Regionizer(**IDENTITY | {"pool": "cross_attention", "dim": 32, "num_heads": 4}))
    written = prompts(ROWS, run=16)
    assert_close(model(**written, pixel_values=PIXELS).logits, stock(**written, pixel_values=PIXELS).logits)


def test_labels_are_those_of_the_words_and_none_of_regions(stock):
    model = with_regions(stock, Regionizer(**IDENTITY))
    written, single = prompts(ROWS, run=16), prompts(ROWS)
    expected = stock(
        **written,
        pixel_values=PIXELS,
        labels=written["input_ids"]
        .masked_fill(written["input_ids"] == IMAGE, -100)
        .masked_fill(written["input_ids"] == PAD, -100),
    )
    labels = single["input_ids"].masked_fill(single["input_ids"] == PAD, -100)
    assert torch.equal(model(**single, pixel_values=PIXELS, labels=labels).loss, expected.loss)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2},
        {"cache_implementation": "static"},
    ],
    ids=str,
)
def test_generation_in_a_batch_is_that_of_one_by_one_and_follows_the_callers_prompt(stock, options):
    model = lively(clustered(stock))
    settings = {"max_new_tokens": 5, "do_sample": False} | options
    many = settings.get("num_return_sequences", 1)
    for run in (1, 16):
        given = prompts(ROWS, run=run, left=True)
        together = model.generate(**given, pixel_values=PIXELS, **settings)
        assert torch.equal(together[:, : given["input_ids"].shape[1]], given["input_ids"].repeat_interleave(many, 0))
        for row, images in enumerate(([0, 1], [], [2])):
            alone = prompts([ROWS[row]], run=run)
            one = model.generate(**alone, **({"pixel_values": PIXELS[images]} if images else {}), **settings)
            new = one[:, alone["input_ids"].shape[1] :]
            assert torch.equal(
                together[row * many : (row + 1) * many, given["input_ids"].shape[1] :][:, : new.shape[1]], new
            )


def test_generation_equals_choosing_the_best_token_again_and_again(stock):
    model = lively(clustered(stock))
    ids = prompts([ROWS[0]])["input_ids"]
    for _ in range(4):
        ids = torch.cat([ids, expanded_logits(model, input_ids=ids, pixel_values=PIXELS[:2])[:, -1:].argmax(-1)], 1)
    made = model.generate(**prompts([ROWS[0]]), pixel_values=PIXELS[:2], max_new_tokens=4, do_sample=False)
    assert torch.equal(made, ids)


def test_other_ways_to_generate(stock):
    model = lively(clustered(stock))
    given = prompts([ROWS[0]])
    settings = {"pixel_values": PIXELS[:2], "do_sample": False}
    expected = model.generate(**given, **settings, max_new_tokens=4)
    assert torch.equal(model.generate(given["input_ids"], **settings, max_new_tokens=4), expected)
    config = GenerationConfig(max_new_tokens=4, do_sample=False, pad_token_id=PAD)
    assert torch.equal(model.generate(given["input_ids"], config, pixel_values=PIXELS[:2]), expected)
    assert torch.equal(model.generate(**given, **settings, max_length=5 + 4), expected)
    config = GenerationConfig(max_length=9, do_sample=False, pad_token_id=PAD)
    assert torch.equal(model.generate(**given, pixel_values=PIXELS[:2], generation_config=config), expected)
    assert config.max_length == 9
    model.generation_config = GenerationConfig(max_length=9, min_length=7, pad_token_id=PAD)
    assert torch.equal(model.generate(**given, **settings), expected)
    model.generation_config = stock.generation_config
    told = model.generate(**given, **settings, max_new_tokens=4, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(told.sequences, expected)
    assert len(told.scores) == 4


def test_forward_has_the_stock_classs_arguments_and_generation_uses_them(stock):
    """Else the whole prompt's logits are computed where its last ones are wanted."""
    model = clustered(stock)
    own, theirs = (list(inspect.signature(one.forward).parameters) for one in (model, stock))
    assert [name for name in own if name in theirs] == theirs
    assert set(own) - set(theirs) == {"masks", "num_regions", "keep"}  # image_sizes both have
    assert model._supports_logits_to_keep()
    assert not hasattr(type(model).forward, "__wrapped__")
    rows = []
    hook = model.lm_head.register_forward_hook(lambda _, __, logits: rows.append(logits.shape[1]))
    model.generate(**prompts([ROWS[0]]), pixel_values=PIXELS[:2], max_new_tokens=2)
    hook.remove()
    assert rows == [1, 1]
    given, model = prompts([ROWS[0]], run=16), with_regions(stock, Regionizer(**IDENTITY))
    named = model(input_ids=given["input_ids"], pixel_values=PIXELS[:2], attention_mask=given["attention_mask"])
    assert torch.equal(model(given["input_ids"], PIXELS[:2], given["attention_mask"]).logits, named.logits)


def test_streamed_tokens_are_the_new_ones(stock, capsys):
    model, processor = lively(clustered(stock)), tiny_processor()
    given = prompts([ROWS[0]])
    made = model.generate(
        **given,
        pixel_values=PIXELS[:2],
        do_sample=False,
        max_new_tokens=3,
        streamer=TextStreamer(processor.tokenizer, skip_prompt=True),
    )
    assert capsys.readouterr().out.split() == processor.tokenizer.decode(made[0, 5:]).split()


def test_processors_and_the_pipeline_work_as_they_are(stock, tmp_path):
    model = lively(clustered(stock))
    tiny_processor().save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    images = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (60, 90, 3), dtype=np.uint8)) for seed in (0, 1)
    ]
    inputs = processor(images=images, text=["w5 <image> w6", "w7 w8 <image> w9 w3"], return_tensors="pt", padding=True)
    assert (inputs["input_ids"] == IMAGE).sum() == 32
    made = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    new = processor.batch_decode(made[:, inputs["input_ids"].shape[1] :])
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    for image, text, expected in zip(images, ("w5 {} w6", "w7 w8 {} w9 w3"), new, strict=True):
        before, after = text.split(" {} ")
        content = [{"type": "text", "text": before}, {"type": "image", "image": image}, {"type": "text", "text": after}]
        told = pipe([{"role": "user", "content": content}], max_new_tokens=3, return_full_text=False, do_sample=False)
        assert told[0]["generated_text"].split() == expected.split()
    assert geometry_of(processor) == ImageGeometry.center_crop(56)


def test_masks_become_the_tokens_of_their_images(stock):
    model = with_regions(
        stock, Regionizer(source="segmentation", pool="mean", norm="none", geometry=ImageGeometry.squash(56))
    )
    left, top = np.zeros((1, 30, 40), bool), np.zeros((2, 20, 20), bool)
    left[:, :, :20] = True
    top[0, :10], top[1, 10:] = True, True
    tokens = model.encode_regions(PIXELS[:2], masks=[left, MaskSet.from_masks(top)])
    assert tokens.counts.tolist() == [1, 2]
    given = prompts([[5, None], [6, None, 3]]) | {"pixel_values": PIXELS[:2], "masks": [left, top]}
    assert expanded_logits(model, **given, image_sizes=[(30, 40), (20, 20)]).shape[1] == 4
    made = model.generate(
        **prompts([[5, None, 3], [6, None, 3]]), pixel_values=PIXELS[:2], masks=[left, top], max_new_tokens=2
    )
    assert made.shape == (2, 5)
    with pytest.raises(ShapeError, match=r"masks\[1\]: masks must be of their image's size \(20, 21\); got \(20, 20\)"):
        model(
            **prompts([[None], [None]]),
            pixel_values=PIXELS[:2],
            masks=[left, top],
            image_sizes=torch.tensor([[30, 40], [20, 21]]),
        )


def test_masks_of_padded_images_need_sizes(stock):
    geometry = ImageGeometry.letterbox(56)
    model = with_regions(stock, Regionizer(source="segmentation", pool="mean", geometry=geometry))
    half = np.zeros((1, 20, 40), bool)
    half[:, :, :20] = True
    with pytest.raises(ValueRangeError, match="masks of images that are padded need image_sizes"):
        model.encode_regions(PIXELS[:1], masks=[half])
    assert model.encode_regions(PIXELS[:1], masks=[half], image_sizes=[(20, 40)]).counts.tolist() == [1]
    assert model.encode_regions(PIXELS[:1], masks=[MaskSet.on_grid(torch.ones(2, 4, 4))]).counts.tolist() == [2]


def test_sizes_of_images_keep_padding_out_of_regions(stock):
    model = with_regions(stock, Regionizer(source="patch", pool="mean", geometry=ImageGeometry.letterbox(56)))
    assert model.encode_regions(PIXELS[:2]).counts.tolist() == [16, 16]
    assert model.encode_regions(PIXELS[:2], image_sizes=[(20, 40), (30, 30)]).counts.tolist() == [8, 16]
    without = with_regions(stock, Regionizer(source="patch", pool="mean"))
    assert without.encode_regions(PIXELS[:2], image_sizes=[(20, 40), (30, 30)]).counts.tolist() == [16, 16]


def test_saved_and_loaded_it_is_the_same(stock, tmp_path):
    model = lively(clustered(stock, order="random"))
    torch.manual_seed(3)
    expected = expanded_logits(model, **prompts(ROWS), pixel_values=PIXELS)
    model.save_pretrained(tmp_path)
    loaded, report = RegionLlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert loaded.config.regiontok == model.regionizer.config.to_dict()
    torch.manual_seed(3)
    assert torch.equal(expanded_logits(loaded, **prompts(ROWS), pixel_values=PIXELS), expected)


@pytest.mark.parametrize("load", [True, False])
def test_new_weights_start_as_a_regionizer_does(stock, tmp_path, load):
    config = clustered(stock, order="random").config
    if load:
        stock.save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match="lacks 7 weights"):  # a config alone does not say they are new
            RegionLlavaForConditionalGeneration.from_pretrained(tmp_path, config=config)
        regionizer = Regionizer.from_config(config.regiontok)
        model = RegionLlavaForConditionalGeneration.from_pretrained(tmp_path, regionizer=regionizer)
    else:
        model = RegionLlavaForConditionalGeneration(config)
    pool = model.regionizer.pool
    assert not pool.out.weight.any()
    assert 0.1 < pool.query.weight.std() < 0.3


def test_hooks_of_accelerate_go_along(stock):
    hooks = pytest.importorskip("accelerate.hooks", reason="accelerate is not installed")
    hooked = tiny_llava()
    hooks.add_hook_to_module(hooked, hooks.AlignDevicesHook("cpu"))
    model = clustered(hooked)
    assert torch.equal(
        expanded_logits(model, **prompts(ROWS), pixel_values=PIXELS),
        expanded_logits(clustered(stock), **prompts(ROWS), pixel_values=PIXELS),
    )
    assert model.forward.args[0] is model


def test_text_alone_reaches_every_weight_beside_an_empty_cache_too():
    model = clustered(tiny_llava()).train()
    ids = torch.tensor([[5, 6, 7]])
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # by version
    model(input_ids=ids, labels=ids, **{name: DynamicCache()}).loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad is not None


@pytest.mark.parametrize("labelled", [True, False])
def test_a_batch_of_text_alone_reaches_every_weight_and_changes_no_value(stock, labelled):
    model = lively(clustered(tiny_llava()))
    given = prompts([[5, 6, 7]])
    labels = given["input_ids"] if labelled else None
    expected = stock(**given, labels=labels)
    output = model.train()(**given, labels=labels)
    assert_close(output.logits, expected.logits)
    (output.loss if labelled else output.logits.sum()).backward()
    for name, parameter in model.named_parameters():
        if "regionizer" in name or "projector" in name:
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name
    assert torch.equal(model(**given, labels=labels, return_dict=False)[labelled], output.logits)
    model.requires_grad_(False)
    assert torch.equal(model(**given).logits, output.logits)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"pixel_values": PIXELS[:2]}, ShapeError, r"the prompts hold blocks of \[1, 1, 1\] placeholders; the images have"),
        ({"pixel_values": PIXELS, "position_ids": torch.ones(3, 5)}, ShapeError, "the prompts hold blocks of"),
        ({"pixel_values": PIXELS, "input_ids": None}, ValueRangeError, "pixel_values need input_ids"),
        ({"pixel_values": [1]}, DTypeError, "pixel_values must be a tensor, as the processor returns it; got list"),
        ({"pixel_values": PIXELS[None]}, ShapeError, r"pixel_values must be \(images, 3, height, width\); got \(1, 3, 3, 56, 56\)"),
        ({"pixel_values": PIXELS, CACHE: DynamicCache()}, ShapeError, "the prompts hold blocks of"),
        ({"pixel_values": PIXELS, "vision_feature_layer": -1}, ValueRangeError, "vision_feature_layer is the config's, for which the regions are made; got -1"),
        ({}, ShapeError, "the samples hold 3 placeholders of images, and no pixel_values came"),
        ({"pixel_values_videos": PIXELS}, ValueRangeError, "videos are not cut into regions"),
        ({"masks": [np.ones((1, 9, 9), bool)]}, ValueRangeError, "there are masks of 1 images and no pixel_values"),
        ({"pixel_values": PIXELS, "image_sizes": [3, 4, 5]}, ShapeError, r"image_sizes\[0\] must be \(height, width\); got 3"),
        ({"pixel_values": PIXELS, "image_sizes": [(3, 4)]}, ShapeError, "image_sizes must have one entry per image, 3; got 1"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_and_named(stock, given, error, message):
    model = clustered(stock, geometry=ImageGeometry.squash(56))
    with pytest.raises(error, match=message):
        model(**(prompts(ROWS) | given))
    with pytest.raises(error, match=message):
        model.generate(**(prompts(ROWS) | given), max_new_tokens=1)


def test_models_that_cannot_have_regions_are_refused_by_name(stock, monkeypatch):
    def of(name):
        return type(name, (), {})()

    for name, message in (
        ("LlavaNextVideoForConditionalGeneration", "cannot have region tokens: it is made for videos"),
        ("Ovis2ForConditionalGeneration", "it puts features of visual indicators among those of the patches"),
        ("Mistral3ForConditionalGeneration", "its prompts end every row of patches with a token"),
        ("MambaForCausalLM", "there is no adapter for MambaForCausalLM. Use one of LlavaForConditionalGeneration"),
    ):
        with pytest.raises(ValueRangeError, match=message):
            with_regions(of(name), Regionizer(**IDENTITY))
        if name != "MambaForCausalLM":
            assert hasattr(transformers, name)
    with pytest.raises(DTypeError, match="regionizer must be a Regionizer; got str"):
        with_regions(stock, "clustering")
    with pytest.raises(DTypeError, match="model must be one that with_regions made"):
        without_regions(stock)
    with pytest.raises(ShapeError, match="the Regionizer is for features of dimension 64; this model's are of 32"):
        clustered(stock, dim=64)
    monkeypatch.setattr(LlavaForConditionalGeneration, "forward", lambda self, input_ids: None)
    with pytest.raises(
        MissingDependencyError, match="is too old: LlavaForConditionalGeneration takes no mm_encoder_outputs"
    ):
        with_regions(stock, Regionizer(**IDENTITY))


def test_a_checkpoint_of_another_encoder_width_is_refused(stock, tmp_path):
    clustered(stock).save_pretrained(tmp_path)
    with pytest.raises(ShapeError, match="the Regionizer is for features of dimension 48; this model's are of 32"):
        RegionLlavaForConditionalGeneration.from_pretrained(tmp_path, regionizer=Regionizer(dim=48))


def test_several_threads_may_share_a_model(stock):
    model = lively(clustered(stock))
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: expanded_logits(model, **prompts(ROWS), pixel_values=PIXELS), range(8)))
    assert all(torch.equal(one, made[0]) for one in made)


def test_options_of_a_config_are_set_in_every_way_to_load(stock, tmp_path):
    clustered(stock).save_pretrained(tmp_path)
    for given in ({}, {"config": tmp_path}, {"config": AutoConfig.from_pretrained(tmp_path)}):
        loaded = RegionLlavaForConditionalGeneration.from_pretrained(tmp_path, vision_feature_layer=-1, **given)
        assert loaded.config.vision_feature_layer == -1
        assert loaded.regionizer.config == clustered(stock).regionizer.config
