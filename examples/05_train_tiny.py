"""Train a small LLaVA on region tokens, from nothing to a model folder, in about a minute on a CPU.

All of the recipe in ``train_llava`` on toy scenes, cut short: a toy language model learns its language from text, then
LLaVA's two stages train the projector and the rest. ``python tiny.py`` there trains until the answers are good.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "train_llava"))
from tiny import prepare, train_one

FOLDER = Path("tiny-llava")
ROW = "pixels/segmentation/rms/mean/raster"  # encoder, source, norm, pool, order, as the rows of the paper's Table 1


def main() -> None:
    """Make scenes, train, and tell what came of it."""
    prepare(FOLDER, train=500, test=40, language_steps=900)
    result = train_one(ROW, FOLDER, steps=(60, 240))
    accuracy, majority = result["accuracy"]["all"], result["majority"]["all"]
    print(f"{result['tokens_per_image']} tokens per image; {accuracy} % of {result['questions']} answers are right")
    print(f"(always the most frequent answer: {majority} %)")
    print("the model and its processor are in", next(FOLDER.glob("runs/*/instruct/model")))


if __name__ == "__main__":
    main()
