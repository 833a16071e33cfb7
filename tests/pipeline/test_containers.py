"""Tars, Parquet files and saved datasets as sources of images."""

import contextlib
import io
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from regiontok import read_image
from regiontok.cli import main
from regiontok.errors import ImageError
from regiontok.pipeline import ListedImage, Listing
from regiontok.store import MaskStore, TokenStore
from regiontok.store.stamps import Stamp


def png(seed):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def tar_of(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 7
            archive.addfile(info, io.BytesIO(data))
    return path


def read_all(listing):
    """Keys, and images or reasons, as a run has them."""
    result = {}
    for image in listing:
        try:
            result[image.key] = listing.read(image).tobytes()
        except ImageError as error:
            result[image.key] = str(error)
    return result


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_keys_in_a_tar_start_with_its_name(here):
    for number in range(2):
        tar_of(
            here / f"{number}.tar",
            [
                (f"{number}-{m}.{kind}", png(m) if kind == "png" else b"{}")
                for m in range(3)
                for kind in ("png", "json")
            ],
        )
    listing = Listing(["*.tar"])
    assert [image.key for image in listing] == [f"{n}.tar/{n}-{m}.png" for n in range(2) for m in range(3)]
    image = next(iter(listing))
    assert listing.read(image).tobytes() == read_image("x", png(0)).tobytes()
    assert listing.size(image) == ((9, 7), 1)
    assert listing.stamp(image) == image.stamp == Stamp(len(png(0)), 7_000_000)
    again = pickle.loads(pickle.dumps(listing.reader()))
    assert again.read(image).tobytes() == listing.read(image).tobytes()
    assert [image.key for image in Listing(["0.tar"])] == [f"0.tar/0-{m}.png" for m in range(3)]  # the same keys


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_a_truncated_tar_loses_only_its_own_remaining_images(tmp_path, data):
    members = [(f"{m}.png", png(m)) for m in range(4)]
    whole = tar_of(tmp_path / "whole.tar", members).read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    (tmp_path / "cut.tar").write_bytes(whole[:cut])
    tar_of(tmp_path / "next.tar", members)
    found = read_all(Listing([tmp_path / "cut.tar", tmp_path / "next.tar"], root=tmp_path))
    images = {name: read_image(name, content).tobytes() for name, content in members}
    assert {key: found[f"next.tar/{key}"] for key in images} == images
    with tarfile.open(tmp_path / "whole.tar") as archive:
        ends = {info.name: info.offset_data + info.size for info in archive.getmembers()}
    for name, end in ends.items():
        value = found.get(f"cut.tar/{name}")
        assert (value == images[name]) == (end <= cut)
    lost = [name for name, end in ends.items() if end > cut]
    reported = [value for key, value in found.items() if key.startswith("cut.tar") and isinstance(value, str)]
    assert reported or not lost


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(storage=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_damaged_tar_raises_only_image_errors(tmp_path, storage, value):
    data = bytearray(tar_of(tmp_path / "a.tar", [(f"{m}.png", png(m)) for m in range(3)]).read_bytes())
    data[storage % len(data)] = value
    (tmp_path / "a.tar").write_bytes(data)
    with contextlib.suppress(ImageError):  # there may be no image left
        read_all(Listing([tmp_path / "a.tar"]))


def test_duplicate_members_and_members_that_are_not_images(here):
    tar_of(
        here / "a.tar",
        [("./sub/a.png", png(0)), ("._a.png", b"x"), ("b.txt", b"x"), ("sub/a.png", png(1)), ("../c.png", png(2))],
    )
    found = read_all(Listing(["a.tar"]))
    assert found["a.tar/sub/a.png"] == read_image("x", png(0)).tobytes()
    assert [value for value in found.values() if isinstance(value, str)] == [f"{here}/a.tar: sub/a.png occurs twice."]
    assert main(["tokenize", "a.tar", "--store", "s"]) == 1  # ../c.png is no key
    assert list(TokenStore("s")) == ["a.tar/sub/a.png"]


def test_a_run_over_tars_is_resumed_with_more_tars(here, capsys):
    tar_of(here / "0.tar", [("a.png", png(0))])
    assert main(["tokenize", "*.tar", "--store", "s"]) == 0
    tar_of(here / "1.tar", [("a.png", png(1))])
    assert main(["tokenize", "*.tar", "--store", "s"]) == 0
    assert list(TokenStore("s")) == ["0.tar/a.png", "1.tar/a.png"]
    assert "1 were finished before" in capsys.readouterr().out
    assert main(["tokenize", "0.tar", "--out", "o"]) == 0
    assert [file.name for file in (here / "o").rglob("*.safetensors")] == ["a.regions.safetensors"]


def test_remote_tars(here):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/tars/0.tar", tar_of(here / "0.tar", [("a.png", png(0)), ("b.png", png(1))]).read_bytes())
    listing = Listing(["memory://tars/*.tar"])
    assert [image.key for image in listing] == ["0.tar/a.png", "0.tar/b.png"]
    assert [listing.read(image).tobytes() for image in listing] == [read_image("x", png(n)).tobytes() for n in range(2)]


@pytest.mark.parametrize(
    ("name", "why"),
    [("a.tar.gz", "is a compressed tar"), ("none.tar", "there is no such file"), ("no*.tar", "there is no such file")],
)
def test_unreadable_tars_are_rejected(here, name, why):
    with pytest.raises(ImageError, match=why):
        Listing([name])


@pytest.mark.parametrize("form", ["bytes", "struct", "large"])
@pytest.mark.parametrize("group", [1, 2, 10])
def test_images_of_a_parquet_file(here, form, group):
    values = [png(0), None, b"no image", png(1)]
    column = {
        "bytes": pa.array(values, pa.binary()),
        "large": pa.array(values, pa.large_binary()),
        "struct": pa.array([None if one is None else {"bytes": one, "path": "x.png"} for one in values]),
    }[form]
    pq.write_table(pa.table({"image": column, "name": list("abcd")}), "t.parquet", row_group_size=group)
    found = read_all(Listing(["t.parquet"]))
    assert found["t.parquet/0"] == read_image("x", png(0)).tobytes()
    assert found["t.parquet/3"] == read_image("x", png(1)).tobytes()
    assert "the row has no image" in found["t.parquet/1"]
    assert "not an image" in found["t.parquet/2"]
    listing = Listing(["t.parquet"], key_column="name")
    assert [image.key for image in listing] == [f"t.parquet/{name}" for name in "abcd"]
    again = pickle.loads(pickle.dumps(listing.reader()))
    assert again.read(ListedImage("", f"{here}/t.parquet#3")).tobytes() == found["t.parquet/3"]
    assert main(["masks", "t.parquet", "--masks", "felzenszwalb", "--out", "m"]) == 1
    assert list(MaskStore("m")) == ["t.parquet/0", "t.parquet/3"]


@pytest.mark.parametrize(
    ("columns", "options", "why"),
    [
        ({"text": ["a", "b"]}, {}, "name the column of the images"),
        ({"text": ["a", "b"]}, {"column": "text"}, "column text contains string, not images"),
        ({"blob": [b"1", b"2"]}, {}, "column blob contains binary, not images"),
        ({"images": [[png(0)], []]}, {"column": "images"}, "column images contains list.*, not images"),
        ({"a": [png(0)], "b": [png(1)]}, {}, "name the column of the images"),
        ({"a": [png(0)]}, {"column": "b"}, "there is no column b. The columns are a"),
        ({"a": [png(0)]}, {"key_column": "b"}, "there is no key column b"),
        ({"a": [png(0), png(1)], "k": [1, 1]}, {"key_column": "k"}, "several rows have k '1', but keys must be unique"),
    ],
)
def test_a_column_without_images_is_rejected_before_the_run(here, columns, options, why):
    pq.write_table(pa.table(columns), "t.parquet")
    with pytest.raises(ImageError, match=why):
        Listing(["t.parquet"], **options)


def test_an_invalid_parquet_file_is_rejected(here):
    (here / "t.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(ImageError, match=r"t.parquet: cannot be read as a Parquet file"):
        Listing(["t.parquet"])


def test_columns_of_saved_datasets(here):
    datasets = pytest.importorskip("datasets")
    raw = datasets.Features({"image": datasets.Image(decode=False)})
    rows = [{"bytes": png(0), "path": None}, {"bytes": b"no image", "path": None}, {"bytes": png(1), "path": None}]
    datasets.Dataset.from_dict({"image": rows}, features=raw).save_to_disk("raw")
    datasets.Dataset.from_dict({"blob": [png(0), png(1)], "text": ["a", "b"]}).save_to_disk("blob")
    lists = datasets.Features({"images": datasets.List(datasets.Image())})
    datasets.Dataset.from_dict({"images": [rows[:1]]}, features=lists).save_to_disk("lists")
    assert [len(value) for value in read_all(Listing(["blob"], column="blob")).values()] == [189, 189]
    found = read_all(Listing(["raw"]))
    assert found["0"] == read_image("x", png(0)).tobytes()
    assert "not an image" in found["1"]
    for folder, column in (("lists", "images"), ("blob", "text")):
        with pytest.raises(ImageError, match=f"column {column} contains .*, not images"):
            Listing([folder], column=column)


@pytest.fixture
def annotated(here):
    tar_of(here / "a.tar", [(f"{number}.png", png(number)) for number in range(3)])
    pq.write_table(pa.table({"image": [png(number) for number in range(3)], "name": ["0", "1", "2"]}), "t.parquet")
    (here / "files").mkdir()
    for number in range(3):
        dense = np.zeros((number + 1, 9, 7), bool)
        dense[:, number:] = True
        np.save(here / "files" / f"{number}.npy", dense)
    return here


@pytest.mark.parametrize("named", [["a.tar"], ["t.parquet", "--key-column", "name"]])
def test_masks_of_images_in_containers_are_found_by_name(annotated, named):
    assert main(["masks", *named, "--mask-files", "files", "--out", "m"]) == 0
    assert [len(masks) for masks in MaskStore("m").values()] == [1, 2, 3]
    for source in (["--masks", "m"], ["--mask-files", "files"]):
        assert main(["tokenize", *named, "--source", "segmentation", *source, "--store", "t", "--overwrite"]) == 0
        assert len(TokenStore("t")) == 3


@pytest.mark.parametrize("kind", ["a.tar", "t.parquet"])
def test_a_changed_container_is_detected(annotated, kind, capsys):
    assert main(["tokenize", kind, "--store", "t"]) == 0
    if kind == "a.tar":
        tar_of(annotated / kind, [("0.png", png(0)), ("1.png", png(8) + b"more"), ("2.png", png(2))])
    else:
        pq.write_table(pa.table({"image": [png(number) for number in (0, 8, 2)], "more": [1, 2, 3]}), kind)
    assert main(["store", "t", "--verify", "--images", kind]) == 1
    assert main(["tokenize", kind, "--store", "t", "--remake-changed"]) == 0
    assert TokenStore("t").repeated == (1 if kind == "a.tar" else 3)


def test_links_and_invalid_times_in_a_tar(here):
    with tarfile.open("a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, time in (("a.png", float("nan")), ("b.png", 2.0**70)):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(png(0)), {"mtime": str(time)}
            archive.addfile(info, io.BytesIO(png(0)))
        link = tarfile.TarInfo("c.png")
        link.type, link.linkname = tarfile.LNKTYPE, "a.png"
        archive.addfile(link)
    assert main(["tokenize", "a.tar", "--store", "s", "--batch-size", "1"]) == 1
    store = TokenStore("s")
    assert list(store) == ["a.tar/a.png", "a.tar/b.png"]
    assert "c.png is not a regular file" in store.failures["a.tar/c.png"]


def test_folders_with_the_suffix_of_a_container(here):
    for name in ("d.tar", "d.parquet"):
        (here / name).mkdir()
        (here / name / "a.png").write_bytes(png(0))
        assert [image.key for image in Listing([name])] == ["a.png"]


def test_threads_can_share_a_parquet_file(here):
    pq.write_table(
        pa.table({"image": [png(n % 5) for n in range(400)], "name": [str(n) for n in range(400)]}),
        "t.parquet",
        row_group_size=20,
    )
    listing = Listing(["t.parquet"], key_column="name")
    images = list(listing)
    with ThreadPoolExecutor(6) as pool:
        lists = [pool.submit(lambda: len(list(listing))) for _ in range(40)]
        sizes = list(pool.map(lambda image: listing.read(image).size, images))
    assert {job.result() for job in lists} == {400}
    assert set(sizes) == {(7, 9)}
