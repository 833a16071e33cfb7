"""
The focus metric
================

Focus is the attention of an answer to the object that the question is about. The model is the one of
``05_train_tiny.py``, which is trained first if it is missing. The program writes the toy test scenes in the form of
PixCV-Bench: questions, and the masks of their objects as COCO JSON. For PixCV-Bench itself, run ``regiontok focus
MODEL --annotations pixcvbench --questions test_2d.parquet --out scores``.
"""

import json
import runpy
from pathlib import Path

from regiontok.evaluation.assistant import Assistant
from regiontok.evaluation.pixcv import BenchmarkQuestion, measure_focus, read_objects
from regiontok.store import MaskStore

FOLDER = Path("tiny-llava")
HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()  # a notebook has no file


def find_model() -> Path:
    """Return the folder of the trained model, after training it if necessary."""
    if not list(FOLDER.glob("runs/*/instruct/model")):
        print("training the model of 05_train_tiny.py first, which takes some minutes", flush=True)
        runpy.run_path(str(HERE / "05_train_tiny.py"))["main"]()
    return next(FOLDER.glob("runs/*/instruct/model"))


def write_annotations(file: Path, store: MaskStore) -> list[BenchmarkQuestion]:
    """Write the masks of the objects of each question as COCO JSON, and return the questions."""
    images, annotations, questions = [], [], []
    for number, entry in enumerate(json.loads((FOLDER / "data" / "test.json").read_text())):
        name = f"{number}-{entry['image']}"  # the annotations of a question need an image name of their own
        images.append({"id": number, "file_name": name})
        for mask in store[entry["image"]].select(entry["about"]).to_coco():
            segmentation = {"size": mask["size"], "counts": mask["counts"].decode()}
            annotations.append({"image_id": number, "category_id": 0, "segmentation": segmentation})
        image = FOLDER / "data" / "images" / entry["image"]
        questions.append(BenchmarkQuestion(f"question {number}", entry["text"], entry["answer"], "toy", name, image))
    categories = [{"id": 0, "name": "foreground"}]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return questions


def main() -> None:
    """Measure focus, and print the number of questions that were left out."""
    model = find_model()
    store = MaskStore(FOLDER / "data" / "masks")
    questions = write_annotations(FOLDER / "annotations.json", store)
    print(f"asking {len(questions)} questions, which takes about a minute", flush=True)
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
    print(f"focus: {100 * focus.focus:.1f} % of the attention of an answer is on the object")
    print(f"share of the attention to the image: {100 * focus.share:.0f} %; if uniform: {100 * focus.chance:.0f} %")
    print("left out:", dict(result.reasons()))


if __name__ == "__main__":
    main()
