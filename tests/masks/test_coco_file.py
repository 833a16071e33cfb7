import json

import numpy as np
import pytest
from PIL import Image

from regiontok.cli import main
from regiontok.errors import DataError, MissingKeyError, ValueRangeError
from regiontok.masks import CocoMasks, LabelMaps
from regiontok.store import MaskStore
from tests.pipeline.test_listing import draw

HALF = [[0.0, 0.0, 24.0, 0.0, 24.0, 32.0, 0.0, 32.0]]


def coco_file(path, images, annotations):
    data = {
        "images": [{"id": number, "file_name": name, "height": size[0], "width": size[1]} for number, (name, size) in enumerate(images)],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "cat"}],
    }  # fmt: skip
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Two images of 32 x 48, one of which is a quarter turned as stored; annotations and label maps of both."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images" / "sub").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("images/a.png")
    Image.fromarray(pixels[::-1]).save("images/sub/b.png")
    coco_file(
        tmp_path / "instances.json",
        [("a.png", (32, 48)), ("sub/b.png", (32, 48)), ("empty.png", (32, 48))],
        [
            {"id": 70, "image_id": 0, "category_id": 3, "segmentation": HALF, "iscrowd": 0},
            {"id": 71, "image_id": 1, "category_id": 3, "segmentation": HALF, "iscrowd": 0},
            {"id": 72, "image_id": 0, "category_id": 3, "segmentation": {"size": [32, 48], "counts": [0, 1536]}, "iscrowd": 1},
            {"id": 73, "image_id": 9, "category_id": 3, "segmentation": HALF},
        ],
    )  # fmt: skip
    labels = np.zeros((32, 48), np.uint8)
    labels[:, :24] = 7
    labels[0] = 255
    for name in ("maps/a.png", "maps/sub/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(name)
    return tmp_path


def test_masks_by_image_name(here):
    masks = CocoMasks("instances.json")
    assert (len(masks), list(masks)) == (3, ["a.png", "sub/b.png", "empty.png"])
    assert masks.categories == {3: "cat"}
    assert masks.without_image == [3]
    assert repr(masks) == "CocoMasks('instances.json', 3 images)"
    for key in ("a.png", "images/a.png", here / "images" / "a.png"):
        assert masks[key].ids.tolist() == [70, 72]
        assert key in masks
    assert masks["images/sub/b.png"].masks()[0].sum() == 24 * 32
    assert (len(masks["empty.png"]), masks["empty.png"].size) == (0, (32, 48))
    assert masks.find("b.png") == "sub/b.png"  # in its own folder
    assert "other/b.png" not in masks
    assert masks.size("a.png") == (32, 48)
    assert CocoMasks("instances.json", iscrowd="drop")["a.png"].ids.tolist() == [70]
    with pytest.raises(DataError, match=r"instances.json has no image x/b.png"):
        masks["x/b.png"]


def test_an_invalid_annotation_affects_only_its_image(here):
    coco_file(
        here / "i.json",
        [("a.png", (32, 48)), ("b.png", (32, 48))],
        [{"id": 5, "image_id": 0, "segmentation": [[1, 2, 3, 4]]}],
    )
    masks = CocoMasks("i.json")
    assert len(masks["b.png"]) == 0
    with pytest.raises(DataError, match=r"i.json, a.png: mask 0 \(annotation 5\): 4 numbers are a box"):
        masks["a.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "i.json is not valid JSON"),
        ("[" * 99999, "i.json is not valid JSON"),
        ("[]", "not a COCO annotation file"),
        ('{"images": 3, "annotations": 4}', "not a COCO annotation file"),
        ('{"images": [{"id": [1], "file_name": "a"}], "annotations": []}', "not a COCO annotation file"),
        ('{"images": [], "annotations": [{"segmentation": []}]}', "annotation 0 has no image_id"),
        ('{"images": [{"id": 1}], "annotations": []}', "not a COCO annotation file: entry 0 of images has no field 'file_name'"),
        ('{"images": [{"id": 1, "file_name": "a", "height": 1.5, "width": 1}], "annotations": []}', "whole number"),
        ('{"images": [{"id": 1, "file_name": "a", "height": 1, "width": 1}, {"id": 2, "file_name": "a", "height": 1, "width": 2}], "annotations": []}', "lists a with two sizes"),
        ('<?xml version="1.0"?><annotations/>', "CVAT's XML"),
        ('[{"id": 1, "annotations": [{"result": []}]}]', "a task of Label Studio"),
    ],
)  # fmt: skip
def test_invalid_annotation_files_are_errors(here, text, message):
    (here / "i.json").write_text(text)
    with pytest.raises(DataError, match=message):
        CocoMasks("i.json")
    with pytest.raises(DataError, match="cannot be read"):
        CocoMasks("nowhere.json")


