import json

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from regiontok import ImageGeometry, MaskSet, Regionizer, masks
from regiontok.adapters.huggingface import load_model, with_regions
from regiontok.errors import CheckpointError, DTypeError, ValueRangeError
from regiontok.evaluation.assistant import Assistant, Question
from tests.conftest import assert_close
from tests.models import IMAGE, tiny_llava, tiny_processor

FLOWER = Image.fromarray(load_sample_image("flower.jpg"))
GEOMETRY = ImageGeometry.center_crop(56)


def assistant_of(stock=None, *, generator=None, **options):
    options = {"dim": 32, "num_heads": 4, "threshold": 0.3} | options
    return Assistant(with_regions(stock or tiny_llava(), Regionizer(**options)), tiny_processor(), masks=generator)


def questions(china):
    return [Question("w1 w2 w3", [china]), Question("w5", [FLOWER, china]), Question("w7 w8 w9 w10")]


def test_batched_answers_equal_single_answers(china):
    assistant = assistant_of()
    together = assistant.answer(questions(china), max_new_tokens=5)
    alone = [assistant.answer([one], max_new_tokens=5)[0] for one in questions(china)]
    assert together == alone
    assert [len(one.counts) for one in together] == [1, 2, 0]
    assert together[0].counts == together[1].counts[1:]
    assert all(len(one.tokens) == 5 and one.text.split() == [f"w{token}" for token in one.tokens] for one in together)


def test_decoding_is_greedy_for_any_generation_config(china):
    assistant = assistant_of()
    expected = assistant.answer(questions(china), max_new_tokens=5)
    assistant.model.generation_config.do_sample = True
    assistant.model.generation_config.temperature = 5.0
    assistant.model.generation_config.num_beams = 3
    assert assistant.answer(questions(china), max_new_tokens=5) == expected


def test_one_token_per_patch_answers_like_the_stock_model(china):
    stock, processor = tiny_llava(), tiny_processor()
    assistant = Assistant(
        with_regions(stock, Regionizer(source="patch", norm="none", padding="keep")), tiny_processor()
    )
    inputs = processor(text="<image> w1 w2", images=[china], return_tensors="pt")
    inputs.pop("token_type_ids", None)
    made = stock.generate(**inputs, max_new_tokens=4, do_sample=False)
    (answer,) = assistant.answer([Question("w1 w2", [china])], max_new_tokens=4)
    assert answer.tokens == made[0, inputs["input_ids"].shape[1] :].tolist()
    assert answer.counts == [16]


def test_answers_end_at_the_end_token_and_texts_at_stop_strings(china):
    assistant = assistant_of()
    (whole,) = assistant.answer([Question("w1 w2 w3", [china])], max_new_tokens=6)
    third = next(token for token in whole.tokens if token != whole.tokens[0])
    at = whole.tokens.index(third)
    (cut,) = assistant.answer([Question("w1 w2 w3", [china])], max_new_tokens=6, stop=["", f"w{third}"])
    assert cut.tokens == whole.tokens
    assert cut.text.split() == whole.text.split()[:at]
    assistant.model.generation_config.eos_token_id = third
    (ended,) = assistant.answer([Question("w1 w2 w3", [china])], max_new_tokens=6)
    assert ended.tokens == whole.tokens[:at]


def test_batched_attention_equals_single_attention(china):
    assistant = assistant_of()
    asked = questions(china)[:2]
    answers = [[11, 12, 13], [14]]
    both = assistant.attend(asked, answers)
    assert both.images == [[0], [1, 2]]
    for one, tokens, together in zip(asked, answers, both.weights, strict=True):
        assert_close(together, assistant.attend([one], [tokens]).weights[0])


def test_attention_of_an_empty_answer_is_an_error(china):
    with pytest.raises(ValueRangeError, match="answers must have at least one token each; answer 1 has none."):
        assistant_of().attend(questions(china)[:2], [[1], []])


