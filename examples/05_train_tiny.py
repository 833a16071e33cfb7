"""
Train a small LLaVA on region tokens
====================================

This program runs the recipe of ``train_llava`` on toy scenes, with few steps, in about a minute on a CPU. A toy
language model is trained on text. Then the two stages of LLaVA train the projector, and the projector with the
language model. To train until most answers are right, run ``python tiny.py`` in ``examples/train_llava``.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()  # a notebook has no file
sys.path.insert(0, str(HERE / "train_llava"))
from tiny import prepare, train_one  # noqa: E402

FOLDER = Path("tiny-llava")
ROW = "pixels/segmentation/rms/mean/raster"  # encoder, source, norm, pool, order, like the rows of Table 1 of the paper


def main() -> None:
    """Write the scenes, train the model, and print its accuracy."""
    prepare(FOLDER, train=500, test=40, language_steps=900)
    result = train_one(ROW, FOLDER, steps=(60, 240))
    accuracy, majority = result["accuracy"]["all"], result["majority"]["all"]
    print(f"{result['tokens_per_image']} tokens per image; {accuracy} % of {result['questions']} answers are right")
    print(f"(always the most frequent answer: {majority} %)")
    print("saved the model and its processor in", next(FOLDER.glob("runs/*/instruct/model")))


if __name__ == "__main__":
    main()