def test_label_maps_match_by_the_longest_path(here):
    Image.fromarray(np.full((4, 4), 9, np.uint8)).save("maps/b.tif")
    maps = LabelMaps("maps", ignore=(0, 255))
    assert maps["images/a.png"].ids.tolist() == [7]
    assert maps["images/sub/b.jpg"].size == (32, 48)
    assert maps["b.jpg"].size == (4, 4)
    assert LabelMaps("maps")["a.png"].ids.tolist() == [0, 7, 255]
    with pytest.raises(DataError, match="maps has no label map of c.png, such as c.png"):
        maps["c.png"]
    Image.new("RGB", (4, 4)).save("maps/c.png")
    with pytest.raises(DataError, match=r"maps/c.png: a label map must be .* colours are ids"):
        maps["c.png"]
    (here / "maps" / "d.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="maps/d.png: not an image"):
        maps["d.png"]
    with pytest.raises(DataError, match="the folder of masks none does not exist"):
        LabelMaps("none")


COCO, MAPS = ["--coco", "instances.json"], ["--label-maps", "maps", "--ignore", "0", "255"]


@pytest.mark.parametrize("named", [COCO, [*COCO, "--no-crowds"], MAPS], ids=" ".join)
def test_a_store_has_the_masks_of_the_annotations(here, named, capsys):
    assert main(["masks", "images", *named, "--out", "m"]) == 0
    store = MaskStore("m")
    assert list(store) == ["a.png", "sub/b.png"]
    source = LabelMaps("maps", ignore=(0, 255)) if named is MAPS else CocoMasks("instances.json", iscrowd="drop" if len(named) == 3 else "keep")  # fmt: skip
    for key in store:
        assert store[key].to_coco() == source[key].to_coco()
        assert store[key].ids.tolist() == source[key].ids.tolist()
    assert store.provenance["annotations"] == ("label maps" if named is MAPS else "coco")
    if named is not MAPS:
        assert store["a.png"].categories.tolist() == [3] * len(source["a.png"])
        assert "1 annotations name no image" in capsys.readouterr().err
    arguments = ["tokenize", "images", "--source", "segmentation"]
    assert main([*arguments, *named, "--out", "direct"]) == 0
    assert main([*arguments, "--masks", "m", "--out", "stored"]) == 0
    for name in ("a", "sub/b"):
        direct, stored = ((here / out / f"{name}.regions.safetensors").read_bytes() for out in ("direct", "stored"))
        assert direct == stored
    for command in (
        ["view", "images/a.png", "--out", "v.html"],
        ["count", "images"],
        ["figures", "regions", "images/a.png", "--out", "f.png"],
    ):
        assert main([*command, *named]) == 0
    assert "combined" in (here / "v.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("named", [[*COCO, "--no-crowds"], MAPS], ids=" ".join)
def test_compare_reports_scores_for_objects(here, named, capsys):
    assert main(["compare", "images", "--num-regions", "4", *named, "--out", "c.png"]) == 0
    header = next(line for line in capsys.readouterr().out.splitlines() if "regions" in line)
    assert header.split() == ["regions", "variance", "singletons", "largest", "mIoU", "recall"]
    rows = json.loads((here / "c.png.json").read_text())["mean"]
    told = {row["source"]: row for row in rows}
    assert told["segmentation"]["miou"] > 0.9
    assert told["segmentation"]["miou"] >= told["grid"]["miou"] > told["ward"]["miou"]  # the image is noise


def test_images_with_shared_annotations_or_another_size_fail(here, capsys):
    (here / "more").mkdir()
    Image.new("RGB", (48, 32)).save("more/a.png")
    Image.new("RGB", (30, 30)).save("empty.png")
    assert main(["masks", "images/a.png", "more/a.png", "empty.png", "images/sub", *COCO, "--out", "m"]) == 1
    told = capsys.readouterr().err
    assert "more/a.png: a.png already belongs to images/a.png. Names of images must differ" in told
    assert "empty.png: masks in instances.json are for an image of 32 x 48; this one has 30 x 30." in told
    assert list(MaskStore("m")) == ["images/a.png", "sub/b.png"]
    assert main(["masks", "maps/a.png", "--label-maps", "maps", "--out", "n"]) == 2
    assert "is the image itself" in capsys.readouterr().err


@pytest.mark.parametrize("orientation", [3, 6])
def test_stored_pixels_rotates_masks(here, orientation, capsys):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (48, 32), "teal").save("images/a.jpg", exif=exif)
    coco_file(here / "i.json", [("a.jpg", (32, 48))], [{"id": 1, "image_id": 0, "segmentation": HALF}])
    arguments = ["masks", "images/a.jpg", "--coco", "i.json", "--out", "m"]
    if orientation == 6:
        assert main(arguments) == 1
        assert "Its EXIF orientation rotates it: try --stored-pixels" in capsys.readouterr().err
    assert main([*arguments, "--stored-pixels", "--overwrite"]) == 0
    mask = MaskStore("m")["a.jpg"].masks()[0]
    shown = mask[:, 24:] if orientation == 3 else mask[:24]
    assert (mask.sum(), shown.all()) == (24 * 32, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*COCO, "--label-maps", "maps"], "--coco and --label-maps both name masks"),
        ([*COCO, "--masks", "felzenszwalb"], "--coco and --masks both name masks"),
        ([*COCO, "--ladder"], "--ladder requires masks of sam2, sam3, sam2-package; got --coco"),
        ([*COCO, "--ignore", "0"], "--ignore requires masks of --label-maps, --mask-files; got --coco"),
        (["--masks", "felzenszwalb", "--no-crowds"], "--no-crowds requires masks of --coco; got felzenszwalb"),
        (
            ["--masks", "felzenszwalb", "--stored-pixels"],
            "--stored-pixels requires masks of --coco, --label-maps, --mask-files; got felzenszwalb",
        ),
        ([*COCO, "--mosaic", "2"], "--mosaic requires masks of sam2, sam3; got --coco"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_incompatible_options_are_errors(here, arguments, message, capsys):
    assert main(["masks", "images", *arguments, "--out", "m"]) == 2
    assert message in capsys.readouterr().err


def test_annotations_without_a_segmentation_are_skipped_and_counted(here, capsys):
    boxes = [
        {"id": n, "image_id": 0, "bbox": [1, 2, 3, 4], **more}
        for n, more in enumerate(({}, {"segmentation": []}, {"segmentation": None}))
    ]
    coco_file(here / "i.json", [("a.png", (32, 48))], [*boxes, {"id": 9, "image_id": 0, "segmentation": HALF}])
    masks = CocoMasks("i.json")
    assert masks.without_segmentation == [0, 1, 2]
    assert masks["a.png"].ids.tolist() == [9]
    assert main(["masks", "images/a.png", "--coco", "i.json", "--out", "m"]) == 0
    assert "i.json: 3 annotations have no segmentation and are ignored" in capsys.readouterr().err


def test_names_may_be_windows_paths_longer_paths_or_urls(here):
    images = [("images\\a.png", (32, 48)), ("train/x/c.png", (1, 2)), ("val/x/c.png", (3, 4))]
    coco_file(here / "i.json", images, [])
    data = json.loads((here / "i.json").read_text())
    data["images"].append(
        {"id": 7, "coco_url": "http://images.cocodataset.org/val2017/000000397133.jpg", "height": 5.0, "width": 6}
    )
    (here / "i.json").write_text(json.dumps(data))
    masks = CocoMasks("i.json")
    assert masks["images/a.png"].size == masks["a.png"].size == (32, 48)
    assert masks["val/x/c.png"].size == (3, 4)
    assert masks["/data/val2017/000000397133.jpg"].size == (5, 6)
    with pytest.raises(DataError, match=r"i.json has 2 images that match c.png: train/x/c.png, val/x/c.png"):
        masks["c.png"]


def test_replace_changes_parts_of_names(here, capsys):
    for folder, suffix in (("images", "leftImg8bit"), ("maps", "gtFine_labelIds")):
        (here / folder / "ulm").mkdir()
        (here / folder / "a.png").rename(here / folder / "ulm" / f"ulm_0_{suffix}.png")
    arguments = ["masks", "images/ulm", "--label-maps", "maps", "--ignore", "0", "255", "--out", "m"]
    assert main(arguments) == 2
    assert "none of the images has annotations in maps" in capsys.readouterr().err
    assert main([*arguments, "--replace", "_leftImg8bit", "_gtFine_labelIds", "--overwrite"]) == 0
    assert MaskStore("m")["ulm_0_leftImg8bit.png"].ids.tolist() == [7]


def test_label_maps_are_not_overwritten(here, capsys):
    before = (here / "maps" / "a.png").read_bytes()
    assert main(["count", "images", *MAPS, "--out", "maps/a.png"]) == 2
    assert "maps/a.png is in maps, which is an input" in capsys.readouterr().err
    assert (here / "maps" / "a.png").read_bytes() == before


def test_duplicate_image_ids_are_errors(here):
    """Or the later one would have the annotations of both."""
    data = json.loads((here / "instances.json").read_text())
    data["images"][1]["id"] = 0
    (here / "i.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match="two images with id 0, a.png and sub/b.png"):
        CocoMasks("i.json")
    data["images"][1] = data["images"][0]  # the same one twice says nothing new
    (here / "i.json").write_text(json.dumps(data))
    assert CocoMasks("i.json")["a.png"].ids.tolist() == [70, 72]


def test_category_ids_and_names_may_have_any_type(here):
    data = json.loads((here / "instances.json").read_text())
    data["categories"] = [{"id": "cat", "name": "cat"}, {"id": 4}]
    (here / "i.json").write_text(json.dumps(data))
    assert CocoMasks("i.json").categories == {"cat": "cat"}


def test_replace_does_not_empty_a_name(here):
    assert LabelMaps("maps", replace=("a", "")).find("images/a.png").name == "a.png"


SQUARE = [[0, 0, 4, 0, 4, 4, 0, 4]]


def annotated(path, images, segmentations):
    """A file of images ``(id, name)`` and one annotation ``(image id, segmentation)`` each."""
    entries = [{"id": number, "file_name": name, "height": 6, "width": 8} for number, name in images]
    annotations = [
        {"id": number, "image_id": image, "segmentation": segmentation}
        for number, (image, segmentation) in enumerate(segmentations)
    ]
    path.write_text(json.dumps({"images": entries, "annotations": annotations}))
    return path


def test_images_under_several_ids_are_errors_unless_chosen(tmp_path):
    file = annotated(
        tmp_path / "c.json", [(1, "a.jpg"), (2, "a.jpg"), (3, "b.jpg")], [(1, SQUARE), (2, SQUARE), (2, SQUARE)]
    )
    with pytest.raises(DataError, match=r"1 images under several ids, such as a.jpg under 1, 2. .*--duplicates"):
        CocoMasks(file)
    assert [len(CocoMasks(file, duplicates=choice)["a.jpg"]) for choice in ("merge", "first")] == [3, 1]
    with pytest.raises(ValueRangeError, match="duplicates must be one of"):
        CocoMasks(file, duplicates="last")


def test_windows_paths_match(tmp_path):
    names = [(1, "..\\..\\media\\4\\a.jpg"), (2, "C:\\data\\b.jpg"), (3, "./sub\\c.jpg")]
    file = annotated(tmp_path / "c.json", names, [(1, SQUARE), (2, SQUARE), (3, SQUARE)])
    masks = CocoMasks(file)
    for key in ("media/4/a.jpg", "/x/media/4/a.jpg", "data/b.jpg", "/y/sub/c.jpg", "b.jpg"):
        assert len(masks[key]) == 1
    with pytest.raises(
        MissingKeyError,
        match=r"has no image images/b.jpg. The file lists C:\\data\\b.jpg, in a different folder. .*--match name",
    ):
        masks.find("images/b.jpg")
    with pytest.raises(MissingKeyError, match=r"Did you mean C:\\data\\b.jpg\?"):
        masks.find("images/bb.jpg")
    assert len(CocoMasks(file, match="name")["images/b.jpg"]) == 1
    twice = annotated(tmp_path / "d.json", [(1, "x/a.jpg"), (2, "y/a.jpg")], [])
    with pytest.raises(DataError, match="has 2 images that match a.jpg"):
        CocoMasks(twice, match="name").find("a.jpg")


def test_empty_segmentations_of_any_form_are_skipped(tmp_path):
    empty = [[], [[]], [[], []], {}, None]
    file = annotated(tmp_path / "c.json", [(1, "a.jpg")], [(1, one) for one in [*empty, SQUARE]])
    masks = CocoMasks(file)
    assert masks.without_segmentation == [0, 1, 2, 3, 4]
    assert len(masks["a.jpg"]) == 1


def test_images_without_annotations_are_not_failures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("abc"):
        draw(tmp_path / "images" / f"{name}.jpg", number, size=(8, 6))
    annotated(tmp_path / "c.json", [(1, "a.jpg"), (2, "b.jpg")], [(1, SQUARE)])
    assert main(["masks", "images", "--coco", "c.json", "--out", "m"]) == 0
    store = MaskStore("m")
    assert [len(store[f"{name}.jpg"]) for name in "abc"] == [1, 0, 0]
    assert not store.failures
    assert (
        "2 images have no masks. Generate masks of images without annotations with --missing" in capsys.readouterr().err
    )
    assert main(["masks", "images", "--coco", "c.json", "--missing", "felzenszwalb", "--out", "n"]) == 0
    assert all(len(masks) for masks in MaskStore("n").values())


def test_spellings_of_a_path_are_one_image(tmp_path):
    names = [(1, "images\\a.jpg"), (7, "images/a.jpg"), (8, "./images/a.jpg")]
    file = annotated(tmp_path / "c.json", names, [(1, SQUARE), (7, SQUARE), (8, SQUARE)])
    with pytest.raises(DataError, match="under several ids, such as images.a.jpg under 1, 7, 8"):
        CocoMasks(file)
    assert len(CocoMasks(file, duplicates="merge")["images/a.jpg"]) == 3


def test_the_size_of_the_caller_is_used_if_the_file_has_none(tmp_path):
    annotations = [{"id": 1, "image_id": 0, "category_id": 3, "segmentation": HALF}]
    path = coco_file(tmp_path / "i.json", [("a.png", (32, 48))], annotations)
    data = json.loads(path.read_text())
    del data["images"][0]["height"], data["images"][0]["width"]
    path.write_text(json.dumps(data))
    masks = CocoMasks(path)
    with pytest.raises(DataError, match="pass size"):
        masks["a.png"]
    assert masks.read("a.png", (32, 48)).areas().tolist() == [24 * 32]
