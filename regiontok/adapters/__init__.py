"""Region tokens in multimodal language models.

    huggingface   models of transformers: LLaVA, Qwen-VL, InternVL, Gemma and others
    vllm          a plug-in of vLLM
    llava         the original LLaVA code base

An adapter encodes images as tokens with a `regiontok.Regionizer` and passes them to the language model. It computes no
regions itself.
"""
