"""What vLLM's own Python runs in a test: an engine of a region model that answers the requests of a file."""

import json
import os
import sys

os.environ |= {
    "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
}  # fmt: skip

import torch
from vllm import LLM, SamplingParams


def answers(engine, requests):
    """Return the tokens of each answer."""
    return [list(one.outputs[0].token_ids) for one in generate(engine, requests)]


def generate(engine, requests):
    """Return the outputs of vLLM."""
    return engine.generate(requests, SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))


def main(folder, options, requests, out):
    engine = LLM(
        model=folder,
        enforce_eager="REGIONTOK_VLLM_GRAPHS" not in os.environ,
        dtype="float32",
        limit_mm_per_prompt={"image": 4},
        **json.loads(options),
    )
    given = torch.load(requests, weights_only=False)
    told = {"batch": answers(engine, given["answered"]), "cached": answers(engine, given["answered"])}
    single = [generate(engine, [request])[0] for request in given["answered"]]
    told["single"] = [list(one.outputs[0].token_ids) for one in single]
    told["hits"] = [one.num_cached_tokens for one in single]
    told["rejected"] = []
    for request in given["rejected"]:
        try:
            told["rejected"].append(answers(engine, [request])[0])
        except Exception as error:
            told["rejected"].append(f"{type(error).__name__}: {error}")
    told["after"] = answers(engine, given["answered"])
    torch.save(told, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
