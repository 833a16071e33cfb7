"""A real Ray cluster on this machine: the same rows as in one process, also if an actor is killed."""

import functools
import os
import signal
import sys
import threading
import time

import pytest
import ray
import torch

from regiontok import Regionizer, encoders
from regiontok.errors import MissingDependencyError
from regiontok.masks import FelzenszwalbMasks
from regiontok.pipeline import GenerateMasksJob, Listing, TokenizeJob, run_job
from regiontok.pipeline import ray as engine
from regiontok.store import Manifest, MaskStore, StoreWriter, TokenStore
from tests.pipeline.test_run import images

pytestmark = pytest.mark.filterwarnings("default")  # Ray warns of itself
MASKS = {"generator": "felzenszwalb"}


@pytest.fixture(scope="module", autouse=True)
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, china):
    folder = tmp_path_factory.mktemp("images")
    for number in range(24):
        china.resize((90, 60 + number)).save(folder / f"{number:02d}.png")
    (folder / "05b.png").write_bytes(b"no image")
    return folder


class Slow(GenerateMasksJob):
    """Work slowly, and write the finished keys to a file per process."""

    def __init__(self, notes):
        super().__init__(FelzenszwalbMasks())
        self.notes = notes
        (notes / str(os.getpid())).touch()

    def make(self, keys, items):
        time.sleep(0.1 * len(keys))
        made = super().make(keys, items)
        for key in keys:
            with (self.notes / str(os.getpid())).open("a") as file:
                file.write(f"{key}\n")
        return made  # finished keys are also written if the run is stopped


def filled(
    store, listing, make_job, *, shard_size=3, stop=None, on_batch=lambda *_: None, provenance=MASKS, kind="masks"
):
    with StoreWriter(store, Manifest(kind=kind, provenance=provenance), shard_size=shard_size) as writer:
        engine.run_job(
            writer, listing, listing.reader(), make_job, batch_size=2, num_readers=1, stop=stop, on_batch=on_batch
        )


def assert_same_rows(folder, store):
    listing, job = Listing([folder]), GenerateMasksJob(FelzenszwalbMasks())
    with StoreWriter(store.parent / "here", Manifest(kind="masks", provenance=MASKS), shard_size=3) as writer:
        run_job(writer, listing, listing, job, batch_size=2, num_readers=1)
    here, there = MaskStore(store.parent / "here"), MaskStore(store)
    assert sorted(there) == list(here)
    assert there.failures == here.failures
    assert there.repeated == 0
    for key, masks in here.items():
        assert there[key].to_coco() == masks.to_coco()


def test_a_killed_actor_loses_nothing_and_repeats_nothing(folder, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    killed = []

    def kill():
        while not killed:
            busy = [note for note in notes.iterdir() if note.read_text().count("\n") >= 4]
            if len(list(notes.iterdir())) >= 2 and busy:
                os.kill(int(busy[0].name), signal.SIGKILL)
                killed.append(busy[0].name)
            time.sleep(0.02)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    counts = []
    filled(
        tmp_path / "m",
        Listing([folder]),
        functools.partial(Slow, notes),
        on_batch=lambda lengths, failures: counts.append((len(lengths), len(failures))),
    )
    assert killed
    assert len(list(notes.iterdir())) >= 3  # another actor replaced it
    assert_same_rows(folder, tmp_path / "m")
    assert [sum(column) for column in zip(*counts, strict=True)] == [24, 1]


def test_a_stopped_run_writes_the_finished_rows_and_is_resumed(folder, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    stop = threading.Event()
    listing = Listing([folder])

    def end():
        while sum(note.read_text().count("\n") for note in notes.iterdir()) < 6:
            time.sleep(0.02)
        stop.set()

    threading.Thread(target=end, daemon=True).start()
    filled(tmp_path / "m", listing, functools.partial(Slow, notes), shard_size=12, stop=stop.is_set)
    assert 6 <= len(MaskStore(tmp_path / "m")) < 24
    finished = set(MaskStore(tmp_path / "m")) | set(MaskStore(tmp_path / "m").failures)

    class Pending(Listing):
        def __iter__(self):
            return (image for image in super().__iter__() if image.key not in finished)

    filled(tmp_path / "m", Pending([folder]), functools.partial(Slow, notes))
    assert_same_rows(folder, tmp_path / "m")


def tokens():
    return TokenizeJob(encoders.load("pixels"), Regionizer(pool="mean"))


def test_tokens_are_the_same(folder, tmp_path):
    listing, job = Listing([folder]), tokens()
    filled(tmp_path / "t", listing, tokens, shard_size=10, provenance=job.describe(), kind="tokens")
    with StoreWriter(tmp_path / "here", Manifest(kind="tokens", provenance=job.describe())) as writer:
        run_job(writer, listing, listing, job, batch_size=2, num_readers=1)
    here, there = TokenStore(tmp_path / "here"), TokenStore(tmp_path / "t")
    assert sorted(there) == list(here)
    for key, expected in here.items():
        assert torch.equal(there[key].values, expected.values)
        assert torch.equal(there[key].regions.patch, expected.regions.patch)


def test_a_store_that_the_actors_do_not_share_is_rejected(folder):
    listing = Listing([folder])
    with pytest.raises(Exception, match=r"memory://m has no (part|failed)-0000\d-000000.parquet, which an actor"):
        filled("memory://m", listing, functools.partial(GenerateMasksJob, FelzenszwalbMasks()))


def test_no_cluster_is_started_without_images(tmp_path, monkeypatch):
    monkeypatch.setattr("ray.data.from_items", None)
    with StoreWriter(tmp_path / "m", Manifest(kind="masks")) as writer:
        engine.run_job(writer, images(0), None, None, batch_size=1, num_readers=1)
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        StoreWriter(tmp_path / "m", Manifest(kind="masks")) as writer,
        pytest.raises(MissingDependencyError, match=r"ray is needed here.*regiontok\[ray\]"),
    ):
        engine.run_job(writer, images(1), None, None, batch_size=1, num_readers=1)
