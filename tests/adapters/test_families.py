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
    RegionQwen2_5_VLForConditionalGeneration,
    geometry_of,
    with_regions,
)
from regiontok.errors import ShapeError, ValueRangeError
from tests.conftest import assert_close
from tests.families import CASES, expanded_logits
from tests.models import IMAGE, tiny_llava, tiny_onevision, tiny_qwen

IDENTITY = {"source": "patch", "pool": "mean", "norm": "none"}
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


def test_several_layers_are_joined():
    stock = tiny_llava(vision_feature_layer=[-2, -1])
    model = with_regions(stock, Regionizer(dim=64, num_heads=4, **IDENTITY))
    ids = torch.tensor([[5] + [IMAGE] * 16 + [6]])
    pixels = torch.randn(1, 3, 56, 56)
    assert torch.equal(
        model(input_ids=ids, pixel_values=pixels).logits, stock(input_ids=ids, pixel_values=pixels).logits
    )


def test_radio_of_transformers_is_a_tower():
    config = RadioConfig(image_size=64, patch_size=16, intermediate_size=64, **SIZES)
    stock = tiny_llava(config, vision_feature_layer=-1, vision_feature_select_strategy="full")
    patches = with_regions(stock, Regionizer(**IDENTITY)).encode_patches(torch.rand(1, 3, 64, 64))
    assert patches.features.shape == (1, 4, 4, 32)


def test_a_model_of_timm_is_a_tower():
    model_args = {"img_size": 64, "depth": 2}
    config = TimmWrapperConfig(
        architecture="vit_tiny_patch16_224", model_args=model_args, hidden_size=192, image_size=64
    )
    stock = tiny_llava(config, vision_feature_layer=-1, vision_feature_select_strategy="full")
    model = with_regions(stock, Regionizer(source="clustering", dim=192, num_heads=3, num_regions=5))
    assert model.encode_patches(torch.rand(2, 3, 64, 64)).features.shape == (2, 4, 4, 192)
    made = model.generate(
        input_ids=torch.tensor([[4, IMAGE, 5]]), pixel_values=torch.rand(1, 3, 64, 64), max_new_tokens=2
    )
    assert made.shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "options"), [("pixels", {"img_size": 64}), ("timm:vit_tiny_patch16_224", {"img_size": 64}), ("open_clip:ViT-B-32", {})]
)  # fmt: skip
def test_any_encoder_of_ours_is_a_tower_and_is_saved_with_the_model(name, options, tmp_path, china):
    config = EncoderConfig.of(name, **options)
    stock = tiny_llava(config, vision_feature_layer=-1, vision_feature_select_strategy="full")
    model = with_regions(stock, Regionizer(source="clustering", dim=config.hidden_size, num_heads=4, threshold=0.8))
    encoder = stock.model.vision_tower.encoder
    pixels, _ = encoder.preprocess(china)
    features = model.encode_patches(pixels).features
    assert_close(features, encoders.Encoder.encode(encoder, pixels))
    model.save_pretrained(tmp_path)
    loaded = RegionLlavaForConditionalGeneration.from_pretrained(tmp_path)
    given = {"input_ids": torch.tensor([[4, IMAGE, 5]]), "pixel_values": pixels}
    assert torch.equal(expanded_logits(loaded, **given), expanded_logits(model, **given))
    loaded.train()(input_ids=torch.tensor([[4, 5]]), labels=torch.tensor([[4, 5]])).loss.backward()
    assert loaded.regionizer.pool.out.weight.grad is not None


def test_an_encoder_without_weights_goes_along_to_another_dtype(china):
    stock = tiny_llava(
        EncoderConfig.of("pixels", img_size=64), vision_feature_layer=-1, vision_feature_select_strategy="full"
    )
    model = with_regions(stock.to(torch.bfloat16), Regionizer(dim=48, num_heads=4))
    pixels, _ = stock.model.vision_tower.encoder.preprocess(china)
    assert pixels.dtype == torch.float32
    assert expanded_logits(model, input_ids=torch.tensor([[4, IMAGE, 5]]), pixel_values=pixels).dtype == torch.bfloat16


