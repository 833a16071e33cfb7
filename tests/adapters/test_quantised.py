"""Stock checkpoints in 4 and 8 bits with a pool that is trained: bitsandbytes runs on the CPU."""

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
    return CASES[request.param]


@pytest.fixture
def trained(case):
    """A Regionizer whose pool is no longer the mean."""
    dim = with_regions(case.make(), Regionizer(pool="mean")).patch_dim
    torch.manual_seed(0)
    regionizer = Regionizer(dim=dim, num_heads=4, num_regions=6)
    torch.nn.init.normal_(regionizer.pool.out.weight, std=0.3)
    return regionizer


def linear(model):
    return {type(one).__name__ for name, one in model.named_modules() if name.endswith("q_proj") and "language" in name}


@pytest.mark.parametrize("bits", BITS)
def test_the_regionizer_stays_as_it_is_and_lora_trains_on_top(case, trained, bits, tmp_path):
    config, kind = BITS[bits]
    stock = case.make()
    stock.save_pretrained(tmp_path / "stock")
    model = load_model(tmp_path / "stock", regionizer=trained, quantization_config=config)
    assert linear(model) == {kind}
    assert type(model.regionizer.pool.out) is torch.nn.Linear
    assert type(model.lm_head) is torch.nn.Linear
    for name, weight in trained.state_dict().items():
        assert torch.equal(model.regionizer.state_dict()[name], weight.to(model.dtype)), name
    assert config.llm_int8_skip_modules is None  # the caller's is as it was
    given = case.inputs()
    expected = model(**given).logits
    whole = with_regions(stock, trained)(**given).logits
    assert torch.cosine_similarity(expected.flatten(), whole.flatten(), 0) > 0.8  # coarser, and the same model
    assert not torch.equal(expected, whole)
    model.save_pretrained(tmp_path / "saved")
    loaded = load_model(tmp_path / "saved")
    assert linear(loaded) == {kind}
    assert type(loaded.regionizer.pool.out) is torch.nn.Linear
    assert_close(loaded(**given).logits, expected)

    def tuned():
        options = LoraConfig(target_modules=r".*language_model.*\.q_proj", modules_to_save=["regionizer.pool"])
        return get_peft_model(load_model(tmp_path / "saved"), options).train()

    lora = tuned()
    labels = given["input_ids"].masked_fill((given["attention_mask"] == 0) | (given["input_ids"] == IMAGE), -100)
    optimizer = torch.optim.SGD([one for one in lora.parameters() if one.requires_grad], lr=0.5)
    for _ in range(2):
        lora(**given, labels=labels).loss.backward()
        optimizer.step()
    after = lora.eval()(**given).logits
    assert not torch.equal(after, expected)
    lora.save_pretrained(tmp_path / "lora")
    again = PeftModel.from_pretrained(load_model(tmp_path / "saved"), tmp_path / "lora").eval()
    assert_close(again(**given).logits, after)


def test_a_loaded_model_in_4_bits_gets_regions_and_goes_back(case, trained, tmp_path):
    case.make().save_pretrained(tmp_path)
    config, _ = BITS["4 bits"]
    stock = type(case.make()).from_pretrained(tmp_path, quantization_config=config)
    model = with_regions(stock, trained)
    given = case.inputs()
    assert_close(
        model(**given).logits, load_model(tmp_path, regionizer=trained, quantization_config=config)(**given).logits
    )
    back = without_regions(model)
    assert torch.equal(back(**given, **case.for_stock(given)).logits, stock(**given, **case.for_stock(given)).logits)
