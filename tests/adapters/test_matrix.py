"""Properties of every family, tested with a small random model of each from `tests.families`."""

import copy
import inspect
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForImageTextToText

from regiontok import ImageGeometry, Regionizer
from regiontok.adapters import huggingface
from regiontok.adapters.huggingface import FAMILIES, TilesMixin, load_model, with_regions, without_regions
from regiontok.errors import CheckpointError, ShapeError, UnknownOptionError, ValueRangeError
from tests.conftest import assert_close
from tests.families import CASES, IMAGE, PAD, ROWS, VIDEO
from tests.models import IDENTITY, region_model

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


@pytest.fixture(scope="module")
def model(stock):
    """Regions with a trained pool on the stock model, whose weights it shares; no test may change it."""
    return clustered(stock)


@pytest.fixture(scope="module")
def identity(stock):
    """A region per patch."""
    return with_regions(stock, Regionizer(**IDENTITY))


@pytest.fixture(scope="module")
def written(model, case):
    """Inputs of all samples with a placeholder per region."""
    return written_for(model, case)


def clustered(stock):
    model = region_model(stock, num_regions=3)
    return region_model(stock, num_regions=6) if model.knows_tile_layout else model  # each tile needs a token


def labels(given):
    ids = given["input_ids"]
    return ids.masked_fill((given["attention_mask"] == 0) | (ids == IMAGE), -100)


def written_for(model, case, rows=ROWS, *, left=True, **budget):
    """Return inputs with one placeholder per region, as a region processor writes them."""
    given = case.inputs(rows, left=left)
    if "pixel_values" not in given:
        return given
    tilings = {} if case.tilings is None else {"tilings": [case.tilings["abc".index(word)] for row in rows for word in row if isinstance(word, str)]}  # fmt: skip
    given = given | tilings | budget
    laid = model.expand(**given, left=left).inputs
    prompt = {name: laid[name] for name in ("input_ids", "attention_mask", case.kinds) if name in laid}
    return given | prompt


def test_every_family_has_a_case_and_classes():
    assert [family.title for family in FAMILIES] == list(CASES)
    for family in FAMILIES:
        stock = CASES[family.title].make()
        assert type(stock).__name__ == family.stock
        model = with_regions(stock, num_regions=8)
        assert type(model).__name__ == f"Region{family.stock}"
        assert type(model) is getattr(huggingface, type(model).__name__)
        assert type(model.config).model_type == f"region_{type(stock.config).model_type}"


WHOLE = ({"regionizer": Regionizer(**IDENTITY)}, {"num_regions": "prompt"}, {"num_regions": 10**6}, {"keep": 1.0})


def test_a_stock_prompt_with_all_patches_equals_the_stock_model(subtests, name, case, stock):
    """To the bit, and with the positions of generated tokens. Prompts of one placeholder per image become stock prompts."""
    for options in WHOLE:
        if name == "LLaVA-OneVision" and "regionizer" not in options:
            options = options | {"num_regions": "prompt", "keep": None}  # a budget leaves the padding of thumbnails out
        model = with_regions(stock, **options)
        for left in (True, False):
            with subtests.test(str(options), left=left):
                given = case.inputs(left=left)
                given |= case.for_stock(given)
                inside = given["attention_mask"].bool()
                expected = stock.model(**given)
                deltas = getattr(stock.model, "rope_deltas", None)
                inner = model.model(**given)
                assert torch.equal(inner.last_hidden_state[inside], expected.last_hidden_state[inside])
                assert deltas is None or torch.equal(model.model.rope_deltas, deltas)
                tiles = inner.image_outputs.tiles
                assert int(inner.image_outputs.regions.counts.sum()) == sum(tile.patches for tile in tiles)
                logits = stock(**given).logits[inside]
                assert torch.equal(model(**given).logits[inside], logits)
                if "image_grid_thw" in given:  # positions need the kinds of tokens, which are inferred
                    assert torch.equal(model(**case.inputs(left=left)).logits[inside], logits)
                if "regionizer" in options:
                    expanded = model.expand(**case.inputs(left=left, whole=False), left=left).inputs
                    assert torch.equal(expanded["input_ids"], given["input_ids"])