def test_a_tower_that_merges_patches_is_refused():
    config = SiglipVisionConfig(intermediate_size=64, image_size=56, patch_size=14, **SIZES)
    stock = tiny_llava(config, vision_feature_layer=-1, vision_feature_select_strategy="full")
    stock.config.vision_config.patch_size = 7
    with pytest.raises(ShapeError, match="must give a feature per patch, 8 x 8 for images of 56 x 56; got 16 of them"):
        with_regions(stock, Regionizer(**IDENTITY)).encode_patches(torch.rand(1, 3, 56, 56))


def test_towers_that_cannot_be_are_refused():
    config = EncoderConfig.of("pixels", img_size=64)
    stock = tiny_llava(config)  # LLaVA's default, the layer before the last
    with pytest.raises(
        ValueRangeError, match=r"1 hidden states; got \[-2\]. An EncoderTower has one: set vision_feature_layer=-1"
    ):
        with_regions(stock, Regionizer(**IDENTITY)).encode_patches(torch.rand(1, 3, 64, 64))
    vision = PixtralVisionConfig(intermediate_size=64, image_size=56, patch_size=14, head_dim=16, **SIZES)
    stock = tiny_llava(vision, vision_feature_layer=-1, vision_feature_select_strategy="full")
    with pytest.raises(ShapeError, match="must give features of each of the 2 images; got 1. Towers that join images"):
        with_regions(stock, Regionizer(**IDENTITY)).encode_patches(torch.rand(2, 3, 56, 56))


def test_one_tile_of_onevision_is_its_regions():
    stock = tiny_onevision()
    model = with_regions(stock, Regionizer(**IDENTITY))
    tiles = torch.randn(2, 1, 3, 28, 28)
    for newline, length in (("row", 13), ("image", 13), ("drop", 11)):
        model = with_regions(stock, Regionizer(**IDENTITY), newline=newline)
        for run in (1, 5):  # 2 x 2 patches and the newline
            ids = torch.tensor([[5] + [IMAGE] * run + [6] + [IMAGE] * run + [7]])
            given = {"image_sizes": torch.tensor([[28, 28], [28, 28]]), "batch_num_images": torch.tensor([2])}
            assert expanded_logits(model, input_ids=ids, pixel_values=tiles, **given).shape[1] == length
    features = stock.model.multi_modal_projector(
        stock.model.vision_tower(tiles[:, 0], output_hidden_states=True).hidden_states[-1]
    )
    assert torch.equal(model.encode_regions(tiles).values, features.flatten(0, 1))
    with pytest.raises(ValueRangeError, match="pixel_values need image_sizes, the height and width of each image"):
        model.encode_patches(torch.randn(1, 3, 3, 28, 28))
    with pytest.raises(ValueRangeError, match="videos are not cut into regions"):
        model(input_ids=ids, pixel_values=tiles, pixel_values_videos=tiles)
    model.train()(input_ids=ids, pixel_values=tiles, labels=ids).loss.backward()
    assert all(
        parameter.grad is not None
        for parameter in (stock.model.image_newline, *stock.model.language_model.parameters())
    )


@pytest.fixture(scope="module")
def qwen():
    return tiny_qwen()


GRID = torch.tensor([[1, 4, 6], [1, 8, 4], [1, 2, 2]])
PATCHES = torch.randn(int(GRID.prod(1).sum()), 3 * 2 * 16, generator=torch.Generator().manual_seed(0))


def qwen_prompts(runs, *, left=True):
    first, second, third = ([97] + [IMAGE] * run + [96] for run in runs)
    rows = [[1, 2, *first, 5, 6, *second, 9], [4, *third, 7, 8], [3, 4, 5]]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) * left + row + [0] * (width - len(row)) * (not left) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


