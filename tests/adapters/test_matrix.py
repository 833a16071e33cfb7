"""What every family keeps, on a small random model of each: `tests.families` has them all."""

import inspect
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText

from regiontok import ImageGeometry, Regionizer
from regiontok.adapters import huggingface
from regiontok.adapters.huggingface import FAMILIES, TilesMixin, load_model, with_regions, without_regions
from regiontok.errors import CheckpointError, ShapeError, UnknownOptionError, ValueRangeError
from tests.conftest import assert_close
from tests.families import CASES, IMAGE, PAD, ROWS

IDENTITY = {"source": "patch", "pool": "mean", "norm": "none", "padding": "keep"}
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
OWN_BEAMS = ("GLM-4.1V", "GLM-4.5V", "GLM-4.6V")
"""Their stock classes give beams the images of a sample as A A B B, where its prompts have A B A B."""


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
    budget = 6 if plain.places_images else 3  # tiles need a token each
    settings = {"dim": plain.patch_dim, "num_heads": 4, "num_regions": budget}
    return lively(with_regions(stock, Regionizer(**settings | options)))


def labels(given):
    ids = given["input_ids"]
    return ids.masked_fill((given["attention_mask"] == 0) | (ids == IMAGE), -100)


def written_for(model, case, rows=ROWS, *, left=True, **budget):
    """Inputs with a placeholder per region, as a region processor writes them."""
    given = case.inputs(rows, left=left)
    if "pixel_values" not in given:
        return given
    tiles = {} if case.tiles is None else {"tiles": [case.tiles["abc".index(word)] for row in rows for word in row if isinstance(word, str)]}  # fmt: skip
    given = given | tiles | budget
    laid = model.expand(**given, left=left).inputs
    prompt = {name: laid[name] for name in ("input_ids", "attention_mask", case.kinds) if name in laid}
    return given | prompt


def test_the_table_has_every_case_and_makes_its_classes():
    assert [family.title for family in FAMILIES] == list(CASES)
    for family in FAMILIES:
        stock = CASES[family.title].make()
        assert type(stock).__name__ == family.stock
        model = with_regions(stock, num_regions=8)
        assert type(model).__name__ == f"Region{family.stock}"
        assert type(model) is getattr(huggingface, type(model).__name__)
        assert type(model.config).model_type == f"region_{type(stock.config).model_type}"


WHOLE = ({"regionizer": Regionizer(**IDENTITY)}, {"num_regions": "prompt"}, {"num_regions": 10**6}, {"keep": 1.0})


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("options", WHOLE, ids=["patch", "prompt", "number", "keep"])
def test_a_stock_prompt_gives_the_stock_models_result_to_the_bit(name, case, stock, left, options):
    if name == "LLaVA-OneVision" and "regionizer" not in options:
        options = options | {"num_regions": "prompt", "keep": None}  # a budget leaves the padding of thumbnails out
    model = with_regions(stock, **options)
    given = case.inputs(left=left)
    given |= case.for_stock(given)
    inside = given["attention_mask"].bool()
    assert torch.equal(model(**given).logits[inside], stock(**given).logits[inside])
    inner, expected = model.model(**given), stock.model(**given)
    assert torch.equal(inner.last_hidden_state[inside], expected.last_hidden_state[inside])
    assert int(inner.image_outputs.regions.counts.sum()) == sum(view.patches for view in inner.image_outputs.views)


def test_a_placeholder_per_image_is_expanded_to_the_stock_prompt(case, stock):
    model = with_regions(stock, Regionizer(**IDENTITY))
    for left in (True, False):
        expanded = model.expand(**case.inputs(left=left, whole=False), left=left).inputs
        assert torch.equal(expanded["input_ids"], case.inputs(left=left)["input_ids"])


def test_it_generates_as_the_stock_model_does(name, case, stock):
    model = with_regions(stock, Regionizer(**IDENTITY))
    for options in ({}, {"num_beams": 2}):
        rows = [["a", 7, 8], [6, 7], [3, "c", 4]] if options and name in OWN_BEAMS else ROWS
        given = case.inputs(rows)
        given |= case.for_stock(given)
        expected = stock.generate(**given, **GREEDY, **options)
        assert torch.equal(model.generate(**given, **GREEDY, **options), expected)


