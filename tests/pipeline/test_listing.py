"""Which photos there are, in which order, and by which keys."""

import itertools
import json
import os
import pickle

import fsspec
import numpy as np
import pytest
from PIL import Image

from regiontok import read_photo
from regiontok.errors import PhotoError, ValueRangeError
from regiontok.pipeline import Listing, Photo, in_slice
from regiontok.pipeline.roots import KeyFinder, Roots, describe_difference, identity


def draw(path, seed=0, size=(9, 7)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)).save(path)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("b.png", "a.png", "sub/c.jpg", "sub/a.png", "Z.png", "sub.png")):
        draw(tmp_path / "photos" / name, seed)
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    draw(tmp_path / "photos" / "a.regions.png")
    return tmp_path


ALL = ["Z.png", "a.png", "b.png", "sub/a.png", "sub/c.jpg", "sub.png"]


def keys(*named, **options):
    return [photo.key for photo in Listing(named, **options)]


def test_a_folder_by_name_its_folders_among_its_files(here):
    assert keys("photos") == keys(here / "photos") == keys("./photos/") == keys("photos", root="photos") == ALL
    assert keys("photos", root=".") == [f"photos/{key}" for key in ALL]
    assert keys("file://" + str(here / "photos")) == ALL


def test_photos_patterns_and_what_is_named_twice(here):
    assert keys("photos/b.png") == ["b.png"]
    assert keys("photos/b.png", "photos/a.png", "photos/b.png", "photos") == ["b.png", "a.png", "Z.png", "sub/a.png", "sub/c.jpg", "sub.png"]  # fmt: skip
    assert keys("photos/*.png") == ["Z.png", "a.png", "b.png", "sub.png"]
    assert keys("photos/**/a.png") == ["a.png", "sub/a.png"]
    assert keys("photos/b.png", "photos/sub/c.jpg") == ["photos/b.png", "sub/c.jpg"]
    draw(here / "odd[1].png")
    assert keys("odd[1].png") == ["odd[1].png"]
    assert keys("photos/a.png", "photos/a.png", "photos/*.png") == ["a.png", "Z.png", "b.png", "sub.png"]
    assert keys("photos/sub/..") == ALL


def test_folders_of_one_name_cannot_be_told_apart(here):
    draw(here / "other" / "photos" / "a.png")
    with pytest.raises(ValueRangeError, match="two folders of photos are called photos: .* or give it by --root"):
        Listing(["photos", "other/photos"])
    assert keys("photos", "other/photos", root=".")[-1] == "other/photos/a.png"
    with pytest.raises(ValueRangeError, match=r"photos/any is not below .*/other, where keys begin"):
        Listing(["photos"], root="other")


