"""Runs in one process: order, isolated failures, and rows that survive any end of the process."""

import multiprocessing
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image

from regiontok import ImageGeometry, MaskSet, Regionizer, encoders, read_image
from regiontok.cli.signals import StopOnSignal
from regiontok.errors import ImageError
from regiontok.masks import FelzenszwalbMasks
from regiontok.pipeline import (
    GenerateMasksJob,
    Job,
    ListedImage,
    Listing,
    Reader,
    TokenizeJob,
    make_rows,
    run_job,
)
from regiontok.store import Manifest, MaskStore, StoreWriter, TokenStore
from regiontok.store.masks import masks_table
from regiontok.store.writer import read_contents
from tests.conftest import assert_close
from tests.pipeline.test_listing import draw


@dataclass
class Sizes(Job):
    """Return one mask per image, fail for the given images, and record the batches."""

    kind = "masks"
    num_workers: int = 1
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


def filled(folder, job, count, *, shard_size=1000, batch_size=4, num_readers=2, **options):
    contents = read_contents(folder)
    with StoreWriter(folder, Manifest(kind="masks", provenance=job.describe()), shard_size=shard_size) as writer:
        pending = [image for image in images(count) if image.key not in {*contents.keys, *contents.failures}]
        run_job(writer, pending, Reader(), job, batch_size=batch_size, num_readers=num_readers, **options)
    return MaskStore(folder)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_rows_are_in_order_and_batches_start_with_each_shard(tmp_path, num_workers):
    job = Sizes(num_workers=num_workers)
    store = filled(tmp_path / "m", job, 25, shard_size=10)
    assert list(store) == [image.key for image in images(25)]
    assert len(store.shards) == 3
    assert sorted(map(len, job.batches)) == [1, 2, 2, 4, 4, 4, 4, 4]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_limit_threads_of_torch_only_for_themselves(num_workers):
    class Threads(Sizes):
        def make(self, keys, items):
            torch.zeros(1).sum()
            counts.add(torch.get_num_threads())
            return super().make(keys, items)

    counts, before = set(), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for _ in make_rows(
            images(8), Reader(), Threads(num_workers=num_workers), batch_size=1, num_readers=1, shard_size=9
        ):
            assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3  # also in new threads
    finally:
        torch.set_num_threads(before)
    assert counts == {3 if num_workers == 1 else 1}


def test_a_failed_image_does_not_affect_others(tmp_path):
    job = Sizes(unreadable=("0001", "0007"), broken=("0002", "0012"))
    store = filled(tmp_path / "m", job, 14, shard_size=7)
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


def test_images_with_invalid_keys_fail(tmp_path):
    listed = [
        ListedImage("a.png", "a.png"),
        ListedImage("\udcff.png", "\udcff.png"),
        ListedImage("../b.png", "../b.png"),
    ]
    job = Sizes()
    with StoreWriter(tmp_path / "m", Manifest(kind="masks")) as writer:
        run_job(writer, listed, Reader(), job, batch_size=2, num_readers=1)
    store = MaskStore(tmp_path / "m")
    assert list(store) == ["a.png"]
    assert set(store.failures) == {"\\udcff.png", "../b.png"}


def test_a_bug_fails_one_image_or_ends_the_run_if_it_affects_all(tmp_path):
    class Wrong(Sizes):
        def make(self, keys, items):
            if any(key >= "0008" for key in keys) or "0002" in keys:
                raise TypeError("a bug")
            return super().make(keys, items)

    with pytest.raises(TypeError, match="a bug"):
        filled(tmp_path / "m", Wrong(), 20)
    store = MaskStore(tmp_path / "m")  # with the finished rows
    assert (len(store), store.failures) == (7, {"0002": "TypeError: a bug"})
    assert len(filled(tmp_path / "m", Sizes(), 20)) == 19


def test_a_stopped_run_writes_the_finished_rows(tmp_path):
    made = []
    store = filled(tmp_path / "m", Sizes(slow=0.01), 40, stop=lambda: len(made) >= 3, on_batch=made.append)
    assert 12 <= len(store) < 40
    assert list(store) == [image.key for image in images(len(store))]
    assert len(filled(tmp_path / "m", Sizes(), 40)) == 40


@pytest.mark.usefixtures("default_signals")
def test_a_signal_stops_and_a_second_one_interrupts():
    with StopOnSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        assert stop.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    stopped = []
    thread = threading.Thread(target=lambda: stopped.append(StopOnSignal().__enter__()()))  # without signals
    thread.start()
    thread.join()
    assert stopped == [False]


def test_few_images_are_listed_ahead():
    taken = []

    def listed():
        for image in images(1000):
            taken.append(image)
            yield image

    rows = make_rows(listed(), Reader(), Sizes(), batch_size=4, num_readers=2, shard_size=1000)
    next(rows)
    assert len(taken) <= 5 * 4
    rows.close()


def _run(folder, slow):
    filled(folder, Sizes(slow=slow, unreadable=("0007",)), 60, shard_size=6, batch_size=4)


