"""What `with_regions` shares with the stock model, and what it refuses."""

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from regiontok import Regionizer
from regiontok.adapters.huggingface import with_regions, without_regions
from regiontok.errors import UntrainedWarning, ValueRangeError
from tests.families import CASES
from tests.models import IMAGE, tiny_llava

PIXELS = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
STOCK = {"input_ids": torch.tensor([[5, *[IMAGE] * 16, 7, 8]]), "pixel_values": PIXELS}
REGIONS = {"input_ids": torch.tensor([[5, *[IMAGE] * 4, 7, 8]]), "pixel_values": PIXELS}


def test_modules_weights_mode_and_dtype_are_shared():
    stock = tiny_llava()
    model = with_regions(stock, num_regions=4)
    parts = dict(model.model.named_children())
    assert {name for name, part in parts.items() if part is not dict(stock.model.named_children()).get(name)} == {
        "regionizer"
    }
    model.train()
    assert stock.model.language_model.training
    assert not stock.training  # its own flag; call train on the model that is used
    model.eval().to(torch.bfloat16)
    assert stock.model.language_model.dtype == stock.lm_head.weight.dtype == torch.bfloat16
    model.float()
    model.generation_config.max_new_tokens = 3
    assert stock.generation_config.max_new_tokens != 3
    assert not hasattr(stock.config, "regiontok")


def test_a_vocabulary_resized_before_conversion_is_shared():
    stock = tiny_llava()
    stock.resize_token_embeddings(120)
    model = with_regions(stock, num_regions=4)
    ids = REGIONS["input_ids"].masked_fill(REGIONS["input_ids"] == IMAGE, -100)
    assert model(**REGIONS, labels=ids).logits.shape[-1] == 120
    assert stock(**STOCK).logits.shape[-1] == 120


def test_a_replaced_forward_is_rejected_and_a_compiled_call_is_not_copied():
    stock = tiny_llava()
    expected = with_regions(stock, num_regions=4)(**REGIONS).logits
    stock.compile(backend="eager")
    model = with_regions(stock, num_regions=4)
    assert torch.equal(model(**REGIONS).logits, expected)
    stock.forward = stock.forward
    with pytest.raises(ValueRangeError, match="the forward of this LlavaForConditionalGeneration was replaced"):
        with_regions(stock, num_regions=4)


class Louder(LlavaForConditionalGeneration):
    """A subclass of a stock class, with a forward of its own."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 2 * output.logits
        return output


def test_a_subclass_keeps_its_methods():
    stock = tiny_llava()
    plain = with_regions(stock, num_regions=4)(**REGIONS).logits
    stock.__class__ = Louder
    model = with_regions(stock, num_regions=4)
    assert type(model).__name__ == "RegionLouder"
    assert torch.equal(model(**REGIONS).logits, 2 * plain)
    assert type(without_regions(model)) is Louder


def test_a_new_regionizer_has_the_dtype_of_the_model_and_is_in_the_config():
    model = with_regions(tiny_llava().to(torch.bfloat16), num_regions=4)
    model.regionizer = Regionizer(dim=32, num_heads=4, num_regions=4)
    assert model.regionizer.pool.out.weight.dtype == torch.bfloat16
    assert model.config.regiontok == model.regionizer.config.to_dict()
    assert model.eval()(input_ids=REGIONS["input_ids"], pixel_values=PIXELS.bfloat16()).logits.dtype == torch.bfloat16


def test_options_that_need_training_give_a_warning():
    stock = tiny_llava()
    for options, message in (
        ({"pool": "mean"}, "norm='rms' scales features"),
        ({"norm": "none", "dim": 32, "num_heads": 4}, "the cross-attention pool is not trained"),
    ):
        with pytest.warns(UntrainedWarning, match=message):
            with_regions(stock, Regionizer(num_regions=4, **options))
    trained = Regionizer(num_regions=4, norm="none", dim=32, num_heads=4)
    torch.nn.init.normal_(trained.pool.out.weight)
    with_regions(stock, trained)  # warnings are errors here
    with_regions(with_regions(stock, num_regions=4), Regionizer(num_regions=4, pool="mean"))


def test_stock_prompts_with_arguments_per_column_are_rejected():
    model = with_regions(tiny_llava(), num_regions=4)
    labels = STOCK["input_ids"].masked_fill(STOCK["input_ids"] == IMAGE, -100)
    output = model(**STOCK, labels=labels)
    assert output.logits.shape[1] == 19
    assert not [name for name in output if name in ("cache", "past_key_values")]
    made = model.generate(**STOCK, max_new_tokens=2, return_dict_in_generate=True)
    assert not [name for name in made if name in ("cache", "past_key_values")]
    line = r"processor = region_processor\(processor, model\)"
    for more in (
        {"output_hidden_states": True},
        {"position_ids": torch.arange(19)[None]},
        {"cu_seq_lens_q": torch.tensor([0, 19])},
    ):
        with pytest.raises(Exception, match=line):
            model(**STOCK, labels=labels, **more)
    for more in ({"output_attentions": True}, {"stopping_criteria": [lambda ids, scores: False]}):
        with pytest.raises(Exception, match=line):
            model.generate(**STOCK, max_new_tokens=2, return_dict_in_generate=True, **more)
    cut = {"input_ids": torch.tensor([[5, IMAGE]]), "pixel_values": PIXELS}
    for call in (lambda: model(**cut, labels=cut["input_ids"]), lambda: model.generate(**cut, max_new_tokens=2)):
        with pytest.raises(Exception, match="ends inside a block of 1. The prompt may be truncated"):
            call()


def test_qwen_generates_from_embeddings_and_accepts_text_positions():
    case = CASES["Qwen3-VL"]
    stock = case.make()
    model = with_regions(stock, num_regions="prompt")
    given = case.inputs([[5, "a", 7]])
    given |= case.for_stock(given)
    positions = torch.arange(given["input_ids"].shape[1])[None]
    assert torch.equal(model(**given, position_ids=positions).logits, stock(**given, position_ids=positions).logits)
    embeds = model.get_input_embeddings()(given.pop("input_ids"))
    settings = {"max_new_tokens": 3, "do_sample": False}
    expected = stock.generate(**given, inputs_embeds=embeds, **settings)
    assert torch.equal(model.generate(**given, inputs_embeds=embeds, **settings), expected)
