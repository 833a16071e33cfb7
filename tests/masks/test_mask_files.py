"""Masks in a folder with one file per image."""

import contextlib
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from regiontok import MaskSet
from regiontok.cli import main
from regiontok.errors import DataError, MissingKeyError
from regiontok.masks import FelzenszwalbMasks, LabelMaps, MaskFiles
from regiontok.store import MaskStore, TokenStore
from tests.conftest import for_each
from tests.pipeline.test_listing import draw

SIZE = (30, 40)
DENSE = np.zeros((2, *SIZE), bool)
DENSE[0, :10], DENSE[1, :, 20:] = True, True
MASKS = MaskSet.from_masks(DENSE, scores=[0.9, 0.8])


def records(**more):
    """The masks as JSON records of RLE."""
    return [
        {"id": 5 + number, "segmentation": rle | {"counts": rle["counts"].decode()}}
        | {name: values[number] for name, values in more.items()}
        for number, rle in enumerate(MASKS.to_coco())
    ]


SAM = {"predicted_iou": [0.9, 0.8], "stability_score": [0.95, 0.96]}
SA_1B = {"image": {"image_id": 1, "file_name": "a.jpg", "height": 30, "width": 40}, "annotations": records(**SAM)}


def write(path, kind):
    if kind == "sa-1b":
        path.with_suffix(".json").write_text(json.dumps(SA_1B))
    elif kind == "coco":
        path.with_suffix(".json").write_text(json.dumps(records()))
    elif kind == "coco object":
        path.with_suffix(".json").write_text(json.dumps({"annotations": records()}))
    elif kind == "sam":
        path.with_suffix(".json").write_text(json.dumps(records(**SAM)))
    elif kind == "npy":
        np.save(path.with_suffix(".npy"), DENSE)
    elif kind == "npz":
        np.savez(path.with_suffix(".npz"), masks=DENSE, scores=MASKS.scores, ids=[5, 6])
    elif kind == "only array":
        np.savez(path.with_suffix(".npz"), anything=DENSE)
    elif kind == "labels":
        np.save(path.with_suffix(".npy"), DENSE[0] + 2 * DENSE[1].astype(np.int32))
    elif kind == "png":
        Image.fromarray((DENSE[0] + 2 * DENSE[1]).astype(np.uint8)).save(path.with_suffix(".png"))


@for_each(kind=["sa-1b", "coco", "coco object", "sam", "npy", "npz", "only array"])
def test_all_formats_give_the_same_masks(tmp_path, kind):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "a", kind)
    found = MaskFiles(tmp_path)["images/sub/a.jpg"]
    assert found.to_coco() == MASKS.to_coco()
    if kind in ("sa-1b", "sam"):
        assert np.allclose(found.scores, [0.9, 0.8])
        assert np.allclose(found.stability, [0.95, 0.96])
    if kind in ("sa-1b", "coco", "sam", "npz"):
        assert found.ids.tolist() == [5, 6]
    assert MaskSet.of(SA_1B).to_coco() == MASKS.to_coco()


@pytest.mark.parametrize("kind", ["labels", "png"])
def test_label_maps(tmp_path, kind):
    write(tmp_path / "a", kind)
    assert MaskFiles(tmp_path)["a.jpg"].ids.tolist() == [0, 1, 2, 3]
    assert MaskFiles(tmp_path, ignore=(0,))["a.jpg"].ids.tolist() == [1, 2, 3]


def test_files_match_by_name(tmp_path):
    for name in ("a", "sub/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, "npy")
    files = MaskFiles(tmp_path)
    assert files.find("/data/sub/a.jpg") == tmp_path / "sub" / "a.npy"
    assert files.find("other/a.jpg") == tmp_path / "a.npy"
    assert "a.png" in files
    assert "b.png" not in files
    with pytest.raises(MissingKeyError, match=r"has no masks of b.jpg, such as b.json"):
        files.find("b.jpg")
    write(tmp_path / "a", "sam")
    with pytest.raises(DataError, match=r"several files for a.jpg: a.json and a.npy"):
        files.find("a.jpg")
    with pytest.raises(DataError, match="the folder of masks .*none does not exist"):
        MaskFiles(tmp_path / "none")
    with pytest.raises(MissingKeyError):  # label maps alone
        LabelMaps(tmp_path).find("a.jpg")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", "is damaged or not a valid json file"),
        ("a.json", b"3", "expected a list of records; got int"),
        ("a.json", b"[]", "an empty list has no image size"),
        ("a.json", b'{"images": [], "annotations": []}', "an empty list has no image size"),
        ("a.json", b'{"result": []}', "Label Studio"),
        ("a.json", b'[{"segmentation": 3}]', "must be a COCO RLE"),
        ("a.npy", b"no array", "is damaged or not a valid npy file"),
        ("a.npz", b"PK no zip", "is damaged or not a valid npz file"),
        ("a.png", b"no image", "not an image"),
    ],
)
def test_invalid_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        MaskFiles(tmp_path)["a.jpg"]
    assert name in str(raised.value)


def test_invalid_arrays_are_errors(tmp_path):
    np.savez(tmp_path / "a.npz", x=DENSE, y=DENSE)
    with pytest.raises(DataError, match="one of its arrays must be named masks or labels; got x, y"):
        MaskFiles(tmp_path)["a.jpg"]
    np.savez(tmp_path / "b.npz", masks=DENSE, ids=[1])
    with pytest.raises(DataError, match=r"ids must have one value for each of the 2 masks; got \(1,\)"):
        MaskFiles(tmp_path)["b.jpg"]
    np.savez(tmp_path / "c.npz", masks=np.array([{}, {}], dtype=object))
    with pytest.raises(DataError, match="damaged or not a valid npz file: Object arrays"):
        MaskFiles(tmp_path)["c.jpg"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)
