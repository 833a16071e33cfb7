"""Processors that write one placeholder per region, with the real processor of every family."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, pipeline

from regiontok import ImageGeometry, Regionizer
from regiontok.adapters.huggingface import EncoderImageProcessor, region_processor, with_regions
from regiontok.errors import CheckpointError, DTypeError, ShapeError, UnknownOptionError, ValueRangeError
from regiontok.evaluation.assistant import Assistant, Question
from tests.families import CASES, IMAGE, PAD
from tests.models import tiny_llava, tiny_processor
from tests.processors import PROCESSORS, TEMPLATE, placeholder

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def stock(name):
    return CASES[name].make()


def image(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


def processor_of(name):
    processor = PROCESSORS[name]()
    processor.chat_template = TEMPLATE.replace("IMAGE", placeholder(name, processor))
    return processor


def batch_of(name, processor):
    """Return two images of different shapes, or of one shape for PerceptionLM, whose processor needs it."""
    token = placeholder(name, processor)
    shapes = [(60, 90), (60, 90) if name == "PerceptionLM" else (120, 80)]
    images = [[image(*shape, seed)] for seed, shape in enumerate(shapes)]
    return {"images": images, "text": [f"w5 {token} w6", f"w7 w8 {token} w9 w3"]}


def process(processor, **options):
    return processor(**options, return_tensors="pt", padding=True)


def count(inputs, processor):
    return (inputs["input_ids"] == IMAGE).sum(1).tolist()


def test_region_prompts_generate_like_expanded_prompts(subtests, name, stock):
    plain = processor_of(name)
    given = batch_of(name, plain)
    stocks = process(plain, **given)
    for budget in ({"num_regions": 8}, {"keep": 0.5}, {"keep": 1.0}):
        with subtests.test(str(budget)):
            model = with_regions(stock, **budget)
            processor = region_processor(plain, model)
            inputs = process(processor, **given)
            sides = {key: inputs[key] for key in ("image_sizes",) if key in inputs and key not in stocks}
            expected = model.generate(**stocks, **sides, **GREEDY)[:, -4:]
            assert torch.equal(model.generate(**inputs, **GREEDY)[:, -4:], expected)
            held, whole = count(inputs, processor), count(stocks, plain)
            assert held == (whole if budget == {"keep": 1.0} else held)
            assert all(one <= most for one, most in zip(held, whole, strict=True))
            around, expected = (
                [ids[(ids != IMAGE) & (ids != PAD)].tolist() for ids in one["input_ids"]] for one in (inputs, stocks)
            )
            assert around == expected


def test_the_budget_of_a_call_is_written_and_passed_to_the_model(name, stock):
    model = with_regions(stock, num_regions=6)
    processor = region_processor(processor_of(name), model)
    given = batch_of(name, processor)
    budgets = [7, 9]
    inputs = process(processor, **given, num_regions=budgets)
    most = count(process(processor_of(name), **given), processor)
    assert count(inputs, processor) == [min(one, all_) for one, all_ in zip(budgets, most, strict=True)]
    model(**inputs)
    halves = process(processor, **given, keep=[0.5, 1.0])
    model(**halves)
    assert count(process(processor, **given), processor) == [min(6, one) for one in most]  # nothing is left over
    with pytest.raises(ShapeError, match="num_regions must have one entry per image, 2; got 1"):
        process(processor, **given, num_regions=[7])


def test_num_multimodal_tokens_from_sizes(name, stock):
    plain = processor_of(name)
    if not hasattr(plain, "_get_num_multimodal_tokens"):
        pytest.skip("the stock processor does not compute it")
    processor = region_processor(plain, num_regions=8)
    given = batch_of(name, plain)
    sizes = [(one.height, one.width) for (one,) in given["images"]]
    known, whole = (one._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"] for one in (processor, plain))
    written, most = count(process(processor, **given), plain), count(process(plain, **given), plain)
    assert [w - k for w, k in zip(whole, known, strict=True)] == [w - k for w, k in zip(most, written, strict=True)]


def test_a_loaded_processor_has_the_saved_budget(name, stock, tmp_path):
    model = with_regions(stock, keep=0.5)
    processor = region_processor(processor_of(name), model)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    if name != "FastVLM":  # of which transformers has no processor, and so none of its own
        assert type(loaded) is type(processor)
    assert loaded.regiontok == model.regionizer.config.to_dict()
    loaded.tokenizer.padding_side = processor.tokenizer.padding_side
    given = batch_of(name, processor)
    assert torch.equal(process(loaded, **given)["input_ids"], process(processor, **given)["input_ids"])


def test_text_without_images_and_several_images_per_sample(name, stock):
    if name == "PerceptionLM":
        return
    model, processor = with_regions(stock, num_regions=8), region_processor(processor_of(name), num_regions=8)
    token = placeholder(name, processor)
    if name != "PaliGemma":  # whose processor takes no text alone
        text = processor(text=["w5 w6"], return_tensors="pt")
        assert model(**{key: value for key, value in text.items() if value is not None}).logits.shape[1] == 2
    images = [[image(60, 90), image(80, 60, 1)]]
    inputs = processor(images=images, text=[f"w5 {token} w6 {token} w7"], return_tensors="pt")
    model(**inputs)
    assert len(model.model(**inputs).image_outputs.tiles) >= 2


def test_chat_templates_with_several_turns(name, stock):
    model, processor = with_regions(stock, num_regions=8), region_processor(processor_of(name), num_regions=8)
    parts = [{"type": "image", "image": image(60, 90)}, {"type": "text", "text": "w5 w6"}]
    turns = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "w7"}]},
        {"role": "user", "content": [{"type": "text", "text": "w8"}]},
    ]
    inputs = processor.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")
    assert count(inputs, processor)[0] <= 8
    assert model.generate(**inputs, **GREEDY).shape[1] == inputs["input_ids"].shape[1] + 4


def test_a_truncated_block_is_rejected(name, stock):
    processor = region_processor(processor_of(name), num_regions=8)
    token = placeholder(name, processor)
    given = {"images": [image(60, 90)], "text": [f"w5 {token}"], "return_tensors": "pt"}
    length = processor(**given)["input_ids"].shape[1]
    with pytest.raises(ShapeError, match="the prompt was truncated inside the placeholders of an image"):
        processor(**given, truncation=True, max_length=length - 3)
    assert processor(**given, truncation=True, max_length=length)["input_ids"].shape[1] == length


def test_pipelines_load_a_folder(name, stock, tmp_path):
    if name in ("PerceptionLM", "FastVLM", "SmolVLM"):
        return
    model = with_regions(stock, num_regions=8)
    processor = region_processor(processor_of(name), model)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    messages = [
        {"role": "user", "content": [{"type": "image", "image": image(60, 90)}, {"type": "text", "text": "w5 w6"}]}
    ]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    expected = processor.decode(model.generate(**inputs, **GREEDY)[0, -4:], skip_special_tokens=True)
    pipe = pipeline("image-text-to-text", model=str(tmp_path))
    told = pipe(messages, return_full_text=False, generate_kwargs=GREEDY)
    assert told[0]["generated_text"].split() == expected.split()


def test_masks_without_a_budget():
    stock = tiny_llava()
    regionizer = Regionizer(source="segmentation", pool="mean", norm="none", geometry=ImageGeometry.center_crop(56))
    model = with_regions(stock, regionizer)
    processor = region_processor(tiny_processor(), model)
    images = [image(56, 56), image(60, 80, 1)]
    masks = []
    for one, number in zip(images, (2, 3), strict=True):
        bands = np.zeros((number, one.height, one.width), bool)
        for index in range(number):
            bands[index, index * one.height // number : (index + 1) * one.height // number] = True
        masks.append(bands)
    given = {"images": images, "text": ["w5 <image> w6", "w7 <image>"]}
    inputs = process(processor, **given, masks=masks)
    assert count(inputs, processor) == [2, 3]
    assert model.generate(**inputs, **GREEDY).shape[0] == 2
    with pytest.raises(ValueRangeError, match="the number of regions depends on the masks. Pass masks"):
        process(processor, **given)


@pytest.mark.parametrize("unassigned", ["drop", "background"])
@pytest.mark.parametrize("source", ["segmentation", "combined"])
def test_masks_with_a_budget(source, unassigned):
    options = {"source": source, "unassigned": unassigned, "num_regions": 3, "pool": "mean", "norm": "none"}
    model = with_regions(tiny_llava(), Regionizer(**options, geometry=ImageGeometry.center_crop(56)))
    processor = region_processor(tiny_processor(), model)
    bands = np.zeros((4, 56, 56), bool)
    for index in range(4):
        bands[index, 14 * index : 14 * index + 14, :28] = True
    for budget in ({}, {"num_regions": [2, 9]}, {"keep": 0.25}):
        given = {"images": [image(56, 56), image(56, 56, 1)], "text": ["w5 <image> w6", "w7 <image>"]}
        inputs = process(processor, **given, masks=[bands, bands[:1]], **budget)
        assert model.generate(**inputs, **GREEDY).shape[0] == 2
        counts = model.model(**inputs).image_outputs.regions.counts.tolist()
        assert counts == count(inputs, processor)


@pytest.mark.parametrize("name", ["Idefics3", "SmolVLM", "Aya Vision", "Cohere2 Vision"])
def test_a_budget_of_one_token_per_tile(name):
    """Blocks of one placeholder differ from prompts without tags."""
    model = with_regions(CASES[name].make(), num_regions=8)
    processor = region_processor(processor_of(name), model)
    call = {"text": [f"w5 {placeholder(name, processor)} w6"], "images": [[Image.new("RGB", (120, 64), "red")]]}
    num_tiles = model.model._count_pixel_tiles(processor(**call, return_tensors="pt")["pixel_values"])
    assert num_tiles > 2
    inputs = processor(**call, num_regions=num_tiles, return_tensors="pt")
    assert int((inputs["input_ids"] == IMAGE).sum()) == num_tiles
    assert model(**inputs).image_outputs.regions.counts.tolist() == [1] * num_tiles


@pytest.mark.parametrize("name", ["Aya Vision", "Cohere2 Vision"])
def test_a_placeholder_for_each_image_is_no_tag(name):
    model = with_regions(CASES[name].make(), num_regions=8)
    processor = region_processor(processor_of(name), model)
    text = [f"w5 {placeholder(name, processor)} w6 {placeholder(name, processor)} w7"]
    inputs = processor(text=text, images=[[Image.new("RGB", (30, 30), "blue")] * 2], return_tensors="pt")
    pixels = {key: value for key, value in inputs.items() if key not in ("input_ids", "attention_mask")}
    rows, cols = model.model.tile_grid
    expanded = model.expand(torch.tensor([[5, IMAGE, 6, IMAGE, 7]]), **pixels)
    assert list(expanded.counts) == [min(8, rows * cols)] * 2


def test_masks_of_tiled_images_are_of_the_images_size():
    regionizer = Regionizer(source="combined", unassigned="background", num_regions=10, pool="mean", norm="none")
    model = with_regions(CASES["InternVL"].make(), regionizer)
    mask = np.zeros((1, 64, 120), bool)
    mask[:, :, :60] = True
    processor = region_processor(processor_of("InternVL"), model)
    text = [f"w5 {placeholder('InternVL', processor)} w6"]
    inputs = processor(text=text, images=[[Image.new("RGB", (120, 64), "red")]], masks=[mask], return_tensors="pt")
    assert model(**inputs).image_outputs.regions.counts.sum() == 10


@pytest.mark.parametrize(
    ("source", "unassigned", "keep"), [("combined", "drop", 0.6), ("segmentation", "background", 0.2)]
)
def test_keep_with_masks_is_a_fraction_of_valid_patches(source, unassigned, keep):
    encoder = EncoderImageProcessor(ImageGeometry.letterbox(64).to_config(), patch_size=16)
    processor = processor_of("LLaVA-1.5")
    processor.image_processor = encoder
    processor.patch_size, processor.num_additional_image_tokens = 16, 0
    processor.vision_feature_select_strategy = "full"
    regionizer = Regionizer(
        source=source, unassigned=unassigned, pool="mean", norm="none", geometry=ImageGeometry.letterbox(64)
    )
    masks = [np.arange(56 * 28).reshape(1, 28, 56) % 56 < 28]
    few = region_processor(processor, None, num_regions=1)
    few.regiontok = regionizer.config.to_dict()
    text, images = ["w5 <image> w6"], [[Image.new("RGB", (56, 28), "red")]]
    count = int(
        (few(text=text, images=images, masks=masks, keep=keep, return_tensors="pt")["input_ids"] == IMAGE).sum()
    )
    features = torch.randn(1, 4, 4, 8)
    assert count == len(regionizer.group(features, masks=masks, keep=keep))


def test_budgets_that_do_not_match_the_images_are_rejected():
    model = with_regions(CASES["LLaVA-1.5"].make(), num_regions=4)
    processor = region_processor(processor_of("LLaVA-1.5"), model)
    call = {"text": ["w5 <image> w6"], "images": [[Image.new("RGB", (56, 28), "red")]], "return_tensors": "pt"}
    with pytest.raises(ShapeError, match="num_regions must have one entry per image, 1; got 2"):
        processor(**call, num_regions=[3, 4])
    with pytest.raises(UnknownOptionError, match="takes no 'num_region'. Did you mean 'num_regions'"):
        processor(**call, num_region=3)
    inputs = processor(**call)
    cache = model(**inputs).past_key_values
    more = {"input_ids": torch.tensor([[5, 6]]), "pixel_values": inputs["pixel_values"], "past_key_values": cache}
    with pytest.raises(
        ShapeError, match="have no placeholder.*leave pixel_values out if the images are already in past_key_values"
    ):
        model.model(**more)
    by_prompt = with_regions(CASES["LLaVA-1.5"].make(), num_regions="prompt")
    with pytest.raises(ShapeError, match="image 0 has 17 placeholders and 16 patches"):
        by_prompt(input_ids=torch.tensor([[5] + [IMAGE] * 17]), pixel_values=torch.randn(1, 3, 56, 56))


def test_random_order_is_rejected_in_training_mode():
    model = with_regions(CASES["LLaVA-1.5"].make(), Regionizer(pool="mean", norm="none", order="random", num_regions=4))
    inputs = {"input_ids": torch.tensor([[5, *[IMAGE] * 4, 6]]), "pixel_values": torch.randn(1, 3, 56, 56)}
    with pytest.raises(ValueRangeError, match=r"Call model.eval\(\) to generate, or use another order"):
        model.train().generate(**inputs, max_new_tokens=1)
    assert model.eval().generate(**inputs, max_new_tokens=1).shape == (1, 7)


def test_get_image_features_of_several_tiles_without_a_prompt():
    """An engine calls get_image_features alone, with what the processor returned."""
    model = with_regions(CASES["InternVL"].make(), num_regions=5)
    processor = region_processor(processor_of("InternVL"), model)
    text = [f"w5 {placeholder('InternVL', processor)} w6"]
    inputs = processor(text=text, images=[[Image.new("RGB", (112, 56), "red")]], return_tensors="pt")
    assert len(inputs["pixel_values"]) == 3
    expected = model.model(**inputs).image_outputs
    images = {name: inputs[name] for name in ("pixel_values", "image_sizes")}
    (tokens,) = model.model.get_image_features(**images).pooler_output
    assert torch.equal(tokens, torch.cat(list(expected.pooler_output)))
    assert len(tokens) == 5
    assert torch.equal(model.encode_regions(**images).values, tokens)


@pytest.mark.parametrize("name", ["InternVL", "PerceptionLM", "LLaVA-NeXT", "SmolVLM"])
def test_each_grid_of_an_image_gets_a_token(name):
    model = with_regions(CASES[name].make(), keep=0.01)
    processor = region_processor(processor_of(name), model)
    inputs = process(processor, images=[[image(60, 90)]], text=[f"w5 {placeholder(name, processor)} w6"])
    tiles = model.model(**inputs).image_outputs.tiles
    assert count(inputs, processor) == [len(tiles)]
    with pytest.raises(ValueRangeError, match=f"num_regions must be at least {len(tiles)}"):
        process(processor, images=[[image(60, 90)]], text=[f"w5 {placeholder(name, processor)} w6"], num_regions=1)


def test_crops_of_gemma_count_as_images():
    model = with_regions(CASES["Gemma 3"].make(), num_regions=3)
    processor = region_processor(processor_of("Gemma 3"), model)
    crops = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 20, "pan_and_scan_max_num_crops": 4}
    given = {"images": [[image(100, 300)]], "text": [f"w5 {placeholder('Gemma 3', processor)} w6"]}
    given |= crops | {"pan_and_scan_min_ratio_to_activate": 1.2}
    inputs = process(processor, **given)
    assert count(inputs, processor) == [3 * len(inputs["pixel_values"])]
    model(**inputs)
    with pytest.raises(ValueRangeError, match="with pan-and-scan each crop is an image with its own budget"):
        process(processor, **given, num_regions=[3])


def test_internvl_accepts_arrays_and_tensors():
    model = with_regions(CASES["InternVL"].make(), num_regions=8)
    processor = region_processor(processor_of("InternVL"), model)
    picture = image(60, 90)
    array = np.array(picture)
    text = [f"w5 {placeholder('InternVL', processor)} w6"]
    expected = process(processor, images=[picture], text=text)
    for one in (array, torch.from_numpy(array.copy()).permute(2, 0, 1)):
        inputs = process(processor, images=[one], text=text)
        assert torch.equal(inputs["image_sizes"], expected["image_sizes"])
        model(**inputs)
    whole = process(processor, images=[picture], text=text, crop_to_patches=False)
    assert whole["image_sizes"].tolist() == [[56, 56]]


def test_an_assistant_accepts_a_region_processor():
    for options in ({"threshold": 0.7}, {"num_regions": 4}):
        model = with_regions(tiny_llava(), Regionizer(pool="mean", norm="none", **options))
        plain = Assistant(model, tiny_processor()).answer([Question("w5", [image(56, 56)])], max_new_tokens=2)
        own = Assistant(model, region_processor(tiny_processor(), model))
        assert own.answer([Question("w5", [image(56, 56)])], max_new_tokens=2) == plain


def test_other_errors_are_not_reported_as_truncation():
    processor = region_processor(tiny_processor(), num_regions=4)
    given = {"images": [image(56, 56)], "text": ["w5 <image>"], "truncation": True, "max_length": 99}
    with pytest.raises(ValueRangeError, match="num_regions must be at least 1; got 0"):
        process(processor, **given, num_regions=0)


def test_budgets_as_arrays_and_tensors():
    model = with_regions(tiny_llava(), num_regions=6)
    processor = region_processor(tiny_processor(), model)
    given = {"images": [image(56, 56), image(56, 56, 1)], "text": ["w5 <image>", "w6 <image>"]}
    for budget in (np.array([4, 5]), torch.tensor([4, 5]), torch.tensor(4), np.array(4)):
        inputs = process(processor, **given, num_regions=budget)
        model(**inputs)
    model = with_regions(CASES["LLaVA-NeXT"].make(), num_regions=4, newline="row")
    rows = region_processor(processor_of("LLaVA-NeXT"), model)
    given = {"images": [[image(60, 90)]], "text": [f"w5 {placeholder('LLaVA-NeXT', rows)}"]}
    with pytest.raises(ValueRangeError, match="newline='row' needs the rows in which regions start"):
        process(rows, **given)


def test_padding_gets_no_placeholders():
    stock = tiny_llava()
    geometry = ImageGeometry.letterbox(56)
    model = with_regions(stock, Regionizer(pool="mean", norm="none", num_regions=10, geometry=geometry))
    plain = tiny_processor()
    plain.image_processor = EncoderImageProcessor(geometry=geometry.to_config(), patch_size=14)
    processor = region_processor(plain, model)
    inputs = process(processor, images=[image(20, 80), image(50, 50, 1)], text=["w5 <image>", "w6 <image>"])
    assert count(inputs, processor) == [8, 10] == model.num_tokens([(20, 80), (50, 50)])
    model(**inputs)


def test_threads_do_not_share_the_budget_of_a_call():
    processor = region_processor(tiny_processor(), num_regions=3)
    found = {}

    def work(number):
        for _ in range(5):
            inputs = process(processor, images=[image(56, 56)], text=["w5 <image>"], num_regions=number)
            found.setdefault(number, set()).add(count(inputs, processor)[0])

    threads = [threading.Thread(target=work, args=(number,)) for number in (4, 5, 6, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: {number} for number in (4, 5, 6, 7)}


def test_invalid_arguments_are_rejected():
    model, processor = with_regions(tiny_llava(), num_regions=4), tiny_processor()
    for options, message in (
        ({}, "needs a model, or one of num_regions and keep"),
        ({"model": model, "keep": 0.5}, "needs a model, or one of num_regions and keep"),
        ({"num_regions": 0}, "num_regions must be at least 1; got 0"),
        ({"keep": 2}, "keep must be in"),
    ):
        with pytest.raises(ValueRangeError, match=message):
            region_processor(processor, **options)
    with pytest.raises(DTypeError, match="model must have region tokens; got LlavaForConditionalGeneration"):
        region_processor(processor, tiny_llava())
    with pytest.raises(DTypeError, match="processor must be loaded with AutoProcessor"):
        region_processor(processor.tokenizer, model)
    threshold = with_regions(tiny_llava(), Regionizer(pool="mean", norm="none", threshold=0.5))
    with pytest.raises(ValueRangeError, match="this processor has no budget.*model.expand"):
        process(region_processor(processor, threshold), images=[image(56, 56)], text=["w5 <image>"])
    again = region_processor(region_processor(processor, model), num_regions=7)
    assert type(again).__name__ == "RegionLlavaProcessor"
    assert processor.__class__.__name__ == "LlavaProcessor"


def test_a_stock_folder_has_no_budget(tmp_path):
    tiny_processor().save_pretrained(tmp_path)
    processor = type(region_processor(tiny_processor(), num_regions=3)).from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="loaded from the folder of a stock processor, without a budget"):
        process(processor, images=[image(56, 56)], text=["w5 <image>"])


LOAD = """
import sys
import transformers

