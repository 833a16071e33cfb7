"""Measure focus: how much attention the words of an answer pay to the object that the question is about.

The model is the one of ``05_train_tiny.py``, which is trained first where it is missing. Its test scenes are written as
a benchmark in the form of PixCV-Bench (questions, and masks of their objects in COCO's JSON) and measured as that is by
``regiontok focus MODEL --annotations pixcvbench --questions test_2d.parquet --out scores``.
"""

import json
import runpy
from pathlib import Path

from regiontok.evaluation.assistant import Assistant
from regiontok.evaluation.pixcv import BenchmarkQuestion, measure_focus, read_objects
from regiontok.store import MaskStore

FOLDER = Path("tiny-llava")


def find_model() -> Path:
    """The trained model's folder."""
    if not list(FOLDER.glob("runs/*/instruct/model")):
        print("training the model of 05_train_tiny.py first, some minutes", flush=True)
        runpy.run_path(str(Path(__file__).with_name("05_train_tiny.py")))["main"]()
    return next(FOLDER.glob("runs/*/instruct/model"))


def write_annotations(file: Path, store: MaskStore) -> list[BenchmarkQuestion]:
    """The masks of the things that each question is about, one image per question; and the questions."""
    images, annotations, questions = [], [], []
    for number, one in enumerate(json.loads((FOLDER / "data" / "test.json").read_text())):
        name = f"{number}-{one['image']}"  # an image is asked about several things
        images.append({"id": number, "file_name": name})
        for mask in store[one["image"]].select(one["about"]).to_coco():
            segmentation = {"size": mask["size"], "counts": mask["counts"].decode()}
            annotations.append({"image_id": number, "category_id": 0, "segmentation": segmentation})
        image = FOLDER / "data" / "images" / one["image"]
        questions.append(BenchmarkQuestion(f"question {number}", one["text"], one["answer"], "toy", name, image))
    categories = [{"id": 0, "name": "foreground"}]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return questions


def main() -> None:
    """Measure, and say what was left out."""
    model = find_model()
    store = MaskStore(FOLDER / "data" / "masks")
    questions = write_annotations(FOLDER / "annotations.json", store)
    print(f"asking {len(questions)} questions, about a minute", flush=True)
    result = measure_focus(
        Assistant.load(model),
        questions,
        read_objects(FOLDER / "annotations.json"),
        masks=lambda name, image: store[name.partition("-")[2]],
        batch_size=16,
        max_new_tokens=1,
    )
    focus = result.focus
    print(f"{focus.questions} questions, {result.tokens:.1f} tokens per image, {100 * result.accuracy:.1f} % right")
    print(f"focus: {100 * focus.focus:.1f} % of an answer's attention goes to the object")
    print(f"of what goes to the image it has {100 * focus.share:.0f} %; even attention: {100 * focus.chance:.0f} %")
    print("left out:", dict(result.reasons()))


if __name__ == "__main__":
    main()