def _kill_fifty_times(folder_of_stores):
    whole = folder_of_stores / "whole"
    _run(whole, 0)
    expected = MaskStore(whole)
    generator, context = random.Random(0), multiprocessing.get_context("fork")
    start = time.monotonic()
    process = context.Process(target=_run, args=(folder_of_stores / "timed", 0.002))
    process.start()
    process.join()
    duration = time.monotonic() - start  # longer on a busy machine
    kills, folder, stores = 0, None, 0
    while kills < 50:
        if folder is None:
            folder = folder_of_stores / f"killed-{stores}"
            stores += 1
        process = context.Process(target=_run, args=(folder, 0.002))
        process.start()
        process.join(generator.uniform(0, duration))
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        if not (folder / "_store.json").is_file():
            continue
        store = MaskStore(folder)
        assert not store.damaged
        if process.exitcode == 0 or kills == 50:
            _run(folder, 0)
            store = MaskStore(folder)
            assert store.keys() == expected.keys()
            assert not store.repeated
            assert store.failures == expected.failures
            # after a kill between the two files of a shard, later shards have other numbers
            if "part-00000-000001.parquet" in store.shards:
                assert store.shards == expected.shards
                for name in [*store.shards, "_failed-00000-000001.parquet"]:
                    assert (folder / name).read_bytes() == (whole / name).read_bytes()
            assert not list(folder.glob(".*.tmp"))
            folder = None
    assert stores >= 3


def test_fifty_kills_lose_nothing_and_repeat_nothing(tmp_path):
    # forks of a process without threads: a fork of this one can wait forever for a lock that one of its threads held
    process = multiprocessing.get_context("spawn").Process(target=_kill_fifty_times, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory, china):
    folder = tmp_path_factory.mktemp("images")
    for number in range(9):
        side = 60 + 10 * (number % 3)
        china.resize((90, side)).rotate(10 * number).save(folder / f"{number}.png")
    (folder / "5b.png").write_bytes(b"no image")
    draw(folder / "sub" / "a.png", size=(33, 71))
    return folder


def test_generated_masks_equal_those_of_the_generator(folder, tmp_path):
    listing, job = Listing([folder]), GenerateMasksJob(FelzenszwalbMasks(), num_workers=2)
    with StoreWriter(tmp_path / "m", Manifest(kind="masks", provenance=job.describe())) as writer:
        run_job(writer, listing, listing, job, batch_size=4, num_readers=2)
    store = MaskStore(tmp_path / "m")
    assert len(store) == 10
    assert list(store.failures) == ["5b.png"]
    for key, masks in store.items():
        assert masks.to_coco() == FelzenszwalbMasks()(read_image(folder / key))[0].to_coco()


@pytest.mark.parametrize("generate", [None, "beside", "read"])
def test_tokens_equal_those_of_single_images(folder, tmp_path, generate):
    encoder = encoders.load("pixels")
    options = {} if generate is None else {"source": "segmentation", "geometry": encoder.geometry}
    regionizer = Regionizer(pool="mean", **options)
    job = TokenizeJob(encoder, regionizer, dtype="float32", num_workers=2)
    masks = FelzenszwalbMasks()
    if generate == "beside":
        job.generator = masks
    elif generate == "read":
        job.masks = lambda listed, image: masks(image)[0]
    listing = Listing([folder])
    with StoreWriter(tmp_path / "t", Manifest(kind="tokens", provenance=job.describe())) as writer:
        run_job(writer, listing, listing, job, batch_size=4, num_readers=2)
    store = TokenStore(tmp_path / "t")
    assert len(store) == 10
    for key, tokens in store.items():
        image = read_image(folder / key)
        features, valid = encoder(image)
        expected = regionizer(features, valid=valid, masks=None if generate is None else masks(image))
        assert_close(tokens.values, expected.values)
        assert torch.equal(tokens.regions.patch, expected.regions.patch)
        assert torch.equal(tokens.regions.region, expected.regions.region)
        assert store.size(key) == (image.height, image.width)


def test_columns_for_datasets(folder):
    datasets = pytest.importorskip("datasets")
    encoder, regionizer = encoders.load("pixels"), Regionizer(pool="mean")
    job = TokenizeJob(encoder, regionizer, dtype="float32")
    images = [Image.open(folder / f"{n}.png") for n in range(5)]
    rows = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())
    made = rows.map(lambda batch: job.columns(batch["image"]), batched=True, batch_size=2)
    assert made["error"] == [None] * 5
    columns = job.columns([images[0], Image.new("F", (4, 4)), images[1]])
    assert [tokens is None for tokens in columns["tokens"]] == [False, True, False]
    assert "floating-point" in columns["error"][1]
    with pytest.raises(ImageError, match="no image of the batch can be read"):
        job.columns([Image.new("F", (4, 4))])
    for row, image in zip(made, images, strict=True):
        features, valid = encoder(image)
        assert_close(torch.tensor(row["tokens"]), regionizer(features, valid=valid).values)


def test_draw_receives_the_image_with_its_own_regions(folder):
    seen = {}
    encoder = encoders.load("pixels", geometry="squash")
    regionizer = Regionizer(pool="mean")
    job = TokenizeJob(encoder, regionizer, draw=lambda key, image, regions: seen.update({key: (image.size, regions)}))
    listing = Listing([folder])
    for _ in make_rows(listing, listing, job, batch_size=3, num_readers=2, shard_size=100):
        pass
    for key, (size, regions) in seen.items():
        image = read_image(folder / key)
        assert image.size == size
        features, valid = encoder(image)
        assert torch.equal(regions.labels(), regionizer(features, valid=valid).regions.labels())
    assert len(seen) == 10
    assert ImageGeometry.squash(384) == encoder.geometry
