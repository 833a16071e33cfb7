"""What vLLM's own Python runs in a test: a stock engine that answers requests of a file. It knows nothing of regiontok."""

import os
import sys

os.environ |= {
    "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
}  # fmt: skip

import torch
from vllm import LLM, SamplingParams


def main(folder, requests, answers):
    engine = LLM(
        model=folder,
        enable_mm_embeds=True,
        enforce_eager=True,
        dtype="float32",
        max_model_len=256,
        max_num_batched_tokens=256,
        max_num_seqs=1,  # since counts differ
        limit_mm_per_prompt={"image": 4},
    )
    told = engine.generate(torch.load(requests), SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    torch.save([list(one.outputs[0].token_ids) for one in told], answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
