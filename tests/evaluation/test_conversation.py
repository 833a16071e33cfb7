"""Turns about the same images, which are encoded once, with a reused cache."""

import pytest
import torch
from PIL import Image

from regiontok import Regionizer
from regiontok.adapters.huggingface import with_regions
from regiontok.errors import ValueRangeError
from regiontok.evaluation.assistant import Assistant
from regiontok.evaluation.conversation import Conversation
from tests.families import CASES
from tests.processors import PROCESSORS, TEMPLATE, placeholder

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
TURNS = ["w5 w6", "w7", "w8 w9 w10"]


def assistant_of(name, **options):
    stock = CASES[name].make()
    processor = PROCESSORS[name]()
    processor.chat_template = TEMPLATE.replace("IMAGE", placeholder(name, processor))
    return Assistant(with_regions(stock, Regionizer(**{"pool": "mean", "norm": "none"} | options)), processor)


def image(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 255, (60, 90, 3), generator=generator, dtype=torch.uint8).numpy())


@pytest.mark.parametrize("options", [{"num_regions": 8}, {"threshold": 0.5}], ids=str)
@pytest.mark.parametrize("name", ["LLaVA-1.5", "Qwen3-VL", "InternVL", "Gemma 3", "SmolVLM"])
def test_cached_turns_equal_a_recomputed_conversation(name, options, monkeypatch):
    assistant = assistant_of(name, **options)
    inner = assistant.model.model
    encodings, widths = [], []
    encode = inner.encode_patches
    monkeypatch.setattr(inner, "encode_patches", lambda *args, **kwargs: encodings.append(1) or encode(*args, **kwargs))
    hook = assistant.model.get_input_embeddings().register_forward_hook(
        lambda _, args, __: widths.append(args[0].shape[1])
    )
    conversation = Conversation(assistant, [image(), image(1)])
    answers = [conversation.ask(text, max_new_tokens=4) for text in TURNS]
    first = max(widths)
    assert len(encodings) == 1
    assert all(width < first for width in widths[widths.index(first) + 1 :])  # only new tokens are computed
    hook.remove()
    again = Conversation(assistant, [image(), image(1)])
    for text, expected in zip(TURNS, answers, strict=True):
        again._cache = None
        assert again.ask(text, max_new_tokens=4) == expected
    assert answers[0].counts == answers[2].counts


def test_interleaved_conversations_keep_their_positions():
    """Qwen's model stores a position offset between calls."""
    assistant = assistant_of("Qwen3-VL", num_regions=4)
    expected = [Conversation(assistant, [image()]).ask(TURNS[0], max_new_tokens=4)]
    one, other = Conversation(assistant, [image()]), Conversation(assistant, [image(), image(1)])
    assert one.ask(TURNS[0], max_new_tokens=4) == expected[0]
    other.ask(TURNS[1], max_new_tokens=4)
    second = one.ask(TURNS[1], max_new_tokens=4)
    alone = Conversation(assistant, [image()])
    alone.ask(TURNS[0], max_new_tokens=4)
    assert alone.ask(TURNS[1], max_new_tokens=4) == second


def test_text_only_conversation_and_image_placeholders():
    assistant = assistant_of("LLaVA-1.5", num_regions=4)
    conversation = Conversation(assistant)
    assert conversation.ask("w5", max_new_tokens=2).counts == []
    with pytest.raises(ValueRangeError, match="question 1 must not contain the image placeholder <image>"):
        conversation.ask("w5 <image>")
    conversation.ask("w6", max_new_tokens=2)