@given(
    kind=st.sampled_from(["sa-1b", "npz", "npy", "png"]),
    place=st.integers(0, 5000),
    value=st.integers(0, 255),
    cut=st.booleans(),
)
def test_damaged_files_raise_only_data_errors(tmp_path, kind, place, value, cut):
    write(tmp_path / "a", kind)
    file = next(tmp_path.glob("a.*"))
    data = bytearray(file.read_bytes())
    data[place % len(data)] = value
    file.write_bytes(data[: place % len(data)] if cut else data)
    with contextlib.suppress(DataError):
        MaskFiles(tmp_path)["a.jpg"]
    file.unlink()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("abc"):
        draw(tmp_path / "images" / f"{name}.jpg", number, size=(40, 30))
    (tmp_path / "files").mkdir()
    for name, kind in (("a", "sa-1b"), ("b", "npz")):
        write(tmp_path / "files" / name, kind)
    return tmp_path


def test_commands_accept_mask_files(here, capsys):
    assert main(["masks", "images", "--mask-files", "files", "--out", "m"]) == 0
    assert "1 images have no masks" in capsys.readouterr().err  # c has none, and that is no failure
    store = MaskStore("m")
    assert [len(store[f"{name}.jpg"]) for name in "abc"] == [2, 2, 0]
    assert store.provenance["annotations"] == "mask files"
    for where in (["--out", "o"], ["--store", "t"]):
        assert main(["tokenize", "images", "--source", "segmentation", "--mask-files", "files", *where]) == 0
    assert [int(TokenStore("t")[f"{name}.jpg"].regions.fallback.any()) for name in "abc"] == [0, 0, 1]
    assert main(["view", "images/a.jpg", "--mask-files", "files"]) == 0
    assert main(["count", "images", "--mask-files", "files", "--out", "c.png"]) == 0
    assert main(["compare", "images", "--mask-files", "files", "--num-regions", "4", "--out", "d.png"]) == 0
    assert "mIoU" in capsys.readouterr().out


def test_missing_masks_are_generated(here, capsys):
    command = ["masks", "images", "--mask-files", "files", "--missing", "felzenszwalb", "--out", "m"]
    assert main(command) == 0
    store = MaskStore("m")
    assert store["a.jpg"].to_coco() == MASKS.to_coco()
    assert store["c.jpg"].to_coco() == FelzenszwalbMasks()([Image.open("images/c.jpg")])[0].to_coco()
    assert store.provenance["missing"]["generator"] == "felzenszwalb"
    assert (
        main(
            [
                "tokenize",
                "images",
                "--source",
                "combined",
                "--mask-files",
                "files",
                "--missing",
                "felzenszwalb",
                "--store",
                "t",
            ]
        )
        == 0
    )
    assert not any(bool(tokens.regions.fallback.any()) for tokens in TokenStore("t").values())


def test_a_folder_without_matches_is_an_error(here, capsys):
    draw(here / "others" / "z.jpg", 0)
    assert main(["masks", "others", "--mask-files", "files", "--out", "m"]) == 2
    assert "none of the images has annotations in files. files has no masks of" in capsys.readouterr().err
    assert not (here / "m").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mask-files", "files", "--coco", "c.json"], "--coco and --mask-files both name masks"),
        (["--mask-files", "files", "--duplicates", "merge"], "--duplicates requires masks of --coco; got --mask-files"),
        (["--mask-files", "files", "--match", "name"], "--match requires masks of --coco; got --mask-files"),
        (["--mask-files", "files", "--mosaic", "2"], "--mosaic requires masks of sam2, sam3; got --mask-files"),
        (
            ["--mask-files", "files", "--points-per-side", "2"],
            "--points-per-side requires masks of sam2, sam3, sam2-pipeline, sam2-package; got --mask-files",
        ),
        (
            ["--masks", "felzenszwalb", "--missing", "felzenszwalb"],
            "--missing requires masks of a store, --coco, --label-maps, --mask-files; got felzenszwalb",
        ),
        (["--mask-files", "none"], "the folder of masks none does not exist"),
    ],
)
def test_incompatible_options_are_errors(here, arguments, message, capsys):
    assert main(["masks", "images", "--out", "m", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_image_of_another_size_fails(here, capsys):
    draw(here / "images" / "a.jpg", 5, size=(50, 30))
    assert main(["masks", "images", "--mask-files", "files", "--out", "m"]) == 1
    assert "a.jpg: masks in files are for an image of 30 x 40; this one has 30 x 50" in capsys.readouterr().err
    assert set(MaskStore("m")) == {"b.jpg", "c.jpg"}


def test_empty_records_are_skipped_and_several_images_are_errors(tmp_path):
    empty = [{"segmentation": one} for one in ([], [[]], {}, None)]
    (tmp_path / "a.json").write_text(json.dumps([*empty, *records()]))
    assert MaskFiles(tmp_path)["a.jpg"].to_coco() == MASKS.to_coco()
    (tmp_path / "a.json").write_text(json.dumps(empty))
    assert len(MaskFiles(tmp_path).read("a.jpg", SIZE)) == 0
    several = [record | {"image_id": number} for number, record in enumerate(records())]
    (tmp_path / "a.json").write_text(json.dumps({"annotations": several}))
    with pytest.raises(DataError, match="expected annotations of one image; got 2 images"):
        MaskFiles(tmp_path)["a.jpg"]


def test_masks_may_be_next_to_png_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "a.png", 0, size=(40, 30))
    write(tmp_path / "a", "sa-1b")
    for key in ("a.png", tmp_path / "a.png", "./a.png"):
        assert MaskFiles(".").find(key).name == "a.json"
