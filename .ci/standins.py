"""Make what the documentation's commands read: images, annotations, and small random models of what is installed.

Usage: python .ci/standins.py FOLDER, in the environment whose extras are tested.
"""

import importlib.util
import json
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import sklearn.datasets
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the small models of the tests


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    make_images(folder / "inputs")
    has = {name for name in ("av", "timm", "transformers", "datasets", "pyarrow") if importlib.util.find_spec(name)}
    if "av" in has:
        make_videos(folder / "inputs")
    if "timm" in has and not (folder / "vit.safetensors").exists():
        import timm
        from safetensors.torch import save_file

        save_file(timm.create_model("vit_tiny_patch16_224", pretrained=False).state_dict(), folder / "vit.safetensors")
    if "transformers" in has and not (folder / "clustered").exists():
        make_models(folder)
    if {"datasets", "pyarrow"} <= has and not (folder / "inputs" / "rows").exists():
        import datasets

        files = sorted((folder / "inputs" / "images").glob("*.jpg"))
        rows = datasets.Dataset.from_dict({"image": list(map(str, files)), "name": [file.stem for file in files]})
        rows.cast_column("image", datasets.Image()).save_to_disk(folder / "inputs" / "rows")
    if "pyarrow" in has:
        make_questions(folder)


def make_images(folder: Path) -> None:
    """Two real images that scikit-learn ships, with COCO's annotations and label maps of four quarters."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    coco: dict[str, list] = {"images": [], "annotations": []}
    for number, name in enumerate(("china", "flower")):
        image = Image.fromarray(sklearn.datasets.load_sample_image(f"{name}.jpg")).resize((320, 214))
        image.save(folder / "images" / f"{name}.jpg")
        labels = np.kron([[0, 1], [2, 255]], np.ones((107, 160))).astype(np.uint8)
        Image.fromarray(labels).save(folder / "labels" / f"{name}.png")
        coco["images"].append({"id": number, "file_name": f"{name}.jpg", "height": 214, "width": 320})
        square = [[20, 20, 200, 20, 200, 150, 20, 150]]
        coco["annotations"].append({"id": number, "image_id": number, "category_id": 1, "segmentation": square})
    (folder / "instances.json").write_text(json.dumps(coco))
    (folder / "sa1b").mkdir(exist_ok=True)
    for image, annotation in zip(coco["images"], coco["annotations"], strict=True):
        record = {"image": image, "annotations": [annotation]}
        (folder / "sa1b" / Path(image["file_name"]).with_suffix(".json")).write_text(json.dumps(record))
    questions = [{"question": "w1", "image": f"images/{name}.jpg", "answer": "w2"} for name in ("china", "flower")]
    (folder / "mine.json").write_text(json.dumps(questions))
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for file in sorted((folder / "images").iterdir()):
            tar.add(file, file.name)
    for name, source in (("image", "china"), ("a", "china"), ("b", "flower")):
        shutil.copy(folder / "images" / f"{source}.jpg", folder / f"{name}.jpg")


def make_videos(folder: Path) -> None:
    """Two videos of a square that moves over an image."""
    import av

    (folder / "films").mkdir(exist_ok=True)
    background = np.asarray(Image.open(folder / "image.jpg"))[:208]
    for path in (folder / "film.mp4", folder / "films" / "a.mp4"):
        with av.open(str(path), "w") as file:
            stream = file.add_stream("mpeg4", rate=8, width=320, height=208, pix_fmt="yuv420p")
            for number in range(24):
                frame = background.copy()
                frame[80:120, 8 * number : 8 * number + 40] = (250, 120, 0)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
            file.mux(stream.encode())


def make_models(folder: Path) -> None:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    from regiontok import ImageGeometry, Regionizer
    from regiontok.adapters.huggingface import with_regions
    from tests.models import tiny_llava, tiny_processor, tiny_sam2, tiny_sam2_video

    tiny_sam2().save_pretrained(folder / "sam2")
    tiny_sam2_video().save_pretrained(folder / "sam2_video")
    config = Dinov2Config(hidden_size=32, num_hidden_layers=10, num_attention_heads=4, image_size=56, patch_size=14)
    Dinov2Model(config).save_pretrained(folder / "dinov2")
    size = {"height": 56, "width": 56}
    BitImageProcessor(size={"shortest_edge": 56}, crop_size=size).save_pretrained(folder / "dinov2")
    stock = tiny_llava()
    models = {
        "stock": stock,
        "clustered": with_regions(stock, Regionizer(pool="mean", num_regions=8)),
        "masked": with_regions(
            tiny_llava(), Regionizer(source="combined", pool="mean", geometry=ImageGeometry.center_crop(56))
        ),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tiny_processor().save_pretrained(folder / name)


def make_questions(folder: Path) -> None:
    """Questions of CV-Bench about the images, and PixCV-Bench's annotations of their objects."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "pixcvbench" / "ADE20K").mkdir(parents=True, exist_ok=True)
    images = folder / "inputs" / "images"
    data = json.loads((folder / "inputs" / "instances.json").read_text())
    data["categories"] = [{"id": 1, "name": "foreground"}]
    (folder / "pixcvbench" / "ADE20K" / "FinalSegmentations.json").write_text(json.dumps(data))
    rows = [
        {
            "idx": number,
            "type": "2D",
            "question": "w1",
            "choices": ["w1", "w2"],
            "answer": "(A)",
            "prompt": "w1 w9\n(A) w1\n(B) w2",
            "filename": f"img/2D/{number}_{name}.jpg",
            "source": "ADE20K",
            "source_dataset": "ADE20K Validation Set",
            "source_filename": f"validation/images/{name}.jpg",
            "image": {"bytes": (images / f"{name}.jpg").read_bytes(), "path": None},
        }
        for number, name in enumerate(("china", "flower"))
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "test_2d.parquet")
    images = pa.table({"image": [row["image"] for row in rows]})
    pq.write_table(images, folder / "inputs" / "train-00000.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