WRITTEN = qwen_prompts((GRID.prod(1) // 4).tolist())


def test_qwen_with_a_region_per_patch_gives_the_stock_models_logits_and_positions_to_the_bit(qwen):
    model = with_regions(qwen, Regionizer(**IDENTITY))
    kinds = (WRITTEN["input_ids"] == IMAGE).int()
    expected = qwen(**WRITTEN, pixel_values=PATCHES, image_grid_thw=GRID, mm_token_type_ids=kinds)
    deltas = qwen.model.rope_deltas
    for given in (WRITTEN, WRITTEN | {"mm_token_type_ids": kinds}):
        logits = model(**given, pixel_values=PATCHES, image_grid_thw=GRID).logits
        inside = WRITTEN["attention_mask"].bool()
        assert torch.equal(logits[inside], expected.logits[inside])
        assert torch.equal(model.model.rope_deltas, deltas)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}], ids=str)
def test_qwen_generates_as_the_stock_model_does(qwen, options):
    model = with_regions(qwen, Regionizer(**IDENTITY))
    given = {
        "pixel_values": PATCHES,
        "image_grid_thw": GRID,
        "mm_token_type_ids": (WRITTEN["input_ids"] == IMAGE).int(),
    }
    settings = {"max_new_tokens": 6, "do_sample": False} | options
    assert torch.equal(model.generate(**WRITTEN, **given, **settings), qwen.generate(**WRITTEN, **given, **settings))


def test_qwens_regions_stand_at_their_centroids_and_text_goes_on_after_the_image(qwen):
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


def test_qwen_in_a_batch_is_qwen_one_by_one_and_after_saving(qwen, tmp_path):
    model = with_regions(qwen, Regionizer(source="clustering", dim=64, num_heads=4, threshold=0.6))
    torch.nn.init.normal_(model.regionizer.pool.out.weight, std=0.3)
    given = qwen_prompts((1, 1, 1))
    together = model.generate(**given, pixel_values=PATCHES, image_grid_thw=GRID, max_new_tokens=5, do_sample=False)
    alone = model.generate(
        input_ids=given["input_ids"][1:2], attention_mask=given["attention_mask"][1:2], pixel_values=PATCHES[-4:],
        image_grid_thw=GRID[2:], max_new_tokens=5, do_sample=False,
    )  # fmt: skip
    assert torch.equal(together[1, -5:], alone[0, -5:])
    model.save_pretrained(tmp_path)
    loaded = RegionQwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    again = loaded.generate(**given, pixel_values=PATCHES, image_grid_thw=GRID, max_new_tokens=5, do_sample=False)
    assert torch.equal(again, together)


def test_qwens_text_after_an_image_is_as_before_it(qwen):
    model = with_regions(qwen, Regionizer(source="clustering", pool="mean", num_regions=1))
    text = torch.tensor([[3, 4, 5, 6]])
    settings = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    before = model.generate(input_ids=text, **settings)
    model.generate(**qwen_prompts((1, 1, 1)), pixel_values=PATCHES, image_grid_thw=GRID, max_new_tokens=2)
    kinds = torch.zeros_like(text, dtype=torch.int32)  # the processor writes it for text too
    after = model.generate(input_ids=text, mm_token_type_ids=kinds, **settings)
    assert all(torch.equal(one, other) for one, other in zip(before.logits, after.logits, strict=True))
    assert torch.equal(model(input_ids=text, mm_token_type_ids=kinds).logits, qwen(input_ids=text).logits)


