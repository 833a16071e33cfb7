"""Videos in every family whose stock class accepts them, with a small random model of each."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from regiontok import Regionizer
from regiontok.adapters.huggingface import FAMILIES, load_model, with_regions
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from tests.conftest import assert_close
from tests.families import CASES, IMAGE, VIDEO
from tests.models import IDENTITY
from tests.video_families import CASES_WITH_VIDEOS, MIXED, ROWS, TWO, for_stock, inputs_of

GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
GLM = ("GLM-4.1V", "GLM-4.5V", "GLM-4.6V")
BROKEN_BEAMS = (*GLM, "VideoLlama3")
"""Stock beam search with a video fails: frames have the placeholders of images, or fewer of them than patches."""


@pytest.fixture(scope="module", params=CASES_WITH_VIDEOS, ids=lambda name: name.replace(" ", "-"))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def stock(name):
    return CASES[name].make()


@pytest.fixture(scope="module")
def model(stock):
    """Seven tokens per video, of chunks of at most three frames."""
    return with_regions(stock, averages(max_frames=3), video_num_regions=7)


def averages(**options):
    return Regionizer(pool="mean", norm="none", num_regions=6, **options)


def labels(given):
    ids = given["input_ids"]
    return ids.masked_fill((given["attention_mask"] == 0) | (ids == IMAGE) | (ids == VIDEO), -100)


def test_every_family_with_videos_has_a_case():
    classes = {family.title: with_regions(CASES[family.title].make(), num_regions=8) for family in FAMILIES}
    assert [title for title, model in classes.items() if model.model.accepts_videos] == list(CASES_WITH_VIDEOS)


def test_all_patches_equal_the_stock_model(subtests, name, stock):
    for options in (
        {"regionizer": Regionizer(**IDENTITY)},
        {"num_regions": "prompt"},
        {"num_regions": 10**6},
        {"keep": 1.0},
        {"num_regions": 6, "video_keep": 1.0, "positions": "first" if "Qwen" in name else None},
    ):
        model = with_regions(stock, **options)
        for rows, left in ((ROWS, True), (ROWS, False), (TWO, True)):
            if name == "SmolVLM" and rows is TWO:
                continue  # its stock class pads frames per sample
            with subtests.test(str(options), rows=rows, left=left):
                given = inputs_of(name, rows, left=left)
                inside = given["attention_mask"].bool()
                expected = stock(**for_stock(name, given, rows)).logits
                assert torch.equal(model(**given).logits[inside], expected[inside])
                short = inputs_of(name, rows, left=left, whole=False)
                if "regionizer" in options:
                    expanded = model.expand(**short, left=left).inputs
                    assert torch.equal(expanded["input_ids"], given["input_ids"])


def test_generation_with_all_patches_equals_the_stock_model(name, stock):
    model = with_regions(stock, Regionizer(**IDENTITY))
    for options in ({}, {"num_beams": 2}):
        if options and name in BROKEN_BEAMS:
            continue
        given = inputs_of(name)
        expected = stock.generate(**for_stock(name, given), **GREEDY, **options)
        assert torch.equal(model.generate(**given, **GREEDY, **options), expected)


def test_images_beside_videos_equal_the_stock_model(name, stock):
    if name in (*GLM, "SmolVLM"):
        pytest.skip("the stock class takes either images or videos")
    given = inputs_of(name, MIXED)
    expected = stock(**for_stock(name, given, MIXED)).logits
    logits = with_regions(stock, Regionizer(**IDENTITY))(**given).logits
    inside = given["attention_mask"].bool()
    assert_close(logits[inside], expected[inside])


def test_region_prompts_equal_stock_prompts(name, model):
    for rows in (ROWS, TWO, MIXED):
        given = inputs_of(name, rows)
        expanded = model.expand(**given, left=True)
        counts = expanded.videos.counts
        assert counts == [7, 4 if name == "Gemma 4" else 7]  # whose second video has four patches
        assert int(expanded.videos.columns.sum()) == sum(counts)
        written = given | {
            key: expanded.inputs[key]
            for key in ("input_ids", "attention_mask", "mm_token_type_ids")
            if key in expanded.inputs
        }
        assert written["input_ids"].shape[1] < given["input_ids"].shape[1]
        inside = written["attention_mask"].bool()
        logits = model(**expanded.inputs).logits[inside]
        assert torch.equal(model(**written).logits[inside], logits)
        for options in ({}, {"num_beams": 2}):
            made = model.generate(**expanded.inputs, **GREEDY, **options)[:, -4:]
            assert torch.equal(model.generate(**written, **GREEDY, **options)[:, -4:], made)
            assert torch.equal(model.generate(**given, **GREEDY, **options)[:, -4:], made)
        again = model.expand(**written, left=True).inputs
        assert torch.equal(again["input_ids"], expanded.inputs["input_ids"])
        moved = model(**given, labels=labels(given))
        assert moved.logits.shape[:2] == given["input_ids"].shape
        assert_close(moved.loss, model(**written, labels=labels(written)).loss)


def test_a_batch_equals_its_samples(name, model):
    together = model.generate(**inputs_of(name, MIXED), **GREEDY)[:, -4:]
    for row, words in enumerate(MIXED):
        assert torch.equal(model.generate(**inputs_of(name, [words]), **GREEDY)[0, -4:], together[row])


def test_budgets_per_video_and_their_counts(name, stock):
    model = with_regions(stock, averages(), video_keep=0.5)
    given = inputs_of(name)
    grids = {
        key: given[key]
        for key in ("pixel_values_videos", "video_grid_thw", "video_merge_sizes", "video_position_ids", "num_frames_per_video")
        if key in given
    }  # fmt: skip
    newline = model.model.video_newlines
    for budget in ({"video_num_regions": [5, 4]}, {"video_num_regions": 4}, {"video_keep": [0.5, 1.0]}, {}):
        counts = model.expand(**given, **budget).videos.counts
        options = {option.removeprefix("video_"): value for option, value in budget.items()}
        if name != "VideoLlama3":  # which drops patches
            numbers = model.num_video_tokens(**grids, **options)
            frames = 3 if name == "VideoLLaVA" else 0  # class tokens, if every patch is a token
            assert numbers == [
                count + newline + frames * (budget.get("video_keep") == [0.5, 1.0] and number == 1)
                for number, count in enumerate(counts)
            ]
            ids = model.expand(**given, **budget).inputs["input_ids"]
            assert sum(numbers) == int(((ids == IMAGE) | (ids == VIDEO)).sum())
        if "video_num_regions" in budget:
            assert counts == (budget["video_num_regions"] if isinstance(budget["video_num_regions"], list) else [4, 4])
        tokens = model.encode_video_regions(given["pixel_values_videos"], **options, **{
            key: value for key, value in given.items() if key in model.model.video_inputs and key != "mm_token_type_ids"
        })  # fmt: skip
        assert len(tokens) == sum(counts)
    # One number for images holds for videos too, if the model has none for them.
    few = min(6, 4 if name == "Gemma 4" else 6)
    assert with_regions(stock, averages()).expand(**given).videos.counts == [6, few]
    assert with_regions(stock, averages()).expand(**given, num_regions=4).videos.counts == [4, 4]


def test_regions_stay_in_their_chunk_and_follow_its_first_frame(name, model):
    given = inputs_of(name, [[5, "v", 7]])
    expanded = model.expand(**given)
    tiles = expanded.videos.tiles
    if not CASES_WITH_VIDEOS[name].per_frame:
        assert len(tiles) == 1
        assert expanded.videos.regions.durations().max() <= 3
        return
    frames = sum(tile.frames for tile in tiles)
    assert [tile.frames for tile in tiles] == [min(3, frames - start) for start in range(0, frames, 3)]
    ids = expanded.inputs["input_ids"][0].tolist()
    times = [token for token in ids if 70 <= token < 80]
    assert times == [70, *([73] if frames > 3 else [])]
    kept = with_regions(model, averages(max_frames=3), video_num_regions=7, empty_frames="keep")
    ids = kept.expand(**given).inputs["input_ids"][0].tolist()
    assert [token for token in ids if 70 <= token < 80] == [70 + frame for frame in range(frames)]
    assert sum(token in (IMAGE, VIDEO) for token in ids) == int(expanded.videos.columns.sum())
    kept.generate(**given, **GREEDY)
    with pytest.raises(ValueRangeError, match="the budget of a video must be at least the number of its chunks"):
        with_regions(model, averages(max_frames=1), video_num_regions=2).expand(**given)


@pytest.mark.parametrize("positions", ["centroid", "first"])
@pytest.mark.parametrize("family", ["Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL"])
def test_positions_are_means_of_the_stock_positions(family, positions):
    """In one block, of the positions of all patches; after a timestamp, of rows and columns in the block of the chunk."""
    stock = CASES[family].make()
    given = inputs_of(family, [[5, "v", 7]])
    whole = with_regions(stock, Regionizer(**IDENTITY)).expand(**given).inputs
    patch_positions = whole["position_ids"][1:, 0][:, whole["input_ids"][0] == VIDEO].float()
    model = with_regions(stock, averages(max_frames=3), video_num_regions=7, positions=positions)
    expanded = model.expand(**given)
    found = expanded.inputs["position_ids"][1:, 0][:, expanded.videos.columns[0]].float()
    regions = expanded.videos.regions
    if family == "Qwen3-VL":
        ids, times = expanded.inputs["input_ids"][0], expanded.inputs["position_ids"][1, 0]
        before = [int(column) for column in (ids == 97).nonzero()]  # a block follows the tag
        starts = torch.stack([times[column] + 1 for column in before]).float()
        place = regions.centroids()[:, 1:]
        if positions == "first":
            cells = regions.grids[regions.image][:, 2]
            first = regions.patch[regions.starts] % (regions.grids[regions.image][:, 1] * cells)
            place = torch.stack([first // cells, first % cells], 1)
        expected = starts[regions.image] + torch.cat([torch.zeros(len(place), 1), place], 1).T
    else:
        chosen = [regions.patch[regions.region == number] for number in range(len(regions))]
        chosen = [patch[:1] if positions == "first" else patch for patch in chosen]
        expected = torch.stack([patch_positions[:, patch].mean(1) for patch in chosen], 1)
    assert_close(found, expected)
    rotary = model.model(
        **given | {key: expanded.inputs[key] for key in ("input_ids", "attention_mask", "mm_token_type_ids")}
    )
    assert rotary.video_outputs.regions.counts.sum() == 7
    deltas = model.model.rope_deltas + expanded.inputs["input_ids"].shape[1]
    stock.model(**given)
    assert torch.equal(deltas, stock.model.rope_deltas + given["input_ids"].shape[1]) or family == "Qwen3-VL"


def test_budgets_of_the_prompt(name, stock, model):
    expanded = model.expand(**inputs_of(name, MIXED), left=True).inputs
    written = inputs_of(name, MIXED) | {
        key: expanded[key] for key in ("input_ids", "attention_mask", "mm_token_type_ids") if key in expanded
    }
    free = with_regions(stock, Regionizer(pool="mean", norm="none", num_regions="prompt", max_frames=3))
    inside = written["attention_mask"].bool()
    assert torch.equal(free(**written).logits[inside], model(**written).logits[inside])


def test_regionizers_without_a_budget_and_other_orders(name, stock):
    """The number of regions is then known only after encoding, and prompts are rewritten."""
    given = inputs_of(name, MIXED)
    for options in ({"threshold": 0.9}, {"linkage": "ward", "explained_variance": 0.8}):
        model = with_regions(stock, Regionizer(pool="mean", norm="none", max_frames=2, **options))
        expanded = model.expand(**given, left=True)
        assert torch.equal(
            model.generate(**expanded.inputs, **GREEDY)[:, -4:], model.generate(**given, **GREEDY)[:, -4:]
        )
    patches = with_regions(stock, Regionizer(**IDENTITY)).expand(**inputs_of(name))
    by_area = with_regions(stock, Regionizer(**IDENTITY | {"order": "centroid"})).expand(**inputs_of(name))
    for first, second in zip(patches.videos.regions.split(), by_area.videos.regions.split(), strict=True):
        cells = first.grids[0, 1] * first.grids[0, 2]
        if CASES_WITH_VIDEOS[name].per_frame:  # each token stays in the block of its frame
            assert torch.equal(first.patch // cells, second.patch // cells)
        assert torch.equal(first.patch, second.patch.sort().values)


def test_models_are_saved_and_loaded_with_their_budget_for_videos(name, model, tmp_path):
    given = inputs_of(name, MIXED)
    expected = model.generate(**given, **GREEDY)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config.regiontok_videos == {"num_regions": 7}
    assert torch.equal(loaded.generate(**given, **GREEDY), expected)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft calls it
def test_lora_with_videos(name, stock, tmp_path):
    def make():
        return with_regions(copy.deepcopy(stock), averages(max_frames=3), video_num_regions=7)

    options = LoraConfig(target_modules=r".*(language_model|text_model).*\.q_proj")
    model = get_peft_model(make(), options).train()
    given = inputs_of(name, MIXED)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.5)
    for _ in range(2):
        model(**given, labels=labels(given)).loss.backward()
        optimizer.step()
    expected = model.eval()(**given, labels=labels(given)).loss
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make(), tmp_path).eval()
    assert_close(loaded(**given, labels=labels(given)).loss, expected)


def test_inputs_that_do_not_match_are_rejected(name, model, stock):
    given = inputs_of(name)
    with pytest.raises(ShapeError, match=r"stock model .* processor = region_processor\(processor, model\)"):
        model(**given)
    without = {key: value for key, value in given.items() if key != "pixel_values_videos"}
    with pytest.raises(ShapeError, match="video placeholders, and there are no pixel_values_videos"):
        model.generate(**without)
    with pytest.raises(DTypeError, match="pixel_values_videos must be a tensor"):
        model.generate(**given | {"pixel_values_videos": []})
    text = inputs_of(name, [[5, 6]])
    with pytest.raises(ValueRangeError, match="a budget of tokens for videos and no pixel_values_videos"):
        model(**text, video_keep=0.5)
    masked = with_regions(stock, Regionizer(source="segmentation", pool="mean", norm="none"))
    with pytest.raises(ValueRangeError, match="region models take masks of images only"):
        masked.generate(**given)


def test_text_without_videos_has_the_loss_of_the_stock_model(name, stock):
    model = with_regions(copy.deepcopy(stock), averages(), video_num_regions=7).train()
    ids = torch.tensor([[5, 6, 7]])
    loss = model(input_ids=ids, labels=ids).loss
    assert_close(loss, stock(input_ids=ids, labels=ids).loss)
    loss.backward()


def test_options_of_videos_need_a_family_that_accepts_them():
    stock = CASES["LLaVA-1.5"].make()
    with pytest.raises(ValueRangeError, match="videos=.* requires families that accept videos"):
        with_regions(stock, num_regions=6, video_num_regions=7)
    model = with_regions(stock, num_regions=6)
    for call in (model, model.generate, model.model):
        with pytest.raises(ValueRangeError, match="LlavaForConditionalGeneration does not accept videos"):
            call(**CASES["LLaVA-1.5"].inputs(), pixel_values_videos=torch.zeros(1))
    with pytest.raises(ValueRangeError, match="empty_frames must be one of"):
        with_regions(CASES["Qwen3-VL"].make(), num_regions=6, empty_frames="hide")
