"""Which images there are, in which order, and by which keys."""

import itertools
import json
import os
import pickle

import fsspec
import numpy as np
import pytest
from PIL import Image

from regiontok import read_image
from regiontok.errors import ImageError, ValueRangeError
from regiontok.pipeline import ListedImage, Listing, in_slice
from regiontok.pipeline.roots import KeyFinder, Roots, describe_difference, identity
from tests.conftest import for_each


def draw(path, seed=0, size=(9, 7)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)).save(path)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("b.png", "a.png", "sub/c.jpg", "sub/a.png", "Z.png", "sub.png")):
        draw(tmp_path / "images" / name, seed)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    draw(tmp_path / "images" / "a.regions.png")
    return tmp_path


ALL = ["Z.png", "a.png", "b.png", "sub/a.png", "sub/c.jpg", "sub.png"]


def keys(*named, **options):
    return [image.key for image in Listing(named, **options)]


def test_folders_are_sorted_by_name_with_subfolders_among_files(here):
    assert keys("images") == keys(here / "images") == keys("./images/") == keys("images", root="images") == ALL
    assert keys("images", root=".") == [f"images/{key}" for key in ALL]
    assert keys("file://" + str(here / "images")) == ALL


def test_images_patterns_and_duplicates(here):
    assert keys("images/b.png") == ["b.png"]
    assert keys("images/b.png", "images/a.png", "images/b.png", "images") == ["b.png", "a.png", "Z.png", "sub/a.png", "sub/c.jpg", "sub.png"]  # fmt: skip
    assert keys("images/*.png") == ["Z.png", "a.png", "b.png", "sub.png"]
    assert keys("images/**/a.png") == ["a.png", "sub/a.png"]
    assert keys("images/b.png", "images/sub/c.jpg") == ["images/b.png", "sub/c.jpg"]
    draw(here / "odd[1].png")
    assert keys("odd[1].png") == ["odd[1].png"]
    assert keys("images/a.png", "images/a.png", "images/*.png") == ["a.png", "Z.png", "b.png", "sub.png"]
    assert keys("images/sub/..") == ALL


def test_folders_with_the_same_name_are_rejected(here):
    draw(here / "other" / "images" / "a.png")
    with pytest.raises(ValueRangeError, match="two image folders have the name images: .* or give it by --root"):
        Listing(["images", "other/images"])
    assert keys("images", "other/images", root=".")[-1] == "other/images/a.png"
    with pytest.raises(ValueRangeError, match=r"images/any is not in .*/other, which keys are relative to"):
        Listing(["images"], root="other")


