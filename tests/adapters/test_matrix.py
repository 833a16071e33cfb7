"""What every family keeps, on a small random model of each: `tests.families` has them all."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from regiontok import ImageGeometry, Regionizer
from regiontok.adapters.huggingface import FAMILIES, load_model, with_regions, without_regions
from regiontok.errors import CheckpointError, ShapeError, ValueRangeError
from tests.conftest import assert_close
from tests.families import CASES, IMAGE, ROWS

IDENTITY = {"source": "patch", "pool": "mean", "norm": "none", "padding": "keep"}
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
OWN_BEAMS = ("GLM-4.1V", "GLM-4.5V", "GLM-4.6V")
"""Their stock classes give beams the photos of a sample as A A B B, where its prompts have A B A B."""


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def case(name):
    return CASES[name]


@pytest.fixture(scope="module")
def stock(case):
    return case.make()


def lively(model):
    """A pool that is more than the mean."""
    torch.manual_seed(0)
    torch.nn.init.normal_(model.regionizer.pool.out.weight, std=0.3)
    return model


def clustered(stock, **options):
    plain = with_regions(stock, Regionizer(**IDENTITY))
    budget = 6 if plain.places_photos else 3  # tiles need a token each
    settings = {"dim": plain.patch_dim, "num_heads": 4, "num_regions": budget}
    return lively(with_regions(stock, Regionizer(**settings | options)))


def labels(given):
    ids = given["input_ids"]
    return ids.masked_fill((given["attention_mask"] == 0) | (ids == IMAGE), -100)


def test_the_table_has_every_case_and_names_its_class():
    assert [family.title for family in FAMILIES] == list(CASES)
    for family in FAMILIES:
        assert type(CASES[family.title].make()).__name__ == family.stock
        assert family.model.__name__ == f"Region{family.stock}"


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_a_region_per_patch_gives_the_stock_models_logits_to_the_bit(case, stock, left, whole):
    model = with_regions(stock, Regionizer(**IDENTITY))
    written = case.inputs(left=left)
    inside = written["attention_mask"].bool()
    expected = stock(**written, **case.for_stock(written)).logits[inside]
    prepared = model.prepare(**case.inputs(left=left, whole=whole), left=left)
    assert torch.equal(prepared.inputs["input_ids"], written["input_ids"])
    assert torch.equal(model(**case.inputs(left=left, whole=whole)).logits[inside], expected)


def test_it_generates_as_the_stock_model_does(name, case, stock):
    model = with_regions(stock, Regionizer(**IDENTITY))
    for options in ({}, {"num_beams": 2}):
        rows = [["a", 7, 8], [6, 7], [3, "c", 4]] if options and name in OWN_BEAMS else ROWS
        given = case.inputs(rows)
        expected = stock.generate(**given, **case.for_stock(given), **GREEDY, **options)
        assert torch.equal(model.generate(**case.inputs(rows), **GREEDY, **options), expected)


def test_a_batch_gives_what_its_samples_give_one_by_one(case, stock):
    model = clustered(stock)
    prepared = model.prepare(**case.inputs())
    logits = model(**case.inputs()).logits
    for options in ({}, {"num_beams": 2}):
        together = model.generate(**case.inputs(), **GREEDY, **options)
        for row, words in enumerate(ROWS):
            assert torch.equal(model.generate(**case.inputs([words]), **GREEDY, **options)[0, -4:], together[row, -4:])
    for row, words in enumerate(ROWS):
        assert_close(logits[row][prepared.layout.mask[row].bool()], model(**case.inputs([words])).logits[0])


def test_budgets_are_per_photo_and_known_before(case, stock):
    model = with_regions(stock, Regionizer(pool="mean", norm="none", num_regions=7))
    given = case.inputs(whole=False)
    known = ("tiles", "image_grid_thw", "image_position_ids", "batch_num_images")
    more = {name: given[name] for name in known if name in given}
    for budget in (None, 9, [7, 8, 9]):
        prepared = model.prepare(**given, num_regions=budget)
        found = [0, 0, 0]
        for view, count in zip(prepared.views, prepared.regions.counts.tolist(), strict=True):
            found[view.photo] += count
        assert model.num_tokens(given.get("image_sizes"), images=3, num_regions=budget, **more) == found
        sizes = None if "image_sizes" not in given else given["image_sizes"].tolist()
        patches = [0, 0, 0]
        for view in prepared.views:
            valid = view.valid(sizes)  # padding is in no region
            patches[view.photo] += view.patches if valid is None else int(valid.sum())
        wanted = budget if isinstance(budget, list) else [budget or 7] * 3
        assert found == [min(one, all_) for one, all_ in zip(wanted, patches, strict=True)]
        assert int(prepared.columns.sum()) == sum(found)


def test_masks_are_of_photos_and_cut_with_them(case, stock):
    """The left half of a photo is the left half of each grid that shows all of it, and so much of each tile."""
    geometry = None if with_regions(stock, Regionizer(**IDENTITY)).places_photos else ImageGeometry.squash(56)
    model = with_regions(stock, Regionizer(source="segmentation", pool="mean", norm="none", geometry=geometry))
    given = case.inputs(whole=False)
    if case.tiles == [3, 3, 3]:
        given["tiles"] = [(1, 2)] * 3
    sizes = given["image_sizes"].tolist() if "image_sizes" in given else [(56, 56), (112, 112), (56, 112)]
    masks = [np.zeros((1, *size), bool) for size in sizes]
    for one in masks:
        one[:, :, : one.shape[2] // 2] = True
    prepared = model.prepare(**given, masks=masks)
    regions = prepared.regions
    assert len(regions) == len(prepared.views)
    for view, one in zip(prepared.views, regions.masks(), strict=True):
        _, cols = view.grid
        canvas_cols = cols if view.canvas is None else view.canvas.grid[1]
        left = 0 if view.canvas is None else view.canvas.left
        if left >= canvas_cols / 2 or cols == 1:  # nothing is left of the mask: one region of all
            continue
        letterboxed = view.canvas is not None and view.canvas.geometry.mode == "letterbox"
        inside = min(cols, max(1, round(canvas_cols / 2 - left)))
        if not letterboxed:
            assert one[0, :, :inside].all()
            assert not one[0, :, inside:].any() or inside == cols
    with pytest.raises(ShapeError, match="masks must have one entry per"):
        model.prepare(**given, masks=masks[:2])


def test_loss_is_the_stock_models_and_every_weight_gets_its_gradient(case, stock):
    identity = with_regions(stock, Regionizer(**IDENTITY))
    written = case.inputs()
    expected = stock(**written, **case.for_stock(written), labels=labels(written)).loss
    assert_close(identity(**written, labels=labels(written)).loss, expected)
    with pytest.raises(ValueRangeError, match="labels need all logits; logits_to_keep leaves some out"):
        identity(**written, labels=labels(written), logits_to_keep=1)

    def gradients(checkpointing):
        model = clustered(case.make()).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model(**case.inputs(), labels=labels(written)).loss.backward()
        return {name: one.grad for name, one in model.named_parameters() if "regionizer" in name or "language" in name}

    plain, saved = gradients(False), gradients(True)
    assert plain["regionizer.pool.out.weight"].any()
    for one, gradient in plain.items():
        if gradient is not None:
            assert_close(saved[one], gradient)


def test_text_alone_reaches_the_regionizer_and_changes_nothing(case, stock):
    model = clustered(case.make())
    ids = torch.tensor([[5, 6, 7]])
    expected = stock(input_ids=ids, labels=ids)
    output = model.train()(input_ids=ids, labels=ids)
    assert_close(output.loss, expected.loss)
    output.loss.backward()
    for one, parameter in model.named_parameters():
        if any(part in one for part in ("regionizer", "projector", "connector", "newline", "embed_vision")):
            assert parameter.grad is not None, one
            assert not parameter.grad.any(), one


def test_saved_and_loaded_it_is_the_same_and_a_stock_checkpoint_loses_nothing(case, stock, tmp_path):
    model = clustered(stock)
    expected = model(**case.inputs()).logits
    model.save_pretrained(tmp_path / "regions")
    loaded, report = type(model).from_pretrained(tmp_path / "regions", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for one, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[one], weight), one
    assert_close(loaded(**case.inputs()).logits, expected)  # in other memory, where matrix products may round otherwise
    assert type(load_model(tmp_path / "regions")) is type(model)
    back = type(stock).from_pretrained(tmp_path / "regions")
    written = case.inputs()
    whole = stock(**written, **case.for_stock(written)).logits
    assert torch.equal(back(**written, **case.for_stock(written)).logits, whole)
    stock.save_pretrained(tmp_path / "stock")
    fresh = type(model).from_pretrained(tmp_path / "stock", regionizer=model.regionizer)
    assert_close(fresh(**case.inputs()).logits, expected)
    for one, weight in stock.state_dict().items():
        assert torch.equal(fresh.state_dict()[one], weight), one
    as_it_was = load_model(tmp_path / "stock")
    assert torch.equal(as_it_was(**case.inputs()).logits, whole)
    with pytest.raises(CheckpointError, match="its config names none: it is of a stock model"):
        type(model).from_pretrained(tmp_path / "stock")


def test_the_stock_model_stays_as_it_is_and_comes_back(case, stock):
    written = case.inputs()
    before = stock(**written, **case.for_stock(written)).logits
    model = clustered(stock)
    assert not hasattr(stock.config, "regiontok")
    assert torch.equal(stock(**written, **case.for_stock(written)).logits, before)
    back = without_regions(model)
    assert type(back) is type(stock)
    assert torch.equal(back(**written, **case.for_stock(written)).logits, before)
    assert not [one for one in vars(back.config) if "regiontok" in one]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft calls it
def test_lora_is_trained_saved_and_loaded(case, tmp_path):
    options = LoraConfig(target_modules=r".*(language_model|text_model).*\.q_proj", modules_to_save=["regionizer.pool"])
    model = get_peft_model(clustered(case.make()), options).train()
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.5)
    for _ in range(2):
        model(**case.inputs(), labels=labels(case.inputs())).loss.backward()
        optimizer.step()
    expected = model.eval()(**case.inputs()).logits
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(clustered(case.make()), tmp_path).eval()
    assert_close(loaded(**case.inputs()).logits, expected)
    assert not torch.equal(clustered(case.make())(**case.inputs()).logits, expected)


def test_it_takes_the_models_dtype(case):
    stock = case.make().to(torch.bfloat16)
    given = case.inputs()
    model = clustered(stock)
    assert model.regionizer.pool.out.weight.dtype == torch.bfloat16
    logits = model(**given).logits
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    identity = with_regions(stock, Regionizer(**IDENTITY))(**given).logits
    inside = given["attention_mask"].bool()
    assert torch.equal(identity[inside], stock(**given, **case.for_stock(given)).logits[inside])


def test_other_media_are_refused_by_name(case, stock):
    model = with_regions(stock, Regionizer(**IDENTITY))
    for given, message in (
        ({"pixel_values_videos": torch.zeros(1)}, "videos are not cut into regions. Leave pixel_values_videos out"),
        ({"input_features": torch.zeros(1)}, "sounds are not cut into regions. Leave input_features out"),
    ):
        for call in (model, model.generate):
            with pytest.raises(ValueRangeError, match=message):
                call(**case.inputs(), **given)


def test_prompts_that_were_truncated_say_so(case, stock):
    model = with_regions(stock, Regionizer(**IDENTITY))
    given = case.inputs([[5, "a"]])
    last = int((given["input_ids"][0] == IMAGE).nonzero().max())
    with pytest.raises(ShapeError, match=r"ends inside a run of them, \d+ long, as a prompt does that was truncated"):
        model(**given | {name: given[name][:, :last] for name in ("input_ids", "attention_mask")})


def test_two_processes_of_which_one_has_text_alone_finish_with_equal_weights(tmp_path):
    """Of every mechanism. One process has no image in any batch; the other would wait for its gradients."""
    names = ["LLaVA-1.5", "LLaVA-NeXT", "Gemma 3", "InternVL", "SmolVLM", "Qwen3-VL", "Gemma 4"]
    assert {family.mechanism for family in FAMILIES if family.title in names} == {one.mechanism for one in FAMILIES}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m",
         "tests.adapters.two_processes", str(tmp_path), *names],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for name in names:
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1))
        assert first["losses"] != second["losses"]
        for one, weight in first["weights"].items():
            assert torch.equal(weight, second["weights"][one]), (name, one)
        assert first["weights"]["regionizer.pool.out.weight"].any()