def test_generation_with_all_patches_equals_the_stock_model(name, case, stock, identity):
    for options in ({}, {"num_beams": 2}, *([{"use_cache": False}] if name == "Qwen2.5-VL" else [])):
        rows = [["a", 7, 8], [6, 7], [3, "c", 4]] if options and name in OWN_BEAMS else ROWS
        given = case.inputs(rows)
        given |= case.for_stock(given)
        expected = stock.generate(**given, **GREEDY, **options)
        assert torch.equal(identity.generate(**given, **GREEDY, **options), expected)


def test_region_prompts_equal_expanded_prompts(case, model, written):
    """Inner and outer, and generation from prompts of both kinds of processors."""
    given = written
    stocks = case.inputs() | ({"tilings": given["tilings"]} if "tilings" in given else {})
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
    rest = {name: value for name, value in given.items() if name not in ("pixel_values", "tilings", "image_sizes")}
    assert torch.equal(model.generate(**rest, **GREEDY, mm_encoder_outputs=encoded)[:, -4:], made)


def test_a_batch_equals_its_samples(name, case, model, written):
    logits = model(**written).logits
    samples = [written_for(model, case, [words]) for words in ROWS]
    for options in ({}, {"num_beams": 2}):
        together = model.generate(**written, **GREEDY, **options)
        for row, sample in enumerate(samples):
            alone = model.generate(**sample, **GREEDY, **options)
            assert torch.equal(alone[0, -4:], together[row, -4:])
    for row, sample in enumerate(samples):
        assert_close(logits[row][written["attention_mask"][row].bool()], model(**sample).logits[0])


def test_logits_to_keep_selects_columns_of_the_caller(name, case, model, written):
    """As trainers compute log-probabilities of completions: rows padded on both sides, the last logits alone."""
    if name == "VideoLlama3":
        pytest.skip("the stock class has no such argument")
    alone = [written_for(model, case, [words]) for words in ROWS]
    full = written
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