def test_lists(here):
    (here / "list.txt").write_text("photos/b.png\n\nphotos/a.png\nphotos/b.png\nphotos/none.png\n")
    assert keys("list.txt") == ["photos/b.png", "photos/a.png", "photos/none.png"]
    (here / "photos" / "list.txt").write_text(f"b.png\n{here}/photos/sub/c.jpg")
    assert keys("photos/list.txt") == ["b.png", "sub/c.jpg"]
    (here / "LIST.TXT").write_text("./b.png\nsub//a.png\n./b.png")
    assert keys("LIST.TXT", root="photos") == ["b.png", "sub/a.png"]
    llava = [{"image": "b.png", "conversations": []}, {"id": 1}, {"image": ["a.png", "b.png"]}, {"image": "sub/a.png"}]
    for name, text in (
        ("l.json", json.dumps(llava)),
        ("l.jsonl", "\n".join(map(json.dumps, llava))),
        ("l.json", json.dumps(["b.png", "a.png", "sub/a.png"])),
    ):
        (here / name).write_text(text)
        assert keys(name, root="photos") == ["b.png", "a.png", "sub/a.png"]


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("l.json", "{", PhotoError, "l.json: it is no list of photos"),
        ("l.json", '{"images": []}', PhotoError, "it must hold a list; got dict"),
        ("l.json", '"abc"', PhotoError, "it must hold a list; got str"),
        ("l.json", "[3]", PhotoError, "an entry must be a path or have one as image; got 3"),
        ("l.json", '[{"image": [""]}]', PhotoError, "an entry must be a path"),
        ("l.json", "[]", PhotoError, "l.json: there is no photo in it"),
        ("l.txt", "a/../../b.png", ValueRangeError, r"l.txt names 'a/../../b.png': a path with .. is no key"),
        ("l.txt", "/elsewhere/b.png", ValueRangeError, "/elsewhere/b.png is not below"),
        ("l.txt", b"\xff\xfe\xff", PhotoError, "l.txt: it is no list of photos"),
    ],
)
def test_lists_that_cannot_be_are_refused_before_the_first_photo(here, name, text, error, message):
    (here / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(error, match=message):
        Listing([name])


def test_what_holds_no_photo(here):
    (here / "empty").mkdir()
    for named in ("empty", "photos/*.gif", "empty/*.png"):
        with pytest.raises(PhotoError, match="there is no photo in it"):
            Listing([named])
    with pytest.raises(PhotoError, match="l.txt: the list cannot be read"):
        Listing(["l.txt"])
    assert keys("none.png") == ["none.png"]  # which fails when it is read
    with pytest.raises(PhotoError, match="phtos: there is no such file or folder"):
        Listing(["phtos"])


def test_a_folder_that_cannot_be_listed_is_counted_as_a_photo_that_fails(here, monkeypatch):
    real = __import__("os").scandir

    def scandir(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr("os.scandir", scandir)
    listing = Listing(["photos"])
    assert [photo.key for photo in listing] == ["Z.png", "a.png", "b.png", "sub", "sub.png"]
    with pytest.raises(PhotoError, match="a folder, not a photo"):
        listing.read(list(listing)[3])


def test_links_to_folders_are_not_followed_and_a_named_one_is(here):
    (here / "photos" / "loop").symlink_to(here / "photos")
    assert keys("photos") == ALL
    (here / "link").symlink_to(here / "photos")
    assert keys("link") == ALL


def test_a_folder_of_datasets(here):
    datasets = pytest.importorskip("datasets")
    rows = [{"image": str(here / "photos" / name), "name": f"x/{n}.png", "n": n} for n, name in enumerate(ALL[:3])]
    data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    data.save_to_disk(here / "data")
    listing = Listing(["data"])
    assert [photo.key for photo in listing] == ["0", "1", "2"]
    for photo, name in zip(listing, ALL, strict=False):
        assert listing.read(photo).tobytes() == read_photo(here / "photos" / name).tobytes()
        assert listing.size(photo) == ((7, 9), 1)
    assert keys("data", column="image", key_column="name") == ["x/0.png", "x/1.png", "x/2.png"]
    again = pickle.loads(pickle.dumps(listing.reader()))
    assert again.read(Photo("", "data#1")).tobytes() == read_photo(here / "photos" / "a.png").tobytes()
    with pytest.raises(PhotoError, match="there is no column picture, but image, name, n"):
        Listing(["data"], column="picture")
    with pytest.raises(PhotoError, match="there is no column id of keys"):
        Listing(["data"], key_column="id")
    same = datasets.Dataset.from_dict({"image": [Image.new("RGB", (4, 4))] * 12, "name": ["a"] * 12})
    same.cast_column("image", datasets.Image()).save_to_disk(here / "same")
    assert keys("same")[-2:] == ["10", "11"]
    assert keys("same")[0] == "00"
    with pytest.raises(PhotoError, match="several rows have name 'a', which is no key then"):
        Listing(["same"], key_column="name")
    for file in (here / "same").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(PhotoError, match="same: the dataset cannot be read"):
        Listing(["same"])


def test_photos_elsewhere(here):
    files = fsspec.filesystem("memory")
    for name in ALL:
        files.pipe_file(f"/bucket/photos/{name}", (here / "photos" / name).read_bytes())
    files.pipe_file("/bucket/photos/list.txt", b"b.png\na.png")
    assert keys("memory://bucket/photos") == ALL
    assert keys("memory://bucket/photos/b.png") == ["b.png"]
    assert keys("memory://bucket/photos/*.png") == ["Z.png", "a.png", "b.png", "sub.png"]
    assert keys("memory://bucket/photos/list.txt") == ["b.png", "a.png"]
    listing = Listing(["memory://bucket/photos"])
    for photo, name in zip(listing, ALL, strict=True):
        assert listing.read(photo).tobytes() == read_photo(here / "photos" / name).tobytes()
        assert listing.size(photo)[0] == (7, 9)
    with pytest.raises(PhotoError, match="memory://bucket/photos/none.png: there is no such file"):
        listing.read(Photo("none.png", "memory://bucket/photos/none.png"))


def test_slices_share_photos_whatever_else_is_listed():
    names = [f"{n}.jpg" for n in range(1000)]
    parts = [[name for name in names if in_slice(name, rank, 3)] for rank in range(3)]
    assert sorted(itertools.chain.from_iterable(parts)) == sorted(names)
    assert min(map(len, parts)) > 280


def test_a_reader_finds_keys_again_wherever_it_starts(here):
    made = Roots(["photos"]).describe()
    assert made == [{"name": "photos", "id": identity("photos")}]
    find = KeyFinder(made, Roots(["photos/sub"]), given=False)
    assert find("photos/sub/a.png") == find(here / "photos" / "sub" / "a.png") == "sub/a.png"
    (here / "link").symlink_to(here / "photos" / "sub")
    assert find("link/a.png") == "sub/a.png"
    assert not find.elsewhere
    (here / "photos").rename(here / "moved")
    moved = KeyFinder(made, Roots(["moved"]), given=False)
    assert moved("moved/sub/a.png") == "sub/a.png"
    assert moved.elsewhere
    told = KeyFinder(made, Roots(["."]), given=True)
    assert told("moved/sub/a.png") == "moved/sub/a.png"
    assert not told.elsewhere


def test_a_reader_of_a_store_of_several_folders(here):
    draw(here / "more" / "a.png")
    made = Roots(["photos", "more"]).describe()
    find = KeyFinder(made, Roots(["more"]), given=False)
    assert find("more/a.png") == "more/a.png"
    assert find("photos/sub/a.png") == "photos/sub/a.png"


def test_stores_of_other_folders_are_told(here):
    one, other = Roots(["photos"]).describe(), Roots(["photos/sub"]).describe()
    assert describe_difference(one, one) is None
    assert describe_difference([], one) is None
    assert describe_difference(one, other) == "it was made of photos in photos, and these are in sub"
    moved = [{"name": "photos", "id": "0"}]
    assert describe_difference(one, moved) == "it was made of photos in photos, and these are in photos elsewhere"


@pytest.mark.parametrize(
    ("folders", "folder"),
    [(["a"], "a"), (["a", "b"], "a"), (["a", "a/b"], "a"), (["a", "a/b"], "a/b"), (["."], "a/b"), (["/a"], "/a/")],
)
def test_keys_below_a_folder_are_the_keys(folders, folder):
    roots = Roots(folders)
    key = roots.below(folder)
    base = folder.rstrip("/")
    for address in (f"{base}/x.jpg", f"{base}/b/x.jpg", f"{base}/c/d/x.jpg", os.path.abspath(f"{base}/x.jpg")):  # noqa: PTH100
        assert key(address) == roots.key(address)


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x7f"])
def test_lines_of_lists_end_at_newlines_alone(tmp_path, character):
    for name in ("a.png", f"x{character}y.png"):
        draw(tmp_path / name)
    entry = {"image": "a.png", "text": f"one{character}two"}
    (tmp_path / "l.jsonl").write_bytes(json.dumps(entry, ensure_ascii=False).encode() + b"\r\n")
    (tmp_path / "l.txt").write_bytes(f"x{character}y.png\r\na.png\n".encode())
    assert [photo.key for photo in Listing([tmp_path / "l.jsonl"])] == ["a.png"]
    assert [photo.key for photo in Listing([tmp_path / "l.txt"])] == [f"x{character}y.png", "a.png"]