def test_masks_from_the_question_or_from_a_generator(china):
    generate = masks.load("felzenszwalb")
    options = {"source": "segmentation", "geometry": GEOMETRY}
    asked = [Question("w1", [china]), Question("w2")]
    made = assistant_of(**options, generator=generate).answer(asked, max_new_tokens=2)
    given = [Question("w1", [china], generate([china])), Question("w2")]
    assert assistant_of(**options).answer(given, max_new_tokens=2) == made
    with pytest.raises(ValueRangeError, match="needs masks .source 'segmentation'., and question 0 has none. Pass a"):
        assistant_of(**options).answer(asked)
    with pytest.raises(ValueRangeError, match="question 0 must have masks for each of its 1 images; got 2"):
        assistant_of(**options).answer([Question("w1", [china], [MaskSet.from_masks(torch.ones(1, 4, 4).bool())] * 2)])


def test_errors_name_invalid_questions(china):
    assistant = assistant_of()
    with pytest.raises(ValueRangeError, match="question 1 must not contain the image placeholder <image>. Remove it"):
        assistant.answer([Question("w1", [china]), Question("see <image>", [china])])
    with pytest.raises(ValueRangeError, match="at least one question; got none"):
        assistant.answer([])
    with pytest.raises(ValueRangeError, match="max_new_tokens must be"):
        assistant.answer(questions(china), max_new_tokens=0)


def test_invalid_models_and_processors_are_errors():
    with pytest.raises(
        DTypeError, match="model must have region tokens; got LlavaForConditionalGeneration. Convert it"
    ):
        Assistant(tiny_llava(), tiny_processor())
    model = with_regions(tiny_llava(), Regionizer(pool="mean"))
    mute = tiny_processor()
    mute.chat_template = None
    with pytest.raises(CheckpointError, match="must have a chat template, which formats questions. Set"):
        Assistant(model, mute)
    bare = tiny_processor()
    bare.tokenizer.pad_token = None
    with pytest.raises(CheckpointError, match="must have a padding token. Set tokenizer.pad_token"):
        Assistant(model, bare)


def test_load_folders_of_region_models_and_stock_models(tmp_path, china):
    assistant = assistant_of(num_regions=7, threshold=None)
    assistant.model.save_pretrained(tmp_path / "region")
    tiny_llava().save_pretrained(tmp_path / "stock")
    for folder in ("region", "stock"):
        tiny_processor().save_pretrained(tmp_path / folder)
    asked = questions(china)
    loaded = Assistant.load(tmp_path / "region")
    assert loaded.answer(asked, max_new_tokens=3) == assistant.answer(asked, max_new_tokens=3)
    assert Assistant.load(tmp_path / "stock").answer(asked, max_new_tokens=3)[1].counts == [16, 16]
    budget = Assistant.load(tmp_path / "stock", regionizer=Regionizer(pool="mean", num_regions=7))
    assert budget.answer(asked, max_new_tokens=3)[0].counts == [7]
    with pytest.raises(CheckpointError, match="holds a region model with its own Regionizer. Do not pass another"):
        load_model(tmp_path / "region", regionizer=Regionizer(pool="mean"))
    config = tmp_path / "region" / "config.json"
    options = config.read_text()
    config.write_text(json.dumps(json.loads(options) | {"regiontok": None}))
    with pytest.raises(
        CheckpointError, match="regiontok is null in its config. It must hold the options of a Regionizer"
    ):
        load_model(tmp_path / "region")
    config.write_text(options)
    (tmp_path / "region" / "processor_config.json").unlink()
    (tmp_path / "region" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="has a model but no processor: "):
        Assistant.load(tmp_path / "region")
    (tmp_path / "region" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="its weights cannot be loaded: "):
        load_model(tmp_path / "region")
    with pytest.raises(CheckpointError, match="holds no model of transformers: .* Pass a folder that save_pretrained"):
        load_model(tmp_path / "nothing")


def test_unsupported_models_are_errors(tmp_path):
    tiny_llava().config.text_config.save_pretrained(tmp_path)
    with pytest.raises(ValueRangeError, match="there is no adapter for llama. Use one of Llava"):
        load_model(tmp_path)


def test_tokenize_an_answer():
    assert assistant_of().tokenize("w3 w4") == [3, 4]
    assert IMAGE not in assistant_of().tokenize("w98")
