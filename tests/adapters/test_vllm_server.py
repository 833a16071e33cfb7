"""``regiontok serve`` with requests over HTTP, as a user sends them.

Set REGIONTOK_VLLM to a Python that has vLLM and regiontok; see docs/serving.md.
"""

import base64
import contextlib
import io
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks import serving
from regiontok import Regionizer
from regiontok.adapters.huggingface import region_processor, with_regions
from tests.adapters.test_processors import IMAGES
from tests.adapters.vllm_tools import expected_answers, vllm_python, wide_model
from tests.processors import PROCESSORS, placeholder

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of GLM's processor
COUNTS = (5, 9, 12)


@pytest.fixture
def python():
    return vllm_python()


def template(title, processor):
    image = placeholder(title, processor).replace("><", "> <")
    return (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE {% else %}"
        "{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
    ).replace("IMAGE", image)


@contextlib.contextmanager
def server(python, folder, arguments, root):
    """Run ``regiontok serve``, and yield its port."""
    words = [
        "-m", "regiontok", "serve", str(folder), *arguments, "--dtype", "float32", "--enforce-eager", "--max-model-len",
        "512", "--max-num-batched-tokens", "512",
    ]  # fmt: skip
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with serving.server(python, words, root / "server.log", environment) as port:
        yield port
        assert "tokens instead of" in (root / "server.log").read_text()


def data_url(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def ask(port, content, **options):
    """Return the status of a chat request, and its answer or error."""
    body = {
        "model": "served", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 6,
        "ignore_eos": True, "skip_special_tokens": False,
    } | options  # fmt: skip
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)["choices"][0]["message"]["content"].strip()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def content_of(images):
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    return [*parts, {"type": "text", "text": "w8 w9"}]


def expected_texts(title, model, processor, counts):
    """Return the answers of ``generate`` as the tokenizer writes them."""
    image = placeholder(title, processor).replace("><", "> <")
    samples = [(f"{image} w8 w9", [one], count) for one, count in zip(IMAGES, counts, strict=True)]
    samples.append((f"{image} {image} w8 w9", IMAGES[:2], counts[0]))
    return [processor.tokenizer.decode(answer) for answer in expected_answers(model, processor, samples)]


def test_a_stock_checkpoint_is_served_by_one_command(python, tmp_path):
    """Images in data URLs with budgets of their own, eight at a time; what is rejected, and then an answer again."""
    title = "Qwen2.5-VL"
    processor, stock = PROCESSORS[title](), wide_model(title)
    processor.chat_template = processor.tokenizer.chat_template = template(title, processor)
    folder = tmp_path / "model"
    stock.save_pretrained(folder)
    processor.save_pretrained(folder)
    expected = expected_texts(
        title, with_regions(stock, Regionizer(pool="mean", norm="none")), PROCESSORS[title](), COUNTS
    )
    arguments = ["--tokens", "400", "--trust-request-mm-kwargs"]
    requests = [
        (content_of(images), {"mm_processor_kwargs": {"num_regions": count}})
        for images, count in (*(([one], count) for one, count in zip(IMAGES, COUNTS, strict=True)), (IMAGES[:2], 5))
    ]
    with server(python, folder, arguments, tmp_path) as port:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda one: ask(port, one[0], **one[1]), requests * 2))
        assert answers == [(200, text) for text in expected * 2]
        good, budget = requests[0]
        broken = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, good[1]]
        video = [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}, good[1]]
        for content, kwargs in (
            *((good, {"mm_processor_kwargs": {"num_regions": bad}}) for bad in (401, 0, -3, "x", 2.5, True)),
            (good, {"mm_processor_kwargs": {"keep": 2}}),
            (broken, budget),
            (video, {}),
        ):
            status, message = ask(port, content, **kwargs)
            assert status == 400, (status, message)
        assert ask(port, good, **budget) == (200, expected[0])


def test_a_saved_folder_is_served_through_the_backend(python, tmp_path):
    title = "GLM-4.1V"
    processor, stock = PROCESSORS[title](), wide_model(title)
    model = with_regions(stock, Regionizer(pool="mean", norm="none", num_regions=6), positions="even")
    expected = expected_texts(title, model, PROCESSORS[title](), [None] * 3)
    processor.chat_template = processor.tokenizer.chat_template = template(title, processor)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    region_processor(processor, model).save_pretrained(folder)
    arguments = ["--trust-request-mm-kwargs"]
    with server(python, folder, arguments, tmp_path) as port:
        contents = [*([one] for one in IMAGES), IMAGES[:2]]
        assert [ask(port, content_of(images)) for images in contents] == [(200, text) for text in expected]
        status, message = ask(port, content_of(IMAGES[:1]), mm_processor_kwargs={"num_regions": 4})
        assert status == 400
        assert "requests cannot change the budget of this model" in message
        assert ask(port, content_of(IMAGES[:1])) == (200, expected[0])
