"""Every family through its real processor, on real images, and behind `Assistant`."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from transformers import PaliGemmaProcessor

from regiontok import ImageGeometry, Regionizer
from regiontok.adapters.huggingface import geometry_of, tiles_of, with_regions
from regiontok.errors import ValueRangeError
from regiontok.evaluation.assistant import Assistant, Question
from regiontok.evaluation.focus import answer_attention, target_regions
from regiontok.views import by_canvas
from tests.families import CASES, IMAGE
from tests.processors import PROCESSORS, TEMPLATE, placeholder

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)  # GLM's
IDENTITY = {"source": "patch", "pool": "mean", "norm": "none", "padding": "keep"}
SIDES = [(64, 64), (120, 50), (50, 140)]
IMAGES = [
    Image.fromarray(image).resize(size)
    for image, size in zip((data.astronaut(), data.coffee(), data.chelsea()), SIDES, strict=True)
]


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def stock(name):
    return CASES[name].make()


@pytest.fixture(scope="module")
def processor(name):
    made = PROCESSORS[name]()
    made.chat_template = TEMPLATE.replace("IMAGE", placeholder(name, made))
    return made


@pytest.fixture(scope="module")
def images(name):
    """PerceptionLM's processor makes no batch of images with different numbers of tiles."""
    return [image.resize((64, 64)) for image in IMAGES] if name == "PerceptionLM" else IMAGES


def processed(name, processor, images):
    mark = placeholder(name, processor)
    text = [f"w5 {mark} w6 {mark} w7", "w8 w9", f"w3 {mark} w4"]
    given = processor(images=[images[:2], [], images[2:]], text=text, return_tensors="pt", padding=True)
    given.pop("labels", None)  # PaliGemma's, of no answer
    return dict(given)


def test_a_region_per_patch_is_the_stock_model(name, stock, processor, images):
    model = with_regions(stock, Regionizer(**IDENTITY))
    given = processed(name, processor, images)
    inside = given["attention_mask"].bool()
    assert (given["input_ids"] == IMAGE).sum() > 3
    assert torch.equal(model(**given).logits[inside], stock(**given).logits[inside])
    greedy = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(**given, **greedy), stock.generate(**given, **greedy))


def test_it_answers_with_a_budget_in_batches_as_one_by_one(stock, processor, images):
    assistant = Assistant(with_regions(stock, Regionizer(pool="mean", norm="none", num_regions=12)), processor)
    asked = [Question("w5", images[:1]), Question("w6"), Question("w7 w8", images[1:])]
    if isinstance(processor, PaliGemmaProcessor):  # needs an image for every question
        asked[1] = Question("w6", images[1:2])
    told = assistant.answer(asked, max_new_tokens=4)
    assert [answer.tokens for answer in told] == [assistant.answer([one], max_new_tokens=4)[0].tokens for one in asked]
    assert [len(answer.counts) for answer in told] == [len(one.images) for one in asked]
    assert all(1 <= count <= 12 for answer in told for count in answer.counts)