def test_a_prompt_of_regions_is_the_expanded_one(case, stock):
    """Inner and outer, and generation from prompts of both kinds of processors."""
    model = clustered(stock)
    given = written_for(model, case)
    stocks = case.inputs() | ({"tiles": given["tiles"]} if "tiles" in given else {})
    expanded = model.expand(**stocks, left=True).inputs
    logits = model(**given).logits
    inside = given["attention_mask"].bool()
    assert torch.equal(logits[inside], model(**expanded).logits[inside])
    inner = model.model(**given)
    regions = inner.image_outputs.regions
    assert torch.equal(regions.labels()[0], model.expand(**stocks).regions.labels()[0])
    assert_close(model.lm_head(inner.last_hidden_state)[inside], logits[inside])
    made = model.generate(**given, **GREEDY)[:, -4:]
    assert torch.equal(model.generate(**expanded, **GREEDY)[:, -4:], made)
    assert torch.equal(model.generate(**stocks, **GREEDY)[:, -4:], made)
    encoded = model.model.encode_prompt(
        given["input_ids"], given["attention_mask"], given["pixel_values"], **model.model.take_inputs(dict(given))
    )
    rest = {name: value for name, value in given.items() if name not in ("pixel_values", "tiles", "image_sizes")}
    assert torch.equal(model.generate(**rest, **GREEDY, mm_encoder_outputs={"image": encoded})[:, -4:], made)


def test_a_batch_gives_what_its_samples_give_one_by_one(name, case, stock):
    model = clustered(stock)
    given = written_for(model, case)
    logits = model(**given).logits
    for options in ({}, {"num_beams": 2}):
        together = model.generate(**given, **GREEDY, **options)
        for row, words in enumerate(ROWS):
            alone = model.generate(**written_for(model, case, [words]), **GREEDY, **options)
            assert torch.equal(alone[0, -4:], together[row, -4:])
    for row, words in enumerate(ROWS):
        assert_close(
            logits[row][given["attention_mask"][row].bool()], model(**written_for(model, case, [words])).logits[0]
        )


def test_the_last_columns_are_the_callers(case, stock):
    """As trainers compute log-probabilities of completions: rows padded on both sides, the last logits alone."""
    model = clustered(stock)
    alone = [written_for(model, case, [words]) for words in ROWS]
    full = written_for(model, case)
    answer = torch.tensor([[11, 12, PAD, PAD], [13, 14, 15, PAD], [16, 17, 18, 19]])
    ids = torch.cat([full["input_ids"], answer], 1)
    mask = torch.cat([full["attention_mask"], (answer != PAD).long()], 1)
    kinds = {} if case.kinds is None else {case.kinds: (ids == IMAGE).int()}
    both = full | {"input_ids": ids, "attention_mask": mask} | kinds
    logits = model(**both).logits
    kept = model(**both, logits_to_keep=5).logits
    assert_close(kept[mask[:, -5:].bool()], logits[:, -5:][mask[:, -5:].bool()])
    for row, (one, words) in enumerate(zip(alone, answer, strict=True)):
        tokens = torch.cat([one["input_ids"], words[words != PAD][None]], 1)
        kinds = {} if case.kinds is None else {case.kinds: (tokens == IMAGE).int()}
        own = model(**one | {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)} | kinds).logits[0]
        assert (logits[row][mask[row].bool()] - own).abs().max() < 1e-5


