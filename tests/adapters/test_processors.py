"""Every family with its real processor, real images and `Assistant`."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from transformers import PaliGemmaProcessor

from regiontok import ImageGeometry, Regionizer
from regiontok.adapters.huggingface import ModelEncoder, geometry_of, process, tilings_of, with_regions
from regiontok.errors import ValueRangeError
from regiontok.evaluation.assistant import Assistant, Question
from regiontok.evaluation.focus import answer_attention, target_regions
from regiontok.tile_masks import by_layout
from tests.families import CASES, IMAGE
from tests.models import IDENTITY
from tests.processors import PROCESSORS, TEMPLATE, placeholder

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)  # GLM's
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


def test_one_region_per_patch_equals_the_stock_model(name, stock, processor, images):
    model = with_regions(stock, Regionizer(**IDENTITY))
    given = processed(name, processor, images)
    inside = given["attention_mask"].bool()
    assert (given["input_ids"] == IMAGE).sum() > 3
    assert torch.equal(model(**given).logits[inside], stock(**given).logits[inside])
    greedy = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(**given, **greedy), stock.generate(**given, **greedy))


def test_batched_answers_with_a_budget_equal_single_answers(stock, processor, images):
    assistant = Assistant(with_regions(stock, Regionizer(pool="mean", norm="none", num_regions=12)), processor)
    asked = [Question("w5", images[:1]), Question("w6"), Question("w7 w8", images[1:])]
    if isinstance(processor, PaliGemmaProcessor):  # needs an image for every question
        asked[1] = Question("w6", images[1:2])
    told = assistant.answer(asked, max_new_tokens=4)
    assert [answer.tokens for answer in told] == [assistant.answer([one], max_new_tokens=4)[0].tokens for one in asked]
    assert [len(answer.counts) for answer in told] == [len(one.images) for one in asked]
    assert all(1 <= count <= 12 for answer in told for count in answer.counts)


def test_answer_attention_equals_output_attentions(name, processor, images):
    """Newlines are not regions."""
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
    assert sum(attention.images, []) == list(range(len(prepared.tiles)))  # noqa: RUF017  few
    left = [np.zeros((1, image.height, image.width), bool) for image in images]
    for one in left:
        one[..., : one.shape[2] // 2] = True
    geometry = None if model.knows_tile_layout else geometry_of(processor)
    if any(tile.layout is None for tile in prepared.tiles) and model.knows_tile_layout:
        with pytest.raises(ValueRangeError, match="the layout of the tiles of image"):
            target_regions(attention.regions, left, tiles=attention.tiles)
        return
    targets = target_regions(attention.regions, left, geometry=geometry, tiles=attention.tiles)
    assert targets.shape == (len(attention.regions),)


TILED = ["InternVL", "Aya Vision", "Cohere2 Vision", "Idefics3", "SmolVLM"]


@pytest.mark.parametrize("name", TILED)
def test_tilings_equal_the_tiles_of_the_processor(name):
    processor = PROCESSORS[name]()
    given = processed(name, processor, IMAGES)
    tilings = tilings_of(processor, IMAGES)
    counts = [rows * cols + (rows * cols > 1) for rows, cols in tilings]
    pixels = given["pixel_values"]
    assert sum(counts) == (pixels.flatten(0, -4).flatten(1) != 0).any(1).sum()
    model = with_regions(CASES[name].make(), Regionizer(**IDENTITY))
    tiles = model.expand(**given | {"tilings": tilings}).tiles
    if name in ("Idefics3", "SmolVLM"):  # their prompts give it too
        assert model.expand(**given).tiles == tiles
    else:
        assert {tile.image for tile in model.expand(**given).tiles} == {tile.image for tile in tiles}


@pytest.mark.parametrize("name", ["InternVL", "LLaVA-NeXT", "SmolVLM"])
def test_masks_are_cut_like_the_image(name):
    """The regions of all tiles together cover the mask on the image."""
    processor = PROCESSORS[name]()
    model = with_regions(
        CASES[name].make(), Regionizer(source="segmentation", pool="mean", norm="none", min_coverage=0.5)
    )
    image = IMAGES[0].resize((112, 112))
    given = processed(name, processor, [image, image, image])
    if name != "LLaVA-NeXT":
        given["tilings"] = tilings_of(processor, [image] * 3)
    mask = np.zeros((1, 112, 112), bool)
    mask[:, 28:84, 12:100] = True  # over all tile borders
    prepared = model.expand(**given, masks=[mask] * 3)
    for layout, regions, _ in by_layout(prepared.regions, prepared.tiles, 1):
        rows, cols = layout.grid
        expected = torch.zeros(rows, cols, dtype=torch.bool)
        expected[rows // 4 : rows - rows // 4, cols // 8 : cols - cols // 8] = True
        if rows >= 4:
            assert torch.equal(regions.masks()[0].any(0), expected), name
    if name != "SmolVLM":  # regions cross tiles
        assert prepared.regions.counts.tolist() == [1] * len(prepared.tiles)


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
def test_models_with_tiles_reject_a_geometry(name):
    with pytest.raises(ValueRangeError, match="may cut images into tiles, which the model places itself"):
        geometry_of(PROCESSORS[name]())
    with pytest.raises(ValueRangeError, match="computes how images are placed on tiles. Leave geometry out"):
        with_regions(CASES[name].make(), Regionizer(pool="mean", geometry=ImageGeometry.squash(56)))


def test_a_model_encoder_returns_the_features_that_regions_are_made_of(name, stock, processor, images, monkeypatch):
    model = with_regions(stock, Regionizer(**IDENTITY | {"padding": "drop"}))
    encoder = ModelEncoder(model, processor, name=name)
    if name == "PerceptionLM":
        with pytest.raises(ValueRangeError, match="PerceptionLM does not report the position of its tiles"):
            encoder.encode_image(IMAGES[1])
        return
    made = []
    encode = type(model.model).encode_patches
    monkeypatch.setattr(
        type(model.model), "encode_patches", lambda self, *a, **k: (made.append(encode(self, *a, **k)), made[-1])[1]
    )
    for image in images:
        encoded = encoder.encode_image(image)
        made.clear()
        inputs = process(model, processor, [f"w5 {placeholder(name, processor)}"], [[image]])
        names = ("pixel_values", *model.encoder_inputs)
        model.encode_regions(**{key: value for key, value in inputs.items() if key in names})
        (patches,) = made
        used = encoded.features[encoded.valid]
        assert len(used)
        every_patch = {tuple(patch) for part in patches.features for patch in part.flatten(0, 1).tolist()}
        assert {tuple(patch) for patch in used.tolist()} <= every_patch
        assert encoded.placement.valid(tuple(encoded.valid.shape)).sum() >= encoded.valid.sum()