def test_attention_to_regions_is_what_the_model_pays(name, processor, images):
    """Equal to what ``output_attentions`` gives, where newlines are not regions."""
    model = with_regions(CASES[name].make(), Regionizer(pool="mean", norm="none", num_regions=12))
    given = processed(name, processor, images)
    answer = torch.zeros_like(given["input_ids"], dtype=torch.bool)
    answer[:, -1] = True
    attention = answer_attention(model, answer, **given)
    prepared = model.expand(**given)
    model.set_attn_implementation("eager")
    found = model(**prepared.inputs, output_attentions=True, use_cache=False).attentions
    found = torch.stack([layer for layer in found if layer is not None and layer.ndim == 4], 1)
    for sample, weights in enumerate(attention.weights):
        row = int(prepared.layout.mask[sample].nonzero().max())
        expected = found[sample, :, :, row][..., prepared.columns[sample]]
        assert torch.allclose(weights, expected, atol=1e-5)
    assert sum(attention.images, []) == list(range(len(prepared.views)))  # noqa: RUF017  few
    left = [np.zeros((1, image.height, image.width), bool) for image in images]
    for one in left:
        one[..., : one.shape[2] // 2] = True
    geometry = None if model.places_images else geometry_of(processor)
    if any(view.canvas is None for view in prepared.views) and model.places_images:
        with pytest.raises(ValueRangeError, match="has several tiles whose rows and columns are not known"):
            target_regions(attention.regions, left, views=attention.views)
        return
    targets = target_regions(attention.regions, left, geometry=geometry, views=attention.views)
    assert targets.shape == (len(attention.regions),)


TILED = ["InternVL", "Aya Vision", "Cohere2 Vision", "Idefics3", "SmolVLM"]


@pytest.mark.parametrize("name", TILED)
def test_tiles_are_those_that_the_processor_cuts(name):
    processor = PROCESSORS[name]()
    given = processed(name, processor, IMAGES)
    tiles = tiles_of(processor, IMAGES)
    counts = [rows * cols + (rows * cols > 1) for rows, cols in tiles]
    pixels = given["pixel_values"]
    assert sum(counts) == (pixels.flatten(0, -4).flatten(1) != 0).any(1).sum()
    model = with_regions(CASES[name].make(), Regionizer(**IDENTITY))
    views = model.expand(**given | {"tiles": tiles}).views
    if name in ("Idefics3", "SmolVLM"):  # their prompts tell it too
        assert model.expand(**given).views == views
    else:
        assert {view.image for view in model.expand(**given).views} == {view.image for view in views}


@pytest.mark.parametrize("name", ["InternVL", "LLaVA-NeXT", "SmolVLM"])
def test_a_mask_lies_on_the_tiles_where_it_lies_on_the_image(name):
    """Regions of all tiles brought back together cover what the mask covers of the image."""
    processor = PROCESSORS[name]()
    model = with_regions(CASES[name].make(), Regionizer(source="segmentation", pool="mean", norm="none", coverage=0.5))
    image = IMAGES[0].resize((112, 112))
    given = processed(name, processor, [image, image, image])
    if name != "LLaVA-NeXT":
        given["tiles"] = tiles_of(processor, [image] * 3)
    mask = np.zeros((1, 112, 112), bool)
    mask[:, 28:84, 12:100] = True  # over all tile borders
    prepared = model.expand(**given, masks=[mask] * 3)
    for canvas, regions, _ in by_canvas(prepared.regions, prepared.views, 1):
        rows, cols = canvas.grid
        expected = torch.zeros(rows, cols, dtype=torch.bool)
        expected[rows // 4 : rows - rows // 4, cols // 8 : cols - cols // 8] = True
        if rows >= 4:
            assert torch.equal(regions.masks()[0].any(0), expected), name
    if name != "SmolVLM":  # regions cross tiles
        assert prepared.regions.counts.tolist() == [1] * len(prepared.views)


@pytest.mark.parametrize(
    ("name", "geometry"),
    [
        ("Gemma 3", ImageGeometry.squash(56)),
        ("PaliGemma", ImageGeometry.squash(56)),
        ("FastVLM", ImageGeometry.center_crop(64)),
        ("Qwen3-VL", ImageGeometry.squash(1008)),
        ("Gemma 4", ImageGeometry.squash(1008)),
    ],
)
def test_the_geometry_of_processors(name, geometry):
    assert geometry_of(PROCESSORS[name]()) == geometry


@pytest.mark.parametrize("name", [*TILED, "LLaVA-NeXT", "LLaVA-OneVision", "PerceptionLM"])
def test_a_model_of_tiles_needs_no_geometry(name):
    with pytest.raises(
        ValueRangeError, match="may cut images into tiles, and a model of them knows itself where they lie"
    ):
        geometry_of(PROCESSORS[name]())
    with pytest.raises(ValueRangeError, match="knows itself how images are placed on tiles. Leave geometry out"):
        with_regions(CASES[name].make(), Regionizer(pool="mean", geometry=ImageGeometry.squash(56)))
