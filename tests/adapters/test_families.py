import numpy as np
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    BitImageProcessor,
    CLIPImageProcessor,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    LlavaImageProcessor,
    PixtralVisionConfig,
    RadioConfig,
    SiglipImageProcessor,
    SiglipVisionConfig,
    TimmWrapperConfig,
)

from regiontok import ImageGeometry, Regionizer, encoders
from regiontok.adapters.huggingface import (
    EncoderConfig,
    EncoderImageProcessor,
    RegionLlavaForConditionalGeneration,
    geometry_of,
    with_regions,
)
from regiontok.errors import ShapeError, ValueRangeError
from tests.conftest import assert_close
from tests.families import CASES, IDS, SIGLIP, TEXT, build, expanded_logits
from tests.models import IDENTITY, IMAGE, tiny_llava

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWERS = {
    "siglip": (SiglipVisionConfig(intermediate_size=64, image_size=56, patch_size=14, **SIZES), 0),
    "dinov2": (Dinov2Config(image_size=56, patch_size=14, **SIZES), 1),
    "dinov2 with registers": (
        Dinov2WithRegistersConfig(image_size=56, patch_size=14, num_register_tokens=4, **SIZES),
        5,
    ),
}


@pytest.mark.parametrize("name", TOWERS)
def test_class_and_register_tokens_of_a_tower_are_left_out(name):
    vision, prefix = TOWERS[name]
    stock = tiny_llava(vision, vision_feature_layer=-1, vision_feature_select_strategy="full")
    pixels = torch.randn(2, 3, 56, 56)
    patches = with_regions(stock, Regionizer(**IDENTITY)).encode_patches(pixels)
    hidden = stock.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    assert hidden.shape[1] == 16 + prefix
    assert torch.equal(patches.features.flatten(1, 2), hidden[:, prefix:])
    assert patches.num_placeholders == [16 + prefix] * 2


def test_features_of_several_layers_are_concatenated():
    stock = tiny_llava(vision_feature_layer=[-2, -1])
    model = with_regions(stock, Regionizer(dim=64, num_heads=4, **IDENTITY))
    ids = torch.tensor([[5] + [IMAGE] * 16 + [6]])
    pixels = torch.randn(1, 3, 56, 56)
    assert torch.equal(
        model(input_ids=ids, pixel_values=pixels).logits, stock(input_ids=ids, pixel_values=pixels).logits
    )


def test_radio_of_transformers_is_a_vision_tower():
    config = RadioConfig(image_size=64, patch_size=16, intermediate_size=64, **SIZES)
    stock = tiny_llava(config, vision_feature_layer=-1, vision_feature_select_strategy="full")
    patches = with_regions(stock, Regionizer(**IDENTITY)).encode_patches(torch.rand(1, 3, 64, 64))
    assert patches.features.shape == (1, 4, 4, 32)


def test_a_timm_model_is_a_vision_tower():
    model_args = {"img_size": 64, "depth": 2}
    config = TimmWrapperConfig(
        architecture="vit_tiny_patch16_224", model_args=model_args, hidden_size=192, image_size=64
    )
    stock = tiny_llava(config, vision_feature_layer=-1, vision_feature_select_strategy="full")
    model = with_regions(stock, Regionizer(source="clustering", dim=192, num_heads=3, num_regions=5))
    assert model.encode_patches(torch.rand(2, 3, 64, 64)).features.shape == (2, 4, 4, 192)
    generated = model.generate(
        input_ids=torch.tensor([[4, IMAGE, 5]]), pixel_values=torch.rand(1, 3, 64, 64), max_new_tokens=2
    )
    assert generated.shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "options"), [("pixels", {"img_size": 64}), ("timm:vit_tiny_patch16_224", {"img_size": 64}), ("open_clip:ViT-B-32", {})]
)  # fmt: skip
def test_a_regiontok_encoder_is_a_vision_tower_and_is_saved_with_the_model(name, options, tmp_path, china):
    config = EncoderConfig.of(name, **options)
    stock = tiny_llava(config, vision_feature_layer=-1, vision_feature_select_strategy="full")
    model = with_regions(stock, Regionizer(source="clustering", dim=config.hidden_size, num_heads=4, threshold=0.8))
    encoder = stock.model.vision_tower.encoder
    pixels, _ = encoder.preprocess(china)
    features = model.encode_patches(pixels).features
    assert_close(features, encoders.Encoder.encode(encoder, pixels))
    model.save_pretrained(tmp_path)
    loaded = RegionLlavaForConditionalGeneration.from_pretrained(tmp_path)
    inputs = {"input_ids": torch.tensor([[4, IMAGE, 5]]), "pixel_values": pixels}
    assert torch.equal(expanded_logits(loaded, **inputs), expanded_logits(model, **inputs))
    loaded.train()(input_ids=torch.tensor([[4, 5]]), labels=torch.tensor([[4, 5]])).loss.backward()
    assert loaded.regionizer.pool.out.weight.grad is not None


