"""Properties of all families, tested with LLaVA; test_families.py has those of single families."""

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
from tests.models import IDENTITY, IMAGE, PAD, region_model, tiny_llava, tiny_processor

PIXELS = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(1))
CACHE = "cache" if "cache" in inspect.signature(LlavaForConditionalGeneration.forward).parameters else "past_key_values"


@pytest.fixture(scope="module")
def stock():
    return tiny_llava()


def prompts(rows, *, run=1, left=False):
    """Return ids and mask of rows of words, where None is an image."""
    rows = [[one for word in row for one in ([word] if word else [IMAGE] * run)] for row in rows]
    width = max(len(row) for row in rows)
    padded = [[PAD] * (width - len(row)) * left + row + [PAD] * (width - len(row)) * (not left) for row in rows]
    ids = torch.tensor(padded)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


ROWS = [[5, None, 7, None, 8], [6, 7], [3, None, 4]]
"""Two images, none, and one."""


def clustered(stock, **options):
    """Regions of an untrained pool, whose number depends on the features."""
    return with_regions(stock, Regionizer(**{"dim": 32, "num_heads": 4, "threshold": 0.3} | options))


@pytest.fixture(scope="module")
def model(stock):
    """Regions of a trained pool, whose number depends on the features; no test may change it."""
    return region_model(stock, num_regions=None, threshold=0.3)


def test_budgets_per_image_and_num_tokens(stock):
    model = with_regions(stock, Regionizer(**IDENTITY | {"source": "clustering"}))
    given, budgets = prompts(ROWS), [3, 40, 7]
    told = model.num_tokens(num_images=3, num_regions=budgets)
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
    with pytest.raises(ShapeError, match="num_regions must be one number or a list of length 3 .*; got length 2"):
        model(**given, pixel_values=PIXELS, num_regions=[3, 4])


