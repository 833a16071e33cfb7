"""Masks of images without names are generated once."""

import numpy as np
import pytest
from PIL import Image

from regiontok.errors import DataError, MissingKeyError, StoreError
from regiontok.evaluation.cached_masks import CachedMaskGenerator, digest
from regiontok.masks import FelzenszwalbMasks
from regiontok.store import MaskStore


class Counting(FelzenszwalbMasks):
    """Counts the images that it is called for."""

    seen = 0

    def __call__(self, images):
        type(self).seen += len(images)
        return super().__call__(images)


def image(seed, size=(40, 30)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8))


def test_masks_are_generated_once_and_stored_for_the_next_run(tmp_path):
    Counting.seen = 0
    kept = CachedMaskGenerator(tmp_path / "m", Counting())
    first = kept([image(0), image(1), image(0)])
    assert Counting.seen == 2
    assert [one.to_coco() for one in first] == [
        one.to_coco() for one in FelzenszwalbMasks()([image(0), image(1), image(0)])
    ]
    again = kept(image(1))
    assert (Counting.seen, again[0].to_coco()) == (2, first[1].to_coco())
    kept.flush()
    del kept
    only = CachedMaskGenerator(tmp_path / "m")
    assert only([image(1), image(0)])[0].to_coco() == first[1].to_coco()
    assert only.describe()["generator"] == "felzenszwalb"
    assert sorted(MaskStore(tmp_path / "m")) == sorted([digest(image(0)), digest(image(1))])
    with pytest.raises(
        MissingKeyError, match=r"m has no masks of the image with digest [0-9a-f]{32}. .* --missing GENERATOR"
    ):
        only([image(2)])


def test_processes_share_a_store(tmp_path):
    one, two = (CachedMaskGenerator(tmp_path / "m", FelzenszwalbMasks(), writer=rank) for rank in range(2))
    one([image(0)])
    two([image(1)])
    for kept in (one, two):
        kept.flush()
    assert len(MaskStore(tmp_path / "m")) == 2
    with pytest.raises(StoreError, match="scale: 150.0 in the store, 99.0 now"):
        CachedMaskGenerator(tmp_path / "m", FelzenszwalbMasks(scale=99.0), writer=2)
    with pytest.raises(DataError, match="there is no store of masks"):
        CachedMaskGenerator(tmp_path / "none")


def test_digest_depends_on_size_and_pixels():
    flat = [Image.new("RGB", size, "teal") for size in ((4, 6), (6, 4), (3, 8))]
    assert len({digest(one) for one in [*flat, image(0, (4, 6)), image(1, (4, 6))]}) == 5
    assert digest(image(0)) == digest(image(0))
