"""Serving with vLLM: requests per second and time to the first token, for all, 25 % and 10 % of the image tokens.

A server is started for each contestant, with the stock model or with regions, and ``vllm bench serve`` sends the same
requests to it: an image, a short text, and a few tokens to generate.

Examples:
    python -m benchmarks.serving --vllm PYTHON                # a small random model, on a CPU
    python -m benchmarks.serving --vllm PYTHON --model Qwen/Qwen2.5-VL-7B-Instruct --requests 200 --concurrency 32
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.timing import save
from tests.processors import tokenizer

KEEPS = {"stock": None, "25 %": 0.25, "10 %": 0.1}
FIELDS = ("request_throughput", "median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "completed", "failed")
_TEMPLATE = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|> <|image_pad|> <|vision_end|> {% else %}{{ c['text'] }} {% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)
_START_SECONDS = 1800
"""Time for a server to start: a large model may have to be downloaded."""
_CPU = {"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def save_small_model(folder: Path, side: int) -> None:
    """Save a random Qwen2.5-VL, with ``side // 28`` tokens per row of an image, and its processor."""
    torch.manual_seed(0)
    text = {
        "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
        "num_key_value_heads": 2, "vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 10000.0},
    }  # fmt: skip
    vision = {
        "depth": 4, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "patch_size": 14,
        "out_hidden_size": 512, "spatial_merge_size": 2, "temporal_patch_size": 2, "fullatt_block_indexes": [3],
    }  # fmt: skip
    ids = {"image_token_id": 99, "video_token_id": 98, "vision_start_token_id": 97, "vision_end_token_id": 96}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    transformers.Qwen2_5_VLForConditionalGeneration(config).eval().save_pretrained(folder)
    size = {"shortest_edge": 56 * 56, "longest_edge": side * side}
    images = transformers.Qwen2VLImageProcessor(size=size)
    special = ["<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    words = tokenizer("<|image_pad|>", more=special, image_token="<|image_pad|>", video_token="<|video_pad|>")
    processor = transformers.Qwen2_5_VLProcessor(images, words, transformers.Qwen2VLVideoProcessor())
    processor.chat_template = words.chat_template = _TEMPLATE
    processor.save_pretrained(folder)


@contextlib.contextmanager
def server(python: str, words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Iterator[int]:
    """Run a server, and yield its port once it answers.

    Args:
        python: Python with vLLM.
        words: Arguments of Python: the command of the server.
        log: File of its output.
        environment: Further environment variables.

    Raises:
        RuntimeError: It ends, or does not answer in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    command = [python, *words, "--port", str(port), "--host", "127.0.0.1", "--served-model-name", "served"]
    variables = _CPU | os.environ | (environment or {})
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=variables, cwd=log.parent)
    deadline = time.monotonic() + _START_SECONDS
    try:
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start: {log.read_text()[-6000:]}")
            time.sleep(1)
        yield port
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _answers(port: int) -> bool:
    """Return whether a server answers."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
    except OSError:
        return False
    return True


def send(python: str, model: str, port: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Send the requests, and return what was measured."""
    side = options.side
    command = [
        python, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", "openai-chat", "--model", "served",
        "--endpoint", "/v1/chat/completions", "--tokenizer", model, "--port", str(port), "--host", "127.0.0.1",
        "--dataset-name", "random-mm", "--random-input-len", "32", "--random-output-len", "16",
        "--random-mm-base-items-per-request", "1", "--random-mm-num-mm-items-range-ratio", "0",
        "--random-mm-limit-mm-per-prompt", '{"image": 1, "video": 0}',
        "--random-mm-bucket-config", f"{{({side}, {side}, 1): 1.0}}", "--num-prompts", str(options.requests),
        "--max-concurrency", str(options.concurrency), "--num-warmups", "2", "--ignore-eos", "--seed", "0",
        "--save-result", "--result-dir", str(folder), "--result-filename", "result.json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"vllm bench serve failed: {(done.stdout + done.stderr)[-4000:]}")
    result = json.loads((folder / "result.json").read_text())
    if result["failed"]:
        raise SystemExit(f"{result['failed']} of {options.requests} requests failed; see {folder}.")
    return {name: round(result[name], 2) for name in FIELDS}


def measure(python: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all contestants.

    Args:
        python: Python with vLLM and regiontok.
        options: Those of the command line.
    """
    with tempfile.TemporaryDirectory() as work:
        model = options.model or str(Path(work) / "model")
        if options.model is None:
            save_small_model(Path(model), options.side)
        figures: dict[str, Any] = {"model": options.model or "small Qwen2.5-VL", "side": options.side}
        figures |= {"requests": options.requests, "concurrency": options.concurrency}
        for name, keep in KEEPS.items():
            words = ["-m", "vllm.entrypoints.cli.main", "serve", model]
            if keep is not None:
                words = ["-m", "regiontok", "serve", model, "--keep", str(keep)]
            with server(python, [*words, *options.arguments], Path(work) / "server.log") as port:
                figures[name] = send(python, model, port, options, Path(work))
            print(f"{name:6} {figures[name]}", flush=True)
    for name in ("25 %", "10 %"):
        for field in ("request_throughput", "median_ttft_ms"):
            figures[name][f"{field} to stock"] = round(figures[name][field] / figures["stock"][field], 2)
    return figures


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", required=True, metavar="PYTHON", help="Python with vLLM and regiontok")
    parser.add_argument("--model", help="folder or name on the hub; default: a small random Qwen2.5-VL")
    parser.add_argument("--side", type=int, default=896, help="height and width of images; default: %(default)s")
    parser.add_argument("--requests", type=int, default=96, help="default: %(default)s")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at a time; default: %(default)s")
    parser.add_argument("--arguments", nargs="*", default=["--max-model-len=2048"], help="of all servers; %(default)s")
    parser.add_argument("--no-save", action="store_true", help="print the results only")
    return parser.parse_args(arguments)


def main() -> None:
    """Run the command line."""
    options = parse()
    figures = measure(options.vllm, options)
    print(json.dumps(figures, indent=2))
    if not options.no_save:
        print(save("serving", figures))


if __name__ == "__main__":
    main()