def test_an_encoder_without_weights_supports_other_dtypes(china):
    stock = tiny_llava(
        EncoderConfig.of("pixels", img_size=64), vision_feature_layer=-1, vision_feature_select_strategy="full"
    )
    model = with_regions(stock.to(torch.bfloat16), Regionizer(dim=48, num_heads=4))
    pixels, _ = stock.model.vision_tower.encoder.preprocess(china)
    assert pixels.dtype == torch.float32
    assert expanded_logits(model, input_ids=torch.tensor([[4, IMAGE, 5]]), pixel_values=pixels).dtype == torch.bfloat16


def test_a_tower_that_merges_patches_is_rejected():
    config = SiglipVisionConfig(intermediate_size=64, image_size=56, patch_size=14, **SIZES)
    stock = tiny_llava(config, vision_feature_layer=-1, vision_feature_select_strategy="full")
    stock.config.vision_config.patch_size = 7
    with pytest.raises(
        ShapeError, match="must return a feature per patch, 8 x 8 for images of 56 x 56; got 16 of them"
    ):
        with_regions(stock, Regionizer(**IDENTITY)).encode_patches(torch.rand(1, 3, 56, 56))


def test_unsupported_towers_are_rejected():
    config = EncoderConfig.of("pixels", img_size=64)
    stock = tiny_llava(config)  # LLaVA's default, the layer before the last
    with pytest.raises(
        ValueRangeError, match=r"1 hidden states; got \[-2\]. An EncoderTower has one: set vision_feature_layer=-1"
    ):
        with_regions(stock, Regionizer(**IDENTITY)).encode_patches(torch.rand(1, 3, 64, 64))
    vision = PixtralVisionConfig(intermediate_size=64, image_size=56, patch_size=14, head_dim=16, **SIZES)
    stock = tiny_llava(vision, vision_feature_layer=-1, vision_feature_select_strategy="full")
    with pytest.raises(
        ShapeError, match="must return features for each of the 2 images; got 1. Towers that join images"
    ):
        with_regions(stock, Regionizer(**IDENTITY)).encode_patches(torch.rand(2, 3, 56, 56))


def test_onevision_images_of_one_tile():
    stock = build(
        "LlavaOnevision", vision_config=SIGLIP | {"image_size": 28}, text_config=TEXT | {"model_type": "qwen2"}, **IDS,
        image_grid_pinpoints=[[28, 28]],
    )  # fmt: skip
    model = with_regions(stock, Regionizer(**IDENTITY))
    tiles = torch.randn(2, 1, 3, 28, 28)
    for newline, length in (("row", 13), ("image", 13), ("drop", 11)):
        model = with_regions(stock, Regionizer(**IDENTITY), newline=newline)
        for block in (1, 5):  # one placeholder, or 2 x 2 patches and the newline
            ids = torch.tensor([[5] + [IMAGE] * block + [6] + [IMAGE] * block + [7]])
            inputs = {"image_sizes": torch.tensor([[28, 28], [28, 28]]), "batch_num_images": torch.tensor([2])}
            assert expanded_logits(model, input_ids=ids, pixel_values=tiles, **inputs).shape[1] == length
    features = stock.model.multi_modal_projector(
        stock.model.vision_tower(tiles[:, 0], output_hidden_states=True).hidden_states[-1]
    )
    assert torch.equal(model.encode_regions(tiles).values, features.flatten(0, 1))
    with pytest.raises(ValueRangeError, match="pixel_values need image_sizes, the height and width of each image"):
        model.encode_patches(torch.randn(1, 3, 3, 28, 28))
    model.train()(input_ids=ids, pixel_values=tiles, labels=ids).loss.backward()
    assert all(
        parameter.grad is not None
        for parameter in (stock.model.image_newline, *stock.model.language_model.parameters())
    )


@pytest.fixture(scope="module")
def qwen():
    return CASES["Qwen2.5-VL"].make()


GRID = torch.tensor([[1, 4, 6], [1, 8, 4], [1, 2, 2]])
PATCHES = torch.randn(int(GRID.prod(1).sum()), 3 * 2 * 16, generator=torch.Generator().manual_seed(0))


