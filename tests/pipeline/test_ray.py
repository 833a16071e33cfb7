"""A real Ray cluster on this machine: the same rows as one process, also where an actor is killed in the middle."""

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
from regiontok.pipeline import GenerateMasks, Listing, MakeTokens, Stop, fill
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


class Slow(GenerateMasks):
    """Leaves a note of each process that works, and takes its time."""

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
        return made  # what is noted is made, and so is kept where a run is stopped


def filled(store, listing, make_work, *, shard_size=3, stop=None, tick=lambda *_: None, made_by=MASKS, kind="masks"):
    with StoreWriter(store, Manifest(kind=kind, made_by=made_by), shard_size=shard_size) as writer:
        engine.fill(writer, listing, listing.reader(), make_work, batch=2, workers=1, stop=stop or Stop(), tick=tick)


def assert_same_rows(folder, store):
    listing, work = Listing([folder]), GenerateMasks(FelzenszwalbMasks())
    with StoreWriter(store.parent / "here", Manifest(kind="masks", made_by=MASKS), shard_size=3) as writer:
        fill(writer, listing, listing, work, batch=2, workers=1)
    here, there = MaskStore(store.parent / "here"), MaskStore(store)
    assert sorted(there) == list(here)
    assert there.failures == here.failures
    assert there.repeated == 0
    for key, masks in here.items():
        assert there[key].to_coco() == masks.to_coco()


def test_a_killed_actor_loses_nothing_and_makes_nothing_twice(folder, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    killed = []

    def kill():
        while not killed:
            busy = [one for one in notes.iterdir() if one.read_text().count("\n") >= 4]
            if len(list(notes.iterdir())) >= 2 and busy:
                os.kill(int(busy[0].name), signal.SIGKILL)
                killed.append(busy[0].name)
            time.sleep(0.02)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    told = []
    filled(
        tmp_path / "m",
        Listing([folder]),
        functools.partial(Slow, notes),
        tick=lambda lengths, failures: told.append((len(lengths), len(failures))),
    )
    assert killed
    assert len(list(notes.iterdir())) >= 3  # another came in its place
    assert_same_rows(folder, tmp_path / "m")
    assert [sum(one) for one in zip(*told, strict=True)] == [24, 1]


def test_what_is_there_is_not_made_again_and_a_stop_keeps_the_rows_in_hand(folder, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    stop = Stop()
    listing = Listing([folder])

    def end():
        while sum(one.read_text().count("\n") for one in notes.iterdir()) < 6:
            time.sleep(0.02)
        stop.event.set()

    threading.Thread(target=end, daemon=True).start()
    filled(tmp_path / "m", listing, functools.partial(Slow, notes), shard_size=12, stop=stop)
    assert 6 <= len(MaskStore(tmp_path / "m")) < 24
    known = set(MaskStore(tmp_path / "m")) | set(MaskStore(tmp_path / "m").failures)

    class Rest(Listing):
        def __iter__(self):
            return (image for image in super().__iter__() if image.key not in known)

    filled(tmp_path / "m", Rest([folder]), functools.partial(Slow, notes))
    assert_same_rows(folder, tmp_path / "m")


def tokens():
    return MakeTokens(encoders.load("pixels"), Regionizer(pool="mean"))


def test_tokens_are_the_same(folder, tmp_path):
    listing, work = Listing([folder]), tokens()
    filled(tmp_path / "t", listing, tokens, shard_size=10, made_by=work.describe(), kind="tokens")
    with StoreWriter(tmp_path / "here", Manifest(kind="tokens", made_by=work.describe())) as writer:
        fill(writer, listing, listing, work, batch=2, workers=1)
    here, there = TokenStore(tmp_path / "here"), TokenStore(tmp_path / "t")
    assert sorted(there) == list(here)
    for key, one in here.items():
        assert torch.equal(there[key].values, one.values)
        assert torch.equal(there[key].regions.patch, one.regions.patch)


def test_a_store_that_the_actors_do_not_share_is_found(folder, monkeypatch):
    listing = Listing([folder])
    with pytest.raises(Exception, match=r"memory://m has no (part|failed)-0000\d-000000.parquet, which an actor"):
        filled("memory://m", listing, functools.partial(GenerateMasks, FelzenszwalbMasks()))


def test_nothing_to_do_starts_no_cluster(tmp_path, monkeypatch):
    monkeypatch.setattr("ray.data.from_items", None)
    with StoreWriter(tmp_path / "m", Manifest(kind="masks")) as writer:
        engine.fill(writer, images(0), None, None, batch=1, workers=1, stop=Stop())
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        StoreWriter(tmp_path / "m", Manifest(kind="masks")) as writer,
        pytest.raises(MissingDependencyError, match=r"ray is needed here.*regiontok\[ray\]"),
    ):
        engine.fill(writer, images(1), None, None, batch=1, workers=1, stop=Stop())
