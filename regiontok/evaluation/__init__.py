"""Answers, attention and benchmark scores of region models.

    prompts       the paper's two prompt formats
    assistant     a region model that answers questions and returns its attention
    conversation  several questions about the same images
    partition     how well regions represent patches and annotated objects
    focus         the attention of an answer to the object of its question
    pixcv         the focus metric on PixCV-Bench
    benchmarks    the paper's seven benchmarks, run by lmms-eval
    lmms          the lmms-eval plugin for region models
    cached_masks  a mask generator that stores its masks by image content
    table         scores as a row of the paper's Table 1

Only ``lmms`` and ``tasks`` need lmms-eval.
"""