def test_a_second_turn_on_the_cache_is_the_whole_conversation_again(name, case, stock):
    model = clustered(stock)
    given = written_for(model, case, [[5, "c", 7]])
    first = model.generate(**given, **GREEDY, return_dict_in_generate=True, output_logits=True)
    cache = first.get("cache", first.get("past_key_values"))
    ids = torch.cat([first.sequences, torch.tensor([[21, 22, 23]])], 1)
    kinds = {} if case.kinds is None else {case.kinds: (ids == IMAGE).int()}
    whole = given | {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | kinds
    settings = GREEDY | {"return_dict_in_generate": True, "output_logits": True}
    expected = model.generate(**whole, **settings)
    key = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # by version
    second = {"input_ids": ids, "attention_mask": torch.ones_like(ids), key: cache} | kinds
    again = model.generate(**second, **settings)
    assert torch.equal(again.sequences, expected.sequences)
    assert_close(torch.stack(again.logits), torch.stack(expected.logits))


def test_lengths_that_contradict_the_budget_are_rejected(name, case, stock):
    model = clustered(stock)
    given = case.inputs()
    with pytest.raises(ShapeError, match=r"stock model .* processor = region_processor\(processor, model\)"):
        model(**given)
    with pytest.raises(ShapeError, match=r"processor = region_processor\(processor, model\)"):
        model.model(**given)
    written = written_for(model, case, [[5, "a" if name == "Gemma 4" else "c"]])  # its last has two patches
    last = int((written["input_ids"][0] == IMAGE).nonzero().max())
    names = ("input_ids", "attention_mask", case.kinds)
    cut = written | {name: written[name][:, :last] for name in names if name in written}
    for call in (model, model.model, partial(model.generate, max_new_tokens=1)):
        with pytest.raises(ShapeError, match=r"ends inside a block of \d+, as a truncated prompt does"):
            call(**cut)
    one_more = {name: torch.cat([written[name][:, : last + 1], written[name][:, last:]], 1) for name in names if name in written}  # fmt: skip
    with pytest.raises(ShapeError, match=r"processor = region_processor\(processor, model\)"):
        model(**written | one_more)


def test_any_length_is_taken_where_the_prompt_decides(case, stock):
    model = with_regions(stock, num_regions="prompt")
    for budget in (6, 9):
        fixed = with_regions(stock, num_regions=budget)
        given = written_for(fixed, case, [[5, "c", 7]])
        assert torch.equal(model(**given).logits, fixed(**given).logits)


def test_unknown_arguments_are_rejected(case, stock):
    model = with_regions(stock, num_regions=8)
    with pytest.raises(UnknownOptionError, match="takes no argument 'num_region'. Did you mean 'num_regions'"):
        model(**case.inputs(), num_region=3)
    with pytest.raises(UnknownOptionError, match="takes no argument 'num_region'. Did you mean 'num_regions'"):
        model.model(**case.inputs(), num_region=3)
    taken = set(inspect.signature(model.forward).parameters)
    assert taken >= {"masks", "image_sizes", "num_regions", "keep", "labels"}  # which a Trainer then keeps
    assert ("tiles" in taken) == isinstance(model.model, TilesMixin)


def test_budgets_are_per_image_and_known_before(case, stock):
    model = with_regions(stock, Regionizer(pool="mean", norm="none", num_regions=7))
    given = case.inputs(whole=False)
    known = ("tiles", "image_grid_thw", "image_position_ids", "batch_num_images")
    more = {name: given[name] for name in known if name in given}
    for budget in (None, 9, [7, 8, 9]):
        prepared = model.expand(**given, num_regions=budget)
        found = [0, 0, 0]
        for view, count in zip(prepared.views, prepared.regions.counts.tolist(), strict=True):
            found[view.image] += count
        assert model.num_tokens(given.get("image_sizes"), images=3, num_regions=budget, **more) == found
        sizes = None if "image_sizes" not in given else given["image_sizes"].tolist()
        patches = [0, 0, 0]
        for view in prepared.views:
            valid = view.valid(sizes)  # padding is in no region
            patches[view.image] += view.patches if valid is None else int(valid.sum())
        wanted = budget if isinstance(budget, list) else [budget or 7] * 3
        assert found == [min(one, all_) for one, all_ in zip(wanted, patches, strict=True)]
        assert int(prepared.columns.sum()) == sum(found)


def test_masks_are_of_images_and_cut_with_them(case, stock):
    """The left half of an image is the left half of each grid that shows all of it, and so much of each tile."""
    geometry = None if with_regions(stock, Regionizer(**IDENTITY)).places_images else ImageGeometry.squash(56)
    model = with_regions(stock, Regionizer(source="segmentation", pool="mean", norm="none", geometry=geometry))
    given = case.inputs(whole=False)
    if case.tiles == [3, 3, 3]:
        given["tiles"] = [(1, 2)] * 3
    sizes = given["image_sizes"].tolist() if "image_sizes" in given else [(56, 56), (112, 112), (56, 112)]
    masks = [np.zeros((1, *size), bool) for size in sizes]
    for one in masks:
        one[:, :, : one.shape[2] // 2] = True
    prepared = model.expand(**given, masks=masks)
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
        model.expand(**given, masks=masks[:2])


def test_loss_is_the_stock_models_and_every_weight_gets_its_gradient(case, stock):
    identity = with_regions(stock, Regionizer(**IDENTITY))
    written = case.inputs()
    written |= case.for_stock(written)
    expected = stock(**written, labels=labels(written)).loss
    assert_close(identity(**written, labels=labels(written)).loss, expected)
    with pytest.raises(ValueRangeError, match="labels need all logits; logits_to_keep leaves some out"):
        identity(**written, labels=labels(written), logits_to_keep=1)

    def gradients(checkpointing, prompts):
        model = clustered(case.make()).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        given = written_for(model, case) if prompts == "regions" else case.inputs() | case.for_stock(case.inputs())
        model(**given, labels=labels(given)).loss.backward()
        return {name: one.grad for name, one in model.named_parameters() if "regionizer" in name or "language" in name}

    plain = gradients(False, "regions")
    assert plain["model.regionizer.pool.out.weight"].any()
    for other in (gradients(True, "regions"), *([] if case.tiles else [gradients(False, "stock")])):
        for one, gradient in plain.items():
            if gradient is not None:
                assert_close(other[one], gradient)


def test_logits_of_a_stock_prompt_with_labels_are_in_the_callers_columns(case, stock):
    """As ``compute_metrics`` compares them with labels."""
    model = clustered(stock)
    given = case.inputs(left=False)
    given |= case.for_stock(given)
    moved = model(**given, labels=labels(given))
    assert moved.logits.shape[:2] == given["input_ids"].shape
    target = labels(given)[:, 1:]
    loss = torch.nn.functional.cross_entropy(moved.logits[:, :-1].flatten(0, 1).float(), target.flatten())
    assert_close(loss, moved.loss)


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
    given = written_for(model, case)
    expected = model(**given).logits
    model.save_pretrained(tmp_path / "regions")
    loaders = (type(model).from_pretrained, load_model, AutoModelForImageTextToText.from_pretrained)
    for load in loaders:
        loaded = load(tmp_path / "regions").eval()
        assert type(loaded) is type(model)
        for one, weight in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[one], weight), one
        assert_close(loaded(**given).logits, expected)  # in other memory, where matrix products may round otherwise
    inner = AutoModel.from_pretrained(tmp_path / "regions").eval()
    assert type(inner) is type(model.model)
    for one, weight in model.model.state_dict().items():
        assert torch.equal(inner.state_dict()[one], weight), one
    stock.save_pretrained(tmp_path / "stock")
    fresh = type(model).from_pretrained(tmp_path / "stock", regionizer=model.regionizer)
    assert_close(fresh(**given).logits, expected)
    for one, weight in stock.state_dict().items():
        assert torch.equal(fresh.state_dict()[one], weight), one
    whole = case.inputs()
    whole |= case.for_stock(whole)
    as_it_was = load_model(tmp_path / "stock")
    assert torch.equal(as_it_was(**whole).logits, stock(**whole).logits)
    with pytest.raises(CheckpointError, match="its config names none: it is of a stock model"):
        type(model).from_pretrained(tmp_path / "stock")


def test_folders_of_before_are_loaded_with_their_pool(case, stock, tmp_path):
    """The Regionizer was part of the outer model then, and the config one of a stock model."""
    model = clustered(stock)
    model.save_pretrained(tmp_path)
    files = list(tmp_path.glob("*.safetensors"))
    for file in files:
        weights = {name.replace("model.regionizer.", "regionizer."): one for name, one in load_file(file).items()}
        save_file(weights, file, {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": type(stock.config).model_type, "architectures": [type(model).__name__]}
    del config["auto_map"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    for load in (load_model, type(model).from_pretrained):
        loaded = load(tmp_path)
        for one, weight in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[one], weight), one
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "again")
    assert torch.equal(again.regionizer.pool.out.weight, model.regionizer.pool.out.weight)


def test_the_stock_model_stays_as_it_is_and_comes_back(case, stock):
    written = case.inputs()
    before = stock(**written, **case.for_stock(written)).logits
    model = clustered(stock)
    assert not hasattr(stock.config, "regiontok")
    assert torch.equal(stock(**written, **case.for_stock(written)).logits, before)
    back = without_regions(model)
    assert type(back) is type(stock)
    assert type(back.model) is type(stock.model)
    assert type(back.config) is type(stock.config)
    assert torch.equal(back(**written, **case.for_stock(written)).logits, before)
    assert not [one for one in vars(back.config) if "regiontok" in one]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft calls it
def test_lora_is_trained_saved_and_loaded(case, tmp_path):
    options = LoraConfig(target_modules=r".*(language_model|text_model).*\.q_proj", modules_to_save=["regionizer.pool"])
    plain = clustered(case.make())
    given = written_for(plain, case)
    model = get_peft_model(plain, options).train()
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.5)
    for _ in range(2):
        model(**given, labels=labels(given)).loss.backward()
        optimizer.step()
    expected = model.eval()(**given).logits
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(clustered(case.make()), tmp_path).eval()
    assert_close(loaded(**given).logits, expected)
    assert not torch.equal(clustered(case.make())(**given).logits, expected)


def test_it_takes_the_models_dtype(case):
    stock = case.make().to(torch.bfloat16)
    given = case.inputs()
    given |= case.for_stock(given)
    model = clustered(stock)
    assert model.regionizer.pool.out.weight.dtype == torch.bfloat16
    logits = model(**written_for(model, case)).logits
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    identity = with_regions(stock, Regionizer(**IDENTITY))(**given).logits
    inside = given["attention_mask"].bool()
    assert torch.equal(identity[inside], stock(**given).logits[inside])


def test_other_media_are_refused_by_name(case, stock):
    model = with_regions(stock, Regionizer(**IDENTITY))
    for given, message in (
        ({"pixel_values_videos": torch.zeros(1)}, "videos are not cut into regions. Leave pixel_values_videos out"),
        ({"input_features": torch.zeros(1)}, "sounds are not cut into regions. Leave input_features out"),
    ):
        for call in (model, model.generate):
            with pytest.raises(ValueRangeError, match=message):
                call(**case.inputs(), **given)


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
        assert first["weights"]["model.regionizer.pool.out.weight"].any()