def qwen_prompts(blocks, *, left=True):
    first, second, third = ([97] + [IMAGE] * block + [96] for block in blocks)
    rows = [[1, 2, *first, 5, 6, *second, 9], [4, *third, 7, 8], [3, 4, 5]]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) * left + row + [0] * (width - len(row)) * (not left) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def test_qwen_positions_are_centroids_and_text_continues_after_the_image(qwen):
    model = with_regions(qwen, Regionizer(source="clustering", pool="mean", num_regions=1))
    for left in (True, False):
        prepared = model.expand(
            **qwen_prompts((1, 1, 1), left=left), pixel_values=PATCHES, image_grid_thw=GRID, left=left
        )
        text, time, row, col = prepared.inputs["position_ids"]
        first = prepared.layout.mask[0].bool()
        assert text[0][first].tolist() == list(range(11))
        assert time[0][first].tolist() == [0, 1, 2, 3, 6, 7, 8, 9, 10, 14, 15]  # grids of 2 x 3 and 4 x 2
        assert row[0][first].tolist() == [0, 1, 2, 3.5, 6, 7, 8, 9, 11.5, 14, 15]
        assert col[0][first].tolist() == [0, 1, 2, 4, 6, 7, 8, 9, 10.5, 14, 15]
        assert time[1][prepared.layout.mask[1].bool()].tolist() == [0, 1, 2, 3, 4, 5]


def test_qwen_text_is_independent_of_earlier_images(qwen):
    model = with_regions(qwen, Regionizer(source="clustering", pool="mean", num_regions=1))
    text = torch.tensor([[3, 4, 5, 6]])
    settings = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    before = model.generate(input_ids=text, **settings)
    model.generate(**qwen_prompts((1, 1, 1)), pixel_values=PATCHES, image_grid_thw=GRID, max_new_tokens=2)
    kinds = torch.zeros_like(text, dtype=torch.int32)  # the processor writes it for text too
    after = model.generate(input_ids=text, mm_token_type_ids=kinds, **settings)
    assert all(torch.equal(first, second) for first, second in zip(before.logits, after.logits, strict=True))
    assert torch.equal(model(input_ids=text, mm_token_type_ids=kinds).logits, qwen(input_ids=text).logits)


def test_qwen_rejects_invalid_input(qwen):
    model = with_regions(qwen, Regionizer(**IDENTITY))
    with pytest.raises(ValueRangeError, match="pixel_values need image_grid_thw"):
        model(**qwen_prompts((1, 1, 1)), pixel_values=PATCHES)


@pytest.mark.parametrize(
    ("processor", "geometry"),
    [
        (CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=336), ImageGeometry.center_crop(336)),
        (LlavaImageProcessor(size={"shortest_edge": 336}, crop_size=336, do_pad=True), ImageGeometry.letterbox(336)),
        (SiglipImageProcessor(size={"height": 378, "width": 378}), ImageGeometry.squash(378)),
    ],
    ids=["crop", "pad", "squash"],
)
def test_geometry_of_matches_the_processor(processor, geometry, china):
    assert geometry_of(processor) == geometry
    ours = (
        torch.from_numpy(
            np.array(geometry.place((china.height, china.width)).image(china, fill=(122, 116, 104)))
        ).permute(2, 0, 1)
        / 255
    )
    theirs = processor(china, return_tensors="pt")["pixel_values"][0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    difference = (theirs * std + mean - ours).abs()
    assert difference.mean() < 0.01
    assert (difference > 0.1).float().mean() < 0.01


def test_the_image_processor_of_an_encoder_matches_the_encoder(china, tmp_path):
    encoder = encoders.load("timm:vit_tiny_patch16_224", pretrained=False, img_size=64, geometry="letterbox")
    processor = EncoderImageProcessor.of(encoder)
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert geometry_of(loaded) == encoder.geometry
    inputs = loaded([[china, china.rotate(90, expand=True)], [china]], return_tensors="pt")
    assert inputs["image_sizes"].tolist() == [[427, 640], [640, 427], [427, 640]]
    assert torch.equal(inputs["pixel_values"][:1], encoder.preprocess(china)[0])
    with pytest.raises(ValueRangeError, match="this encoder has no model"):
        loaded.encoder(china)


def test_geometry_of_rejects_other_processors():
    with pytest.raises(
        ValueRangeError, match=r"with size .*256.* and crop .*224.* is none of letterbox, squash or center crop"
    ):
        geometry_of(BitImageProcessor(size={"shortest_edge": 256}, crop_size=224))


def test_deepstack_features_are_means_over_the_same_regions():
    case = CASES["Qwen3-VL"]
    model = with_regions(case.make(), Regionizer(pool="mean", norm="none", num_regions=3))
    inputs = case.inputs()
    prepared = model.expand(**inputs)
    deep = prepared.inputs["mm_encoder_outputs"]["image"].deepstack_features
    stock = case.make().get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).deepstack_features
    assert len(deep) == len(stock) == 2
    masks = [mask.flatten(1).float() for mask in prepared.regions.masks()]
    for features, layer in zip(deep, stock, strict=True):
        expected = [mask @ image / mask.sum(1, keepdim=True) for mask, image in zip(masks, layer, strict=True)]
        assert_close(torch.cat(features), torch.cat(expected))