def test_a_second_turn_on_the_cache_equals_the_whole_conversation(name, case, model):
    given = written_for(model, case, [[5, "c", 7]])
    settings = GREEDY | {"return_dict_in_generate": True, "output_logits": True, "suppress_tokens": [IMAGE, VIDEO]}
    first = model.generate(**given, **settings)
    cache = first.get("cache", first.get("past_key_values"))
    ids = torch.cat([first.sequences, torch.tensor([[21, 22, 23]])], 1)
    kinds = {} if case.kinds is None else {case.kinds: (ids == IMAGE).int()}
    whole = given | {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | kinds
    expected = model.generate(**whole, **settings)
    key = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # by version
    second = {"input_ids": ids, "attention_mask": torch.ones_like(ids), key: cache} | kinds
    again = model.generate(**second, **settings)
    assert torch.equal(again.sequences, expected.sequences)
    assert_close(torch.stack(again.logits), torch.stack(expected.logits))


def test_blocks_that_do_not_match_the_budget_are_rejected(name, case, model):
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
        with pytest.raises(ShapeError, match=r"ends inside a block of \d+. The prompt may be truncated"):
            call(**cut)
    one_more = {name: torch.cat([written[name][:, : last + 1], written[name][:, last:]], 1) for name in names if name in written}  # fmt: skip
    with pytest.raises(ShapeError, match=r"processor = region_processor\(processor, model\)"):
        model(**written | one_more)


def test_budgets_of_the_prompt(case, stock):
    model = with_regions(stock, num_regions="prompt")
    for budget in (6, 9):
        fixed = with_regions(stock, num_regions=budget)
        given = written_for(fixed, case, [[5, "c", 7]])
        assert torch.equal(model(**given).logits, fixed(**given).logits)


def test_default_options_of_the_regionizer(case, stock, identity):
    """The number of regions depends on the features, so prompts are rewritten after encoding."""
    model = with_regions(stock, Regionizer(dim=identity.patch_dim))
    given = case.inputs()
    given |= case.for_stock(given)
    expanded = model.expand(**given, left=True)
    patches = [sum(tile.patches for tile in expanded.tiles if tile.image == image) for image in range(3)]
    assert all(1 <= count <= most for count, most in zip(expanded.counts, patches, strict=True))
    generated = model.generate(**given, **GREEDY)[:, -4:]
    assert torch.equal(model.generate(**expanded.inputs, **GREEDY)[:, -4:], generated)


def test_unknown_arguments_and_other_media_are_rejected(case, stock, model, identity):
    with pytest.raises(UnknownOptionError, match="takes no argument 'num_region'. Did you mean 'num_regions'"):
        model(**case.inputs(), num_region=3)
    with pytest.raises(UnknownOptionError, match="takes no argument 'num_region'. Did you mean 'num_regions'"):
        model.model(**case.inputs(), num_region=3)
    taken = set(inspect.signature(model.forward).parameters)
    assert taken >= {"masks", "image_sizes", "num_regions", "keep", "labels"}  # which a Trainer then keeps
    assert ("tilings" in taken) == isinstance(model.model, TilesMixin)
    sounds = {"input_features": torch.zeros(1)}, "sounds are not supported by region models. Leave input_features out"
    videos = (
        {"pixel_values_videos": torch.zeros(1)},
        f"{type(stock).__name__} does not accept videos. Pass frames as images",
    )
    for given, message in (sounds, *(() if identity.model.accepts_videos else (videos,))):
        for call in (identity, identity.generate):
            with pytest.raises(ValueRangeError, match=message):
                call(**case.inputs(), **given)


def test_budgets_per_image_and_num_tokens(case, stock):
    model = with_regions(stock, Regionizer(pool="mean", norm="none", num_regions=7))
    given = case.inputs(whole=False)
    known = ("tilings", "image_grid_thw", "image_merge_sizes", "image_position_ids", "batch_num_images")
    more = {name: given[name] for name in known if name in given}
    for budget in (None, 9, [7, 8, 9]):
        prepared = model.expand(**given, num_regions=budget)
        found = [0, 0, 0]
        for tile, count in zip(prepared.tiles, prepared.regions.counts.tolist(), strict=True):
            found[tile.image] += count
        assert model.num_tokens(given.get("image_sizes"), num_images=3, num_regions=budget, **more) == found
        sizes = None if "image_sizes" not in given else given["image_sizes"].tolist()
        patches = [0, 0, 0]
        for tile in prepared.tiles:
            valid = tile.valid(sizes)  # padding is in no region
            patches[tile.image] += tile.patches if valid is None else int(valid.sum())
        wanted = budget if isinstance(budget, list) else [budget or 7] * 3
        assert found == [min(one, all_) for one, all_ in zip(wanted, patches, strict=True)]
        assert int(prepared.columns.sum()) == sum(found)


def test_masks_are_per_image_and_cut_like_it(case, stock, identity):
    """The left half of an image is the left half of each grid that shows all of it, and so much of each tile."""
    geometry = None if identity.knows_tile_layout else ImageGeometry.squash(56)
    model = with_regions(stock, Regionizer(source="segmentation", pool="mean", norm="none", geometry=geometry))
    given = case.inputs(whole=False)
    if case.tilings == [3, 3, 3]:
        given["tilings"] = [(1, 2)] * 3
    sizes = given["image_sizes"].tolist() if "image_sizes" in given else [(56, 56), (112, 112), (56, 112)]
    masks = [np.zeros((1, *size), bool) for size in sizes]
    for one in masks:
        one[:, :, : one.shape[2] // 2] = True
    prepared = model.expand(**given, masks=masks)
    regions = prepared.regions
    assert len(regions) == len(prepared.tiles)
    for tile, one in zip(prepared.tiles, regions.masks(), strict=True):
        _, cols = tile.grid
        layout_cols = cols if tile.layout is None else tile.layout.grid[1]
        left = 0 if tile.layout is None else tile.layout.left
        if left >= layout_cols / 2 or cols == 1:  # nothing is left of the mask: one region of all
            continue
        letterboxed = tile.layout is not None and tile.layout.geometry.mode == "letterbox"
        inside = min(cols, max(1, round(layout_cols / 2 - left)))
        if not letterboxed:
            assert one[0, :, :inside].all()
            assert not one[0, :, inside:].any() or inside == cols
    with pytest.raises(ShapeError, match="masks must have one entry per"):
        model.expand(**given, masks=masks[:2])


def test_loss_and_gradients_equal_the_stock_model(name, case, stock, identity, model):
    """Logits of a stock prompt with labels stay in the caller's columns, as ``compute_metrics`` compares them."""
    given = case.inputs(left=False)
    given |= case.for_stock(given)
    expected = stock(**given, labels=labels(given)).loss
    assert_close(identity(**given, labels=labels(given)).loss, expected)
    single = case.inputs(left=False, whole=False)
    assert_close(identity(**single, labels=labels(single)).loss, expected)
    if name != "VideoLlama3":  # whose stock class has no such argument
        with pytest.raises(ValueRangeError, match="labels need all logits, and logits_to_keep selects some"):
            identity(**given, labels=labels(given), logits_to_keep=1)
    moved = model(**given, labels=labels(given))
    assert moved.logits.shape[:2] == given["input_ids"].shape
    target = labels(given)[:, 1:]
    loss = torch.nn.functional.cross_entropy(moved.logits[:, :-1].flatten(0, 1).float(), target.flatten())
    assert_close(loss, moved.loss)

    def gradients(checkpointing, prompts):
        model = clustered(copy.deepcopy(stock)).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        given = written_for(model, case) if prompts == "regions" else case.inputs() | case.for_stock(case.inputs())
        model(**given, labels=labels(given)).loss.backward()
        return {name: one.grad for name, one in model.named_parameters() if "regionizer" in name or "language" in name}

    plain = gradients(False, "regions")
    assert plain["model.regionizer.pool.out.weight"].any()
    for other in (gradients(True, "regions"), *([] if case.tilings else [gradients(False, "stock")])):
        for one, gradient in plain.items():
            if gradient is not None:
                assert_close(other[one], gradient)


def test_text_without_images_gives_zero_gradients_and_the_same_loss(case, stock):
    model = clustered(copy.deepcopy(stock))
    ids = torch.tensor([[5, 6, 7]])
    expected = stock(input_ids=ids, labels=ids)
    output = model.train()(input_ids=ids, labels=ids)
    assert_close(output.loss, expected.loss)
    output.loss.backward()
    for one, parameter in model.named_parameters():
        if any(part in one for part in ("regionizer", "projector", "connector", "newline", "embed_vision")):
            assert parameter.grad is not None, one
            assert not parameter.grad.any(), one


def test_loaded_models_equal_saved_models_and_stock_checkpoints(case, stock, model, written, tmp_path):
    given = written
    expected = model(**given).logits
    model.save_pretrained(tmp_path / "regions")
    for load in (load_model, AutoModelForImageTextToText.from_pretrained):
        loaded = load(tmp_path / "regions").eval()
        assert type(loaded) is type(model)
        assert loaded.config.regiontok == model.regionizer.config.to_dict()
        for one, weight in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[one], weight), one
        assert_close(loaded(**given).logits, expected)  # in other memory, where matrix products may round otherwise
    _, report = type(model).from_pretrained(tmp_path / "regions", output_loading_info=True)
    assert not report["unexpected_keys"]
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
    with pytest.raises(CheckpointError, match="the config of a stock model has no options for it"):
        type(model).from_pretrained(tmp_path / "stock")


def test_the_stock_model_is_not_changed_and_is_restored(case, stock):
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
def test_lora_is_trained_saved_and_loaded(case, stock, tmp_path):
    options = LoraConfig(target_modules=r".*(language_model|text_model).*\.q_proj", modules_to_save=["regionizer.pool"])
    plain = clustered(copy.deepcopy(stock))
    given = written_for(plain, case)
    model = get_peft_model(plain, options).train()
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.5)
    for _ in range(2):
        model(**given, labels=labels(given)).loss.backward()
        optimizer.step()
    expected = model.eval()(**given).logits
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(clustered(copy.deepcopy(stock)), tmp_path).eval()
    assert_close(loaded(**given).logits, expected)
    assert not torch.equal(clustered(stock)(**given).logits, expected)


def test_the_regionizer_has_the_dtype_of_the_model(case, stock):
    stock = copy.deepcopy(stock).to(torch.bfloat16)
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


def test_two_processes_with_and_without_images_have_equal_weights(tmp_path):
    """Of every mechanism. One process has no image in any batch; the other would wait for its gradients."""
    names = ["LLaVA-1.5", "LLaVA-NeXT", "Gemma 3", "InternVL", "SmolVLM", "Qwen3-VL", "Gemma 4", "VideoLlama3"]
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
