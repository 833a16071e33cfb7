"""What a run promises: order, failures that cost nobody else, and rows that survive any end of the process."""

import multiprocessing
import os
import random
import signal
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image

from regiontok import ImageGeometry, MaskSet, Regionizer, encoders, read_image
from regiontok.errors import ImageError
from regiontok.masks import FelzenszwalbMasks
from regiontok.pipeline import GenerateMasks, ListedImage, Listing, MakeTokens, Reader, Stop, Work, fill, make_rows
from regiontok.pipeline.run import Counter
from regiontok.store import Manifest, MaskStore, StoreWriter, TokenStore
from regiontok.store.masks import masks_table
from regiontok.store.writer import keys_in
from tests.conftest import assert_close
from tests.pipeline.test_listing import draw


@dataclass
class Sizes(Work):
    """One mask of all of an image; some images fail as they are told, and batches are noted."""

    kind = "masks"
    lanes: int = 1
    unreadable: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    slow: float = 0
    batches: list = field(default_factory=list)

    def describe(self):
        return {"generator": "sizes"}

    def read(self, reader, image):
        if image.key in self.unreadable:
            raise ImageError(f"{image.address}: no image")
        return image.key

    def make(self, keys, items):
        time.sleep(self.slow * len(keys))
        self.batches.append(list(keys))
        if set(self.broken) & set(items):
            raise RuntimeError(f"{' '.join(items)} is too much")
        return masks_table(keys, [MaskSet.from_masks(np.ones((1, 2, 3), bool))] * len(keys))


def images(count):
    return [ListedImage(f"{number:04d}", f"/p/{number:04d}") for number in range(count)]


def filled(folder, work, count, *, shard_size=1000, batch=4, workers=2, **options):
    known = keys_in(folder)
    with StoreWriter(folder, Manifest(kind="masks", made_by=work.describe()), shard_size=shard_size) as writer:
        rest = [image for image in images(count) if image.key not in known.keys and image.key not in known.failures]
        fill(writer, rest, Reader(), work, batch=batch, workers=workers, **options)
    return MaskStore(folder)


@pytest.mark.parametrize("lanes", [1, 3])
def test_rows_come_in_order_in_batches_that_begin_anew_with_a_shard(tmp_path, lanes):
    work = Sizes(lanes=lanes)
    store = filled(tmp_path / "m", work, 25, shard_size=10)
    assert list(store) == [image.key for image in images(25)]
    assert len(store.shards) == 3
    assert sorted(map(len, work.batches)) == [1, 2, 2, 4, 4, 4, 4, 4]
    assert torch.get_num_threads() > 0


def test_a_image_that_fails_costs_no_other(tmp_path):
    work = Sizes(unreadable=("0001", "0007"), broken=("0002", "0012"))
    store = filled(tmp_path / "m", work, 14, shard_size=7)
    assert sorted([*store, *store.failures]) == [image.key for image in images(14)]
    assert store.failures == {
        "0001": "no image",
        "0002": "0002 is too much",
        "0007": "no image",
        "0012": "0012 is too much",
    }
    assert [len(MaskStore(tmp_path / "m", shards=slice(n, n + 1))) for n in range(2)] == [5, 5]
    again = filled(tmp_path / "m", Sizes(), 14)
    assert len(again.failures) == 4


def test_keys_that_cannot_be_fail_alone(tmp_path):
    some = [ListedImage("a.png", "a.png"), ListedImage("\udcff.png", "\udcff.png"), ListedImage("../b.png", "../b.png")]
    work = Sizes()
    with StoreWriter(tmp_path / "m", Manifest(kind="masks")) as writer:
        fill(writer, some, Reader(), work, batch=2, workers=1)
    store = MaskStore(tmp_path / "m")
    assert list(store) == ["a.png"]
    assert set(store.failures) == {"\\udcff.png", "../b.png"}


def test_a_fault_at_one_image_is_its_failure_and_at_all_ends_the_run(tmp_path):
    class Wrong(Sizes):
        def make(self, keys, items):
            if any(key >= "0008" for key in keys) or "0002" in keys:
                raise TypeError("a fault in the code")
            return super().make(keys, items)

    with pytest.raises(TypeError, match="a fault in the code"):
        filled(tmp_path / "m", Wrong(), 20)
    store = MaskStore(tmp_path / "m")  # with the rows in hand
    assert (len(store), store.failures) == (7, {"0002": "TypeError: a fault in the code"})
    assert len(filled(tmp_path / "m", Sizes(), 20)) == 19


def test_to_stop_writes_the_rows_in_hand(tmp_path):
    made = []
    store = filled(tmp_path / "m", Sizes(slow=0.01), 40, stop=lambda: len(made) >= 3, tick=made.append)
    assert 12 <= len(store) < 40  # what was made already is not given up
    assert list(store) == [image.key for image in images(len(store))]
    assert len(filled(tmp_path / "m", Sizes(), 40)) == 40


@pytest.mark.usefixtures("default_signals")
def test_a_signal_is_heard_and_the_second_is_at_once():
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        assert stop.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    stopped = []
    thread = threading.Thread(target=lambda: stopped.append(Stop().__enter__()()))  # hears no signals, and works
    thread.start()
    thread.join()
    assert stopped == [False]


def test_what_is_ahead_is_bounded():
    taken = []

    def listed():
        for image in images(1000):
            taken.append(image)
            yield image

    rows = make_rows(listed(), Reader(), Sizes(), batch=4, workers=2, shard_size=1000)
    next(rows)
    assert len(taken) <= 5 * 4
    rows.close()