AUTO = (transformers.AutoConfig, transformers.AutoModelForImageTextToText, transformers.AutoProcessor)


def load(trust):
    for auto in AUTO:
        try:
            print(type(auto.from_pretrained(sys.argv[1], trust_remote_code=trust)).__name__)
        except Exception as error:
            print(type(error).__name__, str(error)[:200].replace(chr(10), " "))


load(trust=False)
sys.modules["regiontok"] = None  # as if it was not installed
load(trust=True)
del sys.modules["regiontok"]
load(trust=True)
import regiontok.adapters.huggingface
load(trust=False)
"""


def test_folders_load_by_name_with_regiontok_and_fail_clearly_without(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "cache"))
    model = with_regions(tiny_llava(), num_regions=4)
    model.save_pretrained(tmp_path / "folder")
    region_processor(tiny_processor(), model).save_pretrained(tmp_path / "folder")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "folder")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    lines = done.stdout.splitlines()
    untrusted, missing, trusted, imported = lines[:3], lines[3:6], lines[6:9], lines[9:]
    assert all("contains custom code which must be executed" in line for line in untrusted)
    assert all("regiontok" in line and "Error" in line for line in missing)
    names = ["RegionLlavaConfig", "RegionLlavaForConditionalGeneration", "RegionLlavaProcessor"]
    assert trusted == names
    assert imported == names
