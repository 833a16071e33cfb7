"""The generators that run others' code: transformers' pipeline, the sam2 package, scikit-image."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.segmentation import felzenszwalb

from regiontok.errors import DTypeError, ValueRangeError
from regiontok.masks import FelzenszwalbMasks, MaskSettings, PackageMasks, PipelineMasks, Sam2Masks
from tests.conftest import assert_close
from tests.models import tiny_sam2, tiny_sam3

ALL = MaskSettings(points_per_side=3, stability_score_thresh=0, pred_iou_thresh=0, box_nms_thresh=1)


def iou(a, b):
    a, b = (one.masks().flatten(1).float() for one in (a, b))
    shared = a @ b.T
    return shared / (a.sum(1)[:, None] + b.sum(1) - shared)


@pytest.mark.parametrize("make", [tiny_sam2, tiny_sam3])
def test_the_pipeline_finds_the_same_masks_as_ours(make, china):
    model = make(2)
    for image in (china, china.rotate(90, expand=True)):
        [ours], [theirs] = Sam2Masks(model, settings=ALL)(image), PipelineMasks(model, settings=ALL)(image)
        assert theirs.size == (image.height, image.width)
        assert len(ours) > 3
        overlap = iou(ours, theirs)  # they round the resized image to whole numbers; random weights make much of that
        assert overlap.amax(1).mean() > 0.9
        assert overlap.amax(0).mean() > 0.9


def test_the_pipelines_points_cover_images_that_are_not_square(china):
    model = tiny_sam2(2)
    generate = PipelineMasks(model, settings=ALL)
    for image in (china, china.rotate(90, expand=True)):
        _, points, _, _ = generate.pipeline.image_processor.generate_crop_boxes(image, 128, 0, 0.3, 4, 1)
        middle = (torch.arange(4) + 0.5) * 32
        assert_close(points.reshape(-1, 2), torch.stack([middle.repeat(4), middle.repeat_interleave(4)], 1))


def test_the_pipeline_may_find_nothing(china):
    strict = MaskSettings(points_per_side=2, stability_score_thresh=1, pred_iou_thresh=1)
    assert [len(one) for one in PipelineMasks(tiny_sam2(), settings=strict)([china, china])] == [0, 0]


def test_the_pipeline_refuses_other_models_and_ladders():
    with pytest.raises(DTypeError, match="Sam2Model or Sam3TrackerModel; got Linear"):
        PipelineMasks(torch.nn.Linear(2, 2))
    with pytest.raises(DTypeError, match="one MaskSettings here"):
        PipelineMasks(tiny_sam2(), settings=[ALL, ALL])


@pytest.fixture(scope="module")
def models():
    pytest.importorskip("sam2", reason="the sam2 package is not installed")
    from benchmarks.generators import same_weights  # noqa: PLC0415

    return same_weights(seed=1)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # in the package
class TestPackage:
    """The official package, with the weights of one model in its code and in transformers'."""

    def test_it_finds_the_same_masks_as_ours(self, models, china):
        official, model = models
        settings = MaskSettings(points_per_side=2, stability_score_thresh=0, pred_iou_thresh=0, box_nms_thresh=1)
        [theirs] = PackageMasks(official, settings=settings)(china)
        [ours] = Sam2Masks(model, settings=settings)(china)
        assert len(ours) == len(theirs) == 12
        assert_close(torch.from_numpy(theirs.scores), torch.from_numpy(ours.scores))
        assert (ours.masks() != theirs.masks()).float().mean() < 1e-3
        assert (torch.from_numpy(ours.stability) - torch.from_numpy(theirs.stability)).abs().max() < 0.05

    def test_a_ladder_encodes_a_image_once_and_another_image_anew(self, models, china):
        official, _ = models
        steps = [MaskSettings(side, 0, 0, 1) for side in (1, 2)]
        generate = PackageMasks(official, settings=steps, bound=(12, 12))
        encoded = []
        forward = official.forward_image
        official.forward_image = lambda image: encoded.append(image) or forward(image)
        try:
            [one, other] = generate([china, china.rotate(180)])
        finally:
            del official.forward_image
        assert len(encoded) == 2
        assert (len(one), len(other)) == (12, 12)
        assert iou(one, other).diagonal().mean() < 0.999


class TestFelzenszwalb:
    def test_segments_are_scikit_images(self):
        image = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
        [found] = FelzenszwalbMasks(scale=50, sigma=0.5, min_size=20)(Image.fromarray(image))
        labels = felzenszwalb(image, scale=50, sigma=0.5, min_size=20)
        assert np.array_equal(found.masks().numpy(), labels == np.arange(labels.max() + 1)[:, None, None])
        assert np.isnan(found.scores).all()

    def test_they_cover_a_real_image_at_any_size(self, china):
        small, large = FelzenszwalbMasks()([china, china.resize((2560, 1708))])
        for found in (small, large):
            assert 60 < len(found) < 160
            assert found.areas().sum() == found.size[0] * found.size[1]
        assert (small.masks().sum(0) == 1).all()
        assert large.size == (1708, 2560)

    def test_bad_settings_are_refused(self):
        with pytest.raises(ValueRangeError, match="scale must be in"):
            FelzenszwalbMasks(scale=-1)
        with pytest.raises(ValueRangeError, match="min_size must be at least 1"):
            FelzenszwalbMasks(min_size=0)