def test_a_counter_runs_ahead():
    counter = Counter(images(5000))
    deadline = time.monotonic() + 10
    while not counter.whole and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (counter.count, counter.whole) == (5000, True)


def _run(folder, slow):
    filled(folder, Sizes(slow=slow, unreadable=("0007",)), 60, shard_size=6, batch=4)


def test_kill_9_at_fifty_moments_loses_nothing_and_makes_nothing_twice(tmp_path):
    whole = tmp_path / "whole"
    _run(whole, 0)
    expected = MaskStore(whole)
    generator, context = random.Random(0), multiprocessing.get_context("fork")
    kills, folder, stores = 0, None, 0
    while kills < 50:
        if folder is None:
            folder = tmp_path / f"killed-{stores}"
            stores += 1
        process = context.Process(target=_run, args=(folder, 0.002))
        process.start()
        process.join(generator.uniform(0, 0.2))
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        if not (folder / "store.json").is_file():
            continue
        store = MaskStore(folder)  # whatever is there is whole
        assert not store.damaged
        if process.exitcode == 0 or kills == 50:
            _run(folder, 0)
            store = MaskStore(folder)
            assert store.keys() == expected.keys()
            assert not store.repeated
            assert store.failures == expected.failures
            # a kill between the two files of one shard leaves its failures alone; what follows is numbered otherwise
            if "part-00000-000001.parquet" in store.shards:
                assert store.shards == expected.shards
                for name in [*store.shards, "failed-00000-000001.parquet"]:
                    assert (folder / name).read_bytes() == (whole / name).read_bytes()
            assert not list(folder.glob(".*.tmp"))
            folder = None
    assert stores >= 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory, china):
    folder = tmp_path_factory.mktemp("images")
    for number in range(9):
        side = 60 + 10 * (number % 3)
        china.resize((90, side)).rotate(10 * number).save(folder / f"{number}.png")
    (folder / "5b.png").write_bytes(b"no image")
    draw(folder / "sub" / "a.png", size=(33, 71))
    return folder


def test_masks_are_those_of_the_generator(folder, tmp_path):
    listing, work = Listing([folder]), GenerateMasks(FelzenszwalbMasks(), lanes=2)
    with StoreWriter(tmp_path / "m", Manifest(kind="masks", made_by=work.describe())) as writer:
        fill(writer, listing, listing, work, batch=4, workers=2)
    store = MaskStore(tmp_path / "m")
    assert len(store) == 10
    assert list(store.failures) == ["5b.png"]
    for key, masks in store.items():
        assert masks.to_coco() == FelzenszwalbMasks()(read_image(folder / key))[0].to_coco()


@pytest.mark.parametrize("generate", [None, "beside", "read"])
def test_tokens_are_those_of_one_image_alone(folder, tmp_path, generate):
    encoder = encoders.load("pixels")
    options = {} if generate is None else {"source": "segmentation", "geometry": encoder.geometry}
    regionizer = Regionizer(pool="mean", **options)
    work = MakeTokens(encoder, regionizer, dtype="float32", lanes=2)
    masks = FelzenszwalbMasks()
    if generate == "beside":
        work.generator = masks
    elif generate == "read":
        work.masks = lambda listed, image: masks(image)[0]
    listing = Listing([folder])
    with StoreWriter(tmp_path / "t", Manifest(kind="tokens", made_by=work.describe())) as writer:
        fill(writer, listing, listing, work, batch=4, workers=2)
    store = TokenStore(tmp_path / "t")
    assert len(store) == 10
    for key, tokens in store.items():
        image = read_image(folder / key)
        features, valid = encoder(image)
        given = None if generate is None else [masks(image)[0]]
        expected = regionizer(features, valid=valid, masks=given)
        assert_close(tokens.values, expected.values)
        assert torch.equal(tokens.regions.patch, expected.regions.patch)
        assert torch.equal(tokens.regions.region, expected.regions.region)
        assert store.size(key) == (image.height, image.width)


def test_columns_for_datasets(folder):
    datasets = pytest.importorskip("datasets")
    encoder, regionizer = encoders.load("pixels"), Regionizer(pool="mean")
    make = MakeTokens(encoder, regionizer, dtype="float32")
    images = [Image.open(folder / f"{n}.png") for n in range(5)]
    rows = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())
    made = rows.map(lambda some: make.columns(some["image"]), batched=True, batch_size=2)
    assert made["error"] == [None] * 5
    some = make.columns([images[0], Image.new("F", (4, 4)), images[1]])
    assert [one is None for one in some["tokens"]] == [False, True, False]
    assert "floating point" in some["error"][1]
    with pytest.raises(ImageError, match="no image of the batch can be read"):
        make.columns([Image.new("F", (4, 4))])
    for row, image in zip(made, images, strict=True):
        features, valid = encoder(image)
        assert_close(torch.tensor(row["tokens"]), regionizer(features, valid=valid).values)


def test_a_picture_is_of_its_own_image(folder):
    seen = {}
    encoder = encoders.load("pixels", geometry="squash")
    regionizer = Regionizer(pool="mean")
    work = MakeTokens(encoder, regionizer, draw=lambda key, image, regions: seen.update({key: (image.size, regions)}))
    listing = Listing([folder])
    for _ in make_rows(listing, listing, work, batch=3, workers=2, shard_size=100):
        pass
    for key, (size, regions) in seen.items():
        image = read_image(folder / key)
        assert image.size == size
        features, valid = encoder(image)
        assert torch.equal(regions.labels(), regionizer(features, valid=valid).regions.labels())
    assert len(seen) == 10
    assert ImageGeometry.squash(384) == encoder.geometry