@pytest.mark.parametrize("name", ["LLaVA-NeXT", "LLaVA-OneVision"])
def test_newlines_follow_the_selected_mode(name):
    case = CASES[name]
    stock, inputs = case.make(), case.inputs()
    options = {"batch_num_images": inputs["batch_num_images"]} if "batch_num_images" in inputs else {}
    regionizer = Regionizer(pool="mean", norm="none", num_regions=7)
    for newline, newlines in (("drop", [0, 0, 0]), ("image", [1, 1, 1])):
        model = with_regions(stock, regionizer, newline=newline)
        prepared = model.expand(**inputs)
        assert (prepared.inputs["input_ids"] == IMAGE).sum() == sum(prepared.counts) + sum(newlines)
        num_tokens = model.num_tokens(inputs["image_sizes"], **options)
        assert num_tokens == [count + extra for count, extra in zip(prepared.counts, newlines, strict=True)]
        values = torch.cat(prepared.inputs["mm_encoder_outputs"]["image"].pooler_output)
        is_newline = (values == stock.model.image_newline).all(1)
        assert is_newline.sum() == sum(newlines)
        ends = torch.tensor(num_tokens).cumsum(0) - 1
        assert is_newline[ends].tolist() == [bool(extra) for extra in newlines]
    rows = with_regions(stock, regionizer, newline="row").expand(**inputs)
    assert 3 <= (rows.inputs["input_ids"] == IMAGE).sum() - sum(rows.counts) <= sum(rows.counts)
    patches = with_regions(stock, Regionizer(**IDENTITY))
    assert patches.model.newline_mode(True) == "row"
    num_tokens = patches.num_tokens(inputs["image_sizes"], **options)
    assert sum(num_tokens) == (patches.expand(**inputs).inputs["input_ids"] == IMAGE).sum()
    shuffled = with_regions(stock, Regionizer(**IDENTITY, order="random"))
    assert shuffled.model.newline_mode(True) == "drop"
    with pytest.raises(ValueRangeError, match="newline='row' needs order='raster'"):
        with_regions(stock, Regionizer(**IDENTITY, order="area"), newline="row")
    with pytest.raises(ValueRangeError, match="newline=.drop. requires families with anyres tiles"):
        with_regions(CASES["Gemma 3"].make(), regionizer, newline="drop")
    assert (
        with_regions(with_regions(stock, regionizer, newline="image"), regionizer).model.newline_mode(False) == "drop"
    )


def test_onevision_downscales_large_images_to_the_grid_of_the_stock_model():
    case = CASES["LLaVA-OneVision"]
    stock, inputs = case.make(), case.inputs([[3, "c", 4]]) | {"vision_aspect_ratio": "anyres_max_1"}
    (stocks,) = stock.get_image_features(
        **{name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    ).pooler_output
    model = with_regions(stock, Regionizer(**IDENTITY))
    inputs |= {"input_ids": torch.tensor([[3, IMAGE, 4]]), "attention_mask": torch.ones(1, 3)}
    prepared = model.expand(**inputs)
    assert (prepared.inputs["input_ids"] == IMAGE).sum() == len(stocks)
    assert prepared.tiles[1].patches < 32
    values = prepared.inputs["mm_encoder_outputs"]["image"].pooler_output[0]
    assert (
        torch.cosine_similarity(values.flatten(), stocks.flatten(), 0) > 0.99
    )  # scaled before the projector, not after
    with pytest.raises(ValueRangeError, match="vision_aspect_ratio must be anyres_max_ and a number of tiles"):
        model.expand(**inputs | {"vision_aspect_ratio": "anyres"})


@pytest.mark.parametrize("name", ["Idefics3", "SmolVLM", "Aya Vision", "Cohere2 Vision"])
def test_images_of_one_tile_are_not_joined_with_adjacent_images(name):
    """Each image has one placeholder, after different words; images of two samples stay separate."""
    case = CASES[name]
    model = with_regions(case.make(), Regionizer(pool="mean", norm="none", num_regions=3))
    pixels = torch.randn(2, 3, 56, 56)
    pixels = pixels[:, None] if name in ("Idefics3", "SmolVLM") else pixels
    for ids in ([[5, IMAGE, 8], [6, IMAGE, 8]], [[5, IMAGE, 6, IMAGE]], [[5, IMAGE, 5, IMAGE]]):
        tiles = pixels if len(ids) == 2 or pixels.ndim == 4 else pixels.transpose(0, 1)
        prepared = model.expand(torch.tensor(ids), tiles)
        assert prepared.counts == [3, 3], ids
    whole = case.inputs([["a", 5, "c"], [6, "b"]])
    with pytest.raises(ShapeError, match="tilings must match the prompts"):
        model.expand(**whole, tilings=[(1, 2), (1, 1), (2, 2)])
