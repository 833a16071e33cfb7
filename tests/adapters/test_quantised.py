"""Stock checkpoints in 4 and 8 bits with a pool that is trained: bitsandbytes runs on the CPU."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BitsAndBytesConfig

from regiontok import Regionizer
from regiontok.adapters.huggingface import load_model, with_regions, without_regions
from tests.conftest import assert_close
from tests.families import CASES, IMAGE

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft calls it
    pytest.mark.filterwarnings("ignore:MatMul8bitLt. inputs will be cast:UserWarning"),
    pytest.mark.filterwarnings("ignore:_check_is_size will be removed:FutureWarning"),  # bitsandbytes calls it
]
BITS = {
    "4 bits": (BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32), "Linear4bit"),
    "8 bits": (BitsAndBytesConfig(load_in_8bit=True), "Linear8bitLt"),
}


@pytest.fixture(params=["LLaVA-1.5", "Qwen3-VL", "InternVL"])
def case(request):
    """A family whose linear layers have inputs in multiples of 64 and outputs in multiples of 32.

    On a CPU with AVX-512 BF16, bitsandbytes accepts no others in 4 bits.
    """
    case = CASES[request.param]

    def make():
        small = case.make()
        small.config.vision_config.hidden_size = 64
        small.config.text_config.intermediate_size = 128
        torch.manual_seed(0)
        return type(small)(small.config).eval()

    return replace(case, make=make)


@pytest.fixture
def trained(case):
    """A Regionizer whose pool is no longer the mean."""
    dim = with_regions(case.make(), Regionizer(pool="mean")).patch_dim
    torch.manual_seed(0)
    regionizer = Regionizer(dim=dim, num_heads=4, num_regions=6)
    torch.nn.init.normal_(regionizer.pool.out.weight, std=0.3)
    return regionizer


@torch.no_grad()  # bitsandbytes computes in bfloat16 without gradients where the CPU can, and not with them
def logits(model, given):
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    prompt = base.expand(**given).inputs if hasattr(base, "expand") else given
    return model(**prompt).logits


def linear(model):
    return {type(one).__name__ for name, one in model.named_modules() if name.endswith("q_proj") and "language" in name}


@pytest.mark.parametrize("bits", BITS)
def test_the_regionizer_is_not_quantized_and_lora_trains(case, trained, bits, tmp_path):
    config, kind = BITS[bits]
    stock = case.make()
    stock.save_pretrained(tmp_path / "stock")
    model = load_model(tmp_path / "stock", regionizer=trained, quantization_config=config)
    assert linear(model) == {kind}
    assert model.regionizer.pool.out.weight.is_floating_point()
    assert type(model.lm_head) is torch.nn.Linear
    for name, weight in trained.state_dict().items():
        assert torch.equal(model.regionizer.state_dict()[name], weight.to(model.dtype)), name
    assert config.llm_int8_skip_modules is None  # the caller's is as it was
    model.save_pretrained(tmp_path / "saved")  # before it runs: bitsandbytes 0.50 can save wrong scales afterwards
    given = case.inputs()
    expected = logits(model, given)
    whole = logits(with_regions(stock, trained), given)
    assert torch.cosine_similarity(expected.flatten(), whole.flatten(), 0) > 0.8  # coarser, and the same model
    assert not torch.equal(expected, whole)
    loaded = load_model(tmp_path / "saved")
    assert linear(loaded) == {kind}
    assert loaded.regionizer.pool.out.weight.is_floating_point()
    assert_close(logits(loaded, given), expected)

    def tuned():
        options = LoraConfig(target_modules=r".*language_model.*\.q_proj", modules_to_save=["regionizer.pool"])
        return get_peft_model(load_model(tmp_path / "saved"), options).train()

    lora = tuned()
    labels = given["input_ids"].masked_fill((given["attention_mask"] == 0) | (given["input_ids"] == IMAGE), -100)
    optimizer = torch.optim.SGD([one for one in lora.parameters() if one.requires_grad], lr=0.5)
    for _ in range(2):
        lora(**given, labels=labels).loss.backward()
        optimizer.step()
    after = logits(lora.eval(), given)
    assert not torch.equal(after, expected)
    lora.save_pretrained(tmp_path / "lora")
    again = PeftModel.from_pretrained(load_model(tmp_path / "saved"), tmp_path / "lora").eval()
    assert_close(logits(again, given), after)


def test_a_loaded_4_bit_model_is_converted_and_restored(case, trained, tmp_path):
    case.make().save_pretrained(tmp_path)
    config, _ = BITS["4 bits"]
    stock = type(case.make()).from_pretrained(tmp_path, quantization_config=config)
    model = with_regions(stock, trained)
    given = case.inputs()
    loaded = load_model(tmp_path, regionizer=trained, quantization_config=config)
    assert_close(logits(model, given), logits(loaded, given))
    back, whole = without_regions(model), given | case.for_stock(given)
    assert torch.equal(logits(back, whole), logits(stock, whole))
