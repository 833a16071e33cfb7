"""Families of other packages, and lazy imports of modelling code."""

import subprocess
import sys

PROGRAM = """
import sys, torch, transformers
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaProcessor
from regiontok.adapters import huggingface
from regiontok.adapters.huggingface import FAMILIES, Family, VisionTowerMixin, load_model, register_family, with_regions
from regiontok.errors import ValueRangeError

modules = [name for name in sys.modules if name.startswith("transformers.models.") and ".modeling_" in name]
assert all(".auto." in name for name in modules), modules
assert "RegionQwen3VLForConditionalGeneration" in huggingface.__all__

from transformers.models.llava.modeling_llava import LlavaConfig, LlavaForConditionalGeneration, LlavaModel


class MyLlavaConfig(LlavaConfig):
    model_type = "my_llava"


class MyLlavaModel(LlavaModel):
    config_class = MyLlavaConfig


class MyLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    config_class = MyLlavaConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = MyLlavaModel(config)


row = Family("My LLaVA", "MyLlava", VisionTowerMixin, "", "", "", MyLlavaForConditionalGeneration, LlavaProcessor)
AutoConfig.register("my_llava", MyLlavaConfig)
register_family(row)
try:
    register_family(row)
    raise SystemExit("a second family of this name was registered")
except ValueRangeError as error:
    assert "a family of MyLlavaForConditionalGeneration exists already" in str(error)

from tests.models import tiny_llava

stock = MyLlavaForConditionalGeneration(MyLlavaConfig(**{
    key: value for key, value in tiny_llava().config.to_dict().items() if key != "model_type"
})).eval()
model = with_regions(stock, num_regions=4)
assert type(model).__name__ == "RegionMyLlavaForConditionalGeneration"
token = model.config.image_token_id
inputs = {"input_ids": torch.tensor([[5, *[token] * 4, 6]]), "pixel_values": torch.randn(1, 3, 56, 56)}
model.save_pretrained(sys.argv[1])
for loaded in (AutoModelForImageTextToText.from_pretrained(sys.argv[1]).eval(), load_model(sys.argv[1])):
    assert type(loaded).__name__ == "RegionMyLlavaForConditionalGeneration"
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
"""


def test_a_family_of_another_package_is_registered_without_importing_other_models(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
