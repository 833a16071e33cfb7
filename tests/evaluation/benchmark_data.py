"""Stand-ins for the seven benchmarks: a few rows in the columns of each, where lmms-eval's own tasks look for them."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import datasets
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from regiontok import Regionizer
from regiontok.adapters.huggingface import with_regions
from tests.models import IMAGE, PAD, tiny_llava

COUNT = 6


def answering_model(folder, words):
    """A region model that answers any question with one of two words, which depends on image and question."""
    stock = tiny_llava(seed=6)
    with torch.no_grad():
        stock.lm_head.weight[3] = -stock.lm_head.weight[2]  # one of the two is always above all others
        stock.lm_head.weight[4:] = 0
        stock.lm_head.weight[:2] *= 1e-3
    stock.generation_config.eos_token_id = 1
    stock.generation_config.exponential_decay_length_penalty = (0, 1e9)  # ends after a word
    model = with_regions(stock, Regionizer(dim=32, num_heads=4, num_regions=6, linkage="centroid"))
    vocabulary = {"<pad>": PAD, "<eos>": 1} | {word: 2 + at for at, word in enumerate(words)} | {"<image>": IMAGE}
    asked = "Is there a bus Which 0 1 2 3 4 5 Answer the question using single word or phrase with option given choices"
    vocabulary |= {word: 10 + at for at, word in enumerate(asked.split())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<pad>", eos_token="<eos>")
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=56),
        fast,
        patch_size=14,
        vision_feature_select_strategy="full",
        chat_template="{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}"
        "{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}",
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def image(number):
    """Coloured fields, of many sizes."""
    generator = torch.Generator().manual_seed(number)
    pixels = 255 * torch.randint(0, 2, (2, 2, 3), generator=generator).byte().numpy()
    return Image.fromarray(pixels).resize((60 + 7 * number, 50 + 11 * (number % 3)))


def documents():
    """Per data set: its folder, config and split, and its rows; answers are put in afterwards."""
    every = [{"image": image(number), "question": f"Is there a bus {number} ?"} for number in range(COUNT)]
    return {
        "pope": ("lmms-lab-encoder/POPE", None, "test", [row | {"question_id": str(n), "category": "random"} for n, row in enumerate(every)]),
        "ocrbench": ("echo840/OCRBench", None, "test", [row | {"dataset": "IIIT5K", "question_type": "Regular Text Recognition"} for row in every]),
        "cv_bench": (
            "nyu-visionx/CV-Bench", "default", "test",
            [
                row | {"idx": n, "type": ["2D", "2D", "3D"][n % 3], "task": "Count", "choices": ["1", "2"], "prompt": f"Which {n} ?\n(A) 1\n(B) 2", "source": ["ADE20K", "COCO", "Omni3D"][n % 3]}
                for n, row in enumerate(every)
            ],
        ),
        "mmstar": (
            "Lin-Chen/MMStar", None, "val",
            [row | {"index": n, "category": "math", "l2_category": f"kind {n % 2}"} for n, row in enumerate(every)],
        ),
        "mme": (
            "lmms-lab-encoder/MME", None, "test",
            [row | {"question_id": f"pair {n // 2}", "category": ["existence", "existence", "code_reasoning"][n // 2]} for n, row in enumerate(every)],
        ),
        "mmbench": (
            "lmms-lab-encoder/MMBench", "en", "dev",
            [row | {"index": n, "hint": "nan", "A": "one", "B": "two", "C": "three", "D": "four", "category": "c", "L2-category": "l", "source": "s", "split": "dev", "comment": ""} for n, row in enumerate(every)],
        ),
        "mm_vet": ("lmms-lab-encoder/MMVet", None, "test", [row | {"question_id": str(n), "capability": "rec"} for n, row in enumerate(every)]),
    }  # fmt: skip


def write(root, name, answers):
    """Write one benchmark's rows with their answers under ``root``, as `datasets` finds them by name."""
    path, config, split, rows = documents()[name]
    folder = root / path
    folder.mkdir(parents=True)
    table = datasets.Dataset.from_list([row | {"answer": answer} for row, answer in zip(rows, answers, strict=True)])
    table.to_parquet(folder / f"{split}.parquet")
    files = [{"split": split, "path": f"{split}.parquet"}]
    configs = json.dumps([{"config_name": config or "default", "data_files": files}])
    (folder / "README.md").write_text(f"---\nconfigs: {configs}\n---\n")


class Judge(BaseHTTPRequestHandler):
    """Marks answers as the service does that MM-Vet asks: 1.0 where the truth is the prediction, or else 0.5."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
        truth, told = [part.strip() for part in str(asked).split("\n")[-1].split("|")][1:3]
        message = {"role": "assistant", "content": "1.0" if told == truth else "0.5"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]}
        body = json.dumps(answer | {"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def start_judge():
    """A judge on this machine, and its address."""
    server = HTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}/v1"