def test_qwen_trains_on_text_alone_too(qwen):
    model = with_regions(tiny_qwen(), Regionizer(dim=64, num_heads=4)).train()
    ids = torch.tensor([[4, 5, 6]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.regionizer.pool.out.weight.grad is not None


def test_qwens_counts_are_told_from_its_grids(qwen):
    model = with_regions(qwen, Regionizer(**IDENTITY | {"source": "clustering", "num_regions": 5}))
    grids = torch.tensor([[1, 4, 4], [1, 8, 4]])
    pixels = torch.randn(int(grids.prod(1).sum()), model.blank_image()["pixel_values"].shape[1])
    for budget in (None, 6, [2, 7]):
        told = model.num_tokens(image_grid_thw=grids, num_regions=budget)
        assert told == model.encode_regions(pixels, image_grid_thw=grids, num_regions=budget).counts.tolist()
    assert told == [2, 7]


def test_qwens_bad_input_is_refused(qwen):
    model = with_regions(qwen, Regionizer(**IDENTITY))
    with pytest.raises(ValueRangeError, match="pixel_values need image_grid_thw"):
        model(**WRITTEN, pixel_values=PATCHES)
    with pytest.raises(ValueRangeError, match="videos are not cut into regions"):
        model(**WRITTEN, pixel_values=PATCHES, image_grid_thw=GRID, pixel_values_videos=PATCHES)


@pytest.mark.parametrize(
    ("processor", "geometry"),
    [
        (CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=336), ImageGeometry.center_crop(336)),
        (LlavaImageProcessor(size={"shortest_edge": 336}, crop_size=336, do_pad=True), ImageGeometry.letterbox(336)),
        (SiglipImageProcessor(size={"height": 378, "width": 378}), ImageGeometry.squash(378)),
    ],
    ids=["crop", "pad", "squash"],
)
def test_the_geometry_of_a_processor_places_images_as_it_does(processor, geometry, china):
    assert geometry_of(processor) == geometry
    mine = (
        torch.from_numpy(
            np.array(geometry.place((china.height, china.width)).image(china, fill=(122, 116, 104)))
        ).permute(2, 0, 1)
        / 255
    )
    theirs = processor(china, return_tensors="pt")["pixel_values"][0]
    mean, std = (torch.tensor(one)[:, None, None] for one in (processor.image_mean, processor.image_std))
    difference = (theirs * std + mean - mine).abs()
    assert difference.mean() < 0.01
    assert (difference > 0.1).float().mean() < 0.01


def test_an_encoders_own_processor_places_images_as_it_does(china, tmp_path):
    encoder = encoders.load("timm:vit_tiny_patch16_224", pretrained=False, img_size=64, geometry="letterbox")
    processor = EncoderImageProcessor.of(encoder)
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert geometry_of(loaded) == encoder.geometry
    given = loaded([[china, china.rotate(90, expand=True)], [china]], return_tensors="pt")
    assert given["image_sizes"].tolist() == [[427, 640], [640, 427], [427, 640]]
    assert torch.equal(given["pixel_values"][:1], encoder.preprocess(china)[0])
    with pytest.raises(ValueRangeError, match="this encoder only places images"):
        loaded.encoder(china)


def test_other_processors_are_refused():
    with pytest.raises(
        ValueRangeError, match=r"with size .*256.* and crop .*224.* is none of letterbox, squash or center crop"
    ):
        geometry_of(BitImageProcessor(size={"shortest_edge": 256}, crop_size=224))


def test_deepstack_features_are_means_over_the_same_regions():
    case = CASES["Qwen3-VL"]
    model = with_regions(case.make(), Regionizer(pool="mean", norm="none", num_regions=3))
    given = case.inputs()
    prepared = model.expand(**given)
    deep = prepared.inputs["mm_encoder_outputs"]["image"].deepstack_features
    stock = case.make().get_image_features(given["pixel_values"], given["image_grid_thw"]).deepstack_features
    assert len(deep) == len(stock) == 2
    masks = [mask.flatten(1).float() for mask in prepared.regions.masks()]
    for found, layer in zip(deep, stock, strict=True):
        expected = [mask @ one / mask.sum(1, keepdim=True) for mask, one in zip(masks, layer, strict=True)]
        assert_close(torch.cat(found), torch.cat(expected))


@pytest.mark.parametrize("name", ["LLaVA-NeXT", "LLaVA-OneVision"])
def test_newlines_stand_where_they_are_told_to(name):
    case = CASES[name]
    stock, given = case.make(), case.inputs()
    more = {"batch_num_images": given["batch_num_images"]} if "batch_num_images" in given else {}
    regionizer = Regionizer(pool="mean", norm="none", num_regions=7)
    for newline, added in (("drop", [0, 0, 0]), ("image", [1, 1, 1])):
        model = with_regions(stock, regionizer, newline=newline)
        prepared = model.expand(**given)
        held = (prepared.inputs["input_ids"] == IMAGE).sum()
        assert held == sum(prepared.counts) + sum(added)
        told = model.num_tokens(given["image_sizes"], **more)
        assert told == [count + one for count, one in zip(prepared.counts, added, strict=True)]
        values = torch.cat(prepared.inputs["mm_encoder_outputs"]["image"].pooler_output)
        is_newline = (values == stock.model.image_newline).all(1)
        assert is_newline.sum() == sum(added)
        ends = torch.tensor(told).cumsum(0) - 1
        assert is_newline[ends].tolist() == [bool(one) for one in added]
    rows = with_regions(stock, regionizer, newline="row").expand(**given)
    assert 3 <= (rows.inputs["input_ids"] == IMAGE).sum() - sum(rows.counts) <= sum(rows.counts)
    patches = with_regions(stock, Regionizer(**IDENTITY, padding="keep"))
    assert patches.model.newline_of(True) == "row"
    told = patches.num_tokens(given["image_sizes"], **more)
    assert sum(told) == (patches.expand(**given).inputs["input_ids"] == IMAGE).sum()
    shuffled = with_regions(stock, Regionizer(**IDENTITY, order="random"))
    assert shuffled.model.newline_of(True) == "drop"
    with pytest.raises(ValueRangeError, match="newline='row' needs order='raster'"):
        with_regions(stock, Regionizer(**IDENTITY, order="area"), newline="row")
    with pytest.raises(ValueRangeError, match="newline=.drop. is for families whose tiles are packed"):
        with_regions(CASES["Gemma 3"].make(), regionizer, newline="drop")
    assert with_regions(with_regions(stock, regionizer, newline="image"), regionizer).model.newline_of(False) == "drop"


def test_a_large_image_of_onevision_is_scaled_as_its_placeholders_are():
    case = CASES["LLaVA-OneVision"]
    stock, given = case.make(), case.inputs([[3, "c", 4]]) | {"vision_aspect_ratio": "anyres_max_1"}
    (stocks,) = stock.get_image_features(
        **{one: given[one] for one in given if one not in ("input_ids", "attention_mask")}
    ).pooler_output
    model = with_regions(stock, Regionizer(**IDENTITY, padding="keep"))
    given |= {
        one: torch.tensor([[3, IMAGE, 4]]) if one == "input_ids" else torch.ones(1, 3)
        for one in ("input_ids", "attention_mask")
    }
    prepared = model.expand(**given)
    assert (prepared.inputs["input_ids"] == IMAGE).sum() == len(stocks)
    assert prepared.views[1].patches < 32
    values = prepared.inputs["mm_encoder_outputs"]["image"].pooler_output[0]
    assert (
        torch.cosine_similarity(values.flatten(), stocks.flatten(), 0) > 0.99
    )  # scaled before the projector, not after
    with pytest.raises(ValueRangeError, match="vision_aspect_ratio must be anyres_max_ and a number of tiles"):
        model.expand(**given | {"vision_aspect_ratio": "anyres"})


@pytest.mark.parametrize("name", ["Idefics3", "SmolVLM", "Aya Vision", "Cohere2 Vision"])
def test_images_of_one_tile_are_images_of_their_own_whatever_is_beside_them(name):
    """One placeholder each, with other words before; and two samples whose images must not become one."""
    case = CASES[name]
    model = with_regions(case.make(), Regionizer(pool="mean", norm="none", num_regions=3))
    pixels = torch.randn(2, 3, 56, 56)
    pixels = pixels[:, None] if name in ("Idefics3", "SmolVLM") else pixels
    for ids in ([[5, IMAGE, 8], [6, IMAGE, 8]], [[5, IMAGE, 6, IMAGE]], [[5, IMAGE, 5, IMAGE]]):
        given = pixels if len(ids) == 2 or pixels.ndim == 4 else pixels.transpose(0, 1)
        prepared = model.expand(torch.tensor(ids), given)
        assert prepared.counts == [3, 3], ids
    whole = case.inputs([["a", 5, "c"], [6, "b"]])
    with pytest.raises(ShapeError, match="tiles must be those of the prompts"):
        model.expand(**whole, tiles=[(1, 2), (1, 1), (2, 2)])