def test_lists(here):
    (here / "list.txt").write_text("images/b.png\n\nimages/a.png\nimages/b.png\nimages/none.png\n")
    assert keys("list.txt") == ["images/b.png", "images/a.png", "images/none.png"]
    (here / "images" / "list.txt").write_text(f"b.png\n{here}/images/sub/c.jpg")
    assert keys("images/list.txt") == ["b.png", "sub/c.jpg"]
    (here / "LIST.TXT").write_text("./b.png\nsub//a.png\n./b.png")
    assert keys("LIST.TXT", root="images") == ["b.png", "sub/a.png"]
    llava = [{"image": "b.png", "conversations": []}, {"id": 1}, {"image": ["a.png", "b.png"]}, {"image": "sub/a.png"}]
    for name, text in (
        ("l.json", json.dumps(llava)),
        ("l.jsonl", "\n".join(map(json.dumps, llava))),
        ("l.json", json.dumps(["b.png", "a.png", "sub/a.png"])),
    ):
        (here / name).write_text(text)
        assert keys(name, root="images") == ["b.png", "a.png", "sub/a.png"]


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("l.json", "{", ImageError, "l.json: this is not a list of images"),
        ("l.json", '{"images": []}', ImageError, "it must contain a list; got dict"),
        ("l.json", '"abc"', ImageError, "it must contain a list; got str"),
        ("l.json", "[3]", ImageError, "an entry must be a path, or an object with a path as 'image'; got 3"),
        ("l.json", '[{"image": [""]}]', ImageError, "an entry must be a path"),
        ("l.json", "[]", ImageError, "l.json: there is no image in it"),
        ("l.txt", "a/../../b.png", ValueRangeError, r"l.txt contains 'a/../../b.png', but keys cannot contain"),
        ("l.txt", "/elsewhere/b.png", ValueRangeError, "/elsewhere/b.png is not in"),
        ("l.txt", b"\xff\xfe\xff", ImageError, "l.txt: this is not a list of images"),
    ],
)
def test_invalid_lists_are_rejected_before_the_first_image(here, name, text, error, message):
    (here / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(error, match=message):
        Listing([name])


def test_sources_without_images_are_rejected(here):
    (here / "empty").mkdir()
    for named in ("empty", "images/*.gif", "empty/*.png"):
        with pytest.raises(ImageError, match="there is no image in it"):
            Listing([named])
    with pytest.raises(ImageError, match="l.txt: the list cannot be read"):
        Listing(["l.txt"])
    assert keys("none.png") == ["none.png"]  # which fails when it is read
    with pytest.raises(ImageError, match="phtos: there is no such file or folder"):
        Listing(["phtos"])


def test_an_unreadable_folder_is_reported_as_a_failed_image(here, monkeypatch):
    real = __import__("os").scandir

    def scandir(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr("os.scandir", scandir)
    listing = Listing(["images"])
    assert [image.key for image in listing] == ["Z.png", "a.png", "b.png", "sub", "sub.png"]
    with pytest.raises(ImageError, match="expected an image; got a folder"):
        listing.read(list(listing)[3])


def test_links_to_folders_are_followed_only_if_named(here):
    (here / "images" / "loop").symlink_to(here / "images")
    assert keys("images") == ALL
    (here / "link").symlink_to(here / "images")
    assert keys("link") == ALL


def test_saved_datasets(here):
    datasets = pytest.importorskip("datasets")
    rows = [{"image": str(here / "images" / name), "name": f"x/{n}.png", "n": n} for n, name in enumerate(ALL[:3])]
    data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    data.save_to_disk(here / "data")
    listing = Listing(["data"])
    assert [image.key for image in listing] == ["0", "1", "2"]
    for image, name in zip(listing, ALL, strict=False):
        assert listing.read(image).tobytes() == read_image(here / "images" / name).tobytes()
        assert listing.size(image) == ((7, 9), 1)
    assert keys("data", column="image", key_column="name") == ["x/0.png", "x/1.png", "x/2.png"]
    again = pickle.loads(pickle.dumps(listing.reader()))
    assert again.read(ListedImage("", f"{here}/data#1")).tobytes() == read_image(here / "images" / "a.png").tobytes()
    with pytest.raises(ImageError, match="there is no column picture. The columns are image, name, n"):
        Listing(["data"], column="picture")
    with pytest.raises(ImageError, match="there is no key column id"):
        Listing(["data"], key_column="id")
    same = datasets.Dataset.from_dict({"image": [Image.new("RGB", (4, 4))] * 12, "name": ["a"] * 12})
    same.cast_column("image", datasets.Image()).save_to_disk(here / "same")
    assert keys("same")[-2:] == ["10", "11"]
    assert keys("same")[0] == "00"
    with pytest.raises(ImageError, match="several rows have name 'a', but keys must be unique"):
        Listing(["same"], key_column="name")
    for file in (here / "same").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ImageError, match="same: the dataset cannot be read"):
        Listing(["same"])


def test_remote_images(here):
    files = fsspec.filesystem("memory")
    for name in ALL:
        files.pipe_file(f"/bucket/images/{name}", (here / "images" / name).read_bytes())
    files.pipe_file("/bucket/images/list.txt", b"b.png\na.png")
    assert keys("memory://bucket/images") == ALL
    assert keys("memory://bucket/images/b.png") == ["b.png"]
    assert keys("memory://bucket/images/*.png") == ["Z.png", "a.png", "b.png", "sub.png"]
    assert keys("memory://bucket/images/list.txt") == ["b.png", "a.png"]
    listing = Listing(["memory://bucket/images"])
    for image, name in zip(listing, ALL, strict=True):
        assert listing.read(image).tobytes() == read_image(here / "images" / name).tobytes()
        assert listing.size(image)[0] == (7, 9)
    with pytest.raises(ImageError, match="memory://bucket/images/none.png: there is no such file"):
        listing.read(ListedImage("none.png", "memory://bucket/images/none.png"))


def test_slices_are_disjoint_and_balanced():
    names = [f"{n}.jpg" for n in range(1000)]
    parts = [[name for name in names if in_slice(name, rank, 3)] for rank in range(3)]
    assert sorted(itertools.chain.from_iterable(parts)) == sorted(names)
    assert min(map(len, parts)) > 280


def test_keys_of_a_store_are_found_from_subfolders_links_and_moved_folders(here):
    made = Roots(["images"]).describe()
    assert made == [{"name": "images", "id": identity("images")}]
    find = KeyFinder(made, Roots(["images/sub"]), explicit=False)
    assert find("images/sub/a.png") == find(here / "images" / "sub" / "a.png") == "sub/a.png"
    (here / "link").symlink_to(here / "images" / "sub")
    assert find("link/a.png") == "sub/a.png"
    assert not find.moved
    (here / "images").rename(here / "moved")
    find = KeyFinder(made, Roots(["moved"]), explicit=False)
    assert find("moved/sub/a.png") == "sub/a.png"
    assert find.moved
    find = KeyFinder(made, Roots(["."]), explicit=True)
    assert find("moved/sub/a.png") == "moved/sub/a.png"
    assert not find.moved


def test_keys_of_a_store_of_several_folders(here):
    draw(here / "more" / "a.png")
    made = Roots(["images", "more"]).describe()
    find = KeyFinder(made, Roots(["more"]), explicit=False)
    assert find("more/a.png") == "more/a.png"
    assert find("images/sub/a.png") == "images/sub/a.png"


def test_describe_difference(here):
    images, sub = Roots(["images"]).describe(), Roots(["images/sub"]).describe()
    assert describe_difference(images, images) is None
    assert describe_difference([], images) is None
    assert describe_difference(images, sub) == "it was made from images in images, and these are in sub"
    moved = [{"name": "images", "id": "0"}]
    message = "it was made from images in images, and these are in images at another path"
    assert describe_difference(images, moved) == message


@pytest.mark.parametrize(
    ("folders", "folder"),
    [(["a"], "a"), (["a", "b"], "a"), (["a", "a/b"], "a"), (["a", "a/b"], "a/b"), (["."], "a/b"), (["/a"], "/a/")],
)
def test_below_returns_the_same_keys_as_key(folders, folder):
    roots = Roots(folders)
    key = roots.below(folder)
    base = folder.rstrip("/")
    for address in (f"{base}/x.jpg", f"{base}/b/x.jpg", f"{base}/c/d/x.jpg", os.path.abspath(f"{base}/x.jpg")):  # noqa: PTH100
        assert key(address) == roots.key(address)


@for_each(character=["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x7f"])
def test_lines_of_lists_end_only_at_newlines(tmp_path, character):
    for name in ("a.png", f"x{character}y.png"):
        draw(tmp_path / name)
    entry = {"image": "a.png", "text": f"one{character}two"}
    (tmp_path / "l.jsonl").write_bytes(json.dumps(entry, ensure_ascii=False).encode() + b"\r\n")
    (tmp_path / "l.txt").write_bytes(f"x{character}y.png\r\na.png\n".encode())
    assert [image.key for image in Listing([tmp_path / "l.jsonl"])] == ["a.png"]
    assert [image.key for image in Listing([tmp_path / "l.txt"])] == [f"x{character}y.png", "a.png"]