def test_num_tokens_from_sizes_with_padding(stock):
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
    patches = with_regions(stock, Regionizer(**IDENTITY | {"padding": "drop"}, geometry=ImageGeometry.letterbox(56)))
    assert patches.num_tokens(sizes) == patches.encode_regions(PIXELS, image_sizes=sizes).counts.tolist()
    with pytest.raises(ValueRangeError, match="the number of regions by threshold depends on the features"):
        clustered(stock).num_tokens(sizes)
    for given, message in (
        ({}, "the number of tokens depends on the images. Pass image_sizes, or num_images"),
        ({"image_sise": sizes}, "num_tokens takes no image_sise. Leave it out."),
        ({"num_images": 0}, "num_images must be at least 1; got 0"),
        ({"num_images": 2.0}, "num_images must be a whole number; got 2.0"),
        ({"image_sizes": sizes, "num_images": 2}, "num_images must be the number of image_sizes, 3; got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            model.num_tokens(**given)


def test_a_budget_without_images_is_rejected(stock):
    model, text = clustered(stock), prompts([[5, 6]])
    for call in (model, model.generate):
        with pytest.raises(ValueRangeError, match="there is a budget of tokens for images and no pixel_values"):
            call(**text, num_regions=5)


def test_an_untrained_cross_attention_pool_over_single_patches_equals_the_stock_model(stock):
    model = with_regions(stock, Regionizer(**IDENTITY | {"pool": "cross_attention", "dim": 32, "num_heads": 4}))
    written = prompts(ROWS, run=16)
    assert_close(model(**written, pixel_values=PIXELS).logits, stock(**written, pixel_values=PIXELS).logits)


def test_batched_generation_equals_single_samples_and_returns_the_prompt(subtests, model):
    """By options beyond those of the families' tests."""
    for options in (
        {"use_cache": False},
        {"num_beams": 2, "num_return_sequences": 2},
        {"cache_implementation": "static"},
    ):
        settings = {"max_new_tokens": 5, "do_sample": False} | options
        many = settings.get("num_return_sequences", 1)
        for run in (1, 16):
            with subtests.test(str(options), run=run):
                given = prompts(ROWS, run=run, left=True)
                together = model.generate(**given, pixel_values=PIXELS, **settings)
                width = given["input_ids"].shape[1]
                assert torch.equal(together[:, :width], given["input_ids"].repeat_interleave(many, 0))
                for row, images in enumerate(([0, 1], [], [2])):
                    alone = prompts([ROWS[row]], run=run)
                    one = model.generate(**alone, **({"pixel_values": PIXELS[images]} if images else {}), **settings)
                    new = one[:, alone["input_ids"].shape[1] :]
                    assert torch.equal(together[row * many : (row + 1) * many, width:][:, : new.shape[1]], new)


def test_generation_equals_greedy_forward_calls(model):
    ids = prompts([ROWS[0]])["input_ids"]
    for _ in range(4):
        ids = torch.cat([ids, expanded_logits(model, input_ids=ids, pixel_values=PIXELS[:2])[:, -1:].argmax(-1)], 1)
    made = model.generate(**prompts([ROWS[0]]), pixel_values=PIXELS[:2], max_new_tokens=4, do_sample=False)
    assert torch.equal(made, ids)


def test_arguments_of_generate(stock):
    model = region_model(stock, num_regions=None, threshold=0.3)
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


def test_forward_has_the_arguments_of_the_stock_class(stock):
    """Otherwise generation would compute the logits of the whole prompt."""
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


def test_a_streamer_gets_the_new_tokens_only(model, capsys):
    processor = tiny_processor()
    given = prompts([ROWS[0]])
    made = model.generate(
        **given,
        pixel_values=PIXELS[:2],
        do_sample=False,
        max_new_tokens=3,
        streamer=TextStreamer(processor.tokenizer, skip_prompt=True),
    )
    assert capsys.readouterr().out.split() == processor.tokenizer.decode(made[0, 5:]).split()


def test_stock_processors_and_pipelines(model, tmp_path):
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


def test_masks_become_tokens(stock):
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
    with pytest.raises(ValueRangeError, match="masks of padded images need image_sizes"):
        model.encode_regions(PIXELS[:1], masks=[half])
    assert model.encode_regions(PIXELS[:1], masks=[half], image_sizes=[(20, 40)]).counts.tolist() == [1]
    assert model.encode_regions(PIXELS[:1], masks=[MaskSet.on_grid(torch.ones(2, 4, 4))]).counts.tolist() == [2]


def test_image_sizes_exclude_padding_from_regions(stock):
    model = with_regions(stock, Regionizer(source="patch", pool="mean", geometry=ImageGeometry.letterbox(56)))
    assert model.encode_regions(PIXELS[:2]).counts.tolist() == [16, 16]
    assert model.encode_regions(PIXELS[:2], image_sizes=[(20, 40), (30, 30)]).counts.tolist() == [8, 16]
    without = with_regions(stock, Regionizer(source="patch", pool="mean"))
    assert without.encode_regions(PIXELS[:2], image_sizes=[(20, 40), (30, 30)]).counts.tolist() == [16, 16]


@pytest.mark.parametrize("load", [True, False])
def test_new_weights_are_initialized_by_the_regionizer(stock, tmp_path, load):
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


def test_hooks_of_accelerate_are_moved_to_the_region_model(stock):
    hooks = pytest.importorskip("accelerate.hooks", reason="accelerate is not installed")
    hooked = tiny_llava()
    hooks.add_hook_to_module(hooked, hooks.AlignDevicesHook("cpu"))
    model = clustered(hooked)
    assert torch.equal(
        expanded_logits(model, **prompts(ROWS), pixel_values=PIXELS),
        expanded_logits(clustered(stock), **prompts(ROWS), pixel_values=PIXELS),
    )
    assert model.forward.args[0] is model


@pytest.mark.parametrize("options", [{}, {CACHE: DynamicCache}, {"return_dict": False}], ids=["", "cache", "tuple"])
def test_text_without_images_and_labels_gives_zero_gradients_and_the_same_logits(stock, options):
    model = region_model(tiny_llava()).train()
    options = {name: value() if name == CACHE else value for name, value in options.items()}
    given = prompts([[5, 6, 7]])
    logits = model(**given, **options)[0]
    assert_close(logits, stock(**given).logits)
    logits.sum().backward()
    for name, parameter in model.named_parameters():
        if "regionizer" in name or "projector" in name:
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name
    model.requires_grad_(False)
    assert torch.equal(model(**given).logits, logits)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"pixel_values": PIXELS[:2]}, ShapeError, r"the prompts have blocks of \[1, 1, 1\] placeholders; the images have"),
        ({"pixel_values": PIXELS, "position_ids": torch.ones(3, 5)}, ShapeError, "the prompts have blocks of"),
        ({"pixel_values": PIXELS, "input_ids": None}, ValueRangeError, "pixel_values need input_ids"),
        ({"pixel_values": [1]}, DTypeError, "pixel_values must be a tensor, as the processor returns it; got list"),
        ({"pixel_values": PIXELS[None]}, ShapeError, r"pixel_values must be \(images, 3, height, width\); got \(1, 3, 3, 56, 56\)"),
        ({"pixel_values": PIXELS, CACHE: DynamicCache()}, ShapeError, "the prompts have blocks of"),
        ({"pixel_values": PIXELS, "vision_feature_layer": -1}, ValueRangeError, "vision_feature_layer must equal the value in the config; got -1"),
        ({}, ShapeError, "the prompts have 3 image placeholders, and there are no pixel_values"),
        ({"pixel_values_videos": PIXELS}, ValueRangeError, "LlavaForConditionalGeneration does not accept videos"),
        ({"masks": [np.ones((1, 9, 9), bool)]}, ValueRangeError, "there are masks of 1 images and no pixel_values"),
        ({"pixel_values": PIXELS, "image_sizes": [3, 4, 5]}, ShapeError, r"image_sizes\[0\] must be \(height, width\); got 3"),
        ({"pixel_values": PIXELS, "image_sizes": [(3, 4)]}, ShapeError, "image_sizes must have one entry per image, 3; got 1"),
    ],
)  # fmt: skip
def test_invalid_inputs_are_rejected(stock, given, error, message):
    model = clustered(stock, geometry=ImageGeometry.squash(56))
    with pytest.raises(error, match=message):
        model(**(prompts(ROWS) | given))
    with pytest.raises(error, match=message):
        model.generate(**(prompts(ROWS) | given), max_new_tokens=1)


