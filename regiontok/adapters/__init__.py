"""Region tokens in whole multimodal language models.

    huggingface   transformers' LLaVA, LLaVA-OneVision and Qwen2.5-VL
    llava         the original LLaVA code base

An adapter turns images into tokens with a `regiontok.Regionizer` and hands them to the model; it has no maths.
"""
