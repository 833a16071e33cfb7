"""The limit of the pixels that are decoded ahead."""

import threading
import time

import pytest

from regiontok.pipeline import ListedImage, Listing, Reader, make_rows
from regiontok.pipeline.jobs import Job
from regiontok.pipeline.memory import PixelGate
from tests.pipeline.test_listing import draw


def test_the_oldest_batch_continues_and_later_ones_wait():
    gate, entered = PixelGate(100), []

    def enter(batch, pixels):
        gate.enter(batch, pixels)
        entered.append(batch)

    enter(0, 1000)  # however large
    waiting = threading.Thread(target=enter, args=(1, 10))
    waiting.start()
    time.sleep(0.1)
    assert entered == [0]
    gate.leave(0)
    waiting.join(5)
    assert entered == [0, 1]


def test_closing_the_gate_ends_all_waits():
    gate = PixelGate(100)
    gate.enter(0, 1000)
    waiting = threading.Thread(target=gate.enter, args=(1, 10))
    waiting.start()
    gate.close()
    waiting.join(5)
    assert not waiting.is_alive()


@pytest.mark.parametrize("limit", [1, 200, 10**9])
def test_a_run_holds_no_more_pixels_than_its_oldest_batch_and_the_limit(tmp_path, monkeypatch, limit):
    for number in range(24):
        draw(tmp_path / f"{number:02d}.png", number, size=(10, 10))
    monkeypatch.setattr("regiontok.pipeline.run.PixelGate", lambda: PixelGate(limit))
    held, most, lock = set(), [], threading.Lock()

    class Hold(Job):
        kind = "masks"
        num_workers = 2

        def describe(self):
            return {}

        def read(self, reader: Reader, image: ListedImage):
            reader.read(image)
            with lock:
                held.add(image.key)
                most.append(len(held))
            return image.key

        def make(self, keys, items):
            time.sleep(0.005)
            with lock:
                held.difference_update(keys)
            raise RuntimeError("no rows")

    listing = Listing([tmp_path])
    made = list(make_rows(listing, listing, Hold(), batch_size=3, num_readers=4, shard_size=1000))
    assert sum(len(result.failures) for result in made) == 24
    if limit < 1000:
        assert max(most) <= 3 + limit // 100 + 3  # oldest batch, images within the limit, and a batch that just ended