def test_unsupported_models_are_rejected(stock, monkeypatch):
    def of(name):
        return type(name, (), {})()

    for name, message in (
        ("Molmo2ForConditionalGeneration", "cannot have region tokens: its prompts end every row"),
        ("Ovis2ForConditionalGeneration", "it inserts features of visual indicators between patch features"),
        ("Mistral3ForConditionalGeneration", "its prompts end every row of patches with a token"),
        ("MambaForCausalLM", "there is no adapter for MambaForCausalLM. Use one of LlavaForConditionalGeneration"),
    ):
        with pytest.raises(ValueRangeError, match=message):
            with_regions(of(name), Regionizer(**IDENTITY))
        if name != "MambaForCausalLM":
            assert hasattr(transformers, name)
    with pytest.raises(DTypeError, match="regionizer must be a Regionizer; got str"):
        with_regions(stock, "clustering")
    with pytest.raises(DTypeError, match="model must be a region model, as with_regions returns it"):
        without_regions(stock)
    with pytest.raises(ShapeError, match="the Regionizer has dim=64, and the features of this model have dimension 32"):
        clustered(stock, dim=64)
    monkeypatch.setattr(LlavaForConditionalGeneration, "forward", lambda self, input_ids: None)
    with pytest.raises(
        MissingDependencyError, match="is too old: LlavaForConditionalGeneration takes no mm_encoder_outputs"
    ):
        with_regions(stock, Regionizer(**IDENTITY))


def test_a_regionizer_of_another_dimension_is_rejected(stock, tmp_path):
    clustered(stock).save_pretrained(tmp_path)
    with pytest.raises(ShapeError, match="the Regionizer has dim=48, and the features of this model have dimension 32"):
        RegionLlavaForConditionalGeneration.from_pretrained(tmp_path, regionizer=Regionizer(dim=48))


def test_threads_can_share_a_model(model):
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: expanded_logits(model, **prompts(ROWS), pixel_values=PIXELS), range(8)))
    assert all(torch.equal(one, made[0]) for one in made)


def test_from_pretrained_sets_options_of_the_config(stock, tmp_path):
    clustered(stock).save_pretrained(tmp_path)
    for given in ({}, {"config": tmp_path}, {"config": AutoConfig.from_pretrained(tmp_path)}):
        loaded = RegionLlavaForConditionalGeneration.from_pretrained(tmp_path, vision_feature_layer=-1, **given)
        assert loaded.config.vision_feature_layer == -1
        assert loaded.regionizer.config == clustered(stock).regionizer.config
