"""What a model that sees region tokens says, and where it looks.

    prompts      the paper's two forms of a question
    assistant    a region model that answers, and shows its attention
    partition    how well regions stand for their patches and for annotated objects
    focus        how much of the answer's attention goes to the object that was asked for
    pixcv        the same over PixCV-Bench
    benchmarks   the paper's seven benchmarks through lmms-eval
    lmms         region models as lmms-eval's plugin
    table        figures as a row of the paper's Table 1

Of these only ``lmms`` needs lmms-eval.
"""
